"""What a group does by its options, told exactly: over hosts in memory, by a clock that jumps."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.remote
from tests.async_work import clean_up_for, journal
from trickle._group import group_of
from trickle._memory_tunnel import Memory, MemoryTunnel
from trickle._settings import OpenSettings
from trickle._turns import TURN_HELD, Turns
from trickle.testing import (
    LinkLost,
    Silence,
    SlowLink,
    Unreachable,
    WorkerKilled,
    open_memory_group,
)

HANGS = SlowLink(bytes_per_second=1e-9)  # while it connects


@pytest.fixture(autouse=True)
def clock(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


@pytest.fixture(autouse=True)
def empty_journal() -> Iterator[None]:
    journal.clear()
    yield
    journal.clear()


def name() -> str:
    assert trickle.remote.host_name is not None
    return trickle.remote.host_name


async def sleep(seconds: dict[str, float]) -> str:
    await trio.sleep(seconds.get(name(), 0))
    return name()


async def fail_on(hosts: str, after: float = 0) -> str:
    await trio.sleep(after)
    if name() in hosts:
        raise ValueError(f"{name()} is ill")
    return name()


# ---- what options are


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "5"},
        {"limit": 0},
        {"limit": 1.5},
        {"need": 0},
        {"need": 0.0},
        {"need": 1.5},
        {"need": True},
        {"on_failure": "stop"},
        {"max_failures": -1},
        {"retries": -1},
        {"retries": 1},
        {"hedge": 1},
        {"repeatable": True, "hedge": 0},
    ],
)
async def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    async with open_memory_group("ab") as group:
        with pytest.raises(ValueError, match=next(reversed(options))):
            group.options(**options)


async def test_options_are_refused_by_type_and_name() -> None:
    async with open_memory_group("ab") as group:
        with pytest.raises(TypeError, match="progress"):
            group.options(progress=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="unknown"):
            group.options(unknown=1)  # type: ignore[call-arg]


async def test_options_add_up() -> None:
    async with open_memory_group("abc") as group:
        view = group.options(repeatable=True).options(retries=1).options(env={"A": "b"}).options(need=2)

        assert view._group_options.retries == 1 and view._group_options.need == 2
        assert view["a"]._options.env == {"A": "b"}
        assert (await view.options(need=None, env=None).call(sleep, {})).unwrap() == {"a": "a", "b": "b", "c": "c"}


# ---- need


@pytest.mark.parametrize(("need", "successes"), [(1, 1), (3, 3), (0.01, 1), (0.5, 3), (0.6, 3), (0.61, 4), (1.0, 5)])
async def test_as_many_as_are_needed(need: float, successes: int) -> None:
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}

    async with open_memory_group("abcde") as group:
        results = await group.options(need=need).call(sleep, seconds)

    assert list(results.successful()) == list("abcde")[:successes]
    assert trio.current_time() == successes


async def test_more_than_there_are_can_never_come() -> None:
    async with open_memory_group("ab") as group:
        with pytest.raises(ValueError, match="need=3: there are only 2"):
            await group.options(need=3).call(sleep, {})
        with pytest.raises(ValueError, match="need=3"):
            async with group.options(need=3).as_completed(sleep, {}):
                pass


async def test_what_can_come_is_waited_for_when_the_quorum_cannot() -> None:
    async with open_memory_group("abc") as group:
        results = await group.options(need=3).call(fail_on, "a", after=1)

    assert results.successful() == {"b": "b", "c": "c"}
    with pytest.raises(ExceptionGroup):
        results.unwrap()


async def test_hosts_beyond_the_quorum_are_never_begun_under_a_limit() -> None:
    async with open_memory_group("abcd") as group:
        results = await group.options(need=2, limit=1).call(sleep, {})

        assert list(results.successful()) == ["a", "b"]
        assert group["c"].statistics().verdicts == {}
        error = results.failures()["d"]
    assert isinstance(error, trickle.NotNeeded) and error.host == "d"
    assert str(error) == "d: not needed: 2 had succeeded, and no more were needed (verdict: never started)"


async def test_one_that_returns_all_the_same_counts() -> None:
    """The verdict is the truth: it was stopped, and returned."""
    async with open_memory_group("ab") as group:
        results = await group.options(need=1).call(_return_anyway_on_b)

    assert results.unwrap() == {"a": "a", "b": "anyway"}


async def _return_anyway_on_b() -> str:
    if name() == "a":
        await trio.sleep(1)
        return "a"
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return "anyway"


async def test_an_error_that_comes_of_being_stopped_is_not_the_hosts_failure() -> None:
    async with open_memory_group("ab") as group:
        results = await group.options(need=1).call(_raise_otherwise_on_b)

    results.raise_failures()
    error = results.failures()["b"]
    assert isinstance(error, trickle.NotNeeded)
    assert isinstance(error.__cause__, LookupError)


async def _raise_otherwise_on_b() -> None:
    if name() == "a":
        await trio.sleep(1)
        return
    try:
        await trio.sleep_forever()
    finally:
        raise LookupError("while cleaning up")


async def test_one_whose_time_was_up_before_has_timed_out() -> None:
    """Its verdict comes when the quorum is there already."""
    async with open_memory_group("ab") as group:
        results = await group.options(need=1, timeout=3).call(_clean_up_on_b)

    assert isinstance(results.failures()["b"], trickle.CallTimeout)
    assert trio.current_time() == 5


async def _clean_up_on_b() -> None:
    if name() == "a":
        with trio.CancelScope(shield=True):
            await trio.sleep(4)
        return
    await clean_up_for(2)


async def test_the_verdicts_of_the_rest_are_waited_for() -> None:
    async with open_memory_group("ab") as group:
        await group.options(need=1).call(_clean_up_on_b_for_long)

        assert group["b"].statistics().verdicts == {"cancelled": 1}
    assert trio.current_time() == 4


async def _clean_up_on_b_for_long() -> None:
    if name() == "b":
        await clean_up_for(3)
    await trio.sleep(1)


async def test_a_host_that_gives_no_verdict_is_given_up_in_bounded_time() -> None:
    async with open_memory_group("ab", faults={"b": [Silence(at=0.5)]}) as group:
        results = await group.options(need=1, grace_period=1).call(sleep, {"a": 1, "b": 3600})

        assert trio.current_time() <= 1 + 1 + 5
        assert isinstance(results.failures()["b"], trickle.NotNeeded)
        assert list(group.unreachable) == ["b"]


# ---- failures


async def test_the_first_failure_decides_and_others_of_the_same_moment_are_told() -> None:
    async with open_memory_group("abc") as group:
        results = await group.options(on_failure="cancel").call(fail_on, "ab", after=1)

    kinds = Counter(type(error).__name__ for error in results.failures().values())
    assert kinds["RemoteValueError"] >= 1
    assert results["c"] == trickle.Success("c") or isinstance(results.failures()["c"], trickle.NotNeeded)


@pytest.mark.parametrize(("allowed", "failed"), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4)])
async def test_failures_are_allowed_up_to_a_number(allowed: int, failed: int) -> None:
    async with open_memory_group("abcd") as group:
        view = group.options(max_failures=allowed, on_failure="cancel", limit=1)
        results = await view.call(fail_on, "abcd")

    errors = list(results.failures().values())
    assert [isinstance(error, ValueError) for error in errors] == [True] * failed + [False] * (4 - failed)


async def test_being_unreachable_is_a_failure() -> None:
    async with open_memory_group("ab", faults={"a": [Unreachable()]}) as group:
        results = await group.options(on_failure="cancel").call(sleep, {"b": 60})

    assert isinstance(results.failures()["a"], trickle.ConnectError)
    assert str(results.failures()["b"]).startswith("b: not needed: a had failed (ConnectError) (verdict: ")


# ---- timeouts


async def test_time_runs_from_the_hosts_turn() -> None:
    async with open_memory_group("abc") as group:
        results = await group.options(timeout=5, limit=1).call(sleep, dict.fromkeys("abc", 4))

    assert results.unwrap() == {"a": "a", "b": "b", "c": "c"}
    assert trio.current_time() == 12


async def test_time_runs_from_the_turn_to_connect() -> None:
    """Hosts that hang hold up the others' turn for a while, and cost them none of their time."""
    names = [f"hangs{number}" for number in range(3)] + ["well"]
    async with trio.open_nursery() as nursery:
        memories = {each: Memory(nursery, (HANGS,) if each.startswith("hangs") else ()) for each in names}
        tunnels = {each: MemoryTunnel(name=each) for each in names}
        settings = OpenSettings(wait=False, connect_timeout=600, sends_modules=False)
        async with group_of(tunnels, settings, lambda each: memories[each].start, Turns(1, 4)) as group:
            results = await group.options(timeout=TURN_HELD + 1).call(sleep, {})
            assert 3 * TURN_HELD <= trio.current_time() < 3 * TURN_HELD + 2
        async with trio.open_nursery() as ending:
            for memory in memories.values():
                ending.start_soon(memory.end)

    assert results.successful() == {"well": "well"}
    errors = [results.failures()[each] for each in names[:3]]
    assert all(isinstance(error, trickle.CallTimeout) for error in errors)
    assert {error.stage for error in errors if isinstance(error, trickle.CallTimeout)} == {
        "connecting: waiting for the agent"
    }


