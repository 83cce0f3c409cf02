"""What does it cost to read results from hosts that are not trusted?

Measured: the processor time for one result, of several kinds, in small and in large, with ``gc`` off for all.  *floor*
is ``pickle.loads``, which believes everything.  Costs of what only some results hold (keys that are tuples, dates) are
rows of their own.

Then, for large results, for how long the event loop stands at the longest while one is read: the processor time between
two turns of a task that asks for one after the other.  ``pickle.loads`` reads at one go.
"""

from __future__ import annotations

import datetime
import functools
import gc
import pickle
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from benchmarks import _harness
from benchmarks._harness import MICROSECONDS, MILLISECONDS, Bench, Loops, each
from trickle._agent.results import dumps_result
from trickle._unpickling import loads, loads_in_turns


def records(count: int) -> list[object]:
    return [{"name": f"host{n}", "load": n / 7, "up": True, "address": "10.0.0.1"} for n in range(count)]


KINDS: dict[str, Callable[[int], object]] = {
    "records": records,
    "texts": lambda count: [f"a line of text, number {n}" for n in range(count)],
    "numbers": lambda count: list(range(count)),
    "records with tuples": lambda count: [{"name": f"host{n}", "at": ("10.0.0.1", n)} for n in range(count)],
    "tuples as keys": lambda count: {(f"host{n}", n): n for n in range(count)},
    "dates": lambda count: [datetime.date.fromordinal(1 + n) for n in range(count)],
}
COUNTS = (1, 10_000)
LARGE = {  # as many as are read; of the last three kinds more are refused
    "records": 100_000,
    "texts": 200_000,
    "numbers": 1_400_000,
    "records with tuples": 60_000,
    "tuples as keys": 30_000,
    "dates": 100_000,
}


async def measure(bench: Bench) -> None:
    seconds = bench.pick(5, 20) / 1000
    gc.disable()
    for kind, make in KINDS.items():
        for count in COUNTS:
            data = dumps_result(make(count))
            await bench.compare(
                f"{kind}, {count:,} of them, {len(data):,} bytes",
                {
                    "floor: pickle.loads": Loops(functools.partial(pickle.loads, data), seconds),
                    "trickle": Loops(functools.partial(loads, data, host="web1"), seconds),
                },
                unit=MICROSECONDS,
                floor="floor: pickle.loads",
                rounds=bench.pick(3, 20),
                samples=3,
            )
    gc.enable()
    for kind, make in KINDS.items():
        data = dumps_result(make(LARGE[kind]))
        await bench.compare(
            f"longest pause of the loop: {kind}, {len(data) / 2**20:.1f} MiB",
            {
                "floor: pickle.loads": each(functools.partial(longest_pause, functools.partial(at_one_go, data))),
                "trickle": each(functools.partial(longest_pause, functools.partial(loads_in_turns, data, host="web1"))),
            },
            unit=MILLISECONDS,
            floor="floor: pickle.loads",
            rounds=bench.pick(3, 20),
        )


async def at_one_go(data: bytes) -> None:
    pickle.loads(data)


async def longest_pause(read: Callable[[], Awaitable[object]]) -> float:
    """Seconds of processor time in which no other task had a turn."""
    longest, last = 0.0, time.process_time()

    async def take_turns() -> NoReturn:
        nonlocal longest, last
        while True:
            await trio.lowlevel.checkpoint()
            now = time.process_time()
            longest, last = max(longest, now - last), now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        longest, last = 0.0, time.process_time()
        await read()
        for _ in range(2):  # the last turn counts too
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return longest


if __name__ == "__main__":
    _harness.main(question="unpickling")
