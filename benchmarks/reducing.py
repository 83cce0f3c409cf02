"""When does it pay to reduce results in another process?

A host returns a list of records, and what is wanted of it is a count by one field.  Measured, for three sizes: how
long the call takes, and for how long at most this program's event loop was blocked meanwhile (a task that would run
each millisecond tells).  *here*: the result is read, and reduced, on the event loop, with ``max_result`` raised.
*reducing*: in a process of ``host.reducing``, which is there already.  *over there*: the host reduces, which is best
where it can be.
With ``--quick`` the largest of the sizes is left out.

The floor is what the host itself takes to make the records.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import trickle
from benchmarks import _harness
from benchmarks._harness import MILLISECONDS, NOT_QUICK, Bench, Measure, longest_pause
from benchmarks._peers import local

SIZES = {"0.1 MiB": 1_000, "8 MiB": 80_000, "64 MiB": 640_000}  # records of a little more than 100 bytes
LARGEST_QUICK = 80_000  # records

Record = tuple[int, str, str, float]


def records(count: int) -> list[Record]:
    """Runs over there."""
    path = "GET /some/path/that/is/like/others/"
    return [(n, f"web{n % 7}", f"{path}{n}?with=arguments", n / 7) for n in range(count)]


def count_records(count: int) -> int:
    """The same, but for sending them."""
    return len(records(count))


def by_host(found: list[Record]) -> dict[str, int]:
    return dict(Counter(record[1] for record in found))


def by_host_there(count: int) -> dict[str, int]:
    return dict(Counter(record[1] for record in records(count)))


async def took(act: Callable[[], Awaitable[object]]) -> float:
    """Seconds."""
    started = time.perf_counter()
    await act()
    return time.perf_counter() - started


async def measure(bench: Bench) -> None:
    async with trickle.open_host(local()) as host:
        large = host.options(max_result=2**30)
        reducing = host.reducing(by_host)
        await reducing.call(records, 1)  # starts the process

        async def here(count: int) -> object:
            return by_host(await large.call(records, count))

        for title, count in SIZES.items():
            if bench.quick and count > LARGEST_QUICK:
                bench.record(f"reducing, {title}", {"all ways": NOT_QUICK}, unit=MILLISECONDS)
                continue
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                "over there, not reduced": functools.partial(host.call, count_records, count),
                "here": functools.partial(here, count),
                "reducing": functools.partial(reducing.call, records, count),
                "over there": functools.partial(host.call, by_host_there, count),
            }
            for what, how in (("the call takes", took), ("the loop is blocked", longest_pause)):
                candidates: dict[str, Measure | str] = {name: _each(how, way) for name, way in ways.items()}
                await bench.compare(
                    f"reducing, {title}: {what}",
                    candidates,
                    unit=MILLISECONDS,
                    floor="over there, not reduced" if how is took else None,
                    rounds=bench.pick(1, 10),
                )


def _each(
    how: Callable[[Callable[[], Awaitable[object]]], Awaitable[float]], way: Callable[[], Awaitable[object]]
) -> Measure:
    return _harness.each(lambda: how(way))


if __name__ == "__main__":
    _harness.main(question="reducing")
