"""A gate between a client and a server: it holds what they say at a place that the test chooses.

So a test can stay in a certain stage of somebody else's conversation for as long as it likes.
"""

import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Gate:
    """Passes everything on, until a client says what it is to hold at.

    Attributes:
      reached: set when that was said.
    """

    def __init__(self, connect: Callable[[], Awaitable[trio.SocketStream]]) -> None:
        self.reached = trio.Event()
        self._connect = connect
        self._pattern: re.Pattern[bytes] | None = None
        self._holds_answer = False
        self._opened = trio.Event()
        self._pieces_left = math.inf

    def hold(self, pattern: bytes, *, answer: bool = False) -> None:
        """Hold the first request in which this stands; or let it through, and hold its answer."""
        self._pattern = re.compile(pattern)
        self._holds_answer = answer

    def hold_after(self, pieces: int) -> None:
        """Hold all that comes after so many pieces of the conversation, whoever said them."""
        self._pieces_left = pieces

    async def _pass_piece(self) -> None:
        self._pieces_left -= 1
        if self._pieces_left < 0:
            self.reached.set()
            await self._opened.wait()

    def open(self) -> None:
        """Let through what is held."""
        self._opened.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """Stand between one client and the server, until both have gone."""
        held = trio.Event()
        async with client, await self._connect() as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_requests, client, server, held)
            nursery.start_soon(self._pass_answers, server, client, held)

    async def _pass_requests(self, client: trio.SocketStream, server: trio.SocketStream, held: trio.Event) -> None:
        with contextlib.suppress(*GONE):
            async for data in client:
                if self._pattern is not None and self._pattern.search(data):
                    self._pattern = None
                    if self._holds_answer:
                        held.set()
                    self.reached.set()
                    if not self._holds_answer:
                        await self._opened.wait()
                await self._pass_piece()
                await server.send_all(data)
            await server.send_eof()

    async def _pass_answers(self, server: trio.SocketStream, client: trio.SocketStream, held: trio.Event) -> None:
        with contextlib.suppress(*GONE):
            async for data in server:
                if held.is_set():
                    await self._opened.wait()
                await self._pass_piece()
                await client.send_all(data)
            await client.send_eof()


@contextlib.asynccontextmanager
async def gate_on_socket(path: Path, server: Path) -> AsyncIterator[Gate]:
    """A gate that listens on one socket of this machine and leads to another."""
    gate = Gate(lambda: trio.open_unix_socket(server))
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen()
        async with _serving(gate, [trio.SocketListener(listening)]):
            yield gate


@contextlib.asynccontextmanager
async def gate_on_port(server: int) -> AsyncIterator[tuple[Gate, int]]:
    """A gate on a free port of loopback that leads to another, and its port."""
    gate = Gate(lambda: trio.open_tcp_stream("127.0.0.1", server))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with _serving(gate, listeners):
        yield gate, listeners[0].socket.getsockname()[1]


@contextlib.asynccontextmanager
async def _serving(gate: Gate, listeners: list[trio.SocketListener]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, gate.serve, listeners)
        yield
        nursery.cancel_scope.cancel()
