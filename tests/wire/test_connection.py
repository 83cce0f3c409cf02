"""Two ends that talk: what goes first, what waits for room, and what is left when all is said."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.pair import MAX_PAYLOAD, Pair, all_said, cuts, deterministic, frames_in, greeted, hear, said, shown
from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.connection import (
    ACK_AFTER,
    AGENT,
    BATCH,
    BULK,
    CONTROLLER,
    CREDIT,
    GRANT,
    LARGEST_WINDOW,
    MOST_WIDE,
    SMALL,
    SMALLEST_WINDOW,
    WIDE_CREDIT,
    WIDE_GRANT,
    WIDEN_AFTER,
    Connection,
)
from trickle._wire.frames import (
    CANCELLED,
    CHUNK,
    ITEM_COST,
    NEVER,
    RETURNED,
    Ack,
    Ask,
    Begin,
    Call,
    Cancel,
    Close,
    Credit,
    Data,
    End,
    Frame,
    Hello,
    Item,
    Modules,
    Note,
    Output,
    Ping,
    Record,
    Renew,
    Session,
    WireError,
)


def kinds(found: list[Frame]) -> list[type[Frame]]:
    return [type(frame) for frame in found]


def payload_of(found: list[Frame], id: int) -> bytes:
    return b"".join(bytes(frame.payload) for frame in found if frame.id == id and isinstance(frame, (Data, End)))


def bulk_in(found: list[Frame]) -> int:
    return sum(len(frame.payload) for frame in found if isinstance(frame, BULK))


def pattern(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def running(pair: Pair, *ids: int) -> None:
    """Have these calls run over there."""
    for id in ids:
        pair.controller.call(id, 0, b"", None)
    pair.settle()


# ---- the same whatever way the bytes come


def conversation() -> tuple[bytes, bytes]:
    """The bytes of a conversation in which both ends say about everything they can."""
    controller = Connection(CONTROLLER, MsgpackDecoder().feed, MAX_PAYLOAD)
    agent = Connection(AGENT, frames.Decoder().feed, MAX_PAYLOAD)
    agent.control(Hello(0, frames.VERSION, 0, b"hostname=web1"))
    open_conversation(controller)
    said_by_controller = b"".join(controller.data_to_send(1.0))
    agent.receive_data(said_by_controller, 1.0)
    agent.control(Ask(0, 1, 0, b"module"))
    agent.control(Note(0, 20, 0, b"a note"))
    agent.bulk(Output(2, 1, 0, b"a line\n"))
    agent.bulk(Record(2, 20, 0, b"logger\0message"))
    agent.end(2, RETURNED, 0, pattern(2 * CHUNK))
    agent.end(3, RETURNED, 0, b"small")
    agent.end(1, CANCELLED)
    return said_by_controller, b"".join(agent.data_to_send(1.0))


def open_conversation(controller: Connection) -> None:
    controller.control(Hello(0, frames.VERSION))
    controller.control(Session(1))
    controller.call(2, 0, b"small", 5.0)
    controller.call(3, 1, pattern(2 * CHUNK), None)
    controller.modules(pattern(CHUNK + 10))


def hear_in_pieces(role: str, pieces: list[bytes]) -> list[tuple[object, ...]]:
    decode = MsgpackDecoder().feed if role == CONTROLLER else frames.Decoder().feed
    end = Connection(role, decode, MAX_PAYLOAD)
    if role == CONTROLLER:
        open_conversation(end)
        all_said(end)
    heard = [frame for piece in pieces for frame in end.receive_data(piece, 1.0)]
    assert end.bytes_received == sum(map(len, pieces))
    return list(map(shown, heard))


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
def test_an_end_hears_the_same_whole_and_byte_by_byte(role: str) -> None:
    data = conversation()[role == CONTROLLER]
    data = data[: 3 * CHUNK] if role == AGENT else data  # reading bytes singly takes time
    head = data[:300]

    whole = hear_in_pieces(role, [data])

    assert hear_in_pieces(role, [*(head[at : at + 1] for at in range(len(head))), data[300:]]) == whole
    assert len(whole) > 3


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
@deterministic
@given(st.lists(st.integers(0, 2 * CHUNK), max_size=12))
def test_an_end_hears_the_same_at_whatever_cuts(role: str, sizes: list[int]) -> None:
    data = conversation()[role == CONTROLLER]

    assert hear_in_pieces(role, cuts(data, sizes)) == hear_in_pieces(role, [data])


@pytest.mark.parametrize("role", [CONTROLLER, AGENT])
@deterministic
@given(st.floats(0, 1, exclude_max=True))
def test_an_end_hears_the_first_frames_of_what_was_truncated(role: str, part: float) -> None:
    data = conversation()[role == CONTROLLER]
    whole = hear_in_pieces(role, [data])

    heard = hear_in_pieces(role, [data[: int(part * len(data))]])

    assert heard == whole[: len(heard)] and len(heard) < len(whole)


# ---- calls and their answers


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, CHUNK, CHUNK + 1, CREDIT, CREDIT + 1, 3 * CREDIT + 17])
def test_arguments_and_results_of_any_size_arrive(size: int) -> None:
    pair = Pair()
    arguments, result = pattern(size), pattern(size)[::-1]

    pair.controller.call(1, 0, arguments, None)
    at_agent, _ = pair.settle()
    pair.agent.end(1, RETURNED, 5, result)
    _, at_controller = pair.settle()

    assert kinds(at_agent)[0] is (Call if size <= SMALL else Begin)
    assert b"".join(bytes(f.payload) for f in at_agent) == arguments
    assert payload_of(at_controller, 1) == result
    end = at_controller[-1]
    assert isinstance(end, End) and (end.verdict, end.detail) == (RETURNED, 5)
    assert pair.controller.is_drained and pair.agent.is_drained


def test_many_calls_at_once_all_arrive_and_leave_nothing() -> None:
    pair = Pair()
    sizes = {id: (id * 7919) % (2 * CREDIT) for id in range(1, 60)}

    for id, size in sizes.items():
        pair.controller.call(id, 0, pattern(size), None)
    at_agent, _ = pair.settle()
    for id, size in sizes.items():
        pair.agent.end(id, RETURNED, 0, pattern(size))
    _, at_controller = pair.settle()

    for id, size in sizes.items():
        assert b"".join(bytes(f.payload) for f in at_agent if f.id == id) == pattern(size)
        assert payload_of(at_controller, id) == pattern(size)
    assert pair.controller.is_drained and pair.agent.is_drained
    assert not pair.controller._ring and not pair.agent._ring


def test_bytes_are_counted_both_ways() -> None:
    pair = Pair()
    before = pair.agent.bytes_received

    pair.controller.call(1, 0, pattern(2 * CREDIT), None)
    pair.settle()

    assert pair.controller.bytes_sent == pair.agent.bytes_received - before > 2 * CREDIT


# ---- what goes first


def test_control_frames_go_before_small_calls_and_small_calls_before_bulk() -> None:
    end = greeted(CONTROLLER)
    end.modules(pattern(2 * CHUNK))
    end.call(1, 0, pattern(CHUNK), None)
    end.call(2, 0, b"small", None)
    end.control(Ping())

    assert kinds(said(end)) == [Ping, Begin, Call, Modules, Data, Modules]


def test_small_calls_without_end_do_not_keep_bulk_waiting() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, pattern(2 * CHUNK), None)
    ids = iter(range(2, 10_000))
    found = []

    for _ in range(4):
        while len(end._small) * SMALL < 2 * BATCH:
            end.call(next(ids), 0, pattern(SMALL), None)
        found += said(end)

    assert payload_of(found, 1) == pattern(2 * CHUNK)


def test_results_go_before_bulk() -> None:
    pair = Pair()
    running(pair, 1, 2)

    pair.agent.end(1, RETURNED, 0, pattern(CHUNK))
    pair.agent.end(2, RETURNED, 0, b"small")

    assert kinds(said(pair.agent)) == [End, Data, End]


def test_chunks_of_several_calls_interleave() -> None:
    pair = Pair()
    for id in (1, 2, 3):
        pair.controller.call(id, 0, pattern(2 * CHUNK), None)

    at_agent, _ = pair.settle()

    assert [frame.id for frame in at_agent if isinstance(frame, Data)] == [1, 2, 3, 1, 2, 3]


def test_calls_leave_in_the_order_in_which_they_were_made_whatever_they_are() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)
    end.control(Session(2))
    end.call(3, 2, b"", None)

    heard = hear(greeted(AGENT), *all_said(end))

    assert [(type(frame), frame.id) for frame in heard] == [(Call, 1), (Session, 2), (Call, 3)]


@pytest.mark.parametrize("frame", [Cancel(1), Renew(1, 500)], ids=repr)
@pytest.mark.parametrize("size", [1, 2 * CHUNK])
def test_nothing_overtakes_the_first_frame_of_its_call(frame: Frame, size: int) -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, pattern(size), None)

    end.control(frame)

    assert kinds(said(end))[:2] == [Begin if size > SMALL else Call, type(frame)]


def test_a_close_comes_behind_the_calls_that_were_made_before_it() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)

    end.control(Close(0, 5000))

    assert kinds(all_said(end)) == [Call, Close]


def test_one_ping_that_waits_is_enough() -> None:
    end = greeted(CONTROLLER)

    for _ in range(1000):
        end.control(Ping())

    assert kinds(all_said(end)) == [Ping]


def test_a_cancel_goes_out_though_the_window_is_full() -> None:
    end = greeted(CONTROLLER)
    for id in (1, 2):
        end.call(id, 0, pattern(CREDIT), None)
    all_said(end)
    assert end.window.room < CHUNK

    end.control(Cancel(1, 5000))

    assert kinds(all_said(end)) == [Cancel]


def test_a_cancel_goes_before_what_has_not_been_handed_out() -> None:
    end = greeted(CONTROLLER)
    for id in range(1, 200):
        end.call(id, 0, pattern(SMALL), None)
    first = said(end)
    assert len(first) < 199  # it hands out no more at once than a pipe takes soon

    end.control(Cancel(1, 5000))

    assert type(said(end)[0]) is Cancel


def test_an_end_stays_behind_what_its_call_has_written() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.bulk(Output(1, 1, 0, b"a line\n"))
    pair.agent.bulk(Record(1, 20, 0, b"logger\0message"))

    pair.agent.end(1, RETURNED, 0, b"the result")

    assert kinds(all_said(pair.agent)) == [Output, Record, End]


def test_an_end_leaves_with_what_it_waited_for_though_that_fills_the_window() -> None:
    pair = Pair()
    running(pair, 1)

    pair.agent.end(1, RETURNED, 0, pattern(SMALLEST_WINDOW))

    assert kinds(all_said(pair.agent)) == [Data] * 4 + [End]


def test_no_more_is_handed_out_at_once_than_a_pipe_takes_soon() -> None:
    end = greeted(CONTROLLER)
    for id in range(1, 1000):
        end.call(id, 0, pattern(SMALL), None)

    sizes = []
    while pieces := end.data_to_send(0.0):
        sizes.append(sum(map(len, pieces)))

    assert max(sizes) <= BATCH + SMALL + 100


# ---- credit


def test_a_call_has_no_more_under_way_than_its_credit() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(4 * CREDIT), None)

    at_agent, _ = pair.settle(use=False)

    assert bulk_in(at_agent) == CREDIT


@deterministic
@given(st.lists(st.integers(SMALL + 1, CHUNK), min_size=8, max_size=20))
def test_parts_that_are_not_chunks_keep_to_the_credit_as_well(sizes: list[int]) -> None:
    pair = Pair()
    running(pair, 1)
    for size in sizes:
        pair.agent.bulk(Data(1, 0, 0, bytes(size)))

    _, at_controller = pair.settle(use=False)

    assert bulk_in(at_controller) <= CREDIT
    assert bulk_in(at_controller) == sum(sizes) or bulk_in(at_controller) > CREDIT - CHUNK


def test_credit_is_given_for_what_was_used_and_no_more() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(4 * CREDIT), None)
    pair.settle(use=False)

    pair.agent.used(1, GRANT)
    at_agent, _ = pair.settle(use=False)

    assert bulk_in(at_agent) == GRANT


def test_credit_for_little_waits_until_it_is_worth_a_frame() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(4 * CREDIT), None)
    pair.settle(use=False)

    pair.agent.used(1, GRANT - 1)
    assert said(pair.agent) == []
    pair.agent.used(1, 1)

    assert list(map(shown, said(pair.agent))) == [shown(Credit(1, GRANT))]


def move(pair: Pair, id: int, size: int) -> None:
    """Have call *id* send so much, and the agent take it."""
    pair.controller.call(id, 0, pattern(size), None)
    while pair.controller.pending(id):
        at_agent, _ = pair.settle(use=False)
        for frame in at_agent:
            pair.agent.used(id, len(frame.payload))
    pair.settle(use=False)


def room_after(pair: Pair, id: int, size: int) -> int:
    """How much more of call *id* may come when it has moved *size* bytes."""
    move(pair, id, size)
    return pair.agent._calls[id].room


def test_a_call_that_moves_much_gets_more_credit() -> None:
    pair = Pair()

    assert room_after(pair, 1, WIDEN_AFTER - GRANT) <= CREDIT
    assert WIDE_CREDIT - WIDE_GRANT < room_after(pair, 2, WIDEN_AFTER + GRANT) <= WIDE_CREDIT


def test_a_call_that_gets_more_credit_is_told_once() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(2 * WIDEN_AFTER), None)
    pair.settle(use=False)

    pair.agent.used(1, GRANT)  # worth a frame, which has not left when it gets more
    pair.agent.used(1, WIDEN_AFTER - GRANT)

    credit = WIDEN_AFTER + WIDE_CREDIT - CREDIT
    assert list(map(shown, said(pair.agent))) == [shown(Credit(1, credit))]


def test_no_more_than_so_many_calls_have_more_credit_at_once() -> None:
    pair = Pair()
    much = WIDEN_AFTER + GRANT
    wide = [room_after(pair, id, much) > CREDIT for id in range(1, MOST_WIDE + 3)]
    assert wide == [True] * MOST_WIDE + [False] * 2

    pair.agent.end(1, RETURNED, 0, b"")
    pair.settle(use=False)

    assert room_after(pair, MOST_WIDE + 3, much) > CREDIT
    assert room_after(pair, MOST_WIDE + 4, much) <= CREDIT


def test_what_is_printed_gets_no_more_credit() -> None:
    pair = Pair()
    running(pair, 1)
    for _ in range(2 * WIDEN_AFTER // CHUNK):
        pair.agent.bulk(Output(1, 1, 0, bytes(CHUNK - 64)))
        _, at_controller = pair.settle(use=False)
        for frame in at_controller:
            assert isinstance(frame, Output)
            pair.controller.delivered(frame)
    pair.settle(use=False)

    assert pair.controller._calls[1].room <= CREDIT


def test_credit_for_more_than_a_call_may_have_is_refused() -> None:
    pair = Pair()
    move(pair, 1, WIDEN_AFTER + GRANT)
    assert WIDE_CREDIT - WIDE_GRANT < pair.controller._calls[1].credit <= WIDE_CREDIT

    with pytest.raises(WireError, match="credit for call 1 that had none to give"):
        hear(pair.controller, Credit(1, WIDE_GRANT))


def test_a_sender_that_oversteps_its_credit_is_refused() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)
    for _ in range(CREDIT // CHUNK):
        hear(end, Data(1, 0, 0, bytes(CHUNK)))

    with pytest.raises(WireError, match="credit of call 1"):
        hear(end, Data(1, 0, 0, b"!"))


def test_a_stalled_call_does_not_stop_another() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(4 * CREDIT), None)
    pair.settle(use=False)  # nobody takes what came for call 1

    pair.controller.call(2, 0, pattern(CREDIT), None)
    at_agent, _ = pair.settle(use=False)

    assert payload_of(at_agent, 2) == pattern(CREDIT)


def test_a_stalled_call_that_is_dropped_gets_its_end_and_its_output() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.end(1, RETURNED, 0, pattern(4 * CREDIT))
    pair.settle(use=False)

    assert pair.agent.drop(1)
    pair.agent.bulk(Output(1, 1, 0, b"last words\n"))
    pair.agent.disown_output(1)
    pair.agent.end(1, CANCELLED)
    _, at_controller = pair.settle(use=False)

    assert kinds(at_controller) == [End, Output]
    assert pair.controller.is_drained and pair.agent.is_drained


def test_output_behind_a_stalled_part_is_not_lost_with_it() -> None:
    pair = Pair()
    running(pair, 1)
    for _ in range(8):
        pair.agent.bulk(Data(1, 0, 0, bytes(CHUNK)))
    pair.agent.bulk(Output(1, 1, 0, b"a line\n"))
    pair.settle(use=False)

    pair.agent.drop(1)
    pair.agent.disown_output(1)
    _, at_controller = pair.settle(use=False)

    assert kinds(at_controller) == [Output]


def test_use_of_a_call_that_has_ended_gives_no_credit() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.end(1, RETURNED, 0, pattern(CREDIT))
    pair.settle(use=False)

    pair.controller.used(1, CREDIT)

    assert said(pair.controller) == []


# ---- the window


def test_no_more_bulk_is_on_the_link_than_its_window() -> None:
    end = greeted(CONTROLLER)
    for id in range(1, 10):
        end.call(id, 0, pattern(CREDIT - 1000), None)
    end.modules(pattern(CREDIT))

    found = all_said(end)

    assert SMALLEST_WINDOW - CHUNK < bulk_in(found) <= SMALLEST_WINDOW
    assert end.window.in_flight == bulk_in(found)


@deterministic
@given(st.lists(st.integers(1, CHUNK), min_size=10, max_size=40))
def test_output_keeps_to_the_window_whatever_its_sizes(sizes: list[int]) -> None:
    pair = Pair()
    running(pair, 1)
    for size in sizes:
        pair.agent.bulk(Output(1, 1, 0, bytes(size)))

    unheard = bulk_in(all_said(pair.agent))

    assert unheard <= SMALLEST_WINDOW
    assert unheard == sum(sizes) or unheard > SMALLEST_WINDOW - CHUNK


def test_acknowledgements_let_more_go() -> None:
    pair = Pair()
    pair.controller.modules(pattern(4 * SMALLEST_WINDOW))

    at_agent, _ = pair.settle()

    assert b"".join(bytes(frame.payload) for frame in at_agent) == pattern(4 * SMALLEST_WINDOW)
    assert [frame.last for frame in at_agent if isinstance(frame, Modules)] == [0] * 15 + [1]


def test_small_frames_do_not_wait_for_the_window() -> None:
    pair = Pair()
    running(pair, 1, 2)
    pair.agent.end(1, RETURNED, 0, pattern(4 * CREDIT))
    all_said(pair.agent)

    pair.agent.end(2, RETURNED, 0, b"small")

    assert kinds(all_said(pair.agent)) == [End]


def test_the_link_moves_on_when_all_that_was_sent_has_been_heard() -> None:
    """The receiver keeps what it need not tell of to itself; that must never be all the room there is."""
    pair = Pair()
    running(pair, 1)
    for size in [CHUNK - 1, 1, 17, CHUNK - 3] * 50:
        pair.agent.bulk(Record(1, 20, 0, bytes(size)))

    _, at_controller = pair.settle()

    assert len(at_controller) == 200


# ---- deadlines


@pytest.mark.parametrize("size", [1, SMALL + 1])
def test_a_deadline_is_counted_when_the_bytes_are_handed_out(size: int) -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, bytes(size), deadline=20.0)

    (frame, *_) = said(end, now=12.5)

    assert frame[1] == 7500


@pytest.mark.parametrize(
    ("deadline", "expected"), [(None, NEVER), (5.0, 0), (-math.inf, 0), (math.inf, NEVER), (1e12, NEVER)]
)
def test_a_deadline_that_has_passed_or_is_out_of_reach_fits_a_frame(deadline: float | None, expected: int) -> None:
    end = greeted(CONTROLLER)
    end.call(1, 9, b"", deadline)

    (frame,) = said(end, now=10.0)

    assert shown(frame) == shown(Call(1, expected, 9, b""))


# ---- taking back


@pytest.mark.parametrize("size", [0, SMALL, SMALL + 1, 2 * CREDIT])
def test_a_call_that_has_not_left_can_be_withdrawn(size: int) -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, pattern(size), None)
    end.control(Renew(1, 500))

    assert end.withdraw(1)

    assert all_said(end) == [] and end.is_drained and not end._ring
    assert not end.withdraw(1)


def test_a_session_that_has_not_left_can_be_withdrawn() -> None:
    end = greeted(CONTROLLER)
    end.control(Session(1))

    assert end.withdraw(1)

    assert all_said(end) == [] and end.is_drained


@pytest.mark.parametrize("size", [0, 2 * CREDIT])
def test_a_call_that_has_left_cannot_be_withdrawn(size: int) -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, pattern(size), None)
    said(end)

    assert not end.withdraw(1)
    assert end.is_open(1)


def test_a_withdrawn_call_leaves_the_others_in_order() -> None:
    end = greeted(CONTROLLER)
    for id in range(1, 6):
        end.call(id, 0, b"", None)

    assert end.withdraw(3) and end.withdraw(1)

    assert [frame.id for frame in said(end)] == [2, 4, 5]


def test_the_id_of_a_withdrawn_call_is_not_used_again() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)
    end.withdraw(1)

    with pytest.raises(WireError, match="ended"):
        end.call(1, 0, b"", None)
    end.call(2, 0, b"", None)

    assert kinds(hear(greeted(AGENT), *all_said(end))) == [Call]


def test_arguments_that_have_not_left_are_dropped() -> None:
    end = greeted(CONTROLLER)
    end.call(1, 0, pattern(4 * CREDIT), None)
    said(end)

    assert end.drop(1)
    end.control(Cancel(1))

    assert kinds(all_said(end)) == [Cancel]
    assert end.pending(1) == 0 and end.is_open(1)


def test_a_dropped_result_takes_its_end_with_it_and_leaves_the_output() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.bulk(Output(1, 1, 0, b"a line\n"))
    pair.agent.end(1, RETURNED, 0, pattern(CHUNK))

    assert pair.agent.drop(1)
    pair.agent.end(1, CANCELLED)

    assert [(type(f), f[1]) for f in all_said(pair.agent)] == [(Output, 1), (End, CANCELLED)]


def test_an_end_that_is_true_is_not_dropped() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.bulk(Output(1, 1, 0, b"a line\n"))
    pair.agent.end(1, RETURNED, 0, b"small")

    assert not pair.agent.drop(1)

    assert kinds(all_said(pair.agent)) == [Output, End]


def test_there_is_nothing_to_drop_of_a_call_that_is_unknown_or_ended() -> None:
    pair = Pair()
    running(pair, 1)
    pair.agent.end(1, RETURNED)

    assert not pair.agent.drop(1) and not pair.agent.drop(99)


def test_an_end_that_overtakes_the_arguments_stops_them() -> None:
    pair = Pair()
    pair.controller.call(1, 0, pattern(8 * CREDIT), None)
    pair.to_agent()

    pair.agent.end(1, frames.NEVER_STARTED)
    at_agent, at_controller = pair.settle()

    assert kinds(at_controller) == [End] and at_agent == []
    assert pair.controller.is_drained and pair.agent.is_drained
    assert pair.controller.bytes_sent < 2 * CREDIT


# ---- what is left


def test_pending_counts_what_of_a_call_has_not_left() -> None:
    pair = Pair()
    running(pair, 1)
    assert pair.agent.pending(1) == pair.agent.pending(0) == pair.agent.pending(99) == 0

    pair.agent.bulk(Output(1, 1, 0, bytes(10)))
    pair.agent.bulk(Output(0, 1, 0, bytes(5)))
    pair.agent.end(1, RETURNED, 0, pattern(2 * CREDIT))

    assert pair.agent.pending(1) == 10 + 2 * CREDIT + 10 * ITEM_COST and pair.agent.pending(0) == 5 + ITEM_COST
    pair.agent.drop(1)
    assert pair.agent.pending(1) == 10 + ITEM_COST
    all_said(pair.agent)
    assert pair.agent.pending(1) == pair.agent.pending(0) == 0


def test_an_end_is_drained_when_calls_have_ended_and_all_was_handed_out() -> None:
    pair = Pair()
    assert pair.agent.is_drained

    running(pair, 1)
    assert not pair.agent.is_drained
    pair.agent.end(1, RETURNED)
    assert not pair.agent.is_drained
    said(pair.agent)
    assert pair.agent.is_drained

    pair.agent.bulk(Output(0, 1, 0, b"between calls\n"))
    assert not pair.agent.is_drained
    said(pair.agent)
    assert pair.agent.is_drained


def test_a_flood_that_nobody_answers_takes_no_memory() -> None:
    """A host may send for ever and read nothing: what it is owed must not pile up here."""
    end = greeted(CONTROLLER)
    end.call(1, 0, b"", None)
    all_said(end)
    flood = frames.encode(Record(0, 20, 0, bytes(CHUNK))) * 4

    for _ in range(500):
        end.receive_data(flood, 0.0)

    assert len(end._control) == 0
    (ack,) = frames_in(b"".join(end.data_to_send(0.0)))
    assert shown(ack) == shown(Ack(0, 500 * 4 * CHUNK))


def test_thousands_of_calls_are_withdrawn_in_no_time() -> None:
    end = greeted(CONTROLLER)
    count = 20_000
    for id in range(1, count + 1):
        end.call(id, 0, b"", None)

    for id in range(count, 0, -1):  # a search through all that wait would take minutes
        assert end.withdraw(id)

    assert end.is_drained


def test_output_makes_room_for_more_of_its_call_only_when_it_is_delivered_and_holds_up_no_other() -> None:
    pair = Pair()
    running(pair, 1, 2)
    block = bytes(CHUNK // 2)
    for _ in range(20):
        pair.agent.bulk(Output(1, 1, 0, block))
    _, at_controller = pair.settle(use=False)
    assert kinds(at_controller) == [Output] * ((CREDIT - 1) // len(block))

    pair.agent.end(2, RETURNED, 0, pattern(2 * CREDIT))
    _, others = pair.settle()
    assert payload_of(others, 2) == pattern(2 * CREDIT)
    assert Output not in kinds(others)

    for frame in at_controller:
        pair.controller.delivered(frame)  # type: ignore[arg-type]
    _, more = pair.settle(use=False)
    assert Output in kinds(more)


def test_output_of_more_calls_than_there_are_workers_is_acknowledged_only_when_it_is_delivered() -> None:
    end = greeted(CONTROLLER)
    all_said(end)
    frame = Output(0, 1, 0, bytes(CHUNK))
    for _ in range(LARGEST_WINDOW // CHUNK):
        end.receive_data(frames.encode(frame), 0.0)
    all_said(end)

    more = ACK_AFTER // CHUNK
    end.receive_data(frames.encode(frame) * more, 0.0)
    before = end.data_to_send(0.0)
    for _ in range(more):
        end.delivered(frame)
    (ack,) = frames_in(b"".join(end.data_to_send(0.0)))

    assert before == []
    assert ack == Ack(0, ACK_AFTER)


def test_output_that_nobody_takes_is_bounded_whatever_the_agent_does() -> None:
    end = greeted(CONTROLLER)
    all_said(end)
    flood = frames.encode(Output(0, 1, 0, bytes(CHUNK)))

    with pytest.raises(WireError, match="output that nobody has taken"):
        for _ in range(1000):
            end.receive_data(flood, 0.0)


# ---- payloads in pieces


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=5))
@deterministic
def test_arguments_in_pieces_arrive_as_one(sizes: list[int]) -> None:
    pair = Pair()
    pieces = [pattern(size) for size in sizes]

    pair.controller.call(1, 0, pieces, None)
    at_agent, _ = pair.settle()

    begun, *parts = at_agent
    assert isinstance(begun, Call if sum(sizes) <= SMALL else Begin)
    assert b"".join(bytes(frame.payload) for frame in at_agent) == b"".join(pieces)
    assert [frame.last for frame in parts if isinstance(frame, Data)] == [0] * (len(parts) - 1) + [1] * bool(parts)


@pytest.mark.parametrize("sizes", [[10], [CHUNK], [19, 5000], [CHUNK + 19]])
def test_what_is_handed_on_is_a_view_of_what_was_read_and_the_same(sizes: list[int]) -> None:
    said = [Data(1, 0, 0, pattern(5000)), Item(1, 0, 0, pattern(CHUNK)), Data(1, 1, 0, b"small"), Ping()]
    reader = frames.Decoder(views=frames.LARGE)

    found = [frame for piece in cuts(b"".join(map(frames.encode, said)), sizes) for frame in reader.feed(piece)]

    assert [shown(frame) for frame in found] == [shown(frame) for frame in said]
    assert [type(frame.payload) for frame in found] == [memoryview, memoryview, bytes, bytes]
    pieces: list[bytes] = []
    assert sum(frames.encode_to(pieces, frame) for frame in found) == sum(map(len, pieces))
    assert b"".join(pieces) == b"".join(map(frames.encode, said))
