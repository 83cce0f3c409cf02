"""Read results from hosts that are not trusted: plain data, and classes that the program named.

What the far end writes is _agent/results.py's job.  CPython's unpickler is fast and believes everything, so
it gets to see only what has been checked, in up to four steps:

1. *Scan* (_pickle_scan.py): every opcode must be one that CPython's pickler writes at protocol 4 or 5.  Gone with the
   others: PUT (nine bytes of it take 8 GiB), the extension registry, persistent ids, integers as text.
2. *Probe* (_number_keys.py, _probing.py), where many keys may be numbers, or made of them.
3. *Rehearse* (_rehearsal.py), where a pickle could do harm with the opcodes that are left.
4. *Load*, with constructors of ours (_plain_data.py) in place of classes.
"""

from __future__ import annotations

import collections
import enum
import functools
import io
import pickle
import sys
import types
import weakref
from collections.abc import Generator, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import trio

from trickle._exceptions import UnsafeResult
from trickle._fence import undisturbed
from trickle._number_keys import FEW_KEYS, may_have_many
from trickle._pickle_budget import APPEND_TIME, LOOKUP_TIME, Budget, Refused, printable
from trickle._pickle_opcodes import CLASSES, COSTLY, KEYS, SLICE, STATES
from trickle._pickle_scan import body_of, count_appends, is_harmless, scan
from trickle._pickle_slices import AnyFile, Loader, cut_up
from trickle._plain_data import FACTORIES, RECIPES, SINGLETONS, Factory, Name, refusal_of_class
from trickle._probing import probe
from trickle._rehearsal import ManyKeys, rehearse, with_stand_ins

SMALL: Final = 16 * 1024  # bytes: reading these takes some milliseconds at most
# Bytes; what is smaller cannot take more than the fence's 64 MiB: an empty set is one byte, and 224 in memory.
FENCED_SIZE: Final = 256 * 1024
FENCE: Final = 60 * 2**20  # bytes, and for each byte of a pickle: of the 64 MiB and 16 times its size that are
FENCE_PER_BYTE: Final = 13  # promised, copies of it take the rest


def loads(
    data: bytes,
    *,
    host: str,
    allowed: Mapping[Name, type] = MappingProxyType({}),
    full_trust: bool = False,
    patience: int = 1,
) -> object:
    """Return the object that *data* from *host* describes.

    Instances of *allowed* classes are made by their ``__new__``, never by their ``__init__``, and get their
    state as pickle does it: by their ``__setstate__``, else straight into their ``__dict__``.

    Args:
      allowed: (module, qualified name) -> class, besides plain data; see `allowed_classes`.
      full_trust: read whatever it is.  Can run any code.
      patience: how many times as long it may take as an event loop may be held up.

    Raises:
      UnsafeResult: *data* is not plain data, or not a pickle at all, or costs too much for its size.
    """
    reading = _read(data, host, allowed, full_trust, patience, in_turns=False)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value


@trio.lowlevel.enable_ki_protection  # Ctrl-C comes between turns, or a thread that reads would be left behind
async def loads_in_turns(
    data: bytes,
    *,
    host: str,
    allowed: Mapping[Name, type] = MappingProxyType({}),
    full_trust: bool = False,
) -> object:
    """The same, of what may be large: other tasks have their turns meanwhile.  Cannot be cancelled."""
    if len(data) <= SMALL:
        return loads(data, host=host, allowed=allowed, full_trust=full_trust)
    reading = _read(data, host, allowed, full_trust, 1, in_turns=True)
    with trio.CancelScope(shield=True):
        async with _one_at_a_time():
            value = await _in_turns(reading)
    return value


async def _in_turns(reading: Generator[None, None, object]) -> object:
    try:
        while True:
            try:
                next(reading)
            except StopIteration as done:
                return done.value
            await trio.lowlevel.checkpoint()
    finally:
        reading.close()


_lock: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("results")


def _one_at_a_time() -> trio.Lock:
    """Results that came together are read one after the other: else each would take a slice in every turn."""
    try:
        return _lock.get()
    except LookupError:
        _lock.set(trio.Lock())
        return _lock.get()


