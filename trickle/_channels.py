"""What flows between this program and a function on a host: streams and channels.

Cutting things into frames and putting them together is _wire/items.py's job; the call itself is _host_core.py's.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import trio

from trickle._exceptions import ProtocolError
from trickle._interrupts import one_interrupt
from trickle._settings import CallOptions
from trickle._stays_here import stays_here
from trickle._wire import frames

if TYPE_CHECKING:
    from trickle._host_core import CallRecord, HostCore, SessionState
    from trickle._link import Link, RemoteCall

S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Mode = Literal["stream", "channel", "process", "put", "fetch"]
# What a host needs for it, and is sent with the first.
MODULES: dict[str, frozenset[str]] = {
    mode: frozenset(["trickle._wire.items", "trickle._agent.channels", *more])
    for mode, more in {
        "stream": (),
        "channel": (),
        "process": ("trickle._agent.processes",),
        "put": ("trickle._agent.files", "trickle._agent.file_target", "trickle._agent.file_writing"),
        "fetch": ("trickle._agent.files", "trickle._agent.file_source"),
    }.items()
}


class Flow:
    """A call with things that flow to and fro, as this end sees it."""

    def __init__(
        self, core: HostCore, link: Link, call: RemoteCall, options: CallOptions, session: SessionState | None
    ) -> None:
        self.core: HostCore = core
        self.link: Link = link
        self.call: RemoteCall = call
        self.options: CallOptions = options
        self.session: SessionState | None = session
        self.nursery: trio.Nursery  # for what is to run as long as the block
        self.closed: bool = False
        self.sent_eof: bool = False
        self.told: bool = False  # whether its end has been raised to the caller

    async def receive(self) -> Any:
        """What the function sends next; see RemoteChannel.receive."""
        return await self.core.read_result(await self.receive_payload(), self.options)

    async def receive_payload(self) -> bytes:
        """The same before it is read."""
        inbox = self.call.inbox
        assert inbox is not None
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                raise trio.ClosedResourceError(f"{self.core.name}: this channel was closed here")
            if len(inbox):
                return self.link.take_item(self.call)
            if self.call.finished.is_set():
                await self.outcome()
                raise trio.EndOfChannel
            if inbox.eof:
                raise trio.EndOfChannel
            await self.call.arrivals.park()  # another task that receives may then be the first to take what came

    async def send(self, value: object) -> None:
        """Send something to the function; see RemoteChannel.send."""
        await trio.lowlevel.checkpoint()
        if self.closed or self.sent_eof:
            raise trio.ClosedResourceError(f"{self.core.name}: this channel was closed here for sending")
        outgoing = await self.core.pack_value(self.link, value)
        if not await self.link.send_item(self.call, outgoing):
            if self.closed:
                raise trio.ClosedResourceError(f"{self.core.name}: this channel was closed here")
            if self.core.closed:
                raise trio.ClosedResourceError(f"{self.core.name}: this host was closed")
            if self.call.error is not None or self.call.verdict == frames.DIED:
                await self.outcome()
            raise trio.BrokenResourceError(f"{self.core.name}: the function takes nothing more from this channel")

    def post(self, value: object) -> None:
        """Send plain data at once, whether there is room or not; for what is bounded by its own rules."""
        if not self.call.finished.is_set():
            self.link.post_item(self.call, _plain(value))

    async def send_plain(self, value: object) -> None:
        """Send plain data when there is room; if nobody takes it, raise what has become of the function."""
        await self.send_payload(_plain(value))

    async def send_payload(self, *pieces: bytes) -> None:
        """The same for what needs no packing, and may come in pieces."""
        if not await self.link.send_item(self.call, *pieces):
            await self.result()
            raise trio.BrokenResourceError(f"{self.core.name}: the function takes nothing more from this channel")

    def protocol_error(self, what: str) -> ProtocolError:
        """Close the host for what it has said, and return the error."""
        error = ProtocolError(
            f"{self.core.name}: it broke the rules ({what}); this host is closed", host=self.core.name
        )
        self.link.lose(error)
        return error

    def send_eof(self) -> None:
        """Nothing more will be sent."""
        if not self.sent_eof and not self.closed:
            self.sent_eof = True
            self.link.send_eof(self.call)

    async def outcome(self) -> Any:
        """What the function returned; raises what it raised, or what became of it."""
        self.told = True
        return await self.core.outcome(self.link, self.call, self.options, self.session)

    async def result(self) -> Any:
        """Wait for the function's end; see RemoteChannel.result."""
        self._refuse_closed()
        await self.call.finished.wait()
        self._refuse_closed()
        await self.link.lines_given(self.call)
        return await self.outcome()

    def _refuse_closed(self) -> None:
        """Nothing, unless it has no outcome because it was closed here."""
        has_outcome = self.call.error is not None or self.call.verdict in (frames.RETURNED, frames.RAISED, frames.DIED)
        if self.closed and not has_outcome:
            raise trio.ClosedResourceError(f"{self.core.name}: this channel was closed here")

    async def close(self, exc: BaseException | None) -> None:
        """End the function, if it has not ended: its verdict is here when this returns, or its host is lost."""
        self.closed = True
        self.call.arrivals.unpark_all()
        self.call.room.unpark_all()
        if not self.call.finished.is_set():
            await self.core.stop(self.link, self.call, self.options, exc, self.session)

    async def raise_untold(self, *, only_raised: bool) -> None:
        """Raise the function's error, or what else became of it unless *only_raised*, if nobody was told of it."""
        wanted = (frames.RAISED,) if only_raised else (None, frames.RAISED, frames.DIED)
        if self.told or self.call.verdict not in wanted:
            return
        if self.core.is_abandoned(self.link):  # the block was left before the host had answered
            return
        await self.outcome()

    async def note_untold(self, exc: BaseException) -> None:
        """Say in a note on what is raised instead which error of the function nobody was told of."""
        try:
            await self.raise_untold(only_raised=True)
        except Exception as error:
            exc.add_note(f"the function's own error, of which nobody was told: {error}")


