"""How long does it take until a function has run that needs a package which the far end lacks?

Measured: from nothing (no agent) to the result, through a pipe whose round trip takes 50 ms, with this program's
caches empty for the first time and full for the others.  Each far end is new, so that it has everything to get and to
compile.  The far end's Python is this one, in an environment without packages.

mitogen answers each import that misses with the module that was asked for and those that it is known to import.
execnet sends no imports.  What chopsticks takes was measured with the same pipe over ssh, on another day: jinja2 and
sqlparse together 2.5 s, sympy 29 s (mitogen then: 0.73 s and 5.4 s).
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import trio

import trickle
from benchmarks import _code_to_send, _harness
from benchmarks._harness import FREE, MILLISECONDS, NOT_INSTALLED, Bench, Measure, blocking, each
from benchmarks._peers import DELAY_PIPE

PLACEMENTS = (FREE,)  # a program and its far end are two processes, on two machines
ONE_WAY = 25  # ms
PACKAGES = (_code_to_send.jinja2, _code_to_send.sqlparse, _code_to_send.sympy)

HAS_MITOGEN = importlib.util.find_spec("mitogen") is not None


async def by_trickle(fn: Callable[[], str], python: str, wait: bool) -> float:
    words = (sys.executable, str(DELAY_PIPE), str(ONE_WAY), "--")
    started = time.perf_counter()
    async with trickle.open_host(trickle.Command(words, name="far", python=python), wait=wait) as host:
        await host.call(fn)
        return time.perf_counter() - started


def by_mitogen(fn: Callable[[], str], python: str) -> float:
    import mitogen.master

    started = time.perf_counter()
    broker = mitogen.master.Broker()
    try:
        router = mitogen.master.Router(broker)
        words = [sys.executable, str(DELAY_PIPE), str(ONE_WAY), "--", python]
        router.local(python_path=words).call(fn)
        return time.perf_counter() - started
    finally:
        broker.shutdown()
        broker.join()


async def worst_pause(fn: Callable[[], str]) -> float:
    """The longest time for which the event loop did nothing else, while a call was packed for the first time."""
    from trickle import _module_server, _modules

    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            before = time.perf_counter()
            await trio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)

    server = _module_server.ModuleServer(library=_modules.ModuleLibrary())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.to_thread.run_sync(server.bundle_for, [fn.__name__])
        nursery.cancel_scope.cancel()
    return worst


async def measure(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=True)
        await measure_calls(bench, str(Path(folder, "bin", "python")))
    await bench.compare(
        "code: the event loop's longest pause while sympy is packed for the first time",
        {"trickle": each(lambda: worst_pause(_code_to_send.sympy))},
        unit=MILLISECONDS,
        rounds=bench.pick(1, 5),
    )


async def measure_calls(bench: Bench, python: str) -> None:
    candidates: dict[str, Measure | str] = {}
    for fn in PACKAGES:
        for name, wait in (("trickle", True), ("trickle, wait=False", False)):
            candidates[f"{fn.__name__}: {name}"] = each(functools.partial(by_trickle, fn, python, wait))
        mitogen = blocking(functools.partial(by_mitogen, fn, python))
        candidates[f"{fn.__name__}: mitogen"] = mitogen if HAS_MITOGEN else NOT_INSTALLED
    await bench.compare(
        "code: until the result, 50 ms round trip", candidates, unit=MILLISECONDS, rounds=bench.pick(1, 5)
    )


if __name__ == "__main__":
    _harness.main(question="code")
