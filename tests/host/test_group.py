"""A plain group: one result for each host, whatever becomes of the others."""

import io
import math
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import trickle
from tests import work
from tests.far_groups import act
from tests.hosts import file_appears, is_running, local
from trickle.testing import open_memory_host

NOWHERE = trickle.Command([sys.executable, "-c", "import sys; sys.exit('nobody home')"], name="nowhere")


async def test_a_group_call_gives_each_hosts_result_in_the_groups_order() -> None:
    names = ["c", "a", "b"]

    async with trickle.open_group([local(name) for name in names]) as group:
        results = await group.call(work.add, 1, b=2)

    assert list(results) == names
    assert results.unwrap() == {"c": 3, "a": 3, "b": 3}
    assert list(group) == names
    assert isinstance(group["a"], trickle.Host)


async def test_what_fails_on_one_host_does_not_cost_another_its_result() -> None:
    async with trickle.open_group([local("good"), NOWHERE, local("bad")]) as group:
        results = await group.call(_fail_on_bad)

    assert results.successful() == {"good": "fine"}
    assert isinstance(results["nowhere"], trickle.Failure)
    assert isinstance(results.failures()["nowhere"], trickle.ConnectError)
    assert isinstance(results.failures()["bad"], LookupError)


def _fail_on_bad() -> str:
    from trickle import remote

    if remote.host_name == "bad":
        raise LookupError("bad")
    return "fine"


async def test_results_are_made_for_match() -> None:
    async with trickle.open_group([local("good"), local("bad")]) as group:
        results = await group.call(_fail_on_bad)

    found = []
    for name, result in results.items():
        match result:
            case trickle.Success(value):
                found.append((name, value))
            case trickle.Failure(LookupError() as error):
                found.append((name, type(error).__name__))
    assert found == [("good", "fine"), ("bad", "RemoteLookupError")]


async def test_raise_failures_raises_one_group_of_what_failed() -> None:
    async with trickle.open_group([local("good"), local("bad"), NOWHERE]) as group:
        results = await group.call(_fail_on_bad)

    with pytest.raises(ExceptionGroup, match="2 of 3 hosts failed") as caught:
        results.raise_failures()
    assert caught.group_contains(LookupError) and caught.group_contains(trickle.ConnectError)
    assert {error.host for error in caught.value.exceptions} == {"bad", "nowhere"}  # type: ignore[attr-defined]


def _raise(value: object) -> None:
    raise LookupError(value)


async def test_every_failure_has_its_host_whatever_raised(tmp_path: Path) -> None:
    async with trickle.open_group([local("one"), local("two")]) as group:
        failed = [
            await group.call(_raise, 1),
            await group.call(abs, (each for each in ())),  # type: ignore[arg-type]
            await group.reducing(_raise).call(abs, -1),
            await group.put(tmp_path / "missing", tmp_path / "there"),
            await group.fetch(sys.executable, tmp_path / "missing" / "{host}"),
            await group.fetch(tmp_path / "missing", tmp_path / "{host}"),
            await group.run_process(["false"]),
            await group.run_process(["no-such-command"]),
            await group.options(timeout=0.5).call(time.sleep, 60),
        ]
        async with group.stream(_raise, 1) as items:  # type: ignore[type-var]
            streamed = [item async for item in items]
    failed.append(await group.call(abs, 1))

    for results in [*failed, trickle.Results(dict(streamed))]:  # type: ignore[arg-type]
        assert {name: error.host for name, error in results.failures().items()} == {  # type: ignore[attr-defined]
            "one": "one",
            "two": "two",
        }


class Odd(Exception):
    @property
    def host(self) -> str:
        raise RuntimeError("no host")

    def __reduce__(self) -> object:
        return Odd, ()


def _raise_odd(value: object) -> None:
    raise Odd


async def test_an_error_with_ideas_of_its_own_about_hosts_costs_no_other_its_result() -> None:
    async with trickle.open_group([local("one"), local("two")]) as group:
        results = await group.reducing(_raise_odd).call(abs, 1)

    assert [type(error) for error in results.failures().values()] == [Odd, Odd]


async def test_a_timeout_over_a_group_keeps_the_answers_that_came(tmp_path: Path) -> None:
    async with trickle.open_group([local("quick"), local("slow")]) as group:
        (await group.call(act, {})).unwrap()  # so that everything has been sent
        results = await group.options(timeout=5).call(act, {"slow": ("hang", str(tmp_path))})

        assert results.successful() == {"quick": "quick"}
        error = results.failures()["slow"]
        assert isinstance(error, trickle.CallTimeout) and isinstance(error, trio.TooSlowError)
        assert (error.host, error.verdict, error.stage) == ("slow", "cancelled", "running")
        assert error.remote_stack is not None and "in hang" in error.remote_stack
        assert "slow: no result within 5 s" in str(error)
        assert not is_running(int((tmp_path / "slow").read_text()))
        assert (await group.call(work.add, 1)).unwrap() == {"quick": 1, "slow": 1}


