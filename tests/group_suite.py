"""What a group promises, whatever its hosts are: run over memory, processes and ssh by the modules that import it.

Each gives the fixtures ``kind`` and ``kind_with_files``. Host code is synchronised by files; a host in memory has
this program's clock, which jumps.
"""

import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from tests.hosts import file_appears, is_running


@dataclasses.dataclass
class Kind:
    """A kind of host to run the suite over.

    Args:
      open: opens a group of hosts of these names.
      open_with_nowhere: the same with one more host at the end, "nowhere", which cannot be reached.
      open_with_silent: the same with one more host at the end, "silent", which never answers while it connects.
      far: what they run: far_groups.py, or far_groups_async.py.
      kill: ends a host's agent at once.
      directory: both ends can write to it.
      many: how many hosts a large group has.
    """

    open: Callable[..., AbstractAsyncContextManager[trickle.Group]]
    open_with_nowhere: Callable[..., AbstractAsyncContextManager[trickle.Group]]
    open_with_silent: Callable[..., AbstractAsyncContextManager[trickle.Group]]
    far: Any
    kill: Callable[[trickle.Host], Awaitable[object]]
    directory: Path
    many: int
    in_memory: bool = False

    async def begun(self, *names: str) -> None:
        """Return when functions that hang have begun on these hosts."""
        for name in names:
            await file_appears(self.directory / name)

    def over(self, *names: str) -> bool:
        """Whether functions that have begun to hang there are no more."""
        return all(
            (self.directory / f"{name}.over").exists()
            and (self.in_memory or not is_running(int((self.directory / name).read_text())))
            for name in names
        )

    def hanging(self, *names: str) -> dict[str, tuple[str, Any]]:
        """A script by which these hosts hang, and the others return."""
        return dict.fromkeys(names, ("hang", str(self.directory)))

    def names(self, count: int) -> list[str]:
        return [f"n{number}" for number in range(count)]


def running(group: trickle.Group) -> int:
    return sum(host.statistics().calls_running + host.statistics().calls_waiting for host in group.values())


async def warm(group: trickle.Group, kind: Kind) -> None:
    """Connect, and have everything sent: what is timed afterwards is quick."""
    (await group.call(kind.far.act, {})).unwrap()


# ---- one result for each


async def test_every_host_answers_in_the_groups_order(kind: Kind) -> None:
    names = kind.names(kind.many)[::-1]

    async with kind.open(names) as group:
        results = await group.call(kind.far.act, {})

    assert list(results) == names
    assert results.unwrap() == {name: name for name in names}


async def test_failures_and_unreachable_hosts_cost_no_other_its_result(kind: Kind) -> None:
    async with kind.open_with_nowhere(kind.names(3)) as group:
        results = await group.call(kind.far.act, {"n1": ("raise", "ill")})

        assert list(group.unreachable) == ["nowhere"]

    assert results.successful() == {"n0": "n0", "n2": "n2"}
    assert isinstance(results.failures()["n1"], ValueError)
    assert isinstance(results.failures()["nowhere"], trickle.ConnectError)
    with pytest.raises(ExceptionGroup) as caught:
        results.raise_failures()
    assert {error.host for error in caught.value.exceptions} == {"n1", "nowhere"}  # type: ignore[attr-defined]


async def test_a_timeout_is_each_hosts_own(kind: Kind) -> None:
    async with kind.open(kind.names(3)) as group:
        await warm(group, kind)
        results = await group.options(timeout=5).call(kind.far.act, kind.hanging("n1"))

    error = results.failures()["n1"]
    assert isinstance(error, trickle.CallTimeout)
    assert (error.host, error.stage, error.verdict) == ("n1", "running", "cancelled")
    assert results.successful() == {"n0": "n0", "n2": "n2"}
    assert kind.over("n1")


# ---- outcomes as they come


async def test_outcomes_come_as_they_are_found(kind: Kind) -> None:
    go = kind.directory / "go"
    script = {"n0": ("wait", str(go)), "n2": ("raise", "ill")}
    came = []

    async with kind.open_with_nowhere(kind.names(3)) as group:
        async with group.as_completed(kind.far.act, script) as outcomes:
            async for name, outcome in outcomes:
                came.append((name, outcome))
                if len(came) == 3:
                    go.touch()

    assert came[-1] == ("n0", trickle.Success("n0"))
    assert dict(came)["n1"] == trickle.Success("n1")
    assert isinstance(dict(came)["n2"], trickle.Failure)
    assert {name for name, _ in came} == {"n0", "n1", "n2", "nowhere"}


