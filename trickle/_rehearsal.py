"""Read a pickle from a host without making anything that could do harm, and so find out what reading it takes.

It is read with stand-ins in place of tuples, of large integers and texts, and of all that constructors make.
Needed because hashing cannot be interrupted: 200 kB of nested tuples overflow the stack when they become a key, a tuple
of two tuples of two tuples and so on takes for ever, integers chosen to collide take quadratic time; stand-ins keep
account.  And because BUILD and SETITEM reach into whatever object they are given; stand-ins refuse.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import pickle
import re
import secrets
import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar

from trickle._pickle_budget import LOOKUP_TIME, Budget, Refused
from trickle._pickle_opcodes import (
    ALL_KINDS,
    BYTEARRAY,
    COSTLY,
    FROZENSET,
    LARGE_INTEGER,
    WITHOUT_ARGUMENT,
    any_of,
    is_costly,
    run_pattern,
)
from trickle._pickle_scan import parts
from trickle._pickle_slices import AnyFile, Cutter, Loader, Slices
from trickle._plain_data import FACTORIES, RECIPES, SINGLETONS, Name, Recipe, refusal_of_class

# Nanoseconds: see _pickle_budget.py.
KEY_TIME: Final = 1200  # of a tuple that is hashed in a rehearsal, or another value that stands for itself there
TUPLE_TIME: Final = 400  # of any other, or what else gets a stand-in
EQUALITY_TIME: Final = 800  # of two values that have the same hash, or of one that is there already
COLLISION_TIME: Final = 150  # of a key with each other one that has the same hash
COLLISION_WEIGHT_TIME: Final = 40  # and of what there is to compare
INSTANCE_TIME: Final = 1100  # of one of a class that the program allowed
STATE_TIME: Final = 700  # and of its state
PART_TIME: Final = 80  # and of what is in that

MAX_DEPTH: Final = 100  # of tuples in a key
SMALL_TUPLE: Final = 16  # items: looking at them again takes no longer than remembering them

ASK: Final = b"Q"  # BINPERSID: what is on the stack is replaced by a stand-in.  The scan lets no host write it


@functools.cache
def _pieces() -> re.Pattern[bytes]:
    """Return a pattern for opcodes up to one that is costly as a key, or to the end, with a group for either."""
    costly = any_of(WITHOUT_ARGUMENT[COSTLY] + FROZENSET) + b"|" + LARGE_INTEGER
    others = run_pattern(ALL_KINDS & ~COSTLY, FROZENSET)
    return re.compile(b"(" + others + b")(" + costly + rb"|\Z)", re.DOTALL)


_Value = TypeVar("_Value")
Rewrite: TypeAlias = Callable[[bytes, int, int], bytes]


def with_stand_ins(
    data: bytes, runs: array[int], budget: Budget, rewrite: Rewrite | None = None
) -> Generator[None, None, Slices]:
    """Return *data*, which has these *runs*, with requests for stand-ins for what is costly as a key.

    Yields after each `SLICE` or so.

    Args:
      rewrite: returns a part of a run with such requests, and whatever else is to change.
    """
    rewrite = rewrite or functools.partial(_with_requests, budget)
    cutter = Cutter()
    for start, end, is_run in parts(data, runs):
        if is_run:
            written = rewrite(data, start, end)
        else:
            written = data[start:end]
            if is_costly(data[start], end - start) and data[start] != BYTEARRAY:
                budget.charge_time(TUPLE_TIME)
                written += ASK
        if cutter.add(written):
            yield
    return cutter.slices


def _with_requests(budget: Budget, data: bytes, start: int, end: int) -> bytes:
    pieces = _pieces().findall(data, start, end)
    if len(pieces) > 1 and not pieces[-2][1]:
        del pieces[-1]  # that there is nothing at the end has been found twice
    budget.charge_time(TUPLE_TIME * (len(pieces) - 1))
    return ASK.join(map(b"".join, pieces))


_Items: TypeAlias = "tuple[Any, ...] | frozenset[Any]"


class _Known(NamedTuple):
    """What is known of a tuple or frozenset that was hashed."""

    value: _Items  # kept, so that no other gets its id()
    hash: int
    weight: int  # how much there is to hash, and to compare with an equal one
    depth: int


_MODULUS: Final = sys.hash_info.modulus
_SECRET: Final = 1 + secrets.randbelow(_MODULUS - 1)  # scatters hashes: a ledger is a dictionary as well
_FLAT_ITEMS: Final = frozenset({type(None), bool, int, float, str, bytes})  # the long ones have stand-ins
_VALUE_WEIGHT: Final = 40  # of what a constructor makes: hashing a fraction takes as long as forty small integers


class ManyKeys(Exception):
    """There are more keys than was allowed that are made of numbers, or may be."""


class Ledger:
    """Keeps account of what is hashed in one rehearsal, of at most so many keys."""

    def __init__(self, budget: Budget, most_keys: int | None = None) -> None:
        self.budget = budget
        self._keys_left = sys.maxsize if most_keys is None else most_keys
        self._known: dict[int, _Known] = {}
        self._by_hash: dict[int, object] = {}
        self._others: dict[int, list[object]] = {}  # with the same hash as one of these
        self._depth = 0

    def hash(self, value: _Items) -> int:
        """The hash of a tuple or frozenset."""
        self.budget.charge_time(KEY_TIME)
        if type(value) is _KeyTuple and len(value) <= SMALL_TUPLE and _FLAT_ITEMS.issuperset(map(type, value)):
            self.budget.charge_work(len(value))
            value_hash = tuple.__hash__(value)
            self.count_collision(value, value_hash, len(value))
            return value_hash
        known = self._known.get(id(value)) or self._look_into(value)
        self.budget.charge_work(known.weight)
        self.count_collision(value, known.hash, known.weight)
        return known.hash

    def _look_into(self, value: _Items) -> _Known:
        weight, depth = 1 + len(value), 0
        self.budget.charge_time(2 * KEY_TIME)
        self._depth += 1
        for item in value:
            if type(item) in (_KeyTuple, KeyFrozenset):
                if self._depth > MAX_DEPTH:
                    raise Refused("it has a key of tuples nested too deeply")
                known = self._known.get(id(item)) or self._look_into(item)
                weight += known.weight
                depth = max(depth, known.depth)
            elif type(item) in _WEIGHED:
                weight += item.weight()
            elif isinstance(item, _RehearsedValue):
                weight += _VALUE_WEIGHT + item.weight()
        self._depth -= 1
        if depth >= MAX_DEPTH:
            raise Refused("it has a key of tuples nested too deeply")
        self.budget.charge_work(weight)
        value_hash = tuple.__hash__(value) if isinstance(value, tuple) else frozenset.__hash__(value)
        known = _Known(value, value_hash, weight, depth + 1)
        self._known[id(value)] = known
        return known

    def count_collision(self, value: object, value_hash: int, weight: int) -> None:
        self._keys_left -= 1
        if self._keys_left < 0:
            raise ManyKeys
        value_hash = value_hash * _SECRET % _MODULUS
        first = self._by_hash.setdefault(value_hash, value)
        others = self._others.get(value_hash)
        if others is not None:
            self.budget.charge_time((COLLISION_TIME + COLLISION_WEIGHT_TIME * weight) * (len(others) + 1))
        if first is not value and first != value:
            if others is None:
                others = self._others[value_hash] = []
            if value not in others:
                others.append(value)


_NO_LEDGER: Final = Ledger(Budget(0, 0))
_ledger = _NO_LEDGER  # of the rehearsal that is on; there is one at a time, see Fence


class _KeyTuple(tuple[Any, ...]):
    """Stands in for a tuple."""

    __slots__ = ()

    def __hash__(self) -> int:
        return _ledger.hash(self)


class KeyFrozenset(frozenset[Any]):
    """Stands in for a frozenset."""

    __slots__ = ()

    def __hash__(self) -> int:
        return _ledger.hash(self)


class _KeyInteger(int):
    """Stands in for an integer whose hash may have been chosen."""

    __slots__ = ()

    def weight(self) -> int:
        return self.bit_length() // 512

    def __hash__(self) -> int:
        weight = self.weight()
        _ledger.budget.charge_work(weight)
        _ledger.budget.charge_time(KEY_TIME)
        value_hash = int.__hash__(self)
        _ledger.count_collision(self, value_hash, weight)
        return value_hash


class _KeyText(str):
    """Stands in for a long text, which is hashed once and compared often."""

    __slots__ = ()

    def weight(self) -> int:
        return sys.getsizeof(self) // 256

    def __hash__(self) -> int:
        _ledger.budget.charge_work(self.weight())
        return str.__hash__(self)


class _KeyBytes(bytes):
    """Stands in for long bytes, which are hashed once and compared often."""

    __slots__ = ()

    def weight(self) -> int:
        return sys.getsizeof(self) // 256

    def __hash__(self) -> int:
        _ledger.budget.charge_work(self.weight())
        return bytes.__hash__(self)


_WEIGHED: Final = frozenset({_KeyInteger, _KeyText, _KeyBytes})
_STAND_INS: Final[Mapping[type, Callable[[Any], object]]] = {
    tuple: _KeyTuple,
    frozenset: KeyFrozenset,
    int: _KeyInteger,
    str: _KeyText,
    bytes: _KeyBytes,
}
_ORIGINALS: Final[Mapping[type, type]] = {
    _KeyTuple: tuple,
    KeyFrozenset: frozenset,
    _KeyInteger: int,
    _KeyText: str,
    _KeyBytes: bytes,
}


def stand_in(value: Any) -> object:
    return _STAND_INS[type(value)](value)


def _refuse_state(*args: object) -> NoReturn:
    raise Refused("it sets the state of an object that has none")


class _RehearsedType(type):
    """Refuses to have its classes changed: they serve every rehearsal."""

    __setstate__ = _refuse_state


class _RehearsedValue(Exception, metaclass=_RehearsedType):
    """Stands in for an immutable value that a constructor makes.  It is made if it becomes a key.

    An exception, because nothing else in Python takes and keeps any arguments as fast.
    """

    __slots__ = ("value",)
    __setstate__ = _refuse_state
    recipe: Recipe
    value: Any

    def make(self) -> Any:
        try:
            return self.value
        except AttributeError:
            self.value = self.recipe.make(_ledger.budget, *map(_original, self.args))
            return self.value

    def weight(self) -> int:
        return self.size() // 64

    def size(self) -> int:
        return sum(map(_size, self.args))

    def __hash__(self) -> int:
        value_hash = hash(self.make())
        _ledger.budget.charge_time(4 * KEY_TIME)
        weight = self.weight()
        _ledger.budget.charge_work(weight)
        _ledger.count_collision(self, value_hash, weight)
        return value_hash

    def __eq__(self, other: object) -> bool:
        if type(other) is type(self):
            _ledger.budget.charge_time(EQUALITY_TIME + 2 * self.size())
        else:  # numbers are made alike before they are compared
            size = self.size() + (other.size() if isinstance(other, _RehearsedValue) else _size(other))
            _ledger.budget.charge_time(EQUALITY_TIME + size * size // 4)
        return bool(self.make() == _original(other))


def _original(value: Any) -> Any:
    """Return what *value* stands in for."""
    if isinstance(value, _RehearsedValue):
        return value.make()
    original = _ORIGINALS.get(type(value))
    return value if original is None else original(value)


def _size(value: object) -> int:
    if isinstance(value, int):
        return value.bit_length() // 8
    return len(value) if isinstance(value, str | bytes) else 0


class _RehearsedMapping(dict[Any, Any], metaclass=_RehearsedType):
    """Stands in for what is like a dict and is made by a constructor."""

    __slots__ = ()
    __setstate__ = _refuse_state

    def __init__(self, *args: object) -> None:
        """Look at nothing."""


class _RehearsedSequence(metaclass=_RehearsedType):
    """Stands in for what is like a list and is made by a constructor."""

    __slots__ = ()
    __setstate__ = _refuse_state
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *args: object) -> None:
        """Look at nothing."""

    def extend(self, items: object) -> None:
        """Keep nothing."""

    append = extend


class _RehearsedInstance:
    """Stands in for an instance of a class that the program allowed, which stands whatever it is given.

    But it may hash that, or be a key by it, as named tuples and frozen dataclasses are.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[object, ...]) -> None:
        self.parts = parts
        _try_as_keys(parts)

    def __hash__(self) -> int:
        try:
            return hash(_KeyTuple(self.parts))
        except TypeError:
            return object.__hash__(self)

    def __setstate__(self, state: object) -> None:
        _ledger.budget.charge_time(STATE_TIME)
        for part in state if type(state) is _KeyTuple else (state,):
            _ledger.budget.charge_time(PART_TIME * (len(self.parts) + (len(part) if isinstance(part, dict) else 1)))
            given = tuple(part.values()) if isinstance(part, dict) else (part,)
            _try_as_keys(given)
            self.parts += given

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, _RehearsedValue) and isinstance(key.make(), slice):
            raise Refused("it puts something into a slice of a list")
        _try_as_keys((key,))

    def extend(self, items: object) -> None:
        pass

    append = add = extend


