"""Count the work that reading a pickle from a host takes, and refuse what takes more than its size accounts for."""

from typing import Final

WORK_PER_BYTE: Final = 8  # that constructors and hashing may do: an honest pickle has its data once
SPARE_WORK: Final = 64 * 1024
# Nanoseconds, as those say who charge them, for what takes longer than opcodes do: of the 100 ms, and the 38 for each
# byte (40 ms for a MiB), that reading may hold up the loop, reading opcodes takes the rest.  Counted and not measured,
# so that the same result is read, or refused, on a fast machine and on a busy one.
SPARE_TIME: Final = 60_000_000
TIME_PER_BYTE: Final = 20
LOOKUP_TIME: Final = 1000  # of a class, by its name
APPEND_TIME: Final = 200  # to what is no list
WORK_TIME: Final = 24  # of a unit of work
PATIENCE: Final = 50  # times as long may it take in a process that has no loop to be held up
MAX_NESTABLE: Final = 10_000  # deques and defaultdicts: nested ones overflow the stack when they are freed


class Refused(Exception):
    """Why a pickle is not read, as the end of a sentence."""


def too_long() -> Refused:
    """Return what to raise about a result that takes too long."""
    return Refused(
        "reading it would hold up every other task for too long; return less, or reduce it in a process of its own: "
        "see reducing()"
    )


def printable(text: object) -> str:
    """Return *text* from a host in a form that fits a message, and that a terminal does not obey."""
    try:
        return ascii(str(text))[1:-1][:200]
    except Exception as exc:  # RecursionError, for one
        return f"(it cannot be shown: {type(exc).__name__})"


class Budget:
    """Work that a pickle of some size may cause.

    Attributes:
      work_left: that grows with what is made: bytes, mostly.
      time_left: nanoseconds, for what takes time whatever its size.
    """

    __slots__ = ("nestables", "time_left", "work_left")

    def __init__(self, size: int, patience: int) -> None:
        self.time_left = (SPARE_TIME + TIME_PER_BYTE * size) * patience
        self.work_left = SPARE_WORK + WORK_PER_BYTE * size
        self.nestables = 0

    def charge_time(self, time: int) -> None:
        self.time_left -= time
        if self.time_left < 0:
            raise too_long()

    def charge_work(self, work: int) -> None:
        """It takes time as well."""
        self.charge_time(WORK_TIME * work)
        self.work_left -= work
        if self.work_left < 0:
            raise Refused("it would take more time or memory than its size accounts for")

    def count_nestable(self) -> None:
        self.nestables += 1
        if self.nestables > MAX_NESTABLE:
            raise Refused(f"it has more than {MAX_NESTABLE} deques and defaultdicts")
