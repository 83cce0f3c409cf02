"""Hosts that are reached from other hosts: cancels and losses go through, and nothing outlives its relay."""

import contextlib
import os
import signal
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import trickle
from tests import flows, torture, work
from tests.hosts import file_appears, is_running, local, process_ends
from tests.sshd import Sshd
from trickle import _processes
from trickle._relays import relay_through


def beyond(sshd: Sshd, name: str = "leaf") -> trickle.SSH:
    return trickle.SSH(sshd.alias(1), name=name, ssh_options=sshd.ssh_options)


async def test_a_host_is_reached_from_another(piped_sshd: Sshd) -> None:
    async with trickle.open_host(local("relay")) as relay, relay.open_host(beyond(piped_sshd)) as leaf:
        assert await leaf.call(work.add, 1, 2) == 3
        assert await leaf.call(len, bytes(3_000_000)) == 3_000_000
        assert len(await leaf.call(bytes, 3_000_000)) == 3_000_000
        assert leaf.info.user != relay.info.user or os.getuid() != 0


async def test_only_what_is_on_this_machine_gets_what_is_compiled_here() -> None:
    async with trickle.open_host(local("relay")) as relay, relay.open_host(local("leaf")) as leaf:
        assert await relay.call(work.compiled_files) != {}
        assert await leaf.call(work.compiled_files) == {}


async def test_a_relay_without_room_is_waited_for_no_longer_than_for_an_answer() -> None:
    async with trickle.open_host(local("relay"), max_open=1) as relay, relay.open_host(local("one")):
        with pytest.raises(trickle.ConnectError, match="two: no agent answered within 0.2 s"):
            async with relay.open_host(local("two"), connect_timeout=0.2):
                pass


async def test_a_tunnel_that_has_started_when_nobody_wants_it_any_more_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope = trio.CancelScope()
    started = []

    @contextlib.asynccontextmanager
    async def open_and_cancel(*args: Any, **kwargs: Any) -> AsyncIterator[trickle.RemoteProcess]:
        async with _processes.open_process(*args, **kwargs) as process:
            started.append(process.pid)
            scope.cancel()
            yield process

    monkeypatch.setattr("trickle._relays._processes", SimpleNamespace(open_process=open_and_cancel))
    async with trickle.open_host(local("relay")) as host, relay_through(host._core, host._options) as relay:
        with scope:
            await relay.start(["sleep", "3600"], new_session=False)

    assert scope.cancelled_caught
    assert not is_running(*started)


async def test_a_relay_that_cannot_even_try_says_so_as_one_that_cannot_connect() -> None:
    async with trickle.open_host(local("relay")) as relay:
        with pytest.raises(trickle.ConnectError, match="leaf: cannot run .*relay: ValueError: embedded null byte"):
            async with relay.options(cwd="a\0b").open_host(local("leaf")):
                pass

        assert await relay.call(abs, -1) == 1


async def test_relays_go_on_to_relays(piped_sshd: Sshd) -> None:
    async with trickle.open_host(local("one")) as one:
        async with one.open_host(local("two")) as two, two.open_host(beyond(piped_sshd)) as leaf:
            done = await leaf.run_process(["cat"], stdin=b"far away", capture_stdout=True)
            assert done.stdout == b"far away"


@pytest.mark.parametrize("function", [torture.sleep, torture.gil_held_in_c, torture.child_in_a_new_session])
async def test_cancels_reach_through(function: object, piped_sshd: Sshd, shared: Path) -> None:
    async with trickle.open_host(local("relay")) as relay, relay.open_host(beyond(piped_sshd)) as leaf:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaf.options(grace_period=0.3).call, function, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert await leaf.call(work.add, 1, 2) == 3


async def test_a_cancel_reaches_through_two_relays(piped_sshd: Sshd, shared: Path) -> None:
    async with two_relays_before(beyond(piped_sshd)) as (_, leaf):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                leaf.options(grace_period=0.3).call, torture.child_in_a_new_session, str(shared / "pids")
            )
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert await leaf.call(work.add, 1, 2) == 3


