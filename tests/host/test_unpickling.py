"""Plain data arrives; nothing else is looked up, called or believed, and nothing costs more than its size."""

import array
import collections
import contextlib
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gc
import ipaddress
import pathlib
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import tracemalloc
import uuid
import zoneinfo
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import trickle
from tests.pickles import (
    COLLIDING,
    COSTLY,
    WALKING,
    WALKING_INTEGERS,
    WALKS,
    call,
    colliding_items,
    colliding_pairs,
    get,
    global_,
    integer,
    pickled,
    slow_fraction,
    stored,
    text,
    tuple_with_hash,
)
from trickle import _number_keys, _pickle_opcodes, _pickle_scan, _pickle_slices, _probing, _rehearsal, _unpickling
from trickle._agent.results import dumps_result
from trickle._fence import memory_fence
from trickle._pickle_budget import PATIENCE, Budget
from trickle._unpickling import allow, allowed_classes, loads, loads_in_turns


def roundtrip(value: object, *classes: type) -> Any:
    return loads(dumps_result(value), host="web1", allowed=allowed_classes(classes))


def refusal(data: bytes, *classes: type) -> str:
    """What `loads` says about *data*."""
    with pytest.raises(trickle.UnsafeResult) as caught:
        loads(data, host="web1", allowed=allowed_classes(classes))
    assert caught.value.host == "web1"
    assert str(caught.value).startswith("web1: ")
    return str(caught.value)


# What arrives

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**3000), max_value=2**3000),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(codec=None)),
    st.binary(),
    st.text(max_size=5).map(lambda some: some * 1000),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.ip_addresses(),
    st.ip_addresses(v=4).map(ipaddress.IPv4Network),
    st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(pathlib.PurePosixPath),
    st.text().map(pathlib.PureWindowsPath),
)
keys = st.recursive(scalars, lambda items: st.lists(items).map(tuple) | st.frozensets(items), max_leaves=8)
values = st.recursive(
    keys,
    lambda items: st.one_of(
        st.lists(items),
        st.lists(items).map(tuple),
        st.dictionaries(keys, items),
        st.dictionaries(keys, items).map(collections.OrderedDict),
        st.dictionaries(keys, items).map(lambda pairs: collections.defaultdict(list, pairs)),
        st.lists(items).map(collections.deque),
        st.sets(keys),
        st.lists(keys).map(collections.Counter),
        st.binary().map(bytearray),
    ),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True, database=None)
@given(values)
def test_plain_data_arrives_as_it_is(value: object) -> None:
    other = roundtrip(value)

    assert type(other) is type(value)
    assert other == value


@settings(deadline=None, derandomize=True, database=None)
@given(values)
def test_data_that_is_rehearsed_arrives_as_it_is(value: object) -> None:
    value = [value, {(1, 2): value}]

    assert roundtrip(value) == value


@pytest.mark.parametrize("protocol", [4, 5])
def test_ordinary_pickles_are_read_too(protocol: int) -> None:
    value = [1, "x", {"a": (2, 3.5)}, datetime.date(2020, 1, 1), b"x" * 10**5]

    assert loads(pickle.dumps(value, protocol), host="web1") == value


@pytest.mark.parametrize("size", [1, 255, 256, 65535, 65536, 10**6])
def test_texts_and_bytes_of_any_length_arrive(size: int) -> None:
    value = ["x" * size, b"y" * size, bytearray(b"z" * size), {"k" * size: (b"l" * size,)}, 2 ** min(8 * size, 10**5)]

    assert roundtrip(value) == value


def test_folds_zones_and_names_are_kept() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=3), "here")
    value = [datetime.datetime(2020, 1, 1, fold=1, tzinfo=zone), datetime.time(1, fold=1, tzinfo=zone)]

    other = roundtrip(value)

    assert [item.fold for item in other] == [1, 1]
    assert [item.tzinfo.tzname(None) for item in other] == ["here", "here"]


def test_time_zones_arrive_by_name() -> None:
    key = "Europe/Berlin"
    if not any(pathlib.Path(path, key).exists() for path in zoneinfo.TZPATH):
        pytest.skip("this machine has no time zones")
    value = datetime.datetime(2020, 6, 1, tzinfo=zoneinfo.ZoneInfo(key))

    other = roundtrip(value)

    assert other == value
    assert other.tzinfo is value.tzinfo


@pytest.mark.parametrize("factory", [None, list, int, dict, set, str, float, bool, tuple])
def test_defaultdicts_keep_their_factories(factory: type | None) -> None:
    value = roundtrip(collections.defaultdict(factory, {1: 2}))

    assert value.default_factory is factory
    assert value == {1: 2}


def test_slices_and_singletons_arrive() -> None:
    assert roundtrip([slice(1, None, -1), ..., NotImplemented]) == [slice(1, None, -1), ..., NotImplemented]


def test_shared_objects_stay_shared_and_recursion_stays() -> None:
    shared, loop = [1], {}  # type: tuple[list[int], dict[object, Any]]
    loop[(1, 2)] = (shared, shared, loop)

    other = roundtrip(loop)

    first, second, again = other[1, 2]
    assert first is second
    assert again is other


def test_garbage_collection_is_as_it_was() -> None:
    assert gc.isenabled()

    roundtrip([1])
    refusal(b"garbage")

    assert gc.isenabled()
    gc.disable()
    try:
        roundtrip([1])
        assert not gc.isenabled()
    finally:
        gc.enable()


# What is refused


def test_the_message_names_the_class_and_the_ways_out() -> None:
    message = refusal(dumps_result(Point(1, 2)))

    assert f"{__name__}.Point" in message
    assert "trickle.allow(Point)" in message
    assert "options(allow=(Point,))" in message
    assert 'trust="full"' in message


