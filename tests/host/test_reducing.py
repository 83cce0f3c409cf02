"""Results that are read and reduced in processes of this machine."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_parallel import _proc

import trickle
from tests import async_work, work
from tests.hosts import file_appears, is_running, local, process_ends
from trickle.testing import open_memory_host


def total(numbers: list[int]) -> tuple[int, int]:
    return sum(numbers), os.getpid()


def double(number: int) -> int:
    return 2 * number


async def test_only_what_the_function_returns_comes_back_from_another_process() -> None:
    async with trickle.open_group([local("a"), local("b")]) as group:
        results = (await group.reducing(total).call(work.give_list, 1000)).unwrap()
        again = (await group.reducing(total).call(work.give_list, 10)).unwrap()

    assert {value for value, _ in results.values()} == {499500}
    pids = {pid for _, pid in [*results.values(), *again.values()]}
    assert os.getpid() not in pids
    assert not any(is_running(pid) for pid in pids)  # they end with the block


async def test_results_above_max_result_can_be_reduced() -> None:
    async with trickle.open_host(local()) as host:
        small = host.options(max_result=100)
        with pytest.raises(trickle.UnsafeResult, match="reducing"):
            await small.call(work.give_list, 10_000)

        assert await small.reducing(len).call(work.give_list, 10_000) == 10_000


async def test_reductions_follow_each_other() -> None:
    async with trickle.open_host(local()) as host:
        assert await host.reducing(len).reducing(double).call(work.give_list, 21) == 42


async def test_a_host_in_memory_reduces_too() -> None:
    async with open_memory_host() as host:
        assert await host.reducing(len).call(work.give_list, 3) == 3


async def test_what_returns_no_result_of_a_function_cannot_be_reduced(tmp_path: Path) -> None:
    async with trickle.open_group([local("a")]) as group:
        host = group["a"].reducing(len)
        with pytest.raises(TypeError, match=r"a: stream: reducing\(\) is for what calls return"):
            async with host.stream(range, 3):
                pass
        with pytest.raises(TypeError, match="a: channel: reducing"):
            async with host.open_channel(work.add, 1):
                pass
        with pytest.raises(TypeError, match="a: process: reducing"):
            await host.run_process(["true"])
        with pytest.raises(TypeError, match="a: put: reducing"):
            await host.put(b"", tmp_path / "file")
        with pytest.raises(TypeError, match="a: open_host: reducing"):
            async with host.open_host(local("inner")):
                pass
        with pytest.raises(TypeError, match="a: open_group: reducing"):
            async with host.open_group([local("inner")]):
                pass
        reduced = group.reducing(len)
        with pytest.raises(TypeError, match="stream: reducing"):
            async with reduced.stream(range, 3):
                pass
        with pytest.raises(TypeError, match="run_process: reducing"):
            await reduced.run_process(["true"])
        with pytest.raises(TypeError, match="put: reducing"):
            await reduced.put(b"", "x")
        with pytest.raises(TypeError, match="fetch: reducing"):
            await reduced.fetch("x", tmp_path / "{host}")


async def test_sessions_reduce_too() -> None:
    async with trickle.open_host(local()) as host, host.reducing(double).session() as session:
        assert await session.call(work.count_calls) == 2
        assert await session.call(work.count_calls) == 4


class Allowed:
    number = 0


def make_allowed(number: int) -> Allowed:
    made = Allowed()
    made.number = number
    return made


def number_of(thing: Allowed) -> int:
    return thing.number


async def test_the_same_rules_hold_for_reading() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(trickle.UnsafeResult, match="web1: .*Allowed") as caught:
            await host.reducing(number_of).call(make_allowed, 7)
        assert caught.value.host == "web1"
        assert await host.options(allow=(Allowed,)).reducing(number_of).call(make_allowed, 7) == 7
        assert await host.options(trust="full").reducing(number_of).call(make_allowed, 7) == 7


def fail(value: object) -> None:
    raise LookupError(value)


class Awkward(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("awkward")


def fail_awkwardly(value: object) -> None:
    raise Awkward(1, 2)


def give_generator(value: object) -> object:
    return (each for each in ())


async def test_what_it_raises_is_raised_and_says_whose_result_it_was() -> None:
    async with trickle.open_group([local("a"), local("b")]) as group:
        results = await group.reducing(fail).call(work.add, 1)
        awkward = await group[:1].reducing(fail_awkwardly).call(work.add, 1)
        unpicklable = await group[:1].reducing(give_generator).call(work.add, 1)

    error = results.failures()["b"]
    assert isinstance(error, LookupError) and error.args == (1,)
    (note,) = error.__notes__
    assert note.startswith("\nOn this machine, reducing the result of b:\n") and "raise LookupError(value)" in note
    assert str(awkward.failures()["a"]) == "Awkward: awkward"
    assert "generator" in str(unpicklable.failures()["a"])


def kill_self(value: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once(value: object) -> None:
    os._exit(7)


def leave(value: object) -> None:
    sys.exit(f"bad record: {value}")


async def test_one_that_exits_costs_no_other_host_its_result() -> None:
    async with trickle.open_group([local("a"), local("b")]) as group:
        results = await group.reducing(leave).call(work.add, 1)

    assert [str(error) for error in results.failures().values()] == ["SystemExit: bad record: 1"] * 2


@pytest.mark.parametrize("fn", [5, async_work.sleep_and_say])
async def test_what_cannot_reduce_is_refused_at_once(fn: Any) -> None:
    async with trickle.open_group([local("a")]) as group:
        with pytest.raises(TypeError, match="a callable, and not async"):
            group.reducing(fn)
        with pytest.raises(TypeError, match="a callable, and not async"):
            group["a"].reducing(fn)


async def test_it_does_not_outlive_a_killed_program(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, trickle, trio\n"
        "def hold(path):\n"
        "    import os, pathlib\n"
        "    pathlib.Path(path + '.new').write_text(str(os.getpid()))\n"
        "    os.replace(path + '.new', path)\n"
        "    sum(range(10**13))\n"
        "async def main():\n"
        "    async with trickle.open_host(trickle.Local(python=sys.executable)) as host:\n"
        "        await host.reducing(hold).call(str, sys.argv[1])\n"
        "trio.run(main)\n"
    )
    program = subprocess.Popen([sys.executable, script, tmp_path / "pid"], cwd=Path(__file__).parents[2])

    pid = int(await file_appears(tmp_path / "pid"))
    program.kill()
    program.wait()

    await process_ends(pid)


def keep(kept: object, value: object) -> object:
    return kept, value


async def test_it_may_hold_what_hosts_may_not_be_sent() -> None:
    async with trickle.open_group([local("a")]) as group:
        before = await group.call(fail, 7)
        held = functools.partial(keep, before)
        (kept, value) = (await group.reducing(held).call(work.add, 1)).unwrap()["a"]
        refused = (await group.call(str, before)).failures()["a"]

    assert value == 1
    assert isinstance(refused, trickle.Unsendable) and "successful()" in str(refused)
    assert str(kept.failures()["a"]) == str(before.failures()["a"])


async def test_a_process_that_ends_is_told_and_others_go_on() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(trickle.WorkerDied, match="web1: the process of this machine .* signal 9") as killed:
            await host.reducing(kill_self).call(work.add, 1)
        with pytest.raises(trickle.WorkerDied, match="status 7") as exited:
            await host.reducing(exit_at_once).call(work.add, 1)

        assert (killed.value.signal, exited.value.exit_status, exited.value.host) == (9, 7, "web1")
        assert await host.reducing(double).call(work.add, 1) == 2


async def test_an_idle_process_that_was_killed_does_not_matter() -> None:
    async with trickle.open_host(local()) as host:
        _, pid = await host.reducing(total).call(work.give_list, 1)
        os.kill(pid, signal.SIGKILL)
        await process_ends(pid)


def hang(path: str) -> None:
    work.write_file(path, str(os.getpid()))
    time.sleep(3600)


async def test_a_reduction_that_is_cancelled_is_killed(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.reducing(hang).call, str, str(tmp_path / "pid"))
            pid = int(await file_appears(tmp_path / "pid"))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"returned": 1}
        assert await host.reducing(double).call(work.add, 1) == 2


async def test_a_reduction_belongs_to_the_hosts_time(tmp_path: Path) -> None:
    async with trickle.open_group([local("a")]) as group:
        (await group.reducing(double).call(work.add, 1)).unwrap()
        results = await group.options(timeout=3).reducing(hang).call(str, str(tmp_path / "pid"))

    assert isinstance(results.failures()["a"], trickle.CallTimeout)
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_leaving_the_block_ends_what_is_being_reduced(tmp_path: Path) -> None:
    raised = []

    async def reduce(host: trickle.Host) -> None:
        try:
            await host.reducing(hang).call(str, str(tmp_path / "pid"))
        except trio.ClosedResourceError as exc:
            raised.append(str(exc))

    async with trio.open_nursery() as nursery:
        async with trickle.open_host(local("web1")) as host:
            nursery.start_soon(reduce, host)
            pid = int(await file_appears(tmp_path / "pid"))
        assert not is_running(pid)

    assert raised == ["web1: closed while its result was reduced"]


async def test_a_process_that_dies_at_once_when_it_is_killed_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_and_wait(worker: _proc.SpawnProcWorker) -> None:
        worker.proc.kill()
        os.waitid(os.P_PID, worker.proc.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(_proc.SpawnProcWorker, "kill", kill_and_wait)

    async with trickle.open_host(local("web1")) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.reducing(hang).call, str, str(tmp_path / "pid"))
        pid = int(await file_appears(tmp_path / "pid"))
        nursery.cancel_scope.cancel()

    assert not is_running(pid)  # the descriptors are counted after each test


async def test_what_cannot_be_sent_there_is_refused_before_anything_runs() -> None:
    file = Path(__file__).open()
    async with trickle.open_group([local("a")]) as group:
        with pytest.raises(trickle.Unsendable):
            group.reducing(file.read)
        with pytest.raises(trickle.Unsendable):
            group["a"].reducing(file.read)
        assert group["a"].statistics().verdicts == {}
    file.close()


# ---- scripts

UNGUARDED = """
import sys
import trickle
import trio

