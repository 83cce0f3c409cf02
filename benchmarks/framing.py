"""What does it cost to write a frame, and to read one, at each end?

Measured, in CPU time: bytes out of a frame and the frame out of them again, in memory, for a call of a no-op (a
payload of 64 bytes), a small result of 4 KiB and a chunk of bulk of 64 KiB; reading 64 of them that come in one piece;
how many blocks of memory are left allocated for a frame that was read, and how many bytes are allocated at once on the
way, of which the payload is one copy and what goes beyond it others.  *Here* is what the controller uses, *over there*
what the agent does.  Not measured: pickling what the payload holds, pipes (call.py), and what goes first
(connection.py).

The floor is msgpack's C packer and unpacker on the same tuple, without any check of what came.  The alternatives do
the same to the same tuple: msgpack in pure Python, msgspec, ormsgpack, bare ``struct`` (of a shape that is fixed),
pickle, and JSON with the payload in base64.
"""

from __future__ import annotations

import base64
import functools
import gc
import importlib.util
import json
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import msgpack.fallback

from benchmarks import _harness
from benchmarks._harness import NOT_INSTALLED, Bench, Loops, Measure, Unit
from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.frames import Call, Data, End, Frame

NANOSECONDS = Unit("ns", 1e9, digits=0)
COUNT = Unit("blocks", digits=1)
BYTES_EACH = Unit("bytes", digits=0)
FLOOR = "msgpack, C"
TOGETHER = 64
SIZES: dict[str, Frame] = {
    "a no-op call": Call(7, 5000, 0, bytes(64)),
    "a result of 4 KiB": End(7, frames.RETURNED, 0, bytes(4096)),
    "a chunk of 64 KiB": Data(7, 0, 0, bytes(frames.CHUNK)),
}
HEADER = struct.Struct(">BBBIBIBIBI")


class Way(NamedTuple):
    """How frames are written and read: *read* takes what has come, and gives a list of what that completes."""

    write: Callable[[Any], bytes]
    read: Callable[[bytes], list[Any]]


def ways() -> dict[str, Way | str]:
    """All that is compared, the floor first."""
    return {
        FLOOR: Way(msgpack.Packer(autoreset=True).pack, _reader(msgpack.Unpacker(use_list=False))),
        "trickle, here": Way(frames.encode, MsgpackDecoder().feed),
        "trickle, over there": Way(frames.encode, frames.Decoder().feed),
        "struct alone": Way(_struct_write, _struct_read),
        "msgpack, pure Python": Way(
            msgpack.fallback.Packer(autoreset=True).pack, _reader(msgpack.fallback.Unpacker(use_list=False))
        ),
        "msgspec": _msgspec(),
        "ormsgpack": _ormsgpack(),
        "pickle": Way(lambda item: pickle.dumps(item, 5), _pickle_read),
        "JSON and base64": Way(_json_write, _json_read),
    }


def _reader(unpacker: Any) -> Callable[[bytes], list[Any]]:
    def read(data: bytes) -> list[Any]:
        unpacker.feed(data)
        return list(unpacker)

    return read


def _struct_write(frame: Any) -> bytes:
    kind, id, a, b, payload = frame
    return HEADER.pack(0x95, kind, 0xCE, id, 0xCE, a, 0xCE, b, 0xC6, len(payload)) + bytes(payload)


def _struct_read(data: bytes) -> list[Any]:
    found, at = [], 0
    while at < len(data):
        _, kind, _, id, _, a, _, b, _, size = HEADER.unpack_from(data, at)
        at += HEADER.size
        found.append((kind, id, a, b, data[at : at + size]))
        at += size
    return found


def _msgspec() -> Way | str:
    """It reads one item at a time, so that what it reads needs lengths around it."""
    if importlib.util.find_spec("msgspec") is None:
        return NOT_INSTALLED
    import msgspec

    decode = msgspec.msgpack.Decoder(tuple[int, int, int, int, bytes]).decode
    return _one_by_one(msgspec.msgpack.Encoder().encode, decode)


def _ormsgpack() -> Way | str:
    if importlib.util.find_spec("ormsgpack") is None:
        return NOT_INSTALLED
    import ormsgpack

    return _one_by_one(ormsgpack.packb, ormsgpack.unpackb)


def _one_by_one(write: Callable[[Any], bytes], read: Callable[[Any], Any]) -> Way:
    def framed(item: Any) -> bytes:
        data = write(item)
        return len(data).to_bytes(4, "big") + data

    def read_all(data: bytes) -> list[Any]:
        found, at, view = [], 0, memoryview(data)
        while at < len(data):
            size = int.from_bytes(view[at : at + 4], "big")
            found.append(read(view[at + 4 : at + 4 + size]))
            at += 4 + size
        return found

    return Way(framed, read_all)


def _pickle_read(data: bytes) -> list[Any]:
    import io

    file, found = io.BytesIO(data), []
    while file.tell() < len(data):
        found.append(pickle.load(file))
    return found


def _json_write(item: Any) -> bytes:
    *numbers, payload = item
    return json.dumps([*numbers, base64.b64encode(payload).decode()]).encode() + b"\n"


def _json_read(data: bytes) -> list[Any]:
    found = []
    for line in data.splitlines():
        *numbers, payload = json.loads(line)
        found.append((*numbers, base64.b64decode(payload)))
    return found


def item_of(name: str, frame: Frame) -> Any:
    """The frame as that way has it: ours, or a plain tuple."""
    return frame if name.startswith("trickle") else (frame.kind, *frame)


def blocks_left(way: Way, item: Any) -> float:
    """How many blocks of memory a frame takes that was read."""
    data = way.write(item) * TOGETHER
    gc.collect()
    before = sys.getallocatedblocks()
    kept = way.read(data)
    after = sys.getallocatedblocks()
    assert len(kept) == TOGETHER
    return (after - before) / TOGETHER


def bytes_on_the_way(way: Way, item: Any) -> float:
    """The most that is allocated at once while one frame is read, its payload included."""
    data = way.write(item)
    way.read(data)
    gc.collect()
    tracemalloc.start()
    way.read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


async def measure(bench: Bench) -> None:
    seconds = bench.pick(5, 20) / 1000
    found = ways()
    for size, frame in SIZES.items():
        one: dict[str, Measure | str] = {}
        many: dict[str, Measure | str] = {}
        for name, way in found.items():
            if isinstance(way, str):
                one[name] = many[name] = way
            else:
                item = item_of(name, frame)
                data = way.write(item) * TOGETHER
                one[name] = Loops(functools.partial(_there_and_back, way, item), seconds)
                many[name] = Loops(functools.partial(way.read, data), seconds, inner=TOGETHER)
        for title, candidates in (("write one and read it", one), (f"read {TOGETHER} at once", many)):
            await bench.compare(
                f"framing: {title}, {size}", candidates, unit=NANOSECONDS, floor=FLOOR, rounds=bench.pick(4, 20)
            )
        for title, unit, count in (
            ("blocks of memory that a frame takes", COUNT, blocks_left),
            ("bytes allocated at once to read one", BYTES_EACH, bytes_on_the_way),
        ):
            bench.record(
                f"framing: {title}, {size}",
                {
                    name: way if isinstance(way, str) else [count(way, item_of(name, frame))]
                    for name, way in found.items()
                },
                unit=unit,
            )


def _there_and_back(way: Way, item: Any) -> list[Any]:
    return way.read(way.write(item))


if __name__ == "__main__":
    _harness.main(question="framing")