@contextlib.asynccontextmanager
async def two_relays_before(tunnel: trickle.SSH) -> AsyncIterator[tuple[list[trickle.Host], trickle.Host]]:
    async with trickle.open_host(local("one")) as one, one.open_host(local("two")) as two:
        async with two.open_host(tunnel) as leaf:
            yield [one, two], leaf


async def test_a_deadline_around_a_call_beyond_a_relay_says_where_it_was(piped_sshd: Sshd, shared: Path) -> None:
    async def expire(scope: trio.CancelScope) -> None:
        await file_appears(shared / "pid")
        scope.deadline = trio.current_time()

    async with trickle.open_host(local("relay")) as relay, relay.open_host(beyond(piped_sshd)) as leaf:
        async with trio.open_nursery() as nursery:
            with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(3600) as scope:
                nursery.start_soon(expire, scope)
                await leaf.call(work.say_and_run, str(shared / "pid"))

        assert not is_running(int((shared / "pid").read_text()))
        assert leaf.statistics().verdicts == {"cancelled": 1}
    shown = "".join(traceback.format_exception(caught.value))
    assert "leaf: at its deadline the call was here" in shown and "in say_and_run" in shown


async def test_a_timeout_is_kept_beyond_a_relay(piped_sshd: Sshd, shared: Path) -> None:
    async with trickle.open_host(local("relay")) as relay, relay.open_group([beyond(piped_sshd)]) as group:
        (await group.call(work.add, 1, 2)).unwrap()  # so that everything has been sent
        results = await group.options(timeout=3).call(work.say_and_run, str(shared / "pid"))

    error = results.failures()["leaf"]
    assert isinstance(error, trickle.CallTimeout)
    assert (error.host, error.stage, error.verdict) == ("leaf", "running", "cancelled")
    assert error.remote_stack is not None and "in say_and_run" in error.remote_stack
    assert not is_running(int((shared / "pid").read_text()))