with open("runs", "a") as file:
    file.write("run ")


class Found:
    def __init__(self):
        self.words = ["a", "b"]


FACTOR = 10


def find():
    return Found()


def count(found):
    assert isinstance(found, Found)
    return FACTOR * len(found.words)


def keep(found):
    found.words.append("c")
    return found


async def main():
    async with trickle.open_group([trickle.Local(name, python=sys.executable) for name in "ab"]) as group:
        view = group.options(allow=(Found,))
        print((await view.reducing(count).call(find)).unwrap())
        print((await view.reducing(lambda found: found.words).call(find)).unwrap())
        kept = (await view.reducing(keep).call(find)).unwrap()
        print(type(kept["a"]) is Found, kept["a"].words)


trio.run(main)
"""


@pytest.mark.parametrize("how", ["path", "module"])
def test_an_unguarded_script_is_not_run_again(how: str, tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    words = {"path": [str(script)], "module": ["-m", "unguarded"]}[how]

    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(trickle.__file__).parents[1])},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "{'a': 20, 'b': 20}",
        "{'a': ['a', 'b'], 'b': ['a', 'b']}",
        "True ['a', 'b', 'c']",
    ]
    assert (tmp_path / "runs").read_text() == "run "


BESIDE_OTHERS = """
import sys
import trickle
import trio
import trio_parallel

def double(number):
    return 2 * number

async def main():
    async with trickle.open_host(trickle.Local(python=sys.executable)) as host:
        print(await host.reducing(double).call(abs, -1), await trio_parallel.run_sync(double, 2))

if __name__ == "__main__":
    trio.run(main)
"""


def test_the_programs_own_use_of_trio_parallel_is_left_alone(tmp_path: Path) -> None:
    """Its processes import the script, as multiprocessing's do."""
    script = tmp_path / "guarded.py"
    script.write_text(BESIDE_OTHERS)

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "2 4\n", "")
