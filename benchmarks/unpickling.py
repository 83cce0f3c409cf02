"""What does it cost to read results from hosts that are not trusted?

Measured: the processor time for one result, of several kinds, in small and in large, with ``gc`` off for all.  *floor*
is ``pickle.loads``, which believes everything.  Costs of what only some results hold (keys that are tuples, dates) are
rows of their own.
"""

from __future__ import annotations

import datetime
import functools
import gc
import pickle
from collections.abc import Callable

from benchmarks import _harness
from benchmarks._harness import MICROSECONDS, Bench, Loops
from trickle._agent.results import dumps_result
from trickle._unpickling import loads


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


if __name__ == "__main__":
    _harness.main(question="unpickling")