async def test_turns_begin_apart_and_go_on_in_order() -> None:
    turns, begun = Turns(2, 4), []

    async def connect(number: int) -> None:
        await turns.take()
        begun.append((number, trio.current_time()))
        await trio.sleep(10)
        turns.give_back()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(connect, number)

    assert {number for number, when in begun if when < 1} == {begun[0][0], begun[1][0]}
    assert all(9 < when < 11 for _, when in begun[2:])


async def test_a_turn_that_is_cancelled_in_its_pause_is_given_back() -> None:
    turns = Turns(2, 3)
    turns._spread = 10
    with trio.move_on_after(0.001):
        await turns.take()

    await turns.take()
    await turns.take()


# ---- retries


async def test_attempts_have_delays_between_them_and_one_timeout_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trickle._fan_out.backoff", lambda failures: 2.0**failures)

    async with open_memory_group("a") as group:
        results = await group.options(repeatable=True, retries=1000, timeout=60).call(fail_on, "a")

        error = results.failures()["a"]
        assert isinstance(error, trickle.CallTimeout) and error.stage == "waiting to be tried again"
        assert isinstance(error.__cause__, ValueError)
        assert group["a"].statistics().verdicts == {"raised": 5}  # at 0, 2, 6, 14 and 30 s
        assert trio.current_time() == 60


