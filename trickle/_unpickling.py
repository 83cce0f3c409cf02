"""Read results from hosts that are not trusted: plain data, and classes that the program named.

What the far end writes is _agent/results.py's job.  CPython's unpickler is fast and believes everything, so
it gets to see only what has been checked, in up to three steps:

1. *Scan*: every opcode must be one that CPython's pickler writes at protocol 4 or 5.  Gone with the others:
   PUT (nine bytes of it take 8 GiB), the extension registry, persistent ids, integers as text.
2. *Rehearse*, where a pickle could do harm with the opcodes that are left: it is read with stand-ins in place
   of tuples, of large integers and texts, and of all that constructors make.  Needed because hashing cannot be
   interrupted: 200 kB of nested tuples overflow the stack when they become a key, a tuple of two tuples of two
   tuples and so on takes for ever, integers chosen to collide take quadratic time; stand-ins keep account.
   And because BUILD and SETITEM reach into whatever object they are given; stand-ins refuse.
3. *Load*, with constructors of ours in place of classes: they check the types and sizes of their arguments.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import functools
import gc
import io
import ipaddress
import pathlib
import pickle
import re
import struct
import sys
import threading
import types
import uuid
import weakref
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from trickle._exceptions import UnsafeResult
from trickle._fence import memory_fence

Name = tuple[str, str]  # a class's module and qualified name

# Bytes; what is smaller cannot take more than the fence's 64 MiB: an empty set is one byte, and 224 in memory.
FENCED_SIZE: Final = 256 * 1024
FENCE: Final = 60 * 2**20  # bytes, and for each byte of a pickle: of the 64 MiB and 16 times its size that are
FENCE_PER_BYTE: Final = 13  # promised, copies of it take the rest
WORK_PER_BYTE: Final = 8  # that constructors and hashing may do: an honest pickle has its data once
SPARE_WORK: Final = 64 * 1024
# Nanoseconds, as counted below, for what takes longer than opcodes do: of the 100 ms, and the 38 for each byte (40 ms
# for a MiB), that reading may hold up the loop, checking and reading opcodes take the rest.  Counted and not measured,
# so that the same result is read, or refused, on a fast machine and on a busy one.
SPARE_TIME: Final = 60_000_000
TIME_PER_BYTE: Final = 20
REHEARSAL_PER_BYTE: Final = 20  # of that, if there is one
KEY_TIME: Final = 1200  # of a tuple that is hashed in a rehearsal, or another value that stands for itself there
TUPLE_TIME: Final = 400  # of any other tuple in one
STOP_TIME: Final = 1000  # of an opcode that is looked at by itself in one: a frozenset, a large integer, a long text
EQUALITY_TIME: Final = 800  # of two values that have the same hash, or of one that is there already
COLLISION_TIME: Final = 150  # of a key with each other one that has the same hash
COLLISION_WEIGHT_TIME: Final = 40  # and of what there is to compare
PATIENCE: Final = 50  # times as long may it take in a process that has no loop to be held up
LONG_TEXT: Final = 4096  # bytes; below, comparing two texts takes no longer than reading an opcode
ENTRY_WORK: Final = 8  # for an entry of a Counter: it is a hundred bytes in memory
MAX_DEPTH: Final = 100  # of tuples in a key
SMALL_TUPLE: Final = 16  # items: looking at them again takes no longer than remembering them
MAX_NESTABLE: Final = 10_000  # deques and defaultdicts: nested ones overflow the stack when they are freed
MAX_BITS: Final = 16 * 1024  # of an integer in a fraction or range: their arithmetic is quadratic
MAX_DIGITS: Final = 16 * 1024
MAX_PATH: Final = 64 * 1024


class _Refused(Exception):
    """Why a pickle is not read, as the end of a sentence."""


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
    try:
        if full_trust:
            return _TrustingUnpickler(io.BytesIO(data)).load()
        if len(data) <= LONG_TEXT and not _scan(data):  # there is nothing to keep account of
            return pickle.loads(_in_one_frame(data))
        with _exclusively:
            return _load(data, allowed, patience)
    except _Refused as exc:
        raise UnsafeResult(f"{host}: the result was refused: {exc}", host=host) from None
    except (MemoryError, SystemError):  # the latter where CPython's unpickler forgets to say the former
        raise UnsafeResult(f"{host}: the result was refused: it would take too much memory", host=host) from None
    except Exception as exc:
        raise UnsafeResult(
            f"{host}: the result cannot be read: {_printable(type(exc).__name__)}: {_printable(exc)}",
            host=host,
        ) from exc


_exclusively = threading.RLock()  # so that a thread does not turn on the garbage collection of another


def _load(data: bytes, allowed: Mapping[Name, type], patience: int) -> object:
    collecting = gc.isenabled()
    gc.disable()  # it would look at every object again and again, and there is no garbage yet
    try:
        if len(data) < FENCED_SIZE:
            return _load_checked(data, allowed, patience)
        most = FENCE + FENCE_PER_BYTE * len(data)
        with memory_fence(most):
            return _load_checked(data, allowed, patience, most)
    finally:
        if collecting:
            gc.enable()


def _load_checked(data: bytes, allowed: Mapping[Name, type], patience: int, most: int | None = None) -> object:
    found = _scan(data, most)
    budget = _Budget(len(data), patience)
    if (found & _KEYS and found & _COSTLY) or found & _STATES or (found & _CLASSES and allowed):
        _rehearse(data, allowed, budget)
    if not found & _CLASSES:  # nothing is looked up by a name
        return pickle.loads(_in_one_frame(data))
    unpickler = _RestrictedUnpickler(data, allowed, budget)
    result = unpickler.load()
    unpickler.refuse_classes_as_values()
    return result


def _printable(text: object) -> str:
    """Return *text* from a host in a form that fits a message, and that a terminal does not obey."""
    return ascii(str(text))[1:-1][:200]


# Which classes


_allowed: dict[Name, type] = {}


def allow(*classes: type) -> None:
    """Let results contain instances of *classes*, from every host.

    They are made by ``__new__`` and get their state as pickle does it; ``__init__`` is never called.  A host
    chooses the state, so allow only classes that stand any.

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