class _RehearsedMember(_RehearsedInstance):
    """Stands in for a member of an enumeration, which is the program's own."""

    __slots__ = ()
    __setstate__ = _refuse_state  # type: ignore[assignment]


def _try_as_keys(values: Iterable[object]) -> None:
    for value in values:
        with contextlib.suppress(TypeError):
            hash(value)


class _RehearsedClass(metaclass=_RehearsedType):
    """Stands in for a class that the program allowed.  Is one, because NEWOBJ takes nothing else."""

    __slots__ = ()
    instance = _RehearsedInstance

    def __new__(cls, *args: object, **kwargs: object) -> _RehearsedInstance:  # type: ignore[misc]
        _ledger.budget.charge_time(INSTANCE_TIME)
        return cls.instance((*args, *kwargs.values()))


class _RehearsedEnum(_RehearsedClass):
    """Stands in for an enumeration that the program allowed."""

    __slots__ = ()
    instance = _RehearsedMember


@functools.cache
def _rehearsed(recipe: Recipe) -> type:
    """Return a class whose instances stand in for what *recipe* makes."""
    if recipe.kind == "mapping":
        return _RehearsedMapping
    if recipe.kind == "sequence":
        return _RehearsedSequence
    return _RehearsedType("_RehearsedValue", (_RehearsedValue,), {"__slots__": (), "recipe": recipe})


