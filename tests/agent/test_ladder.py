"""The ladder that a call goes down: what its table promises, and that the docs draw it as it is."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from trickle._agent import ladder
from trickle._agent.ladder import CANCEL, DEATH, ENDED, ENDING, LADDER, RUNNING, TAKEN_BACK, WAITING, Task
from trickle._wire.frames import NEVER, RETURNED, VERDICTS

ROOT = Path(__file__).parents[2]
STATES = list(dict.fromkeys([state for state, _ in LADDER] + [after for after, _ in LADDER.values()]))
EVENTS = list(dict.fromkeys(event for _, event in LADDER))
WITH_A_WORKER = [state for state in STATES if state not in (WAITING, ENDED)]


def task_in(state: str) -> Task:
    task = Task(1, 0, NEVER, 0.0)
    task.state = state
    return task


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_a_step_is_taken_if_it_is_in_the_table_and_changes_nothing_if_not(state: str, event: str) -> None:
    task = task_in(state)
    before = dict(vars(task))

    taken = task.step(event, RETURNED, 7, b"why")

    assert taken == ((state, event) in LADDER)
    if not taken:
        assert vars(task) == before
        return
    after, verdict = LADDER[state, event]
    assert task.state == after
    if verdict is None:
        assert (task.verdict, task.detail, task.payload) == (None, 0, b"")
    else:
        assert (task.verdict, task.detail, task.payload) == (verdict or RETURNED, 7, b"why")


def test_whatever_happens_a_call_ends_once_and_with_a_verdict() -> None:
    ways = list(every_way_down(WAITING, None, ()))

    assert len(ways) > 50
    for events, verdict in ways:
        assert verdict in {*VERDICTS, ladder.ITS_OWN}, events
    assert not [event for state, event in LADDER if state == ENDED]


def every_way_down(
    state: str, verdict: int | None, events: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """The sequences of events that lead from a state to the end, and the verdicts that they settle."""
    if state == ENDED:
        yield events, verdict
    for (before, event), (after, settled) in LADDER.items():
        if before == state and (after != state or event not in events) and event != TAKEN_BACK:
            yield from every_way_down(after, verdict if settled is None else settled, (*events, event))


def test_nothing_leads_up_again_but_what_had_not_begun() -> None:
    rungs = [*dict.fromkeys(state for state, _ in LADDER), ENDED]

    for (before, event), (after, verdict) in LADDER.items():
        if event == TAKEN_BACK:
            assert (after, verdict) == (WAITING, None)
        else:
            assert rungs.index(after) > rungs.index(before) or before == after == ENDING


@pytest.mark.parametrize("state", STATES)
def test_what_can_always_happen_has_a_step_in_every_state_that_it_matters_in(state: str) -> None:
    assert ((state, DEATH) in LADDER) == (state in WITH_A_WORKER and state != ENDING)
    assert ((state, CANCEL) in LADDER) == task_in(state).is_wanted


def test_a_call_that_runs_is_asked_before_anything_else() -> None:
    assert LADDER[RUNNING, CANCEL] == (ladder.ASKED, None)


def test_the_picture_in_the_docs_is_drawn_from_the_table() -> None:
    spec = importlib.util.spec_from_file_location("docs_ladder", ROOT / "docs" / "ladder.py")
    assert spec is not None and spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    page = drawing.PAGE.read_text(encoding="utf-8")

    assert page == drawing.drawn(page), "run docs/ladder.py"
    assert set(drawing.STATES) == set(STATES)
    assert set(drawing.EVENTS) == set(EVENTS)
