"""Calls that are handed to a worker while it still runs another one: that shows nowhere but in the time they take."""

import functools
import math
import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

import trickle
from tests import work
from tests.hosts import local
from trickle._agent import broker

MANY = 3 * broker.AHEAD  # more than one worker is handed


async def one_worker(host: trickle.Host) -> None:
    """Have the host's only worker started, with what is to run there, so that calls are handed to it."""
    await host.call(work.pid)


async def test_calls_behind_one_that_takes_long_go_to_other_workers(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pids = []

    async def call() -> None:
        pids.append(await host.call(os.getpid))

    async with trickle.open_host(local(), workers=2) as host, trio.open_nursery() as nursery:
        await one_worker(host)
        nursery.start_soon(host.call, Path.read_text, fifo)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as others:
            for _ in range(MANY):
                others.start_soon(call)
        with open(fifo, "w") as file:  # which the first has waited for until now
            file.write("go on")

    assert len(pids) == MANY


async def test_a_call_behind_another_that_is_cancelled_never_starts(tmp_path: Path) -> None:
    fifo, touched = tmp_path / "fifo", tmp_path / "touched"
    os.mkfifo(fifo)

    async with trickle.open_host(local(), workers=1) as host, trio.open_nursery() as nursery:
        await one_worker(host)
        nursery.start_soon(host.call, Path.read_text, fifo)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as others:
                for _ in range(MANY):
                    others.start_soon(host.call, work.append, str(touched), "x")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        verdicts = host.statistics().verdicts
        with open(fifo, "w") as file:
            file.write("go on")

    assert verdicts == {"returned": 1, "never started": MANY}
    assert not touched.exists()


async def test_each_call_is_said_to_have_printed_what_it_printed() -> None:
    lines: list[trickle.OutputLine] = []
    own: Counter[str] = Counter()

    def keep(text: str, line: trickle.OutputLine) -> None:
        lines.append(line)
        own[line.text] += line.text == text

    async with trickle.open_host(local(), workers=1) as host, trio.open_nursery() as nursery:
        await one_worker(host)
        for number in range(MANY):
            text = f"line {number}"
            view = host.options(output=functools.partial(keep, text))
            nursery.start_soon(view.call, print, text)
            nursery.start_soon(host.call, abs, -1)  # which prints nothing

    assert own == {f"line {number}": 1 for number in range(MANY)}
    assert len({line.call for line in lines}) == len(lines) == MANY


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_call_that_imports_does_not_keep_those_behind_it(workers: int) -> None:
    results = []

    async def call() -> None:
        results.append(await host.call(abs, -1))

    async with trickle.open_host(local(), workers=workers) as host:
        await one_worker(host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.import_by_name, "tests.network")
            for _ in range(MANY):
                nursery.start_soon(call)

    assert results == [1] * MANY


async def test_what_was_handed_to_a_worker_that_dies_runs_elsewhere() -> None:
    async def die() -> None:
        with pytest.raises(trickle.WorkerDied):
            await host.call(os._exit, 3)

    async with trickle.open_host(local(), workers=1) as host:
        await one_worker(host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            for _ in range(MANY):
                nursery.start_soon(host.call, abs, -1)

        assert host.statistics().verdicts == {"returned": MANY + 1, "died": 1}


@pytest.mark.parametrize("seed", [1, 2])
async def test_calls_that_come_and_go_run_once_or_never(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    path = tmp_path / "ran"
    path.touch()
    returned: set[int] = set()
    lines: list[trickle.OutputLine] = []

    async def call(number: int) -> None:
        seconds, limit = random.choice([0, 0, 0, 0.001, 0.02]), random.choice([math.inf, math.inf, 0.0005, 0.005, 0.05])
        with trio.move_on_after(limit):
            returned.add(await host.call(_run, str(path), number, seconds, random.random() < 0.2))

    async with trickle.open_host(local(), workers=3, output=lines.append) as host:
        count = 0
        for size in random.choices([1, 3, 20, 60], k=6):
            async with trio.open_nursery() as nursery:
                for _ in range(size):
                    count += 1
                    nursery.start_soon(call, count)
        verdicts = Counter(host.statistics().verdicts)

    ran = [int(line) for line in path.read_text().split()]
    assert len(ran) == len(set(ran)) and returned <= set(ran)
    assert len(ran) <= verdicts.total() - verdicts["never started"]
    assert set(verdicts) <= {"returned", "cancelled", "killed", "never started"}
    labels = Counter(line.call for line in lines if line.call is not None)
    assert not labels or max(labels.values()) == 1


def _run(path: str, number: int, seconds: float, prints: bool) -> int:
    with open(path, "a") as file:
        file.write(f"{number}\n")
    if prints:
        print(f"call {number}")
    time.sleep(seconds)
    return number
