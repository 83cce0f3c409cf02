"""What becomes of remote work whose scope exits: it is over, and the verdict is true."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel

import trickle
from tests import flows, torture, work
from tests.hosts import file_appears, is_running, is_stopped, local, process_ends, running_below
from trickle import _host_core, _link
from trickle._module_server import ModuleServer
from trickle._wire.connection import CREDIT
from trickle.abc import Tunnel


async def test_a_cancelled_call_is_over_when_its_scope_exits(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.say_and_run, str(path))
            pid = int(await file_appears(path))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_host_survives_a_cancelled_call(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with trio.move_on_after(0.2):
            await host.call(time.sleep, 3600)

        assert await host.call(work.add, 1, 2) == 3


async def test_finally_blocks_run_within_the_grace_period(far: Tunnel, shared: Path) -> None:
    path = shared / "cleaned"

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.clean_up_then, str(path))
            await file_appears(shared / "cleaned.started")
            nursery.cancel_scope.cancel()

        assert path.read_text() == "clean"
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_cleaning_up_beyond_the_grace_period_is_killed(far: Tunnel, shared: Path) -> None:
    path = shared / "cleaned"

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=0.1).call, work.clean_up_then, str(path), 3600)
            pid = int(await file_appears(shared / "cleaned.started"))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert not path.exists()
        assert host.statistics().verdicts == {"killed": 1}


async def test_code_that_swallows_everything_is_killed(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=0.1).call, work.refuse_to_stop, str(path))
            pid = int(await file_appears(path))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"killed": 1}


async def test_children_are_gone_whatever_group_or_session_they_moved_to(far: Tunnel, shared: Path) -> None:
    path = shared / "pids"

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.start_children, str(path))
            pids = [int(pid) for pid in (await file_appears(path)).split()]
            assert all(is_running(pid) for pid in pids)
            nursery.cancel_scope.cancel()

        assert not any(is_running(pid) for pid in pids)


async def test_a_verdict_returned_returns_the_value(far: Tunnel, shared: Path) -> None:
    results = []

    async def call(host: trickle.Host) -> None:
        results.append(await host.call(work.return_anyway, str(shared / "started")))

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(call, host)
        await file_appears(shared / "started")
        nursery.cancel_scope.cancel()

    assert results == ["came anyway"]
    assert host.statistics().verdicts == {"returned": 1}


async def test_a_verdict_raised_raises(far: Tunnel, shared: Path) -> None:
    errors = []

    async def call(host: trickle.Host) -> None:
        try:
            await host.call(work.raise_otherwise, str(shared / "started"))
        except LookupError as exc:
            errors.append(exc)

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(call, host)
        await file_appears(shared / "started")
        nursery.cancel_scope.cancel()

    assert [error.args for error in errors] == [("while cleaning up",)]


async def test_a_worker_into_which_cancellation_was_raised_is_not_used_again(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        first = await host.call(work.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.say_and_run, str(shared / "started"))
            assert await file_appears(shared / "started") == str(first)
            nursery.cancel_scope.cancel()
        second = await host.call(work.pid)

    assert first != second


async def test_an_idle_worker_that_is_stopped_is_not_given_the_next_call(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(work.pid)
        os.kill(pid, signal.SIGSTOP)
        await process_ends(pid)

        assert await host.call(work.add, 1, 2) == 3


async def test_a_session_that_is_stopped_between_two_calls_keeps_its_worker(far: Tunnel) -> None:
    async with trickle.open_host(far) as host, host.session() as session, trio.open_nursery() as nursery:
        pid = await session.call(work.pid)
        os.kill(pid, signal.SIGSTOP)
        while not is_stopped(pid):
            await trio.sleep(0.005)
        nursery.start_soon(session.call, work.pid)
        assert await host.call(work.add, 1, 2) == 3  # by now the agent knows
        os.kill(pid, signal.SIGCONT)

        assert await session.call(work.pid) == pid


async def test_an_exception_beside_a_call_ends_it(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.call, work.clean_up_then, str(shared / "cleaned"))
                await file_appears(shared / "cleaned.started")
                raise ZeroDivisionError

        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert (shared / "cleaned").read_text() == "clean"
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_a_host_that_gives_no_verdict_is_lost_and_its_work_ends(
    far: Tunnel, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_host_core, "VERDICT_SLACK", 0.5)
    errors = []

    async def another_call(host: trickle.Host) -> None:
        try:
            await host.call(work.say_and_run, str(shared / "other"))
        except trickle.HostLost as exc:
            errors.append(str(exc))

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as others:
            others.start_soon(another_call, host)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.options(grace_period=0).call, work.say_and_run, str(shared / "one"))
                pids = [int(await file_appears(shared / name)) for name in ("one", "other")]
                os.kill(host.info.pid, signal.SIGSTOP)
                nursery.cancel_scope.cancel()
        assert "web1: no verdict on a cancelled call within 0.5 s" in errors[0]
        assert host.statistics().verdicts == {"unknown": 2}
        assert host.statistics().state == "lost"
        with contextlib.suppress(ProcessLookupError):  # where it is a child of ours, it has been killed
            os.kill(host.info.pid, signal.SIGCONT)
        for pid in pids:
            await process_ends(pid)


async def test_a_timeout_leaves_the_other_calls_alone(far: Tunnel, shared: Path) -> None:
    results = []

    async def long_call(host: trickle.Host) -> None:
        results.append(await host.call(_wait_for_file, str(shared / "go")))

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(long_call, host)
        for _ in range(3):
            with trio.move_on_after(0.1):
                await host.call(time.sleep, 3600)
        (shared / "go").touch()

    assert results == ["went"]


def _wait_for_file(path):  # type: ignore[no-untyped-def]
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return "went"


async def test_a_call_that_is_cancelled_before_it_is_sent_never_starts(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.call(work.write_file, str(shared / "ran"), "ran")

    assert not (shared / "ran").exists()


async def test_a_call_that_waits_for_a_worker_never_starts_when_cancelled(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far, workers=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.call, work.say_and_run, str(shared / "first"))
        await file_appears(shared / "first")
        async with trio.open_nursery() as waiting:
            waiting.start_soon(host.call, work.write_file, str(shared / "second"), "ran")
            while not host.statistics().calls_waiting:
                await trio.lowlevel.checkpoint()
            async with host.session() as session:
                await session.call(work.pid)  # it was sent behind the other: the agent has both
            waiting.cancel_scope.cancel()
        verdicts = dict(host.statistics().verdicts)
        nursery.cancel_scope.cancel()

    assert verdicts == {"returned": 1, "never started": 1}
    assert not (shared / "second").exists()


async def test_a_call_cancelled_while_its_arguments_are_sent_never_starts(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        await host.call(work.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.size_of, bytes(200_000_000))
            while host.statistics().bytes_sent < 1_000_000:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "never started": 1}
        assert await host.call(work.size_of, bytes(1_000_000)) == 1_000_000


async def test_a_call_cancelled_while_its_result_is_on_the_way_leaves_the_host_usable(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(work.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.give_bytes, 200_000_000)
            while host.statistics().bytes_received < 1_000_000:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "cancelled": 1}
        assert await host.call(work.pid) == pid  # nothing was raised in this worker
        assert len(await host.call(work.give_bytes, 1_000_000)) == 1_000_000


async def test_a_scope_that_is_given_more_time_is_noticed(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        await host.call(work.pid)
        with trio.move_on_after(1.0) as scope:
            async with trio.open_nursery() as nursery:

                async def give_more_time() -> None:
                    while not host.statistics().calls_running:
                        await trio.lowlevel.checkpoint()
                    scope.deadline += 60

                nursery.start_soon(give_more_time)
                await host.call(time.sleep, 2.5)  # longer than the first deadline and the agent's second of patience

    assert not scope.cancelled_caught
    assert host.statistics().verdicts == {"returned": 2}


async def test_the_agent_keeps_deadlines_itself_when_the_controller_is_stuck(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(file_appears, path)
        with trio.move_on_after(2.0):  # in which it has to start
            async with trio.open_nursery() as inner:
                inner.start_soon(host.call, work.say_and_run, str(path))
                pid = int(await file_appears(path))
                while is_running(pid):  # blocks this loop: its own scope cannot act
                    time.sleep(0.05)

    assert host.statistics().verdicts == {"cancelled": 1}


@pytest.mark.parametrize("verb", ["stream", "open_channel", "open_process"])
async def test_the_agent_keeps_the_deadlines_of_what_flows_too(verb: str, far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host:
        await host.call(work.pid)
        with trio.CancelScope(deadline=trio.current_time() + 2.0):  # in which it has to start
            if verb == "open_process":
                opened: contextlib.AbstractAsyncContextManager[object] = host.open_process(
                    ["sh", "-c", f"echo $$ >{path}.new; mv {path}.new {path}; exec sleep 3600"]
                )
            else:
                opened = getattr(host, verb)(work.say_and_flow, str(path))
            async with opened:
                pid = int(await file_appears(path))
                while is_running(pid):  # this loop's own scope cannot act
                    time.sleep(0.05)

        assert host.statistics().verdicts == {"returned": 1, "cancelled": 1}


async def test_an_agent_that_keeps_a_deadline_itself_knows_the_grace_period(
    far: Tunnel, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_link, "GRACE_PERIOD", 0.1)  # what an agent goes by that was told of no other
    path = shared / "cleaned"

    async with trickle.open_host(far) as host:
        await host.call(work.pid)
        with trio.CancelScope(deadline=trio.current_time() + 2.0):  # in which it has to start
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.options(grace_period=60).call, work.clean_up_then, str(path), 1.0)
                await file_appears(shared / "cleaned.started")
                while is_running(int((shared / "cleaned.started").read_text())):  # this loop's own scope cannot act
                    time.sleep(0.05)

    assert path.exists()
    assert host.statistics().verdicts == {"returned": 1, "cancelled": 1}


async def test_time_left_and_check_cancelled_are_harmless_here() -> None:
    trickle.remote.check_cancelled()

    assert trickle.remote.time_left() == float("inf")
    assert trickle.remote.host_name is None


async def test_time_left_and_host_name_are_known_over_there(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with trio.fail_after(100):
            left, name = await host.call(_ask_remote)
        forever, _ = await host.call(_ask_remote)

    assert 50 < left <= 100
    assert forever == float("inf")
    assert name == "web1"


def _ask_remote():  # type: ignore[no-untyped-def]
    from trickle import remote

    return remote.time_left(), remote.host_name


async def test_a_worker_that_is_killed_is_told_from_one_that_exits(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.WorkerDied, match="web1: .*signal 9") as killed:
            await host.call(work.kill_self)
        with pytest.raises(trickle.WorkerDied, match="web1: .*status 7") as exited:
            await host.call(work.exit_at_once, 7)

        assert (killed.value.signal, killed.value.exit_status) == (9, None)
        assert (exited.value.signal, exited.value.exit_status) == (None, 7)
        assert host.statistics().verdicts == {"died": 2}
        assert await host.call(work.add, 1) == 1


async def test_the_death_of_a_worker_is_noticed_where_the_signal_of_it_was_blocked() -> None:
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        async with trickle.open_host(local()) as host:
            with pytest.raises(trickle.WorkerDied, match="exited with status 3"):
                await host.call(work.exit_at_once, 3)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


async def test_an_agent_that_is_killed_in_mid_call_is_a_lost_host(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.HostLost, match="web1: ") as caught:
            async with trio.open_nursery() as nursery:

                async def kill_agent() -> None:
                    await file_appears(path)
                    os.kill(host.info.pid, signal.SIGKILL)

                nursery.start_soon(kill_agent)
                try:
                    await host.call(work.say_and_run, str(path))
                except trickle.HostLost:
                    nursery.cancel_scope.cancel()
                    raise_later = True
            assert raise_later
            await host.call(work.pid)
        await process_ends(int(path.read_text()))

        assert caught.value.host == "web1"
        assert host.statistics().state == "lost"
        assert host.statistics().verdicts == {"unknown": 1}


async def test_a_lost_host_comes_back_when_asked_to(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.HostLost):
            await host.call(os.kill, host.info.pid, signal.SIGKILL)
        with pytest.raises(trickle.HostLost, match="reconnect=True"):
            await host.call(work.pid)
        again = host.options(reconnect=True)

        assert await again.call(work.add, 1, 2) == 3
        assert await host.call(work.add, 1, 2) == 3


async def test_a_scope_around_open_host_that_is_cancelled_in_mid_call_gets_its_verdict(
    far: Tunnel, shared: Path
) -> None:
    path = shared / "cleaned"

    with trio.CancelScope() as scope:
        async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.clean_up_then, str(path))
            await file_appears(shared / "cleaned.started")
            scope.cancel()

    assert scope.cancelled_caught
    assert path.read_text() == "clean"
    assert host.statistics().verdicts == {"cancelled": 1}


async def test_a_body_that_raises_ends_the_calls_and_raises_as_itself(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            async with trickle.open_host(far) as host:
                nursery.start_soon(_call_and_expect_close, host, path)
                pid = int(await file_appears(path))
                raise ZeroDivisionError

        assert not is_running(pid)


async def _call_and_expect_close(host: trickle.Host, path: Path) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await host.call(work.say_and_run, str(path))


async def test_an_exception_of_the_body_is_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with trickle.open_host(local()):
            raise ZeroDivisionError


async def test_a_body_that_raises_while_it_is_cancelled_raises_that(far: Tunnel) -> None:
    with pytest.raises(LookupError), trio.CancelScope() as scope:
        async with trickle.open_host(far) as host:
            scope.cancel()
            try:
                await host.call(time.sleep, 3600)
            finally:
                raise LookupError


async def test_aclose_gives_calls_of_other_tasks_their_verdicts(far: Tunnel, shared: Path) -> None:
    path = shared / "started"

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(_call_and_expect_close, host, path)
        pid = int(await file_appears(path))
        await host.aclose()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"cancelled": 1}


LEAVE = [work.leave_a_child, work.leave_a_fork, work.leave_an_orphan, work.leave_a_daemon]


async def test_aclose_in_a_cancelled_scope_does_not_wait_for_the_grace_period(far: Tunnel, shared: Path) -> None:
    async def call(host: trickle.Host) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await host.options(grace_period=3600).call(torture.swallows_every_base_exception, str(shared / "started"))

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        nursery.start_soon(call, host)
        pid = int(await file_appears(shared / "started"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.options(grace_period=3600).aclose()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"killed": 1}


async def test_ctrl_c_ends_the_wait_for_a_verdict_and_leaving_does_the_rest(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(_INTERRUPTED_WHILE_IT_WAITS)

    done = await trio.run_process(
        [sys.executable, str(script), str(tmp_path / "pid")], check=False, capture_stdout=True, capture_stderr=True
    )

    assert (done.stdout.decode(), done.stderr) == ("call: KeyboardInterrupt\nprogram: KeyboardInterrupt\n", b"")
    assert not is_running(int((tmp_path / "pid").read_text()))


_INTERRUPTED_WHILE_IT_WAITS = """
import os, signal, sys, trio, trickle