@pytest.mark.parametrize(
    ("value", "way_out"),
    [(re.compile("x"), ".pattern and .flags"), (array.array("i", [1]), ".tolist()"), (len, "plain data")],
    ids=repr,
)
def test_the_message_names_no_way_out_that_there_is_not(value: object, way_out: str) -> None:
    message = refusal(dumps_result(value))

    assert way_out in message and 'trust="full"' in message
    assert "allow(" not in message
    assert message == refusal(dumps_result(value), type(value))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "type"),
        ("builtins", "object"),
        ("pathlib", "os.getpid"),
        ("pathlib", "Path.home"),
        ("datetime", "datetime.now"),
        ("collections", "namedtuple"),
        ("trickle", "allow"),
        ("", "integer"),
        ("", ""),
        ("\x1b[31m", "\n"),
    ],
)
def test_nothing_else_is_looked_up(module: str, name: str) -> None:
    message = refusal(pickled(call(module, name, b")")))

    assert "which is not plain data" in message
    assert message.isprintable()


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)

    refusal(pickled(global_("this", "d")))

    assert "this" not in sys.modules


ARGUMENTS = {
    "bytearray of a size": call("builtins", "bytearray", b"J\x00\x00\x00\x10\x85"),
    "bytearray of a text": call("builtins", "bytearray", text("x") + text("utf-8") + b"\x86"),
    "Fraction of a text": call("fractions", "Fraction", text("1e3000000") + b"\x85"),
    "Fraction of floats": call("fractions", "Fraction", (b"G" + struct.pack(">d", 0.5)) * 2 + b"\x86"),
    "Fraction by zero": call("fractions", "Fraction", b"K\x01K\x00\x86"),
    "Decimal of a tuple": call("decimal", "Decimal", b"K\x00)K\x00\x87\x85"),
    "Decimal of nonsense": call("decimal", "Decimal", text("nonsense") + b"\x85"),
    "complex of a text": call("builtins", "complex", text("1j") + b"\x85"),
    "range of floats": call("builtins", "range", (b"G" + struct.pack(">d", 0.5)) * 3 + b"\x87"),
    "range without a step": call("builtins", "range", b"K\x00K\x01K\x00\x87"),
    "range of booleans": call("builtins", "range", b"\x88\x88\x88\x87"),
    "slice of a list": call("builtins", "slice", b"]NN\x87"),
    "list of a range": call(
        "builtins", "list", call("builtins", "range", b"K\x00J\xff\xff\xff\x7fK\x01\x87") + b"\x85"
    ),
    "date of integers": call("datetime", "date", b"M\xe4\x07K\x01K\x01\x87"),
    "impossible date": call("datetime", "date", b"C\x04\x07\xe4\x02\x1f\x85"),
    "year 0": call("datetime", "date", b"C\x04\x00\x00\x01\x01\x85"),
    "impossible datetime": call("datetime", "datetime", b"C\x0a\x07\xe4\x01\x01\x19\x3c\x3c\x00\x00\x00\x85"),
    "impossible time": call("datetime", "time", b"C\x06\x18\x00\x00\x00\x00\x00\x85"),
    "short date": call("datetime", "date", b"C\x02\x07\xe4\x85"),
    "zone of a text": call("datetime", "time", b"C\x06\x00\x00\x00\x00\x00\x00" + text("UTC") + b"\x86"),
    "huge timedelta": call("datetime", "timedelta", b"J\xff\xff\xff\x7fK\x00K\x00\x87"),
    "timezone of a day": call("datetime", "timezone", call("datetime", "timedelta", b"K\x01K\x00K\x00\x87") + b"\x85"),
    "zone outside": call("zoneinfo", "ZoneInfo", text("../../etc/passwd") + b"\x85"),
    "unknown zone": call("zoneinfo", "ZoneInfo", text("No/Such") + b"\x85"),
    "UUID of bytes": call("uuid", "UUID", b"C\x01x\x85"),
    "path of an integer": call("pathlib", "PurePosixPath", b"K\x01\x85"),
    "address of an integer": call("ipaddress", "IPv4Address", b"K\x01\x85"),
    "address of nonsense": call("ipaddress", "IPv4Address", text("1.2.3") + b"\x85"),
    "Counter of a text": call("collections", "Counter", text("abc") + b"\x85"),
    "OrderedDict of a list": call("collections", "OrderedDict", b"]\x85"),
    "deque of a list": call("collections", "deque", b"]\x85"),
    "deque of a length": call("collections", "deque", b")" + text("x") + b"\x86"),
    "defaultdict of a text": call("collections", "defaultdict", text("list") + b"\x85"),
    "defaultdict of a constructor": call("collections", "defaultdict", global_("builtins", "bytearray") + b"\x85"),
    "defaultdict of values": call("collections", "defaultdict", global_("builtins", "list") + b"]\x86"),
    "call of a value": call("uuid", "UUID", text(str(uuid.UUID(int=1))) + b"\x85") + b")R",
    "arguments that are no tuple": global_("builtins", "bytearray") + b"]R",
}


@pytest.mark.parametrize("body", ARGUMENTS.values(), ids=ARGUMENTS)
def test_constructors_check_their_arguments(body: bytes) -> None:
    refusal(pickled(body))
    refusal(pickled(b"}" + body + b"Ns"))  # rehearsed


@pytest.mark.parametrize("value", [fractions.Fraction(1, 2**20000), range(2**20000), decimal.Decimal("1" * 20000)])
def test_constructors_check_the_sizes_of_their_arguments(value: object) -> None:
    refusal(dumps_result(value))


OPCODES = {
    "a memo index of 2**29": b"]r\x00\x00\x00 ",
    "a memo index of 255": b"]q\xff",
    "a memo index as text": b"]p255\n",
    "a global as text": b"cos\nsystem\n",
    "a persistent id": b"NQ",
    "a persistent id as text": b"Px\n",
    "an extension": b"\x82\x01",
    "a large extension": b"\x84\x01\x00\x00\x00",
    "an instance as text": b"(ios\nsystem\n",
    "an object": b"(" + global_("os", "system") + b"o",
    "an integer as text": b"I1\n",
    "a long as text": b"L1L\n",
    "a float as text": b"F1\n",
    "a string as text": b"S'x'\n",
    "a copy of the top": b"N2\x86",
    "a dict from a mark": b"(d",
    "a list from a mark": b"(l",
    "a buffer": b"\x97",
    "another protocol": b"\x80\x04N",
    "an unknown opcode": b"\xff",
    "a short text with a long length": b"X\x01\x00\x00\x00x",
    "a stop in the middle": b"N.N",
}


