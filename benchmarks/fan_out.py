"""What do many hosts cost: to connect to all of them, to call all of them, and to keep them?

200 hosts that are processes of this machine, and 100 behind a real sshd (10 and 5 with ``--quick``).  Measured: from
the first process that is started until the last host has answered; the first call on all, in which trickle forks its
workers; the calls after it, each until the last answer is there; leaving, until every process is gone; how much CPU
the controller uses for it, and how much memory it and the agents take.  Each candidate has a process of its own, and
connects in the way that is quickest for it; see _crowd.py.

The floor are bare Pythons that write back what they read.  "bare trio" is what trickle is built on, and nothing else:
trio with a task for each pipe, and at each host a process that hands on what it reads to another, which answers.  That
is the least for calls that can be ended whatever they do.  What the others do in a call is less than what trickle does:
execnet's is an item through a channel that is open already; rpyc has to be installed over there; none of them can stop
a call.  Not measured: a network's delay.

``python -m benchmarks.fan_out --hosts 1000`` does something else: it shows trickle with so many local hosts, once.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import getpass
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

import trickle
import trickle.remote
from benchmarks import _harness
from benchmarks._crowd import CANDIDATES, descendants, memory_of_agents, own_memory
from benchmarks._harness import FREE, NOT_INSTALLED, ROOT, Bench, Unit
from tests import sshd

PLACEMENTS = (FREE,)  # on one CPU it is only that CPU which is measured
PATIENCE = 1800  # seconds: only ends a candidate that hangs

SECONDS = Unit("s", digits=2)
MILLISECONDS = Unit("ms", 1e3, digits=1)
MILLISECONDS_EACH = Unit("ms per host", 1e3, digits=2)
KIBIBYTES = Unit("KiB per host", 1 / 1024, digits=0)
TABLES = {
    "connect": SECONDS,
    "first call": MILLISECONDS,
    "call": MILLISECONDS,
    "leave": SECONDS,
    "connect, CPU of the controller": MILLISECONDS_EACH,
    "call, CPU of the controller": MILLISECONDS_EACH,
    "memory of the controller": KIBIBYTES,
    "memory of the agent": KIBIBYTES,
}


@contextlib.contextmanager
def ssh_config() -> Iterator[str | None]:
    """The configuration of a way to an sshd of our own; None where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            sshd.sshd_binary()
        except BaseException:  # pytest's outcome for a test that needs one
            yield None
            return
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sshd.prepare(directory)
        # Without the start-up files of this user's shell: what they do is neither ssh's work nor anybody's here.
        piped = sshd.piped_sshd(directory, getpass.getuser(), extra=f"SetEnv HOME={directory}")
        yield str(stack.enter_context(piped).ssh_config)


def run(candidate: str, hosts: int, calls: int, *ssh_config: str) -> dict[str, Any] | str:
    """What a candidate says that it took, or why it says nothing."""
    words = [sys.executable, "-m", "benchmarks._crowd", candidate, str(hosts), str(calls), *ssh_config]
    # Each with its code compiled before it counts, as it is where it is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode == 0:
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    if "ModuleNotFoundError" in done.stderr:
        return NOT_INSTALLED
    return f"failed: {done.stderr.strip().splitlines()[-1][:60]}"


async def measure(bench: Bench) -> None:
    compileall.compile_dir(Path(trickle.__file__).parent, quiet=1)
    with ssh_config() as config:
        await measure_way(bench, "local", bench.pick(10, 200))
        if config is not None:
            await measure_way(bench, "ssh", bench.pick(5, 100), config)


async def measure_way(bench: Bench, way: str, hosts: int, *ssh_config: str) -> None:
    """All candidates in turn, over and over."""
    taken: dict[str, list[dict[str, Any]] | str] = {name: [] for name in CANDIDATES}
    for _ in range(bench.pick(1, 3)):
        for name, kept in taken.items():
            if isinstance(kept, str):
                continue
            figures = await trio.to_thread.run_sync(
                functools.partial(run, name, hosts, bench.pick(10, 50), *ssh_config)
            )
            if isinstance(figures, str):
                taken[name] = figures
            else:
                kept.append(figures)
    for what, unit in TABLES.items():
        samples = {
            name: kept if isinstance(kept, str) else [each for figures in kept for each in _listed(figures[what])]
            for name, kept in taken.items()
        }
        of_the_floor = [] if isinstance(samples["floor"], str) else samples["floor"]
        bench.record(
            f"fan_out, {hosts} {way} hosts: {what}", samples, unit=unit, floor="floor" if any(of_the_floor) else None
        )


def _listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


# ---- by hand


def hang_on_some(hosts: list[str]) -> str:
    """Runs over there."""
    if trickle.remote.host_name in hosts:
        time.sleep(3600)
    return "done"


async def show(count: int) -> None:
    """Connect to so many, call, time out on ten that hang, leave, and look at what is left."""
    started, memory, cpu = time.perf_counter(), own_memory(), time.process_time()
    async with trickle.open_group(trickle.Local(f"n{n}", python=sys.executable) for n in range(count)) as group:
        await group.wait_connected()
        connected = time.perf_counter() - started
        print(f"{count} hosts: connected in {connected:.1f} s, {len(group.unreachable)} are unreachable")
        print(f"CPU of the controller: {(time.process_time() - cpu) / count * 1e3:.1f} ms per host")
        durations = []
        for _ in range(20):
            begun = time.perf_counter()
            (await group.call(os.getpid)).unwrap()
            durations.append(time.perf_counter() - begun)
        first, *rest = durations
        rest.sort()
        print(f"call: first {first:.2f} s, then {rest[len(rest) // 2]:.3f} s (median), {rest[-1]:.3f} s (worst)")
        print(f"memory: controller {(own_memory() - memory) / count / 1024:.0f} KiB per host,", end=" ")
        print(f"agent {memory_of_agents() / count / 2**20:.1f} MiB each")
        hanging = list(group)[:: max(1, count // 10)][:10]
        begun = time.perf_counter()
        results = await group.options(timeout=10).call(hang_on_some, hanging)
        print(f"timeout=10, {len(hanging)} hosts hang: {results!r} in {time.perf_counter() - begun:.1f} s")
        assert set(results.failures()) == set(hanging)
        print("their verdicts:", {error.verdict for error in results.failures().values()})  # type: ignore[attr-defined]
        begun = time.perf_counter()
    print(f"left in {time.perf_counter() - begun:.1f} s; processes left: {len(descendants(os.getpid()))}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hosts"]:
        trio.run(show, int(sys.argv[2]))
    else:
        _harness.main(question="fan_out")