def swallow(path):
    import os, time
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            os.kill(int(os.environ["CONTROLLER"]), 2)  # the cancel is here: its caller waits

async def cancel_when_it_runs(path, scope):
    while not os.path.exists(path):
        await trio.sleep(0.01)
    scope.cancel()

async def main(path):
    async with trickle.open_host(trickle.Local(python=sys.executable)) as host:
        view = host.options(grace_period=3600, env={"CONTROLLER": str(os.getpid())})
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_it_runs, path, scope)
                try:
                    await view.call(swallow, path)
                except BaseException as exc:
                    print("call:", type(exc).__name__)
                    raise

try:
    trio.run(main, sys.argv[1])
except BaseException as exc:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    print("program:", type(exc).__name__)
"""


@pytest.mark.parametrize("leave", LEAVE, ids=lambda leave: leave.__name__)
async def test_what_a_call_left_running_ends_with_the_host(leave: Callable[[], int], far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(leave)

        assert is_running(pid)

    assert not is_running(pid)


async def test_threads_and_atexit_do_not_hold_a_host_up(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        await host.call(work.leave_a_thread)
        await host.call(work.at_exit, str(shared / "ran"))

    assert (shared / "ran").read_text() == "ran"


async def test_a_handler_of_atexit_that_does_not_end_is_killed_after_the_grace_period(
    far: Tunnel, shared: Path
) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(work.at_exit, str(shared / "ran"), 3600)
        await host.options(grace_period=0.5).aclose()

        assert not is_running(pid)
        assert host.statistics().state == "closed"

    assert (shared / "ran").exists()


async def test_a_cancelled_call_takes_along_what_those_before_it_had_left(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        pids = [await host.call(leave) for leave in LEAVE]
        await host.call(work.leave_a_thread)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.say_and_run, str(shared / "started"))
            await file_appears(shared / "started")
            assert all(is_running(pid) for pid in pids)
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {"returned": len(pids) + 1, "cancelled": 1}


async def test_a_sigint_handler_in_force_is_called_instead(far: Tunnel, shared: Path) -> None:
    results = []

    async def call(host: trickle.Host) -> None:
        results.append(await host.call(work.handle_interrupts, str(shared / "started")))

    async with trickle.open_host(far) as host:
        pid = await host.call(work.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, host)
            await file_appears(shared / "started")
            nursery.cancel_scope.cancel()

        assert results == ["interrupted by signal 2"]
        assert host.statistics().verdicts == {"returned": 2}
        assert await host.call(work.pid) != pid  # it was disturbed, all the same


async def test_a_sigint_handler_that_ignores_it_meets_the_next_rung(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=0.5).call, work.ignore_interrupts, str(shared / "started"))
            pid = int(await file_appears(shared / "started"))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"killed": 1}


async def test_signals_that_an_earlier_call_has_blocked_do_not_keep_a_cancel_away(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(work.block_all_signals)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=60).call, work.say_and_run, str(shared / "started"))
            assert int(await file_appears(shared / "started")) == pid
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "cancelled": 1}


async def test_a_hundred_calls_with_random_cancels_all_end(far: Tunnel) -> None:
    outcomes = []

    async def call(host: trickle.Host, number: int) -> None:
        with trio.move_on_after(0.02 * (number % 7)) as scope:
            outcomes.append(await host.call(_work_a_little, number % 5 / 50))
        if scope.cancelled_caught:
            outcomes.append(None)

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, host, number)

        statistics = host.statistics()
        assert await host.call(work.add, 1) == 1

    assert len(outcomes) == 100
    assert statistics.calls_running == 0
    assert set(statistics.verdicts) <= {"returned", "cancelled", "never started"}


def _work_a_little(seconds):  # type: ignore[no-untyped-def]
    import time

    time.sleep(seconds)
    return seconds


async def test_a_killed_controller_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "controller.py"
    script.write_text(_CONTROLLER)
    paths = [tmp_path / f"started{number}" for number in range(20)]

    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run_python, script, tmp_path)
        pids = [int(await file_appears(path)) for path in paths]
        process.kill()
        for pid in pids:
            await process_ends(pid)
        nursery.cancel_scope.cancel()


async def _run_python(script: Path, directory: Path, task_status: trio.TaskStatus[trio.Process]) -> None:
    import subprocess
    import sys

    process = await trio.lowlevel.open_process([sys.executable, str(script), str(directory)], stderr=subprocess.DEVNULL)
    task_status.started(process)
    await process.wait()


_CONTROLLER = """
import sys, trio, trickle
from pathlib import Path