def _refuse_class(module: str, name: str) -> NoReturn:
    full_name, short = f"{_printable(module)}.{_printable(name)}", _printable(name.rpartition(".")[2])
    if _is_other_than_a_class(module, name):
        instead = _INSTEAD.get((module, name), "plain data")
        raise _Refused(
            f"it contains {full_name}, which is not plain data, nor a class that could be allowed.  "
            f'Return {instead} instead, or trust this host with trust="full"'
        )
    raise _Refused(
        f"it contains {full_name}, which is not plain data.  Return plain data instead, or name the class "
        f'with trickle.allow({short}) or options(allow=({short},)), or trust this host with trust="full"'
    )


_INSTEAD: Final = {
    ("re", "_compile"): "the pattern's .pattern and .flags",
    ("array", "_array_reconstructor"): "its .tolist() or .tobytes()",
}


def _is_other_than_a_class(module: str, name: str) -> bool:
    """Whether a name leads to something else in a module that is imported here; runs no code of the module's."""
    found = sys.modules.get(module)
    if not isinstance(found, types.ModuleType):
        return False
    something = object.__getattribute__(found, "__dict__").get(name)
    return something is not None and not issubclass(type(something), type)


# 1. The scan

# Kinds of opcodes, as bits: what is in a pickle decides whether to rehearse it.
_KEYS: Final = 1  # something is hashed, or stored by index
_COSTLY: Final = 2  # tuples, large integers and long texts, which are costly as keys
_CLASSES: Final = 4
_STATES: Final = 8


def _of_length(opcode: bytes, lengths: range) -> bytes:
    """Return a pattern for *opcode*, one byte of length, and as many bytes.

    One branch for each length, because a pattern cannot count.
    """
    branches = (re.escape(bytes([length])) + b".{%d}" % length for length in lengths)
    return re.escape(opcode) + b"(?:" + b"|".join(branches) + b")"


