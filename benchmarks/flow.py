"""What does a flood do to the other work of its host, and to memory?

One host, here and over ssh, in four states: nothing else goes on; a call prints 1 GB (50 MB with ``--quick``), which a
function here counts; a stream of as many bytes is taken as fast as it comes; and one is taken slowly at first, an item
of 100 KB every 20 ms for ten seconds (one), and then as fast as it comes.  Measured meanwhile: how long a no-op call
takes, how fast the flood moves, and by how much the controller, and broker and workers together, have grown at the
most, looked at every 50 ms.  Not measured: a network.

The floor of a call is the same call while nothing else goes on.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

import trickle
from benchmarks import _far, _harness
from benchmarks._crowd import descendants, own_memory
from benchmarks._harness import FREE, MEBIBYTES, MEGABYTES_PER_SECOND, MILLISECONDS, Bench
from benchmarks._peers import NO_SSHD, ssh_tunnel
from tests.hosts import private

PLACEMENTS = (FREE,)
IDLE = "nothing else"
ITEM = 100_000  # bytes
PAUSE = 0.02  # seconds between the items that are taken slowly


class Seen:
    """What was measured beside one flood."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.here = 0
        self.there = 0


def memory_of(agent: int) -> int:
    """Bytes that a broker and its workers share with no file."""
    total = 0
    for pid in (agent, *descendants(agent)):
        with contextlib.suppress(OSError):
            total += private(pid)
    return total


async def look(host: trickle.Host, seen: Seen) -> None:
    """Note the largest growth of both ends, for ever."""
    agent = host.info.pid
    here, there = own_memory(), memory_of(agent)
    while True:
        await trio.sleep(0.05)
        seen.here = max(seen.here, own_memory() - here)
        seen.there = max(seen.there, memory_of(agent) - there)


async def beside(host: trickle.Host, flood: Callable[[], Awaitable[object]]) -> tuple[Seen, float]:
    """What calls and memory were beside a flood, and how many seconds it took."""
    seen = Seen()
    async with trio.open_nursery() as nursery:

        async def call_on() -> None:
            while True:
                started = time.perf_counter()
                await host.call(abs, -1)
                seen.calls.append(time.perf_counter() - started)
                await trio.sleep(0.01)

        await host.call(abs, -1)
        nursery.start_soon(look, host, seen)
        nursery.start_soon(call_on)
        started = time.perf_counter()
        await flood()
        elapsed = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    return seen, elapsed


async def printed(host: trickle.Host, size: int) -> None:
    """A call that prints so many bytes."""
    count = 0

    def take(line: trickle.OutputLine) -> None:
        nonlocal count
        count += len(line.text) + 1

    await host.options(output=take).call(_far.print_much, size)
    assert count >= size, (count, size)


async def streamed(host: trickle.Host, size: int, slow_for: float = 0.0) -> None:
    """A stream of so many bytes, taken slowly at first."""
    fast_from = time.perf_counter() + slow_for
    async with host.stream(_far.chunks, size // ITEM, ITEM) as items:
        async for _ in items:
            if time.perf_counter() < fast_from:
                await trio.sleep(PAUSE)


@contextlib.asynccontextmanager
async def hosts() -> AsyncIterator[dict[str, trickle.Host | str]]:
    """One here, and one over ssh."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, trickle.Host | str] = {}
        local = trickle.Local("here", python=sys.executable)
        found["local"] = await stack.enter_async_context(trickle.open_host(local))
        tunnel = stack.enter_context(ssh_tunnel())
        found["ssh"] = NO_SSHD if tunnel is None else await stack.enter_async_context(trickle.open_host(tunnel))
        yield found


async def measure(bench: Bench) -> None:
    size, slow_for = bench.pick(50, 1000) * 10**6, float(bench.pick(1, 10))
    async with hosts() as found:
        for way, host in found.items():
            if isinstance(host, str):
                continue
            floods: dict[str, Callable[[], Awaitable[object]]] = {
                IDLE: functools.partial(trio.sleep, slow_for),
                "prints": functools.partial(printed, host, size),
                "a stream": functools.partial(streamed, host, size),
                "a stream, taken slowly at first": functools.partial(streamed, host, size, slow_for),
            }
            calls: dict[str, list[float] | str] = {}
            rates: dict[str, list[float] | str] = {}
            here: dict[str, list[float] | str] = {}
            there: dict[str, list[float] | str] = {}
            for name, flood in floods.items():
                seen, elapsed = await beside(host, flood)
                calls[name] = seen.calls
                if name != IDLE:
                    rates[name] = [size / elapsed]
                here[name], there[name] = [float(seen.here)], [float(seen.there)]
            bench.record(f"flow, {way}: a call meanwhile", calls, unit=MILLISECONDS, floor=IDLE)
            bench.record(f"flow, {way}: {size // 10**6:,} MB move at", rates, unit=MEGABYTES_PER_SECOND)
            bench.record(f"flow, {way}: the controller grew by", here, unit=MEBIBYTES)
            bench.record(f"flow, {way}: broker and workers grew by", there, unit=MEBIBYTES)


if __name__ == "__main__":
    _harness.main(question="flow")
