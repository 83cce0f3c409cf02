"""What flows between a function here and its caller: the far end of trickle/_channels.py."""

import time

from trickle import remote
from trickle._agent import functions, results
from trickle._wire.frames import DEAF, EOF, Credit, Item
from trickle._wire.items import Inbox, cut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Tuple

    from trickle._agent.worker import Worker

TOLD = 96 * 1024  # bytes of credit that are gathered before the sender is told of them: two chunks, mostly


class Channel(remote.Channel):
    """A channel between the call that this worker runs and its caller."""

    def __init__(self, worker: "Worker", id: int) -> None:
        self._worker = worker
        self._id = id
        self._inbox = Inbox()
        self._granted = 0
        self._closed = False  # for sending
        self._deaf = False

    def send(self, value: "Any") -> None:
        if self._closed:
            raise ValueError("this channel is closed for sending")
        payload = results.dumps_result(value)
        if len(payload) > self._worker.max_payload:
            raise ValueError(
                "what is sent takes %d bytes; max_payload allows %d" % (len(payload), self._worker.max_payload)
            )
        self.send_payload(payload)

    def say(self, value: "Any") -> None:
        """Send what is bounded by rules of its own."""
        self.send_payload(results.dumps_result(value))

    def send_payload(self, *pieces: bytes) -> None:
        """Send what needs no packing, and may come in pieces."""
        self._worker.send(*cut(self._id, *pieces))

    def receive(self, timeout: "Optional[float]" = None) -> "Any":
        return functions.loads_call(self.receive_payload(timeout))[1][0]

    def receive_payload(self, timeout: "Optional[float]" = None) -> bytes:
        """What the caller sends next, before it is read."""
        deadline = None if timeout is None or timeout == float("inf") else time.monotonic() + timeout
        while True:
            if self._deaf:
                raise ValueError("this channel is closed")
            for frame in self._worker.items_for(self._id):
                self._granted += self._inbox.feed(frame)
            if len(self._inbox):
                payload, granted = self._inbox.take()
                self._grant(granted)
                return payload
            self._grant(0)
            if self._inbox.eof:
                raise EOFError("the other end sends nothing more")
            self._worker.wait_for_items(self._id, deadline)

    def tell_exit(self, returncode: int) -> None:
        """Have the end of a call that is cancelled, of which no thing is sent any more, say how its process ended."""
        self._worker.detail = 1 + (256 - returncode if returncode < 0 else returncode)

    def fileno(self) -> int:
        """What is readable when something may have come."""
        return self._worker.link.fileno()

    def _grant(self, count: int) -> None:
        self._granted += count
        if self._granted >= TOLD:
            granted, self._granted = self._granted, 0
            self._worker.send(Credit(self._id, granted))

    def send_eof(self) -> None:
        if not self._closed:
            self._closed = True
            self._worker.send(Item(self._id, EOF))

    def close(self) -> None:
        if not self._deaf:
            self._deaf = True
            self._worker.send(Item(self._id, DEAF))  # first: whoever has seen the end of all cannot send any more
        self.send_eof()


def run(
    worker: "Worker", id: int, mode: str, fn: "Callable[..., Any]", args: "Tuple[Any, ...]", kwargs: "Dict[str, Any]"
) -> "Any":
    """Call *fn* as a stream, whose things are sent one by one, or with a channel; or serve our own verbs."""
    channel = Channel(worker, id)
    if mode == "channel":
        return fn(channel, *args, **kwargs)
    if mode in ("put", "fetch"):
        from trickle._agent import files

        return files.serve(channel, mode, *args)
    if mode == "process":
        from trickle._agent import processes

        return processes.serve(channel, *args)
    source = fn(*args, **kwargs)
    if hasattr(source, "__aiter__"):
        return _send_all(channel, source)
    iterator = iter(source)
    try:
        for value in iterator:
            channel.send(value)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    return None


async def _send_all(channel: Channel, source: "Any") -> None:
    try:
        async for value in source:
            channel.send(value)
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
