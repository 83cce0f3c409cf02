"""Bound the memory that a piece of code may take, on Linux.

Needed because CPython's unpickler asks for memory before it looks at how much data there is.

The limit is on writable memory where Linux counts that in full (RLIMIT_DATA, since 4.7; see getrlimit(2)): one on
addresses (RLIMIT_AS) does not count what malloc() has reserved for other threads, 64 MiB each, and turns to when
there is no other memory.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

LEAST = 2 * 2**20  # bytes that a further piece of code has to have: more than what CPython asks for at once
_STATM = Path("/proc/self/statm")  # in pages
_Value = TypeVar("_Value")
_exclusively = threading.RLock()  # garbage collection, the memory's limit and a rehearsal's ledger are all threads'
_raising = threading.RLock()  # the limit is the process's: one thread at a time, or one lifts another's


@contextmanager
def memory_fence(size: int) -> Iterator[None]:
    """Let this process grow by at most *size* bytes in the block, where the platform can; else do nothing.

    Going beyond raises MemoryError, in every thread: keep the block short.  A program that another thread
    starts meanwhile inherits the limit.
    """
    with _raising:
        former = _raise_fence(size)
        try:
            yield
        finally:
            if former is not None:
                resource.setrlimit(*former)


def _raise_fence(size: int) -> tuple[int, tuple[int, int]] | None:
    """Lower a soft limit, and return which one and the limits there were, or None if nothing was changed."""
    if sys.platform != "linux" or resource is None:
        return None  # elsewhere these limits are missing, or not enforced
    limit, field = _limit()
    soft, hard = resource.getrlimit(limit)
    used = _used(field)
    if used is None:
        return None
    most = used + size
    if any(existing != resource.RLIM_INFINITY and existing <= most for existing in (soft, hard)):
        return None  # what is in force already is at least as strict
    try:
        resource.setrlimit(limit, (most, hard))
    except (OSError, ValueError):  # forbidden here, as under some sandboxes
        return None
    return limit, (soft, hard)


def _used(field: int) -> int | None:
    """A figure of statm, in bytes; None where there is none."""
    try:
        return int(_STATM.read_bytes().split()[field]) * resource.getpagesize()
    except (OSError, ValueError):  # no /proc here
        return None


def _size() -> int:
    """What this process has of what the limit is on; 0 where there is none."""
    return (_used(_limit()[1]) or 0) if sys.platform == "linux" and resource is not None else 0


@functools.cache
def _limit() -> tuple[int, int]:
    """Return the limit to set, and which figure of statm tells what counts towards it."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and tuple(map(int, release.groups())) >= (4, 7):
        return resource.RLIMIT_DATA, 5
    return resource.RLIMIT_AS, 0


class Fence:
    """Bounds what several pieces of code may take together.

    Args:
      size: by how many bytes this process may grow in them; None: as many as it likes.
    """

    def __init__(self, size: int | None) -> None:
        self._left = size
        self._least = 0  # for the first piece

    def undisturbed(self, fn: Callable[..., _Value], *args: object) -> _Value:
        """Call *fn* without garbage collection."""
        with _exclusively:
            collecting = gc.isenabled()
            gc.disable()  # it would look at every object again and again, and there is no garbage yet
            try:
                if self._left is None:
                    return fn(*args)
                if self._left < self._least:
                    raise MemoryError  # at the fence everything takes long, and each piece finds some memory more
                self._least = LEAST
                before = _size()
                with memory_fence(self._left):
                    value = fn(*args)
                self._left = max(0, self._left - max(0, _size() - before))
                return value
            finally:
                if collecting:
                    gc.enable()


def undisturbed(most: int | None, fn: Callable[..., _Value], *args: object) -> _Value:
    """Call *fn* without garbage collection, and let this process grow by at most *most* bytes, if that is given."""
    return Fence(most).undisturbed(fn, *args)