@pytest.mark.parametrize("how", ["call", "map"])
async def test_cancelled_while_a_host_waits_to_be_tried_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_fan_out", "_spread"):
        monkeypatch.setattr(f"trickle.{module}.backoff", lambda failures: 3600.0)

    async with open_memory_group("a") as group:
        view = group.options(repeatable=True, retries=1)
        with trio.move_on_after(60) as scope:
            await (view.call(fail_on, "a") if how == "call" else mapped(view, items(1, fail=True)))

        assert scope.cancelled_caught
        assert trio.current_time() == 60
        assert group["a"].statistics().verdicts == {"raised": 1}
        assert (await group.call(sleep, {})).unwrap() == {"a": "a"}


async def test_what_cannot_end_otherwise_is_not_tried_again() -> None:
    async with open_memory_group("ab", faults={"b": [LinkLost(at=1)]}) as group:
        view = group.options(repeatable=True, retries=5)
        unsendable = await view.call(sleep, (number for number in ()))  # type: ignore[arg-type]
        unsafe = await view.call(_return_thing)
        lost = await view.call(sleep, {"b": 60})

        assert all(isinstance(error, trickle.Unsendable) for error in unsendable.failures().values())
        assert all(isinstance(error, trickle.UnsafeResult) for error in unsafe.failures().values())
        assert isinstance(lost.failures()["b"], trickle.HostLost)
        assert group["a"].statistics().verdicts == {"returned": 2}


class Thing:
    pass


async def _return_thing() -> Thing:
    return Thing()


async def test_a_worker_that_dies_and_a_host_that_comes_back_are_tried_again() -> None:
    faults = {"a": [WorkerKilled(call=1, after=1)], "b": [LinkLost(at=1)]}
    async with open_memory_group("ab", faults=faults) as group:
        view = group.options(repeatable=True, retries=1, reconnect=True)
        results = await view.call(sleep, {"a": 2, "b": 2})

    assert results.unwrap() == {"a": "a", "b": "b"}


async def test_a_host_is_tried_again_only_for_what_may_go_away_by_itself() -> None:
    faults = {"a": [Unreachable()], "b": [Unreachable(stderr="b@memory: Permission denied (publickey).\n")]}

    async with open_memory_group("ab", faults=faults) as group:
        results = await group.options(repeatable=True, retries=1, reconnect=True).call(sleep, {})

    assert results.successful() == {"a": "a"}
    error = results.failures()["b"]
    assert isinstance(error, trickle.ConnectError) and error.reason == "authentication"


async def test_calls_are_not_repeated_unasked() -> None:
    async with open_memory_group("a", faults={"a": [WorkerKilled(call=1, after=1)]}) as group:
        results = await group.options(reconnect=True, repeatable=True).call(sleep, {"a": 2})

    assert isinstance(results.failures()["a"], trickle.WorkerDied)


# ---- map


async def work_on(item: dict[str, Any]) -> object:
    """Take so long, the first attempt perhaps longer; fail if that is what it says."""
    attempt = began(item["key"])
    journal.append((item["key"], "began", trio.current_time()))
    try:
        await trio.sleep(item.get("at_first", 1) if attempt == 0 else item.get("seconds", 1))
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(item.get("cleaning", 0))
        journal.append((item["key"], "ended", trio.current_time()))
    if item.get("fail") and attempt >= item.get("succeeded", 0):
        raise ValueError(item["key"])
    return item["key"]


