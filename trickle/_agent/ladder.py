"""The life of one call over there: what each event makes of it, down the ladder to its verdict.  No I/O, no clock.

broker.py runs by this table: it tells of events, and acts on the state that comes of them.  The picture in
docs/explanation/cancellation.md is drawn from it.
"""

from trickle._wire import frames
from trickle._wire.frames import DIED, KILLED, NEVER_STARTED, RAISED, UNKILLABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional

    from trickle._agent.pool import Worker

WAITING = "waiting"  # for a worker
LOADING = "loading"  # into a worker, which takes its arguments
RUNNING = "running"
ASKED = "asked"  # to stop: CallCancelled is raised in it
QUESTIONED = "questioned"  # where it is, if its deadline found it where it cannot say so itself
TERMINATED = "terminated"  # its process group has had SIGTERM
ENDING = "ending"  # its worker is ended with all that is left
ENDED = "ended"

# Events.
WORKER_FREE, NO_WORKER, LOADED = "worker free", "no worker", "loaded"
TAKEN_BACK = "taken back"  # from a worker that had not begun it
CANCEL, GRACE_OVER, TOLD, TERM_OVER = "cancel", "grace period over", "told", "SIGTERM's time over"
ANSWER = "answer"
TAINTED_ANSWER = "answer of a tainted worker"  # one that CallCancelled was raised in
DEATH = "death of its worker"
GONE, SURVIVED = "nothing is left", "something survived"

ITS_OWN = 0  # the verdict that the answer brings
# (state, event) -> the state after it, and the verdict that it settles, if any.  First in each state comes the step to
# the next rung.  An event that is not here for a state comes too late, and changes nothing.
LADDER = {
    (WAITING, WORKER_FREE): (LOADING, None),
    (WAITING, NO_WORKER): (ENDED, RAISED),
    (WAITING, CANCEL): (ENDED, NEVER_STARTED),
    (LOADING, LOADED): (RUNNING, None),
    (LOADING, CANCEL): (ENDED, NEVER_STARTED),
    (LOADING, DEATH): (ENDING, DIED),
    (RUNNING, CANCEL): (ASKED, None),
    (RUNNING, TAKEN_BACK): (WAITING, None),
    (RUNNING, ANSWER): (ENDED, ITS_OWN),
    (RUNNING, DEATH): (ENDING, DIED),
    (ASKED, GRACE_OVER): (QUESTIONED, None),
    (ASKED, ANSWER): (ENDED, ITS_OWN),  # it was faster than the cancel
    (ASKED, TAINTED_ANSWER): (ENDING, ITS_OWN),
    (ASKED, DEATH): (ENDING, DIED),
    (QUESTIONED, TOLD): (TERMINATED, None),
    (QUESTIONED, ANSWER): (ENDING, ITS_OWN),
    (QUESTIONED, TAINTED_ANSWER): (ENDING, ITS_OWN),
    (QUESTIONED, DEATH): (ENDING, KILLED),
    (TERMINATED, TERM_OVER): (ENDING, KILLED),
    (TERMINATED, ANSWER): (ENDING, ITS_OWN),
    (TERMINATED, TAINTED_ANSWER): (ENDING, ITS_OWN),
    (TERMINATED, DEATH): (ENDING, KILLED),
    (ENDING, GONE): (ENDED, None),
    (ENDING, ANSWER): (ENDING, ITS_OWN),  # on its way when its worker was killed
    (ENDING, TAINTED_ANSWER): (ENDING, ITS_OWN),
    (ENDING, SURVIVED): (ENDED, UNKILLABLE),
}


class Task:
    """One call that the controller has asked for, and how it ended."""

    def __init__(self, id: int, session: int, timeout_ms: int, now: float) -> None:
        self.id = id
        self.session = session
        self.deadline = None if timeout_ms == frames.NEVER else now + timeout_ms / 1000.0
        self.arrived = now
        self.state = WAITING
        self.worker: "Optional[Worker]" = None  # from LOADING on
        self.holder: "Optional[Worker]" = None  # that was handed it ahead, while it runs another
        self.unwanted: "Optional[frames.Cancel]" = None  # a Cancel that waits until it is known whether it has begun
        self.parts: "List[frames.Frame]" = []  # what came of it while it waited; a small call, until its end
        self.grace_ms: "Optional[int]" = None  # if it was said, should this host end it
        self.by_deadline = False  # that it was asked to stop
        self.torn = False  # parts of its result were dropped
        self.verdict: "Optional[int]" = None
        self.detail = 0
        self.payload = b""

    def step(self, event: str, own: int = 0, detail: int = 0, payload: bytes = b"") -> bool:
        """Take the step that *event* is for a call in this state; False, and nothing changes, if it is none.

        Args:
          own: the verdict that an answer brings.
          detail: what goes with the verdict, if this settles one; *payload* too.
        """
        step = LADDER.get((self.state, event))
        if step is None:
            return False
        self.state, verdict = step
        if verdict is not None:
            self.verdict, self.detail, self.payload = verdict or own, detail, payload
        return True

    @property
    def is_wanted(self) -> bool:
        """Whether it goes on, and nobody has asked for its end."""
        return self.state in (WAITING, LOADING, RUNNING)

    @property
    def is_over(self) -> bool:
        """Whether its function runs no more, unless it has been killed."""
        return self.verdict is not None and self.verdict != KILLED

    @property
    def has_ended(self) -> bool:
        """Whether its verdict has been said."""
        return self.state == ENDED

    def seconds_left_ms(self, now: float) -> int:
        """Milliseconds, fit for a frame."""
        return frames.NEVER if self.deadline is None else frames.milliseconds(self.deadline - now)
