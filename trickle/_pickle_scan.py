"""Go through the opcodes of a pickle from a host, and refuse what no far end of ours writes.

Nothing is made here.  What is found decides what else has to be looked at, in _rehearsal.py.
"""

import functools
import re
import struct
import sys
from collections.abc import Generator
from typing import Final, NamedTuple

LONG_TEXT: Final = 4096  # bytes; below, comparing two texts takes no longer than reading an opcode
SLICE: Final = 128 * 1024  # bytes: going through these takes a few milliseconds


class Refused(Exception):
    """Why a pickle is not read, as the end of a sentence."""


def printable(text: object) -> str:
    """Return *text* from a host in a form that fits a message, and that a terminal does not obey."""
    return ascii(str(text))[1:-1][:200]


# Kinds of opcodes, as bits: what is in a pickle decides whether to rehearse it.
KEYS: Final = 1  # something is hashed, or stored by index
COSTLY: Final = 2  # tuples, large integers and long texts, which are costly as keys
CLASSES: Final = 4
STATES: Final = 8


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
LARGE_INTEGER: Final = _of_length(b"\x8a", range(9, 34))  # LONG1: hashes and keys of 256 bits are among them
_FRAME: Final = rb"\x95.{8}"
# Those without arguments.
_HARMLESS: Final = b"N\x88\x89])(\x94aeR\x81\x9201}\x8f"  # None, booleans, [], (), MARK, MEMOIZE, REDUCE...
WITHOUT_ARGUMENT: Final = {
    KEYS: b"su\x90\x91",  # SETITEM, SETITEMS, ADDITEMS, FROZENSET
    COSTLY: b"t\x85\x86\x87",  # TUPLE, TUPLE1-3
    CLASSES: b"\x93",  # STACK_GLOBAL
    STATES: b"b",  # BUILD
}
_KIND_OF: Final = {opcode: kind for kind, opcodes in WITHOUT_ARGUMENT.items() for opcode in opcodes}
LENGTH_BYTES: Final = {  # of the opcodes whose arguments are of any length
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
LONGS: Final = _LONG1 + b"\x8b"
BYTEARRAY: Final = 0x96
_STOP: Final = ord(".")


@functools.cache  # compiling one takes milliseconds, and most programs meet three
def _run_of(kinds: int) -> re.Pattern[bytes]:
    """Return a pattern for as many opcodes as there are that are harmless or of these *kinds*."""
    return re.compile(b"(?:" + one_of(kinds) + b")*+", re.DOTALL)


def one_of(kinds: int, but: bytes = b"") -> bytes:
    """Return a pattern for some opcodes that are harmless or of these *kinds*, and for none of those in *but*."""
    simple = _HARMLESS + b"".join(opcodes for kind, opcodes in WITHOUT_ARGUMENT.items() if kind & kinds)
    patterns = [any_of(simple.translate(None, but)) + b"++", _WITH_ARGUMENT, _FRAME]
    return b"|".join([*patterns, LARGE_INTEGER] if kinds & COSTLY else patterns)


def any_of(opcodes: bytes) -> bytes:
    return b"[" + re.escape(opcodes) + b"]"


ALL_KINDS: Final = KEYS | COSTLY | CLASSES | STATES


_PROTOCOLS: Final = (b"\x80\x04", b"\x80\x05")


def is_harmless(data: bytes) -> bool:
    """Whether *data* is short, and has none but harmless opcodes: there is nothing to keep account of."""
    size = len(data)
    return (
        size <= LONG_TEXT
        and data[:2] in _PROTOCOLS
        and _run_of(0).match(data, 2).end() == size - 1  # type: ignore[union-attr]
        and data[-1] == _STOP
    )


class Scanned(NamedTuple):
    """What is in a pickle: kinds of opcodes, and where runs of them are; between runs are those with long arguments.

    The last run is empty, and is where the opcode is that stops it all.
    """

    kinds: int
    runs: list[tuple[int, int]]


def scan(data: bytes, most: int | None = None) -> Generator[None, None, Scanned]:
    """Find out what is in *data*, or refuse it for opcodes that trickle's far end does not write.

    Also if it would make more than *most* bytes of objects, if that is given.  Yields after each `SLICE` or so.
    """
    if data[:2] not in _PROTOCOLS:
        raise Refused("it is not a pickle of protocol 4 or 5")
    found, looked_for = 0, -1
    position, begun, paused, size = 2, 2, 2, len(data)
    runs = []
    while True:
        if found != looked_for:
            looked_for, run = found, _run_of(found).match
            short = _SHORT + _LONG1 if found & COSTLY else _SHORT
        start, position = position, run(data, position, position + SLICE).end()  # type: ignore[union-attr]
        if position >= size - 1:
            if position == size - 1 and data[position] == _STOP:
                break
            raise Refused("it is cut off")
        opcode = data[position]
        kind = _KIND_OF.get(opcode, found)
        if kind | found != found:
            found |= kind
            continue
        if position > begun:
            runs.append((begun, position))
        if opcode in short:  # and not as short as those that are in runs
            position += 2 + data[position + 1]
        elif opcode in LENGTH_BYTES:
            start, position = position, skip_long(data, position)
            if is_costly(opcode, position - start):
                found |= COSTLY
        elif position == start:
            raise Refused(f"it has a byte {opcode:#04x} where no pickle of trickle's has one")
        begun = position
        if position - paused >= SLICE:
            paused = position
            yield
    runs += (begun, position), (position, position)
    if most is not None and (yield from _makes_more(data, runs, most)):
        raise Refused("it would take too much memory")
    return Scanned(found, runs)


def _makes_more(data: bytes, runs: list[tuple[int, int]], most: int) -> Generator[None, None, bool]:
    """Return whether *runs* of opcodes in *data* make more than *most* bytes of objects."""
    looks_like = b"".join(data[start:end].translate(None, _MAKES_NOTHING) for start, end in runs)
    if _size_made(looks_like) <= most:
        return False
    made = 0  # by opcodes; there may be such bytes in the arguments of others
    without_those = _with_argument().sub
    paused = 2
    for start, end in runs:
        made += _size_made(without_those(b"", data[start:end]))
        if made > most:
            return True
        if end - paused >= SLICE:
            paused = end
            yield
    return False


def _size_made(opcodes: bytes) -> int:
    return sum(size * opcodes.count(opcode) for opcode, size in _MADE.items())


@functools.cache
def _with_argument() -> re.Pattern[bytes]:
    """Return a pattern for those opcodes in runs that have arguments."""
    return re.compile(b"(?:" + b"|".join([_WITH_ARGUMENT, _FRAME, LARGE_INTEGER]) + b")++", re.DOTALL)


def is_costly(opcode: int, size: int) -> bool:
    """Whether an opcode of some *size*, with one or more bytes of length, makes what is costly as a key."""
    return size > (10 if opcode in LONGS else LONG_TEXT)


def skip_long(data: bytes, start: int) -> int:
    """Return where the opcode at *start*, which is one with a length, ends."""
    width = LENGTH_BYTES[data[start]]
    length = int.from_bytes(data[start + 1 : start + 1 + width], "little")
    if width == 4 and length < 256:
        raise Refused("it has a length in four bytes that fits in one")
    end = start + 1 + width + length
    if end >= len(data):
        raise Refused("it is cut off")
    return end


def in_one_frame(data: bytes) -> bytes:
    """Return *data* with one frame around it all.

    Else a host could frame a part of an opcode, and CPython would go on reading elsewhere than we looked.
    """
    return data[:2] + b"\x95" + struct.pack("<Q", len(data) - 2) + data[2:]
