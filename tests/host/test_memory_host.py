"""The host in memory: it tells the truth about a real one, and goes wrong when it is told to."""

import math
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trickle
import trickle._link
import trickle._wire.frames
import trickle.remote
from tests import flows, work
from tests.async_work import (
    check_often,
    clean_up_for,
    count_down,
    log,
    raise_otherwise,
    return_anyway,
    shield_for_ever,
    sleep_and_say,
    swallow_everything,
    where,
)
from tests.far_async import start_and_sleep
from tests.hosts import file_appears, local
from trickle.testing import (
    Fault,
    Garbage,
    LinkLost,
    Silence,
    SlowLink,
    Unreachable,
    WorkerKilled,
    open_memory_group,
    open_memory_host,
)


@pytest.fixture(autouse=True)
def empty_log() -> Iterator[None]:
    log.clear()
    yield
    log.clear()


# ---- it tells the truth: the same over there and in memory


def open_local_host(workers: int = 16, max_payload: int = 512 * 2**20) -> AbstractAsyncContextManager[trickle.Host]:
    return trickle.open_host(local(), workers=workers, max_payload=max_payload)


each_kind_of_host = pytest.mark.parametrize("open_host", [open_memory_host, open_local_host], ids=["memory", "local"])
OpenHost = Callable[..., AbstractAsyncContextManager[trickle.Host]]


@each_kind_of_host
async def test_a_call_returns_what_the_function_returns(open_host: OpenHost) -> None:
    async with open_host() as host:
        result = await host.call(work.echo, 1, "two", key=[3.0, None, b"four"])
        large = await host.call(work.give_bytes, 3 * 2**20)
        size = await host.call(work.size_of, b"x" * (3 * 2**20))

    assert result == ((1, "two"), {"key": [3.0, None, b"four"]})
    assert (len(large), size) == (3 * 2**20, 3 * 2**20)
    assert host.statistics().verdicts == {"returned": 3}
    assert host.statistics().state == "closed"


@each_kind_of_host
async def test_what_a_function_raises_is_raised(open_host: OpenHost) -> None:
    async with open_host() as host:
        with pytest.raises(KeyError) as caught:
            await host.call(work.fail, "KeyError", "missing")
        with pytest.raises(trickle.RemoteError, match="cannot be sent"):
            await host.call(work.give_lock)

    assert isinstance(caught.value, trickle.RemoteError)
    assert "in fail" in caught.value.remote_traceback
    assert "_memory_agent" not in caught.value.remote_traceback
    assert host.statistics().verdicts == {"raised": 2}


@each_kind_of_host
async def test_a_cancelled_call_is_over_and_says_so(open_host: OpenHost, tmp_path: Path) -> None:
    async with open_host() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, start_and_sleep, str(tmp_path / "started"))
            await file_appears(tmp_path / "started")
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"cancelled": 1}
        assert host.statistics().calls_running == 0


@each_kind_of_host
async def test_a_function_without_regard_for_the_grace_period_is_killed(open_host: OpenHost, tmp_path: Path) -> None:
    async with open_host() as host:
        await host.call(trio.sleep, 0)
        for function in (shield_for_ever, swallow_everything):
            path = tmp_path / function.__name__
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.options(grace_period=0.2).call, function, str(path))
                await file_appears(path)
                nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "killed": 2}
        assert await host.call(work.add, 1, 2) == 3


@each_kind_of_host
async def test_a_session_whose_call_was_cancelled_is_gone(open_host: OpenHost, tmp_path: Path) -> None:
    async with open_host() as host, host.session() as session:
        assert await session.call(work.add, 1, 2) == 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call, start_and_sleep, str(tmp_path / "started"))
            await file_appears(tmp_path / "started")
            nursery.cancel_scope.cancel()

        with pytest.raises(trickle.WorkerDied):
            await session.call(work.add, 1, 2)


@each_kind_of_host
async def test_calls_beyond_the_limit_of_workers_wait(open_host: OpenHost, tmp_path: Path) -> None:
    async with open_host(workers=1) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, start_and_sleep, str(tmp_path / "started"))
            await file_appears(tmp_path / "started")
            nursery.start_soon(host.call, trio.sleep, 3600)
            while not host.statistics().calls_waiting:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"cancelled": 1, "never started": 1}


