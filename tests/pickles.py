"""Pickles written by hand, opcode by opcode, as no pickler writes them."""

import decimal
import struct
import sys
from collections.abc import Collection, Iterable, Iterator

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


def dict_of(*keys: bytes) -> bytes:
    return b"}(" + b"N".join(keys) + b"Nu"


def kept(*values: bytes) -> bytes:
    """Opcodes that remember values, the first as number 0, and leave nothing on the stack."""
    return b"(" + b"".join(value + b"\x94" for value in values) + b"1"


def get_far(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def small(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def long_text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def long_integer(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(encoded)) + encoded


def _signed(value: int) -> int | None:
    """The integer of 64 bits that hashes to that, if there is one."""
    value -= value >> 63 << 64
    return value if abs(value) < HASH_MODULUS and value != -1 else None


_ALL_BITS = 2**64 - 1


def colliding_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of integers that make frozensets with the same hash: see frozenset_hash in Objects/setobject.c."""

    factor = 3644798167
    inverse = pow(factor, -1, 2**64)

    def shuffle(number: int) -> int:
        return ((number ^ 89869747 ^ (number << 16)) * factor) & _ALL_BITS

    def shuffle_back(number: int) -> int:
        mixed = wanted = (number * inverse) & _ALL_BITS ^ 89869747
        for _ in range(4):
            mixed = wanted ^ (mixed << 16) & _ALL_BITS
        return mixed

    found: list[tuple[int, int]] = []
    first = 1
    while len(found) < count:
        first += 1
        second = _signed(shuffle_back(0x123456789ABCDEF0 ^ shuffle(first)))
        if second is not None:
            found.append((first, second))
    return found


def colliding_items(count: int) -> list[tuple[int, int]]:
    """Integers n, m of which (frozenset([n]), m) has the same hash: see tuplehash in Objects/tupleobject.c."""
    prime_1, prime_2, prime_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
    inverse_2 = pow(prime_2, -1, 2**64)

    def rotate(number: int, bits: int) -> int:
        return (number << bits | number >> 64 - bits) & _ALL_BITS

    wanted = rotate(0xDEADBEEFCAFE1234 * pow(prime_1, -1, 2**64) & _ALL_BITS, 33)

    found: list[tuple[int, int]] = []
    first = 1
    while len(found) < count:
        first += 1
        mixed = prime_5 + (hash(frozenset([first])) & _ALL_BITS) * prime_2
        mixed = rotate(mixed & _ALL_BITS, 31) * prime_1 & _ALL_BITS
        second = _signed((wanted - mixed) * inverse_2 & _ALL_BITS)
        if second is not None:
            found.append((first, second))
    return found


def nested_frozensets(depth: int, begin: int) -> bytes:
    """A frozenset of one and of a frozenset of that one, and so on; remembered from number *begin* on."""
    steps = (b"0(" + get(begin + n) + b"(" + get(begin + n) + b"\x91\x91\x94" for n in range(depth))
    return b"(N\x91\x94" + b"".join(steps) + b"0"


def as_decimal(digits: bytes) -> bytes:
    return call("decimal", "Decimal", digits + b"\x85")


def slow_fraction(digits: str) -> bytes:
    """One with the hash of a decimal of these digits."""
    denominator = 2**16300 + 1
    product = int(decimal.Decimal(digits)) % HASH_MODULUS * denominator
    numerator = product % HASH_MODULUS + HASH_MODULUS * 2**16000
    return call("fractions", "Fraction", long_integer(numerator) + long_integer(denominator) + b"\x86")


def walk(number: int, mask: int, taken: Collection[int], linear: int = 0) -> Iterator[int]:
    """The places in a table at which a number looks, one after the other, as long as they are taken.

    See lookdict in Objects/dictobject.c, and set_add_entry in Objects/setobject.c.

    Args:
      linear: how many places beside each one are looked at as well; 9 in sets.
    """
    place, perturb = number & mask, number
    while True:
        for near in range(place, place + linear + 1 if place + linear <= mask else place + 1):
            if near not in taken:
                return
            yield near
        perturb >>= 5
        place = (5 * place + perturb + 1) & mask


def walking_numbers(taken: int, times: int, among: Iterable[int], linear: int = 0) -> list[int]:
    """Numbers of which the last one, which is there many times, goes by most others in a table of 2**15."""
    mask = 2**15 - 1
    places: dict[int, None] = {}
    place = 1
    while len(places) < taken:
        places.update(dict.fromkeys(range(place, min(place + linear, mask) + 1)))
        place = (5 * place + 1) & mask
    last = max(among, key=lambda number: sum(1 for _ in walk(number, mask, places, linear)))
    return [*places, *[last] * times]


def tuple_with_hash(wanted: int) -> bytes:
    """Opcodes for a tuple: see tuplehash in Objects/tupleobject.c."""
    prime_1, prime_2, prime_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
    inverse_1, inverse_2 = pow(prime_1, -1, 2**64), pow(prime_2, -1, 2**64)

    def rotate(number: int, bits: int) -> int:
        return (number << bits | number >> 64 - bits) & _ALL_BITS

    mixed = (wanted - (2 ^ prime_5 ^ 3527539)) & _ALL_BITS
    mixed = rotate(mixed * inverse_1 & _ALL_BITS, 33)
    for first in range(200):
        before = rotate((prime_5 + first * prime_2) & _ALL_BITS, 31) * prime_1
        second = _signed((mixed - before) * inverse_2 & _ALL_BITS)
        if second is not None:
            return b"K" + bytes([first]) + small(second) + b"\x86"
    raise AssertionError(wanted)


def binint(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def binfloat(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def stored(keys: list[bytes], at_once: int) -> bytes:
    """Opcodes that store so many keys at once in the dictionary on the stack, as picklers do."""
    batches = (keys[start : start + at_once] for start in range(0, len(keys), at_once))
    return b"".join(b"(" + b"N".join(batch) + b"Nu" for batch in batches)


WALKING = walking_numbers(15_000, 20_000, range(2**15, 2**15 + 500))
WALKING_INTEGERS = [*map(binint, WALKING)]
WALKING_IN_SETS = [*map(binint, walking_numbers(15_000, 40_000, range(36_300, 36_400), linear=9))]
IN_THE_WAY, WALKER = WALKING_INTEGERS[:15_000], WALKING[-1]
ORDERED = global_("collections", "OrderedDict") + b")R"
WALKS = {  # numbers as keys that look for their places one behind the other
    "integers in a dictionary": dict_of(*WALKING_INTEGERS),
    "integers in a dictionary, 1,000 at once": b"}\x94" + stored(WALKING_INTEGERS, 1000),
    "integers in a dictionary, 50 at once": b"}\x94" + stored(WALKING_INTEGERS, 50),
    "integers in a dictionary, one by one": b"}" + b"".join(number + b"Ns" for number in WALKING_INTEGERS),
    "integers in a dictionary out of the memo": (
        b"}\x94"
        + b"".join(b"0" + get(0) + stored(WALKING_INTEGERS[start : start + 9], 9) for start in range(0, 35_000, 9))
    ),
    "integers that are values before they are keys": (
        kept(text("x"), b"}")
        + b"".join(b"(" + get(0) + get(0) + b"1" for n in range(9))
        + b"".join(b"(" + get(1) + number + b"Ns1" for number in WALKING_INTEGERS)
        + b"N"
    ),
    "integers behind texts that are taken away": (
        b"}(" + text("x") + b"\x940" + b"".join(get(0) + b"0" + number + b"N" for number in WALKING_INTEGERS) + b"u"
    ),
    "integers with values that are nested": b"}(" + b"".join(number + b"](NNe" for number in WALKING_INTEGERS) + b"u",
    "integers between texts": (
        b"}(" + text("x") + b"\x94N" + b"".join(number + get(0) for number in WALKING_INTEGERS) + b"u"
    ),
    "floats in a dictionary": dict_of(*map(binfloat, WALKING)),
    "integers in an OrderedDict": ORDERED + stored(WALKING_INTEGERS, 1000),
    "integers in a Counter": COUNTER + get(0) + dict_of(*WALKING_INTEGERS) + b"\x85R",
    "integers in a Counter, afterwards": COUNTER + get(0) + b"}\x85R" + stored(WALKING_INTEGERS, 1000),
    "integers in a defaultdict": DEFAULTDICT + get(0) + b")R" + stored(WALKING_INTEGERS, 1000),
    "integers in a set": set_of(b"".join(WALKING_IN_SETS)),
    "integers in a frozenset": b"(" + b"".join(WALKING_IN_SETS) + b"\x91",
    "integers in a set with texts": (
        text("x") + b"\x940\x8f(" + b"".join(get(0) + number for number in WALKING_IN_SETS) + b"\x90"
    ),
    "an integer out of the memo, many times": (
        b"}\x94" + stored(IN_THE_WAY, 1000) + b"(" + binint(WALKER) + b"\x94N" + (get(1) + b"N") * 20_000 + b"u"
    ),
    "tuples behind integers": b"}" + stored(IN_THE_WAY, 1000) + stored([tuple_with_hash(WALKER)] * 15_000, 1000),
    "a tuple behind integers, many times": (
        kept(tuple_with_hash(WALKER)) + b"}" + stored(IN_THE_WAY, 1000) + stored([get(0)] * 20_000, 1000)
    ),
    "decimals behind integers": (
        kept(as_decimal(text(str(WALKER)))) + b"}" + stored(IN_THE_WAY, 1000) + stored([get(0)] * 10_000, 1000)
    ),
}
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
    "frozensets nested and shared": (nested_frozensets(24, 0) + nested_frozensets(24, 25) + dict_of(get(24), get(49))),
    "frozensets of small integers that collide": set_of(
        b"".join(b"(" + small(one) + small(other) + b"\x91" for one, other in colliding_pairs(2000))
    ),
    "tuples that collide behind frozensets": set_of(
        b"".join(b"(" + small(one) + b"\x91" + small(other) + b"\x86" for one, other in colliding_items(2000))
    ),
    "a decimal beside a huge integer": dict_of(
        as_decimal(text("1")), long_integer(2**800_000 // HASH_MODULUS * HASH_MODULUS + 1)
    ),
    "a decimal beside a fraction, many times": (
        kept(as_decimal(long_text("7" * 16_000)), slow_fraction("7" * 16_000)) + dict_of(get(0), *[get(1)] * 3000)
    ),
    "a chain of keys, the first one many times": (
        kept(COLLIDING[0]) + b"N\x850" + dict_of(get(0)) + b"0" + dict_of(*COLLIDING[1:1150], *[get(0)] * 170_000)
    ),
    "a chain of tuples, the last one many times": (
        kept(*(number + b"\x85" for number in COLLIDING[:250]))
        + dict_of(*map(get_far, range(250)), *[get(249)] * 100_000)
    ),
    "a tuple of fractions as many keys": (
        kept(call("fractions", "Fraction", b"K\x03K\x07\x86"), b"(" + get(0) * 1000 + b"t") + set_of(get(1) * 8000)
    ),
    "a tuple of integers as many keys": (
        kept(*[b"(" + b"".join(b"J" + struct.pack("<i", 70_000 + n) for n in range(50_000)) + b"t"] * 2)
        + set_of(get(0) + get(1) * 1000)
    ),
    "a text of four bytes a letter as many keys": (
        kept(*[long_text("x" * 2**17 + "\U0001f600")] * 2) + set_of(get(0) + get(1) * 100_000) + b"N\x850"
    ),
    "paths that are equal as many keys": (
        kept(*[call("pathlib", "PurePosixPath", long_text("a/" * 30_000) + b"\x85")] * 2)
        + set_of(get(0) + get(1) * 30_000)
    ),
    "a deque that is stored into": (
        call("collections", "deque", b")") + b"(" + b"N" * 250_000 + b"e" + b"J\x40\xe2\x01\x00Ns" * 20_000
    ),
    "a bytearray that is appended to": b"\x96" + bytes(8) + b"\x89a" * 2**20,
    "a deque that is appended to": call("collections", "deque", b")") + b"Na" * 2**20,
    "a class that is looked up": (
        kept(text("uuid"), text("UUID")) + b"(" + (get(0) + get(1) + b"\x930") * 170_000 + b"t"
    ),
    "many counters of a dict": COUNTER + LONG_DICT + b"\x85\x940(" + (get(0) + get(1) + b"R") * 50_000 + b"t",
    "many bytearrays of bytes": BYTEARRAY + LONG_BYTES + b"\x85\x940(" + (get(0) + get(1) + b"R") * 50_000 + b"t",
    "a list that doubles": b"](Ne\x94" + NOTHING_REPLACED + b"\x940" + (get(0) + get(1) + get(0) + b"s0") * 50 + b"N",
    "a list of a range": b"]" + NOTHING_REPLACED + HUGE_RANGE + b"s",
    "deques in deques": DEQUE + (get(0) + b")R") * 100_000 + b"a" * 99_999,
    "defaultdicts in defaultdicts": DEFAULTDICT + (get(0) + b")RN") * 50_000 + b"Ns" + b"s" * 49_999,
    **{f"a walk: {kind}": body for kind, body in WALKS.items()},
}
