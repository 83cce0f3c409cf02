"""Draw the ladder of explanation/cancellation.md from the table that the agent runs by; run this when that changes."""

from pathlib import Path

from trickle._agent import ladder
from trickle._agent.broker import STACK_PATIENCE, TERM_TO_KILL
from trickle._agent.ladder import ENDED, ITS_OWN, LADDER
from trickle._agent.reaper import UNKILLABLE_AFTER
from trickle._wire.frames import VERDICTS

PAGE = Path(__file__).with_name("explanation") / "cancellation.md"
BEGIN, END = "<!-- drawn by docs/ladder.py -->\n", "<!-- end of the drawing -->\n"

STATES = {
    ladder.WAITING: "for a worker",
    ladder.LOADING: "a worker takes its arguments",
    ladder.RUNNING: "",
    ladder.ASKED: "CallCancelled is raised in it",
    ladder.QUESTIONED: "where it is, if a deadline ended it and it has not said so itself",
    ladder.TERMINATED: "SIGTERM to its process group",
    ladder.ENDING: "all it started gets SIGTERM, unless it has had that, then SIGKILL",
    ladder.ENDED: "the caller has its verdict",
}
EVENTS = {
    ladder.WORKER_FREE: "a worker is free",
    ladder.NO_WORKER: "none can be started",
    ladder.LOADED: "they are complete",
    ladder.TAKEN_BACK: "its worker had not begun it",
    ladder.CANCEL: "cancel, deadline or closing",
    ladder.GRACE_OVER: "the grace period is over",
    ladder.TOLD: f"it is known, or {STACK_PATIENCE:g} s are over",
    ladder.TERM_OVER: f"{TERM_TO_KILL:g} s are over",
    ladder.ANSWER: "it answers",
    ladder.TAINTED_ANSWER: "it answers, having been stopped",
    ladder.DEATH: "its worker dies",
    ladder.GONE: "nothing is left",
    ladder.SURVIVED: f"something is, after {UNKILLABLE_AFTER:g} s",
}
ANSWERS = {ladder.ANSWER: "returned, raised", ladder.TAINTED_ANSWER: "cancelled, returned, raised"}


def picture() -> str:
    """The ladder as text: a box for each state, its ways out, and the step down to the next."""
    rungs = [*dict.fromkeys(state for state, _ in LADDER), ENDED]
    wide = max(map(len, rungs)) + 2
    lines = []
    for state in rungs:
        lines += ["┌" + "─" * wide + "┐", f"│{state:^{wide}}│  {STATES[state]}".rstrip()]
        lines.append("└" + ("─" * 3 + "┬" if state != ENDED else "─" * 4) + "─" * (wide - 4) + "┘")
        down, *others = [(event, *step) for (before, event), step in LADDER.items() if before == state] or [None]
        lines += [f"    ├── {way_out(state, *other)}" for other in others]
        if down is not None:
            verdict = down[2]
            lines.append(f"    ▼   {EVENTS[down[0]]}" + (f": {VERDICTS[verdict]}" if verdict else ""))
    return "\n".join(lines) + "\n"


def way_out(state: str, event: str, after: str, verdict: int | None) -> str:
    """One way to leave a state that is not the step down."""
    if verdict is None:
        return f"{EVENTS[event] + ' ':─<34}► {after}"
    name = ANSWERS[event] if verdict == ITS_OWN else VERDICTS[verdict]
    where = "" if after in (state, ENDED) else f"{after}: "
    return f"{EVENTS[event] + ' ':─<34}► {where}{name}"


def drawn(page: str) -> str:
    """The page with the picture as it should be."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}```text\n{picture()}```\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