async def test_a_host_keeps_a_deadline_while_its_relay_is_stopped(piped_sshd: Sshd, shared: Path) -> None:
    async with (
        trickle.open_host(local("relay"), lease=600) as relay,
        relay.open_host(beyond(piped_sshd), lease=600) as leaf,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            with trio.move_on_after(3):
                await leaf.options(grace_period=0.3).call(work.say_and_run, str(shared / "pid"))

        await leaf.call(work.add, 1, 2)  # so that everything has been sent
        nursery.start_soon(call)
        pid = int(await file_appears(shared / "pid"))
        os.kill(relay.info.pid, signal.SIGSTOP)
        try:
            with trio.fail_after(60):
                await process_ends(pid)
        finally:
            os.kill(relay.info.pid, signal.SIGCONT)


async def test_what_is_beyond_a_relay_dies_with_it(piped_sshd: Sshd, shared: Path) -> None:
    pids: list[int] = []

    async def kill(pid: int) -> None:
        pids.extend(int(pid) for pid in (await file_appears(shared / "pids")).split())
        os.kill(pid, signal.SIGKILL)

    async with trickle.open_host(local("relay")) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(kill, relay.info.pid)
        async with relay.open_host(beyond(piped_sshd)) as leaf:
            with pytest.raises(trickle.HostLost, match="leaf: .*lost with its relay relay: "):
                await leaf.call(torture.child_in_a_new_session, str(shared / "pids"))

    for pid in [*pids, leaf.info.pid]:
        await process_ends(pid)


async def test_what_is_beyond_two_relays_dies_with_the_first(piped_sshd: Sshd, shared: Path) -> None:
    pids: list[int] = []

    async with two_relays_before(beyond(piped_sshd)) as ((one, two), leaf), trio.open_nursery() as nursery:

        async def kill() -> None:
            pids.extend(int(pid) for pid in (await file_appears(shared / "pids")).split())
            os.kill(one.info.pid, signal.SIGKILL)

        nursery.start_soon(kill)
        with pytest.raises(trickle.HostLost, match="leaf: .*lost with its relay two: ") as caught:
            await leaf.call(torture.child_in_a_new_session, str(shared / "pids"))

    assert caught.value.host == "leaf"
    for pid in [*pids, two.info.pid, leaf.info.pid]:
        await process_ends(pid)


async def test_a_host_beyond_a_relay_that_cannot_be_reached_says_why() -> None:
    async with trickle.open_host(local("relay")) as relay:
        with pytest.raises(trickle.ConnectError) as caught:
            async with relay.open_host(trickle.SSH("nowhere.invalid", ssh_options=("-F", "none"))):
                pass
        assert caught.value.reason == "name lookup"

        with pytest.raises(trickle.ConnectError, match="cannot run 'no-such-program'"):
            async with relay.open_host(trickle.Command(["no-such-program"])):
                pass
        with pytest.raises(trickle.ConnectError, match="is it installed on relay\\?"):
            async with relay.open_host(trickle.Command(["no-such-program"])):
                pass
        with pytest.raises(trickle.ConnectError, match="may run it on relay"):
            async with relay.open_host(trickle.Command(["/"], name="beyond")):
                pass

        assert await relay.call(work.add, 1, 2) == 3


async def test_leaving_a_relayed_host_leaves_the_relay_as_it_was(piped_sshd: Sshd) -> None:
    async with trickle.open_host(local("relay")) as relay:
        for _ in range(2):
            async with relay.open_host(beyond(piped_sshd), wait=False) as leaf:
                assert relay.statistics().open == 1 or await leaf.call(work.add, 1, 2) == 3
            assert relay.statistics().open == 0

        with trio.move_on_after(0.1):
            async with relay.open_host(trickle.Command(["sh", "-c", "sleep 3600", "x"])):
                pass
        assert relay.statistics().open == 0


async def test_a_relay_that_is_closed_ends_what_is_beyond_it(piped_sshd: Sshd) -> None:
    async with trickle.open_host(local("relay")) as relay:
        async with relay.open_host(beyond(piped_sshd)) as leaf:
            await relay.aclose()
            with pytest.raises((trickle.HostLost, trio.ClosedResourceError)):
                await leaf.call(work.add, 1, 2)

        await process_ends(leaf.info.pid)


async def test_streams_and_channels_go_through(piped_sshd: Sshd) -> None:
    async with trickle.open_host(local("relay")) as relay, relay.open_host(beyond(piped_sshd)) as leaf:
        async with leaf.stream(flows.count, 1000, 1000) as things:
            assert len([thing async for thing in things]) == 1000


async def test_a_relay_that_dies_takes_what_is_beyond_it_and_nothing_else() -> None:
    async with trickle.open_group([local("r1"), local("r2")]) as relays, contextlib.AsyncExitStack() as stack:
        beyond_both = [
            await stack.enter_async_context(relay.open_group([local(f"{name}-a"), local(f"{name}-b")]))
            for name, relay in relays.items()
        ]
        everybody = beyond_both[0] | beyond_both[1]
        assert (await everybody.call(work.add, 1, 2)).unwrap() == dict.fromkeys(["r1-a", "r1-b", "r2-a", "r2-b"], 3)
        pids = [everybody[name].info.pid for name in ("r2-a", "r2-b")]

        os.kill(relays["r2"].info.pid, signal.SIGKILL)
        for pid in pids:
            await process_ends(pid)
        results = await everybody.call(work.add, 1, 2)

        assert results.successful() == {"r1-a": 3, "r1-b": 3}
        assert {name: type(error) for name, error in results.failures().items()} == dict.fromkeys(
            ["r2-a", "r2-b"], trickle.HostLost
        )
        for name, error in results.failures().items():
            assert str(error).startswith(f"{name}: ")
