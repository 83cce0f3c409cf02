"""Connecting again: by ``connect_retries``, before a host has answered, and by ``reconnect=True`` after it was lost.

What is repeated is connecting, never a call.
"""

import contextlib
import itertools
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import trickle
from tests import work
from tests.hosts import file_appears, local, process_ends
from trickle import _backoff
from trickle._backoff import LONGEST_DELAY, backoff
from trickle._host import Host
from trickle._host_core import CallRecord, open_core
from trickle._link import Link
from trickle._memory_agent import prepare_remote
from trickle._memory_tunnel import Fault, LinkLost, Memory, MemoryTunnel, Unreachable, Wire
from trickle._settings import CallOptions, OpenSettings

NOBODY = 10**9  # attempts: more than any test makes
DENIED = "web1@memory: Permission denied (publickey).\n"


class Tried(Memory):
    """A host in memory that keeps when it was tried, and whose first attempts may never answer."""

    def __init__(self, nursery: trio.Nursery, faults: Sequence[Fault], silent: int) -> None:
        super().__init__(nursery, faults)
        self.times: list[float] = []
        self._nursery_of_wires = nursery
        self._silent = silent

    async def start(self, argv: Sequence[str], *, new_session: bool) -> Wire:
        self.times.append(trio.current_time())
        if len(self.times) <= self._silent:
            return Wire(self._nursery_of_wires, self)
        return await super().start(argv, new_session=new_session)