# Opcodes are told in Lib/pickletools.py.  Possessive, because there is only one way to read a pickle.
_WITH_ARGUMENT: Final = b"|".join(
    (
        rb"[Kh].|M..|[Jj].{4}|G.{8}",  # integers, BINGET, LONG_BINGET, floats
        _of_length(b"\x8c", range(48)),  # SHORT_BINUNICODE; longer ones are rare enough to be skipped singly
        _of_length(b"C", range(48)),  # SHORT_BINBYTES
        _of_length(b"\x8a", range(9)),  # LONG1: integers within 64 bits
    )
)
_LARGE_INTEGER: Final = _of_length(b"\x8a", range(9, 34))  # LONG1: hashes and keys of 256 bits are among them
_FRAME: Final = rb"\x95.{8}"
# Those without arguments.
_HARMLESS: Final = b"N\x88\x89])(\x94aeR\x81\x9201}\x8f"  # None, booleans, [], (), MARK, MEMOIZE, REDUCE...
_WITHOUT_ARGUMENT: Final = {
    _KEYS: b"su\x90\x91",  # SETITEM, SETITEMS, ADDITEMS, FROZENSET
    _COSTLY: b"t\x85\x86\x87",  # TUPLE, TUPLE1-3
    _CLASSES: b"\x93",  # STACK_GLOBAL
    _STATES: b"b",  # BUILD
}
_KIND_OF: Final = {opcode: kind for kind, opcodes in _WITHOUT_ARGUMENT.items() for opcode in opcodes}
_LENGTH_BYTES: Final = {  # of the opcodes whose arguments are of any length
    **dict.fromkeys(b"\x8cC\x8a", 1),  # SHORT_BINUNICODE, SHORT_BINBYTES, LONG1
    **dict.fromkeys(b"XB\x8b", 4),  # BINUNICODE, BINBYTES, LONG4
    **dict.fromkeys(b"\x8d\x8e\x96", 8),  # BINUNICODE8, BINBYTES8, BYTEARRAY8
}
# What opcodes of one byte make, and its bytes in memory.  Millions of these are refused before they get to the fence:
# there, each object costs a system call in vain while there is memory that this process has freed.
_MADE: Final = {
    b"\x8f": sys.getsizeof(set()),  # EMPTY_SET
    b"\x91": sys.getsizeof(frozenset()),  # FROZENSET
    b"}": sys.getsizeof({}),  # EMPTY_DICT
    b"]": sys.getsizeof([]),  # EMPTY_LIST
    b"\x85": sys.getsizeof((0,)),  # TUPLE1
    b"\x86": sys.getsizeof((0, 0)),  # TUPLE2
    b"\x87": sys.getsizeof((0, 0, 0)),  # TUPLE3
    b"s": sys.getsizeof({0: 0}) - sys.getsizeof({}),  # SETITEM: no pickler of ours has two for a dictionary
}
_MAKES_NOTHING: Final = bytes(set(range(256)) - set(b"".join(_MADE)))
_SHORT: Final = b"\x8cC"  # SHORT_BINUNICODE, SHORT_BINBYTES
_LONG1: Final = b"\x8a"
_LONGS: Final = _LONG1 + b"\x8b"
_TEXTS: Final = b"X\x8d"
_BYTEARRAY: Final = 0x96
_STOP: Final = ord(".")


@functools.cache  # compiling one takes milliseconds, and most programs meet three
def _run_of(kinds: int, most: bytes = b"*+") -> re.Pattern[bytes]:
    """Return a pattern for as many opcodes as there are that are harmless or of these *kinds*."""
    return re.compile(b"(?:" + _one_of(kinds) + b")" + most, re.DOTALL)


def _one_of(kinds: int, but: bytes = b"") -> bytes:
    """Return a pattern for some opcodes that are harmless or of these *kinds*, and for none of those in *but*."""
    simple = _HARMLESS + b"".join(opcodes for kind, opcodes in _WITHOUT_ARGUMENT.items() if kind & kinds)
    patterns = [_any_of(simple.translate(None, but)) + b"++", _WITH_ARGUMENT, _FRAME]
    return b"|".join([*patterns, _LARGE_INTEGER] if kinds & _COSTLY else patterns)


def _any_of(opcodes: bytes) -> bytes:
    return b"[" + re.escape(opcodes) + b"]"


_ALL_KINDS: Final = _KEYS | _COSTLY | _CLASSES | _STATES
_SOME: Final = b"{0,50000}+"  # opcodes, or runs of such without arguments


def _scan(data: bytes, most: int | None = None) -> int:
    """Return the kinds of opcodes in *data*, or refuse it for those that trickle's far end does not write.

    Also if it would make more than *most* bytes of objects, if that is given.
    """
    if data[:2] not in (b"\x80\x04", b"\x80\x05"):
        raise _Refused("it is not a pickle of protocol 4 or 5")
    found, looked_for = 0, -1
    position, size = 2, len(data)
    runs = []
    while True:
        if found != looked_for:
            looked_for, run = found, _run_of(found).match
            short = _SHORT + _LONG1 if found & _COSTLY else _SHORT
        start, position = position, run(data, position).end()  # type: ignore[union-attr]
        if most is not None and position > start:
            runs.append((start, position))
        if position >= size - 1:
            if position == size - 1 and data[position] == _STOP:
                break
            raise _Refused("it is cut off")
        opcode = data[position]
        if opcode in short:  # and not as short as those that are in runs
            position += 2 + data[position + 1]
        elif opcode in _KIND_OF:
            found |= _KIND_OF[opcode]
        else:
            start, position = position, _skip_long(data, position)
            if opcode in _LONGS or position - start > LONG_TEXT:
                found |= _COSTLY
    if most is not None and _makes_more(data, runs, most):
        raise _Refused("it would take too much memory")
    return found


