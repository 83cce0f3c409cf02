"""Things that flow: cut, put together, and how much of them may be under way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.pair import all_said, deterministic, greeted, hear
from trickle._wire.connection import AGENT, CONTROLLER, CREDIT, cost
from trickle._wire.frames import CHUNK, DEAF, EOF, ITEM_COST, LAST, RETURNED, Call, Item, WireError
from trickle._wire.items import Inbox, cut

THINGS = st.lists(st.builds(lambda size: bytes(size), st.integers(0, 3 * CHUNK)), max_size=20)


@deterministic
@given(THINGS)
def test_what_is_cut_is_put_together_again(things: list[bytes]) -> None:
    inbox = Inbox()
    given_back = sum(inbox.feed(frame) for thing in things for frame in cut(1, thing))

    taken = []
    while len(inbox):
        payload, credit = inbox.take()
        taken.append(payload)
        given_back += credit

    assert taken == things
    assert given_back == sum(cost(frame) for thing in things for frame in cut(1, thing))


@deterministic
@given(THINGS, st.lists(st.booleans(), max_size=200))
def test_no_more_is_kept_than_the_first_thing_and_the_credit(things: list[bytes], takes: list[bool]) -> None:
    inbox, credit, kept, largest = Inbox(), CREDIT, 0, 0
    frames = [frame for thing in things for frame in cut(1, thing)]
    turns = iter(takes)

    while frames:
        if frames and credit >= cost(frames[0]):
            frame = frames.pop(0)
            kept += len(frame.payload)
            credit += inbox.feed(frame) - cost(frame)
        elif len(inbox):
            payload, given_back = inbox.take()
            kept, credit = kept - len(payload), credit + given_back
        else:
            raise AssertionError("a sender without credit, and nothing to take")
        if next(turns, False) and len(inbox):
            payload, given_back = inbox.take()
            kept, credit = kept - len(payload), credit + given_back
        largest = max(largest, kept)

    assert largest <= max(map(len, things), default=0) + CREDIT


def test_an_empty_thing_takes_credit_too() -> None:
    (frame,) = cut(1, b"")

    assert cost(frame) == ITEM_COST
    agent = greeted(AGENT)
    hear(agent, Call(1))
    with pytest.raises(WireError, match="above the credit of call 1"):
        hear(agent, *[frame] * (CREDIT // ITEM_COST + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        [Item(1, 3)],
        [Item(1, EOF, 0, b"x")],
        [Item(1, DEAF, 0, b"x")],
        [Item(1, 0, 0, b"x"), Item(1, EOF)],
        [Item(1, EOF), Item(1, LAST, 0, b"x")],
        [Item(1, EOF), Item(1, EOF)],
    ],
    ids=repr,
)
def test_what_no_sender_says_is_refused(wrong: list[Item]) -> None:
    inbox = Inbox()

    with pytest.raises(WireError):
        for frame in wrong:
            inbox.feed(frame)


def test_the_end_of_a_flow_and_of_its_receiver_are_told_apart() -> None:
    inbox = Inbox()

    inbox.feed(Item(1, EOF))
    assert (inbox.eof, inbox.deaf) == (True, False)
    inbox.feed(Item(1, DEAF))
    assert (inbox.eof, inbox.deaf) == (True, True)


def test_the_end_of_a_call_comes_behind_what_flowed() -> None:
    agent, controller = greeted(AGENT), greeted(CONTROLLER)
    controller.call(1, 1, b"", None)
    hear(agent, *all_said(controller))
    for frame in cut(1, bytes(2 * CHUNK)):
        agent.bulk(frame)
    agent.end(1, RETURNED)

    heard = hear(controller, *all_said(agent))

    assert [type(frame).__name__ for frame in heard] == ["Item", "Item", "End"]


def test_a_cancel_drops_what_has_not_left_and_keeps_the_end() -> None:
    agent = greeted(AGENT)
    hear(agent, Call(1))
    for frame in cut(1, bytes(4 * CREDIT)):
        agent.bulk(frame)
    agent.end(1, RETURNED)
    all_said(agent)

    assert not agent.drop(1)  # no part of the result is missing

    assert [type(frame).__name__ for frame in all_said(agent)] == ["End"]


def test_things_wait_behind_the_arguments_of_their_call() -> None:
    controller, agent = greeted(CONTROLLER), greeted(AGENT)
    controller.call(1, 1, bytes(CHUNK), None)
    for frame in cut(1, b"thing"):
        controller.bulk(frame)

    heard = hear(agent, *all_said(controller))

    assert [type(frame).__name__ for frame in heard] == ["Begin", "Data", "Item"]


def test_each_thing_may_be_as_large_as_max_payload() -> None:
    agent = greeted(AGENT, max_payload=100)
    hear(agent, Call(1))

    for _ in range(10):
        hear(agent, Item(1, LAST, 0, bytes(100)))

    with pytest.raises(WireError, match="more than 100 bytes for call 1"):
        hear(agent, Item(1, 0, 0, bytes(101)))
