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
            raise KeyboardInterrupt from None  # our nurseries are nobody's concern
        assert cancelled is not None
        first, *others_too = _leaves(cancelled)
        for leaf in others_too:
            add_notes_of(leaf, first)
        raise first from None


def add_notes_of(exc: BaseException, to: BaseException) -> None:
    """Add what the notes on *exc* say beyond those that are there, such as where a call was at its deadline."""
    for note in getattr(exc, "__notes__", ()):
        if isinstance(note, str) and note not in getattr(to, "__notes__", ()):
            to.add_note(note)


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _leaves(each)
    else:
        yield exc
