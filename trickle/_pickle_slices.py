"""Read a pickle slice by slice, so that other tasks have their turns between.

CPython's unpickler cannot be interrupted.  But it asks its file for each frame, and what a file does may be Python.  So
a pickle that was scanned is given to it with a frame around each slice of whole opcodes, in a thread of its own that
runs only while somebody waits for it: that is as if reading were a generator.
"""

from __future__ import annotations

import queue
import time
from array import array
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import outcome
import trio

from trickle._fence import Fence
from trickle._pickle_budget import Refused
from trickle._pickle_opcodes import SLICE, frame_of
from trickle._pickle_scan import parts

TURN: Final = 2_000_000  # nanoseconds; then others have theirs

_Value = TypeVar("_Value")
Slices = list[bytes | bytearray]
Run = Callable[[Callable[[], Any]], Any]


class Cutter:
    """Puts opcodes together to slices.

    Attributes:
      slices: what there is; the last one may grow.
    """

    def __init__(self) -> None:
        self.slices: Slices = []
        self._last = bytearray()

    def add(self, opcodes: bytes) -> bool:
        """Add some that are whole.  Returns whether that has begun a new slice."""
        if len(opcodes) >= SLICE:  # a long argument, of which there is to be no other copy
            self.slices.append(opcodes)
            self._last = bytearray()
            return True
        is_new = not self._last or len(self._last) >= SLICE
        if is_new:
            self._last = bytearray()
            self.slices.append(self._last)
        self._last += opcodes
        return is_new


def cut_up(data: bytes, runs: array[int]) -> Generator[None, None, Slices]:
    """Return the opcodes of *data*, which has these *runs*, in slices.  Yields after each."""
    cutter = Cutter()
    for start, end, _ in parts(data, runs):
        if cutter.add(data[start:end]):
            yield
    return cutter.slices


class File:
    """What an unpickler reads slices from.

    It is read strictly: what is asked for has to be what comes next.  So nothing that a host writes has the unpickler
    read on elsewhere than the scan did.

    Attributes:
      pause: called before each slice.
    """

    def __init__(self, slices: Slices) -> None:
        self.pause: Callable[[], object] = _do_not_pause
        self._reads: list[Any] = []  # bytes, or what is like them
        for each in reversed(slices):
            self._reads += each, frame_of(len(each))[1:], frame_of(0)[:1]
        self._reads += b"\x04", b"\x80"  # PROTO

    def read(self, size: int) -> bytes:
        if size == 0:
            return b""  # CPython asks for the contents of an empty bytearray that ends a slice
        found: bytes = self._reads.pop() if self._reads else b""
        if len(found) != size:
            raise Refused("it is cut off")
        if size > 8:
            self.pause()
        return found

    def readline(self) -> bytes:
        raise Refused("it has text where no pickle of trickle's has any")


def _do_not_pause() -> None:
    pass


def _just_run(act: Callable[[], Any]) -> Any:
    return act()


class Loader(NamedTuple):
    """How to have unpicklers read slices.

    Args:
      most: by how many bytes this process may grow in one reading; None: as many as it likes.
      in_turns: others have their turns about every `TURN`.
    """

    most: int | None
    in_turns: bool

    def load(self, fn: Callable[[File], _Value], slices: Slices, run: Run = _just_run) -> Generator[None, None, _Value]:
        """Return what *fn* makes of a file of *slices*, of which none are left.

        Args:
          run: given what takes the next step, takes it.
        """
        file, fence = File(slices), Fence(self.most)
        is_one = len(slices) == 1
        slices.clear()
        elsewhere = None if is_one or not self.in_turns else _begin(lambda: fn(file))
        if elsewhere is None:
            return fence.undisturbed(run, lambda: fn(file))  # type: ignore[no-any-return]
        file.pause = elsewhere.pause
        try:
            fence.undisturbed(run, elsewhere.go_on)
            while elsewhere.ended is None:
                yield
                fence.undisturbed(run, elsewhere.go_on)
            return elsewhere.ended.unwrap()
        finally:
            elsewhere.abandon()


def _begin(fn: Callable[[], _Value]) -> _Elsewhere[_Value] | None:
    """Have *fn* called elsewhere; None if there is no thread to be had."""
    try:
        return _Elsewhere(fn)
    except (RuntimeError, MemoryError):
        return None


class _Abandoned(BaseException):
    """Nobody waits any more."""


class _Elsewhere(Generic[_Value]):
    """A call in a thread that runs only while this one waits for it.

    Attributes:
      ended: what became of it, when it has ended.
    """

    def __init__(self, fn: Callable[[], _Value]) -> None:
        self._fn = fn
        self.ended: outcome.Outcome[_Value] | None = None
        self._runs = False
        # Whoever gets something looks at `_runs` first: after an interrupt there may be more than was waited for.
        self._may_go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._has_stopped: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_abandoned = False
        self._until = 0
        trio.lowlevel.start_thread_soon(self._work, self._end, "trickle: reading a result")

    @trio.lowlevel.enable_ki_protection
    def go_on(self) -> None:
        """Let it run until it pauses or ends, also when a signal's handler raises something meanwhile."""
        interrupt = None
        self._until = time.monotonic_ns() + TURN
        self._runs = True
        while self._runs:
            try:
                self._may_go.put(None)
                self._has_stopped.get()
            except BaseException as exc:
                interrupt = exc
        if interrupt is not None:
            raise interrupt

    def abandon(self) -> None:
        """See that it ends."""
        self._is_abandoned = True
        while self.ended is None:
            self.go_on()

    # ---- in that thread

    def pause(self) -> None:
        """Give others their turn, if it is time."""
        if time.monotonic_ns() >= self._until:
            self._stop()
            self._wait()
            if self._is_abandoned:
                raise _Abandoned

    def _work(self) -> _Value:
        self._wait()
        return self._fn()

    def _end(self, ended: outcome.Outcome[_Value]) -> None:
        self.ended = ended
        self._stop()

    def _wait(self) -> None:
        while not self._runs:
            self._may_go.get()

    def _stop(self) -> None:
        self._runs = False
        self._has_stopped.put(None)
