"""Whatever happens to calls, and whenever: each ends once, with a verdict that is true of what ran.

Hypothesis draws plans; each is carried out against a host in memory, by a clock that jumps.  The functions keep a
journal of what they really did.
"""

import dataclasses
import math
from collections import Counter
from contextvars import ContextVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import trickle
from tests.async_work import behave, journal
from trickle._link import Link, RemoteCall
from trickle._memory_agent import MemoryAgent, Run
from trickle._settings import VERDICT_SLACK
from trickle._wire.frames import Begin, Call, Frame, Session
from trickle.testing import Fault, Garbage, LinkLost, Silence, SlowLink, WorkerKilled, open_memory_host

LEASE = 12.0
SLACK = 3.0  # seconds: looks, and what a link that is slow holds up
EVENTUALLY = 400.0

TIMES = st.integers(0, 32).map(lambda quarter: quarter / 4)  # coarse, so that things happen at the same moment
SPANS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
KINDS = ["sleeps", "raises", "cleans up", "shields", "returns anyway", "raises otherwise"]


@dataclasses.dataclass(frozen=True)
class PlannedCall:
    start: float
    kind: str
    seconds: float
    ballast: int
    session: int  # 0: none
    grace_period: float
    reconnect: bool
    deadline: float | None  # seconds after the start
    moved: tuple[float, float] | None  # after so many seconds, to so many
    cancelled: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    calls: list[PlannedCall]
    sessions: dict[int, tuple[float, float]]  # opened, and open for
    workers: int
    faults: list[Fault]
    closed: float | None
    wait: bool


PLANNED_CALLS = st.builds(
    PlannedCall,
    start=TIMES,
    kind=st.sampled_from(KINDS),
    seconds=SPANS,
    ballast=st.sampled_from([0, 0, 0, 5_000, 400_000]),
    session=st.sampled_from([0, 0, 0, 1, 2]),
    grace_period=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    reconnect=st.booleans(),
    deadline=st.none() | SPANS,
    moved=st.none() | st.tuples(st.sampled_from([0.0, 0.25, 1.0]), SPANS | st.just(8.0)),
    cancelled=st.none() | SPANS,
)
FAULTS = st.one_of(
    st.builds(WorkerKilled, call=st.integers(1, 6), after=SPANS),
    st.builds(WorkerKilled, call=st.integers(1, 6), after=SPANS),
    st.builds(LinkLost, at=TIMES),
    st.builds(LinkLost, after_bytes=st.integers(0, 2000)),
    st.builds(Silence, at=TIMES, seconds=st.sampled_from([1.0, 5.0, 8.0, math.inf])),
    st.builds(Garbage, at=TIMES.map(lambda time: time + 0.1)),
    st.builds(SlowLink, bytes_per_second=st.sampled_from([100_000, 1_000_000])),
)
PLANS = st.builds(
    Plan,
    calls=st.lists(PLANNED_CALLS, min_size=1, max_size=8),
    sessions=st.fixed_dictionaries({1: st.tuples(TIMES, SPANS), 2: st.tuples(TIMES, SPANS)}),
    workers=st.integers(1, 3),
    faults=st.lists(FAULTS, max_size=2),
    closed=st.none() | st.none() | TIMES,
    wait=st.booleans(),
)

key_of_task: ContextVar[int] = ContextVar("key_of_task")


@dataclasses.dataclass
class Life:
    """What is known of one call when all is over."""

    planned: PlannedCall
    calls: list[RemoteCall] = dataclasses.field(default_factory=list)
    outcome: object = None
    asked_to_end: float = math.inf
    over: float = math.inf