def run(path):
    import os, subprocess, time
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    with open(path + ".new", "w") as file:
        file.write(str(child.pid))
    os.rename(path + ".new", path)
    time.sleep(3600)

async def main():
    names = [f"started{number}" for number in range(20)]
    tunnels = [trickle.Local(name, python=sys.executable) for name in names]
    async with trickle.open_group(tunnels) as group, trio.open_nursery() as nursery:
        for name, host in group.items():
            nursery.start_soon(host.call, run, str(Path(sys.argv[1]) / name))

trio.run(main)
"""


async def test_three_hundred_hosts_leave_no_descriptor_task_or_process() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    children = running_below()
    tasks = trio.lowlevel.current_statistics().tasks_living

    for _ in range(10):
        async with trickle.open_group([local(f"h{number}") for number in range(30)]) as group:
            results = await group.call(work.add, 1, 2)
            assert set(results.unwrap().values()) == {3}

    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert running_below() == children
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_leaving_a_session_beside_a_call_whose_arguments_are_coming_in_hurts_nobody(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        for _ in range(20):
            async with trio.open_nursery() as nursery, host.session() as session:
                await session.call(work.add, 1)

                async def call(session: trickle.Session = session) -> None:
                    with contextlib.suppress(trio.ClosedResourceError, trickle.WorkerDied):
                        await session.call(work.size_of, bytes(20_000))

                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()

        assert host.statistics().state == "connected"
        assert await host.call(work.add, 1, 2) == 3


async def test_a_result_that_is_cancelled_on_the_way_is_no_stack(far: Tunnel) -> None:
    errors = []

    async with trickle.open_host(far) as host:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    try:
                        await host.call(work.give_bytes, 100_000_000)
                    except trio.Cancelled as exc:
                        errors.append(exc)
                        raise

                nursery.start_soon(call)
                while host.statistics().bytes_received < 1_000_000:
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    assert not getattr(errors[0], "__notes__", [])


async def test_an_agent_that_is_told_to_end_leaves_nothing(far: Tunnel, shared: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        path = shared / f"pids{number}"
        async with trickle.open_host(far) as host, trio.open_nursery() as nursery:

            async def call(host: trickle.Host = host, path: Path = path) -> None:
                with contextlib.suppress(trickle.HostLost):
                    await host.call(work.start_children, str(path))

            nursery.start_soon(call)
            pids = [int(pid) for pid in (await file_appears(path)).split()]
            os.kill(host.info.pid, number)
            for pid in pids:
                await process_ends(pid)


async def test_a_call_cancelled_while_connecting_leaves_those_alone_who_wait(tmp_path: Path) -> None:
    script = f'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exec "$@"'
    slow = trickle.Command(["sh", "-c", script, "sh"], name="slow", python=sys.executable)
    results = []

    async def use_session(host: trickle.Host) -> None:
        async with host.session() as session:
            await host.wait_connected()
            results.append(await session.call(work.add, 1, 2))

    async def let_it_connect() -> None:
        await trio.sleep(0.5)  # the cancelled call below waits for the first frame
        (tmp_path / "go").touch()

    async with trickle.open_host(slow, wait=False) as host, trio.open_nursery() as nursery:
        nursery.start_soon(use_session, host)
        nursery.start_soon(let_it_connect)
        with trio.move_on_after(0.2):
            await host.call(work.pid)
        with pytest.raises(trickle.Unsendable):
            await host.call(work.size_of, (number for number in ()))

    assert results == [3]


async def test_ctrl_c_comes_out_as_itself(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(_INTERRUPTED)

    for verb in ("call", "group", "as_completed", "map", "body", "leave"):
        done = await trio.run_process(
            [sys.executable, str(script), verb], check=False, capture_stdout=True, capture_stderr=True
        )

        assert (done.stdout, done.stderr) == (b"KeyboardInterrupt\n", b"")


_INTERRUPTED = """
import os, signal, sys, time, trio, trickle

