"""Large results are read slice by slice, in a thread that runs only while the loop waits for it."""

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from hypothesis import given, settings

import trickle
from tests.host.test_unpickling import the_end_of, values
from tests.pickles import pickled
from trickle import _pickle_scan, _pickle_slices, _rehearsal, _unpickling
from trickle._agent.results import dumps_result
from trickle._pickle_budget import Refused
from trickle._pickle_slices import File, Loader, cut_up
from trickle._unpickling import loads, loads_in_turns

LARGE = [{"number": n, "name": f"host{n}", "at": (n, n + 1)} for n in range(40_000)]


def small_slices(patch: pytest.MonkeyPatch, size: int = 64) -> None:
    """Have results of any size read in slices of some bytes, and a turn after each."""
    patch.setattr(_unpickling, "SMALL", 0)
    for module in (_pickle_scan, _pickle_slices, _unpickling):
        patch.setattr(module, "SLICE", size)
    for module in (_pickle_scan, _pickle_slices):
        patch.setattr(module, "PIECE", size)
    patch.setattr(_pickle_slices, "TURN", 0)


def slices_of(data: bytes) -> list[bytes | bytearray]:
    return the_end_of(cut_up(data, the_end_of(_pickle_scan.scan(data)).runs))  # type: ignore[no-any-return]


@settings(deadline=None, derandomize=True, database=None)
@given(values)
def test_whatever_is_read_in_slices_arrives_as_it_is(value: object) -> None:
    value = [value, {(1, 2): "x" * 1000}, value]
    with pytest.MonkeyPatch.context() as patch:
        small_slices(patch)

        assert trio.run(read_in_turns, dumps_result(value)) == value


async def read_in_turns(data: bytes) -> object:
    return await loads_in_turns(data, host="web1")


async def test_other_tasks_have_a_turn_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    async def count_turns() -> NoReturn:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    data = dumps_result(LARGE)
    loaded: list[int] = []
    load = _unpickling._load

    def counted(*args: Any) -> object:
        loaded.append(turns)
        value = load(*args)
        loaded.append(turns)
        return value

    monkeypatch.setattr(_unpickling, "_load", counted)
    monkeypatch.setattr(_pickle_slices, "TURN", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        assert await loads_in_turns(data, host="web1") == LARGE
        nursery.cancel_scope.cancel()

    before, after = loaded
    # Which of two tasks goes first in a batch is trio's to choose; the last slice may be too small for a turn.
    assert after - before >= len(slices_of(data)) - 3 > 5


def test_a_slice_is_of_whole_opcodes_and_frames_are_left_out() -> None:
    data = pickle.dumps([LARGE, b"x" * 300_000, LARGE], 4)

    slices = slices_of(data)

    assert data.count(b"\x95") > 10
    assert all(len(each) < 2 * _pickle_slices.PIECE for each in slices if b"x" * 300_000 not in each)
    assert pickle.loads(b"\x80\x04" + b"".join(slices)) == [LARGE, b"x" * 300_000, LARGE]
    assert pickle.Unpickler(File(slices)).load() == [LARGE, b"x" * 300_000, LARGE]


@pytest.mark.parametrize(
    "end", [b"K", b"M\x01", b"\x8c", b"\x8c\x05xx", b"\x95", b"\x95\x05\0\0\0\0\0\0\0", b"G", b"(", b""]
)
def test_an_opcode_cannot_reach_into_the_next_slice(end: bytes) -> None:
    slices: list[bytes | bytearray] = [b"](" + end, b"K\x01" * 30 + b"e."]

    with contextlib.suppress(Refused, pickle.UnpicklingError, EOFError, ValueError):
        value = pickle.Unpickler(File(slices)).load()
        assert end in (b"(", b"")
        assert value == [1] * 30


def test_text_cannot_be_read_by_the_line() -> None:
    with pytest.raises(Refused):
        pickle.Unpickler(File([b"I1", b"\n."])).load()


def test_what_has_more_frames_than_a_pickler_makes_is_refused() -> None:
    frame = b"\x95" + struct.pack("<Q", 2) + b"K\x01"
    data = pickled(b"](" + frame * 100_000 + b"e")

    with pytest.raises(trickle.UnsafeResult, match="web1: the result was refused: it has more frames"):
        loads(data, host="web1")


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("size", [65_530, 65_536, 65_545, 200_000])
def test_what_has_as_many_frames_as_a_pickler_makes_arrives(size: int, protocol: int) -> None:
    value = [item for n in range(40) for item in (n, bytes([n]) * size)]

    assert loads(pickle.dumps(value, protocol), host="web1") == value


def begun(data: bytes) -> Generator[None, None, object]:
    """A reading that is on in a thread of its own."""
    reading = _unpickling._read(data, "web1", {}, False, 1, in_turns=True)
    while "load" not in the_names_of(reading):
        next(reading)
    return reading


def the_names_of(reading: Any) -> list[str]:
    """Of the generators that it waits in."""
    names = []
    while reading is not None:
        names.append(reading.gi_code.co_name)
        reading = reading.gi_yieldfrom
    return names


def busy_threads() -> int:
    """How many threads wait to go on with reading a result."""
    frames = sys._current_frames().values()
    return sum(frame.f_code is _pickle_slices._Elsewhere._wait.__code__ for frame in frames)


def test_what_is_abandoned_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pickle_slices, "TURN", 0)
    reading = begun(dumps_result(LARGE))
    assert busy_threads() == 1

    reading.close()

    while busy_threads():  # it ends by itself
        time.sleep(0.001)


