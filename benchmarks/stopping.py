"""How long does it take to stop code that is hard to stop?

Measured: from ``CancelScope.cancel()`` here until the scope around ``host.call`` is left, for each row of the torture
table of the tests, with ``grace_period=0.5``: what has to be killed takes that and 0.2 s more.  By then every process
of it is gone, and its verdict is that of the table; both are checked.  On this machine, directly and over ssh: a real
ssh and a real sshd with a pipe between them.  With ``--quick`` each is stopped once each way, and not pinned.  Not
measured: how long it takes to start, and a network's delay.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import FREE, MILLISECONDS, Bench, Measure, each
from benchmarks._peers import NO_SSHD, local, ssh_tunnel
from tests import torture
from tests.hosts import file_appears, is_running

QUICK_PLACEMENTS = (FREE,)  # on one CPU it takes much the same
GRACE_PERIOD = 0.5  # seconds


async def stopped(host: trickle.Host, function: Callable[[str], object], directory: Path) -> float:
    """Seconds from the cancel until the scope is left."""
    path = directory / f"{function.__name__}{time.monotonic_ns()}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.call, function, str(path))
        pids = (await file_appears(path)).split()
        before = host.statistics().verdicts
        started = time.perf_counter()
        nursery.cancel_scope.cancel()
    taken = time.perf_counter() - started
    verdict = torture.TABLE[function]
    assert host.statistics().verdicts == {**before, verdict: before.get(verdict, 0) + 1}, function
    assert not [pid for pid in pids if is_running(int(pid))], function
    return taken


async def measure(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for way, tunnel in (("local", local()), ("ssh", stack.enter_context(ssh_tunnel()))):
            host: trickle.Host | None = None
            if tunnel is not None:
                host = await stack.enter_async_context(trickle.open_host(tunnel, output=lambda line: None))
            candidates: dict[str, Measure | str] = {}
            for function in torture.TABLE:
                name = function.__name__.replace("_", " ")
                candidates[name] = NO_SSHD if host is None else each(stopping(host, function, directory))
            await bench.compare(
                f"stopping: {way}",
                candidates,
                unit=MILLISECONDS,
                floor="sleep",
                rounds=bench.pick(1, 20),
                warm_up=not bench.quick,
            )


def stopping(host: trickle.Host, function: Callable[[str], object], directory: Path) -> Callable[[], Awaitable[float]]:
    """What stops one function, again and again."""
    return lambda: stopped(host.options(grace_period=GRACE_PERIOD), function, directory)


if __name__ == "__main__":
    _harness.main(question="stopping")