@pytest.mark.parametrize("body", OPCODES.values(), ids=OPCODES)
def test_opcodes_that_the_far_end_does_not_write_are_refused(body: bytes) -> None:
    refusal(pickled(body))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04.",
        b"garbage",
        pickle.dumps([1], 3),
        b"\x80\x06N.",
        pickled(b"N") + b"x",
        pickled(b"h\x05"),
        pickled(b"a"),
        pickled(b"\x86"),
        pickled(b"R"),
        pickled(b"X\xff\xff\xff\xffx"),
        pickled(b"\x8d" + b"\xff" * 8),
        pickled(b"\x96" + struct.pack("<Q", 2**33)),
        pickled(b"\x8c\x02\xff\xff"),
        pickled(b"\x95" + b"\xff" * 8 + b"N"),
    ],
    ids=repr,
)
def test_garbage_is_refused(data: bytes) -> None:
    refusal(data)


@settings(deadline=None, derandomize=True, database=None)
@given(st.binary(), st.sampled_from([b"", b"\x80\x04", b"\x80\x05"]))
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    with contextlib.suppress(trickle.UnsafeResult):
        loads(start + data + b".", host="web1")


@settings(deadline=None, derandomize=True, database=None)
@given(values, st.data())
def test_any_cut_is_refused(value: object, data: st.DataObject) -> None:
    whole = dumps_result(value)
    length = data.draw(st.integers(0, len(whole) - 1))

    refusal(whole[:length])


def test_a_frame_cannot_hide_opcodes() -> None:
    hidden = call("os", "system", text("true") + b"\x85")
    # A reader that drops what is left of a frame when an opcode crosses its end reads `hidden` as opcodes.
    body = b"\x95" + struct.pack("<Q", 3) + b"\x8c" + bytes([len(hidden) + 1]) + b"x" + hidden

    value = loads(pickled(body.replace(hidden, b"y" * len(hidden))), host="web1")

    assert value == "x" + "y" * len(hidden)
    assert "os.system" not in refusal(pickled(body))


def test_extension_codes_are_neither_used_nor_filled_in() -> None:
    copyreg.add_extension("datetime", "date", 77)
    try:
        refusal(pickled(b"\x82\x4dC\x04\x07\xe4\x01\x01\x85R"))

        assert pickle.loads(b"\x80\x02\x82\x4d.") is datetime.date
    finally:
        copyreg.remove_extension("datetime", "date", 77)
        copyreg.clear_extension_cache()


STATES = {
    "a UUID": call("uuid", "UUID", text(str(uuid.UUID(int=1))) + b"\x85"),
    "an OrderedDict": call("collections", "OrderedDict", b")"),
    "a Counter": call("collections", "Counter", b"}\x85"),
    "a deque": call("collections", "deque", b")"),
    "a Fraction": call("fractions", "Fraction", b"K\x01K\x02\x86"),
    "a path": call("pathlib", "PurePosixPath", text("x") + b"\x85"),
    "a network": call("ipaddress", "IPv4Network", text("10.0.0.0/8") + b"\x85"),
    "a constructor": global_("uuid", "UUID"),
    "a container's constructor": global_("collections", "OrderedDict"),
    "a factory": global_("builtins", "list"),
    "a dict": b"}",
    "a set": b"\x8f",
    "a list": b"]",
    "a tuple": b")",
    "None": b"N",
    "Ellipsis": global_("builtins", "Ellipsis"),
}


@pytest.mark.parametrize("state", [b"}" + text("int") + b"K\x05s", b"N}" + text("int") + b"K\x05s\x86"])
@pytest.mark.parametrize("body", STATES.values(), ids=STATES)
def test_nothing_gets_a_state(body: bytes, state: bytes) -> None:
    refusal(pickled(body + state + b"b"))
    refusal(pickled(body + state + b"b"), Point)


@pytest.mark.parametrize("body", STATES.values(), ids=STATES)
def test_nothing_is_made_by_new(body: bytes) -> None:
    refusal(pickled(body + b")\x81"))
    refusal(pickled(body + b")}\x92"))
    refusal(pickled(body + b")\x81"), Point)


@pytest.mark.parametrize("cls", [datetime.date, int, list, collections.OrderedDict, uuid.UUID, pathlib.PurePosixPath])
def test_classes_are_no_values(cls: type) -> None:
    assert f"contains the class {cls.__module__}.{cls.__name__} itself" in refusal(dumps_result([cls]))
    refusal(dumps_result({(1, 2): cls}))
    refusal(dumps_result({cls: 1}))


# What costs too much

MEBIBYTE = 2**20


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_what_costs_more_than_its_size_is_refused(body: bytes) -> None:
    data = pickled(body)
    tracemalloc.start()
    try:
        refusal(data)

        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MEBIBYTE + 16 * len(data)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_empty_sets_by_the_million_are_refused() -> None:
    done = in_a_fresh_process("""
import trickle
from tests.host.test_unpickling import refusal
from tests.pickles import pickled

print(refusal(pickled(b"](" + b"\\x8f" * 2**20 + b"e")))  # 224 bytes each
""")

    assert "too much memory" in done


MADE = {  # of few bytes each, over and over
    "dates": (global_("datetime", "date"), b"C\x04\x07\xe4\x01\x01\x85"),
    "times": (global_("datetime", "datetime"), b"C\x0a\x07\xe4\x01\x01\x01\x01\x01\x00\x00\x00\x85"),
    "networks": (global_("ipaddress", "IPv6Network"), text("ffff::/64") + b"\x85"),
    "identifiers": (global_("uuid", "UUID"), text("0" * 32) + b"\x85"),
    "paths": (global_("pathlib", "PurePosixPath"), text("a/b/c") + b"\x85"),
    "fractions": (global_("fractions", "Fraction"), integer(2**255 - 19) + integer(2**254 - 5) + b"\x86"),
}


@pytest.mark.parametrize(("cls", "arguments"), MADE.values(), ids=MADE)
@pytest.mark.parametrize("as_keys", [False, True], ids=["values", "keys"])
def test_what_would_hold_up_the_loop_is_refused_with_the_ways_out(cls: bytes, arguments: bytes, as_keys: bool) -> None:
    made = get(0) + get(1) + b"R"
    start = cls + b"\x940" + arguments + b"\x940"
    many = b"}(" + (made + b"N") * 200_000 + b"u" if as_keys else b"](" + made * 200_000 + b"e"

    message = refusal(pickled(start + many))

    assert "hold up every other task" in message and "reducing()" in message


