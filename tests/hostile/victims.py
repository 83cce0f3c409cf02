"""What attacks on allowed classes and on exceptions are after, and an honest function."""

import os

ran: list[str] = []  # what must not have been called


def double(number: int) -> int:
    """What is asked of all hosts."""
    return 2 * number


class Point:
    """Allowed by the program."""

    x: int

    def __init__(self, *args: object) -> None:
        ran.append("Point.__init__")

    def __call__(self) -> None:
        ran.append("Point.__call__")

    @staticmethod
    def run() -> None:
        ran.append("Point.run")


class Other:
    """Not allowed."""

    def __new__(cls) -> "Other":
        ran.append("Other.__new__")
        return super().__new__(cls)


class ActsInInit(Exception):
    """Imported here, so a host may name it."""

    def __init__(self, *args: object) -> None:
        ran.append("ActsInInit.__init__")


assert os  # a host may try to reach it through this module
