"""The page on the wire format says what the code does: its tables, its numbers and its test vectors."""

import ast
import binascii
import re
import zlib
from pathlib import Path

import msgpack
import pytest

import trickle
from tests.wire.pair import DECODERS, shown
from trickle import _boot
from trickle._agent import channels
from trickle._agent.channels import TOLD
from trickle._handshake import Handshake
from trickle._wire import connection, frames
from trickle._wire.connection import (
    ACK_AFTER,
    AGENT,
    CONTROLLER,
    CREDIT,
    GRANT,
    LINK_FRAMES,
    SMALLEST_WINDOW,
    STATES,
    WIDE_CREDIT,
    WIDE_GRANT,
)
from trickle._wire.frames import BY_CALLER, BY_DEADLINE, CHUNK, HEADER, ITEM_COST, KINDS, NEVER, VERDICTS, Frame, Ping

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md").read_text(encoding="utf-8")


def table(*heads: str) -> list[list[str]]:
    """The rows of the page's table with these heads, without backquotes."""
    head = "| " + " | ".join(heads) + " |\n"
    assert PAGE.count(head) == 1, f"the page has {PAGE.count(head)} tables of {heads}"
    lines = PAGE.partition(head)[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


VECTORS = table("frame", "bytes")


def test_the_header_is_as_the_page_draws_it() -> None:
    rows = table("offset", "bytes", "value", "what it is")
    header = HEADER.pack(0x95, 4, 0xCE, 1, 0xCE, 2, 0xCE, 3, 0xC6, CHUNK)

    offset = 0
    for at, size, value, _ in rows:
        assert int(at) == offset
        if value:
            assert header[offset : offset + int(size)] == bytes.fromhex(value)
        offset += int(size)
    assert offset == HEADER.size == 22
    assert f"{CHUNK} at the most" in PAGE
    assert f"{NEVER}: no deadline" in PAGE
    assert f"{BY_CALLER} the caller, {BY_DEADLINE} a deadline" in PAGE


def test_the_table_of_kinds_is_that_of_the_code() -> None:
    rows = table("kind", "frame", "first number", "second number", "payload")

    documented = {int(kind): (name, first, second) for kind, name, first, second, _ in rows}

    def shown_as(field: str) -> str:
        return "" if field.startswith("_") else field

    assert documented == {
        kind: (frame.__name__, shown_as(frame.fields[1]), shown_as(frame.fields[2])) for kind, frame in KINDS.items()
    }
    for frame in KINDS.values():
        for field in frame.fields[1:3]:
            if field not in ("version", "verdict", "detail"):  # explained elsewhere on the page
                assert field.startswith("_") or f"- `{field}`: " in PAGE


def test_the_table_of_states_is_that_of_the_code() -> None:
    rows = table("state", "speaker", "frame", "state after")

    documented = {(state, speaker, frame): after.partition(";")[0] for state, speaker, frame, after in rows}

    assert len(documented) == len(rows)
    assert documented == {(state, speaker, frame.__name__): after for (state, speaker, frame), after in STATES.items()}


def test_the_table_of_frames_of_no_call_is_that_of_the_code() -> None:
    documented = {speaker: set(names.split(", ")) for speaker, names in table("speaker", "frames with id 0")}

    assert documented == {
        speaker: {frame.__name__ for frame in LINK_FRAMES[speaker]} for speaker in (CONTROLLER, AGENT)
    }


def test_the_table_of_verdicts_is_that_of_the_code() -> None:
    documented = {int(number): name for number, name, *_ in table("verdict", "name", "detail", "payload")}

    assert documented == VERDICTS


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    for name, value, _ in table("name", "value", "meaning"):
        assert {vars(module)[name] for module in (connection, frames, channels) if name in vars(module)} == {int(value)}


def test_there_is_always_room_for_one_more_frame_as_the_page_argues() -> None:
    frame = CHUNK + ITEM_COST
    assert GRANT + TOLD + frame < CREDIT
    assert WIDE_GRANT + TOLD + frame < WIDE_CREDIT
    assert 2 * ACK_AFTER + 2 * CHUNK <= SMALLEST_WINDOW


@pytest.mark.parametrize(("text", "data"), VECTORS, ids=[row[0] for row in VECTORS])
def test_a_vector_is_what_the_code_reads_and_writes(text: str, data: str) -> None:
    frame = frame_of(text)
    encoded = bytes.fromhex(data)

    assert frames.encode(frame) == encoded
    assert msgpack.unpackb(encoded) == [frame.kind, *frame]
    for decoder in DECODERS.values():
        (received,) = decoder().feed(encoded)
        assert shown(received) == shown(frame)


def test_every_kind_has_a_vector() -> None:
    assert {type(frame_of(text)) for text, _ in VECTORS} == set(KINDS.values())


def frame_of(text: str) -> Frame:
    match = re.fullmatch(r"(\w+)\((.*)\)", text)
    assert match is not None
    return getattr(frames, match[1])(*ast.literal_eval(f"({match[2]})"))  # type: ignore[no-any-return]


def test_the_boot_bytes_are_as_the_page_lists_them() -> None:
    handshake = Handshake(trickle.SSH("web1"))
    sent = b"".join(handshake.boot({})) + handshake.outgoing(frames.encode(Ping()))
    handshake.receive(handshake.nonce[::-1].encode())
    sent += handshake.outgoing(frames.encode(Ping()))

    first, second, third, rest = sent.split(b"\n", 3)
    length, checksum = map(int, third.split(b" "))
    program, rest = rest[:length], rest[length:]
    configuration, armor, frame = rest.split(b"\n", 2)

    assert first == b"exit 86" and f"`{first.decode()}`" in PAGE
    assert second == b"raise SystemExit(86)" and f"`{second.decode()}`" in PAGE
    assert zlib.crc32(b"%b\n%b\n%b" % (first, second, program)) == checksum
    assert program[-1:] == b"\n"
    assert b"start(" in zlib.decompress(binascii.a2b_base64(program))
    assert ast.literal_eval(binascii.a2b_base64(configuration).decode("ascii")) == {
        "nonce": handshake.nonce,
        "compiled": (0, 0),
    }
    assert armor[-1:] == b"." and binascii.a2b_base64(armor[:-1]) == frames.encode(Ping())
    assert frame == frames.encode(Ping())
    assert f"status {_boot.DAMAGED}" in PAGE
