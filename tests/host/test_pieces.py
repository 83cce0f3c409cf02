"""Large arguments and results, which are kept in pieces so that they are not copied more often than need be."""

import itertools
import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trickle
from tests.hosts import local
from tests.wire.pair import deterministic
from trickle._agent import results
from trickle._host_core import bytes_in
from trickle._link import RemoteCall
from trickle._pickling import dumps_call
from trickle._wire.frames import LARGE


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place for place in places if place < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.binary(min_size=300, max_size=400), st.sampled_from([4, 5]), st.lists(st.integers(11, 420), max_size=4))
@deterministic
def test_bytes_are_found_in_however_many_pieces(value: bytes, protocol: int, places: list[int]) -> None:
    parts: list[bytes] = []
    unframed = pickletools.optimize(pickle.dumps(value, protocol))
    data = unframed.replace(b"\x95" + unframed[3:11], b"") if unframed[2:3] == b"\x95" else unframed

    for ending in (data, data[:-1] + b"\x94."):
        parts = cut(ending, places)

        assert pickle.loads(ending) == value
        assert bytes_in(parts) == value


@pytest.mark.parametrize("value", ["text", [bytes(LARGE)], (b"x", b"y"), None, bytearray(300), {b"x": bytes(LARGE)}])
def test_what_is_not_one_bytes_object_is_not_taken_for_it(value: object) -> None:
    data = b"".join(results.pickle_result(value))

    assert bytes_in([data[:11], data[11:]]) is None


@pytest.mark.parametrize("data", [b"\x80\x04B", b"\x80\x04B\xff\xff\xff\xffx.", b"\x80\x04B\x01\0\0\0xN.", b"\x80"])
def test_a_pickle_of_bytes_that_is_damaged_is_left_to_the_reader(data: bytes) -> None:
    assert bytes_in([data]) is None


def test_results_and_arguments_share_what_is_large_in_them() -> None:
    large = bytes(100 * LARGE)

    outgoing = dumps_call(len, (large,), {}, host="web1", far_version=None)

    assert any(piece is large for piece in outgoing.pieces)
    assert any(piece is large for piece in results.pickle_result(large))
    assert sum(map(len, results.pickle_result([large] * 100))) < 2 * len(large)  # and say it once


def test_a_host_that_answers_byte_by_byte_does_not_cost_an_object_for_each() -> None:
    call = RemoteCall(1, None)

    for _ in range(10_000):
        call.add(b"x")
    call.add(bytes(LARGE + 1))
    call.add(b"y")

    assert len(call.pieces) <= 4
    assert call.payload == b"x" * 10_000 + bytes(LARGE + 1) + b"y"


@pytest.mark.parametrize("value", [bytes(range(256)) * 4000, "text" * 300_000, [bytes(500_000), "x" * 100_000, 7]])
async def test_large_things_are_the_same_when_they_come_back(value: object) -> None:
    async with trickle.open_host(local()) as host:
        assert await host.call(_itself, value) == value


def _itself(value: object) -> object:
    return value