@stays_here
class Stream(trio.abc.ReceiveChannel[R_co], Generic[R_co]):
    """What a generator on a host yields, from ``async with host.stream(...)``."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> R_co:
        """What the generator yields next.

        Raises:
          trio.EndOfChannel: it has come to its end.
          trio.ClosedResourceError: this stream was closed here.
          Exception: what the generator raised, as ``Host.call`` raises it.
          HostLost: the connection died.
        """
        value: R_co = await self._flow.receive()
        return value

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the generator over there; returns when it has ended."""
        await self._flow.close(None)
        await trio.lowlevel.checkpoint()


@stays_here
class RemoteChannel(trio.abc.SendChannel[S_contra], trio.abc.ReceiveChannel[R_co], Generic[S_contra, R_co]):
    """Two ways to a function on a host, from ``async with host.open_channel(...)``."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: S_contra) -> None:
        """Send *value* to the function; waits while there is no room for it.

        Raises:
          trio.BrokenResourceError: the function has ended, or takes nothing more; HostLost, if its host was lost, and
            WorkerDied, if its process died.
          trio.ClosedResourceError: after ``send_eof`` or ``aclose``.
          Unsendable: it cannot be sent, or takes more than *max_payload*; nothing was sent.
        """
        await self._flow.send(value)

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> R_co:
        """What the function sends next.

        Raises:
          trio.EndOfChannel: it sends nothing more.
          trio.ClosedResourceError: this channel was closed here.
          Exception: what the function raised, as ``Host.call`` raises it.
          HostLost: the connection died.
        """
        value: R_co = await self._flow.receive()
        return value

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Tell the function that nothing more will be sent: its loop over the channel ends."""
        await trio.lowlevel.checkpoint()
        self._flow.send_eof()

    @trio.lowlevel.enable_ki_protection
    async def result(self) -> object:
        """Wait until the function has ended, and return what it returned, or raise what it raised.

        What it has sent should have been received: while there is no room for more of that, it cannot end.
        """
        return await self._flow.result()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """End the function; returns when it has ended, by the ladder of cancellation if need be."""
        await self._flow.close(None)
        await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_flow(
    core: HostCore,
    mode: Mode,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: CallOptions,
    session: SessionState | None = None,
    record: CallRecord | None = None,
) -> AsyncIterator[Flow]:
    """Start ``fn(*args, **kwargs)`` for the time of the block, at the end of which it has ended."""
    raised: BaseException | None = None
    options.refuse_reducers(f"{core.name}: {mode}")
    await trio.lowlevel.checkpoint_if_cancelled()
    async with core.flowing_call(fn, args, kwargs, options, session, mode, record) as (link, call):
        flow = Flow(core, link, call, options, session)
        with one_interrupt():
            async with trio.open_nursery() as nursery:
                flow.nursery = nursery
                nursery.start_soon(_keep_deadline, core, link, call)
                try:
                    yield flow
                except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
                    raised = exc
                    if record is not None and not call.finished.is_set():
                        record.stopped = True
                try:
                    await flow.close(raised)
                finally:
                    nursery.cancel_scope.cancel()
        if raised is None or is_cancellation(raised):
            await flow.raise_untold(only_raised=raised is not None)
        else:
            await flow.note_untold(raised)
        if raised is not None:
            raise raised


def is_cancellation(exc: BaseException) -> bool:
    """Whether it is trio's, also that of all the tasks of a nursery, and nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(is_cancellation, exc.exceptions))
    return isinstance(exc, trio.Cancelled)


def _plain(value: object) -> bytes:
    return pickle.dumps((len, (value,), {}), 4)  # in the shape of a call, of which the other end takes the argument


@trio.lowlevel.enable_ki_protection
async def _keep_deadline(core: HostCore, link: Link, call: RemoteCall) -> None:
    """Tell the host when the block's scope is given another deadline."""
    with contextlib.suppress(trio.Cancelled):  # the block is told of that itself
        await core.wait(link, call)
