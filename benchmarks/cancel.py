"""How long does a cancelled call take to return?

Measured: from ``CancelScope.cancel()`` here until the scope around ``host.call`` is left, with the work over there at
its end and its verdict here: for a function in a system call, for one in a loop of Python code, and for one that
holds the interpreter's lock in C code, which only a signal that kills ends (with ``grace_period=0``; with another
one, that comes on top); and for the first of them again on an idle host and beside bulk, large arguments or what a
generator yields, at 100 MB/s or as much as the link moves, here and over ssh.  How much that was is a table of its own.
The aim is twice what it takes on an idle host, and 50 ms.  Not measured: functions that clean up, children that a call
left, and a network's delay.

The floors end a bare Python process that runs the same function, from the signal until it is reaped: SIGINT where
Python code can answer it, SIGKILL where none can.  execnet has no way to end a call other than to end its gateway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

import trickle
from benchmarks import _far, _harness
from benchmarks._harness import MEGABYTES_PER_SECOND, MILLISECONDS, Bench, Measure, blocking, each
from benchmarks._peers import NO_SSHD, PYTHON, local, ssh_tunnel

CASES = {
    "in time.sleep": (_far.sleep, signal.SIGINT, 5.0),
    "in a Python loop": (_far.spin, signal.SIGINT, 5.0),
    "holding the lock in C, grace_period=0": (_far.hold, signal.SIGKILL, 0.0),
}
BULK = 4 * 2**20  # bytes of one large argument
BULK_SENDERS = 4
ENDLESS = 10**9  # pieces
BULK_RATE = 100e6  # bytes per second
SETTLE = 0.002  # seconds from "begun" until the function is where it stays


def bare(name: str, number: signal.Signals) -> float:
    """Seconds from a signal until the process that runs a function of _far.py has been reaped."""
    words = (*PYTHON, str(Path(_far.__file__)), name)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(SETTLE)
        started = time.perf_counter()
        process.send_signal(number)
        process.wait()
        return time.perf_counter() - started


async def cancelled(host: trickle.Host, fn: Callable[[], object], grace_period: float) -> float:
    """Seconds from the cancel until the scope is left."""
    begun = trio.Event()
    view = host.options(grace_period=grace_period, output=lambda line: begun.set())
    started = 0.0
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel_when_begun() -> None:
                nonlocal started
                await begun.wait()
                await trio.sleep(SETTLE)
                started = time.perf_counter()
                scope.cancel()

            nursery.start_soon(cancel_when_begun)
            await view.call(fn)
    return time.perf_counter() - started


class Pace:
    """Has what is done in turn done at the pace of BULK_RATE."""

    def __init__(self) -> None:
        self._due = trio.current_time()

    async def wait(self) -> None:
        """Return when the next BULK bytes are due."""
        now = trio.current_time()
        self._due = max(self._due, now - BULK / BULK_RATE) + BULK / BULK_RATE  # what was missed is not made up for
        await trio.sleep_until(self._due - BULK / BULK_RATE)


@contextlib.asynccontextmanager
async def bulk_there(host: trickle.Host) -> AsyncIterator[None]:
    """Large arguments under way all the time, if the link does that much."""
    pace, under_way = Pace(), trio.Event()

    async def send() -> None:
        data = bytes(BULK)
        while True:
            await pace.wait()
            await host.call(len, data)
            under_way.set()

    async with trio.open_nursery() as nursery:
        for _ in range(BULK_SENDERS):
            nursery.start_soon(send)
        await under_way.wait()
        yield
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def bulk_back(host: trickle.Host) -> AsyncIterator[None]:
    """The same of what a generator over there yields."""
    pace, under_way = Pace(), trio.Event()

    async def receive() -> None:
        async with host.stream(_far.chunks, ENDLESS, BULK) as pieces:
            async for _ in pieces:
                under_way.set()
                await pace.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await under_way.wait()
        yield
        nursery.cancel_scope.cancel()


BULKS = {"arguments": bulk_there, "a stream": bulk_back}


async def beside_bulk(
    samples: int,
    host: trickle.Host,
    bulk: Callable[[trickle.Host], AbstractAsyncContextManager[None]],
    reached: list[float],
) -> list[float]:
    """Seconds that cancels took beside bulk; how many bytes a second of that moved goes to *reached*."""
    async with bulk(host):
        started, moved = time.perf_counter(), _moved(host)
        taken = [await cancelled(host, _far.sleep, 5.0) for _ in range(samples)]
        reached.append((_moved(host) - moved) / (time.perf_counter() - started))
    return taken


def _moved(host: trickle.Host) -> int:
    statistics = host.statistics()
    return statistics.bytes_sent + statistics.bytes_received


async def compare_ways(bench: Bench) -> None:
    """The same cancel on an idle host and beside bulk, here and over ssh; and how much bulk that was."""
    async with contextlib.AsyncExitStack() as stack:
        candidates: dict[str, Measure | str] = {}
        rates: dict[str, list[float] | str] = {}
        for way, tunnel in (("local", local()), ("ssh", stack.enter_context(ssh_tunnel()))):
            if tunnel is None:
                candidates[f"{way}, idle"] = NO_SSHD
                continue
            idle = await stack.enter_async_context(trickle.open_host(dataclasses.replace(tunnel, name=f"{way} idle")))
            busy = await stack.enter_async_context(trickle.open_host(dataclasses.replace(tunnel, name=f"{way} busy")))

            def on_idle(host: trickle.Host = idle) -> Awaitable[float]:
                return cancelled(host, _far.sleep, 5.0)

            candidates[f"{way}, idle"] = each(on_idle)
            for what, bulk in BULKS.items():
                beside = f"{way}, beside {what}"
                reached: list[float] = []
                candidates[beside] = functools.partial(beside_bulk, host=busy, bulk=bulk, reached=reached)
                rates[beside] = reached
        await bench.compare(
            "cancel: in time.sleep, by the way and what else goes on",
            candidates,
            unit=MILLISECONDS,
            floor="local, idle",
            rounds=bench.pick(1, 20),
            samples=5,
        )
        bench.record("cancel: bulk that moved meanwhile", rates, unit=MEGABYTES_PER_SECOND)


async def measure(bench: Bench) -> None:
    await compare_ways(bench)
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(trickle.open_host(local()))
        for title, (fn, number, grace_period) in CASES.items():

            def floor(name: str = fn.__name__, number: signal.Signals = number) -> float:
                return bare(name, number)

            def ours(fn: Callable[[], object] = fn, grace_period: float = grace_period) -> Awaitable[float]:
                return cancelled(host, fn, grace_period)

            candidates: dict[str, Measure | str] = {
                f"{number.name} to a bare Python": blocking(floor),
                "trickle": each(ours),
            }
            await bench.compare(
                f"cancel: {title}",
                candidates,
                unit=MILLISECONDS,
                floor=f"{number.name} to a bare Python",
                rounds=bench.pick(5, 100),
            )
        assert set(host.statistics().verdicts) == {"cancelled", "killed"}


if __name__ == "__main__":
    _harness.main(question="cancel")
