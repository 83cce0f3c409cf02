"""How long does it take to stop code that is hard to stop?

Measured: from ``CancelScope.cancel()`` here until the scope around ``host.call`` is left, for each row of the torture
table of the tests, with ``grace_period=0.5``: what has to be killed takes that and 0.2 s more.  By then every process
of it is gone.  Not measured: how long it takes to start; ssh, of which cancel.py tells.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import MILLISECONDS, Bench, Measure, each
from benchmarks._peers import local
from tests import torture
from tests.hosts import file_appears

GRACE_PERIOD = 0.5  # seconds


async def stopped(host: trickle.Host, function: Callable[[str], object], directory: Path) -> float:
    """Seconds from the cancel until the scope is left."""
    path = directory / f"{function.__name__}{time.monotonic_ns()}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.call, function, str(path))
        await file_appears(path)
        started = time.perf_counter()
        nursery.cancel_scope.cancel()
    return time.perf_counter() - started


async def measure(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with trickle.open_host(local(), output=lambda line: None) as host:
            candidates: dict[str, Measure | str] = {}
            for function in torture.TABLE:

                def once(function: Callable[[str], object] = function) -> Awaitable[float]:
                    return stopped(host.options(grace_period=GRACE_PERIOD), function, Path(directory))

                candidates[function.__name__.replace("_", " ")] = each(once)
            await bench.compare(
                "stopping",
                candidates,
                unit=MILLISECONDS,
                floor="sleep",
                rounds=bench.pick(3, 20),
            )


if __name__ == "__main__":
    _harness.main(question="stopping")