def test_as_much_of_it_is_read_as_the_loop_can_bear() -> None:
    value = [datetime.datetime(2020, 1, 1, second=n % 60) for n in range(40_000)]

    assert roundtrip(value) == value
    assert roundtrip({(n, "x"): n for n in range(20_000)})[5, "x"] == 5


def test_where_no_loop_is_held_up_it_may_take_longer() -> None:
    data = dumps_result({(n, (n, "x")): n for n in range(40_000)})

    refusal(data)
    value: Any = loads(data, host="web1", patience=PATIENCE)
    assert value[5, (5, "x")] == 5


# Numbers as keys

NUMBERS = {  # that are keys of honest data, and not scattered
    "counted": range(100_000),
    "negative": range(0, -100_000, -1),
    "multiples of 2**12": range(0, 100_000 << 12, 1 << 12),
    "multiples of 2**24": range(0, 100_000 << 24, 1 << 24),
    "multiples of 2**44": range(0, 100_000 << 44, 1 << 44),
    "nanoseconds": range(1_700_000_000 * 10**9, 1_700_006_000 * 10**9, 60 * 10**6),
    "random": [random.Random(n).getrandbits(64) for n in range(100_000)],
    "in clusters": [n // 1000 * 10**9 + n % 1000 for n in range(100_000)],
    "coordinates": [(n % 300 << 32) | n // 300 for n in range(100_000)],
    "identifiers with a time": [(n << 22) | n % 5 for n in range(100_000)],
    "seconds": [1.7e9 + n / 8 for n in range(100_000)],
    "fractions": [n / 7 for n in range(100_000)],
}


@pytest.mark.parametrize("make", [dict.fromkeys, set])
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_nobody_has_chosen_arrive_as_keys(kind: str, make: Any) -> None:
    value = make(NUMBERS[kind])

    assert roundtrip(value) == value


@pytest.mark.parametrize("kind", WALKS)
def test_numbers_that_look_for_their_places_for_too_long_are_refused(kind: str) -> None:
    assert "hold up every other task" in refusal(pickled(WALKS[kind]))


def test_numbers_in_a_kind_of_dictionary_are_looked_at_too() -> None:
    body = own(Keyed) + b")\x81" + stored(WALKING_INTEGERS, 1000)

    assert "hold up every other task" in refusal(pickled(body), Keyed)
    assert roundtrip(Keyed(dict.fromkeys(range(20_000))), Keyed) == dict.fromkeys(range(20_000))


def test_where_no_loop_is_held_up_they_may_look_for_longer() -> None:
    value: Any = loads(pickled(WALKS["integers in a dictionary"]), host="web1", patience=PATIENCE)

    assert len(value) == len(set(WALKING))


@contextlib.asynccontextmanager
async def counted_turns() -> AsyncIterator[list[None]]:
    """As many as another task has in the block."""
    turns: list[None] = []

    async def count_turns() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        yield turns
        nursery.cancel_scope.cancel()


async def test_other_tasks_have_their_turns_while_they_look() -> None:
    async with counted_turns() as turns:
        with pytest.raises(trickle.UnsafeResult):
            await loads_in_turns(pickled(WALKS["integers in a dictionary"]), host="web1")

    assert len(turns) > 5


@settings(deadline=None, derandomize=True, database=None)
@given(values)
def test_data_whose_keys_are_looked_at_arrives_as_it_is(value: object) -> None:
    value = [value, {1: value}]
    with pytest.MonkeyPatch.context() as patch:
        look_at_all(patch)

        assert roundtrip(value) == value


def look_at_all(patch: pytest.MonkeyPatch) -> None:
    """At keys of results of any size."""

    def always(*args: object) -> Generator[None, None, bool]:
        yield
        return True

    patch.setattr(_unpickling, "SMALL", 0)
    patch.setattr(_unpickling, "may_have_many", always)
    patch.setattr(_probing, "FEW", 0)


def test_all_keys_are_looked_at_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[int]]] = []

    def hashes(make: type, keys: Any) -> tuple[str, list[int]]:
        return make.__name__, [*map(hash, keys)]

    def store(self: object, table: Any, ledger: object) -> Iterator[None]:
        seen.append(hashes(table.make, table.keys))
        assert table.ends[-1] == len(table.keys)
        yield

    look_at_all(monkeypatch)
    monkeypatch.setattr(_probing._Meter, "store", store)
    many = dict.fromkeys(range(2500, 0, -1))
    few: list[Any] = [{(6, "x"): {7: 8}}, {decimal.Decimal(10): 11}, {frozenset([12]): 13}]
    sets, ordered = {4, 5.5}, collections.OrderedDict(a=1, b={2: 3})
    expected: list[Any] = [(dict, many), (set, sets), (collections.OrderedDict, ordered), (set, [12]), (dict, [9])]
    expected += [(dict, each) for each in (*few, few[0][6, "x"], ordered["b"])]

    roundtrip([many, sets, ordered, collections.Counter([9]), *few])

    assert sorted(seen) == sorted(hashes(*each) for each in expected)


HONEST = {  # of which no pass may cost more than it must
    "records": [{"name": f"host{n}", "load": n / 7, "up": True, "of": n, "tags": {"a": n}} for n in range(8000)],
    "numbers": {"values": list(range(20_000)), "more": [n / 7 for n in range(20_000)]},
    "rows": [[n, n + 1, "x"] for n in range(8000)],
    "tuples": [{"name": f"host{n}", "at": ("10.0.0.1", n), "x": [(n, n + 1)]} for n in range(8000)],
    "small dictionaries of numbers": [{n: n, n + 1: n} for n in range(8000)],
    "small sets of numbers": [{"ids": {n, n + 1}, "n": n} for n in range(8000)],
    "texts and numbers": {f"a key that is long, number {n} of many": n / 7 for n in range(20_000)},
    "long texts": [{"name": "x" * 60 + str(n), "n": n, "y" * 60: n} for n in range(8000)],
}


@pytest.mark.parametrize("kind", HONEST)
def test_numbers_that_are_no_keys_are_told_from_keys(kind: str) -> None:
    data = dumps_result(HONEST[kind])
    _, runs = the_end_of(_pickle_scan.scan(data))

    assert not the_end_of(_number_keys.may_have_many(data, runs))


