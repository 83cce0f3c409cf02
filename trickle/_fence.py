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
    try:
        pages = int(_STATM.read_bytes().split()[field])
    except (OSError, ValueError):  # no /proc here
        return None
    most = pages * resource.getpagesize() + size
    if any(existing != resource.RLIM_INFINITY and existing <= most for existing in (soft, hard)):
        return None  # what is in force already is at least as strict
    try:
        resource.setrlimit(limit, (most, hard))
    except (OSError, ValueError):  # forbidden here, as under some sandboxes
        return None
    return limit, (soft, hard)


@functools.cache
def _limit() -> tuple[int, int]:
    """Return the limit to set, and which figure of statm tells what counts towards it."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and tuple(map(int, release.groups())) >= (4, 7):
        return resource.RLIMIT_DATA, 5
    return resource.RLIMIT_AS, 0


def undisturbed(most: int | None, fn: Callable[..., _Value], *args: object) -> _Value:
    """Call *fn* without garbage collection, and let this process grow by at most *most* bytes, if that is given."""
    with _exclusively:
        collecting = gc.isenabled()
        gc.disable()  # it would look at every object again and again, and there is no garbage yet
        try:
            if most is None:
                return fn(*args)
            with memory_fence(most):
                return fn(*args)
        finally:
            if collecting:
                gc.enable()
