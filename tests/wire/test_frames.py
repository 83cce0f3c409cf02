"""Frames and their bytes, with msgpack itself as the judge of what was written."""

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.pair import DECODERS, FRAMES, NUMBERS, PAYLOADS, cuts, deterministic, frames_in, shown
from trickle._wire import frames
from trickle._wire.frames import CHUNK, HEADER, KINDS, NEVER, VERDICTS, Data, Frame, WireError, milliseconds

KIND_NUMBERS = sorted(KINDS)


def read(decoder: str, data: bytes) -> list[Frame]:
    return DECODERS[decoder]().feed(data)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", KIND_NUMBERS)
@deterministic
@given(NUMBERS, NUMBERS, NUMBERS, PAYLOADS)
def test_every_kind_of_frame_survives_the_wire(
    decoder: str, kind: int, id: int, a: int, b: int, payload: bytes
) -> None:
    frame = KINDS[kind](id, a, b, payload)

    (received,) = read(decoder, frames.encode(frame))

    assert shown(received) == shown(frame)


@deterministic
@given(FRAMES)
def test_msgpack_reads_a_frame_as_an_array_of_five_that_ends_with_the_payload(frame: Frame) -> None:
    data = frames.encode(frame)

    assert msgpack.unpackb(data) == [frame.kind, *frame]
    assert len(data) == 22 + len(frame.payload) == HEADER.size + len(frame.payload)


@deterministic
@given(
    st.sampled_from(KIND_NUMBERS),
    st.lists(st.integers(2**16, 2**32 - 1), min_size=3, max_size=3),
    st.integers(2**16, CHUNK),
)
def test_the_agent_reads_what_msgpack_packs_in_the_widths_of_the_wire(kind: int, numbers: list[int], size: int) -> None:
    payload = bytes(size)  # msgpack takes the shortest form, which for these is that of the wire
    packed = msgpack.packb((kind, *numbers, payload), use_bin_type=True)

    (received,) = read("agent", packed)

    assert shown(received) == shown(KINDS[kind](numbers[0], numbers[1], numbers[2], payload))


@deterministic
@given(FRAMES)
def test_the_controller_reads_whatever_widths_msgpack_packs(frame: Frame) -> None:
    packed = msgpack.packb((frame.kind, *frame), use_bin_type=True)

    (received,) = read("controller", packed)

    assert shown(received) == shown(frame)


@pytest.mark.parametrize("decoder", DECODERS)
@deterministic
@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(0, CHUNK), max_size=20))
def test_a_stream_may_be_cut_anywhere(decoder: str, sent: list[Frame], sizes: list[int]) -> None:
    data = b"".join(map(frames.encode, sent))
    reader = DECODERS[decoder]()

    received = [frame for piece in cuts(data, sizes) for frame in reader.feed(piece)]

    assert list(map(shown, received)) == list(map(shown, sent))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_stream_may_come_byte_by_byte(decoder: str) -> None:
    sent = [KINDS[kind](kind, 2**32 - 1, 7, b"payload %d" % kind) for kind in KIND_NUMBERS]
    data = b"".join(map(frames.encode, sent))
    reader = DECODERS[decoder]()

    received = [frame for at in range(len(data)) for frame in reader.feed(data[at : at + 1])]

    assert list(map(shown, received)) == list(map(shown, sent))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_truncated_frame_is_not_read_and_its_rest_completes_it(decoder: str) -> None:
    frame = Data(1, 1, 0, b"all of it")
    data = frames.encode(frame)

    for length in range(len(data)):
        reader = DECODERS[decoder]()
        assert list(reader.feed(data[:length])) == []
        assert len(list(reader.feed(data[length:]))) == 1


def test_a_payload_may_be_a_view() -> None:
    view = memoryview(b"a view of it")[2:6]

    assert frames.encode(Data(1, 0, 0, view)) == frames.encode(Data(1, 0, 0, b"view"))  # type: ignore[arg-type]