async def test_leaving_early_stops_the_stragglers(kind: Kind) -> None:
    names = kind.names(kind.many)

    async with kind.open(names) as group:
        async with group.as_completed(kind.far.act, kind.hanging(*names[1:])) as outcomes:
            assert await outcomes.receive() == ("n0", trickle.Success("n0"))
            await kind.begun(*names[1:])
        assert kind.over(*names[1:])
        assert running(group) == 0
        with pytest.raises(trio.ClosedResourceError):
            await outcomes.receive()
        assert (await group.call(kind.far.act, {})).unwrap() == {name: name for name in names}


async def test_closing_the_channel_is_leaving_early(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        async with group.as_completed(kind.far.act, kind.hanging("n1")) as outcomes:
            await outcomes.receive()
            await kind.begun("n1")
            await outcomes.aclose()

    assert kind.over("n1")


async def test_an_exception_of_the_body_is_raised_as_itself_when_all_is_over(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        with pytest.raises(ZeroDivisionError):
            async with group.as_completed(kind.far.act, kind.hanging("n0", "n1")):
                await kind.begun("n0", "n1")
                raise ZeroDivisionError

        assert kind.over("n0", "n1")
        assert running(group) == 0


async def test_an_exception_of_the_groups_body_ends_its_calls(kind: Kind) -> None:
    with pytest.raises(ZeroDivisionError):
        async with (
            kind.open(kind.names(2)) as group,
            group.as_completed(kind.far.act, kind.hanging("n0", "n1")),
        ):
            await kind.begun("n0", "n1")
            raise ZeroDivisionError

    assert kind.over("n0", "n1")


async def test_nobody_who_listens_holds_up_nothing_but_turns(kind: Kind) -> None:
    """Without a limit each host has its turn, so that all of them run however slow the reader is."""
    names = kind.names(3)

    async with kind.open(names) as group:
        async with group.as_completed(kind.far.act, kind.hanging("n2")) as outcomes:
            await kind.begun("n2")  # the others have perhaps ended, and nobody has received anything

            came = [await outcomes.receive(), await outcomes.receive()]

    assert {name for name, _ in came} == {"n0", "n1"}


# ---- streams


async def test_a_host_that_hangs_holds_up_no_others_stream(kind: Kind) -> None:
    names = kind.names(3)
    received: dict[str, list[object]] = {name: [] for name in names}

    async with kind.open(names) as group:
        async with group.stream(kind.far.give_some, kind.hanging("n1"), 100) as things:
            for _ in range(100 + 1 + 100):
                name, thing = await things.receive()
                received[name].append(thing)
            await kind.begun("n1")
            assert not kind.over("n1")

        assert kind.over("n1")
        assert running(group) == 0

    everything = [trickle.Success(number) for number in range(100)]
    assert received == {"n0": everything, "n1": everything[:1], "n2": everything}


# ---- processes and files


async def test_a_process_runs_on_all_that_can_be_reached(kind_with_files: Kind) -> None:
    async with kind_with_files.open_with_nowhere(["n0", "n1"]) as group:
        results = await group.run_process(["cat"], stdin=b"for all", capture_stdout=True)

    assert {name: done.stdout for name, done in results.successful().items()} == {"n0": b"for all", "n1": b"for all"}
    assert_only_nowhere_failed(results)


async def test_a_file_is_put_on_all_that_can_be_reached(kind_with_files: Kind, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("for all")
    there = kind_with_files.directory / "there"

    async with kind_with_files.open_with_nowhere(["n0", "n1"]) as group:
        results = await group.put(tmp_path / "here", there)

    assert {name: done.path for name, done in results.successful().items()} == dict.fromkeys(["n0", "n1"], str(there))
    assert there.read_text() == "for all"
    assert_only_nowhere_failed(results)


async def test_a_file_is_fetched_from_all_that_can_be_reached(kind_with_files: Kind, tmp_path: Path) -> None:
    there = kind_with_files.directory / "there"
    there.write_text("of each")
    (tmp_path / "here").mkdir()

    async with kind_with_files.open_with_nowhere(["n0", "n1"]) as group:
        results = await group.fetch(there, tmp_path / "here" / "{host}")

    assert list(results.successful()) == ["n0", "n1"]
    assert {path.name: path.read_text() for path in (tmp_path / "here").iterdir()} == {"n0": "of each", "n1": "of each"}
    assert_only_nowhere_failed(results)


def assert_only_nowhere_failed(results: trickle.Results[Any]) -> None:
    ((name, error),) = results.failures().items()
    assert name == "nowhere"
    assert isinstance(error, trickle.ConnectError)
    assert error.host == "nowhere"


# ---- how many, and when it is enough


async def test_a_quorum_returns_and_stops_the_rest(kind: Kind) -> None:
    names = kind.names(4)

    async with kind.open(names) as group:
        async with trio.open_nursery() as nursery:
            go = kind.directory / "go"
            nursery.start_soon(touch_when_begun, kind, go, "n0", "n2")
            script = {**kind.hanging("n0", "n2"), "*": ("wait", str(go))}
            results = await group.options(need=2).call(kind.far.act, script)

        assert results.successful() == {"n1": "n1", "n3": "n3"}
        assert all(isinstance(results.failures()[name], trickle.NotNeeded) for name in ("n0", "n2"))
        assert kind.over("n0", "n2")
        results.raise_failures()


async def touch_when_begun(kind: Kind, path: Path, *names: str) -> None:
    await kind.begun(*names)
    path.touch()


async def test_a_quorum_may_be_a_share_and_comes_without_the_unreachable(kind: Kind) -> None:
    async with kind.open_with_nowhere(kind.names(3)) as group:
        results = await group.options(need=0.5).call(kind.far.act, {})

    assert len(results.successful()) >= 2
    assert len(results) == 4


async def test_the_first_failure_stops_the_others_if_asked(kind: Kind) -> None:
    go = kind.directory / "go"

    async with kind.open(kind.names(3)) as group:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(touch_when_begun, kind, go, "n0", "n2")
            results = await group.options(on_failure="cancel").call(
                kind.far.act_when, {**kind.hanging("n0", "n2"), "n1": ("raise", "ill")}, str(go)
            )

    assert isinstance(results.failures()["n1"], ValueError)
    assert all(isinstance(results.failures()[name], trickle.NotNeeded) for name in ("n0", "n2"))
    assert kind.over("n0", "n2")
    with pytest.raises(ExceptionGroup, match="1 of 3 hosts failed"):
        results.unwrap()


async def test_some_failures_may_be_allowed(kind: Kind) -> None:
    async with kind.open(kind.names(4)) as group:
        one = await group.options(max_failures=1).call(kind.far.act, {"n0": ("raise", "ill")})
        two = await group.options(max_failures=1, limit=1).call(kind.far.act, {"*": ("raise", "ill")})

    assert len(one.successful()) == 3
    assert [type(error).__name__ for error in two.failures().values()] == [
        *("RemoteValueError", "RemoteValueError", "NotNeeded", "NotNeeded")
    ]


async def test_no_more_than_the_limit_run_at_once(kind: Kind) -> None:
    names = kind.names(kind.many)

    async with kind.open(names) as group:
        results = await group.options(limit=2).call(kind.far.act, {"*": ("overlap", str(kind.directory))})

    counts = results.unwrap()
    assert list(counts) == names
    assert max(counts.values()) <= 2


async def test_the_limit_rolls(kind: Kind) -> None:
    """The next begins when any has ended: a slow one keeps one turn, and no more."""
    names = kind.names(5)
    go = kind.directory / "go"
    came = []

    async with kind.open(names) as group:
        view = group.options(limit=2)
        async with view.as_completed(kind.far.act, {"n0": ("wait", str(go))}) as outcomes:
            async for name, _ in outcomes:
                came.append(name)
                if len(came) == 4:
                    go.touch()

    assert came == ["n1", "n2", "n3", "n4", "n0"]


async def test_calls_that_are_safe_to_repeat_are_tried_again(kind: Kind) -> None:
    script = {"n0": ("once", str(kind.directory)), "n1": ("raise", "ill")}

    async with kind.open(kind.names(3)) as group:
        results = await group.options(repeatable=True, retries=2).call(kind.far.act, script)

        assert group["n0"].statistics().verdicts == {"raised": 1, "returned": 1}
        assert group["n1"].statistics().verdicts == {"raised": 3}

    assert results.successful() == {"n0": "n0", "n2": "n2"}
    assert isinstance(results.failures()["n1"], ValueError)


# ---- cancelled from outside


async def test_cancelled_before_it_begins(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        with trio.CancelScope() as scope:
            scope.cancel()
            await group.call(kind.far.act, kind.hanging("n0", "n1"))

        assert scope.cancelled_caught
    assert not (kind.directory / "n0").exists()


@pytest.mark.parametrize("how", ["call", "as_completed", "stream", "map"])
async def test_cancelled_while_it_runs(kind: Kind, how: str) -> None:
    async with kind.open(["n0", "n1"]) as group:
        await warm(group, kind)
        begun = await _cancel_when_two_have_begun(group, kind, how)

        assert kind.over(*begun)
        assert running(group) == 0
        assert all(host.statistics().verdicts == {"returned": 1, "cancelled": 1} for host in group.values())


@pytest.mark.parametrize("how", ["call", "as_completed", "stream", "map"])
async def test_cancelled_while_a_host_still_connects(kind: Kind, how: str) -> None:
    async with kind.open_with_silent(["n0", "n1"]) as group:
        begun = await _cancel_when_two_have_begun(group, kind, how)

        assert kind.over(*begun)
        assert {name.partition("-")[0] for name in begun} == {"n0", "n1"}
        assert not list(kind.directory.glob("silent*"))
        assert running(group) == 0
        assert not group.unreachable
        assert group["silent"].statistics().state != "connected"
        assert (await group[:2].call(kind.far.act, {})).unwrap() == {"n0": "n0", "n1": "n1"}


async def _cancel_when_two_have_begun(group: trickle.Group, kind: Kind, how: str) -> list[str]:
    """What had begun then, as ``kind.over`` takes it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, group, kind, how)
        while len(begun := [path.name for path in kind.directory.iterdir() if "." not in path.name]) < 2:
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    return begun


async def _run(group: trickle.Group, kind: Kind, how: str) -> None:
    script = {"*": ("hang", str(kind.directory))}
    if how == "call":
        await group.call(kind.far.act, script)
    elif how == "as_completed":
        async with group.as_completed(kind.far.act, script) as outcomes:
            await outcomes.receive()
    elif how == "stream":
        async with group.stream(kind.far.give_some, script, 1) as things:
            while True:
                await things.receive()
    else:
        async with group.map(kind.far.hang_item, [(str(kind.directory), 0), (str(kind.directory), 1)]) as found:
            await found.receive()


async def test_cancelled_while_the_body_does_something_else(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        async with trio.open_nursery() as nursery:

            async def body() -> None:
                async with group.as_completed(kind.far.act, kind.hanging("n0", "n1")):
                    await trio.sleep_forever()

            nursery.start_soon(body)
            await kind.begun("n0", "n1")
            nursery.cancel_scope.cancel()

        assert kind.over("n0", "n1")


async def test_cancelled_while_the_block_is_left(kind: Kind) -> None:
    """The verdicts are waited for all the same."""
    async with kind.open(kind.names(2)) as group:
        with trio.CancelScope() as scope:
            async with group.as_completed(kind.far.act, kind.hanging("n0", "n1")):
                await kind.begun("n0", "n1")
                scope.cancel()

        assert kind.over("n0", "n1")


async def test_cancelled_while_an_outcome_waits_to_be_received(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        with trio.CancelScope() as scope:
            async with group.as_completed(kind.far.act, kind.hanging("n1")):
                await kind.begun("n1")
                while group["n0"].statistics().verdicts != {"returned": 1}:
                    await trio.sleep(0.005)
                scope.cancel()
                await trio.sleep_forever()

        assert scope.cancelled_caught
        assert kind.over("n1")


async def test_cancelled_while_a_turn_is_waited_for(kind: Kind) -> None:
    async with kind.open(kind.names(3)) as group:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.options(limit=1).call, kind.far.act, kind.hanging("n0", "n1", "n2"))
            await kind.begun("n0")
            nursery.cancel_scope.cancel()

        assert kind.over("n0")
        assert not (kind.directory / "n1").exists()


async def test_a_deadline_around_it_travels_and_wins(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        await warm(group, kind)
        with trio.move_on_after(3) as scope:
            await group.options(timeout=math.inf).call(kind.far.act, kind.hanging("n0", "n1"))

        assert scope.cancelled_caught
        assert kind.over("n0", "n1")


# ---- items


async def test_each_item_is_run_once_on_some_host(kind: Kind) -> None:
    found: list[trickle.MapResult[int, object]] = []

    async with kind.open_with_nowhere(kind.names(3)) as group:
        async with group.map(kind.far.give_back, range(30)) as results:
            async for result in results:
                found.append(result)

    assert sorted(result.index for result in found) == list(range(30))
    assert all(result.item == result.index and result.result == trickle.Success(result.item) for result in found)
    assert {result.host for result in found} <= {"n0", "n1", "n2"}


async def test_a_slow_item_does_not_hold_up_the_others(kind: Kind) -> None:
    go = kind.directory / "go"
    items: list[tuple[str, Any]] = [("wait", str(go)), *(("return", number) for number in range(9))]
    found = []

    async with kind.open(kind.names(2)) as group:
        async with group.map(kind.far.act_item, items) as results:
            async for result in results:
                found.append(result.index)
                if len(found) == 9:
                    go.touch()

    assert found[-1] == 0
    assert sorted(found) == list(range(10))


async def test_an_item_of_a_lost_host_fails_unless_it_is_safe_to_repeat(kind: Kind) -> None:
    items: list[tuple[str, Any]] = [("hang", str(kind.directory)), ("return", 1), ("return", 2)]
    results = []

    async with kind.open(kind.names(2)) as group:
        async with group.map(kind.far.act_item, items) as found, trio.open_nursery() as nursery:
            nursery.start_soon(_kill_who_hangs, group, kind)
            async for result in found:
                results.append(result)

        assert len(group.unreachable) == 1
    (lost,) = [result for result in results if isinstance(result.result, trickle.Failure)]
    assert isinstance(lost.result, trickle.Failure)
    assert isinstance(lost.result.error, trickle.HostLost)
    assert lost.index == 0
    assert len(results) == 3


async def _kill_who_hangs(group: trickle.Group, kind: Kind) -> None:
    while not (begun := [path.name for path in kind.directory.iterdir() if path.name in group]):
        await trio.sleep(0.005)
    await kind.kill(group[begun[0]])


async def test_an_item_that_is_safe_to_repeat_goes_on_to_another_host(kind: Kind) -> None:
    items: list[tuple[str, Any]] = [("hang the first", str(kind.directory)), ("return", 1), ("return", 2)]
    results = []

    async with kind.open(kind.names(2)) as group:
        async with (
            group.options(repeatable=True).map(kind.far.act_item, items) as found,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_kill_who_hangs, group, kind)
            async for result in found:
                results.append(result)

    assert sorted(result.index for result in results) == [0, 1, 2]
    assert all(isinstance(result.result, trickle.Success) for result in results)


async def test_a_slow_item_is_hedged_and_the_loser_is_stopped(kind: Kind) -> None:
    items: list[tuple[str, Any]] = [("hang the first", str(kind.directory))]

    async with kind.open(kind.names(2)) as group:
        await warm(group, kind)
        async with group.options(repeatable=True, hedge=1).map(kind.far.act_item, items) as found:
            results = [result async for result in found]

        (slow,) = [path.name for path in kind.directory.iterdir() if path.name in group]
        assert kind.over(slow)
        assert group[slow].statistics().verdicts == {"returned": 1, "cancelled": 1}
    assert [result.index for result in results] == [0]
    assert isinstance(results[0].result, trickle.Success)
    assert results[0].host != slow


async def test_endless_items_are_taken_as_they_are_wanted(kind: Kind) -> None:
    taken = []

    def numbers() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    async with kind.open(kind.names(2)) as group:
        async with group.map(kind.far.give_back, numbers()) as found:
            first = [await found.receive() for _ in range(10)]

    assert len(first) == 10
    assert len(taken) <= 10 + 2 + 1  # received, in the hosts' hands, and one ahead


async def test_items_may_come_over_time(kind: Kind) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            await trio.sleep(0.01)
            yield number

    async with kind.open(kind.names(2)) as group:
        async with group.map(kind.far.give_back, numbers()) as found:
            results = [result.item async for result in found]

    assert sorted(results) == [0, 1, 2]


# ---- hosts that are shared


async def test_two_groups_share_their_hosts(kind: Kind) -> None:
    async with kind.open(kind.names(3)) as group:
        left, right = group[:2], group[1:]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.call, kind.far.act, kind.hanging("n0", "n1"))
            await kind.begun("n0", "n1")

            assert (await right.call(kind.far.act, {})).unwrap() == {"n1": "n1", "n2": "n2"}

            nursery.cancel_scope.cancel()
        assert kind.over("n0", "n1")
        assert (await (left | right).call(kind.far.act, {})).unwrap() == {"n0": "n0", "n1": "n1", "n2": "n2"}


async def test_groups_nest(kind: Kind) -> None:
    async with kind.open(["a", "b"]) as outer:
        async with kind.open(["c"]) as inner:
            both = outer | inner
            assert (await both.call(kind.far.act, {})).unwrap() == {"a": "a", "b": "b", "c": "c"}

        left = await both.call(kind.far.act, {})

    assert left.successful() == {"a": "a", "b": "b"}
    assert isinstance(left.failures()["c"], trio.ClosedResourceError)


async def test_a_filter_leaves_out_who_fails(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    script = {"n0": ("raise", "ill"), "n1": ("return", None)}

    async with kind.open_with_nowhere(kind.names(3)) as group:
        healthy = await group.filter(kind.far.act, script)
        results = await healthy.call(kind.far.act, {})

    assert results.unwrap() == {"n1": "n1", "n2": "n2"}
    warnings = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warnings) == 2
    assert any("n0" in warning for warning in warnings) and any("nowhere" in warning for warning in warnings)


# ---- a host that is lost


async def test_a_group_survives_the_loss_of_a_host(kind: Kind) -> None:
    async with kind.open(kind.names(3)) as group:
        async with group.as_completed(kind.far.act, kind.hanging("n1", "n2")) as outcomes:
            await kind.begun("n1", "n2")
            await kind.kill(group["n1"])
            came = dict([await outcomes.receive(), await outcomes.receive()])

        lost = came["n1"]
        assert isinstance(lost, trickle.Failure) and isinstance(lost.error, trickle.HostLost)
        assert list(group.unreachable) == ["n1"]
        again = await group.call(kind.far.act, {})
        assert again.successful() == {"n0": "n0", "n2": "n2"}

        back = await group.options(reconnect=True).call(kind.far.act, {})
        assert back.unwrap() == {"n0": "n0", "n1": "n1", "n2": "n2"}
        assert not group.unreachable


# ---- who is waited for


async def test_progress_tells_where_each_host_has_come_to(kind: Kind) -> None:
    told: list[trickle.HostProgress] = []

    async with kind.open_with_nowhere(kind.names(2)) as group:
        await group.options(progress=told.append).call(kind.far.act, {"n1": ("raise", "ill")})

    states = {name: [each.state for each in told if each.host == name] for name in group}
    assert states["n0"][:2] == ["waiting", "connecting"] and states["n0"][-2:] == ["running", "done"]
    assert states["n1"][-2:] == ["running", "failed"]
    assert states["nowhere"][-1] == "lost"
    assert all(sum(each.counts.values()) == 3 for each in told)
    assert dict(told[-1].counts) == {"done": 1, "failed": 1, "lost": 1}


async def test_statistics_say_who_is_waited_for(kind: Kind) -> None:
    async with kind.open(kind.names(2)) as group:
        async with group.as_completed(kind.far.act, kind.hanging("n1")) as outcomes:
            await outcomes.receive()
            await kind.begun("n1")

            assert [name for name, each in group.statistics().items() if each.calls_running] == ["n1"]