async def test_a_host_timed_out_while_connecting_names_the_stage() -> None:
    hangs = trickle.Command([sys.executable, "-c", "import sys; sys.stdin.read()"], name="hangs")

    async with trickle.open_group([local(), hangs]) as group:
        await group["here"].call(work.pid)
        results = await group.options(timeout=2).call(work.add, 1)
        error = results.failures()["hangs"]

        assert isinstance(error, trickle.CallTimeout)
        assert error.stage == "connecting: waiting for the agent"
        assert "hangs" not in group.unreachable  # nobody waits for it any more; the next verb connects anew
        assert results.successful() == {"here": 1}


async def test_a_scope_of_the_callers_own_discards_the_answers() -> None:
    results = None

    async with trickle.open_group([local("a"), local("b")]) as group:
        await group.wait_connected()
        with trio.move_on_after(0.3) as scope:
            results = await group.call(time.sleep, 3600)

    assert scope.cancelled_caught
    assert results is None


async def test_unreachable_hosts_are_known_once_they_have_failed() -> None:
    async with trickle.open_group([local(), NOWHERE]) as group:
        await group.wait_connected()

        assert list(group.unreachable) == ["nowhere"]
        assert "nobody home" in group.unreachable["nowhere"].stderr
        assert group.statistics()["here"].state == "connected"
        assert group.statistics()["nowhere"].state == "lost"


async def test_leaving_a_group_does_not_wait_for_hosts_that_hang() -> None:
    hangs = trickle.Command([sys.executable, "-c", "import sys; sys.stdin.read()"], name="hangs")

    async with trickle.open_group([hangs]):
        pass


def test_names_in_a_group_are_unique() -> None:
    async def main() -> None:
        async with trickle.open_group([local("a"), local("a")]):
            pass

    with pytest.raises(ValueError, match="two hosts of this group are called 'a'"):
        trio.run(main)


async def test_a_mapping_of_tunnels_is_none_of_names() -> None:
    with pytest.raises(TypeError, match="a mapping of tunnels: give its values"):
        async with trickle.open_group({"a": local("a")}):
            pass


async def test_an_empty_group_gives_empty_results() -> None:
    async with trickle.open_group([]) as group:
        results = await group.call(work.add, 1)

    assert dict(results) == {}
    results.raise_failures()
    assert str(results) == ""


async def test_group_options_make_views() -> None:
    async with trickle.open_group([local()]) as group:
        view = group.options(env={"COLOUR": "red"})

        assert (await view.call(work.environment, "COLOUR")).unwrap() == {"here": "red"}
        assert (await group.call(work.environment, "COLOUR")).unwrap() == {"here": None}
        with pytest.raises(ValueError, match="timeout"):
            group.options(timeout=0)
        assert (await group.options(timeout=math.inf).call(work.add, 1)).unwrap() == {"here": 1}


async def test_an_exception_of_the_body_is_raised_as_itself() -> None:
    with pytest.raises(ZeroDivisionError):
        async with trickle.open_group([local("a"), local("b")]):
            raise ZeroDivisionError


def test_results_print_as_a_table() -> None:
    error = trickle.RemoteError()
    error.host, error.type_name, error._text = "mail", "builtins.KeyError", "'x'\nand more"
    results = trickle.Results(
        {
            "web1": trickle.Success(3),
            "db": trickle.Failure(ValueError("db: no")),
            "mail": trickle.Failure(error),
            "long": trickle.Success("x" * 1000),
            "rest": trickle.Failure(trickle.NotNeeded("rest: not needed")),
        }
    )

    lines = str(results).splitlines()
    assert lines[0] == "web1  3"
    assert lines[1] == "db    ValueError: no"
    assert lines[2] == "mail  KeyError: 'x'"
    assert lines[3].endswith("xxx...") and len(lines[3]) < 250
    assert lines[4] == "rest  NotNeeded: not needed"
    assert repr(results) == "<trickle.Results: 2 successful, 2 failed, 1 not needed>"


def test_hosts_that_were_not_needed_have_not_failed() -> None:
    results = trickle.Results({"a": trickle.Success(1), "b": trickle.Failure(trickle.NotNeeded("b: not needed"))})

    results.raise_failures()

    assert results.unwrap() == {"a": 1}
    assert list(results.failures()) == ["b"]