def began(key: int) -> int:
    return len([entry for entry in journal if entry[:2] == (key, "began")])


def items(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"key": number, **more} for number in range(count)]


async def mapped(group: trickle.Group, work: Any) -> list[trickle.MapResult[Any, Any]]:
    async with group.map(work_on, work) as found:
        return [result async for result in found]


def keys(results: list[trickle.MapResult[Any, Any]]) -> list[int]:
    return sorted(result.index for result in results)


async def test_items_run_on_all_hosts_at_once() -> None:
    async with open_memory_group("abcd") as group:
        results = await mapped(group, items(8))

    assert keys(results) == list(range(8))
    assert trio.current_time() == 2
    assert Counter(result.host for result in results) == dict.fromkeys("abcd", 2)


async def test_items_run_under_a_limit() -> None:
    async with open_memory_group("abcd") as group:
        await mapped(group.options(limit=2), items(8))

    assert trio.current_time() == 4


async def test_the_options_of_map_count_items() -> None:
    async with open_memory_group("ab") as group:
        enough = await mapped(group.options(need=3), items(100))
        share = await mapped(group.options(need=0.25), items(8))
        failed = await mapped(group.options(on_failure="cancel"), [{"key": 0, "fail": True}, *items(50, seconds=2)])

    def count(results: list[trickle.MapResult[Any, Any]], kind: type) -> int:
        return sum(isinstance(getattr(each.result, "error", each.result), kind) for each in results)

    assert count(enough, trickle.Success) in (3, 4) and len(enough) <= 5
    assert count(share, trickle.Success) == 2
    assert count(failed, ValueError) == 1 and count(failed, trickle.NotNeeded) == len(failed) - 1 == 1


async def test_map_says_what_it_cannot_do() -> None:
    async with open_memory_group("ab") as group:
        with pytest.raises(ValueError, match="no hosts"):
            async with group[:0].map(work_on, items(1)):
                pass
        with pytest.raises(ValueError, match=r"need=0\.5: a share of what has no len"):
            async with group.options(need=0.5).map(work_on, iter(items(1))):
                pass
        with pytest.raises(ValueError, match="need=3: there are only 2"):
            async with group.options(need=3).map(work_on, items(2)):
                pass


async def test_no_items_are_no_results() -> None:
    async with open_memory_group("ab") as group:
        assert await mapped(group, []) == []


async def test_an_error_of_the_items_is_raised_when_the_block_is_left() -> None:
    def numbers() -> Iterator[dict[str, Any]]:
        yield from items(3)
        raise KeyError("no more")

    async with open_memory_group("ab") as group:
        results = []
        with pytest.raises(KeyError):
            async with group.map(work_on, numbers()) as found:
                results = [result async for result in found]

        assert keys(results) == [0, 1, 2]
        with pytest.raises(ZeroDivisionError):
            async with group.map(work_on, numbers()) as found:
                async for _ in found:
                    pass
                raise ZeroDivisionError


async def test_a_host_that_hangs_while_connecting_gets_no_item() -> None:
    async with open_memory_group("ab", faults={"a": [HANGS]}) as group:
        results = await mapped(group, items(5))

        assert trio.current_time() == 5
    assert {result.host for result in results} == {"b"}


async def test_items_fail_when_no_host_is_left() -> None:
    faults = {"a": [LinkLost(at=2.5)], "b": [Unreachable()]}
    async with open_memory_group("ab", faults=faults) as group:
        results = await mapped(group, items(5))

        assert trio.current_time() == pytest.approx(2.5, abs=0.2)
    outcomes = [result.result for result in sorted(results)]
    assert outcomes[:2] == [trickle.Success(0), trickle.Success(1)]
    assert [type(getattr(outcome, "error", None)) for outcome in outcomes[2:]] == [trickle.HostLost] * 3


async def test_a_host_that_comes_back_takes_items_again() -> None:
    async with open_memory_group("a", faults={"a": [LinkLost(at=1.5), Unreachable(times=1)]}) as group:
        view = group.options(reconnect=True, repeatable=True)
        assert keys(await mapped(view, items(4))) == [0, 1, 2, 3]

    async with open_memory_group("b", faults={"b": [Unreachable(times=1000)]}) as group:
        (result,) = await mapped(group.options(reconnect=True), items(1))
        assert isinstance(result.result, trickle.Failure)
        assert isinstance(result.result.error, trickle.ConnectError)


