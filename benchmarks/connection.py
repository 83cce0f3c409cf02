"""How many calls and chunks does the connection's core move: its states, checks, credits and priorities?

Measured, in CPU time of one process that is both ends, in memory, with no pipe and no loop: a call of 64 bytes and its
result, from the controller's ``call`` to its reading of the ``End``, one at a time and 500 at once; a result of 16 MiB,
chunk by chunk, with the credits and acknowledgements that it takes, alone and while 200 small calls go to and fro
beside it.  Not measured: pickling, pipes, processes (call.py, payload.py).

The floor is the same frames written and read, and nothing else: what the core adds is what is above 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import _harness
from benchmarks._ends import ARGUMENTS, BULK, RESULT, Ends
from benchmarks._harness import PINNED, Bench, Measure, Unit, blocking
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


def per_second(act: Callable[[], object], amount: float, repeat: int) -> Measure:
    """How much of it in a second of CPU time."""

    def once() -> float:
        started = time.thread_time()
        for _ in range(repeat):
            act()
        return amount * repeat / (time.thread_time() - started)

    return blocking(once)


async def measure(bench: Bench) -> None:
    core, bare = Ends(), BareFrames()
    rounds = bench.pick(5, 20)
    for title, count, repeat in (("one at a time", 1, 500), (f"{AT_ONCE} at once", AT_ONCE, 2)):
        await bench.compare(
            f"connection: calls, {title}",
            {
                "frames alone": per_second(lambda count=count: bare.call(count), count, repeat),  # type: ignore[misc]
                "trickle's core": per_second(lambda count=count: core.call(count), count, repeat),  # type: ignore[misc]
            },
            unit=CALLS,
            floor="frames alone",
            rounds=rounds,
        )
    for title, beside in (("alone", 0), (f"with {BESIDE} calls beside it", BESIDE)):
        await bench.compare(
            f"connection: a result of 16 MiB, {title}",
            {
                "frames alone": per_second(lambda beside=beside: bare.bulk(beside), len(BULK), 1),  # type: ignore[misc]
                "trickle's core": per_second(lambda beside=beside: core.bulk(beside), len(BULK), 1),  # type: ignore[misc]
            },
            unit=MEGABYTES,
            floor="frames alone",
            rounds=rounds,
        )


if __name__ == "__main__":
    _harness.main(question="connection")