async def interrupt():
    await trio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)

async def main(verb):
    tunnels = [trickle.Local(name, python=sys.executable) for name in ("a", "b")]
    async with trickle.open_group(tunnels) as group:
        await group.wait_connected()
        timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
        if verb == "group":
            await group.call(time.sleep, 60)
        elif verb == "call":
            await group["a"].call(time.sleep, 60)
        elif verb == "as_completed":
            async with group.as_completed(time.sleep, 60) as outcomes:
                await outcomes.receive()
        elif verb == "map":
            async with group.map(time.sleep, [60, 60]) as results:
                await results.receive()
        elif verb == "body":
            async with group.as_completed(time.sleep, 60):
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.raise_signal(signal.SIGINT)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
try:
    trio.run(main, sys.argv[1])
except BaseException as exc:
    print(type(exc).__name__)
"""


async def test_a_call_that_waits_for_a_module_can_be_cancelled(far: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(self: ModuleServer, name: str) -> bytes | None:
        asked.set()
        go_on.wait(60)
        return answer_at_once(self, name)

    answer_at_once = ModuleServer.answer
    monkeypatch.setattr(ModuleServer, "answer", answer)

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.import_by_name, "tests.far_async")
            while not asked.is_set():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"cancelled": 1}
        go_on.set()
        assert await host.call(work.import_by_name, "tests.torture") == "tests.torture"


async def test_a_large_call_that_waits_for_credit_never_starts_when_cancelled(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far, workers=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.call, work.say_and_run, str(shared / "first"))
        await file_appears(shared / "first")
        sent = host.statistics().bytes_sent
        async with trio.open_nursery() as waiting:
            waiting.start_soon(host.call, work.size_of, bytes(10_000_000))
            while host.statistics().bytes_sent < sent + CREDIT:
                await trio.lowlevel.checkpoint()
            waiting.cancel_scope.cancel()
        verdicts = dict(host.statistics().verdicts)
        nursery.cancel_scope.cancel()

    assert verdicts == {"never started": 1}


async def test_heartbeats_do_not_wait_behind_bulk() -> None:
    async with trickle.open_host(local(), heartbeat=0.1, lease=3.0) as host:
        for _ in range(5):
            assert len(await host.call(bytes, bytes(30_000_000))) == 30_000_000


async def test_a_segmentation_fault_is_told_and_leaves_the_host_usable(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.WorkerDied) as caught:
            await host.call(work.fault)

        assert caught.value.signal == signal.SIGSEGV
        assert await host.call(work.add, 1, 2) == 3


async def test_a_worker_that_runs_out_of_memory_is_told(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.RemoteError, match="MemoryError"):
            await host.call(work.exhaust_memory)

        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.parametrize(("function", "verdict"), [(torture.busy_loop, "cancelled"), (torture.gil_held_in_c, "killed")])
async def test_a_deadline_says_where_the_call_was_also_while_it_held_the_gil(
    function: Callable[[str], object], verdict: str, far: Tunnel, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trickle")

    async with trickle.open_host(far) as host, trio.open_nursery() as nursery:
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(3600) as scope:
            nursery.start_soon(_expire_when, shared / "started", scope)
            await host.options(grace_period=0.5 if verdict == "killed" else 60).call(function, str(shared / "started"))

    shown = "".join(traceback.format_exception(caught.value))
    assert "web1: at its deadline the call was here" in shown
    assert f"in {function.__name__}" in shown
    assert f"in {function.__name__}" in caplog.text
    assert ("web1: call 1: killed" in caplog.text) == (verdict == "killed")
    assert host.statistics().verdicts == {verdict: 1}


async def test_a_deadline_that_finds_no_python_code_says_so() -> None:
    async with trickle.open_host(local()) as host:
        await host.call(work.add, 1)
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(5):
            await host.call(time.sleep, 3600)

    shown = "".join(traceback.format_exception(caught.value))
    assert "in no Python code: what was called is a function of C" in shown


async def test_a_deadline_of_a_command_brings_no_stack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trickle")
    command = ["sh", "-c", 'trap "" TERM; echo > started; sleep 1000000']

    async with trickle.open_host(local()) as host, trio.open_nursery() as nursery:
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(3600) as scope:
            nursery.start_soon(_expire_when, tmp_path / "started", scope)
            await host.options(grace_period=0.1).run_process(command, cwd=tmp_path)

    assert host.statistics().verdicts == {"killed": 1}
    assert "at its deadline" not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def _expire_when(path: Path, scope: trio.CancelScope) -> None:
    await file_appears(path)
    scope.deadline = trio.current_time()


async def test_a_cancel_is_not_lost_while_code_is_compiled(shared: Path) -> None:
    """CPython's compiler goes on after some of what a signal's handler raises; that hit one call in a hundred."""
    async with trickle.open_host(local()) as host:
        for number in range(150):  # each in a worker of its own, which compiles two modules
            with trio.CancelScope() as scope:
                path = str(shared / str(number))
                async with host.open_channel(flows.scripted_echo, frozenset(), False, path) as channel:
                    await channel.send(bytes(100_000))
                    await trio.sleep(number % 10 / 1000)
                    scope.cancel()

        assert "killed" not in host.statistics().verdicts


async def test_a_deadline_says_where_a_call_waits_for_its_channel() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(5):
            async with host.open_channel(flows.receive_some, 1) as channel:
                await channel.receive()

    assert "in receive_some" in "".join(traceback.format_exception(caught.value))