async def test_an_item_is_taken_for_the_cause_when_three_hosts_were_lost_under_it() -> None:
    async with open_memory_group("abcde") as group:
        async with group.options(repeatable=True).map(work_on, items(1, at_first=1000, seconds=1000)) as found:
            for hosts_lost in range(3):
                while began(0) == hosts_lost:
                    await trio.sleep(0.1)
                (busy,) = [host for host in group.values() if host.statistics().calls_running]
                busy._core.link._process.send_signal(9)  # type: ignore[union-attr]
            result = await found.receive()

    assert isinstance(result.result, trickle.Failure)
    assert isinstance(result.result.error, trickle.HostLost)
    assert began(0) == 3


async def test_a_failed_item_is_tried_again_if_it_is_safe() -> None:
    async with open_memory_group("ab") as group:
        once = await mapped(group, items(1, fail=True))
        assert began(0) == 1
        thrice = await mapped(group.options(repeatable=True, retries=2), items(1, fail=True))

    assert began(0) == 1 + 3
    assert isinstance(once[0].result, trickle.Failure) and isinstance(thrice[0].result, trickle.Failure)


async def test_an_item_has_its_own_time_and_then_goes_to_a_free_host_if_it_is_safe() -> None:
    async with open_memory_group("ab") as group:
        alone = await mapped(group.options(timeout=5), items(1, at_first=60))
        journal.clear()
        again = await mapped(group.options(timeout=5, repeatable=True, retries=1), items(1, at_first=60))

    assert isinstance(alone[0].result, trickle.Failure)
    assert isinstance(alone[0].result.error, trickle.CallTimeout)
    assert again[0].result == trickle.Success(0)


async def test_a_host_that_will_never_let_us_in_takes_no_items_and_is_asked_once() -> None:
    denied = Unreachable(stderr="a@memory: Permission denied (publickey).\n")

    async with open_memory_group("a", faults={"a": [denied]}) as group:
        results = await mapped(group.options(reconnect=True), items(1))

    assert isinstance(results[0].result, trickle.Failure)
    assert isinstance(results[0].result.error, trickle.ConnectError)


# ---- hedging


async def test_the_first_answer_counts_and_the_loser_is_gone_when_it_comes() -> None:
    async with open_memory_group("ab") as group:
        view = group.options(repeatable=True, hedge=5)
        async with view.map(work_on, items(1, at_first=60, cleaning=2)) as found:
            result = await found.receive()

            assert trio.current_time() == 5 + 1 + 2 + 2  # the winner cleans up too
            assert result.result == trickle.Success(0)
            loser = "b" if result.host == "a" else "a"
            assert group[loser].statistics().verdicts == {"cancelled": 1}


async def test_a_loser_that_does_not_end_holds_up_its_answer_for_no_longer_than_a_hedge() -> None:
    async with open_memory_group("ab") as group:
        view = group.options(repeatable=True, hedge=2)
        async with view.map(work_on, items(1, at_first=60)) as found:
            while not began(0):
                await trio.sleep(0.1)
            (loser,) = [host for host in group.values() if host.statistics().calls_running]
            loser._core.link._process.fall_silent()  # type: ignore[union-attr]
            result = await found.receive()

            assert trio.current_time() == pytest.approx(2 + 1 + 2, abs=0.2)
            assert (result.host == loser.name, result.result) == (False, trickle.Success(0))
            assert loser.statistics().verdicts == {}

        assert loser.statistics().verdicts == {"unknown": 1}  # it was given up
        assert list(group.unreachable) == [loser.name]


async def test_no_more_than_two_run_one_item_at_once() -> None:
    async with open_memory_group("abcd") as group:
        results = await mapped(group.options(repeatable=True, hedge=1), items(1, at_first=10, seconds=10))

    assert began(0) == 2
    assert results[0].result == trickle.Success(0)


async def test_what_is_quick_is_not_hedged() -> None:
    async with open_memory_group("ab") as group:
        await mapped(group.options(repeatable=True, hedge=5), items(10, at_first=4))

    assert [began(key) for key in range(10)] == [1] * 10


async def test_an_answer_may_be_an_error_of_the_function() -> None:
    async with open_memory_group("ab") as group:
        results = await mapped(group.options(repeatable=True, hedge=5), items(1, at_first=60, fail=True))

        assert trio.current_time() == 6
    assert isinstance(results[0].result, trickle.Failure)
    assert isinstance(results[0].result.error, ValueError)