_REHEARSED_FACTORY: Final = _RehearsedSequence()  # not to be called


class Rehearsal(pickle.Unpickler):
    """Goes through a pickle without making anything that could do harm."""

    persistent_load = staticmethod(stand_in)

    def __init__(self, file: AnyFile, allowed: Mapping[Name, type]) -> None:
        super().__init__(file)
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        _ledger.budget.charge_time(LOOKUP_TIME)
        recipe = RECIPES.get((module, name))
        if recipe is not None:
            return _rehearsed(recipe)
        if module == "builtins" and name in FACTORIES:
            return _REHEARSED_FACTORY
        if (module, name) in SINGLETONS:
            return SINGLETONS[module, name]
        if (module, name) in self.allowed:
            return _RehearsedEnum if issubclass(self.allowed[module, name], enum.Enum) else _RehearsedClass
        raise refusal_of_class(module, name)


def rehearse(
    rewritten: Slices,
    allowed: Mapping[Name, type],
    budget: Budget,
    loader: Loader,
    most_keys: int | None = None,
) -> Generator[None, None, None]:
    """Read what `with_stand_ins` has made, or refuse it.

    Raises:
      ManyKeys: there are more than *most_keys* that numbers may hide in, if that is given.
    """
    account = functools.partial(with_account, Ledger(budget, most_keys))
    yield from loader.load(lambda file: Rehearsal(file, allowed).load(), rewritten, account)


def with_account(ledger: Ledger, fn: Callable[..., _Value], *args: object) -> _Value:
    """Call *fn*, and have *ledger* keep account of what is hashed."""
    global _ledger
    former, _ledger = _ledger, ledger
    try:
        return fn(*args)
    finally:
        _ledger = former
