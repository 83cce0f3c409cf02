"""What is not a frame is refused by both readers, at once and within bounded memory."""

import struct
import sys
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.pair import DECODERS, deterministic
from trickle._decoder import READ_SIZE, MsgpackDecoder
from trickle._wire import frames
from trickle._wire.frames import CHUNK, HEADER, KINDS, NEVER, Ping, WireError

BOUND = 8 * 2**20  # bytes: far below what the attacks here would take, far above what a reader may hold

REFUSED_BY_BOTH = {
    "a length above a chunk": HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, CHUNK + 1) + bytes(CHUNK + 1),
    "a length of 4 GiB": HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, 2**32 - 1) + bytes(400_000),
    "an array of four": msgpack.packb([4, 2**31, 2**31, bytes(64)]),
    "an array of six": msgpack.packb([4, 2**31, 2**31, 2**31, 2**31, bytes(64)]),
    "an array of 4 G": b"\xdd\xff\xff\xff\xff" + bytes(64),
    "an array of 60,000": b"\xdc\xea\x60" + bytes(64),
    "no array": bytes(64),
    "a map": msgpack.packb({b"kind": 4, b"payload": bytes(64)}),
    "a map of 4 G": b"\xdf\xff\xff\xff\xff" + bytes(64),
    "an empty map": b"\x80" + bytes(64),
    "text for a payload": msgpack.packb([4, 1, 0, 0, "text" * 32]),
    "a text of 4 GiB": b"\x95\x04\x01\x00\x00\xdb\xff\xff\xff\xff" + bytes(CHUNK + 64),
    "an ext type for a payload": msgpack.packb([4, 1, 0, 0, msgpack.ExtType(5, bytes(64))]),
    "an ext type of 4 GiB": b"\x95\x04\x01\x00\x00\xc9\xff\xff\xff\xff\x05" + bytes(64),
    "a time": msgpack.packb([4, 1, 0, 0, msgpack.Timestamp(1, 1)]) + bytes(64),
    "an array for a payload": msgpack.packb([4, 1, 0, 0, [bytes(64)]]),
    "arrays nested a thousand deep": b"\x91" * 1020 + b"\x01",
    "arrays nested deeper than msgpack goes": b"\x91" * 5000,
    "nil": b"\x95\x04\xc0\x00\x00\xc4\x00" + bytes(64),
    "floats": msgpack.packb([4, 1.5, 0.0, 0.0, bytes(64)]),
    "truths": b"\x95\xc3\xc3\xc3\xc3\xc4\x00" + bytes(64),
    "an unused byte of msgpack": b"\xc1" + bytes(64),
    "an error message": b"bash: python3: command not found\n",
    "a banner": b"\r\n*** WARNING: authorised users only ***\r\n",
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08datetime\x94." + bytes(64),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("data", REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_what_is_not_a_frame_is_refused(decoder: str, data: bytes) -> None:
    reader = DECODERS[decoder]()

    with pytest.raises(WireError):
        list(reader.feed(data))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("data", REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_a_reader_that_has_refused_something_reads_nothing_more(decoder: str, data: bytes) -> None:
    reader = DECODERS[decoder]()
    with pytest.raises(WireError):
        list(reader.feed(data))

    with pytest.raises(WireError, match="refused before"):
        list(reader.feed(frames.encode(Ping())))


@pytest.mark.parametrize("decoder", DECODERS)
@deterministic
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_read_as_frames_or_refused_and_nothing_else(decoder: str, first: bytes, second: bytes) -> None:
    reader = DECODERS[decoder]()

    try:
        for data in (first, second):
            reader.feed(data)
    except WireError as exc:
        assert len(str(exc)) < 500


@deterministic
@given(st.recursive(st.integers() | st.binary() | st.none(), lambda inner: st.lists(inner, max_size=6), max_leaves=30))
def test_any_msgpack_that_is_not_a_frame_is_refused(item: object) -> None:
    try:
        data = msgpack.packb(item)
    except OverflowError:
        return  # an integer that msgpack has no place for
    well_formed = (
        isinstance(item, list)
        and [type(part) for part in item] == [int, int, int, int, bytes]
        and len(item[4]) <= CHUNK
        and item[0] in KINDS
        and all(0 <= number <= NEVER for number in item[1:4])
    )

    if well_formed:
        assert MsgpackDecoder().feed(data) == [tuple(item[1:])]  # type: ignore[index]
    else:
        with pytest.raises(WireError):
            list(MsgpackDecoder().feed(data))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "endless",
    [
        b"\x95" + (b"\xc6" + struct.pack(">I", CHUNK) + bytes(CHUNK)) * 4,  # arrays in arrays, each with four chunks
        b"\x94" + (b"\xc6" + struct.pack(">I", CHUNK) + bytes(CHUNK)) * 3,
        b"\x95" * 1000,
        HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, 2**31) + bytes(CHUNK),
        b"\x00" * CHUNK,
    ],
    ids=["nested chunks", "more nested chunks", "nested arrays", "one endless frame", "zeros"],
)
def test_what_never_becomes_a_frame_is_refused_before_it_takes_memory(decoder: str, endless: bytes) -> None:
    reader = DECODERS[decoder]()
    tracemalloc.start()

    try:
        with pytest.raises(WireError):
            for _ in range(400):
                list(reader.feed(endless))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < BOUND


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_frame_that_never_ends_takes_no_more_than_a_frame(decoder: str) -> None:
    reader = DECODERS[decoder]()
    data = HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, CHUNK) + bytes(CHUNK - 1)

    for start in range(0, len(data), 4096):
        assert list(reader.feed(data[start : start + 4096])) == []

    (frame,) = reader.feed(b"!")
    assert len(frame.payload) == CHUNK


@pytest.mark.parametrize("decoder", DECODERS)
def test_more_than_one_read_may_be_fed_at_once(decoder: str) -> None:
    data = frames.encode(frames.Data(1, 0, 0, bytes(CHUNK))) * (8 * READ_SIZE // CHUNK)
    reader = DECODERS[decoder]()

    assert len(list(reader.feed(data))) == 8 * READ_SIZE // CHUNK


def test_a_long_stream_leaves_nothing_behind() -> None:
    data = frames.encode(frames.Data(1, 0, 0, bytes(1000)))
    reader = MsgpackDecoder()

    for _ in range(2000):  # more than the reader's bounds, and always with half a frame in hand
        assert len(list(reader.feed(data[500:] if _ else data[:500]))) <= 1
        if _:
            list(reader.feed(data[:500]))

    assert sys.getsizeof(reader) < 1000