@pytest.mark.parametrize("who", ["first", "second"])
async def test_the_loss_of_one_of_two_hosts_leaves_the_other_to_answer(who: str) -> None:
    async with open_memory_group("ab") as group:
        view = group.options(repeatable=True, hedge=5)
        async with view.map(work_on, items(1, at_first=20, seconds=20)) as found:
            while not began(0):
                await trio.sleep(0.1)
            (first,) = [host.name for host in group.values() if host.statistics().calls_running]
            while began(0) == 1:
                await trio.sleep(0.1)
            lost = first if who == "first" else next(name for name in group if name != first)
            group[lost]._core.link._process.send_signal(9)  # type: ignore[union-attr]
            result = await found.receive()

    assert result.host != lost
    assert result.result == trickle.Success(0)


async def test_an_item_that_was_offered_twice_has_one_outcome_when_the_last_host_is_lost() -> None:
    async with open_memory_group("a", faults={"a": [LinkLost(at=11)]}) as group:
        view = group.options(repeatable=True, hedge=1)
        async with view.map(work_on, [{"key": 0, "at_first": 10}, {"key": 1, "at_first": 60}, {"key": 2}]) as found:
            results = [result async for result in found]

    assert keys(results) == [0, 1, 2]
    assert [type(result.result) for result in sorted(results)] == [trickle.Success, trickle.Failure, trickle.Failure]


async def test_what_runs_when_it_is_enough_has_its_own_outcome_though_it_was_offered_again() -> None:
    async with open_memory_group("ab") as group:
        view = group.options(repeatable=True, hedge=2, need=1)
        async with view.map(return_at_any_rate, [60, 3]) as found:
            results = {result.item: result.result async for result in found}

    assert results == {3: trickle.Success(3), 60: trickle.Success("returned all the same")}


async def return_at_any_rate(seconds: float) -> object:
    try:
        await trio.sleep(seconds)
    except trio.Cancelled:
        return "returned all the same"
    return seconds


async def test_leaving_early_stops_hedged_items_too() -> None:
    async with open_memory_group("ab") as group:
        with trio.move_on_after(7):
            async with group.options(repeatable=True, hedge=5).map(work_on, items(1, at_first=60, seconds=60)) as found:
                await found.receive()

        assert all(host.statistics().verdicts == {"cancelled": 1} for host in group.values())


async def test_cancelled_while_a_loser_still_cleans_up() -> None:
    async with open_memory_group("ab") as group:
        with trio.move_on_after(5 + 1 + 2 + 1) as scope:  # the winner has cleaned up for 2 s, the loser for 1
            await mapped(group.options(repeatable=True, hedge=5), items(1, at_first=60, cleaning=2))

        assert scope.cancelled_caught
        assert journal[-1] == (0, "ended", 5 + 1 + 2 + 2)
        assert trio.current_time() == 5 + 1 + 2 + 2
        verdicts = [dict(host.statistics().verdicts) for host in group.values()]
        assert sorted(verdicts, key=str) == [{"cancelled": 1}, {"returned": 1}]
        assert (await group.call(sleep, {})).unwrap() == {"a": "a", "b": "b"}


# ---- the channel


async def test_an_exception_of_the_body_goes_before_the_cancellation_around_it() -> None:
    async with open_memory_group("ab") as group:
        with pytest.raises(LookupError), trio.CancelScope() as scope:
            async with group.as_completed(sleep, {"a": 60, "b": 60}) as outcomes:
                scope.cancel()
                try:
                    await outcomes.receive()
                finally:
                    raise LookupError


async def test_a_reader_that_takes_its_time_bounds_what_is_run_ahead() -> None:
    async with open_memory_group([f"n{number}" for number in range(20)]) as group:
        async with group.options(limit=3).as_completed(sleep, {}) as outcomes:
            for received in range(1, 20):
                await outcomes.receive()
                await trio.sleep(1)
                begun = sum(bool(host.statistics().verdicts) for host in group.values())
                assert begun <= received + 3


async def test_several_tasks_may_read() -> None:
    seen = []

    async with open_memory_group("abcdef") as group:
        async with group.as_completed(sleep, {}) as outcomes, trio.open_nursery() as nursery:

            async def read() -> None:
                async for each, _ in outcomes:
                    seen.append(each)

            nursery.start_soon(read)
            nursery.start_soon(read)

    assert sorted(seen) == list("abcdef")


# ---- parts of groups


