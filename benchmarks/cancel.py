"""How long does a cancelled call take to return?

Measured: from ``CancelScope.cancel()`` here until the scope around ``host.call`` is left, with the work over there at
its end and its verdict here: for a function in a system call, for one in a loop of Python code, and for one that
holds the interpreter's lock in C code, which only a signal that kills ends (with ``grace_period=0``; with another
one, that comes on top).  Not measured: functions that clean up, children that a call left, and the network.

The floors end a bare Python process that runs the same function, from the signal until it is reaped: SIGINT where
Python code can answer it, SIGKILL where none can.  execnet has no way to end a call other than to end its gateway.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import trickle
from benchmarks import _far, _harness
from benchmarks._harness import MILLISECONDS, Bench, Measure, blocking, each
from benchmarks._peers import PYTHON, local

CASES = {
    "in time.sleep": (_far.sleep, signal.SIGINT, 5.0),
    "in a Python loop": (_far.spin, signal.SIGINT, 5.0),
    "holding the lock in C, grace_period=0": (_far.hold, signal.SIGKILL, 0.0),
}
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


async def measure(bench: Bench) -> None:
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
                rounds=bench.pick(10, 100),
            )
        assert set(host.statistics().verdicts) == {"cancelled", "killed"}


if __name__ == "__main__":
    _harness.main(question="cancel")