@contextlib.asynccontextmanager
async def memory_host(
    *faults: Fault, silent: int = 0, reconnect: bool = False, connect_retries: int = 0, connect_timeout: float = 30
) -> AsyncIterator[tuple[Host, Tried]]:
    """A host in memory that is opened as one of a group, and the attempts to reach it."""
    prepare_remote()
    settings = OpenSettings(
        wait=False, sends_modules=False, connect_retries=connect_retries, connect_timeout=connect_timeout
    )
    async with trio.open_nursery() as nursery:
        memory = Tried(nursery, faults, silent)
        async with open_core(MemoryTunnel(name="web1"), settings, memory.start) as core:
            yield Host(core, CallOptions(reconnect=reconnect)), memory
        await memory.end()


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every delay is as long as chance may make it."""
    monkeypatch.setattr(_backoff.random, "uniform", lambda shortest, longest: longest)


def shell(script: str, name: str = "web1") -> trickle.Command:
    """A host whose login does *script*; "$@" is what it was asked to run."""
    return trickle.Command(["sh", "-c", script, "login"], name=name)


REFUSE = "echo 'ssh: connect to host web1 port 22: Connection refused' >&2; exit 255"


def test_delays_are_random_within_a_bound_that_doubles() -> None:
    for failures, bound in [(1, 1), (2, 2), (3, 4), (5, 16), (6, LONGEST_DELAY), (10**6, LONGEST_DELAY)]:
        delays = [backoff(failures) for _ in range(200)]

        assert 0 <= min(delays) < bound / 2 < max(delays) <= bound


# ---- connect_retries


async def test_a_host_that_refuses_at_first_is_reached_by_retries(
    autojump_clock: MockClock, longest: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trickle")

    async with memory_host(Unreachable(times=3), connect_retries=3) as (host, memory):
        assert await host.call(work.add, 1, 2) == 3

    assert memory.times == pytest.approx([0, 1, 3, 7])
    assert [record.getMessage() for record in caplog.records if "attempt" in record.getMessage()] == [
        "web1: attempt 1 of 4 to connect failed (refused); the next one is in 1.0 s",
        "web1: attempt 2 of 4 to connect failed (refused); the next one is in 2.0 s",
        "web1: attempt 3 of 4 to connect failed (refused); the next one is in 4.0 s",
    ]


async def test_when_retries_run_out_the_last_error_is_raised(autojump_clock: MockClock) -> None:
    async with memory_host(Unreachable(times=NOBODY), connect_retries=3) as (host, memory):
        with pytest.raises(
            trickle.ConnectError, match=r"web1: .*refused \(attempt 4\); check that sshd runs"
        ) as caught:
            await host.call(work.add, 1, 2)

        assert (caught.value.reason, len(memory.times)) == ("refused", 4)


async def test_what_does_not_go_away_by_itself_is_not_tried_again(autojump_clock: MockClock) -> None:
    async with memory_host(Unreachable(stderr=DENIED), connect_retries=3) as (host, memory):
        with pytest.raises(trickle.ConnectError) as caught:
            await host.call(work.add, 1, 2)

        assert (caught.value.reason, len(memory.times)) == ("authentication", 1)


async def test_each_attempt_has_the_whole_connect_timeout(autojump_clock: MockClock, longest: None) -> None:
    async with memory_host(silent=2, connect_retries=2, connect_timeout=20) as (host, memory):
        assert await host.call(work.add, 1, 2) == 3

        started = memory.times
        assert 20 + 1 <= started[1] - started[0] <= 24  # with the time that ending a tunnel takes
        assert 20 + 2 <= started[2] - started[1] <= 25


async def test_a_call_that_waits_for_another_attempt_says_so(autojump_clock: MockClock, longest: None) -> None:
    record = CallRecord()

    async with memory_host(Unreachable(times=NOBODY), connect_retries=9) as (host, _):
        with trio.move_on_at(10):
            await host._core.call(work.add, (1, 2), {}, CallOptions(), record)

    assert record.stage == "connecting: waiting for attempt 5; the last one: refused"


async def test_a_call_that_is_cancelled_between_attempts_returns_at_once(
    autojump_clock: MockClock, longest: None
) -> None:
    async with memory_host(Unreachable(times=4), connect_retries=9) as (host, memory):
        with trio.move_on_at(10):  # 0, 1, 3, 7, (15)
            await host.call(work.add, 1, 2)
        assert trio.current_time() == pytest.approx(10)
        await trio.sleep(100)
        assert len(memory.times) == 4  # nobody waits for it any more

        assert await host.call(work.add, 1, 2) == 3
        assert host.statistics().verdicts == {"never started": 1, "returned": 1}


async def test_leaving_the_block_between_attempts_is_done_at_once(autojump_clock: MockClock, longest: None) -> None:
    async with memory_host(Unreachable(times=NOBODY), connect_retries=9) as (host, _):
        await trio.sleep(10)
        assert host.statistics().state == "connecting"

    assert trio.current_time() == pytest.approx(10, abs=0.1)


async def test_a_host_that_waits_for_its_next_attempt_leaves_its_turn_to_others(tmp_path: Path) -> None:
    go = tmp_path / "go"
    stubborn = shell(f'[ -e {go} ] && exec "$@"; {REFUSE}')

    async with trickle.open_group([stubborn, local("other")], connect_limit=1, connect_retries=NOBODY) as group:
        assert await group["other"].call(work.add, 1, 2) == 3
        go.touch()

        assert await group["web1"].call(work.add, 1, 2) == 3


# An agent says its marker of 32 bytes, then its hello: a header of 22 bytes, and about 200 that tell of the host.
@pytest.mark.parametrize("said", [0, 10, 32, 40, 54, 100])
async def test_no_call_runs_twice_when_the_link_dies_before_the_agents_hello_is_whole(
    said: int, tmp_path: Path
) -> None:
    been, ran = tmp_path / "been", tmp_path / "ran"
    dies = f'"$@" | head -c {said} >&1; echo "Connection reset by 192.0.2.1 port 22" >&2; exit 255'
    tunnel = shell(f'[ $(wc -l <{been}) -ge 2 ] && exec "$@"; echo x >>{been}; {dies}')
    been.touch()

    async with trickle.open_group([tunnel], connect_retries=5, heartbeat=0.2) as group:
        await group["web1"].call(work.append, str(ran), "ran\n")

    assert ran.read_text() == "ran\n"
    assert been.read_text() == "x\nx\n"


async def test_a_call_that_was_under_way_is_not_repeated(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    async with trickle.open_group([local("web1")], connect_retries=5) as group:
        again = group.options(reconnect=True)
        with pytest.raises(trickle.HostLost):
            await again["web1"].call(work.append_and_kill_the_agent, str(ran))

        assert await again["web1"].call(work.add, 1, 2) == 3
        assert ran.read_text() == "ran\n"


# ---- reconnect=True


async def test_delays_grow_until_a_host_has_lasted(
    autojump_clock: MockClock, longest: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trickle")
    faults = [Unreachable(times=6), LinkLost(at=110)]

    async with memory_host(*faults, reconnect=True) as (host, memory):
        for _ in range(6):
            with pytest.raises(trickle.ConnectError):
                await host.call(work.add, 1, 2)
        assert await host.call(work.add, 1, 2) == 3
        with pytest.raises(trickle.HostLost):
            await host.call(trio.sleep, 1000)
        assert await host.call(work.add, 1, 2) == 3

    assert memory.times == pytest.approx([*itertools.accumulate([0, 1, 2, 4, 8, 16, 30]), 110 + 1])
    logged = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert len(logged) == 7
    assert logged[1].startswith(
        "web1: connecting again in 2.0 s, without the state that was there; attempt 2, since the connection was refused"
    )
    assert "connecting again in 1.0 s" in logged[-1]


async def test_a_delay_is_kept_when_nobody_waits_for_its_end(autojump_clock: MockClock, longest: None) -> None:
    async with memory_host(Unreachable(times=4), reconnect=True) as (host, memory):
        for _ in range(4):
            with pytest.raises(trickle.ConnectError):
                await host.call(work.add, 1, 2)
        for _ in range(3):
            with trio.move_on_after(1):
                await host.call(work.add, 1, 2)
        assert await host.call(work.add, 1, 2) == 3

    assert memory.times == pytest.approx([0, 1, 3, 7, 15])


async def test_verbs_of_a_lost_host_share_one_new_connection(autojump_clock: MockClock) -> None:
    async with memory_host(LinkLost(at=5), reconnect=True) as (host, memory):
        with pytest.raises(trickle.HostLost):
            await host.call(trio.sleep, 10)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(host.call, trio.sleep, 1)
            nursery.start_soon(host.wait_connected)
            while host.statistics().state == "lost":
                await trio.sleep(0)
            await host.options(reconnect=False).call(trio.sleep, 1)  # it is not lost any more

        assert len(memory.times) == 2
        assert host.statistics().verdicts == {"unknown": 1, "returned": 11}


async def test_waiting_for_a_lost_host_connects_anew(autojump_clock: MockClock) -> None:
    async with memory_host(LinkLost(at=5)) as (host, memory):
        await host.wait_connected()
        await trio.sleep(10)
        with pytest.raises(trickle.HostLost):
            await host.wait_connected()

        info = await host.options(reconnect=True).wait_connected()

        assert (host.info, len(memory.times)) == (info, 2)


async def test_a_session_of_the_lost_connection_does_not_come_back(autojump_clock: MockClock) -> None:
    async with memory_host(LinkLost(at=5), reconnect=True) as (host, _):
        async with host.session() as old:
            await trio.sleep(10)
            assert await host.call(work.add, 1, 2) == 3
            with pytest.raises(trickle.HostLost):
                await old.call(work.add, 1)

            async with host.session() as new:
                assert await new.call(work.add, 1, 2) == 3
        assert host.statistics().open == 0


@pytest.mark.parametrize("leave", ["aclose", "cancel", "block"])
async def test_waiting_to_connect_again_ends_at_once(leave: str, autojump_clock: MockClock, longest: None) -> None:
    ended = []

    async def call(host: trickle.Host) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            try:
                await host.call(work.add, 1)
            except BaseException as exc:
                ended.append((type(exc), trio.current_time()))
                raise

    async with trio.open_nursery() as nursery:
        async with memory_host(Unreachable(times=NOBODY), reconnect=True) as (host, memory):
            for _ in range(6):
                with pytest.raises(trickle.ConnectError):
                    await host.call(work.add, 1)
            nursery.start_soon(call, host)
            now = trio.current_time() + 10
            await trio.sleep_until(now)
            assert host.statistics().state == "connecting"
            if leave == "aclose":
                await host.aclose()
            elif leave == "cancel":
                nursery.cancel_scope.cancel()

    assert len(memory.times) == 6
    expected = trio.Cancelled if leave == "cancel" else trio.ClosedResourceError
    assert ended == [(expected, pytest.approx(now, abs=0.1))]
    assert trio.current_time() == pytest.approx(now, abs=0.2)


async def test_a_link_that_dies_while_a_call_is_packed_does_not_lose_the_call(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: the call has not been sent."""
    packings = 0

    async with memory_host(reconnect=True) as (host, _):
        await host.wait_connected()

        async def lose_the_link(link: Link, names: frozenset[str]) -> None:
            nonlocal packings
            packings += 1
            if packings <= 3:
                link.lose(trickle.HostLost("web1: lost", host="web1"))

        monkeypatch.setattr(Link, "has_modules_for", lambda link, names: False)  # one in memory needs none
        monkeypatch.setattr(Link, "send_modules_for", lose_the_link)

        assert await host.call(work.add, 1, 2) == 3
        assert packings == 4