async def test_parts_of_groups_keep_the_left_operands_order_and_options() -> None:
    async with open_memory_group("abcdef") as group:
        left, right = group.options(timeout=7, env={"A": "b"}).select("d", "a", "b"), group.options(limit=1)[2:4]

        assert list(left) == ["a", "b", "d"]
        assert list(right) == ["c", "d"]
        assert list(right | left) == ["c", "d", "a", "b"]
        assert list(left & right) == ["d"]
        assert list(left - right) == ["a", "b"]
        assert list(left ^ right) == ["a", "b", "c"]
        assert list(group[::-2]) == ["f", "d", "b"]
        both = left | right
        assert both._group_options == left._group_options
        assert all(host._options is left._options for host in both.values())
        assert both["c"]._core is group["c"]._core
        with pytest.raises(TypeError):
            left | {"a": group["a"]}  # type: ignore[operator]


async def test_one_name_for_two_hosts_is_refused() -> None:
    async with open_memory_group("ab") as one, open_memory_group("bc") as other:
        for combine in (trickle.Group.__or__, trickle.Group.__and__, trickle.Group.__sub__, trickle.Group.__xor__):
            with pytest.raises(ValueError, match="'b' is one host in one of these groups, and another in the other"):
                combine(one, other)
        assert list(one[:1] | other) == ["a", "b", "c"]


async def test_select_takes_names_and_patterns() -> None:
    async with open_memory_group([*trickle.hosts("web[01-12].example.com,db[1-3]"), "sudo:db1"]) as group:
        assert list(group.select("db[1-2]", "web03*")) == ["web03.example.com", "db1", "db2"]
        assert list(group.select("web[11-20]*")) == ["web11.example.com", "web12.example.com"]
        assert list(group.select("*db1")) == ["db1", "sudo:db1"]
        assert list(group.select("sudo:db1")) == ["sudo:db1"]
        assert list(group.select("d?3")) == ["db3"]
        assert list(group.select("nothing*")) == []
        with pytest.raises(KeyError, match="no host of this group is called 'wbe01'"):
            group.select("wbe01")


async def test_a_filter_runs_by_the_groups_options() -> None:
    async with open_memory_group("abc") as group:
        left = await group.options(timeout=5).filter(sleep, {"b": 60})

        assert list(left) == ["a", "c"]
        assert left._group_options.timeout == 5


# ---- who is waited for


def said_of_waiting(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("waiting for")]


async def test_the_log_says_who_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trickle")

    async with open_memory_group([f"n{number}" for number in range(20)]) as group:
        await group.call(sleep, {f"n{number}": 15 if number < 18 else 45 for number in range(5, 20)})

    lines = said_of_waiting(caplog)
    assert lines[0].startswith("waiting for 15 of 20 hosts: ") and lines[0].endswith("and 5 more")
    assert lines[1] in (
        "waiting for 2 of 20 hosts: n18 (running, 30 s), n19 (running, 30 s)",
        "waiting for 2 of 20 hosts: n19 (running, 30 s), n18 (running, 30 s)",
    )
    assert len(lines) == 2


async def test_one_that_is_to_be_tried_again_is_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trickle._fan_out.backoff", lambda failures: 12.0)
    caplog.set_level(logging.INFO, "trickle")
    told: list[trickle.HostProgress] = []

    async with open_memory_group("a") as group:
        await group.options(repeatable=True, retries=1, progress=told.append).call(fail_on, "a")

    assert said_of_waiting(caplog) == ["waiting for 1 of 1 hosts: a (waiting to be tried again, 10 s)"]
    assert [each.state for each in told][-4:] == ["waiting", "sending code", "running", "failed"]


async def test_those_whose_turn_has_not_come_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trickle")
    told: list[trickle.HostProgress] = []

    async with open_memory_group("abc") as group:
        await group.options(limit=1, progress=told.append).call(sleep, {"a": 15})

    assert said_of_waiting(caplog) == ["waiting for 3 of 3 hosts: a (running, 10 s), and 2 whose turn has not come"]
    assert [(each.host, each.state) for each in told][:3] == [("a", "waiting"), ("b", "waiting"), ("c", "waiting")]


