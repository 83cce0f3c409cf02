"""What flows between a function in memory and its caller: what channels.py does over there.

When a call begins and how it ends is _memory_agent.py's job.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import trio

from trickle import remote
from trickle._agent import asynchronous, results
from trickle._agent.options import Surroundings
from trickle._wire.connection import CREDIT, Connection
from trickle._wire.frames import DEAF, EOF, Item
from trickle._wire.items import Inbox, cut


class MemoryFlow:
    """One call's end of what flows.

    Args:
      id: the call's.
      connection: what Items go out by.
      wake: told when there is something to say.
      load: what a value was that was sent.
      max_payload: bytes that one thing may take.
    """

    def __init__(
        self,
        id: int,
        connection: Connection,
        wake: Callable[[], None],
        load: Callable[[bytes], object],
        max_payload: int,
    ) -> None:
        self._id = id
        self._connection = connection
        self._wake = wake
        self._load = load
        self._max_payload = max_payload
        self._inbox = Inbox()
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._wanted = True
        self._over = False
        self.reason: str | None = None  # why it is not wanted
        self.token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()

    # ---- what the agent tells of

    def feed(self, frame: Item) -> None:
        """A part of something has come."""
        self._connection.used(self._id, self._inbox.feed(frame))
        self._arrivals.unpark_all()

    def look_for_room(self) -> None:
        """Some of what was to be said has been."""
        if self._connection.pending(self._id) <= CREDIT:
            self._room.unpark_all()

    def disown(self, reason: str | None) -> None:
        """The call was cancelled: nothing more of it is wanted."""
        self._wanted = False
        self.reason = reason
        self._connection.drop(self._id)
        self._room.unpark_all()

    def end(self) -> None:
        """The call is over: threads that it has left behind wait for nothing."""
        self._wanted = False
        self._over = True
        self._room.unpark_all()
        self._arrivals.unpark_all()

    # ---- what the function does

    async def run(
        self,
        mode: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        surroundings: Surroundings | None,
    ) -> object:
        """Call *fn* as a stream or with a channel; see ``trickle._agent.channels.run``."""
        if mode == "channel":
            if surroundings is not None:
                raise_not_apart()
            return await trio.to_thread.run_sync(
                lambda: _plain(fn(MemoryChannel(self), *args, **kwargs)), limiter=trio.CapacityLimiter(math.inf)
            )
        if mode != "stream":
            raise NotImplementedError("a host in memory has no processes and no files; Local() has")
        source = fn(*args, **kwargs)
        if hasattr(source, "__aiter__"):
            if surroundings is not None:
                raise_not_apart()
            try:
                async for value in source:
                    await self.send(value)
            finally:
                if hasattr(source, "aclose"):
                    await source.aclose()
            return None
        iterator = iter(source)
        try:
            while True:
                with surroundings or Surroundings({}):
                    try:
                        value = next(iterator)
                    except StopIteration:
                        return None
                await self.send(value)
        finally:
            if hasattr(iterator, "close"):
                with surroundings or Surroundings({}):
                    iterator.close()

    async def send(self, value: object) -> None:
        """Send a thing when there is room for more."""
        payload = results.dumps_result(value)
        if len(payload) > self._max_payload:
            raise ValueError(f"what is sent takes {len(payload)} bytes; max_payload allows {self._max_payload}")
        await trio.lowlevel.checkpoint()
        while self._wanted and self._connection.pending(self._id) > CREDIT:
            await self._room.park()
        for frame in cut(self._id, payload):
            self.say(frame)

    def say(self, frame: Item) -> None:
        """Send a frame at once."""
        if self._wanted and self._connection.is_open(self._id):
            self._connection.bulk(frame)
            self._wake()

    async def receive(self, patience: float) -> object:
        """What comes next; see ``trickle.remote.Channel``."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(patience):
            while not len(self._inbox) and not self._inbox.eof and not self._over:
                await self._arrivals.park()
        if len(self._inbox):
            payload, credit = self._inbox.take()
            self._connection.used(self._id, credit)
            self._wake()
            return self._load(payload)
        if self._inbox.eof or self._over:
            raise EOFError("the other end sends nothing more")
        raise TimeoutError("nothing came in time")


class MemoryChannel(remote.Channel):
    """What a function is given, which runs in a thread, so that it may wait; threads of its own may use it too."""

    def __init__(self, flow: MemoryFlow) -> None:
        self._flow = flow
        self._thread = threading.get_ident()
        self._closed = False  # for sending
        self._deaf = False

    def send(self, value: Any) -> None:
        if self._closed:
            raise ValueError("this channel is closed for sending")
        try:
            trio.from_thread.run(self._flow.send, value, trio_token=self._token)
        except trio.Cancelled:  # trio's, of the task that waits for this thread
            raise remote.CallCancelled(self._flow.reason) from None

    def receive(self, timeout: float | None = None) -> Any:
        if self._deaf:
            raise ValueError("this channel is closed")
        patience = math.inf if timeout is None else max(0.0, timeout)
        try:
            return trio.from_thread.run(self._flow.receive, patience, trio_token=self._token)
        except trio.Cancelled:
            raise remote.CallCancelled(self._flow.reason) from None

    def send_eof(self) -> None:
        if not self._closed:
            self._closed = True
            self._say(EOF)

    def close(self) -> None:
        if not self._deaf:
            self._deaf = True
            self._say(DEAF)  # first, as over there
        self.send_eof()

    @property
    def _token(self) -> trio.lowlevel.TrioToken | None:
        """None in the function's own thread, where a cancel of the call ends what waits."""
        return None if threading.get_ident() == self._thread else self._flow.token

    def _say(self, what: int) -> None:
        trio.from_thread.run_sync(self._flow.say, Item(self._flow._id, what), trio_token=self._token)


def _plain(value: Any) -> object:
    if asynchronous.is_coroutine(value):
        value.close()
        raise NotImplementedError("an async function with a channel blocks its own trio; in memory there is no other")
    return value


def raise_not_apart() -> NoReturn:
    """What is asked for would be set for more than the call."""
    raise NotImplementedError("env= and cwd= are this whole program's: in memory only what runs at once has its own")
