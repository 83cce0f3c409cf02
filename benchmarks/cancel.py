"""How long does a cancelled call take to return?

Measured: from ``CancelScope.cancel()`` here until the scope around ``host.call`` is left, with the work over there at
its end and its verdict here: for a function in a system call, for one in a loop of Python code, and for one that
holds the interpreter's lock in C code, which only a signal that kills ends (with ``grace_period=0``; with another
one, that comes on top); and for the first of them again on an idle host and beside as much bulk as the host takes,
here and over ssh.  Not measured: functions that clean up, children that a call left, and a network's delay.

The floors end a bare Python process that runs the same function, from the signal until it is reaped: SIGINT where
Python code can answer it, SIGKILL where none can.  execnet has no way to end a call other than to end its gateway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import trio

import trickle
from benchmarks import _far, _harness
from benchmarks._harness import MILLISECONDS, Bench, Measure, blocking, each
from benchmarks._peers import PYTHON, local
from tests import sshd

CASES = {
    "in time.sleep": (_far.sleep, signal.SIGINT, 5.0),
    "in a Python loop": (_far.spin, signal.SIGINT, 5.0),
    "holding the lock in C, grace_period=0": (_far.hold, signal.SIGKILL, 0.0),
}
BULK = 16 * 2**20  # bytes of one large argument
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


@contextlib.contextmanager
def ssh_tunnel() -> Iterator[trickle.SSH | None]:
    """A real ssh and a real sshd with a pipe between them; None where there is no sshd."""
    with contextlib.ExitStack() as stack:
        try:
            sshd.sshd_binary()
        except BaseException:  # pytest's outcome for a test that needs one
            yield None
            return
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sshd.prepare(directory)
        piped = stack.enter_context(sshd.piped_sshd(directory, getpass.getuser()))
        yield trickle.SSH(piped.alias(), ssh_options=piped.ssh_options, python=local().python)


@contextlib.asynccontextmanager
async def bulk_beside(host: trickle.Host) -> AsyncIterator[None]:
    """Large arguments under way all the time."""

    async def send() -> None:
        data = bytes(BULK)
        while True:
            await host.call(len, data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(send)
        yield
        nursery.cancel_scope.cancel()


async def compare_ways(bench: Bench) -> None:
    """The same cancel on an idle host and beside bulk, here and over ssh."""
    async with contextlib.AsyncExitStack() as stack:
        candidates: dict[str, Measure | str] = {}
        for way, tunnel in (("local", local()), ("ssh", stack.enter_context(ssh_tunnel()))):
            if tunnel is None:
                candidates[f"{way}, idle"] = "no sshd"
                continue
            idle = await stack.enter_async_context(trickle.open_host(dataclasses.replace(tunnel, name=f"{way} idle")))
            busy = await stack.enter_async_context(trickle.open_host(dataclasses.replace(tunnel, name=f"{way} busy")))

            def on_idle(host: trickle.Host = idle) -> Awaitable[float]:
                return cancelled(host, _far.sleep, 5.0)

            async def beside_bulk(host: trickle.Host = busy) -> float:
                async with bulk_beside(host):
                    return await cancelled(host, _far.sleep, 5.0)

            candidates[f"{way}, idle"] = each(on_idle)
            candidates[f"{way}, beside bulk"] = each(beside_bulk)
        await bench.compare(
            "cancel: in time.sleep, by the way and what else goes on",
            candidates,
            unit=MILLISECONDS,
            floor="local, idle",
            rounds=bench.pick(10, 100),
        )


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
                rounds=bench.pick(10, 100),
            )
        assert set(host.statistics().verdicts) == {"cancelled", "killed"}


if __name__ == "__main__":
    _harness.main(question="cancel")
