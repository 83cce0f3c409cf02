"""How many calls and chunks does the connection's core move: its states, checks, credits and priorities?

Measured, in CPU time of one process that is both ends, in memory, with no pipe and no loop: a call of 64 bytes and its
result, from the controller's ``call`` to its reading of the ``End``, one at a time and 500 at once; a result of 16 MiB,
chunk by chunk, with the credits and acknowledgements that it takes, alone and while 200 small calls go to and fro
beside it.  Not measured: pickling, pipes, processes (call.py, payload.py).

The floor is the same frames written and read, and nothing else: what the core adds is what is above 1.
"""

from __future__ import annotations

import functools

from benchmarks import _harness
from benchmarks._ends import ARGUMENTS, BULK, RESULT, Ends
from benchmarks._harness import PINNED, Bench, Loops, Unit
from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.frames import CHUNK, RETURNED, Begin, Call, Data, Decoder, End

PLACEMENTS = (PINNED,)  # one thread, no system call
AT_ONCE = 500
BESIDE = 200

CALLS = Unit("calls/s", digits=0, more_is_better=True)
MEGABYTES = Unit("MB/s", 1e-6, digits=0, more_is_better=True)


class BareFrames:
    """The same frames, written and read, without anybody to say what they mean."""

    def __init__(self) -> None:
        self.here, self.there = MsgpackDecoder(), Decoder()

    def call(self, count: int) -> None:
        calls = b"".join([frames.encode(Call(number, 0, 0, ARGUMENTS)) for number in range(count)])
        found = self.there.feed(calls)
        ends = b"".join([frames.encode(End(frame.id, RETURNED, 0, RESULT)) for frame in found])
        assert len(self.here.feed(ends)) == count

    def bulk(self, beside: int) -> None:
        self.there.feed(frames.encode(Begin(1)))
        for start in range(0, len(BULK), CHUNK):
            self.here.feed(frames.encode(Data(1, 0, 0, BULK[start : start + CHUNK])))
        for _ in range(beside):
            self.call(1)


async def measure(bench: Bench) -> None:
    core, bare = Ends(), BareFrames()
    rounds, seconds = bench.pick(5, 20), bench.pick(10, 50) / 1000
    for title, count in (("one at a time", 1), (f"{AT_ONCE} at once", AT_ONCE)):
        await bench.compare(
            f"connection: calls, {title}",
            {
                "frames alone": Loops(functools.partial(bare.call, count), seconds, inner=count, amount=1),
                "trickle's core": Loops(functools.partial(core.call, count), seconds, inner=count, amount=1),
            },
            unit=CALLS,
            floor="frames alone",
            rounds=rounds,
        )
    for title, beside in (("alone", 0), (f"with {BESIDE} calls beside it", BESIDE)):
        await bench.compare(
            f"connection: a result of 16 MiB, {title}",
            {
                "frames alone": Loops(functools.partial(bare.bulk, beside), seconds, amount=len(BULK)),
                "trickle's core": Loops(functools.partial(core.bulk, beside), seconds, amount=len(BULK)),
            },
            unit=MEGABYTES,
            floor="frames alone",
            rounds=rounds,
        )


if __name__ == "__main__":
    _harness.main(question="connection")
