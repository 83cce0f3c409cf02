"""The agent's end of the pipe to the controller: frames in, bytes out, and how long it has been silent.

What a frame means, and what follows from silence, is broker.py's job.
"""

import os
import sys
import time

from trickle._wire import frames
from trickle._wire.armor import Unarmor
from trickle._wire.connection import AGENT, LARGEST_MESSAGE, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator, List

READ_SIZE = 64 * 1024  # a larger buffer is mapped and unmapped each time, which takes longer than all else
BULK_READ_SIZE = 256 * 1024  # behind one that was full
MOST_PIECES = 64  # written at once without being put together: those of a batch of bulk are fewer
CLOCK_BOOTTIME = 7  # Linux's clock that goes on while the machine sleeps; Python 3.6 does not name it


def _lease_clock() -> float:
    try:
        return time.clock_gettime(CLOCK_BOOTTIME) if sys.platform.startswith("linux") else time.monotonic()
    except (OSError, AttributeError):
        return time.monotonic()


class ControllerPipe:
    """Descriptors 0 and 1.

    Attributes:
      ended: whether its end has been read.
      full: whether something is left to write that the pipe does not take now.
    """

    def __init__(self, max_payload: int) -> None:
        self.connection = Connection(AGENT, frames.Decoder(views=frames.LARGE).feed, max(max_payload, LARGEST_MESSAGE))
        self.ended = False
        self.full = False
        self._outgoing: "List[bytes]" = []
        self._unarmor = Unarmor()
        self._heard = _lease_clock()

    def greet(self, nonce: str, about: bytes) -> None:
        """Say hello, behind a marker that is computed: as it is in nothing that was sent here, no echo has it."""
        self.connection.control(frames.Hello(0, frames.VERSION, 0, about))
        self._outgoing = [nonce[::-1].encode(), *self.connection.data_to_send(0.0)]

    def silence(self) -> float:
        """Seconds since anything was heard; time that the machine slept counts."""
        return _lease_clock() - self._heard

    def read(self) -> "Iterator[frames.Frame]":
        """All that has arrived."""
        size = READ_SIZE
        while True:
            try:
                data = os.read(0, size)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.ended = True
                return
            for frame in self.decode(data):
                yield frame
            if len(data) < size:
                return  # the pipe is empty: another look would take as long as the rest
            size = BULK_READ_SIZE

    def decode(self, data: bytes) -> "List[frames.Frame]":
        """What was read of the pipe, as frames."""
        self._heard = _lease_clock()
        return self.connection.receive_data(self._unarmor.receive(data), time.monotonic())

    def write(self) -> None:
        """Write what there is to say, as far as the pipe takes it."""
        while self._outgoing or self.connection.has_to_send:
            if not self._outgoing:
                data = self.connection.data_to_send(time.monotonic())
                if not data:
                    break
                self._outgoing = data if len(data) <= MOST_PIECES else [b"".join(data)]
            try:
                sent = os.writev(1, self._outgoing)
            except BlockingIOError:
                break
            while self._outgoing and sent >= len(self._outgoing[0]):
                sent -= len(self._outgoing[0])
                del self._outgoing[0]
            if sent:
                self._outgoing[0] = memoryview(self._outgoing[0])[sent:]  # type: ignore[call-overload]
        self.full = bool(self._outgoing)

    @property
    def is_drained(self) -> bool:
        """Whether every call has ended and all that there was to say has been written."""
        return not self._outgoing and self.connection.is_drained