@pytest.mark.parametrize("kind", [kind for kind in WALKS if not kind.startswith(("tuples", "a tuple", "decimals"))])
def test_numbers_that_may_be_keys_are_told_from_others(kind: str) -> None:
    data = pickled(WALKS[kind])
    _, runs = the_end_of(_pickle_scan.scan(data))

    assert the_end_of(_number_keys.may_have_many(data, runs))


def test_nested_data_that_is_no_key_arrives() -> None:
    depth = 100_000

    value = loads(pickled(b"]" * depth + b"a" * (depth - 1)), host="web1")

    assert isinstance(value, list)


def test_honest_data_with_shared_keys_arrives() -> None:
    key = ("cpu", "user", 1)
    value: list[object] = [{key: n, (n, "x"): {n}} for n in range(20_000)]

    assert roundtrip(value) == value


def test_large_integers_of_chance_arrive() -> None:
    value = {3**n % 2**256: n for n in range(200, 20_000)}

    assert roundtrip(value) == value


def test_honest_keys_with_the_same_hash_arrive() -> None:
    assert hash(-1) == hash(-2)
    grid = {(x, y): x * y for x in (-1, -2) for y in range(-1200, 1200)}
    rows = [{(-1, "x"): n, (-2, "x"): n} for n in range(1200)]

    assert roundtrip([grid, rows]) == [grid, rows]


def test_large_integers_beside_a_tuple_and_a_key_arrive() -> None:
    value = [[2**bits - n for bits in (255, 299) for n in range(60_000)], ("a", "tuple"), {"a": "key"}]

    assert roundtrip(value) == value


def test_what_is_a_key_beside_runs_of_any_length_arrives() -> None:
    value = [{(1, 2**70): frozenset([2**80])}, *range(49_990, 100_100), ("x" * 300, 2**99), {2**299: "y" * 5000}]

    assert roundtrip(value) == value


@pytest.mark.parametrize("size", [64, 65, 99, 1000])
def test_how_much_is_gone_through_at_a_time_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * size for size in (1, 47, 48, 300, 5000)]
    numbers = [sign * 2**bits for bits in (1, 60, 70, 250, 299, 4000) for sign in (1, -1)]
    data = dumps_result([texts, numbers, ([], ()), {(1, (2, frozenset(numbers))): b"x" * 5000}, bytearray(5000)])
    expected = scanned_and_rewritten(data)
    for module in (_pickle_scan, _pickle_slices):
        monkeypatch.setattr(module, "SLICE", size)
        monkeypatch.setattr(module, "PIECE", size)

    assert scanned_and_rewritten(data) == expected


def scanned_and_rewritten(data: bytes) -> tuple[int, bytes]:
    found, runs = the_end_of(_pickle_scan.scan(data))
    assert runs[-2:].tolist() == [len(data) - 1] * 2
    return found, b"".join(the_end_of(_rehearsal.with_stand_ins(data, runs, Budget(len(data), 1))))


def the_end_of(slices: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("key", [None, 1, -1, "x", b"x", 2.5, True, datetime.date(2020, 1, 1), decimal.Decimal(7)])
def test_honest_sets_of_sets_and_what_is_like_them_arrive(key: object) -> None:
    value = {frozenset([key, (key, frozenset([key]))]): {frozenset(), frozenset([key])}, (frozenset([key]), 1): [key]}

    assert roundtrip(value) == value


# Classes that the program allowed get nothing that would crash, fill or change them


class Shade(enum.Enum):
    DARK = 1
    LIGHT = (2, "x")
    ODD = [3]


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Spot(NamedTuple):
    x: object
    y: object


class Names(list[object]):
    pass


class Keyed(dict[object, object]):
    pass


@attrs.frozen
class Frozen:
    name: object


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RecursionError


class Fly:
    def __new__(cls) -> Any:
        raise Unspeakable


DEEP = b"B" + struct.pack("<I", 4 * 2**20) + bytes(4 * 2**20) + b"0N" + b"\x85" * 145_000


def own(cls: type) -> bytes:
    return global_(cls.__module__, cls.__qualname__)


def shared_list(depth: int) -> bytes:
    return b"]\x94" + b"".join(b"0](" + get(n) + get(n) + b"e\x94" for n in range(depth))


SLICE_OF_ALL = call("builtins", "slice", b"K\x00K\x00N\x87")
HARMFUL: dict[str, tuple[type, bytes]] = {
    "a deep field of a named tuple": (Spot, b"}" + own(Spot) + DEEP + b"N\x86\x81Ns"),
    "a deep field of a frozen class": (Frozen, b"}" + own(Frozen) + b")\x81}" + text("name") + DEEP + b"sbNs"),
    "a deep value of an enumeration": (Shade, own(Shade) + DEEP + b"\x85\x81"),
    "a deep key of a kind of dictionary": (Keyed, own(Keyed) + b")\x81" + DEEP + b"Ns"),
    "a value that takes for ever to write out": (Shade, own(Shade) + shared_list(24) + b"\x85\x81"),
    "a member that is changed": (Shade, own(Shade) + b"K\x01\x85\x81}" + text("_value_") + text("bright") + b"sb"),
    "a list that doubles": (
        Names,
        own(Names) + b")\x81\x94Na" + SLICE_OF_ALL + b"\x940" + (get(0) + get(1) + get(0) + b"s0") * 40 + b"N",
    ),
    "named tuples that collide": (
        Spot,
        own(Spot) + b"\x940" + b"\x8f(" + b"".join(get(0) + n + b"N\x86\x81" for n in COLLIDING[:8000]) + b"\x90",
    ),
    "instances by the million": (Names, own(Names) + b"\x94" + (get(0) + b")\x810") * 400_000),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_class_that_is_allowed_is_given_nothing_that_does_harm(kind: str) -> None:
    cls, body = HARMFUL[kind]

    refusal(pickled(body), cls)

    assert [member.value for member in Shade] == [1, (2, "x"), [3]]


def test_an_error_of_such_a_class_that_cannot_be_shown_is_an_unsafe_result() -> None:
    assert "Unspeakable: (it cannot be shown: RecursionError)" in refusal(pickled(own(Fly) + b")\x81"), Fly)


def test_the_attacks_have_the_hashes_that_they_claim() -> None:
    digits = "7" * 16_000
    fraction: Any = pickle.loads(pickled(slow_fraction(digits)))

    assert len({hash(frozenset(pair)) for pair in colliding_pairs(20)}) == 1
    assert len({hash((frozenset([one]), other)) for one, other in colliding_items(20)}) == 1
    assert hash(pickle.loads(pickled(tuple_with_hash(WALKING[-1])))) == WALKING[-1]
    assert hash(fraction) == hash(decimal.Decimal(digits)) and fraction != decimal.Decimal(digits)


def test_members_of_enumerations_arrive() -> None:
    value = [*Shade, Rights.READ, Rights.READ | Rights.WRITE, Rights(0), {Shade.LIGHT: Spot(1, (2, 3))}, Keyed(a=1)]

    assert roundtrip(value, Shade, Rights, Spot, Keyed) == value


def test_the_account_is_forgotten() -> None:
    roundtrip({("x" * 10**5, 1): 2})

    assert _rehearsal._ledger._by_hash == {}


# Classes that the program named


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = 1


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Machine:
    name: str
    disks: list[str] = dataclasses.field(default_factory=list)

    class Inner:
        pass


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str


@dataclasses.dataclass(slots=True)
class Slots:
    name: str


@dataclasses.dataclass(frozen=True)
class FrozenWithoutSlots:
    name: str


@attrs.define
class Defined:
    name: str
    disks: list[str] = attrs.field(factory=list)


@attrs.define
class DefinedMore(Defined):
    size: int = 0


@attrs.frozen
class DefinedFrozen:
    name: str


@attrs.define(slots=False)
class DefinedWithoutSlots:
    name: str


@attrs.frozen(cache_hash=True)
class DefinedHashed:
    name: str


Named = collections.namedtuple("Named", "x y")


class Word(enum.StrEnum):
    YES = "yes"


class Number(enum.IntEnum):
    ONE = 1


class Pair(enum.Enum):
    ONE = (1, 2)


class Plain:
    pass


class PlainSlots:
    __slots__ = ("one", "other")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainSlots) and self.one == other.one  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"PlainSlots(one={self.one})"  # type: ignore[attr-defined]


class OneInt(int):
    pass


def plain_slots() -> PlainSlots:
    value = PlainSlots()
    value.one = [1]  # type: ignore[attr-defined]
    return value


class WithState:
    def __init__(self) -> None:
        raise AssertionError("called")

    def __getstate__(self) -> object:
        return 5

    def __setstate__(self, state: object) -> None:
        self.state = state


class CallsItself:
    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return CallsItself, (self.value,)

    def __call__(self) -> None:
        raise AssertionError("called")


class Names(list[str]):
    pass


class Mapping(dict[str, int]):
    pass


class OurError(Exception):
    pass


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_unpickling, "_allowed", {})
    yield


