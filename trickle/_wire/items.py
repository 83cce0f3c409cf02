"""Things that flow between a call and its caller: cut into Items, and put together again.  No I/O."""

from collections import deque

from trickle._wire.connection import cost
from trickle._wire.frames import DEAF, EOF, LAST, Item, WireError, chunks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Iterator, List, Tuple


PIPE_CREDIT = 256 * 1024  # bytes of one pipe of a process that its reader has not taken yet
STDIN, STDOUT, STDERR = range(3)


def cut(id: int, *pieces: bytes) -> "Iterator[Item]":
    """The frames that carry one thing, which may come in pieces."""
    *before, last = list(chunks(pieces)) or [b""]
    for part in before:
        yield Item(id, 0, 0, part)
    yield Item(id, LAST, 0, last)


class Inbox:
    """What has come of the other end's things, and what credit its sender is to be given for them.

    All of the first thing is let in, however large.  Of those behind it no more than the credit comes: theirs is
    given when the first has been taken.
    """

    def __init__(self) -> None:
        self.eof: bool = False  # the sender will send nothing more
        self.deaf: bool = False  # the sender will receive nothing more
        self._whole: "Deque[Tuple[bytes, int]]" = deque()  # a payload, and the credit to give when it is taken
        self._parts: "List[bytes]" = []
        self._held = 0

    def feed(self, frame: "Any") -> int:
        """Take an Item; the credit to give for it now.

        Raises:
          WireError: no sender of ours says that.
        """
        if frame.flags not in (0, LAST, EOF, DEAF) or (frame.flags in (EOF, DEAF) and (frame.payload or self._parts)):
            raise WireError("%r with flags %d" % (frame, frame.flags))
        if self.eof and frame.flags != DEAF:
            raise WireError("%r behind the last of all" % (frame,))
        if frame.flags == EOF:
            self.eof = True
            return cost(frame)
        if frame.flags == DEAF:
            self.deaf = True
            return cost(frame)
        self._parts.append(frame.payload)
        self._held += cost(frame)
        if frame.flags == LAST:
            self._whole.append((b"".join(self._parts), self._held))
            self._parts, self._held = [], 0
            return 0
        return self._let_go()

    def _let_go(self) -> int:
        if self._whole:
            return 0
        held, self._held = self._held, 0
        return held

    def __len__(self) -> int:
        return len(self._whole)

    def take(self) -> "Tuple[bytes, int]":
        """The next thing's payload, and the credit to give for it."""
        payload, held = self._whole.popleft()
        return payload, held + self._let_go()

    def clear(self) -> None:
        """Forget what has come."""
        self._whole.clear()
        self._parts, self._held = [], 0
