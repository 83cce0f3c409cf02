"""Pickles written by hand, opcode by opcode, as no pickler writes them."""

import struct
import sys

HASH_MODULUS = sys.hash_info.modulus


def text(value: str) -> bytes:
    """The opcode for a short text."""
    encoded = value.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


def global_(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, arguments: bytes) -> bytes:
    return global_(module, name) + arguments + b"R"


def get(index: int) -> bytes:
    return b"h" + bytes([index])


def integer(value: int) -> bytes:
    return b"\x8a\x20" + value.to_bytes(32, "little")


def pickled(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


# What costs more than its size: refused.

DEEP = b"N" + b"\x85" * 200_000
SHARED = b"N\x85\x94" + b"".join(b"0" + get(n) + get(n) + b"\x86\x94" for n in range(80))
LONG_TUPLE = b"(" + b"N" * 50_000 + b"t\x94"
LONG_TEXT = b"X" + struct.pack("<I", 2**18) + b"x" * 2**18
LONG_BYTES = b"B" + LONG_TEXT[1:]
LONG_DICT = b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(50_000)) + b"u"
LARGE_INTEGER = b"\x8b" + struct.pack("<I", 10**5) + b"x" * 10**5
COLLIDING = [integer((n + 1) * HASH_MODULUS) for n in range(20_000)]
COLLIDING_TEXTS = [text(str((n + 1) * HASH_MODULUS)) for n in range(20_000)]
NOTHING_REPLACED = call("builtins", "slice", b"K\x00K\x00N\x87")
HUGE_RANGE = call("builtins", "range", b"K\x00J\xff\xff\xff\x7fK\x01\x87")
DECIMAL, COUNTER = global_("decimal", "Decimal") + b"\x940", global_("collections", "Counter") + b"\x940"
DEQUE, DEFAULTDICT = global_("collections", "deque") + b"\x940", global_("collections", "defaultdict") + b"\x940"
BYTEARRAY = global_("builtins", "bytearray") + b"\x940"


def set_of(items: bytes) -> bytes:
    return b"\x8f(" + items + b"\x90"


COSTLY = {
    "a memo index of 2**29": b"]r\x00\x00\x00 ",
    "nested tuples as a key": b"}" + DEEP + b"Ns",
    "nested tuples in a set": set_of(DEEP),
    "nested tuples in a frozenset": b"(" + DEEP + b"\x91",
    "nested tuples as a Counter's key": COUNTER + get(0) + b"}\x85R" + DEEP + b"Ns",
    "tuples nested step by step": b"}N\x85\x94Ns" + b"".join(get(n) + b"\x85\x94Ns" for n in range(250)),
    "a tuple that is shared exponentially": b"}(" + SHARED + b"Nu",
    "a long tuple as many keys": set_of(LONG_TUPLE + get(0) * 50_000),
    "a long tuple in many keys": set_of(LONG_TUPLE + (get(0) + b"\x85") * 50_000),
    "a large integer as many keys": set_of(LARGE_INTEGER + b"\x94" + get(0) * 100_000),
    "a long text as many keys": b"}(" + (LONG_TEXT + b"\x94N") * 2 + (get(1) + b"N") * 100_000 + b"u",
    "long bytes as many keys": b"}(" + (LONG_BYTES + b"\x94N") * 2 + (get(1) + b"N") * 100_000 + b"u",
    "integers that collide": set_of(b"".join(COLLIDING)),
    "tuples that collide": set_of(b"".join(number + b"\x85" for number in COLLIDING)),
    "frozensets that collide": set_of(b"".join(b"(" + number + b"\x91" for number in COLLIDING)),
    "decimals that collide": DECIMAL + set_of(b"".join(get(0) + digits + b"\x85R" for digits in COLLIDING_TEXTS)),
    "tuples by the million beside a key": b"(](" + b"N\x85" * 2_000_000 + b"e}(NNut",
    "large tuples that collide": set_of(b"".join(b"(" + b"M\x11\x22" * 14 + n + b"t" for n in COLLIDING)),
    "many counters of a dict": COUNTER + LONG_DICT + b"\x85\x940(" + (get(0) + get(1) + b"R") * 50_000 + b"t",
    "many bytearrays of bytes": BYTEARRAY + LONG_BYTES + b"\x85\x940(" + (get(0) + get(1) + b"R") * 50_000 + b"t",
    "a list that doubles": b"](Ne\x94" + NOTHING_REPLACED + b"\x940" + (get(0) + get(1) + get(0) + b"s0") * 50 + b"N",
    "a list of a range": b"]" + NOTHING_REPLACED + HUGE_RANGE + b"s",
    "deques in deques": DEQUE + (get(0) + b")R") * 100_000 + b"a" * 99_999,
    "defaultdicts in defaultdicts": DEFAULTDICT + (get(0) + b")RN") * 50_000 + b"Ns" + b"s" * 49_999,
}