async def test_a_group_belongs_to_its_own_run() -> None:
    async with trickle.open_group([local()]) as group:

        def elsewhere() -> trickle.Results[int]:
            return trio.run(group.call, work.add, 1)

        results = await trio.to_thread.run_sync(elsewhere)

    assert "another trio.run" in str(results.failures()["here"])


async def test_what_can_be_read_only_once_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    async def contents() -> AsyncIterator[bytes]:
        yield b"x"

    (tmp_path / "file").write_bytes(b"old")
    async with trickle.open_group([local("a"), local("b")]) as group:
        for once in (io.BytesIO(b"new"), contents(), [b"new"]):
            with pytest.raises(TypeError, match="for a group it is a path or bytes"):
                await group.put(once, tmp_path / "file")  # type: ignore[arg-type]
        sending, receiving = trio.testing.memory_stream_one_way_pair()
        with pytest.raises(TypeError, match="for a group it is bytes or None"):
            await group.run_process(["cat"], stdin=receiving)  # type: ignore[arg-type]
        await sending.aclose()

    assert (tmp_path / "file").read_bytes() == b"old"


async def _call(group: trickle.Group, paths: dict[str, str]) -> None:
    await group.call(_hang_at, paths)


async def _as_completed(group: trickle.Group, paths: dict[str, str]) -> None:
    async with group.as_completed(_hang_at, paths) as outcomes:
        await outcomes.receive()


async def _map(group: trickle.Group, paths: dict[str, str]) -> None:
    async with group.map(_hang_at, [paths, paths]) as outcomes:
        await outcomes.receive()


def _hang_at(paths: dict[str, str]) -> None:
    work.say_and_run(paths[str(trickle.remote.host_name)])


@pytest.mark.parametrize("verb", [_call, _as_completed, _map])
async def test_a_deadline_around_a_group_says_where_each_host_was(
    verb: Callable[[trickle.Group, dict[str, str]], Awaitable[None]], tmp_path: Path
) -> None:
    paths = {name: str(tmp_path / name) for name in "ab"}

    async def expire(scope: trio.CancelScope) -> None:
        for path in paths.values():
            await file_appears(Path(path))
        scope.deadline = trio.current_time()

    async with trickle.open_group([local("a"), local("b")]) as group, trio.open_nursery() as nursery:
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(3600) as scope:
            nursery.start_soon(expire, scope)
            await verb(group, paths)

    shown = "".join(traceback.format_exception(caught.value))
    for name in paths:
        assert f"{name}: at its deadline the call was here" in shown
    assert "in _hang_at" in shown


async def test_verdicts_that_there_were_not_count_as_none() -> None:
    async with open_memory_host() as host:
        await host.call(work.add, 1)

        assert host.statistics().verdicts == {"returned": 1}
        assert host.statistics().verdicts["killed"] == 0


async def test_progress_says_running_also_of_hosts_that_are_connected() -> None:
    states: list[str] = []
    async with trickle.open_group([local("a")]) as group:
        (await group.call(work.add, 1)).unwrap()
        (await group.options(progress=lambda progress: states.append(progress.state)).call(time.sleep, 0.1)).unwrap()

    assert states[-2:] == ["running", "done"]


async def test_the_time_of_a_slow_receiver_is_not_the_hosts() -> None:
    received = []

    async with trickle.open_group([local("web1"), local("web2")]) as group:
        await group.wait_connected()
        async with group.options(timeout=5).stream(range, 3) as items:
            async for _, item in items:
                received.append(item)
                await trio.sleep(1.2)

    assert sorted(repr(item) for item in received) == sorted(repr(trickle.Success(n)) for n in (0, 1, 2) * 2)


async def test_a_command_that_failed_is_tried_again_if_it_is_safe(tmp_path: Path) -> None:
    command = ["sh", "-c", "test -e tried || { touch tried; exit 1; }"]

    async with trickle.open_group([local()]) as group:
        results = await group.options(repeatable=True, retries=1).run_process(command, cwd=tmp_path)

    assert [done.returncode for done in results.unwrap().values()] == [0]


def _run_false(value: object) -> None:
    subprocess.run(["false"], check=True)


async def test_a_command_that_failed_while_reducing_is_no_reason_to_call_again() -> None:
    async with trickle.open_group([local()]) as group:
        results = await group.options(repeatable=True, retries=1).reducing(_run_false).call(abs, 1)

        assert isinstance(results["here"], trickle.Failure)
        assert isinstance(results["here"].error, subprocess.CalledProcessError)
        assert group["here"].statistics().verdicts == {"returned": 1}