class Observed:
    """Carries out a plan, and looks on."""

    def __init__(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan = plan
        self.lives = {key: Life(planned) for key, planned in enumerate(plan.calls)}
        self.sessions: dict[int, trickle.Session] = {}
        self.pins: list[RemoteCall] = []
        self.links: list[Link] = []
        self.ids: dict[MemoryAgent, list[int]] = {}
        self.launched: set[int] = set()
        self._watch(monkeypatch)

    def _watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start_call, start_session = Link.start_call, Link.start_session
        take, launch = MemoryAgent._take, MemoryAgent._launch

        def started_call(link: Link, *args: object, **kwargs: object) -> RemoteCall:
            call = start_call(link, *args, **kwargs)  # type: ignore[arg-type]
            self._note_link(link)
            self.lives[key_of_task.get()].calls.append(call)
            return call

        def started_session(link: Link) -> RemoteCall:
            self._note_link(link)
            self.pins.append(start_session(link))
            return self.pins[-1]

        def taken(agent: MemoryAgent, frame: Frame) -> None:
            if isinstance(frame, Call | Begin | Session):
                self.ids.setdefault(agent, []).append(frame.id)
            take(agent, frame)

        def launched(agent: MemoryAgent, run: Run) -> None:
            self.launched.add(run.id)
            launch(agent, run)

        monkeypatch.setattr(MemoryAgent, "_launch", launched)
        monkeypatch.setattr(Link, "start_call", started_call)
        monkeypatch.setattr(Link, "start_session", started_session)
        monkeypatch.setattr(MemoryAgent, "_take", taken)

    def _note_link(self, link: Link) -> None:
        if link not in self.links:
            self.links.append(link)

    async def run(self) -> None:
        root = trio.lowlevel.current_task()
        with trio.fail_after(EVENTUALLY):
            try:
                await self._run()
            except trickle.ConnectError:
                assert self.plan.wait and self.plan.faults
                self.lives.clear()  # none has begun
        assert not root.child_nurseries
        for agent in self.ids:
            assert (agent.runs, agent.sessions, agent._timers, [*agent.waiting]) == ({}, {}, [], [])
        for link in self.links:
            assert (link.calls, link.gone.is_set()) == ({}, True)

    async def _run(self) -> None:
        plan = self.plan
        async with open_memory_host(
            faults=plan.faults, workers=plan.workers, wait=plan.wait, heartbeat=3, lease=LEASE
        ) as host:
            async with trio.open_nursery() as nursery:
                for number, (opened, open_for) in plan.sessions.items():
                    nursery.start_soon(self._hold_session, host, number, opened, open_for)
                for key in self.lives:
                    nursery.start_soon(self._live, host, key)
                if plan.closed is not None:
                    await trio.sleep_until(plan.closed)
                    await host.aclose()
            self._check_statistics(host)
            if host.statistics().state == "connected":
                await trio.sleep(1)  # what is under way arrives
                self._check_tables(host)
            await trio.sleep(LEASE + SLACK)  # what runs behind a partition ends

    async def _hold_session(self, host: trickle.Host, number: int, opened: float, open_for: float) -> None:
        await trio.sleep_until(opened)
        try:
            async with host.session() as session:
                self.sessions[number] = session
                await trio.sleep(open_for)
        except (trickle.ConnectError, trickle.HostLost, trio.ClosedResourceError):
            pass

    async def _live(self, host: trickle.Host, key: int) -> None:
        life, planned = self.lives[key], self.lives[key].planned
        key_of_task.set(key)
        await trio.sleep_until(planned.start)
        verbs = self.sessions.get(planned.session) or host.options(
            grace_period=planned.grace_period, reconnect=planned.reconnect
        )
        deadline = math.inf if planned.deadline is None else trio.current_time() + planned.deadline
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(deadline=deadline) as scope:
                nursery.start_soon(self._meddle, life, scope, nursery.cancel_scope)
                try:
                    life.outcome = await verbs.call(behave, key, planned.kind, planned.seconds, b"x" * planned.ballast)
                except Exception as exc:
                    life.outcome = exc
                except trio.Cancelled:
                    life.outcome = "cancelled"
                    life.asked_to_end = min(life.asked_to_end, scope.deadline)
                    raise
                finally:
                    life.over = trio.current_time()
            nursery.cancel_scope.cancel()

    async def _meddle(self, life: Life, scope: trio.CancelScope, all_of_it: trio.CancelScope) -> None:
        planned, started = life.planned, trio.current_time()
        acts = []
        if planned.moved is not None:
            acts.append((planned.moved[0], "move", planned.moved[1]))
        if planned.cancelled is not None:
            acts.append((planned.cancelled, "cancel", 0.0))
        for after, act, to in sorted(acts):
            await trio.sleep_until(started + after)
            if act == "move":
                scope.deadline = started + to
            else:
                life.asked_to_end = trio.current_time()
                scope.cancel()

    # ---- what must be true

    def _check_statistics(self, host: trickle.Host) -> None:
        statistics = host.statistics()
        expected = Counter(call.verdict_name for life in self.lives.values() for call in life.calls)
        assert statistics.verdicts == expected
        assert (statistics.calls_running, statistics.calls_waiting, statistics.open) == (0, 0, 0)

    def _check_tables(self, host: trickle.Host) -> None:
        link = host._core.link
        assert [agent for agent in self.ids if not agent._over and (agent.runs or agent.sessions or agent._busy)] == []
        assert (link.calls, link._connection._calls, [*link._connection._small]) == ({}, {}, [])
        assert not any(call.queue for call in link._connection._ring)

    def check(self) -> None:
        for ids in self.ids.values():
            assert ids == sorted(set(ids)), "an id was used again"
        for key, life in self.lives.items():
            done = [(what, when) for who, what, when in journal if who == key]
            assert life.over < math.inf, "a waiter was not answered"
            assert len(life.calls) <= 1, "a call was sent twice"
            if not life.calls:
                assert not done
                assert isinstance(life.outcome, Exception) or life.outcome == "cancelled"
                continue
            assert life.calls[0].finished.is_set()
            self._check_truth(life, done)
            self._check_time(life, done)

    def _check_truth(self, life: Life, done: list[tuple[str, float]]) -> None:
        verdict, outcome = life.calls[0].verdict_name, life.outcome
        whats = [what for what, _ in done]
        lost = any(isinstance(fault, LinkLost | Silence | Garbage) for fault in self.plan.faults)
        match verdict:
            case "returned":
                assert whats == ["began", "returned"]
                assert isinstance(outcome, int)
            case "raised":
                assert whats == ["began", "raised"]
                assert isinstance(outcome, trickle.RemoteError)
            case "cancelled":
                # A worker that has got its call may find the cancellation beside it.
                assert whats == ["began", "cancelled"] or (not whats and life.calls[0].id in self.launched)
            case "killed":
                assert whats[0] == "began"
                assert len(whats) == 2
            case "never started":
                assert whats == []
                assert len(self.ids) > 1 or life.calls[0].id not in self.launched
            case "died":
                assert any(isinstance(fault, WorkerKilled) for fault in self.plan.faults)
                assert len(whats) in (0, 2)
            case "unknown":
                assert lost or self.plan.closed is not None or life.outcome == "cancelled"
                assert len(whats) in (0, 2)
            case _:
                raise AssertionError(verdict)
        if outcome == "cancelled":
            assert verdict not in ("returned", "raised")
        if isinstance(outcome, trickle.CallTimeout):
            # The agent's copy of the deadline is a backstop: on a link that lives, the caller's scope decides.
            assert any(isinstance(fault, Silence | SlowLink) for fault in self.plan.faults)

    def _check_time(self, life: Life, done: list[tuple[str, float]]) -> None:
        known = life.calls[0].verdict is not None
        grace_period = 5.0 if life.planned.session else life.planned.grace_period
        for what, when in done:
            assert when <= life.over + (0 if known else LEASE + SLACK), f"{what} after its call was over"
        if life.outcome == "cancelled" and life.asked_to_end < math.inf:
            assert life.over <= max(life.asked_to_end, life.planned.start) + grace_period + VERDICT_SLACK + SLACK


@settings(derandomize=True, deadline=None, max_examples=400, database=None)
@given(plan=PLANS)
def test_every_call_ends_once_with_a_verdict_that_is_true(plan: Plan) -> None:
    journal.clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        observed = Observed(plan, monkeypatch)

        trio.run(observed.run, clock=MockClock(autojump_threshold=0))

        observed.check()
