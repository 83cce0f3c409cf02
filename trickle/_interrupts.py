"""A Ctrl-C that went through nurseries comes out as itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Raise a group of nothing but KeyboardInterrupt as a KeyboardInterrupt, which is what programs look for."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, others = group.split(KeyboardInterrupt)
        if others is None:
            raise KeyboardInterrupt from group
        raise