async def test_idle_hosts_are_not_waited_for_by_map(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trickle")

    async with open_memory_group("abc") as group:
        await mapped(group, items(1, at_first=15))

    assert [line.partition(": ")[0] for line in said_of_waiting(caplog)] == ["waiting for 1 of 3 hosts"]


async def test_hosts_that_do_not_answer_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trickle")

    async with open_memory_group("abc", faults={"b": [HANGS]}) as group:
        with trio.move_on_after(15):
            await group.wait_connected()

    assert said_of_waiting(caplog) == ["waiting for 1 of 3 hosts: b (connecting: waiting for the agent, 10 s)"]


async def test_hosts_that_do_not_close_are_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trickle._progress.LONG", 3.0)
    caplog.set_level(logging.INFO, "trickle")

    async with open_memory_group("ab", faults={"b": [Silence(at=1)]}) as group:
        await group.wait_connected()
        await trio.sleep(2)

    assert said_of_waiting(caplog)[0] == "waiting for 1 of 2 hosts: b (closing, 3 s)"


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_a_progress_callback_that_fails_ends_nothing(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(progress: trickle.HostProgress) -> None:
        raise error

    async with open_memory_group("ab") as group:
        results = await group.options(progress=fail).call(sleep, {})

    assert results.unwrap() == {"a": "a", "b": "b"}
    assert "progress callback failed" in caplog.text


async def test_progress_has_times_and_counts() -> None:
    told: list[trickle.HostProgress] = []

    async with open_memory_group("ab") as group:
        await group.options(progress=told.append, limit=1).call(sleep, {"a": 3, "b": 4})

    of_a = [(each.state, each.since) for each in told if each.host == "a"]
    assert of_a[:2] == [("waiting", 0), ("connecting", 0)] and of_a[-2:] == [("running", 0), ("done", 3)]
    assert [(each.state, each.since) for each in told if each.host == "b"][-1] == ("done", 7)
    assert all(sum(each.counts.values()) == 2 for each in told)
    with pytest.raises(dataclasses.FrozenInstanceError):
        told[0].host = "c"  # type: ignore[misc]


async def test_progress_of_map_ends_with_every_host() -> None:
    told: list[trickle.HostProgress] = []

    async with open_memory_group("abc", faults={"c": [Unreachable()]}) as group:
        await mapped(group.options(progress=told.append), items(6))

    last = {each.host: each.state for each in told}
    assert last == {"a": "done", "b": "done", "c": "lost"}
    assert {each.state for each in told if each.host == "a"} >= {"connecting", "waiting", "running", "done"}


# ---- many


async def test_a_thousand_hosts_are_no_more_than_a_thousand_times_one() -> None:
    names = [f"n{number}" for number in range(1000)]

    async with open_memory_group(names) as group:
        results = await group.options(need=0.9, timeout=60).call(sleep, dict.fromkeys(names[:100], 3600))

    assert len(results.successful()) == 900
    assert math.isclose(trio.current_time(), 0, abs_tol=1)


async def test_one_that_had_failed_keeps_its_error_when_it_is_not_needed_any_more() -> None:
    async with open_memory_group("ab") as group:
        results = await group.options(need=1, repeatable=True, retries=9).call(fail_on, "a", after=0.1)

    assert isinstance(results.failures()["a"], ValueError)


@pytest.mark.parametrize("verb", ["call", "as_completed", "map"])
async def test_progress_of_what_was_left_ends_too(verb: str) -> None:
    told: list[trickle.HostProgress] = []

    async with open_memory_group("abc") as group:
        view = group.options(progress=told.append, limit=2)
        with trio.move_on_after(1):
            if verb == "call":
                await view.call(sleep, dict.fromkeys("abc", 60))
            elif verb == "as_completed":
                async with view.as_completed(sleep, {"a": 0, "b": 60, "c": 60}) as outcomes:
                    assert (await outcomes.receive())[0] == "a"
            else:
                await mapped(view, items(3, at_first=60))

    last = {each.host: each.state for each in told}
    assert last["b"] == last["c"] == "not needed"
    assert sum(told[-1].counts.values()) == 3


async def test_the_generator_of_items_is_closed() -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            closed.append(True)

    async with open_memory_group("a") as group:
        async with group.options(need=2).map(fail_on_number, numbers()) as found:
            assert [result.result async for result in found][:2] == [trickle.Success(0), trickle.Success(1)]

    assert closed == [True]


async def test_items_may_exit_behind_the_outcomes_that_came_before() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    found = []
    async with open_memory_group("a") as group:
        with pytest.raises(SystemExit):
            async with group.map(fail_on_number, numbers()) as results:
                found = [result.result async for result in results]

    assert found == [trickle.Success(1)]


async def test_a_host_that_falls_silent_while_its_code_arrives_is_left() -> None:
    faults = {"a": [SlowLink(bytes_per_second=1000), Silence(at=1)]}

    async with open_memory_group("a", faults=faults) as group:
        results = await group.options(timeout=10).call(sleep, {})

    assert isinstance(results.failures()["a"], trickle.CallTimeout)


async def numbers_then_nothing() -> AsyncIterator[int]:
    yield 1
    await trio.sleep_forever()


async def test_items_that_never_end_can_be_left() -> None:
    async with open_memory_group("a") as group:
        with trio.move_on_after(5) as scope:
            async with group.map(fail_on_number, numbers_then_nothing()) as found:
                async for _ in found:
                    pass

    assert scope.cancelled_caught


async def fail_on_number(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return number