def _read(
    data: bytes, host: str, allowed: Mapping[Name, type], full_trust: bool, patience: int, *, in_turns: bool
) -> Generator[None, None, object]:
    try:
        if full_trust:
            return _TrustingUnpickler(io.BytesIO(data)).load()
        if is_harmless(data):
            return pickle.loads(data[:2] + data[body_of(data) :])
        most = FENCE + FENCE_PER_BYTE * len(data) if len(data) >= FENCED_SIZE else None
        found, runs = yield from scan(data, most)
        if len(data) > SLICE:
            yield
        loader = Loader(most, in_turns)
        budget = Budget(len(data), patience)
        if APPEND_TIME * data.count(b"a") > budget.time_left and any(name in data for name in _NO_LISTS):
            appends = yield from count_appends(data, runs)
            budget.charge_time(APPEND_TIME * appends)
        is_probed = bool(found & KEYS) and len(data) > SMALL and (yield from may_have_many(data, runs))
        if is_probed:
            yield from probe(data, runs, allowed, patience, loader)
        has_costly_keys = found & KEYS and (found & COSTLY or b"deque" in data)  # storing into the middle of one is
        if has_costly_keys or found & STATES or (found & CLASSES and allowed):
            rewritten = yield from with_stand_ins(data, runs, budget)
            is_probed = is_probed or not found & KEYS or len(data) <= SMALL
            left = budget.time_left, budget.work_left
            try:
                yield from rehearse(rewritten[:], allowed, budget, loader, None if is_probed else FEW_KEYS)
            except ManyKeys:
                yield from probe(data, runs, allowed, patience, loader)
                budget.time_left, budget.work_left = left
                yield from rehearse(rewritten, allowed, budget, loader)
            del rewritten
            if len(data) > SLICE:
                yield
        if len(data) <= SMALL and not found & CLASSES:  # nothing that reading at one go could hold up
            return undisturbed(most, pickle.loads, data[:2] + data[body_of(data) :])
        slices = yield from cut_up(data, runs)
        del runs
        budget = Budget(len(data), patience)
        return (yield from loader.load(lambda file: _load(file, found, allowed, budget), slices))
    except Refused as exc:
        raise UnsafeResult(f"{host}: the result was refused: {exc}", host=host) from None
    except (MemoryError, SystemError):  # the latter where CPython's unpickler forgets to say the former
        raise UnsafeResult(f"{host}: the result was refused: it would take too much memory", host=host) from None
    except Exception as exc:
        raise UnsafeResult(
            f"{host}: the result cannot be read: {printable(type(exc).__name__)}: {printable(exc)}",
            host=host,
        ) from exc


_NO_LISTS: Final = (b"deque", b"bytearray", b"\x96")  # appending to these takes its time; the last is BYTEARRAY8


def _load(file: AnyFile, found: int, allowed: Mapping[Name, type], budget: Budget) -> object:
    if not found & CLASSES:  # nothing is looked up by a name
        return pickle.Unpickler(file).load()
    unpickler = _RestrictedUnpickler(file, allowed, budget)
    result = unpickler.load()
    unpickler.refuse_classes_as_values()
    return result


_allowed: dict[Name, type] = {}


def allow(*classes: type) -> None:
    """Let results contain instances of *classes*, from every host.

    They are made by ``__new__`` and get their state as pickle does it; no ``__init__`` of theirs is called.  A host
    chooses the state, so allow only classes that stand any.  Errors carry plain data all the same.

    Raises:
      TypeError: one of *classes* is not a class, or has no name that pickle could find it by.
    """
    _allowed.update(_by_name(classes))


def allowed_classes(classes: Iterable[type] = ()) -> Mapping[Name, type]:
    """Return what `loads` takes as ``allowed``: what the program allowed everywhere, and *classes*."""
    return {**_allowed, **_by_name(classes)} if classes else _allowed


