"""Give what a host has printed and logged to whom it is for: in its order, and so that nobody waits for a slow one."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

import trio

from trickle._diagnosis import printable, printable_lines
from trickle._settings import OutputLine, Sink
from trickle._wire.frames import Output, Record

logger = logging.getLogger("trickle")

MANY_LINES = 1000  # and records: how many until other tasks get their turn; fewer where the sink is slow
LONGEST_TURN = 0.02  # seconds that a sink takes of the event loop, as far as that is up to us


class OutputDelivery:
    """The output of one host.

    Args:
      host: its name.
      delivered: called with each frame that a sink has taken.
      send: called when there may be something to send on that, and the caller of `take` does not do so by itself.

    Attributes:
      said: lines and records since other tasks had a turn.
      many: so many are enough for one.
      gone: set when all has been taken.
    """

    def __init__(self, host: str, delivered: Callable[[Output], object], send: Callable[[], object]) -> None:
        self.said: int = 0
        self.many: int = MANY_LINES
        self.gone: trio.Event = trio.Event()
        self.gone.set()
        self._host = host
        self._delivered = delivered
        self._send = send
        # Bounded, each call's by its credit and all by the window: both are given when it is delivered.
        self._waiting: deque[tuple[Output, Callable[[OutputLine], object]]] = deque()
        self._frames: Counter[int] = Counter()  # how many of them are of which call
        self._behind: dict[int, set[trio.lowlevel.Task]] = {}  # who waits for them, by call
        self._delivering = False
        self._giving = trio.CancelScope()
        self._until = math.inf  # when what has not been given is dropped
        self._filling: dict[trio.MemorySendChannel[OutputLine], deque[Output]] = {}
        self._lines_waiting = 0
        self._patience = trio.CancelScope()
        self._longest = math.inf  # seconds from one line to the next, at the end
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Have tasks in *nursery*, when there is something for them to do."""
        self._nursery = nursery

    async def give_turn(self) -> None:
        """Let other tasks run."""
        self.said = 0
        await trio.lowlevel.checkpoint()

    async def finish(self, patience: float) -> None:
        """Wait until all has been taken, but *patience* seconds for each line at most; what is dropped is logged."""
        self._longest = patience
        with trio.CancelScope(deadline=trio.current_time() + patience) as self._patience:
            await self.gone.wait()
        self._giving.cancel()
        if self._lines_waiting and not self.gone.is_set():
            logger.warning(
                "%s: %d lines of output are dropped: their sink has taken none for %g s",
                *(self._host, self._lines_waiting, patience),
            )

    def hurry(self, patience: float) -> None:
        """The host is lost: what has come goes on being given to functions, but for *patience* seconds at the most."""
        self._until = self._giving.deadline = trio.current_time() + patience

    def _took(self, count: int) -> None:
        self._lines_waiting -= count
        if count:
            self._patience.deadline = trio.current_time() + self._longest

    def take(self, frame: Output, sink: Sink | None) -> None:
        """Give lines to a sink (None: print them), at once or as soon as it takes them."""
        if isinstance(sink, trio.MemorySendChannel):
            self._lines_waiting += _count(frame)
            self._fill_later(frame, sink)
        elif self._waiting or not self._give(frame, sink or print_line):
            self._lines_waiting += _count(frame)
            self._waiting.append((frame, sink or print_line))
            self._frames[frame.id] += 1
            if not self._delivering:
                assert self._nursery is not None
                self._delivering = True
                self._nursery.start_soon(self._deliver)
        if (self._waiting or self._filling) and self.gone.is_set():
            self.gone = trio.Event()

    async def given(self, id: int) -> None:
        """Wait until a call's lines have been given to a sink that takes them at once: mostly they have.

        If this is cancelled it returns and raises nothing: what the call has returned is not to be lost.  A channel may
        be emptied by the one who waits here, so nothing waits for that.
        """
        if not self._delivering or id not in self._frames:
            return
        task = trio.lowlevel.current_task()
        waiting = self._behind.setdefault(id, set())
        waiting.add(task)

        def give_up(raise_cancel: object) -> trio.lowlevel.Abort:
            waiting.remove(task)
            trio.lowlevel.reschedule(task)
            return trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _let_go(self, id: int) -> None:
        """A call's lines have been given, or never will be."""
        self._frames.pop(id, None)
        for task in self._behind.pop(id, ()):
            trio.lowlevel.reschedule(task)

    def log(self, frame: Record) -> None:
        """Log what was logged over there."""
        self.said += 1
        name, _, message = frame.payload.partition(b"\0")
        target = logging.getLogger(f"trickle.remote.{self._host}")
        if target.isEnabledFor(frame.level):
            target.log(min(frame.level, logging.CRITICAL), "%s: %s", shown(name), shown(message))

    def _lines(self, frame: Output) -> Iterator[OutputLine]:
        stream = "stderr" if frame.stream == 2 else "stdout"
        for text in frame.payload.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n"):
            yield OutputLine(self._host, stream, frame.id or frame.of or None, text.removesuffix("\r"))

    def _give(self, frame: Output, sink: Callable[[OutputLine], object]) -> bool:
        """Whether the sink has taken it; many lines are left to the task that can wait."""
        count = _count(frame)
        if count > self.many:
            return False
        self.said += count
        started = time.perf_counter()
        for line in self._lines(frame):
            self._give_line(line, sink)
        self._learn(count, started)
        self._delivered(frame)
        return True

    def _learn(self, lines: int, started: float) -> None:
        """Lines that were given since *started* show how many a sink takes in one turn."""
        seconds = max(time.perf_counter() - started, 1e-6)  # a clock may be coarse, or a test's
        self.many = max(1, min(MANY_LINES, int(lines * LONGEST_TURN / seconds)))

    def _give_line(self, line: OutputLine, sink: Callable[[OutputLine], object]) -> None:
        try:
            sink(line)
        except BaseException:  # not ours to be stopped by, whatever it is
            logger.exception("%s: the output sink failed", self._host)

    @trio.lowlevel.enable_ki_protection
    async def _deliver(self) -> None:
        with trio.CancelScope(shield=True, deadline=self._until) as self._giving:  # bounded by `hurry` and `finish`
            while self._waiting:
                frame, sink = self._waiting[0]
                lines = self._lines(frame)
                while turn := list(itertools.islice(lines, max(1, self.many - self.said))):
                    started = time.perf_counter()
                    for line in turn:
                        self._give_line(line, sink)
                    self._learn(len(turn), started)
                    self._took(len(turn))
                    self.said += len(turn)
                    if self.said >= self.many:
                        await self.give_turn()
                self._delivered(frame)
                self._send()
                self._waiting.popleft()
                self._frames[frame.id] -= 1
                if not self._frames[frame.id]:
                    self._let_go(frame.id)
        self._delivering = False
        if self._waiting and self._until < math.inf:
            logger.warning("%s: %d lines of output are dropped: the host is lost", self._host, self._lines_waiting)
        for id in list(self._frames):
            self._let_go(id)
        self._look_whether_gone()

    def _look_whether_gone(self) -> None:
        if not self._waiting and not self._filling:
            self.gone.set()

    def _fill_later(self, frame: Output, sink: trio.MemorySendChannel[OutputLine]) -> None:
        """Leave it to a task of this channel's own: while it is full, others need not wait."""
        waiting = self._filling.get(sink)
        if waiting is None:
            waiting = self._filling[sink] = deque()
            assert self._nursery is not None
            self._nursery.start_soon(self._fill, sink, waiting)
        waiting.append(frame)

    @trio.lowlevel.enable_ki_protection
    async def _fill(self, sink: trio.MemorySendChannel[OutputLine], waiting: deque[Output]) -> None:
        try:
            while waiting:
                left = _count(waiting[0])
                try:
                    for line in self._lines(waiting[0]):
                        await sink.send(line)
                        left -= 1
                        self._took(1)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    logger.debug("%s: output came after its channel was closed", self._host)
                self._took(left)
                self._delivered(waiting.popleft())
                self._send()
        finally:
            del self._filling[sink]
            self._look_whether_gone()


def _count(frame: Output) -> int:
    """How many lines it is."""
    return 1 + frame.payload.removesuffix(b"\n").count(b"\n")


def print_line(line: OutputLine) -> None:
    """The default sink: this program's stderr, each line labelled with its host."""
    with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
        sys.stderr.write(f"{line.host}: {printable(line.text)}\n")


def shown(data: bytes) -> str:
    """A text from a host, without what a terminal would obey."""
    return printable_lines(data.decode("utf-8", "backslashreplace"))
