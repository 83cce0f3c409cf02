"""Bound the memory that a piece of code may take, on Linux.

Needed because CPython's unpickler asks for memory before it looks at how much data there is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

_STATM = Path("/proc/self/statm")  # its first figure is the size of this process's memory, in pages
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
                resource.setrlimit(resource.RLIMIT_AS, former)


def _raise_fence(size: int) -> tuple[int, int] | None:
    """Lower the soft limit and return the limits there were, or None if nothing was changed."""
    if sys.platform != "linux" or resource is None:
        return None  # elsewhere RLIMIT_AS is missing, or not enforced
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(_STATM.read_bytes().split(b" ", 1)[0])
    except (OSError, ValueError):  # no /proc here
        return None
    limit = pages * resource.getpagesize() + size
    if any(existing != resource.RLIM_INFINITY and existing <= limit for existing in (soft, hard)):
        return None  # what is in force already is at least as strict
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):  # forbidden here, as under some sandboxes
        return None
    return soft, hard