# ---- in memory alone, by a clock that jumps


@each_kind_of_host
async def test_a_thing_above_max_payload_is_refused_by_its_sender_and_costs_its_flow_alone(open_host: OpenHost) -> None:
    async with open_host(max_payload=100_000) as host:
        with pytest.raises(ValueError, match="takes 200[0-9]{3} bytes; max_payload allows 100000"):
            async with host.stream(flows.count, 1, 200_000) as things:
                await things.receive()
        with pytest.raises(ValueError, match="max_payload allows 100000"):
            async with host.open_channel(flows.send_bytes, 90_000, 200_000) as channel:
                assert await channel.receive() == bytes(90_000)
                await channel.receive()
        async with host.open_channel(flows.echo) as channel:
            with pytest.raises(trickle.Unsendable, match="max_payload is 100000") as caught:
                await channel.send(bytes(200_000))
            assert caught.value.path == "argument 1"
            await channel.send(bytes(90_000))
            assert await channel.receive() == (bytes(90_000), "")

        assert await host.call(work.add, 1, 2) == 3


@each_kind_of_host
async def test_an_error_fits_in_whatever_max_payload_is(open_host: OpenHost) -> None:
    async with open_host(max_payload=2000) as host:
        with pytest.raises(ValueError, match="xxx"):
            await host.call(raise_with, "x" * 1000, 100)
        with pytest.raises(ValueError, match="xxx"):
            async with host.stream(raise_with, "x" * 1000, 100) as things:
                await things.receive()

        assert await host.call(work.add, 1, 2) == 3


@each_kind_of_host
async def test_what_a_function_raises_when_its_block_is_cancelled_is_raised(
    open_host: OpenHost, tmp_path: Path
) -> None:
    async def use(host: trickle.Host, path: Path, scope: trio.CancelScope) -> None:
        with scope:
            async with host.open_channel(flows.raise_in_the_end, str(path)) as channel:
                await file_appears(path)
                scope.cancel()
                await channel.receive()

    async with open_host() as host:
        scope = trio.CancelScope()
        with pytest.raises(KeyError, match="cleaning up"):
            await use(host, tmp_path / "one", scope)
        assert not scope.cancelled_caught

        with trio.CancelScope() as scope:  # of a nursery's two tasks
            with pytest.raises(KeyError, match="cleaning up"):
                async with host.open_channel(flows.raise_in_the_end, str(tmp_path / "two")):
                    await file_appears(tmp_path / "two")
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep_forever)
                        nursery.start_soon(trio.sleep_forever)
                        scope.cancel()

        with pytest.raises(ZeroDivisionError) as caught:
            async with host.open_channel(flows.raise_in_the_end, str(tmp_path / "three")):
                await file_appears(tmp_path / "three")
                raise ZeroDivisionError
        assert "cleaning up" in caught.value.__notes__[0]

        with trio.CancelScope() as scope:  # one that was received is not raised again
            async with host.open_channel(flows.send_and_fail) as channel:
                with pytest.raises(ValueError, match="after two"):
                    while True:
                        await channel.receive()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


@each_kind_of_host
async def test_what_another_task_closes_says_so_to_one_that_waits_to_send(open_host: OpenHost) -> None:
    async with open_host() as host, host.open_channel(flows.send_bytes, *[100_000] * 1000) as channel:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    while True:
                        await channel.send(bytes(100_000))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await host.aclose()


