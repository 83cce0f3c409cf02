"""Random lives of many calls between two ends, with bytes that arrive late and in pieces."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.wire.pair import Pair
from trickle._wire.connection import AGENT, BULK, CONTROLLER, CREDIT, LARGEST_WINDOW, SMALL, Connection
from trickle._wire.frames import (
    CANCELLED,
    CHUNK,
    NEVER_STARTED,
    RETURNED,
    Begin,
    Call,
    Cancel,
    Data,
    End,
    Frame,
    Modules,
    Output,
    Ping,
    Renew,
    Session,
)

SIZES = st.sampled_from([0, 1, SMALL, SMALL + 1, CHUNK, CHUNK + 1, CREDIT + 1, 3 * CREDIT])
PIECES = st.sampled_from([1, 21, 22, 1000, CHUNK, None])


def pattern(id: int, size: int) -> bytes:
    return bytes([id % 251]) * size


class LivesOfCalls(RuleBasedStateMachine):
    """A model of both ends' programs: what each has said, and what the other has made of it."""

    @initialize()
    def open(self) -> None:
        self.pair = Pair()
        self.newest = 0
        self.arguments: dict[int, bytes] = {}  # of each call that the controller made and did not withdraw
        self.cancelled: set[int] = set()
        self.ends: dict[int, list[End]] = {}  # as the controller saw them
        self.got: dict[int, bytes] = {}  # results, as far as they have come
        self.printed: dict[int, bytes] = {}
        self.heard: dict[int, bytes] = {}
        self.answers: dict[int, bytes] = {}
        self.over_there: dict[int, bytes] = {}  # arguments at the agent, as far as they have come
        self.whole: set[int] = set()
        self.unused: dict[tuple[str, int], int] = {}
        self.modules_sent = self.modules_received = b""
        self.on_link = {CONTROLLER: 0, AGENT: 0}

    # ---- the controller's program

    @rule(size=SIZES)
    def call(self, size: int) -> None:
        self.newest += 1
        self.arguments[self.newest] = pattern(self.newest, size)
        self.pair.controller.call(self.newest, 0, self.arguments[self.newest], None)

    @rule()
    def open_session(self) -> None:
        self.newest += 1
        self.arguments[self.newest] = b""
        self.pair.controller.control(Session(self.newest))

    @precondition(lambda self: self.open_here)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.open_here))
        controller = self.pair.controller
        if controller.withdraw(id):
            del self.arguments[id]
        else:
            controller.drop(id)
            controller.control(Cancel(id, 5000))
            self.cancelled.add(id)

    @precondition(lambda self: self.open_here)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self.pair.controller.control(Renew(data.draw(st.sampled_from(self.open_here)), 500))

    @rule(size=st.sampled_from([1, CHUNK, CREDIT + 1]))
    def send_modules(self, size: int) -> None:
        self.modules_sent += pattern(size, size)
        self.pair.controller.modules(pattern(size, size))

    # ---- the agent's program

    @precondition(lambda self: self.open_there)
    @rule(data=st.data(), size=SIZES)
    def answer(self, data: st.DataObject, size: int) -> None:
        id = data.draw(st.sampled_from(self.open_there))
        if id in self.whole:
            self.answers[id] = pattern(id, size)
            self.pair.agent.end(id, RETURNED, 0, self.answers[id])
        else:
            self.answers[id] = b""
            self.pair.agent.end(id, NEVER_STARTED)

    @precondition(lambda self: self.open_there)
    @rule(data=st.data(), size=st.sampled_from([1, 1000, CHUNK // 2]))
    def write(self, data: st.DataObject, size: int) -> None:
        id = data.draw(st.sampled_from(self.open_there))
        self.printed[id] = self.printed.get(id, b"") + pattern(id, size)
        self.pair.agent.bulk(Output(id, 1, 0, pattern(id, size)))

    # ---- both

    @rule(speaker=st.sampled_from([CONTROLLER, AGENT]))
    def beat(self, speaker: str) -> None:
        self.end(speaker).control(Ping())

    @rule(speaker=st.sampled_from([CONTROLLER, AGENT]))
    def hand_out(self, speaker: str) -> None:
        self.on_link[speaker] += sum(len(f.payload) for f in self.pair.hand_out(speaker) if isinstance(f, BULK))

    @rule(speaker=st.sampled_from([CONTROLLER, AGENT]), size=PIECES)
    def carry(self, speaker: str, size: int | None) -> None:
        for frame in self.pair.carry(speaker, size):
            self.receive(speaker, frame)

    @precondition(lambda self: self.unused)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.unused)))
        self.end(key[0]).used(key[1], self.unused.pop(key))

    @rule(seconds=st.sampled_from([0.001, 0.1, 100.0]))
    def wait(self, seconds: float) -> None:
        self.pair.now += seconds

    # ---- what comes of it

    def end(self, role: str) -> Connection:
        return self.pair.controller if role == CONTROLLER else self.pair.agent

    @property
    def open_here(self) -> list[int]:
        return [id for id in self.arguments if id not in self.ends]

    @property
    def open_there(self) -> list[int]:
        return [id for id in self.over_there if id not in self.answers]

    def receive(self, speaker: str, frame: Frame) -> None:
        if isinstance(frame, Data):
            listener = AGENT if speaker == CONTROLLER else CONTROLLER
            self.unused[listener, frame.id] = self.unused.get((listener, frame.id), 0) + len(frame.payload)
        if speaker == CONTROLLER:
            self.receive_over_there(frame)
        elif isinstance(frame, Data):
            self.got[frame.id] = self.got.get(frame.id, b"") + bytes(frame.payload)
        elif isinstance(frame, Output):
            assert frame.id not in self.ends
            self.heard[frame.id] = self.heard.get(frame.id, b"") + frame.payload
        elif isinstance(frame, End):
            self.ends.setdefault(frame.id, []).append(frame)
            self.got[frame.id] = self.got.get(frame.id, b"") + frame.payload

    def receive_over_there(self, frame: Frame) -> None:
        if isinstance(frame, (Call, Begin, Session)):
            assert frame.id not in self.over_there
            self.over_there[frame.id] = frame.payload
            if not isinstance(frame, Begin):
                self.whole.add(frame.id)
        elif isinstance(frame, Data):
            self.over_there[frame.id] += frame.payload
            if frame.last:
                self.whole.add(frame.id)
        elif isinstance(frame, Modules):
            self.modules_received += frame.payload
        elif isinstance(frame, Cancel) and (self.pair.agent.drop(frame.id) or frame.id not in self.answers):
            self.answers[frame.id] = b""
            self.pair.agent.end(frame.id, CANCELLED if frame.id in self.whole else NEVER_STARTED)

    # ---- what always holds

    @invariant()
    def both_ends_keep_within_bounds(self) -> None:
        if not hasattr(self, "pair"):
            return
        for end in (self.pair.controller, self.pair.agent):
            assert 0 <= end.window.in_flight <= LARGEST_WINDOW
            assert end.window.room >= 0 or end.window.size < LARGEST_WINDOW  # it may have shrunk meanwhile
            for call in end._calls.values():
                assert call.credit >= 0 and call.queued >= 0

    @invariant()
    def the_agent_knows_no_call_that_the_controller_does_not(self) -> None:
        if hasattr(self, "pair"):
            assert self.pair.agent._newest <= self.pair.controller._newest
            for id in self.pair.agent._calls:
                assert self.pair.controller.is_open(id)

    def teardown(self) -> None:
        """Let everything come to its end, and look at what is left."""
        if not hasattr(self, "pair"):
            return
        for _ in range(1000):
            self.pair.now += 0.01
            for speaker in (CONTROLLER, AGENT):
                self.hand_out(speaker)
                self.carry(speaker, None)
            for key in list(self.unused):
                self.end(key[0]).used(key[1], self.unused.pop(key))
            for id in self.open_there:
                if id in self.whole:
                    self.answers[id] = pattern(id, 10)
                    self.pair.agent.end(id, RETURNED, 0, self.answers[id])
            if self.pair.controller.is_drained and self.pair.agent.is_drained:
                break

        self.everything_arrived()
        self.nothing_is_left()

    def everything_arrived(self) -> None:
        assert set(self.ends) == set(self.arguments)
        for id, ends in self.ends.items():
            assert len(ends) == 1, f"call {id} ended {len(ends)} times"
            assert self.heard.get(id, b"") == self.printed.get(id, b"")
            if ends[0].verdict == RETURNED:
                assert self.over_there[id] == self.arguments[id]
                assert self.got[id] == self.answers[id]
            else:
                assert id in self.cancelled or ends[0].verdict == NEVER_STARTED
        assert self.modules_received == self.modules_sent

    def nothing_is_left(self) -> None:
        for end in (self.pair.controller, self.pair.agent):
            assert end.is_drained
            assert not end._calls and not end._control and not end._small and not end._link_bulk.queue
            while end.data_to_send(self.pair.now):
                raise AssertionError("it had more to say")
            assert not end._ring and not end._owing
            assert end.pending(0) == 0


LivesOfCalls.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=60, stateful_step_count=50, database=None
)
TestLivesOfCalls = LivesOfCalls.TestCase
