"""Memory that runs out, for real: the kernel's killer takes the work that ate it, and nothing else."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import work
from tests.hosts import file_appears, is_running, local
from tests.requirements import require

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux is known to do this")

LIMIT = 200 * 2**20  # bytes, for an agent and all its work


class MemoryCgroup:
    """A group of processes that may use so much memory together, of either version of cgroups.

    Attributes:
      tunnel: an agent on this machine that starts in there, and so does all its work.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_v1 = (directory / "memory.limit_in_bytes").exists()
        enter = ["sh", "-c", f'echo $$ >"{directory}/cgroup.procs" && exec "$@"', "enter"]
        self.tunnel = trickle.Command(enter, name="small", python=sys.executable)

    def limit(self) -> None:
        """Set the limit, also of what may go to swap."""
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self.is_v1 else ("memory.max",)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # where swap is not counted
                (self.directory / name).write_text(str(LIMIT))
        with contextlib.suppress(FileNotFoundError):
            (self.directory / ("memory.swappiness" if self.is_v1 else "memory.swap.max")).write_text("0")

    def processes(self) -> set[int]:
        """The living processes in there."""
        return {pid for pid in map(int, (self.directory / "cgroup.procs").read_text().split()) if is_running(pid)}

    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        counts = (self.directory / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in counts.splitlines())["oom_kill"])


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    """A cgroup of our own, which has to be empty at the end of the test."""
    parent = find_memory_controller()
    if parent is None:
        require("cgroup", "no cgroup with a memory controller on this machine")
    directory = parent / f"trickle-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        directory.mkdir()
    except OSError as exc:
        require("cgroup", f"this machine lets us make no cgroups: {exc}")
    try:
        made = MemoryCgroup(directory)
        made.limit()
        yield made
        assert made.processes() == set()
    finally:
        directory.rmdir()


def find_memory_controller() -> Path | None:
    """Where cgroups are made that can limit memory."""
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, directory, kind, options, *_ = line.split()
        controllers = Path(directory, "cgroup.subtree_control")
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(directory)
        if kind == "cgroup2" and controllers.exists() and "memory" in controllers.read_text().split():
            return Path(directory)
    return None


async def test_the_worker_that_ate_the_memory_is_killed_and_nothing_else(cgroup: MemoryCgroup, tmp_path: Path) -> None:
    beside, eater = tmp_path / "beside", tmp_path / "eater"
    results = []

    async def call_beside() -> None:
        results.append(await host.call(work.leave_pid_and_wait_for, str(beside), str(tmp_path / "go on")))

    async with trickle.open_host(cgroup.tunnel) as host:
        broker = host.info.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_beside)
            worker_beside = int(await file_appears(beside))
            with pytest.raises(trickle.WorkerDied, match=r"^small: .*signal 9 \(SIGKILL\).*out-of-memory") as caught:
                await host.call(work.eat_memory, str(eater))
            assert cgroup.kills() == 1
            assert cgroup.processes() == {broker, worker_beside}
            (tmp_path / "go on").touch()

        assert (caught.value.signal, caught.value.exit_status) == (signal.SIGKILL, None)
        assert results == [worker_beside]
        assert host.statistics().verdicts == {"died": 1, "returned": 1}
        assert await host.call(work.add, 1, 2) == 3
        assert is_running(broker)
    assert not [pid for pid in eater.read_text().split() if is_running(int(pid))]


async def test_a_child_that_ate_the_memory_is_the_functions_own_affair(cgroup: MemoryCgroup) -> None:
    async with trickle.open_host(cgroup.tunnel) as host:
        worker = await host.call(work.pid)

        assert await host.call(work.let_a_child_eat_memory) == -signal.SIGKILL

        assert cgroup.kills() == 1
        assert await host.call(work.pid) == worker
        assert host.statistics().verdicts == {"returned": 3}


async def test_one_call_after_the_other_may_eat_all_the_memory(cgroup: MemoryCgroup, tmp_path: Path) -> None:
    async with trickle.open_host(cgroup.tunnel) as host:
        for number in range(3):
            with pytest.raises(trickle.WorkerDied):
                await host.call(work.eat_memory, str(tmp_path / str(number)))

        assert cgroup.kills() == 3
        assert await host.call(work.add, 1, 2) == 3


async def test_workers_and_what_they_start_are_rather_killed_than_the_broker() -> None:
    async with trickle.open_host(local()) as host:
        worker, child = await host.call(work.own_and_childs_oom_score_adj)

        assert (worker, child) == (500, 500)
        assert number_in(host.info.pid, "oom_score_adj") == number_in(os.getpid(), "oom_score_adj")
        # What the kernel goes by, of two processes of one size: a worker is a fork of the broker.
        assert number_in(await host.call(work.pid), "oom_score") > number_in(host.info.pid, "oom_score")


def number_in(pid: int, name: str) -> int:
    return int(Path(f"/proc/{pid}/{name}").read_text())


async def test_a_limit_of_the_address_space_is_an_error_of_the_call_that_met_it() -> None:
    tunnel = trickle.Command(["sh", "-c", 'ulimit -v 500000; exec "$@"', "x"], name="small", python=sys.executable)

    async with trickle.open_host(tunnel) as host:
        with pytest.raises(trickle.RemoteError, match="^small: MemoryError") as caught:
            await host.call(work.give_bytes, 2**30)

        assert isinstance(caught.value, MemoryError)
        assert host.statistics().verdicts == {"raised": 1}
        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.parametrize("size", [40_000_000, 100_000_000], ids=["in whole", "in parts"])
async def test_arguments_that_there_is_no_room_for_are_an_error_of_their_call(size: int) -> None:
    async with trickle.open_host(local()) as host:
        worker = await host.call(work.limit_memory, 50_000_000)
        with pytest.raises(trickle.RemoteError, match="^here: MemoryError: there is no room") as caught:
            await host.call(work.size_of, bytes(size))

        assert isinstance(caught.value, MemoryError)
        assert await host.call(work.pid) == worker