def test_a_payload_that_every_reader_would_refuse_is_not_written() -> None:
    with pytest.raises(ValueError, match="65537"):
        frames.encode(Data(1, 0, 0, bytes(CHUNK + 1)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", [0, 20, 127, 255])
def test_an_unknown_kind_is_refused(decoder: str, kind: int) -> None:
    data = HEADER.pack(0x95, kind, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, 0)

    with pytest.raises(WireError, match="unknown kind"):
        read(decoder, data)


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**32, 0, 0), (0, 2**32, 0), (0, 0, 2**64 - 1)]
)
def test_a_number_that_does_not_fit_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(WireError, match="too large"):
        read("controller", msgpack.packb((4, *numbers, b"")))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [CHUNK + 1, 2**32 - 1])
def test_a_payload_above_a_chunk_is_refused_before_it_comes(decoder: str, size: int) -> None:
    with pytest.raises(WireError, match=str(size)):
        read(decoder, HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 0, 0xCE, 0, 0xC6, size))


@pytest.mark.parametrize("decoder", DECODERS)
@deterministic
@given(FRAMES, st.integers(0, 21), st.binary(min_size=1, max_size=1))
def test_what_cannot_become_a_frame_of_ours_is_refused_or_read_as_msgpack_does(
    decoder: str, frame: Frame, at: int, byte: bytes
) -> None:
    data = frames.encode(frame)
    data = data[:at] + byte + data[at + 1 :]
    try:
        expected = frames_in(data)
    except Exception:  # whatever msgpack, or what makes frames of it, says
        expected = None

    try:
        received = read(decoder, data)
    except WireError:
        received = None

    if received is not None and expected is not None:
        assert list(map(shown, received)) == list(map(shown, expected))


@pytest.mark.parametrize("narrow_first", [True, False])
def test_the_controller_reads_frames_of_several_widths_in_one_stream_however_it_is_cut(narrow_first: bool) -> None:
    wide, narrow = frames.encode(Data(7, 1, 0, b"wide")), msgpack.packb((4, 8, 1, 0, b"narrow"))
    data = (narrow + wide if narrow_first else wide + narrow) * 3

    for size in range(1, len(data) + 1):
        reader = DECODERS["controller"]()
        received = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]

        assert sorted(frame.id for frame in received) == [7, 7, 7, 8, 8, 8]
        assert {bytes(frame.payload) for frame in received} == {b"wide", b"narrow"}


def test_a_short_frame_of_another_width_is_read_at_once() -> None:
    narrow = msgpack.packb((10, 0, 0, 0, b""))

    assert len(narrow) < HEADER.size
    assert list(map(type, read("controller", narrow))) == [frames.Ping]


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_beginning_of_something_else_is_refused_before_a_header_is_full(decoder: str) -> None:
    with pytest.raises(WireError):
        read(decoder, b"bash: no\n")


@pytest.mark.parametrize("kind", KIND_NUMBERS)
def test_a_frame_names_its_numbers_and_hides_its_payload(kind: int) -> None:
    frame = KINDS[kind](11, 22, 33, b"a secret")

    text = repr(frame)

    assert text.startswith(f"{KINDS[kind].__name__}(id=11")
    assert "secret" not in text and "<8 bytes>" in text
    for name, value in zip(frame.fields, frame, strict=True):
        if name[0] != "_":
            assert getattr(frame, name) == value


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, 0),
        (0.0015, 1),
        (1.5, 1500),
        (-3.0, 0),
        (-math.inf, 0),
        (math.inf, NEVER),
        (NEVER / 1000, NEVER),
        (NEVER / 1000 - 1, NEVER - 1000),
    ],
)
def test_seconds_become_milliseconds_that_fit(seconds: float, expected: int) -> None:
    assert milliseconds(seconds) == expected


def test_verdicts_have_numbers_of_their_own_and_none_is_zero() -> None:
    assert sorted(VERDICTS) == list(range(1, len(VERDICTS) + 1))
    assert len(set(VERDICTS.values())) == len(VERDICTS)
