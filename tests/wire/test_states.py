"""Who may say what, and when: every row of the table, and every frame that is not in it."""

import pytest

from tests.wire.pair import MAX_PAYLOAD, all_said, greeted, hear
from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.connection import (
    AGENT,
    CONTROLLER,
    CREDIT,
    ENDED,
    IDLE,
    LINK_FRAMES,
    RUNNING,
    SENDING,
    SMALL,
    STATES,
    Connection,
)
from trickle._wire.frames import (
    KINDS,
    RETURNED,
    VERSION,
    Ack,
    Begin,
    Call,
    Cancel,
    Credit,
    Data,
    End,
    Frame,
    Hello,
    Output,
    Ping,
    Record,
    Session,
    WireError,
)

EVERY_STATE = [IDLE, SENDING, RUNNING, ENDED]
EVERY_STEP = [
    (state, speaker, kind) for state in EVERY_STATE for speaker in (CONTROLLER, AGENT) for kind in KINDS.values()
]
EVERY_LINK_FRAME = [(speaker, kind) for speaker in (CONTROLLER, AGENT) for kind in KINDS.values()]


def name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def other(role: str) -> str:
    return AGENT if role == CONTROLLER else CONTROLLER


def listener_in(state: str, speaker: str) -> Connection:
    """The end that hears *speaker*, with call 1 in this state."""
    end = greeted(other(speaker))
    if end.role == CONTROLLER:
        if state != IDLE:
            end.call(1, 0, bytes(SMALL + 1 if state == SENDING else 1), None)
            if state != SENDING:
                all_said(end)
        if state == ENDED:
            hear(end, End(1, RETURNED))
    else:
        if state != IDLE:
            hear(end, Begin(1) if state == SENDING else Call(1))
        if state == ENDED:
            end.end(1, RETURNED)
            all_said(end)
    return end


def saying(kind: type[Frame], id: int) -> Frame:
    """Such a frame, of something: those of nothing are refused for that."""
    return kind(id, 1 if kind in (Ack, Credit) else 0, 0, b"x")


def state_of(end: Connection, id: int) -> str:
    if end.is_open(id):
        return end._calls[id].state
    return ENDED if id <= end._newest else IDLE


@pytest.mark.parametrize("state", EVERY_STATE)
@pytest.mark.parametrize("speaker", [CONTROLLER, AGENT])
def test_the_ends_under_test_are_in_the_states_that_are_meant(state: str, speaker: str) -> None:
    assert state_of(listener_in(state, speaker), 1) == state


@pytest.mark.parametrize(("state", "speaker", "kind"), EVERY_STEP, ids=name)
def test_a_step_is_taken_if_it_is_in_the_table_and_refused_by_name_if_not(
    state: str, speaker: str, kind: type[Frame]
) -> None:
    end = listener_in(state, speaker)
    if end.is_open(1):
        end._calls[1].credit -= 1  # as if a byte had been sent, for which credit can be given
    frame = saying(kind, 1)

    if (state, speaker, kind) in STATES:
        hear(end, frame)
        assert state_of(end, 1) == STATES[state, speaker, kind]
    else:
        with pytest.raises(WireError, match=rf"^{kind.__name__}\(id=1.* not for the {speaker} .* that is {state}$"):
            hear(end, frame)


@pytest.mark.parametrize(("speaker", "kind"), EVERY_LINK_FRAME, ids=name)
def test_a_frame_of_no_call_is_taken_from_the_end_that_may_say_it(speaker: str, kind: type[Frame]) -> None:
    end = greeted(other(speaker))

    end.window.in_flight = 1  # as if a byte were on the link, which can be acknowledged

    if kind in LINK_FRAMES[speaker]:
        hear(end, saying(kind, 0))
    else:
        with pytest.raises(WireError, match=rf"^{kind.__name__}\(id=0.* is not for the {speaker} to say$"):
            hear(end, saying(kind, 0))


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
def test_an_end_refuses_to_say_what_is_not_for_it_to_say(role: str) -> None:
    for kind in KINDS.values():
        end = greeted(role)
        if kind not in LINK_FRAMES[role] and kind is not Hello:
            with pytest.raises(WireError, match="to say"):
                end.control(kind(0))
        if (IDLE, role, kind) not in STATES:
            with pytest.raises(WireError, match="to say"):
                end.control(kind(1))


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
@pytest.mark.parametrize("first", [kind for kind in KINDS.values() if kind is not Hello], ids=name)
def test_the_first_frame_is_a_hello(role: str, first: type[Frame]) -> None:
    end = Connection(role, frames.Decoder().feed, MAX_PAYLOAD)

    with pytest.raises(WireError, match=f"the first frame is {first.__name__}.*, not a hello"):
        hear(end, first(0))


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
def test_a_hello_belongs_to_no_call(role: str) -> None:
    end = Connection(role, frames.Decoder().feed, MAX_PAYLOAD)

    with pytest.raises(WireError, match="not a hello"):
        hear(end, Hello(1, VERSION))


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_another_version_of_the_wire_is_refused_with_both_numbers(version: int) -> None:
    end = Connection(CONTROLLER, MsgpackDecoder().feed, MAX_PAYLOAD)

    with pytest.raises(WireError, match=f"version {version} of the wire; this end speaks {VERSION}"):
        hear(end, Hello(0, version))