def test_what_is_read_in_two_loops_keeps_its_own_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pickle_slices, "TURN", 0)
    data = dumps_result([LARGE, {(1, 2): 3}])
    one, other = begun(data), begun(data)
    ledger = _rehearsal._ledger

    assert loads(dumps_result({("a", 1): 2}), host="web1") == {("a", 1): 2}
    next(one)
    next(other)

    assert ledger is _rehearsal._ledger is _rehearsal._NO_LEDGER
    assert the_end_of(one) == the_end_of(other) == [LARGE, {(1, 2): 3}]


def test_ctrl_c_waits_for_the_end_of_the_slice() -> None:
    steps = []

    def read(file: File) -> None:
        file.read(1)
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(3_000_000))  # it goes on
        steps.append("the slice has been read")

    def interrupted(number: int, frame: object) -> NoReturn:
        steps.append("Ctrl-C")
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            the_end_of(Loader(None, in_turns=True).load(read, [b"N", b"."]))
    finally:
        signal.signal(signal.SIGINT, former)

    assert sorted(steps) == ["Ctrl-C", "the slice has been read"]


def test_where_there_is_no_thread_it_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_pickle_slices.threading.Thread, "start", start)

    assert the_end_of(_unpickling._read(dumps_result(LARGE), "web1", {}, False, 1, in_turns=True)) == LARGE


def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, signal
from trickle import _pickle_slices
from tests.host.test_pickle_slices import LARGE, begun, dumps_result, the_end_of

_pickle_slices.TURN = 0
reading = begun(dumps_result(LARGE))
pid = os.fork()
if not pid:
    signal.alarm(60)
    reading.close()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), the_end_of(reading) == LARGE)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=root, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("7 True\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
@pytest.mark.parametrize(
    "filling", ["M\\x01\\x01", "K\\x01\\x85", "G" + "\\x40" * 8, "B\\x00\\x01\\x00\\x00" + "x" * 256]
)
def test_what_takes_all_memory_to_the_last_byte_is_refused(filling: str) -> None:
    """Sets up to what is weighed, then what is small, until there is no memory for anything else either."""
    script = f"""
import signal
import trio
from trickle import UnsafeResult
from trickle._unpickling import loads_in_turns
from tests.pickles import call, pickled

signal.alarm(100)
size = 8 * 2**20
start = call("builtins", "complex", b")") + b"(" + b"N" * 2_000_000 + b"1"
sets = b"\\x8f" * ((58 * 2**20 + 13 * size) // 216)
body = start + b"(" + sets
body += b"{filling}" * ((size - len(body)) // len(b"{filling}")) + b"t"

async def main():
    try:
        await loads_in_turns(pickled(body), host="web1")
    except UnsafeResult as exc:
        print("refused")
    else:
        print("read")

trio.run(main)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)

    assert done.stderr == ""
    assert done.stdout in ("refused\n", "read\n")


def test_an_error_comes_out_of_the_thread() -> None:
    def read(file: File) -> NoReturn:
        raise LookupError(threading.current_thread() is threading.main_thread())

    with pytest.raises(LookupError, match="False"):
        the_end_of(Loader(None, in_turns=True).load(read, [b"N", b"."]))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is fenced on Linux alone")
def test_slices_have_one_fence_together() -> None:
    script = """
from trickle._pickle_slices import Loader

def read(file):
    kept = []
    while True:
        kept.append(bytes(2**20))
        made.append(None)
        file.pause()

made = []
reading = Loader(40 * 2**20, in_turns=True).load(read, [b"N", b"."])
import trickle._pickle_slices
trickle._pickle_slices.TURN = 0
try:
    while True:
        next(reading)
except MemoryError:
    print(20 < len(made) <= 41)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("True\n", "")
