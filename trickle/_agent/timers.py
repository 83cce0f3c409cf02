"""What is to happen at a time.  Looking at the clock is broker.py's job."""

import heapq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, List, Optional, Tuple

    from trickle._agent.ladder import Task


class Timers:
    """Actions, each with its time; those of a call are forgotten after its end."""

    def __init__(self) -> None:
        self._heap: "List[Tuple[float, int, Callable[[], object], Optional[Task]]]" = []
        self._serial = 0  # so that no two are compared by what they do
        self._tidy_at = 100

    def at(self, when: float, what: "Callable[[], object]", task: "Optional[Task]" = None) -> None:
        """Do *what* at a time of the monotonic clock; *task* is the call that it belongs to."""
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, what, task))
        if len(self._heap) > self._tidy_at:  # most are of calls that have ended
            self._heap = [timer for timer in self._heap if timer[3] is None or not timer[3].has_ended]
            heapq.heapify(self._heap)
            self._tidy_at = 2 * len(self._heap) + 100

    @property
    def next(self) -> float:
        """When the first is due; never, if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def run(self, now: float) -> None:
        """Do all that is due."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2]()