@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2),
        Colour.RED,
        Permission.READ | Permission.WRITE,
        Machine("web1", ["sda"]),
        Frozen("web1"),
        Names(["a", "b"]),
        Mapping(a=1),
        Slots("web1"),
        FrozenWithoutSlots("web1"),
        Defined("web1", ["sda"]),
        DefinedMore("web1", ["sda"], 5),
        DefinedFrozen("web1"),
        DefinedWithoutSlots("web1"),
        DefinedHashed("web1"),
        Named(1, 2),
        Word.YES,
        Number.ONE,
        Pair.ONE,
        plain_slots(),
        OneInt(5),
        {Frozen("web1"): Point(1, 2), Colour.RED: {Point(1, 2)}},
        [Machine("web1"), datetime.date(2020, 1, 1), {(1, 2): Machine("web2")}],
    ],
    ids=repr,
)
def test_instances_of_allowed_classes_arrive(value: object) -> None:
    plain = (Point, Colour, Permission, Machine, Frozen, Names, Mapping, Slots, FrozenWithoutSlots, Named, Word)
    classes = (*plain, Number, Pair, PlainSlots, OneInt, Defined, DefinedMore, DefinedFrozen, DefinedWithoutSlots)

    other = roundtrip(value, *classes, DefinedHashed)

    assert type(other) is type(value)
    assert other == value
    refusal(dumps_result(value))