def _makes_more(data: bytes, runs: list[tuple[int, int]], most: int) -> bool:
    """Return whether *runs* of opcodes in *data* make more than *most* bytes of objects."""
    looks_like = b"".join(data[start:end].translate(None, _MAKES_NOTHING) for start, end in runs)
    if _size_made(looks_like) <= most:
        return False
    made = 0  # by opcodes; there may be such bytes in the arguments of others
    some, making = _run_of(_ALL_KINDS, _SOME), _making()
    for position, end in runs:
        while position < end:
            start, position = position, some.match(data, position, end).end()  # type: ignore[union-attr]
            made += _size_made(b"".join(making.findall(data, start, position)))
            if made > most:
                return True
    return False


def _size_made(opcodes: bytes) -> int:
    return sum(size * opcodes.count(opcode) for opcode, size in _MADE.items())


@functools.cache
def _making() -> re.Pattern[bytes]:
    """Return a pattern for opcodes that are in runs, with a group for those of `_MADE`."""
    made = b"".join(_MADE)
    return re.compile(b"(" + _any_of(made) + b"++)|(?:" + _one_of(_ALL_KINDS, made) + b")++", re.DOTALL)


def _skip_long(data: bytes, start: int) -> int:
    """Return where the opcode at *start*, which is one with a length, ends."""
    width = _LENGTH_BYTES.get(data[start])
    if width is None:
        raise _Refused(f"it has a byte {data[start]:#04x} where no pickle of trickle's has one")
    length = int.from_bytes(data[start + 1 : start + 1 + width], "little")
    if width == 4 and length < 256:
        raise _Refused("it has a length in four bytes that fits in one")
    end = start + 1 + width + length
    if end >= len(data):
        raise _Refused("it is cut off")
    return end


# 2. The rehearsal


@functools.cache
def _pieces() -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    """Return patterns for opcodes up to one that is costly as a key, for such a piece or the rest, and for some."""
    tuples = _WITHOUT_ARGUMENT[_COSTLY]
    costly = _any_of(tuples + _FROZENSET) + b"|" + _LARGE_INTEGER
    others = b"(?:" + _one_of(_ALL_KINDS & ~_COSTLY, _FROZENSET) + b")"
    piece = others + b"*+(?:" + costly + b")"
    return (
        re.compile(piece, re.DOTALL),
        re.compile(piece + b"|" + others + b"++", re.DOTALL),
        re.compile(b"(?:" + others + b"|" + costly + b")" + _SOME, re.DOTALL),
    )


_FROZENSET: Final = b"\x91"
_ASK: Final = b"Q"  # BINPERSID: what is on the stack is replaced by a stand-in.  The scan lets no host write it


def _with_stand_ins(data: bytes) -> bytes:
    """Return *data*, which has been scanned, with requests for stand-ins for what is costly as a key."""
    up_to_costly, piece, run = _pieces()
    written = [data[:2]]
    position = 2
    while True:
        end = run.match(data, position).end()  # type: ignore[union-attr]
        pieces = piece.findall(data, position, end)
        _ledger.budget.spend(TUPLE_TIME * len(pieces))
        written.append(_ASK.join(pieces))
        if pieces and up_to_costly.fullmatch(pieces[-1]):
            written.append(_ASK)
        position, start = end, end
        if position == len(data) - 1:
            written.append(data[position:])
            return b"".join(written)
        if data[start] in _LENGTH_BYTES:
            _ledger.budget.spend(STOP_TIME)
            position = _skip_long(data, position)
            written.append(data[start:position])
            most = 10 if data[start] in _LONGS else LONG_TEXT
            if position - start > most and data[start] != _BYTEARRAY:
                written.append(_ASK)


