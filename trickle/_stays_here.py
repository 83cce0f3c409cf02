"""Which classes have instances that live in this program, so that none can be sent to a host or another process."""

from typing import TypeVar

C = TypeVar("C", bound=type)

LIVE: set[type] = set()


def stays_here(cls: C) -> C:
    """Decorate a class whose instances are refused where they are about to be sent."""
    LIVE.add(cls)
    return cls