async def test_a_new_agent_has_no_state_of_the_old_one(tmp_path: Path) -> None:
    async with trickle.open_host(local("web1")) as host:
        old = host.info.pid
        assert [await host.call(work.count_calls), await host.call(work.count_calls)] == [1, 2]
        os.kill(old, signal.SIGKILL)
        await process_ends(old)
        again = host.options(reconnect=True)
        with contextlib.suppress(trickle.HostLost):  # if it was sent before the loss was noticed
            await host.call(work.count_calls)

        assert await again.call(work.count_calls) == 1
        assert host.info.pid != old
        assert await host.call(work.count_calls) == 2  # it is the same host for every view


async def test_calls_in_flight_fail_and_are_not_repeated_when_the_agent_is_killed(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    async def fails(host: trickle.Host, number: int) -> None:
        with pytest.raises(trickle.HostLost, match="web1: "):
            await host.call(work.append_and_wait, str(ran), str(tmp_path / f"started{number}"))

    async with trickle.open_host(local("web1")) as host:
        again = host.options(reconnect=True)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(fails, again, number)
            for number in range(3):
                await file_appears(tmp_path / f"started{number}")
            os.kill(host.info.pid, signal.SIGKILL)

        assert await again.call(work.add, 1, 2) == 3
        assert ran.read_text() == "ran\n" * 3
        assert host.statistics().verdicts == {"unknown": 3, "returned": 1}


async def test_a_groups_unreachable_hosts_are_those_of_now(tmp_path: Path) -> None:
    async with trickle.open_group([local("web1"), local("web2"), shell(REFUSE, "web3")]) as group:
        await group.wait_connected()
        assert list(group.unreachable) == ["web3"]
        other = group["web2"].info.pid
        lost = group["web1"].info.pid

        os.kill(lost, signal.SIGKILL)
        while "web1" not in group.unreachable:
            await trio.sleep(0.01)

        assert isinstance(group.unreachable["web1"], trickle.HostLost)
        assert set((await group.call(work.add, 1, 2)).successful()) == {"web2"}
        results = await group.options(reconnect=True).call(work.add, 1, 2)
        assert results.successful() == {"web1": 3, "web2": 3}
        assert list(group.unreachable) == ["web3"]
        assert group["web2"].info.pid == other
        assert group["web1"].info.pid != lost


async def test_a_group_that_reconnects_waits_for_its_lost_hosts(tmp_path: Path) -> None:
    been = tmp_path / "been"
    at_second_try = shell(f'if [ -e {been} ]; then exec "$@"; fi; touch {been}; {REFUSE}')

    async with trickle.open_group([local("web2"), at_second_try]) as group:
        await group.wait_connected()
        assert list(group.unreachable) == ["web1"]
        await group.wait_connected()
        assert list(group.unreachable) == ["web1"]

        await group.options(reconnect=True).wait_connected()

        assert list(group.unreachable) == []
        assert await group["web1"].call(work.add, 1, 2) == 3
