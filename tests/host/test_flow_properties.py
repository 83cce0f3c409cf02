"""Whatever flows, however large, however fast either end is and however it ends: in order, whole, and over in time.

Hypothesis draws plans; each is carried out against a host in memory, and some against real processes and over ssh.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import trickle
from tests import flows, work
from tests.hosts import local
from tests.sshd import Sshd
from trickle._host_core import open_core
from trickle._memory_agent import prepare_remote
from trickle._memory_tunnel import CONNECTION_LOST, Memory, MemoryTunnel
from trickle._settings import CallOptions, OpenSettings

Lose = Callable[[], Awaitable[None]]
OpenFar = Callable[[], AbstractAsyncContextManager[tuple[trickle.Host, Lose]]]
End = Literal["all", "leave", "close", "cancel", "error here", "lost"]

SIZES = st.sampled_from([0, 1, 100, 4096, 65535, 65536, 65537, 262_144, 300_000, 1_000_000])
STALLS = st.frozensets(st.integers(0, 12), max_size=3)  # before which thing somebody stops for a while
STALL = 0.003  # seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    sizes: list[int]
    end: End
    after: int  # things that are received before that
    stalls_here: frozenset[int]
    stalls_there: frozenset[int]
    fails: bool  # over there, behind the last of its things


PLANS = st.builds(
    Plan,
    sizes=st.lists(SIZES, max_size=12),
    end=st.sampled_from(["all", "all", "leave", "close", "cancel", "error here", "lost"]),
    after=st.integers(0, 12),
    stalls_here=STALLS,
    stalls_there=STALLS,
    fails=st.booleans(),
)


@contextlib.asynccontextmanager
async def open_memory() -> AsyncIterator[tuple[trickle.Host, Lose]]:
    prepare_remote()
    async with trio.open_nursery() as nursery:
        memory = Memory(nursery, ())

        async def lose() -> None:
            assert memory._wire is not None
            await memory._wire.end(CONNECTION_LOST, b"")

        async with open_core(MemoryTunnel(name="memory"), OpenSettings(sends_modules=False), memory.start) as core:
            host = trickle.Host(core, CallOptions())
            await host.wait_connected()
            yield host, lose
        await memory.end()


def open_far(tunnel: trickle.abc.Tunnel) -> OpenFar:
    @contextlib.asynccontextmanager
    async def open() -> AsyncIterator[tuple[trickle.Host, Lose]]:
        async with trickle.open_host(tunnel) as host:

            async def lose() -> None:
                os.kill(host.info.pid, signal.SIGKILL)

            yield host, lose

    return open


def far_of(kind: str, request: pytest.FixtureRequest) -> OpenFar:
    if kind == "local":
        return open_far(local())
    sshd: Sshd = request.getfixturevalue("piped_sshd")
    return open_far(trickle.SSH(sshd.alias(), name="far", ssh_options=sshd.ssh_options))


def content(number: int, size: int) -> bytes:
    return (b"%d:" % number).ljust(size, b"x")[:size]


async def carry_out(
    plan: Plan, host: trickle.Host, lose: Lose, receive: Callable[[], Awaitable[object]], aclose: Callable[[], object]
) -> list[object]:
    """Receive what comes, until the plan has it end."""
    received: list[object] = []
    while plan.end == "all" or len(received) < plan.after:
        if len(received) in plan.stalls_here:
            await trio.sleep(STALL)
        try:
            received.append(await receive())
        except trio.EndOfChannel:
            assert len(received) == len(plan.sizes) and not plan.fails
            break
        except ValueError:
            assert len(received) == len(plan.sizes) and plan.fails
            break
    return received


async def check_end(plan: Plan, host: trickle.Host, end_file: Path) -> None:
    """Nothing of it is left, and the host is as it was."""
    link = host._core.link
    assert not link.calls and not link._flowing
    if plan.end != "lost":
        assert not link._connection._calls
        assert not end_file.exists() or end_file.read_text() == "over"  # a call that never started wrote none
        verdicts = host.statistics().verdicts
        assert sum(verdicts.values()) == 1
        if plan.end == "all":
            assert verdicts == ({"raised": 1} if plan.fails else {"returned": 1})
        else:
            assert set(verdicts) <= {"returned", "raised", "cancelled", "never started"}
        assert await host.call(work.add, 1, 2) == 3
        assert host.statistics().open == 0


def expected_errors(plan: Plan) -> contextlib.AbstractContextManager[object]:
    """What the block may raise: its own error, the host's loss, and what nobody was told of."""
    errors: tuple[type[BaseException], ...] = ()
    if plan.fails:
        errors += (ValueError,)
    if plan.end == "lost":
        errors += (trickle.HostLost,)
    if plan.end == "error here":
        errors += (ZeroDivisionError,)
    return contextlib.suppress(*errors)