@pytest.mark.parametrize("cls", [Machine, Defined, DefinedFrozen, DefinedWithoutSlots, Slots, Frozen, Plain])
def test_nothing_of_an_allowed_class_is_called_but_its_new_and_setstate(
    cls: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dumps_result([cls("web1") if cls is not Plain else cls(), {(1, 2): 3}])

    def refuse(*args: object) -> None:
        raise AssertionError("called")

    for name in ("__init__", "__post_init__", "__attrs_post_init__", "__reduce__", "__reduce_ex__"):
        monkeypatch.setattr(cls, name, refuse, raising=False)

    assert type(loads(data, host="web1", allowed=allowed_classes([cls]))[0]) is cls  # type: ignore[index]


def test_nested_classes_are_allowed_by_their_own_name() -> None:
    value = roundtrip(Machine.Inner(), Machine.Inner)

    assert type(value) is Machine.Inner
    refusal(dumps_result(Machine.Inner()), Machine)


def test_allow_holds_for_every_call() -> None:
    allow(Point, Machine)

    assert loads(dumps_result(Point(1, 2)), host="web1", allowed=allowed_classes()) == Point(1, 2)
    assert roundtrip(Machine("x")) == Machine("x")
    refusal(dumps_result(Frozen("x")))


def test_options_add_to_what_is_allowed_everywhere() -> None:
    allow(Point)

    names = allowed_classes([Frozen])

    assert names == {(__name__, "Point"): Point, (__name__, "Frozen"): Frozen}
    assert allowed_classes() == {(__name__, "Point"): Point}


@pytest.mark.parametrize("wrong", ["Point", Point(1, 2), len, None, list[int]])
def test_only_classes_can_be_allowed(wrong: Any) -> None:
    with pytest.raises(TypeError, match="only classes can be allowed, not"):
        allow(Point, wrong)

    assert allowed_classes() == {}


def test_classes_inside_functions_cannot_be_allowed() -> None:
    class Local:
        pass

    with pytest.raises(TypeError, match="Local cannot be allowed"):
        allow(Local)


def test_setstate_is_called_and_init_is_not() -> None:
    value = roundtrip(WithState.__new__(WithState), WithState)

    assert value.state == 5


def test_classes_that_need_their_init_are_refused() -> None:
    message = refusal(dumps_result(CallsItself(1)), CallsItself)

    assert "calls no __init__" in message


def test_exceptions_can_be_allowed_as_values() -> None:
    error = roundtrip(OurError("x"), OurError)

    assert type(error) is OurError
    assert error.args == ("x",)


def test_instances_of_allowed_classes_are_not_called() -> None:
    instance = global_(__name__, "CallsItself") + b")\x81"

    refusal(pickled(instance + b")R"), CallsItself)


def test_allowed_classes_are_no_values_and_cannot_be_changed() -> None:
    state = b"}" + text("__new__") + b"Ns"

    assert f"contains the class {__name__}.Point itself" in refusal(dumps_result([Point]), Point)
    refusal(pickled(global_(__name__, "Point") + state + b"b"), Point)
    refusal(pickled(global_(__name__, "Point") + b"N" + state + b"\x86b"), Point)
    assert roundtrip(Point(1, 2), Point) == Point(1, 2)


def test_full_trust_reads_whatever_it_is() -> None:
    value = [Point(1, 2), CallsItself, len, Colour.RED, pathlib.PurePosixPath("/x"), datetime.UTC]

    assert loads(dumps_result(value), host="web1", full_trust=True) == value


def test_full_trust_reads_paths_of_any_python() -> None:
    data = pickle.dumps(pathlib.PurePosixPath("/x"), 4)
    moved = pickled(call("pathlib._local", "PurePosixPath", text("/x") + b"\x85"))

    assert loads(data, host="web1", full_trust=True) == loads(moved, host="web1", full_trust=True)


def test_full_trust_says_what_it_cannot_read() -> None:
    data = pickled(global_("no_such_module", "x"))

    with pytest.raises(trickle.UnsafeResult, match=r"^web1: .*no_such_module"):
        loads(data, host="web1", full_trust=True)


def test_comparisons_of_what_has_the_same_hash_are_counted() -> None:
    reason = refusal(pickled(COSTLY["decimals that collide"]))

    assert "hold up every other task" in reason


@pytest.mark.parametrize("beside", [(), [("a", "tuple"), {"a": "key"}]])
async def test_other_tasks_have_their_turns_while_a_large_result_is_read(beside: object) -> None:
    value = [["x" * (n % 60) for n in range(40_000)], list(range(200_000)), beside]
    data = dumps_result(value)
    async with counted_turns() as turns:
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            assert await loads_in_turns(data, host="web1") == value

    assert len(turns) >= len(data) // _pickle_opcodes.SLICE // 2 > 5


@pytest.mark.parametrize("opcodes", [b"N\x85", b"}", b"N\x850}NNs0", b"K\x01\x85"])
def test_no_run_is_long(opcodes: bytes) -> None:
    data = pickled(opcodes * 200_000)

    _, runs = the_end_of(_pickle_scan.scan(data))

    assert max(end - start for start, end in _pickle_scan.pairs(runs)) < 2 * _pickle_opcodes.SLICE


async def test_results_that_come_together_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []
    scan = _unpickling.scan

    def logged(data: bytes, most: int | None = None) -> Generator[None, None, _pickle_scan.Scanned]:
        log.append(("begins", data[-3:-2].decode()))
        found = yield from scan(data, most)
        yield
        log.append(("is scanned", data[-3:-2].decode()))
        return found

    monkeypatch.setattr(_unpickling, "scan", logged)
    async with trio.open_nursery() as nursery:
        for name in "abc":
            data = pickled(b"](" + b"K\x01" * 150_000 + text(name) + b"e")
            nursery.start_soon(functools.partial(loads_in_turns, data, host="web1"))

    names = [name for _, name in log]
    assert [what for what, _ in log] == ["begins", "is scanned"] * 3
    assert sorted(names[::2]) == ["a", "b", "c"] and names[::2] == names[1::2]


async def test_what_is_read_in_turns_is_refused_as_ever() -> None:
    for body in (COSTLY["tuples by the million beside a key"], b"K\x01" * 200_000 + b"P", b"K\x01" * 200_000 + b"J"):
        with pytest.raises(trickle.UnsafeResult) as refused:
            await loads_in_turns(pickled(body), host="web1")
        assert str(refused.value) == refusal(pickled(body))


# What is weighed before it is made

WEIGHED = {
    "sets": b"](" + b"\x8f" * 7_000_000 + b"e",
    "sets between texts": b"](" + (b"\x8f" * 60 + b"\x8c\x32" + b"\x8f" * 50) * 70_000 + b"e",
    "sets between integers": b"](" + b"K\x01\x8f" * 2_000_000 + b"e",
    "frozensets": b"](" + b"(N\x91" * 2_000_000 + b"e",
    "dictionaries": b"](" + b"}" * 7_000_000 + b"e",
    "lists": b"]" * 7_000_000 + b"a" * 6_999_999,
    "tuples": b"N" + b"\x85" * 7_000_000,
    "pairs": b"](" + b"NN\x86" * 4_000_000 + b"e",
    "triples": b"](" + b"NNN\x87" * 7_000_000 + b"e",
}


@pytest.mark.parametrize("kind", WEIGHED)
def test_what_would_take_too_much_memory_is_refused_before_it_is_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object, *args: object) -> NoReturn:
        pytest.fail("it was read")

    monkeypatch.setattr(_pickle_slices.Loader, "load", load)

    with pytest.raises(trickle.UnsafeResult, match="it would take too much memory"):
        loads(b"\x80\x04" + WEIGHED[kind] + b".", host="web1")