@pytest.mark.parametrize("start", [Call, Begin, Session], ids=name)
def test_an_id_is_used_once(start: type[Frame]) -> None:
    end = greeted(AGENT)
    hear(end, Call(7))

    for reused in (7, 6):  # open, and below the newest
        with pytest.raises(WireError, match="that is"):
            hear(listener_with_newest(7), start(reused))


def listener_with_newest(id: int) -> Connection:
    end = greeted(AGENT)
    hear(end, Call(id))
    return end


def test_ids_may_leave_gaps() -> None:
    end = greeted(AGENT)

    heard = hear(end, Call(3), Call(1000), Cancel(1000), Cancel(500))

    assert [type(frame) for frame in heard] == [Call, Call, Cancel]  # 500 never was, which is as good as ended


def test_a_call_ends_once() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)
    hear(end, End(1, RETURNED))

    with pytest.raises(WireError, match=r"End\(id=1.*not for the agent to say of a call that is ended"):
        hear(end, End(1, RETURNED))


def test_nothing_follows_the_last_part_of_the_arguments() -> None:
    end = greeted(AGENT)
    hear(end, Begin(1), Data(1, 0, 0, b"a"), Data(1, 1, 0, b"b"))

    with pytest.raises(WireError, match=r"Data\(id=1.*not for the controller to say of a call that is running"):
        hear(end, Data(1, 1, 0, b"c"))


@pytest.mark.parametrize(
    "frame", [Data(1), Output(1, 1), Record(1), Credit(1), Output(0, 1), Record(0), Ack(0)], ids=repr
)
def test_what_says_nothing_is_refused_since_it_need_never_end(frame: Frame) -> None:
    controller = listener_in(RUNNING, AGENT)

    with pytest.raises(WireError, match="of nothing"):
        hear(controller, frame)


@pytest.mark.parametrize("sent", [0, CREDIT // 2])
def test_no_more_credit_is_given_than_was_used(sent: int) -> None:
    controller = greeted(CONTROLLER)
    controller.call(1, 0, bytes(sent), None)
    all_said(controller)

    hear(controller, *[Credit(1, sent)] * bool(sent))

    with pytest.raises(WireError, match="credit for call 1 that had none to give"):
        hear(controller, Credit(1, 1))


def test_what_crosses_with_the_end_of_a_call_is_ignored() -> None:
    end = greeted(AGENT)
    hear(end, Begin(1), Data(1, 0, 0, b"a"))
    end.end(1, frames.NEVER_STARTED)

    heard = hear(end, Data(1, 1, 0, b"b"), Cancel(1), frames.Renew(1), Credit(1, 10), Ping())

    assert [type(frame) for frame in heard] == [Ping]


@pytest.mark.parametrize("kind", [Output, Record], ids=name)
def test_a_worker_may_write_while_the_arguments_of_its_next_call_are_still_coming(kind: type[Frame]) -> None:
    agent, controller = greeted(AGENT), greeted(CONTROLLER)
    controller.call(1, 0, bytes(2 * CREDIT), None)
    hear(agent, *all_said(controller))  # as far as its credit goes

    agent.bulk(kind(1, 1, 0, b"from a thread that an earlier call left\n"))

    (heard,) = hear(controller, *all_said(agent))
    assert type(heard) is kind and heard.id == 1


def test_an_acknowledgement_of_more_than_was_sent_is_refused() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, bytes(SMALL + 1), None)
    all_said(end)

    with pytest.raises(WireError, match=f"acknowledged {SMALL + 2} bytes of {SMALL + 1}"):
        hear(end, Ack(0, SMALL + 2))


def test_more_for_one_call_than_max_payload_is_refused() -> None:
    end = greeted(CONTROLLER, max_payload=100)
    end.call(1, 0, b"", None)
    hear(end, Data(1, 0, 0, bytes(100)))

    with pytest.raises(WireError, match="more than 100 bytes for call 1"):
        hear(end, Data(1, 0, 0, b"!"))


def test_arguments_above_max_payload_are_refused_before_they_leave() -> None:
    end = greeted(CONTROLLER, max_payload=100)

    with pytest.raises(ValueError, match="101 bytes of arguments; max_payload is 100"):
        end.call(1, 0, bytes(101), None)

    assert end.is_drained


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
def test_an_end_that_has_refused_something_is_of_no_more_use(role: str) -> None:
    end = greeted(role)
    with pytest.raises(WireError):
        hear(end, Hello(0, VERSION))

    with pytest.raises(WireError, match="before"):
        hear(end, Ping())


def test_nothing_is_said_of_a_call_behind_its_end() -> None:
    end = greeted(AGENT)
    hear(end, Call(1))
    end.bulk(Output(1, 1, 0, b"a line\n"))
    end.end(1, RETURNED)

    with pytest.raises(WireError, match="call 1"):
        end.bulk(Output(1, 1, 0, b"another\n"))
    with pytest.raises(WireError, match="call 1"):
        end.end(1, RETURNED)
