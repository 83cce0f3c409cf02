"""The opcodes that trickle's far end writes: tables of them, and patterns that go over many at once."""

import functools
import re
import struct
from typing import Final

from trickle._pickle_budget import Refused

LONG_TEXT: Final = 512  # bytes; below, comparing two texts takes no longer than reading an opcode
SLICE: Final = 128 * 1024  # bytes: going through these takes a few milliseconds
PIECE: Final = (
    16 * 1024
)  # bytes: making these takes no longer where there is no memory left, and each object has to ask

# Kinds of opcodes, as bits: what is in a pickle decides whether to rehearse it.
KEYS: Final = 1  # something is hashed, or stored by index
COSTLY: Final = 2  # tuples, large integers and long texts, which are costly as keys
CLASSES: Final = 4
STATES: Final = 8
ALL_KINDS: Final = KEYS | COSTLY | CLASSES | STATES


def _of_length(opcode: bytes, lengths: range) -> bytes:
    """Return a pattern for *opcode*, one byte of length, and as many bytes.

    One branch for each length, because a pattern cannot count.
    """
    branches = (re.escape(bytes([length])) + b".{%d}" % length for length in lengths)
    return re.escape(opcode) + b"(?:" + b"|".join(branches) + b")"


# Opcodes are told in Lib/pickletools.py.  Possessive, because there is only one way to read a pickle.
_SHORT_INTEGER: Final = _of_length(b"\x8a", range(9))  # LONG1: within 64 bits
SHORT_TEXT: Final = _of_length(b"\x8c", range(48))  # SHORT_BINUNICODE; longer ones are skipped singly
SHORT_BYTES: Final = _of_length(b"C", range(48))  # SHORT_BINBYTES
NUMBERS: Final = (rb"K.", rb"M..", rb"G.{8}", rb"J.{4}", _SHORT_INTEGER)
_WITH_ARGUMENT: Final = b"|".join(
    (
        rb"[Kh].|M..|[Jj].{4}|G.{8}",  # integers, BINGET, LONG_BINGET, floats
        SHORT_TEXT,
        SHORT_BYTES,
        _SHORT_INTEGER,
    )
)
LARGE_INTEGER: Final = _of_length(b"\x8a", range(9, 34))  # LONG1: hashes and keys of 256 bits are among them
FRAME: Final = 0x95  # no part of a run: slices of whole opcodes get frames of their own
FRAME_SIZE: Final = 9  # bytes
# Those without arguments.
_HARMLESS: Final = b"N\x88\x89])(\x94aeR\x81\x9201}\x8f"  # None, booleans, [], (), MARK, MEMOIZE, REDUCE...
WITHOUT_ARGUMENT: Final = {
    KEYS: b"su\x90",  # SETITEM, SETITEMS, ADDITEMS
    COSTLY: b"t\x85\x86\x87",  # TUPLE, TUPLE1-3
    CLASSES: b"\x93",  # STACK_GLOBAL
    STATES: b"b",  # BUILD
}
FROZENSET: Final = b"\x91"  # it hashes its items, and is costly as a key
KIND_OF: Final = {
    FROZENSET[0]: KEYS | COSTLY,
    **{opcode: kind for kind, opcodes in WITHOUT_ARGUMENT.items() for opcode in opcodes},
}
LENGTH_BYTES: Final = {  # of the opcodes whose arguments are of any length
    **dict.fromkeys(b"\x8cC\x8a", 1),  # SHORT_BINUNICODE, SHORT_BINBYTES, LONG1
    **dict.fromkeys(b"XB\x8b", 4),  # BINUNICODE, BINBYTES, LONG4
    **dict.fromkeys(b"\x8d\x8e\x96", 8),  # BINUNICODE8, BINBYTES8, BYTEARRAY8
}
SHORT: Final = b"\x8cC"  # SHORT_BINUNICODE, SHORT_BINBYTES
LONG1: Final = b"\x8a"
LONGS: Final = LONG1 + b"\x8b"
BYTEARRAY: Final = 0x96
STOP: Final = ord(".")


def _simple(kinds: int) -> bytes:
    """Return those opcodes without arguments that are harmless or of these *kinds*."""
    simple = _HARMLESS + b"".join(opcodes for kind, opcodes in WITHOUT_ARGUMENT.items() if kind & kinds)
    return simple + FROZENSET if kinds & KEYS and kinds & COSTLY else simple


def run_pattern(kinds: int, but: bytes = b"") -> bytes:
    """Return a pattern for as many as there are of opcodes that are harmless or of these *kinds*, but not in *but*."""
    simple = any_of(_simple(kinds).translate(None, but)) + b"*+"  # after each of the others: faster than beside them
    return simple + b"(?:(?:" + b"|".join(_with_arguments(kinds)) + b")" + simple + b")*+"


def _with_arguments(kinds: int) -> list[bytes]:
    return [_WITH_ARGUMENT, LARGE_INTEGER] if kinds & COSTLY else [_WITH_ARGUMENT]


def any_of(opcodes: bytes) -> bytes:
    return b"[" + re.escape(opcodes) + b"]"


@functools.cache  # compiling one takes milliseconds, and most programs meet three
def run_of(kinds: int) -> re.Pattern[bytes]:
    """Return a pattern for as many opcodes as there are that are harmless or of these *kinds*."""
    return re.compile(run_pattern(kinds), re.DOTALL)


@functools.cache
def with_argument() -> re.Pattern[bytes]:
    """Return a pattern for those opcodes in runs that have arguments."""
    return re.compile(b"(?:" + b"|".join([_WITH_ARGUMENT, LARGE_INTEGER]) + b")++", re.DOTALL)


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


def frame_of(size: int) -> bytes:
    """What begins a frame of *size* bytes."""
    return b"\x95" + struct.pack("<Q", size)