def _by_name(classes: Iterable[type]) -> dict[Name, type]:
    named = {}
    for cls in classes:
        if not isinstance(cls, type):
            raise TypeError(f"only classes can be allowed, not {cls!r}")
        if "<locals>" in cls.__qualname__:
            raise TypeError(f"{cls.__qualname__} cannot be allowed: pickle finds no class inside a function")
        named[cls.__module__, cls.__qualname__] = cls
    return named


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle that was scanned and, where it could do harm, rehearsed."""

    def __init__(self, file: AnyFile, allowed: Mapping[Name, type], budget: Budget) -> None:
        super().__init__(file)
        self._allowed = allowed
        self._budget = budget
        self._given: list[tuple[Name, weakref.ref[Any]]] = []
        self._references: dict[Name, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        self._budget.charge_time(LOOKUP_TIME)
        recipe = RECIPES.get((module, name))
        if recipe is not None:
            # A method: nothing calls one faster, it has no attributes to be set, and is no class.
            constructor = types.MethodType(recipe.make, self._budget)
            self._given.append(((module, name), weakref.ref(constructor)))
            return constructor
        if module == "builtins" and name in FACTORIES:
            factory = Factory(FACTORIES[name])
            self._given.append(((module, name), weakref.ref(factory)))
            return factory
        if (module, name) in SINGLETONS:
            return SINGLETONS[module, name]
        if (module, name) in self._allowed:
            cls = self._allowed[module, name]
            self._references.setdefault((module, name), _count_references(cls))
            return _maker_of(cls)
        raise refusal_of_class(module, name)

    def refuse_classes_as_values(self) -> None:
        """Refuse a result that has a constructor in it, where the host had a class."""
        self.memo = {}
        names = [name for name, constructor in self._given if constructor() is not None]
        for name, references in self._references.items():
            if _count_references(self._allowed[name]) > references:
                names.append(name)
        if names:
            raise Refused(f"it contains the class {'.'.join(names[0])} itself, and classes are not data")


@functools.lru_cache(maxsize=1024)
def _maker_of(cls: type) -> type:
    """Return a class that makes instances of *cls* by its ``__new__`` when called, and nothing else.

    A class, because the NEWOBJ opcode takes nothing else.  What it makes is no instance of it, so that
    calling it ends there: no ``__init__`` but that of some builtin errors is called.
    """

    needs_init = _needs_init(cls)
    grows = _maker(cls).__module__ == "builtins" and issubclass(cls, (tuple, frozenset, bytes, BaseExceptionGroup))
    kept_in_c = next((each for each in (OSError, SystemExit, StopIteration) if issubclass(cls, each)), None)

    def make(_: type, *args: Any, **kwargs: Any) -> Any:
        if (args or kwargs) and needs_init:
            raise Refused(
                f"it makes a {printable(cls.__qualname__)} by calling the class, and trickle calls no __init__; give"
                ' the class a __getstate__, return plain data instead, or trust this host with trust="full"'
            )
        if issubclass(cls, _FILLED_IN_C):
            raise Refused(f"it has a {printable(cls.__qualname__)}, of which not all is data; return its text instead")
        if grows and any(type(each) in (range, int) for each in (*args, *kwargs.values())):
            raise Refused(f"it makes a {printable(cls.__qualname__)} of a number or a range, which may be any size")
        if issubclass(cls, enum.Enum):
            return _member(cls, *args)
        made = cls.__new__(cls, *args, **kwargs)
        if args and kept_in_c is not None:
            kept_in_c.__init__(made, *args)  # type: ignore[arg-type]  # which stores them, and does nothing else
        return made

    return type(cls.__name__, (), {"__slots__": (), "__new__": make})


# Their C code copies what it is given, and believes it when they are shown.
_FILLED_IN_C: Final = (UnicodeEncodeError, UnicodeDecodeError, UnicodeTranslateError, SyntaxError)
_FILLED_BY_INIT: Final = (set, bytearray, collections.Counter, collections.deque, collections.defaultdict)


def _needs_init(cls: type) -> bool:
    """Whether what *cls* is called with to make one gets into it by an ``__init__`` alone."""
    maker = _maker(cls)
    return maker is object or (issubclass(cls, _FILLED_BY_INIT) and maker.__module__ in ("builtins", "collections"))


def _maker(cls: type) -> type:
    """The class whose ``__new__`` makes instances of *cls*."""
    return next(each for each in cls.__mro__ if "__new__" in vars(each))


def _member(cls: type[enum.Enum], *value: Any) -> enum.Enum:
    """Return a member by its value, without what an enumeration does where there is none: it writes that out."""
    if len(value) == 1 and issubclass(cls, enum.Flag) and type(value[0]) is int and value[0].bit_length() <= 64:
        return cls(value[0])
    try:
        return cls._value2member_map_[value[0]]
    except (IndexError, KeyError, TypeError):
        pass
    for member in cls:  # its value has no hash
        if len(value) == 1 and type(member.value) is type(value[0]) and member.value == value[0]:
            return member
    raise Refused(f"it has a {printable(cls.__qualname__)} that this program has not")


def _count_references(cls: type) -> int:
    return sys.getrefcount(_maker_of(cls))


class _TrustingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Only Python 3.13 has its paths there.
        return super().find_class("pathlib" if module == "pathlib._local" else module, name)