class _Budget:
    """Work that a pickle of some size may cause.

    Attributes:
      left: that grows with what is made: bytes, mostly.
      time: nanoseconds, for what takes time whatever its size.
    """

    __slots__ = ("left", "nestables", "time")

    def __init__(self, size: int, patience: int) -> None:
        self.time = (SPARE_TIME + TIME_PER_BYTE * size) * patience
        self.renew(size)

    def renew(self, size: int) -> None:
        """As before, but for the time: what was made is gone."""
        self.left = SPARE_WORK + WORK_PER_BYTE * size
        self.nestables = 0

    def spend(self, time: int) -> None:
        self.time -= time
        if self.time < 0:
            raise _Refused(
                "reading it would hold up every other task for too long; return less, or reduce it in a process of "
                "its own: see reducing()"
            )

    def charge(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise _Refused("it would take more time or memory than its size accounts for")

    def count_nestable(self) -> None:
        self.nestables += 1
        if self.nestables > MAX_NESTABLE:
            raise _Refused(f"it has more than {MAX_NESTABLE} deques and defaultdicts")


class _Known(NamedTuple):
    """What is known of a tuple that was hashed."""

    value: tuple[Any, ...]  # kept, so that no other gets its id()
    hash: int
    weight: int  # how much there is to hash
    depth: int


_FLAT_ITEMS: Final = frozenset({type(None), bool, int, float, str, bytes})  # the long ones have stand-ins


class _Ledger:
    """Keeps account of what is hashed in one rehearsal."""

    def __init__(self, budget: _Budget) -> None:
        self.budget = budget
        self._known: dict[int, _Known] = {}
        self._by_hash: dict[int, object] = {}
        self._others: dict[int, list[object]] = {}  # with the same hash as one of these
        self._depth = 0

    def hash_tuple(self, value: tuple[Any, ...]) -> int:
        self.budget.spend(KEY_TIME)
        if len(value) <= SMALL_TUPLE and _FLAT_ITEMS.issuperset(map(type, value)):
            self.budget.charge(len(value))
            value_hash = tuple.__hash__(value)
            self.count_collision(value, value_hash, len(value))
            return value_hash
        known = self._known.get(id(value)) or self._look_into(value)
        self.budget.charge(known.weight)
        return known.hash

    def _look_into(self, value: tuple[Any, ...]) -> _Known:
        weight, depth = 1 + len(value), 0
        self.budget.spend(2 * KEY_TIME)
        self._depth += 1
        for item in value:
            if type(item) is _KeyTuple:
                if self._depth > MAX_DEPTH:
                    raise _Refused("it has a key of tuples nested too deeply")
                known = self._known.get(id(item)) or self._look_into(item)
                weight += known.weight
                depth = max(depth, known.depth)
            elif type(item) is frozenset:
                weight += len(item)  # to compare two takes as long as that; to hash one does not
            elif type(item) in _WEIGHED:
                weight += item.weight()
        self._depth -= 1
        if depth >= MAX_DEPTH:
            raise _Refused("it has a key of tuples nested too deeply")
        self.budget.charge(weight)
        known = _Known(value, tuple.__hash__(value), weight, depth + 1)
        self._known[id(value)] = known
        self.count_collision(value, known.hash, weight)
        return known

    def count_collision(self, value: object, value_hash: int, weight: int) -> None:
        first = self._by_hash.setdefault(value_hash, value)
        if first is not value and first != value:
            others = self._others.setdefault(value_hash, [])
            self.budget.spend((COLLISION_TIME + COLLISION_WEIGHT_TIME * weight) * (len(others) + 1))
            if value not in others:
                others.append(value)


_ledger = _Ledger(_Budget(0, 0))  # of the rehearsal that is on; there is one at a time, see _exclusively


class _KeyTuple(tuple[Any, ...]):
    """Stands in for a tuple, or for a frozenset that is its one item."""

    __slots__ = ()

    def __hash__(self) -> int:
        return _ledger.hash_tuple(self)


class _KeyInteger(int):
    """Stands in for an integer whose hash may have been chosen."""

    __slots__ = ()

    def weight(self) -> int:
        return self.bit_length() // 512

    def __hash__(self) -> int:
        weight = self.weight()
        _ledger.budget.charge(weight)
        _ledger.budget.spend(KEY_TIME)
        value_hash = int.__hash__(self)
        _ledger.count_collision(self, value_hash, weight)
        return value_hash


class _KeyText(str):
    """Stands in for a long text, which is hashed once and compared often."""

    __slots__ = ()

    def weight(self) -> int:
        return len(self) // 256

    def __hash__(self) -> int:
        _ledger.budget.charge(self.weight())
        return str.__hash__(self)


class _KeyBytes(bytes):
    """Stands in for long bytes, which are hashed once and compared often."""

    __slots__ = ()

    def weight(self) -> int:
        return len(self) // 256

    def __hash__(self) -> int:
        _ledger.budget.charge(self.weight())
        return bytes.__hash__(self)


_WEIGHED: Final = frozenset({_KeyInteger, _KeyText, _KeyBytes})
_STAND_INS: Final[Mapping[type, Callable[[Any], object]]] = {
    tuple: _KeyTuple,
    frozenset: lambda value: _KeyTuple((value,)),
    int: _KeyInteger,
    str: _KeyText,
    bytes: _KeyBytes,
}
_ORIGINALS: Final[Mapping[type, type]] = {_KeyTuple: tuple, _KeyInteger: int, _KeyText: str, _KeyBytes: bytes}


def _stand_in(value: Any) -> object:
    return _STAND_INS[type(value)](value)


def _refuse_state(*args: object) -> NoReturn:
    raise _Refused("it sets the state of an object that has none")


class _RehearsedType(type):
    """Refuses to have its classes changed: they serve every rehearsal."""

    __setstate__ = _refuse_state


class _RehearsedValue(Exception, metaclass=_RehearsedType):
    """Stands in for an immutable value that a constructor makes.  It is made if it becomes a key.

    An exception, because nothing else in Python takes and keeps any arguments as fast.
    """

    __slots__ = ("value",)
    __setstate__ = _refuse_state
    recipe: _Recipe
    value: Any

    def make(self) -> Any:
        try:
            return self.value
        except AttributeError:
            self.value = self.recipe.make(_ledger.budget, *map(_original, self.args))
            return self.value

    def __hash__(self) -> int:
        value_hash = hash(self.make())
        _ledger.budget.spend(4 * KEY_TIME)
        weight = sum(_size(arg) for arg in self.args) // 64
        _ledger.budget.charge(weight)
        _ledger.count_collision(self, value_hash, weight)
        return value_hash

    def __eq__(self, other: object) -> bool:
        _ledger.budget.spend(EQUALITY_TIME)
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
    """Stands in for an instance of a class that the program allowed, which stands whatever it is given."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    append = add = extend


class _RehearsedClass(metaclass=_RehearsedType):
    """Stands in for a class that the program allowed.  Is one, because NEWOBJ takes nothing else."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> _RehearsedInstance:  # type: ignore[misc]
        return _RehearsedInstance()


@functools.cache
def _rehearsed(recipe: _Recipe) -> type:
    """Return a class whose instances stand in for what *recipe* makes."""
    if recipe.kind == "mapping":
        return _RehearsedMapping
    if recipe.kind == "sequence":
        return _RehearsedSequence
    return _RehearsedType("_RehearsedValue", (_RehearsedValue,), {"__slots__": (), "recipe": recipe})


_REHEARSED_FACTORY: Final = _RehearsedSequence()  # not to be called


class _Rehearsal(pickle.Unpickler):
    """Goes through a pickle without making anything that could do harm."""

    persistent_load = staticmethod(_stand_in)

    def __init__(self, data: bytes, allowed: Mapping[Name, type]) -> None:
        _ledger.budget.spend(REHEARSAL_PER_BYTE * len(data))
        super().__init__(io.BytesIO(_in_one_frame(_with_stand_ins(data))))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        recipe = _RECIPES.get((module, name))
        if recipe is not None:
            return _rehearsed(recipe)
        if module == "builtins" and name in _FACTORIES:
            return _REHEARSED_FACTORY
        if (module, name) in _SINGLETONS:
            return _SINGLETONS[module, name]
        if (module, name) in self._allowed:
            return _RehearsedClass
        _refuse_class(module, name)


def _rehearse(data: bytes, allowed: Mapping[Name, type], budget: _Budget) -> None:
    global _ledger
    _ledger = _Ledger(budget)
    try:
        _Rehearsal(data, allowed).load()
    finally:
        _ledger = _Ledger(_Budget(0, 0))  # lets go of what it knows
    budget.renew(len(data))


# 3. Loading


def _in_one_frame(data: bytes) -> bytes:
    """Return *data* with one frame around it all.

    Else a host could frame a part of an opcode, and CPython would go on reading elsewhere than we looked.
    """
    return data[:2] + b"\x95" + struct.pack("<Q", len(data) - 2) + data[2:]


class _Factory:
    """Stands for a builtin type as the factory of a defaultdict, and is good for nothing else."""

    __slots__ = ("__weakref__", "cls")

    def __init__(self, cls: type) -> None:
        self.cls = cls


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle that was scanned and, where it could do harm, rehearsed."""

    def __init__(self, data: bytes, allowed: Mapping[Name, type], budget: _Budget) -> None:
        super().__init__(io.BytesIO(_in_one_frame(data)))
        self._allowed = allowed
        self._budget = budget
        self._given: list[tuple[Name, weakref.ref[Any]]] = []
        self._references: dict[Name, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        recipe = _RECIPES.get((module, name))
        if recipe is not None:
            # A method: nothing calls one faster, it has no attributes to be set, and is no class.
            constructor = types.MethodType(recipe.make, self._budget)
            self._given.append(((module, name), weakref.ref(constructor)))
            return constructor
        if module == "builtins" and name in _FACTORIES:
            factory = _Factory(_FACTORIES[name])
            self._given.append(((module, name), weakref.ref(factory)))
            return factory
        if (module, name) in _SINGLETONS:
            return _SINGLETONS[module, name]
        if (module, name) in self._allowed:
            cls = self._allowed[module, name]
            self._references.setdefault((module, name), _count_references(cls))
            return _maker_of(cls)
        _refuse_class(module, name)

    def refuse_classes_as_values(self) -> None:
        """Refuse a result that has a constructor in it, where the host had a class."""
        self.memo = {}
        names = [name for name, constructor in self._given if constructor() is not None]
        for name, references in self._references.items():
            if _count_references(self._allowed[name]) > references:
                names.append(name)
        if names:
            raise _Refused(f"it contains the class {'.'.join(names[0])} itself, and classes are not data")


@functools.lru_cache(maxsize=1024)
def _maker_of(cls: type) -> type:
    """Return a class that makes instances of *cls* by its ``__new__`` when called, and nothing else.

    A class, because the NEWOBJ opcode takes nothing else.  What it makes is no instance of it, so that
    calling it ends there: ``__init__`` is never called.
    """

    def make(_: type, *args: Any, **kwargs: Any) -> Any:
        if (args or kwargs) and cls.__dict__.get("__new__", cls.__new__) is object.__new__:
            raise _Refused(
                f"it makes a {_printable(cls.__qualname__)} by calling the class, and trickle calls no "
                '__init__; give the class a __getstate__, or trust this host with trust="full"'
            )
        return cls.__new__(cls, *args, **kwargs)

    return type(cls.__name__, (), {"__slots__": (), "__new__": make})


def _count_references(cls: type) -> int:
    return sys.getrefcount(_maker_of(cls))


class _TrustingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Only Python 3.13 has its paths there.
        return super().find_class("pathlib" if module == "pathlib._local" else module, name)


# The constructors.  The first argument is what to charge work to, and the nanoseconds that making one takes.


class _Recipe(NamedTuple):
    make: Callable[..., object]
    kind: str = "value"  # or "mapping", "sequence": what can be put into it afterwards


def _expect(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise _Refused(f"it has a {_printable(type(value).__name__)} where a {kind.__name__} belongs")


def _expect_integers(budget: _Budget, *values: Any) -> None:
    for value in values:
        _expect(int, value)
        if value.bit_length() > MAX_BITS:
            raise _Refused("it has a huge integer in a fraction, range or slice")
        budget.charge(value.bit_length() // 8)
        budget.spend(4 * value.bit_length())  # arithmetic with it


def _expect_text(budget: _Budget, text: Any, limit: int) -> None:
    _expect(str, text)
    if len(text) > limit:
        raise _Refused("it has a text that is too long for what it stands for")
    budget.charge(len(text))


def _make_bytearray(budget: _Budget, data: bytes = b"") -> bytearray:
    budget.spend(300)
    _expect(bytes, data)
    budget.charge(len(data))
    return bytearray(data)


def _make_complex(budget: _Budget, real: float, imag: float) -> complex:
    budget.spend(500)
    _expect(float, real)
    _expect(float, imag)
    return complex(real, imag)


def _make_range(budget: _Budget, start: int, stop: int, step: int) -> range:
    budget.spend(1000)
    _expect_integers(budget, start, stop, step)
    return range(start, stop, step)


def _make_slice(budget: _Budget, *bounds: int | None) -> slice:
    budget.spend(1000)
    _expect_integers(budget, *(bound for bound in bounds if bound is not None))
    start, stop, step = bounds
    return slice(start, stop, step)


# Dates and times come as datetime packs them.  It believes what it unpacks; replace() checks it.


def _make_date(budget: _Budget, packed: Any) -> datetime.date:
    budget.spend(700)
    _expect(bytes, packed)
    return datetime.date(packed).replace()  # type: ignore[call-arg]


def _make_datetime(budget: _Budget, packed: Any, zone: Any = None) -> datetime.datetime:
    budget.spend(1300)
    _expect(bytes, packed)
    _expect_zone(zone)
    return datetime.datetime(packed).replace(tzinfo=zone)  # type: ignore[call-arg]


def _make_time(budget: _Budget, packed: Any, zone: Any = None) -> datetime.time:
    budget.spend(1300)
    _expect(bytes, packed)
    _expect_zone(zone)
    return datetime.time(packed).replace(tzinfo=zone)


def _expect_zone(zone: object) -> None:
    if zone is not None and type(zone) not in (datetime.timezone, zoneinfo.ZoneInfo):
        raise _Refused("it has a time zone of an unknown kind")


def _make_timedelta(budget: _Budget, days: int, seconds: int, microseconds: int) -> datetime.timedelta:
    budget.spend(1600)
    _expect_integers(budget, days, seconds, microseconds)
    return datetime.timedelta(days, seconds, microseconds)


def _make_timezone(budget: _Budget, offset: datetime.timedelta, *name: str) -> datetime.timezone:
    budget.spend(1000)
    _expect(datetime.timedelta, offset)
    for text in name:
        _expect(str, text)
    return datetime.timezone(offset, *name)


_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


def _make_zone(budget: _Budget, key: str) -> zoneinfo.ZoneInfo:
    budget.spend(1500)
    _expect_text(budget, key, 100)
    return _read_zone(key)


@functools.lru_cache(maxsize=1024)  # more than there are: each costs reading a file
def _read_zone(key: str) -> zoneinfo.ZoneInfo:
    # Looked for first, because ZoneInfo would go on to import the tzdata package.
    if not _ZONE_KEY.fullmatch(key) or not any(pathlib.Path(path, key).is_file() for path in zoneinfo.TZPATH):
        raise _Refused(f"it has the time zone {_printable(key)}, which this machine does not know")
    return zoneinfo.ZoneInfo(key)


def _make_decimal(budget: _Budget, text: str) -> decimal.Decimal:
    budget.spend(800)
    _expect_text(budget, text, MAX_DIGITS)
    return decimal.Decimal(text)


def _make_fraction(budget: _Budget, numerator: int, denominator: int) -> fractions.Fraction:
    budget.spend(1300)
    _expect_integers(budget, numerator, denominator)
    return fractions.Fraction(numerator, denominator)


def _make_uuid(budget: _Budget, text: str) -> uuid.UUID:
    budget.spend(1800)
    _expect_text(budget, text, 36)
    return uuid.UUID(text)


def _path_maker(cls: type[pathlib.PurePath]) -> Callable[..., pathlib.PurePath]:
    def make(budget: _Budget, *parts: str) -> pathlib.PurePath:
        budget.spend(3000)
        for part in parts:
            _expect_text(budget, part, MAX_PATH)
        return cls(*parts)

    return make


def _address_maker(cls: Callable[[str], object]) -> Callable[..., object]:
    def make(budget: _Budget, text: str) -> object:
        budget.spend(4000 if cls is ipaddress.IPv4Address else 10_000)
        _expect_text(budget, text, 128)
        return cls(text)

    return make


def _make_ordered_dict(budget: _Budget) -> collections.OrderedDict[Any, Any]:
    budget.spend(400)
    return collections.OrderedDict()


def _make_counter(budget: _Budget, counts: dict[Any, Any]) -> collections.Counter[Any]:
    budget.spend(3000)
    _expect(dict, counts)
    budget.charge(ENTRY_WORK * len(counts))
    return collections.Counter(counts)


def _make_deque(budget: _Budget, items: tuple[()] = (), maxlen: int | None = None) -> collections.deque[Any]:
    budget.spend(600)
    if items != () or type(maxlen) not in (int, type(None)):
        raise _Refused("it has a deque that is made of something strange")
    budget.count_nestable()
    return collections.deque(maxlen=maxlen)


def _make_defaultdict(budget: _Budget, factory: object = None) -> collections.defaultdict[Any, Any]:
    budget.spend(600)
    if not isinstance(factory, _Factory | None):
        raise _Refused("it has a defaultdict whose factory is not a builtin type")
    budget.count_nestable()
    return collections.defaultdict(None if factory is None else factory.cls)


_RECIPES: Final[Mapping[Name, _Recipe]] = {
    ("builtins", "complex"): _Recipe(_make_complex),
    ("builtins", "bytearray"): _Recipe(_make_bytearray),
    ("builtins", "range"): _Recipe(_make_range),
    ("builtins", "slice"): _Recipe(_make_slice),
    ("datetime", "date"): _Recipe(_make_date),
    ("datetime", "datetime"): _Recipe(_make_datetime),
    ("datetime", "time"): _Recipe(_make_time),
    ("datetime", "timedelta"): _Recipe(_make_timedelta),
    ("datetime", "timezone"): _Recipe(_make_timezone),
    ("zoneinfo", "ZoneInfo"): _Recipe(_make_zone),
    ("decimal", "Decimal"): _Recipe(_make_decimal),
    ("fractions", "Fraction"): _Recipe(_make_fraction),
    ("uuid", "UUID"): _Recipe(_make_uuid),
    **{
        (module, cls.__name__): _Recipe(_path_maker(cls))
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13 alone
        for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath)
    },
    **{
        ("ipaddress", cls.__name__): _Recipe(_address_maker(cls))
        for cls in (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        )
    },
    ("collections", "OrderedDict"): _Recipe(_make_ordered_dict, "mapping"),
    ("collections", "Counter"): _Recipe(_make_counter, "mapping"),
    ("collections", "defaultdict"): _Recipe(_make_defaultdict, "mapping"),
    ("collections", "deque"): _Recipe(_make_deque, "sequence"),
}
_SINGLETONS: Final[Mapping[Name, object]] = {
    ("builtins", "Ellipsis"): Ellipsis,
    ("builtins", "NotImplemented"): NotImplemented,
}
_FACTORIES: Final = {cls.__name__: cls for cls in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)}
