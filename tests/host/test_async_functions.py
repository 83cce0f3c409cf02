"""``async def`` functions run under trio over there; the cancel that reaches them is trio's own."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from tests import far_async, pythons, work
from tests.hosts import file_appears
from tests.requirements import require
from trickle import _async_support
from trickle.abc import Tunnel


async def test_an_async_function_returns_and_raises_as_a_plain_one(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        assert await host.call(far_async.sleep_and_say, 0.01) == "slept"
        assert await host.call(far_async.two_tasks) == [1, 2]
        with pytest.raises(LookupError, match="async"):
            await host.call(far_async.fail)


@pytest.mark.parametrize(
    ("fn", "frames"),
    [(far_async.wait_deep_inside, ["wait_inside", "wait_deep_inside"]), (far_async.spin_inside, ["spin_inside"])],
)
async def test_the_stack_at_a_deadline_is_that_of_the_function(fn: Any, frames: list[str], far: Tunnel) -> None:
    async with trickle.open_group([far]) as group:
        (await group.call(far_async.sleep_and_say, 0.01)).unwrap()
        results = await group.options(timeout=1, grace_period=1).call(fn)

    (error,) = results.failures().values()
    assert isinstance(error, trickle.CallTimeout) and error.remote_stack is not None
    stack = [line.rpartition(" in ")[2] for line in error.remote_stack.splitlines() if "far_async.py" in line]
    assert stack == frames


async def test_the_traceback_of_an_async_function_begins_with_its_own_code(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        with pytest.raises(trickle.RemoteError) as called:
            await host.call(far_async.fail_deep_inside)
        with pytest.raises(trickle.RemoteError) as streamed:
            async with host.stream(far_async.yield_and_fail) as items:
                async for _ in items:
                    pass

    for error, frames in ((called.value, ["fail_deep_inside", "fail"]), (streamed.value, ["yield_and_fail", "fail"])):
        lines = [line for line in error.remote_traceback.splitlines() if line.startswith("  File ")]
        assert [line.rpartition(" in ")[2] for line in lines] == frames


async def test_a_cancelled_async_function_is_over(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, far_async.start_and_sleep, str(shared / "started"))
            await file_appears(shared / "started")
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"cancelled": 1}
        assert await host.call(work.add, 1, 2) == 3


async def test_nothing_is_said_of_an_async_function_that_is_cancelled_before_it_begins(
    far: Tunnel, shared: Path
) -> None:
    lines: list[trickle.OutputLine] = []

    async with trickle.open_host(far, output=lines.append) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, far_async.wait_for_a_slow_trio, str(shared / "starting"))
            await file_appears(shared / "starting")
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"cancelled": 1}
    assert lines == []


async def test_shielded_cleanup_is_honoured_within_the_grace_period(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, far_async.clean_up, str(shared / "clean"), 0.2)
            await file_appears(shared / "clean.started")
            nursery.cancel_scope.cancel()

        assert (shared / "clean").read_text() == "clean"
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_shielded_cleanup_beyond_the_grace_period_is_killed(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            view = host.options(grace_period=0.2)
            nursery.start_soon(view.call, far_async.clean_up, str(shared / "clean"), 3600.0)
            await file_appears(shared / "clean.started")
            nursery.cancel_scope.cancel()

        assert not (shared / "clean").exists()
        assert host.statistics().verdicts == {"killed": 1}


async def test_an_async_function_is_refused_by_name_where_trio_cannot_run() -> None:
    old = [python for python in pythons.far_pythons() if (pythons.version_of(python) or (9,)) < (3, 10)]
    if not old:
        require("pythons", "no Python older than 3.10 on this machine")

    async with trickle.open_host(trickle.Local("web1", python=old[0])) as host:
        with pytest.raises(
            trickle.Unsendable, match="web1: sleep_and_say is async, and trio .* needs Python 3"
        ) as caught:
            await host.call(far_async.sleep_and_say, 0.01)

        assert caught.value.host == "web1"
        assert host.statistics().verdicts == {}


def test_what_trio_needs_is_read_from_its_own_metadata() -> None:
    assert _async_support.oldest_python() >= (3, 8)


def test_a_package_that_trio_needs_on_an_older_python_is_named_if_it_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(trickle.Unsendable, match=r"web1: fail is async, .* exceptiongroup, .* install it here"):
        _async_support.check_can_run(far_async.fail, "web1", (3, 10, 4), ())
    _async_support.check_can_run(far_async.fail, "web1", (3, 11, 0), ())


async def test_the_package_that_trio_needs_on_an_older_python_is_sent_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [python for python in pythons.far_pythons() if (pythons.version_of(python) or (9,))[:2] == (3, 10)]
    if not old:
        require("pythons", "no Python 3.10 on this machine")
    (tmp_path / "exceptiongroup.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)

    async with trickle.open_host(trickle.Local(python=old[0])) as host:
        assert await host.call(far_async.two_tasks) == [1, 2]
        with pytest.raises(LookupError, match="async"):
            await host.call(far_async.fail)


# As much of the package exceptiongroup as trio has use for when nothing is a group.
STAND_IN = """
class BaseExceptionGroup(BaseException):
    def __class_getitem__(cls, item):
        return cls
class ExceptionGroup(BaseExceptionGroup, Exception):
    pass
def catch(handlers):
    raise NotImplementedError
"""


def test_modules_that_a_host_lacks_are_named() -> None:
    with pytest.raises(trickle.Unsendable, match="web1: .* queue"):
        _async_support.check_can_run(far_async.fail, "web1", (3, 12, 0), {"queue"})


async def test_a_reason_reaches_the_code_that_is_cancelled(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.call, work.keep_reason, str(shared / "reason"))
                await file_appears(shared / "reason.started")
                scope.cancel(reason="no longer wanted")

    assert (shared / "reason").read_text() == "no longer wanted"


async def test_a_thread_of_the_calls_own_can_ask_whether_it_is_cancelled(far: Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.check_in_thread, str(shared / "checked"))
            await file_appears(shared / "checked.started")
            nursery.cancel_scope.cancel()

    assert (shared / "checked").read_text() == "CallCancelled"