@pytest.mark.parametrize("text", ["\u2591" * 12, "\u2591" * 60, "\u044f", "{[]}" * 10, "\u042f[]" * 3])
def test_bytes_of_texts_do_not_weigh(text: str) -> None:
    values = [text + str(n % 10) for n in range(3_000_000 // len(text.encode()))]  # each one a text of its own

    assert loads(dumps_result(values[:300_000]), host="web1") == values[:300_000]


@pytest.mark.parametrize("body", [b"", b"]", b"\x8c", b"\x8c\x40x", b"\x8c\x05x", b"X\x00\x01\x00\x00x", b"]." + b"N"])
def test_what_is_cut_off_is_said_to_be(body: bytes) -> None:
    reason = refusal(b"\x80\x04" + body)

    assert "it is cut off" in reason or "where no pickle of trickle's has one" in reason


# The fence


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_the_fence_stops_what_is_too_large_and_is_lifted() -> None:
    done = in_a_fresh_process("""
import resource
from trickle._fence import memory_fence

limits = resource.getrlimit(resource.RLIMIT_DATA)
try:
    with memory_fence(64 * 2**20):
        bytearray(128 * 2**20)
except MemoryError:
    print("stopped", resource.getrlimit(resource.RLIMIT_DATA) == limits, len(bytearray(128 * 2**20)))
""")

    assert done == f"stopped True {128 * MEBIBYTE}\n"


def in_a_fresh_process(script: str) -> str:
    """What it prints: this process has been through other tests, and its memory and limits show that."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_what_is_reserved_for_other_threads_counts_as_well() -> None:
    script = """
import threading
from pathlib import Path
from trickle._fence import memory_fence

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) // 1024

def work():
    kept = [bytearray(5000) for _ in range(100)]
    started.wait()
    ended.wait()

started, ended = threading.Barrier(17), threading.Event()
for _ in range(16):
    threading.Thread(target=work, daemon=True).start()
started.wait()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
made = []
try:
    with memory_fence(64 * 2**20):
        while True:
            made.append(set())
except MemoryError:
    made.clear()
print(status("VmHWM") - before)
ended.set()
"""
    grown = in_a_fresh_process(script)

    assert int(grown) < 96


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_fences_nest() -> None:
    limits = resource.getrlimit(resource.RLIMIT_DATA)

    with memory_fence(256 * MEBIBYTE):
        outer = resource.getrlimit(resource.RLIMIT_DATA)
        with memory_fence(1024 * MEBIBYTE):
            inner = resource.getrlimit(resource.RLIMIT_DATA)
        after = resource.getrlimit(resource.RLIMIT_DATA)

    assert outer == inner == after != limits
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_other_threads_meet_the_fence_while_it_stands_and_not_afterwards() -> None:
    done = in_a_fresh_process("""
import subprocess, sys, threading
from trickle._fence import memory_fence

inside, tried = threading.Event(), threading.Event()
said = []

def other():
    inside.wait()
    said.append(len(bytearray(2**20)))
    try:
        bytearray(128 * 2**20)
    except MemoryError:
        said.append("MemoryError")
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY)"
    said.append(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    tried.set()

thread = threading.Thread(target=other)
thread.start()
with memory_fence(100 * 2**20):
    inside.set()
    tried.wait()
thread.join()
print(*said, len(bytearray(128 * 2**20)))
""")

    assert done == f"{MEBIBYTE} MemoryError True {128 * MEBIBYTE}\n"  # a program started meanwhile has it for good


class Tags(set[str]):
    pass


class Tally(collections.Counter[str]):
    pass


class Buffer(bytearray):
    pass


class Recent(collections.deque[int]):
    pass


class Items(list[int]):
    pass


class DiskError(OSError):
    def __init__(self, *args: object, disk: str = "sda") -> None:
        super().__init__(*args)
        self.disk = disk


class Undecodable(UnicodeDecodeError):
    pass


class Leaving(SystemExit):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Items([1, 2]),
        DiskError(5, "bad sector", "/dev/sda"),
        Leaving(3),
        StopIteration(7),
    ],
    ids=repr,
)
def test_what_is_allowed_comes_whole(value: object) -> None:
    read = loads(pickle.dumps(value, 4), host="web1", allowed=allowed_classes([type(value)]))

    assert (
        (type(read), str(read), read.__reduce_ex__(4)[1:3])
        == (  # type: ignore[index]
            type(value),
            str(value),
            value.__reduce_ex__(4)[1:3],  # type: ignore[index]
        )
    )
    for name in ("errno", "strerror", "filename", "code", "value"):
        assert getattr(read, name, None) == getattr(value, name, None)


@pytest.mark.parametrize(
    "value",
    [Tags("a"), Tally("aab"), Buffer(b"abc"), Recent([1, 2], maxlen=2)],
    ids=lambda value: type(value).__name__,
)
def test_what_only_an_init_could_fill_is_refused(value: object) -> None:
    with pytest.raises(trickle.UnsafeResult, match="trickle calls no __init__; .* return plain data instead"):
        loads(pickle.dumps(value, 4), host="web1", allowed=allowed_classes([type(value)]))


class Row(tuple[int, ...]):
    pass


class Blob(bytes):
    pass


class Couple(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    ("cls", "args"),
    [(Row, (range(10**9),)), (Blob, (1 << 30,)), (ExceptionGroup, ("m", range(10**9)))],
)
def test_a_number_or_a_range_does_not_become_what_it_stands_for(cls: type, args: tuple[object, ...]) -> None:
    with pytest.raises(trickle.UnsafeResult, match="of a number or a range"):
        loads(pickle.dumps(Made(cls, args), 4), host="web1", allowed=allowed_classes([cls]))


@pytest.mark.parametrize("value", [Row([1, 2]), Blob(b"abc"), Couple(range(10**9), 7)], ids=repr)
def test_what_is_no_larger_than_its_pickle_is_read(value: object) -> None:
    read = loads(pickle.dumps(value, 4), host="web1", allowed=allowed_classes([type(value)]))

    assert (type(read), read) == (type(value), value)


class Made:
    """Pickled as what calling a class with arguments gives."""

    def __init__(self, cls: type, args: tuple[object, ...]) -> None:
        self.called = cls, args

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    "value", [Undecodable("utf-8", b"x", 0, 1, "no"), SyntaxError("m", ("f", 1, 2, "text"))], ids=repr
)
def test_errors_whose_c_code_believes_what_it_is_given_are_refused(value: object) -> None:
    with pytest.raises(trickle.UnsafeResult, match="return its text instead"):
        loads(pickle.dumps(value, 4), host="web1", allowed=allowed_classes([type(value)]))
