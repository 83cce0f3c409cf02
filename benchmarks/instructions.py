"""How many instructions do the pure parts take?

Counted, by valgrind's callgrind: the processor's instructions for a no-op call's frame written and read here and over
there, for a call and its result through the core of both ends, and for a result that the restricted unpickler reads;
of one run of so many of them less one of none, so that Python's start is left out.  Counts repeat, whatever else the
machine does, to a few in a thousand: they find a change that times are too rough for.  What they do not tell is how
long it takes: instructions differ, and so do caches.

The floor is msgpack's C packer and unpacker on the no-op call's tuple.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from benchmarks import _harness
from benchmarks._harness import FREE, NOT_QUICK, ROOT, Bench, Unit

PLACEMENTS = (FREE,)  # nothing is timed
INSTRUCTIONS = Unit("instructions", digits=0)
FLOOR = "msgpack, C: write and read"
REPEAT = 2_000
SLOW = ("a small result, by the restricted unpickler",)  # it imports trio, which takes valgrind ten seconds
NO_VALGRIND = "no valgrind"

# trickle's own __init__ brings all of it, and trio: under valgrind that takes longer than what is counted.
BARE = "import sys, types; sys.modules['trickle'] = t = types.ModuleType('trickle'); t.__path__ = [%r]\n"
FRAME = "from trickle._wire import frames; frame = frames.Call(7, 5000, 0, bytes(64))\n"
PARTS = {
    FLOOR: (
        "import msgpack; pack = msgpack.Packer(autoreset=True).pack; u = msgpack.Unpacker(use_list=False);"
        "item = (2, 7, 5000, 0, bytes(64))",
        "u.feed(pack(item)); list(u)",
    ),
    "a frame here: write and read": (
        f"{FRAME}from trickle._decoder import MsgpackDecoder; feed = MsgpackDecoder().feed",
        "feed(frames.encode(frame))",
    ),
    "a frame over there: write and read": (f"{FRAME}feed = frames.Decoder().feed", "feed(frames.encode(frame))"),
    "a call and its result through the core": (
        "from benchmarks._ends import Ends; ends = Ends()",
        "ends.call(1)",
    ),
    "a small result, by the restricted unpickler": (
        "import pickle; from trickle._unpickling import loads;"
        "data = pickle.dumps({'name': 'web1', 'load': [0.1, 0.2, 0.3]}, 4)",
        "loads(data, host='web1')",
    ),
}


def instructions(setup: str, statement: str, count: int) -> int:
    """Of a Python that does so many of them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        code = f"{BARE % str(ROOT / 'trickle')}{setup}\nfor _ in range({count}):\n    {statement}\n"
        words = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-c", code]
        if shutil.which("setarch"):
            words = ["setarch", platform.machine(), "-R", *words]  # addresses decide where hashes collide
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{done.returncode}: {done.stderr[-2000:]}")
        total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert total is not None
        return int(total[1])


async def measure(bench: Bench) -> None:
    if shutil.which("valgrind") is None:
        bench.record("instructions", dict.fromkeys(PARTS, NO_VALGRIND), unit=INSTRUCTIONS)
        return
    repeat = bench.pick(REPEAT // 4, REPEAT)
    asked = [name for name in PARTS if not (bench.quick and name in SLOW)]
    totals: dict[tuple[str, int], int] = {}
    at_once = trio.CapacityLimiter(os.cpu_count() or 1)

    async def count(name: str, times: int) -> None:
        totals[name, times] = await trio.to_thread.run_sync(instructions, *PARTS[name], times, limiter=at_once)

    async with trio.open_nursery() as nursery:  # counts do not mind company
        for name in asked:
            for times in (repeat, 0):
                nursery.start_soon(count, name, times)
    counted: dict[str, list[float] | str] = {
        name: [(totals[name, repeat] - totals[name, 0]) / repeat] if name in asked else NOT_QUICK for name in PARTS
    }
    bench.record("instructions", counted, unit=INSTRUCTIONS, floor=FLOOR)


if __name__ == "__main__":
    _harness.main(question="instructions")