@each_kind_of_host
async def test_a_function_that_closes_its_channel_says_first_that_it_takes_no_more(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    deliver = trickle._link.Link._deliver

    def listen(link: trickle._link.Link, frame: trickle._wire.frames.Frame) -> None:
        if isinstance(frame, trickle._wire.frames.Item):
            said.append(frame.flags)
        deliver(link, frame)

    monkeypatch.setattr(trickle._link.Link, "_deliver", listen)
    async with open_host() as host, host.open_channel(flows.close_at_once) as channel:
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
        with pytest.raises(trio.BrokenResourceError):
            await channel.send(1)

    assert said == [trickle._wire.frames.DEAF, trickle._wire.frames.EOF]


async def test_time_over_there_is_this_programs(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        result = await host.call(sleep_and_say, 100)

        assert result == "awake"
        assert trio.current_time() == 100


async def test_what_a_function_does_on_cancellation_is_waited_for(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        with trio.move_on_after(1):
            await host.call(clean_up_for, 3)

        assert log == ["clean"]
        assert trio.current_time() == 4
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_cleaning_up_ends_with_the_grace_period(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        with trio.move_on_after(1):
            await host.options(grace_period=2).call(clean_up_for, 3600)

        assert log == []
        assert trio.current_time() == 3
        assert host.statistics().verdicts == {"killed": 1}


async def test_what_comes_in_spite_of_a_cancellation_is_taken(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        with trio.move_on_after(1):
            result = await host.call(return_anyway)
        with trio.move_on_after(1), pytest.raises(LookupError):
            await host.call(raise_otherwise)

        assert result == "came anyway"
        assert host.statistics().verdicts == {"returned": 1, "raised": 1}


async def test_trickle_remote_knows_the_call(autojump_clock: MockClock) -> None:
    async with open_memory_host(name="web1") as host:
        with trio.fail_after(10):
            left = await host.call(count_down, 3)
            names = [await host.call(where), await host.call(getattr, trickle.remote, "host_name")]
        with trio.move_on_after(1):
            await host.call(check_often)

    assert left == 7
    assert names == ["web1", "web1"]
    assert trickle.remote.host_name is None
    assert trickle.remote.time_left() == math.inf
    assert host.statistics().verdicts == {"returned": 3, "cancelled": 1}


async def test_a_deadline_says_where_the_function_was(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(1):
            await host.call(sleep_and_say, 3600)

    assert caught.value.__cause__ is not None or caught.value.__context__ is not None
    cancelled = caught.value.__cause__ or caught.value.__context__
    assert any("sleep_and_say" in note for note in getattr(cancelled, "__notes__", []))


async def test_a_scope_that_is_given_more_time_gives_the_function_more(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host, trio.open_nursery() as nursery:
        with trio.CancelScope(deadline=trio.current_time() + 5) as scope:
            nursery.start_soon(extend, scope)
            assert await host.call(sleep_and_say, 50) == "awake"


async def ask_inside(seconds: float) -> tuple[float, float]:
    async with open_memory_host() as host:
        return trickle.remote.time_left(), await host.call(count_down, seconds)


@pytest.mark.parametrize("own", [math.inf, 20.0, 200.0])
async def test_a_call_inside_of_a_call_has_the_earlier_deadline(own: float, autojump_clock: MockClock) -> None:
    async def ask() -> tuple[float, float]:
        with trio.move_on_after(own):
            return await ask_inside(1)
        raise AssertionError

    async with open_memory_host() as host:
        with trio.fail_after(100):
            outer, inner = await host.call(ask)

    assert (outer, inner) == (pytest.approx(100, abs=0.1), pytest.approx(min(own, 100) - 1, abs=0.1))


async def test_a_call_inside_of_a_call_is_given_more_time_with_it(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host, trio.open_nursery() as nursery:
        with trio.CancelScope(deadline=trio.current_time() + 5) as scope:
            nursery.start_soon(extend, scope)
            outer, inner = await host.call(ask_inside, 50)

    assert (outer, inner) == (pytest.approx(5, abs=0.1), pytest.approx(15, abs=0.1))


async def extend(scope: trio.CancelScope) -> None:
    await trio.sleep(4)
    scope.deadline += 60


async def test_the_agent_keeps_a_deadline_when_the_link_is_dead(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[Silence(at=2)]) as host:
        with trio.move_on_after(10):
            await host.options(grace_period=0).call(sleep_and_say, 3600)

        assert (log, trio.current_time()) == (["cancelled"], 15)


async def test_a_lambda_that_uses_a_global_can_be_called(autojump_clock: MockClock) -> None:
    factor = 6

    async with open_memory_host() as host:
        assert await host.call(lambda value: [value * factor, len(log)], 7) == [42, 0]


def raise_with(text: str, times: int) -> list[int]:
    raise ValueError(text * times)


async def every_second() -> AsyncIterator[int]:
    try:
        for number in range(1000):
            await trio.sleep(1)
            yield number
    finally:
        log.append("closed")


def count_with_surroundings(limit: int) -> Iterator[tuple[int, str | None]]:
    for number in range(limit):
        yield number, os.environ.get("COLOUR")


async def test_an_async_generator_is_streamed_by_the_mock_clock(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host, host.stream(every_second) as numbers:
        assert [await numbers.receive() for _ in range(100)] == list(range(100))
        assert trio.current_time() == pytest.approx(100)

    assert log == ["closed"]


async def test_a_generator_is_streamed_step_by_step_in_its_surroundings(autojump_clock: MockClock) -> None:
    async with open_memory_host(workers=1) as host:
        async with host.options(env={"COLOUR": "blue"}).stream(count_with_surroundings, 3) as things:
            assert await host.call(os.environ.get, "COLOUR") is None  # a stream takes no worker of the plain calls
            assert [thing async for thing in things] == [(0, "blue"), (1, "blue"), (2, "blue")]


async def test_a_stream_in_memory_waits_for_its_receiver(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host, host.stream(flows.count, 1000, 100_000) as things:
        before = host.statistics().bytes_received
        await things.receive()
        await trio.sleep(100)
        assert host.statistics().bytes_received - before < 2**20
        assert await host.call(len, bytes(1_000_000)) == 1_000_000  # others are not held up
        assert len([thing async for thing in things]) == 999


async def test_the_error_of_a_function_with_a_channel_in_memory_shows_only_its_own_code() -> None:
    async with open_memory_host() as host:
        with pytest.raises(ValueError, match="after two") as caught:
            async with host.open_channel(flows.send_and_fail) as channel:
                while True:
                    await channel.receive()

    assert isinstance(caught.value, trickle.RemoteError)
    assert "_memory_flows" not in caught.value.remote_traceback


async def test_what_a_host_in_memory_has_not_is_refused(autojump_clock: MockClock) -> None:
    async with open_memory_host() as host:
        with pytest.raises(NotImplementedError, match="no processes"):
            await host.run_process(["true"])
        with pytest.raises(NotImplementedError, match="env= and cwd="):
            async with host.options(env={"A": "b"}).stream(every_second) as numbers:
                await numbers.receive()


async def test_leaving_the_block_ends_what_runs(autojump_clock: MockClock) -> None:
    async def call(host: trickle.Host) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await host.call(sleep_and_say, 3600)

    async with trio.open_nursery() as nursery:
        async with open_memory_host() as host:
            nursery.start_soon(call, host)
            await trio.sleep(1)

        assert log == ["cancelled"]
        assert trio.current_time() == 1


async def test_an_error_in_the_block_is_raised_as_itself(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_memory_host():
            raise ValueError("mine")


async def test_a_cancelled_scope_around_the_block_still_gets_its_verdicts(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1):
        async with open_memory_host() as host:
            await host.call(clean_up_for, 2)

    assert log == ["clean"]
    assert host.statistics().verdicts == {"cancelled": 1}


# ---- faults


async def test_a_lost_link_fails_the_call_and_ends_the_function(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[LinkLost(at=5)]) as host:
        with pytest.raises(trickle.HostLost, match="the connection was lost"):
            await host.call(sleep_and_say, 3600)

        await trio.sleep(1)
        assert log == ["cancelled"]
        assert host.statistics().verdicts == {"unknown": 1}
        assert await host.options(reconnect=True).call(work.add, 1, 2) == 3


async def test_a_link_can_be_lost_in_the_middle_of_a_result(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[LinkLost(after_bytes=100_000)]) as host:
        with pytest.raises(trickle.HostLost):
            await host.call(work.give_bytes, 2**20)

        assert 0 < host.statistics().bytes_received <= 100_000


async def test_a_partition_ends_both_ends_by_their_leases(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[Silence(at=5)], heartbeat=2, lease=20) as host:
        with pytest.raises(trickle.HostLost, match="nothing was heard from it for 20 s"):
            await host.call(sleep_and_say, 3600)

        assert trio.current_time() <= 26
        await trio.sleep(1)
        assert log == ["cancelled"]


async def test_a_stall_of_less_than_the_lease_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[Silence(at=5, seconds=30)]) as host:
        result = await host.call(sleep_and_say, 10)

        assert result == "awake"
        assert trio.current_time() == 35


async def test_garbage_closes_the_host(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[Garbage(at=5)]) as host:
        with pytest.raises(trickle.ProtocolError):
            await host.call(sleep_and_say, 3600)

        await trio.sleep(10)
        assert log == ["cancelled"]


async def test_the_worker_of_a_call_can_be_killed(autojump_clock: MockClock) -> None:
    faults = [WorkerKilled(call=2), WorkerKilled(call=3, after=4)]
    async with open_memory_host(faults=faults) as host:
        assert await host.call(sleep_and_say, 1, "first") == "first"
        with pytest.raises(trickle.WorkerDied, match="killed by signal 9"):
            await host.call(sleep_and_say, 1, "second")
        with pytest.raises(trickle.WorkerDied, match="killed by signal 9"):
            await host.call(sleep_and_say, 3600, "third")
        assert await host.call(work.add, 1, 2) == 3

        assert log == ["first", "cancelled"]
        assert trio.current_time() == 5


async def test_a_slow_link_takes_its_time(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[SlowLink(bytes_per_second=100_000)]) as host:
        connected = trio.current_time()
        await host.call(work.size_of, b"x" * 10**6)

        assert 10 <= trio.current_time() - connected <= 11


async def test_a_cancel_while_the_arguments_come_in_is_never_started(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[SlowLink(bytes_per_second=100_000)]) as host:
        with trio.move_on_after(5):
            await host.call(work.size_of, b"x" * 10**6)

        assert host.statistics().verdicts == {"never started": 1}


async def test_a_host_can_be_unreachable_at_first(autojump_clock: MockClock) -> None:
    async with open_memory_host(faults=[Unreachable()], wait=False) as host:
        with pytest.raises(trickle.ConnectError) as caught:
            await host.call(work.add, 1, 2)

        assert (caught.value.reason, caught.value.exit_status) == ("refused", 255)
        assert await host.options(reconnect=True).call(work.add, 1, 2) == 3


@pytest.mark.parametrize("make", [lambda: LinkLost(), lambda: SlowLink(bytes_per_second=0)])
def test_faults_that_make_no_sense_are_refused(make: Callable[[], Fault]) -> None:
    with pytest.raises(ValueError, match="LinkLost|bytes_per_second"):
        make()


def test_importing_trickle_does_not_import_its_testing() -> None:
    script = "import sys, trickle; print([n for n in sys.modules if 'testing' in n or 'memory' in n])"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


async def test_a_silence_is_noticed_whatever_the_clock_rounds_to(autojump_clock: MockClock) -> None:
    faults = [SlowLink(bytes_per_second=79795), Silence(at=22.5)]

    async with open_memory_host(faults=faults, heartbeat=3, lease=12) as host:
        with pytest.raises(trickle.HostLost, match="nothing was heard"):
            await host.call(trio.sleep, 100)


async def test_a_host_in_memory_leads_to_no_others() -> None:
    async with open_memory_host(name="relay") as host:
        with pytest.raises(
            trickle.ConnectError, match="inner: cannot run .*relay: .*a host in memory has no processes"
        ):
            async with host.open_host(trickle.Local("inner")):
                pass

        assert await host.call(abs, -3) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinkLost(at=-1), "LinkLost: at=-1: it is a number from 0"),
        (lambda: LinkLost(at="1"), "LinkLost: at='1'"),
        (lambda: LinkLost(after_bytes=-1), "after_bytes=-1: it is a whole number from 0"),
        (lambda: Silence(at=1, seconds=-1), "seconds=-1"),
        (lambda: WorkerKilled(call=0), "call=0: it is a whole number from 1"),
        (lambda: WorkerKilled(call=1, after=math.nan), "after=nan"),
        (lambda: Unreachable(times=0), "times=0"),
        (lambda: Unreachable(stderr=b"x"), "it is a str"),
        (lambda: Garbage(at=0, data="x"), "it is bytes"),
        (lambda: SlowLink(bytes_per_second=0), "it is a number above 0"),
    ],
)
def test_a_fault_that_can_never_strike_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


@pytest.mark.parametrize("faults", [LinkLost(at=1), [LinkLost], ["LinkLost"], "LinkLost"])
async def test_what_is_no_fault_is_refused(faults: Any) -> None:
    with pytest.raises(TypeError, match="a sequence of faults"):
        async with open_memory_host(faults=faults):
            pass
    with pytest.raises(TypeError, match="a sequence of faults"):
        async with open_memory_group(["a"], faults={"a": faults}):
            pass