async def end_it(plan: Plan, lose: Lose, scope: trio.CancelScope, receive: Callable[[], Awaitable[object]],
                 aclose: Callable[[], Awaitable[None]]) -> None:  # fmt: skip
    match plan.end:
        case "close":
            await aclose()
            with pytest.raises(trio.ClosedResourceError):
                await receive()
        case "cancel":
            scope.cancel()
            await trio.sleep_forever()
        case "error here":
            raise ZeroDivisionError
        case "lost":
            await lose()
            while True:
                try:
                    await receive()
                except trio.EndOfChannel:
                    break


async def stream(plan: Plan, open: OpenFar, directory: Path) -> None:
    path = directory / f"end{trio.current_time()}"
    received: list[object] = []
    async with open() as (host, lose):
        with expected_errors(plan), trio.CancelScope() as scope:
            async with host.stream(flows.scripted, plan.sizes, plan.stalls_there, plan.fails, str(path)) as things:
                received = await carry_out(plan, host, lose, things.receive, things.aclose)
                await end_it(plan, lose, scope, things.receive, things.aclose)
        if plan.end != "cancel" or not plan.fails:  # else the function's error may have come first
            assert scope.cancelled_caught == (plan.end == "cancel")
        await check_end(plan, host, path)
    expected = [content(number, size) for number, size in enumerate(plan.sizes)]
    assert received == expected[: len(received)]
    if plan.end == "all":
        assert received == expected


async def channel(plan: Plan, open: OpenFar, directory: Path) -> None:
    path = directory / f"end{trio.current_time()}"
    received: list[object] = []
    async with open() as (host, lose):

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for number, size in enumerate(plan.sizes):
                    await there.send(content(number, size))
                await there.send_eof()

        with expected_errors(plan), trio.CancelScope() as scope:
            async with host.open_channel(flows.scripted_echo, plan.stalls_there, plan.fails, str(path)) as there:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    try:
                        received = await carry_out(plan, host, lose, there.receive, there.aclose)
                        await end_it(plan, lose, scope, there.receive, there.aclose)
                    except Exception as exc:
                        error: Exception | None = exc
                    else:
                        error = None
                    if plan.end != "all":
                        nursery.cancel_scope.cancel()
                if error is not None:
                    raise error
                if plan.end == "all" and not plan.fails:
                    assert await there.result() == len(plan.sizes)
        if plan.end != "cancel" or not plan.fails:  # else the function's error may have come first
            assert scope.cancelled_caught == (plan.end == "cancel")
        await check_end(plan, host, path)
    expected = [content(number, size) for number, size in enumerate(plan.sizes)]
    assert received == expected[: len(received)]
    if plan.end == "all":
        assert received == expected


FEW = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(plan=PLANS)
async def test_streams_in_memory(plan: Plan, tmp_path: Path) -> None:
    await stream(plan, open_memory, tmp_path)


@MANY
@given(plan=PLANS)
async def test_channels_in_memory(plan: Plan, tmp_path: Path) -> None:
    await channel(plan, open_memory, tmp_path)


@pytest.mark.parametrize("kind", ["local", "ssh"])
@FEW
@given(plan=PLANS)
async def test_streams_of_processes(kind: str, plan: Plan, request: pytest.FixtureRequest, shared: Path) -> None:
    await stream(plan, far_of(kind, request), shared)


@pytest.mark.parametrize("kind", ["local", "ssh"])
@FEW
@given(plan=PLANS)
async def test_channels_of_processes(kind: str, plan: Plan, request: pytest.FixtureRequest, shared: Path) -> None:
    await channel(plan, far_of(kind, request), shared)
