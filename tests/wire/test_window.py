"""How much bulk may be on the link: what it moves in 100 ms, 256 KiB at the least and 4 MiB at the most."""

from collections import deque

import pytest

from trickle._wire.connection import (
    ACK_AFTER,
    LARGEST_WINDOW,
    SMALLEST_WINDOW,
    WINDOW_SECONDS,
    Window,
)
from trickle._wire.frames import CHUNK, WireError


def drive(window: Window, rate: float, seconds: float, start: float, sizes: list[int] | None = None) -> float:
    """Keep a link of so many bytes a second full for so long; returns the time at its end."""
    sizes = sizes if sizes is not None else []
    now, end = start, start + seconds
    while now < end:
        while window.room > 0:
            window.sent(min(ACK_AFTER, window.room), now)
        now += ACK_AFTER / rate
        window.acked(ACK_AFTER, now)
        sizes.append(window.size)
    return now


def test_a_window_opens_at_its_smallest() -> None:
    window = Window()

    assert window.size == window.room == SMALLEST_WINDOW


@pytest.mark.parametrize("rate", [10e6, 20e6, 35e6])
def test_a_window_grows_to_what_the_link_moves_in_its_time(rate: float) -> None:
    window = Window()

    drive(window, rate, 2.0, start=100.0)

    assert window.size == pytest.approx(rate * WINDOW_SECONDS, rel=0.1)


@pytest.mark.parametrize("thing", [40_000, 100_000, 131_071, 520_492])
def test_a_window_grows_where_the_way_is_long_whatever_is_sent(thing: int) -> None:
    window, delay, rate = Window(), 0.02, 200e6
    sizes = [*[CHUNK] * (thing // CHUNK), thing % CHUNK]
    on_the_way: deque[tuple[float, int]] = deque()  # when each frame has arrived
    acknowledged: deque[tuple[float, int]] = deque()  # when each word of that has
    now, unacked, number = 0.0, 0, 0

    while now < 2:
        if acknowledged and acknowledged[0][0] <= now:
            window.acked(acknowledged.popleft()[1], now)
        elif on_the_way and on_the_way[0][0] <= now:
            unacked += on_the_way.popleft()[1]
            if unacked >= ACK_AFTER:
                acknowledged.append((now + delay / 2, unacked))
                unacked = 0
        elif (size := sizes[number % len(sizes)]) <= window.room:
            window.sent(size, now)
            now += size / rate
            on_the_way.append((now + delay / 2, size))
            number += 1
        else:
            now = min(queue[0][0] for queue in (on_the_way, acknowledged) if queue)

    assert window.size > 4 * SMALLEST_WINDOW


def test_a_window_never_grows_above_its_largest() -> None:
    window = Window()

    drive(window, 1e9, 0.5, start=100.0)

    assert window.size == LARGEST_WINDOW


def test_a_window_shrinks_with_a_link_that_has_become_slow_but_never_below_its_smallest() -> None:
    window = Window()
    now = drive(window, 1e9, 0.5, start=100.0)

    drive(window, 10e3, 1000.0, start=now)

    assert window.size == SMALLEST_WINDOW


def test_time_in_which_nothing_was_sent_does_not_count_as_slowness() -> None:
    window = Window()
    now = drive(window, 20e6, 2.0, start=100.0)
    while window.in_flight >= ACK_AFTER:
        window.acked(ACK_AFTER, now)  # what is left is less than its receiver tells us of

    sizes: list[int] = []
    drive(window, 20e6, 1.0, start=now + 3600, sizes=sizes)

    assert min(sizes) > 0.9 * 2e6


def test_acknowledgements_make_room() -> None:
    window = Window()
    window.sent(SMALLEST_WINDOW, 0.0)
    assert window.room == 0

    window.acked(1000, 0.0)

    assert window.room == 1000


def test_a_clock_that_stands_still_measures_nothing() -> None:
    window = Window()

    for _ in range(100):
        window.sent(SMALLEST_WINDOW, 5.0)
        window.acked(SMALLEST_WINDOW, 5.0)

    assert window.size == SMALLEST_WINDOW


def test_more_than_is_on_the_link_cannot_be_acknowledged() -> None:
    window = Window()
    window.sent(10, 0.0)

    with pytest.raises(WireError, match="acknowledged 11 bytes of 10"):
        window.acked(11, 0.0)
