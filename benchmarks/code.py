"""How long does it take until a function has run that needs a package which the far end lacks?

Measured: from nothing (no agent) to the result, through a pipe whose round trip takes 50 ms, with this program's
caches empty for the first time and full for the others.  Each far end is new, so that it has everything to get and to
compile.  The far end's Python is this one, in an environment without packages.  The same for a host on this machine,
with bytecode, which such hosts get, and without.

With ``--quick`` sympy is sent by trickle with ``wait=False`` alone; mitogen takes ten seconds for it.

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

import pytest
import trio

import trickle
from benchmarks import _harness
from benchmarks._code_to_send import jinja2, sqlparse, sympy
from benchmarks._harness import FREE, MILLISECONDS, NOT_INSTALLED, Bench, Measure, blocking, each, longest_pause
from benchmarks._peers import DELAY_PIPE
from trickle import _module_server, _modules

PLACEMENTS = (FREE,)  # a program and its far end are two processes, on two machines
ONE_WAY = 25  # ms
PACKAGES = {"jinja2": jinja2.run, "sqlparse": sqlparse.run, "sympy": sympy.run}

HAS_MITOGEN = importlib.util.find_spec("mitogen") is not None


async def by_trickle(fn: Callable[[], str], python: str, wait: bool) -> float:
    words = (sys.executable, str(DELAY_PIPE), str(ONE_WAY), "--")
    started = time.perf_counter()
    async with trickle.open_host(trickle.Command(words, name="far", python=python), wait=wait) as host:
        await host.call(fn)
        return time.perf_counter() - started


async def on_this_machine(fn: Callable[[], str], python: str, bytecode: bool) -> float:
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        if not bytecode:
            patch.setattr(_module_server.ModuleServer, "bytecode_for", lambda server, entries: ())
        async with trickle.open_host(trickle.Local("far", python=python), wait=False) as host:
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


async def worst_pause(fn: Callable[[], str], bytecode: bool) -> float:
    """The longest time for which the event loop did nothing else, while a call was packed for the first time."""
    server = _module_server.ModuleServer(library=_modules.ModuleLibrary(), sends_bytecode=bytecode)
    return await longest_pause(lambda: trio.to_thread.run_sync(server.bundle_for, [fn.__module__]))


async def measure(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=True)
        await measure_calls(bench, str(Path(folder, "bin", "python")))
    await bench.compare(
        "code: the event loop's longest pause while sympy is packed for the first time",
        {
            "trickle": each(lambda: worst_pause(sympy.run, False)),
            "trickle, with bytecode": each(lambda: worst_pause(sympy.run, True)),
        },
        unit=MILLISECONDS,
        rounds=bench.pick(1, 5),
        warm_up=not bench.quick,
    )


async def measure_calls(bench: Bench, python: str) -> None:
    candidates: dict[str, Measure | str] = {}
    for package, fn in PACKAGES.items():
        for name, wait in (("trickle", True), ("trickle, wait=False", False)):
            measure = each(functools.partial(by_trickle, fn, python, wait))
            candidates[f"{package}: {name}"] = bench.with_care(measure) if package == "sympy" and wait else measure
        mitogen = blocking(functools.partial(by_mitogen, fn, python))
        candidates[f"{package}: mitogen"] = mitogen if HAS_MITOGEN else NOT_INSTALLED
        if package == "sympy":
            candidates[f"{package}: mitogen"] = bench.with_care(candidates[f"{package}: mitogen"])
    await bench.compare(
        "code: until the result, 50 ms round trip", candidates, unit=MILLISECONDS, rounds=bench.pick(1, 5)
    )
    await bench.compare(
        "code: until the result, on this machine",
        {
            f"{package}: {what}": each(functools.partial(on_this_machine, fn, python, bytecode))
            for package, fn in PACKAGES.items()
            for what, bytecode in (("source", False), ("with bytecode", True))
        },
        unit=MILLISECONDS,
        rounds=bench.pick(1, 15),
        warm_up=not bench.quick,
    )


if __name__ == "__main__":
    _harness.main(question="code")
