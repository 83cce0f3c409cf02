"""A Ctrl-C, or a cancellation, that went through nurseries comes out as itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Raise a group of nothing but KeyboardInterrupt and Cancelled as one of them, as code without nurseries would."""
    try:
        yield
    except BaseExceptionGroup as group:
        interrupts, others = group.split(KeyboardInterrupt)
        cancelled, others = others.split(trio.Cancelled) if others is not None else (None, None)
        if others is not None:
            raise
        if interrupts is not None:
            raise KeyboardInterrupt from group
        assert cancelled is not None
        raise _first_leaf(cancelled) from None


def _first_leaf(exc: BaseException) -> BaseException:
    return _first_leaf(exc.exceptions[0]) if isinstance(exc, BaseExceptionGroup) else exc
