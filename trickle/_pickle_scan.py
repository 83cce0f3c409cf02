"""Go through the opcodes of a pickle from a host, and refuse what no far end of ours writes.

Nothing is made here.  What is found decides what else has to be looked at, in _rehearsal.py.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from trickle._pickle_budget import Refused
from trickle._pickle_opcodes import (
    COSTLY,
    FRAME,
    FRAME_SIZE,
    KIND_OF,
    LENGTH_BYTES,
    LONG1,
    PIECE,
    SHORT,
    SLICE,
    STOP,
    frame_of,
    is_costly,
    run_of,
    skip_long,
    with_argument,
)

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
_APPEND: Final = b"a"
_MAKES_NOTHING: Final = bytes(set(range(256)) - set(b"".join(_MADE)))
SHORT_PICKLE: Final = 4096  # bytes
_PROTOCOLS: Final = (b"\x80\x04", b"\x80\x05")
# Picklers begin one after 64 KiB, or before and after what is as large by itself.
FEW_FRAMES: Final = 4
BYTES_PER_FRAME: Final = 32 * 1024


def is_harmless(data: bytes) -> bool:
    """Whether *data* is short, and has none but harmless opcodes: there is nothing to keep account of."""
    size = len(data)
    return (
        size <= SHORT_PICKLE
        and data[:2] in _PROTOCOLS
        and run_of(0).match(data, body_of(data)).end() == size - 1  # type: ignore[union-attr]
        and data[-1] == STOP
    )


def body_of(data: bytes) -> int:
    """Where opcodes begin, behind a frame around all of them."""
    body = 2 + FRAME_SIZE
    return body if len(data) > body and data[2:body] == frame_of(len(data) - body) else 2


class Scanned(NamedTuple):
    """What is in a pickle: kinds of opcodes, and where runs of them begin and end.

    Between runs are frames, and those with long arguments.  The last run is empty, and is where the opcode is that
    stops it all.
    """

    kinds: int
    runs: array[int]


def scan(data: bytes, most: int | None = None) -> Generator[None, None, Scanned]:
    """Find out what is in *data*, or refuse it for opcodes that trickle's far end does not write.

    Also if it would make more than *most* bytes of objects, if that is given.  Yields after each `SLICE` or so.
    """
    if data[:2] not in _PROTOCOLS:
        raise Refused("it is not a pickle of protocol 4 or 5")
    found, looked_for = 0, -1
    position, begun, paused, size = 2, 2, 2, len(data)
    runs = array("Q")
    frames_left = FEW_FRAMES + size // BYTES_PER_FRAME
    while True:
        if found != looked_for:
            looked_for, run = found, run_of(found).match
            short = SHORT + LONG1 if found & COSTLY else SHORT
        start, position = position, run(data, position, position + PIECE).end()  # type: ignore[union-attr]
        if position >= size - 1:
            if position == size - 1 and data[position] == STOP:
                break
            raise Refused("it is cut off")
        opcode = data[position]
        kind = KIND_OF.get(opcode, found)
        if kind | found != found:
            found |= kind
            continue
        if position > begun:
            runs.append(begun)
            runs.append(position)
        if opcode == FRAME:
            frames_left -= 1
            if frames_left < 0:
                raise Refused("it has more frames than a pickler makes")
            position = _skip_frame(data, position)
        elif opcode in short:  # and not as short as those that are in runs
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
    runs.extend((begun, position, position, position))
    if most is not None and (yield from _makes_more(data, runs, most)):
        raise Refused("it would take too much memory")
    return Scanned(found, runs)


def _skip_frame(data: bytes, start: int) -> int:
    """Return where what is in the frame at *start* begins."""
    begin = start + FRAME_SIZE
    if begin + int.from_bytes(data[start + 1 : begin], "little") > len(data):
        raise Refused("it is cut off")
    return begin


def _makes_more(data: bytes, runs: array[int], most: int) -> Generator[None, None, bool]:
    """Return whether *runs* of opcodes in *data* make more than *most* bytes of objects."""
    made = 0  # if all the bytes of *data* were opcodes
    for start in range(0, len(data), SLICE):
        made += _size_made(data[start : start + SLICE].translate(None, _MAKES_NOTHING))
        yield
    if made <= most:
        return False
    made = 0  # by opcodes
    for opcodes in without_arguments(data, runs):
        made += _size_made(opcodes)
        if made > most:
            return True
        yield
    return False


def count_appends(data: bytes, runs: array[int]) -> Generator[None, None, int]:
    """Return how many items are put into lists, or what is like one, one by one.  Yields after each `SLICE` or so."""
    count = 0
    for opcodes in without_arguments(data, runs):
        count += opcodes.count(_APPEND)
        yield
    return count


def without_arguments(data: bytes, runs: array[int]) -> Iterator[bytes]:
    """Yield the opcodes of *runs* that have no arguments, those of a `SLICE` or so at a time."""
    without_those = with_argument().sub
    begun, opcodes = 2, []
    for start, end in pairs(runs):
        opcodes.append(without_those(b"", data[start:end]))
        if end - begun >= SLICE:
            yield b"".join(opcodes)
            begun, opcodes = end, []
    yield b"".join(opcodes)


def parts(data: bytes, runs: array[int]) -> Iterator[tuple[int, int, bool]]:
    """Where each part begins and ends, and whether it is a run: else it is one opcode, long or STOP."""
    position = 2
    for start, end in pairs(runs):
        while position < start:
            if data[position] == FRAME:
                position += FRAME_SIZE
                continue
            before, position = position, skip_long(data, position)
            yield before, position, False
        if start < end:
            yield start, end, True
            position = end
    yield position, len(data), False


def pairs(runs: array[int]) -> Iterator[tuple[int, int]]:
    """Where each run begins and ends."""
    each = iter(runs)
    return zip(each, each, strict=True)


def _size_made(opcodes: bytes) -> int:
    return sum(size * opcodes.count(opcode) for opcode, size in _MADE.items())
