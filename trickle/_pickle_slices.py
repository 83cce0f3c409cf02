"""Read a pickle slice by slice, so that other tasks have their turns between.

CPython's unpickler cannot be interrupted.  But it asks its file for each frame, and what a file does may be Python.  So
a pickle that was scanned is given to it with a frame around each slice of whole opcodes, in a thread of its own that
runs only while somebody waits for it: that is as if reading were a generator.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from array import array
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import trio

from trickle._fence import Fence
from trickle._pickle_budget import Refused
from trickle._pickle_opcodes import PIECE, SLICE, frame_of
from trickle._pickle_scan import parts

TURN: Final = 2_000_000  # nanoseconds; then others have theirs

# Bytes, as main threads have or more: what is nested as deeply as MAX_NESTABLE allows may be freed in there.
STACK_SIZE: Final = 16 * 2**20

PROTO: Final = b"\x80\x04"
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
        self._added = 0

    def add(self, opcodes: bytes) -> bool:
        """Add some that are whole.  Returns whether it is time for others to have a turn."""
        if len(opcodes) >= SLICE:  # a long argument, of which there is to be no other copy
            self.slices.append(opcodes)
            self._last = bytearray()
        else:
            if not self._last or len(self._last) >= PIECE:
                self._last = bytearray()
                self.slices.append(self._last)
            self._last += opcodes
        self._added += len(opcodes)
        if self._added < SLICE:
            return False
        self._added = 0
        return True


def cut_up(data: bytes, runs: array[int]) -> Generator[None, None, Slices]:
    """Return the opcodes of *data*, which has these *runs*, in slices.  Yields after each `SLICE` or so."""
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
        self._reads += PROTO[1:], PROTO[:1]

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


AnyFile = File | io.BytesIO


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

    def load(
        self, fn: Callable[[AnyFile], _Value], slices: Slices, run: Run = _just_run
    ) -> Generator[None, None, _Value]:
        """Return what *fn* makes of a file of *slices*, of which none are left.

        Args:
          run: given what takes the next step, takes it.
        """
        fence = Fence(self.most)
        if len(slices) == 1:
            all_of_it = slices.pop()
            whole = io.BytesIO(PROTO + frame_of(len(all_of_it)) + all_of_it)  # the same in C
            return fence.undisturbed(run, lambda: fn(whole))  # type: ignore[no-any-return]
        file = File(slices)
        slices.clear()
        elsewhere = _begin(lambda: fn(file)) if self.in_turns else None
        if elsewhere is None:
            return fence.undisturbed(run, lambda: fn(file))  # type: ignore[no-any-return]
        file.pause = elsewhere.pause
        try:
            fence.undisturbed(run, elsewhere.go_on)
            while not elsewhere.has_ended:
                yield
                fence.undisturbed(run, elsewhere.go_on)
            return elsewhere.result()
        finally:
            elsewhere.abandon()


def _begin(fn: Callable[[], _Value]) -> _Elsewhere[_Value] | None:
    """Have *fn* called elsewhere; None if there is no thread to be had."""
    try:
        return _Elsewhere(fn)
    except (RuntimeError, ValueError, MemoryError):  # ValueError: of the size of its stack
        return None


class _Abandoned(BaseException):
    """Nobody waits any more."""


class _Elsewhere(Generic[_Value]):
    """A call in a thread that runs only while this one waits for it.

    The turns are handed over by locks, and what became of it is stored, without asking for memory: the call may have
    ended because there is none.

    Attributes:
      has_ended: whether it has.
    """

    __slots__ = (
        "_error",
        "_fn",
        "_has_stopped",
        "_is_abandoned",
        "_may_go",
        "_pid",
        "_runs",
        "_until",
        "_value",
        "has_ended",
    )

    def __init__(self, fn: Callable[[], _Value]) -> None:
        self._fn: Callable[[], _Value] | None = fn
        self._value: _Value | None = None
        self._error: BaseException | None = None
        self.has_ended = False
        # Whoever gets one of these looks at `_runs`: after an interrupt there may be one more than was waited for.
        self._runs = False
        self._may_go, self._has_stopped = threading.Lock(), threading.Lock()
        self._may_go.acquire()
        self._has_stopped.acquire()
        self._is_abandoned = False
        self._until = 0
        self._pid = os.getpid()
        thread = threading.Thread(target=self._work, name="trickle: reading a result", daemon=True)
        usual = threading.stack_size(STACK_SIZE)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)

    @trio.lowlevel.enable_ki_protection
    def go_on(self) -> None:
        """Let it run until it pauses or ends, also when a signal's handler raises something meanwhile."""
        if os.getpid() != self._pid:
            raise RuntimeError("this process was forked while a result was read, and has no such thread")
        interrupt = None
        self._until = time.monotonic_ns() + TURN
        self._runs = True
        if self._may_go.locked():
            self._may_go.release()
        while self._runs:
            try:
                self._has_stopped.acquire()
            except BaseException as exc:
                interrupt = exc
        if interrupt is not None:
            raise interrupt

    def result(self) -> _Value:
        """What it returned, or raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def abandon(self) -> None:
        """See that it ends, and the thread with it, if there is one: not in a process that was forked meanwhile."""
        self._is_abandoned = True
        if os.getpid() != self._pid or sys.is_finalizing():
            return  # and waits for nobody
        while not self.has_ended:
            self.go_on()
        self._runs = True
        if self._may_go.locked():
            self._may_go.release()

    # ---- in that thread

    def pause(self) -> None:
        """Give others their turn, if it is time."""
        if time.monotonic_ns() >= self._until:
            self._stop()
            self._wait()
            if self._is_abandoned:
                raise _Abandoned

    def _work(self) -> None:
        self._wait()
        try:
            self._value = self._fn()  # type: ignore[misc]
        except BaseException as exc:
            self._error = exc
            exc.__traceback__ = exc.__context__ = None  # and so all that was made, for which there may be no room
        self._fn = None
        self.has_ended = True
        self._stop()
        self._wait()  # until there is memory for a thread's end

    def _wait(self) -> None:
        while not self._runs:
            self._may_go.acquire()

    def _stop(self) -> None:
        self._runs = False
        if self._has_stopped.locked():
            self._has_stopped.release()
