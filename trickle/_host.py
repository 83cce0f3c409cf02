"""A host: the verbs that users call, and what becomes of a call that ends early.

The connection itself is _link.py's; packing calls and reading results are _pickling.py's and _unpickling.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import trio

from trickle import _pickling, _unpickling, remote
from trickle._async_support import check_can_run, is_async
from trickle._backoff import LONGEST_DELAY, backoff
from trickle._channels import MODULES, RemoteChannel, Stream, open_flow
from trickle._diagnosis import WRONG_PASSWORD
from trickle._exceptions import CallTimeout, ConnectError, HostLost, UnsafeResult, Unsendable, WorkerDied
from trickle._explanation import Explanation, explain_call, name_new_syntax
from trickle._files import Local, Progress, TransferOptions, TransferResult, fetch, put
from trickle._interrupts import one_interrupt
from trickle._link import HostInfo, Link, RemoteCall
from trickle._module_policy import ModulePolicy
from trickle._processes import Command, RemoteProcess, StrOrBytesPath, open_process, run_process
from trickle._reducing import Reducing, pack_reducers
from trickle._relays import relay_through
from trickle._remote_errors import rebuild_exception
from trickle._settings import GRACE_PERIOD, UNSET, VERDICT_SLACK, CallOptions, OpenSettings, Sink, given
from trickle._tunnel_process import StartTunnel, start_tunnel
from trickle._tunnels import as_tunnel
from trickle._turns import Turns
from trickle._wire import frames
from trickle._wire.payload import pack_options
from trickle.abc import Tunnel

if TYPE_CHECKING:
    from trickle._group import Group

MAX_ERROR = 2**20  # bytes of a described exception; an agent of ours bounds each of its texts to 64 KiB
SHORTEST_RENEWAL = 0.001  # seconds: two readings of what is left of the call around this one differ by less
LOOK_AGAIN = 0.1  # seconds between looks whether that one was given more time
# What is behind a signal that ended a worker: those whose numbers are the same everywhere.
SIGNALS = {
    6: " (SIGABRT): C code gave up",
    9: " (SIGKILL): the kernel's out-of-memory killer, or somebody's kill -9; its log over there (dmesg) tells which",
    11: " (SIGSEGV): an error in C code, perhaps of an extension module",
    15: " (SIGTERM): somebody's kill",
}

logger = logging.getLogger("trickle")

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class HostStatistics:
    """How a host does, at one moment.

    Args:
      state: ``"connecting"``, ``"connected"``, ``"lost"`` or ``"closed"``.
      calls_running: calls that have been sent and have not ended.
      calls_waiting: calls that wait for the connection.
      workers: how many calls may run at once.
      open: sessions that are open.
      verdicts: how many calls ended how: returned, raised, cancelled, killed, never started, died, unkillable,
        unknown.
      bytes_sent: to the agent, boot code included.
      bytes_received: from the agent.
      modules_sent: modules that the host was sent, or told that it will not get.
      seconds_since_heard: since the last byte from the agent.
    """

    state: Literal["connecting", "connected", "lost", "closed"]
    calls_running: int
    calls_waiting: int
    workers: int
    open: int
    verdicts: Mapping[str, int]
    bytes_sent: int
    bytes_received: int
    modules_sent: int
    seconds_since_heard: float


class HostCore:
    """What all views of one host share: its links, one after the other, and their nursery."""

    def __init__(
        self,
        tunnel: Tunnel,
        settings: OpenSettings,
        nursery: trio.Nursery,
        reducing: Reducing,
        start: StartTunnel = start_tunnel,
        turns: Turns | None = None,
    ) -> None:
        assert tunnel.name is not None
        self.tunnel = tunnel
        self.name: str = tunnel.name
        self.settings = settings
        self.verdicts: Counter[str] = Counter()
        self.closed: bool = False
        self.users: int = 0  # who needs the link: calls, sessions, and who waits for an answer
        self.sessions: int = 0
        self.turns = turns
        self.reducing = reducing
        self.slots: trio.Semaphore = trio.Semaphore(settings.max_open)
        self._token = trio.lowlevel.current_trio_token()
        self._nursery = nursery
        self._start_tunnel = start
        self._abandoned: Link | None = None
        self._failures = 0  # links that did not last, in a row
        self._next_at = -math.inf  # when the next one may begin
        self.link: Link = self._start_link()

    def _start_link(self) -> Link:
        link = Link(self.tunnel, self.settings, self.verdicts, self._start_tunnel, self.turns, self._next_at)
        self._nursery.start_soon(link.run)
        return link

    def live_link(self, reconnect: bool) -> Link:
        """The link for a new call.

        Raises:
          trio.ClosedResourceError: this host was closed.
          ConnectError: it was never reached.
          HostLost: its connection died, and *reconnect* is not set.
        """
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(f"{self.name}: this host belongs to another trio.run; use it in the one that opened it")
        if self.closed:
            raise trio.ClosedResourceError(f"{self.name}: this host was closed")
        if self.link is self._abandoned:
            self.link = self._start_link()
        error = self.link.error
        if error is None:
            return self.link
        # A password that was refused is not tried again: that may lock the account.
        if reconnect and not (isinstance(error, ConnectError) and error.reason == WRONG_PASSWORD.reason):
            return self._reconnect(error)
        if isinstance(error, ConnectError):
            raise again(error)
        why = str(error).removeprefix(f"{self.name}: ")
        raise HostLost(
            f"{self.name}: the connection was lost earlier ({why}); open the host again, or use"
            " options(reconnect=True), which starts anew without the state that was there",
            host=self.name,
            stderr=error.stderr,
        ) from error

    def _reconnect(self, error: ConnectError | HostLost) -> Link:
        """A new link in the place of one that has died, after a delay that grows as long as none of them lasts."""
        lasted = self.link.connected_for
        self._failures = 1 if lasted > LONGEST_DELAY else self._failures + 1
        delay = backoff(self._failures)
        self._next_at = trio.current_time() + delay
        why = str(error).splitlines()[0].removeprefix(f"{self.name}: ")
        logger.info(
            "%s: connecting again in %.1f s, without the state that was there; attempt %d, since %s",
            *(self.name, delay, self._failures, why),
        )
        self.link = self._start_link()
        return self.link

    def _is_live(self, link: Link) -> bool:
        return link is self.link and link.error is None and not self.closed

    @property
    def error(self) -> ConnectError | HostLost | None:
        """Why this host cannot be called now; None if it can, or has not been found out yet."""
        return None if self.link is self._abandoned else self.link.error

    def abandon(self, link: Link) -> None:
        """Its only caller no longer waits for this link, which has not answered yet: the next verb connects anew."""
        self._abandoned = link
        link.closing = True
        link.lose(HostLost(f"{self.name}: nobody waits for it any more", host=self.name))

    async def wait_connected(self, link: Link) -> HostInfo:
        """What the agent says of itself, once it has answered."""
        self.users += 1
        try:
            await link.answered.wait()
        finally:
            self.users -= 1
        if link.info is None:
            assert link.error is not None
            raise again(link.error)
        return link.info

    async def aclose(self, grace_period: float) -> None:
        """End all calls with their verdicts, then the agent."""
        self.closed = True
        if trio.current_effective_deadline() == -math.inf:
            grace_period = 0
        with trio.CancelScope(shield=True):  # bounded by Link.close
            await self.link.close(grace_period)

    # ---- one call

    async def call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        record: CallRecord,
        session: SessionState | None = None,
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` over there and return what it returns; see Host.call."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with _Using(self, record):
            link, call = await self._start(fn, args, kwargs, options, record, session)
            if session is not None:
                session.calls.add(call)
            try:
                await self.wait(link, call)
            except BaseException as exc:
                record.stopped = True
                await self.stop(link, call, options, exc, session)
                if isinstance(exc, KeyboardInterrupt) or call.verdict not in (frames.RETURNED, frames.RAISED):
                    raise
            finally:
                if session is not None:
                    session.calls.discard(call)
        if call.verdict == frames.RETURNED and not options.reducers:
            return await self.read_pieces(call.pieces, options)
        return await self.outcome(link, call, options, session)

    async def _start(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        record: CallRecord,
        session: SessionState | None,
        mode: str | None = None,
    ) -> tuple[Link, RemoteCall]:
        """Send a call, or with *mode* one in which things flow, which has a worker of its own."""
        link = record.link = session.link if session is not None else self.live_link(options.reconnect)
        payload = await self._pack(link, fn, args, kwargs, options, record.packed, mode)
        if session is not None:
            session.check()
        while session is None and not self._is_live(link):
            link = record.link = self.live_link(options.reconnect)
            payload = await self._pack(link, fn, args, kwargs, options, record.packed, mode)
        call = record.call = link.start_call(
            payload,
            session=session.id if session is not None else 0 if mode is None else None,
            deadline=_deadline(),
            grace_period=options.grace_period,
            sink=options.output,
            flows=mode is not None,
        )
        return link, call

    async def _pack(
        self,
        link: Link,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        packed: Packed,
        mode: str | None,
    ) -> bytes | list[bytes]:
        """The call's payload; what it needs over there is on its way when this returns."""
        if packed.is_async is None:
            packed.is_async = is_async(fn)
        if packed.is_async:
            info = await self.wait_connected(link)
            check_can_run(fn, self.name, info.python_version, link.lacks)
        while True:
            version = link.info.python_version[:2] if link.info is not None else self.tunnel.python_version
            implementation = link.info.implementation if link.info is not None else None
            if (version, implementation) not in packed.payloads:
                try:
                    outgoing = _pickling.dumps_call(
                        fn, args, kwargs, host=self.name, far_version=version, implementation=implementation
                    )
                except _pickling.NeedsVersion:
                    await self.wait_connected(link)
                    continue
                asked_for, needed = options.for_worker, outgoing.modules
                if mode is not None:
                    asked_for, needed = {**asked_for, "flow": mode}, needed | MODULES[mode]
                if packed.is_async:
                    needed = needed | {"trio"}
                packed.payloads[version, implementation] = _gathered(pack_options(asked_for), outgoing), needed
            payload, modules = packed.payloads[version, implementation]
            size = len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
            if size > self.settings.max_payload:
                raise Unsendable(
                    f"{self.name}: the arguments take {size} bytes and max_payload is"
                    f" {self.settings.max_payload}; raise it in open_host, or send less",
                    host=self.name,
                    path="arguments",
                )
            if not link.has_modules_for(modules):
                await link.send_modules_for(modules)
            return payload

    async def wait(self, link: Link, call: RemoteCall) -> None:
        """Until the call has ended; a scope that is given another deadline meanwhile is noticed."""
        while not call.finished.is_set():
            if call.deadline == math.inf:  # more than that it cannot be given
                await call.finished.wait()
                return
            with trio.CancelScope(deadline=call.deadline):
                await call.finished.wait()
                return
            deadline = _deadline()
            if deadline > call.deadline + SHORTEST_RENEWAL:
                link.renew(call, deadline)
            else:  # the caller's own scope has been cancelled, which this raises; or the call around this one ends soon
                with trio.move_on_after(LOOK_AGAIN):
                    await call.finished.wait()

    async def stop(
        self,
        link: Link,
        call: RemoteCall,
        options: CallOptions,
        exc: BaseException | None,
        session: SessionState | None = None,
    ) -> None:
        """Ask for the call's end, because of *exc*, and wait for its verdict: shielded, and bounded."""
        by_deadline = isinstance(exc, trio.Cancelled) and exc.source == "deadline"
        link.cancel(call, grace_period=options.grace_period, reason=_reason(exc), by_deadline=by_deadline)
        connecting = link.state == "connecting"
        if connecting and self.users == 1:
            return  # nobody else waits for this host: the tunnel is closed
        with trio.move_on_after(options.grace_period + VERDICT_SLACK, shield=True):
            await call.finished.wait()
        if not call.finished.is_set() and not connecting:
            link.lose(
                HostLost(
                    f"{self.name}: no verdict on a cancelled call within {options.grace_period + VERDICT_SLACK:g} s;"
                    " the host is given up, and its agent dies of its lease",
                    host=self.name,
                    stderr=link.stderr,
                )
            )
        if session is not None and call.verdict != frames.NEVER_STARTED:
            session.spoiled = True
        if call.remote_stack and exc is not None:
            exc.add_note(f"{self.name}: at its deadline the call was here, innermost frame first:\n{call.remote_stack}")

    async def outcome(self, link: Link, call: RemoteCall, options: CallOptions, session: SessionState | None) -> Any:
        """What the call returned, or the error that says how it ended."""
        if call.verdict == frames.RETURNED:
            if not options.reducers:
                return await self.read_pieces(call.pieces, options)
            trusted = self._is_trusted(options)
            return await self.reducing.reduce(call.payload, options, host=self.name, full_trust=trusted)
        if call.verdict == frames.RAISED:
            payload = call.payload
            if len(payload) > MAX_ERROR:
                raise UnsafeResult(f"{self.name}: an error of {len(payload)} bytes is not read", host=self.name)
            error = rebuild_exception(payload, host=self.name)
            name_new_syntax(error, link.info.python_version if link.info is not None else None)
            raise error
        if self.closed:
            raise trio.ClosedResourceError(f"{self.name}: closed while this call ran (verdict: {call.verdict_name})")
        if call.error is not None:
            raise again(call.error)
        if call.verdict == frames.DIED:
            raise died(self.name, call, "the process that it ran in")
        if session is not None:
            session.check()
        # The agent has ended it, by the deadline that it was given: our own scope is about to say the same.
        await trio.lowlevel.checkpoint()
        raise CallTimeout(
            f"{self.name}: the host has ended this call by itself (verdict: {call.verdict_name}), at the last deadline"
            " that it knew; where a scope was given more time, this program's loop was blocked before it could say so",
            host=self.name,
            verdict=call.verdict_name,
            stage=link.stage_of(call),
            remote_stack=call.remote_stack,
        )

    async def read_pieces(self, pieces: Sequence[bytes | bytearray], options: CallOptions) -> Any:
        """What a function has sent, by the rules for results; large bytes are put together without another copy."""
        if len(pieces) > 1 and (found := bytes_in(pieces)) is not None:
            return found
        return await self.read_result(b"".join(pieces), options)

    async def read_result(self, payload: bytes, options: CallOptions) -> Any:
        """The same of what is in one piece."""
        if len(payload) > options.max_result and not _is_one_string(payload):
            raise UnsafeResult(
                f"{self.name}: a result of {len(payload)} bytes is more than max_result ({options.max_result}) allows,"
                " since reading it would hold up every other task; raise options(max_result=), return bytes, or reduce"
                " it in a process of its own: see reducing()",
                host=self.name,
            )
        return await _unpickling.loads_in_turns(
            payload,
            host=self.name,
            allowed=_unpickling.allowed_classes(options.allow),
            full_trust=self._is_trusted(options),
        )

    def _is_trusted(self, options: CallOptions) -> bool:
        return (options.trust or self.tunnel.trust) == "full"

    # ---- a call in which things flow

    async def pack_value(self, link: Link, value: object) -> bytes:
        """The payload of something for a function that runs; what it needs over there is on its way."""
        info = await self.wait_connected(link)
        outgoing = _pickling.dumps_call(
            len, (value,), {}, host=self.name, far_version=info.python_version[:2], implementation=info.implementation
        )
        await link.send_modules_for(outgoing.modules)
        return outgoing.payload

    @contextlib.asynccontextmanager
    async def flowing_call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        session: SessionState | None,
        mode: str,
        record: CallRecord | None,
    ) -> AsyncIterator[tuple[Link, RemoteCall]]:
        """Start such a call, and count it as open for the time of the block."""
        if session is None:
            await self.slots.acquire()
        self.sessions += 1
        record = record or CallRecord()
        try:
            with _Using(self, record):
                link, call = await self._start(fn, args, kwargs, options, record, session, mode)
                if session is not None:
                    session.calls.add(call)
                try:
                    yield link, call
                finally:
                    if session is not None:
                        session.calls.discard(call)
        finally:
            self.sessions -= 1
            if session is None:
                self.slots.release()

    def explain(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Explanation:
        """What a call would send now; see Host.explain."""
        link = self.link
        version = link.info.python_version[:2] if link.info is not None else self.tunnel.python_version
        implementation = link.info.implementation if link.info is not None else None
        try:
            outgoing = _pickling.dumps_call(
                fn, args, dict(kwargs), host=self.name, far_version=version, implementation=implementation
            )
        except _pickling.NeedsVersion:
            raise RuntimeError(
                f"{self.name}: what this sends depends on the host's Python; await wait_connected() first"
            ) from None
        names = outgoing.modules | ({"trio"} if is_async(fn) else set())
        return explain_call(fn, outgoing, names, link.modules, self.name)

    def statistics(self) -> HostStatistics:
        """How this host does now."""
        link = self.link
        state = "closed" if link is self._abandoned or (self.closed and link.state != "lost") else link.state
        plain = sum(not call.is_session and not call.session for call in link.calls.values())
        pinned = len({call.session for call in link.calls.values() if call.session})
        running = min(plain, self.settings.workers) + pinned if link.state == "connected" else 0
        return HostStatistics(
            state=state,
            calls_running=running,
            calls_waiting=sum(not call.is_session for call in link.calls.values()) - running,
            workers=self.settings.workers,
            open=self.sessions,
            verdicts=MappingProxyType(dict(self.verdicts)),
            bytes_sent=link.bytes_sent,
            bytes_received=link.bytes_received,
            modules_sent=link.modules.modules_sent,
            seconds_since_heard=max(0.0, trio.current_time() - link.heard_at),
        )


class _Using:
    """For the time of the block somebody needs the link: who else was it for, if this one is cancelled?

    A class, since every call has one, and a generator's block takes five times as long.
    """

    __slots__ = ("_core", "_record")

    def __init__(self, core: HostCore, record: CallRecord) -> None:
        self._core = core
        self._record = record

    def __enter__(self) -> None:
        self._core.users += 1

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        core, link = self._core, self._record.link
        given_up = isinstance(exc, trio.Cancelled | KeyboardInterrupt) and core.users == 1 and not core.closed
        if given_up and link is not None and link.state == "connecting":
            core.abandon(link)
        core.users -= 1


class Packed:
    """What was packed of a call, for all hosts that can do with the same: the calls of a group share it.

    A class of its own, and no dict: a payload is nobody's business in a traceback that shows locals.

    Attributes:
      is_async: whether the function is; None as long as nobody has looked.
      payloads: and the modules that they need, by the version and the implementation of the far Python.
    """

    def __init__(self) -> None:
        self.is_async: bool | None = None
        self.payloads: dict[tuple[tuple[int, int] | None, str | None], tuple[bytes | list[bytes], frozenset[str]]] = {}


class CallRecord:
    """Where a call has come to, for one who wants to tell of it, also after it has ended."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.call: RemoteCall | None = None
        self.stopped: bool = False  # its end was asked for
        self.packed: Packed = Packed()

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return self.call.verdict_name if self.call is not None else "never started"

    @property
    def stage(self) -> str:
        """How far it came, in words."""
        if self.link is None:
            return "not begun"
        if self.call is None:
            return f"connecting: {self.link.stage}" if self.link.info is None else "packing its arguments"
        return "connecting: " + self.link.stage if self.link.info is None else self.link.stage_of(self.call)

    @property
    def state(self) -> Literal["connecting", "sending code", "running"]:
        """The same in fewer words, while it lasts."""
        if self.link is None or self.link.info is None:
            return "connecting"
        return "sending code" if self.call is None or self.link.is_sending(self.call) else "running"


class SessionState:
    """A pinned worker, as Session and HostCore see it."""

    def __init__(self, core: HostCore, link: Link) -> None:
        self.core = core
        self.link = link
        self.pin: RemoteCall = link.start_session()
        self.id: int = self.pin.id
        self.calls: set[RemoteCall] = set()
        self.closed = False
        self.spoiled = False  # a call in it was cancelled

    def check(self) -> None:
        """Raise what a verb of a session must raise whose worker is gone."""
        if self.link.error is not None:
            raise again(self.link.error)
        if self.closed:
            raise trio.ClosedResourceError(f"{self.core.name}: this session was closed")
        if self.spoiled and self.pin.finished.is_set():
            raise WorkerDied(
                f"{self.core.name}: a call of this session was cancelled, and its state went with its worker;"
                " open another session",
                host=self.core.name,
            )
        if self.pin.finished.is_set():
            raise died(self.core.name, self.pin, "the worker of this session")


class Host:
    """One live agent on a host, from ``async with open_host(...)``.

    Attributes:
      name: what the host is called in results, output and errors.
      tunnel: how it is reached.
    """

    def __init__(self, core: HostCore, options: CallOptions) -> None:
        self._core = core
        self._options = options

    def __repr__(self) -> str:
        return f"<trickle.Host {self.name!r}: {self._core.statistics().state}>"

    @property
    def name(self) -> str:
        """What the host is called."""
        return self._core.name

    @property
    def tunnel(self) -> Tunnel:
        """How the host is reached."""
        return self._core.tunnel

    @property
    def info(self) -> HostInfo:
        """What the agent said of itself.

        Raises:
          RuntimeError: it has not answered yet (see ``wait_connected``).
        """
        if self._core.link.info is None:
            raise RuntimeError(f"{self.name}: it has not answered yet; await wait_connected() first")
        return self._core.link.info

    @trio.lowlevel.enable_ki_protection
    async def wait_connected(self) -> HostInfo:
        """Wait until the agent has answered, and return what it says of itself.

        Raises:
          ConnectError: it did not answer.
        """
        return await self._core.wait_connected(self._core.live_link(self._options.reconnect))

    @overload
    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` on this host and return what it returns.

        If this call is cancelled, *fn* is stopped over there before the cancellation goes on: asked first (it sees
        ``trickle.remote.CallCancelled``), killed after the grace period with all that it started.

        Raises:
          ConnectError: the host was never reached (with ``open_host(..., wait=False)``).
          HostLost: the connection died before an answer came.  *fn* may have run.
          RemoteError: *fn* raised.  It is an instance of the original class too, where that is safe.
          WorkerDied: the process that *fn* ran in ended before *fn* did.
          Unsendable: *fn* or an argument cannot be sent; nothing was.
          UnsafeResult: the result is not plain data, nor of a class that was allowed.
          trio.ClosedResourceError: the host was closed.
        """
        return await self._core.call(fn, args, kwargs, self._options, CallRecord())

    def options(
        self,
        *,
        grace_period: float = UNSET,
        trust: Literal["data", "full"] | None = UNSET,
        allow: tuple[type, ...] = UNSET,
        max_result: int = UNSET,
        env: Mapping[str, str | None] | None = UNSET,
        cwd: str | os.PathLike[str] | None = UNSET,
        reconnect: bool = UNSET,
        output: Sink | None = UNSET,
    ) -> Host:
        """Another view of this host, whose verbs behave as given; what is not given stays as it is here.

        Args:
          grace_period: seconds that a cancelled call has for cleaning up (5).
          trust: ``"data"`` or ``"full"``, instead of the tunnel's.
          allow: classes of which results may hold instances, beside those of ``trickle.allow``.
          max_result: bytes that a result may take (8 MiB); one that is all bytes or str is exempt.
          env: environment variables to set for each call, or to remove (None).
          cwd: the working directory of each call.
          reconnect: connect anew when the connection was lost, or never came about, at the next verb: after a delay
            that grows with each failure, up to 30 s, and is partly random.  What was there (globals, sessions, what
            calls left running) is gone.  A call that was running raises HostLost; none is ever repeated.
          output: where printed lines go, instead of to this program's stderr.
        """
        return Host(self._core, self._options.replace(**given(locals())))

    def reducing(self, fn: Callable[[T], R]) -> Host:
        """Another view of this host, whose calls return ``fn(result)``, computed in another process of this machine.

        For results that are large, or take long to make something of: they are read there too, by the same rules,
        ``max_result`` aside, and hold up no other task of this program.  Only what *fn* returns comes back.  *fn* goes
        there as functions go to hosts, so a script needs no ``if __name__ == "__main__"`` for it.  A call that is
        cancelled while *fn* runs has the process killed.

        Calls raise what *fn* raises, and WorkerDied if its process ends by itself.

        Raises:
          Unsendable: *fn* can neither be imported nor had as source.
        """
        options = self._options.replace(reducers=(*self._options.reducers, fn))
        pack_reducers(options, self.name)  # so that it fails here, and not after the work has been done
        return Host(self._core, options)

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def session(self) -> AsyncIterator[Session]:
        """Pin one worker for the block: its calls queue, and find the state that earlier ones left."""
        core = self._core
        await core.slots.acquire()
        try:
            link = core.live_link(self._options.reconnect)
        except BaseException:
            core.slots.release()
            raise
        state = SessionState(core, link)
        core.sessions += 1
        core.users += 1
        try:
            yield Session(state, self._options)
        finally:
            state.closed = True
            core.sessions -= 1
            core.users -= 1
            core.slots.release()
            link.cancel(state.pin, grace_period=self._options.grace_period, reason=None, by_deadline=False)
            with trio.move_on_after(self._options.grace_period + VERDICT_SLACK, shield=True):
                await state.pin.finished.wait()
            if not state.pin.finished.is_set():
                link.lose(HostLost(f"{self.name}: a session did not end in time", host=self.name, stderr=link.stderr))

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def stream(
        self, fn: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[trio.abc.ReceiveChannel[T]]:
        """Run ``fn(*args, **kwargs)`` on this host, and receive what it yields, for the time of the block.

        ``async with host.stream(fn) as values: async for value in values: ...``.  A generator that is ahead of its
        receiver waits.  Leaving the block closes it over there: ``close()`` where it waits in a ``yield``, the ladder
        of cancellation in the middle of a step.  It runs in a process of its own.

        Raises:
          Exception: as ``call``; what *fn* raises comes from ``receive()``, else from leaving the block.
        """
        async with open_flow(self._core, "stream", fn, args, kwargs, self._options) as flow:
            yield Stream(flow)

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def open_channel(
        self, fn: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> AsyncIterator[RemoteChannel[Any, Any]]:
        """Run ``fn(channel, *args, **kwargs)`` on this host, and hold the other end of the channel, for the block.

        Leaving the block ends *fn*, by the ladder of cancellation if need be.  It runs in a process of its own.

        Raises:
          Exception: as ``call``; what *fn* raises comes from ``receive()`` or ``result()``, or from leaving.
        """
        async with open_flow(self._core, "channel", fn, args, kwargs, self._options) as flow:
            yield RemoteChannel(flow)

    @trio.lowlevel.enable_ki_protection
    async def run_process(
        self,
        command: Command,
        *,
        stdin: bytes | bytearray | memoryview | trio.abc.ReceiveStream | None = b"",
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        check: bool = True,
        shell: bool = False,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on this host and return how it ended, as ``trio.run_process`` does here.

        If this is cancelled, the process gets SIGTERM, and after the grace period SIGKILL with all that it started.
        What is not captured is printed here, line by line.

        Args:
          command: a sequence of words, which nobody quotes or splits; with *shell* a string for ``sh``.
          stdin: bytes, or a stream of them, for the process to read; None: nothing.
          capture_stdout: whether to return what it writes there.
          capture_stderr: whether to return what it writes there.
          check: whether to raise when it fails.
          shell: whether *command* is a string for the shell over there.
          cwd: the directory to run it in.
          env: its environment, instead of the one over there.

        Raises:
          subprocess.CalledProcessError: its exit status is not 0; with ``host``, and the last of its stderr as a note.
          RemoteError: it cannot be started: for one, ``FileNotFoundError``.
          HostLost: the connection died.
        """
        return await run_process(
            self._core,
            self._options,
            command,
            stdin=stdin,
            capture_stdout=capture_stdout,
            capture_stderr=capture_stderr,
            check=check,
            shell=shell,
            cwd=cwd,
            env=env,
        )

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def open_process(
        self,
        command: Command,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        shell: bool = False,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AsyncIterator[RemoteProcess]:
        """Run a command on this host for the time of the block, at the end of which it has ended.

        Args:
          command, shell, cwd, env: as in ``run_process``.
          stdin: ``subprocess.PIPE`` for a stream; None or ``subprocess.DEVNULL``: nothing.
          stdout: ``subprocess.PIPE`` for a stream, ``subprocess.DEVNULL``, or None: printed here, line by line.
          stderr: the same, or ``subprocess.STDOUT``.

        Raises:
          RemoteError: it cannot be started: for one, ``FileNotFoundError``.
          HostLost: the connection died.
        """
        async with open_process(
            self._core,
            self._options,
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=shell,
            cwd=cwd,
            env=env,
        ) as process:
            yield process

    @trio.lowlevel.enable_ki_protection
    async def put(
        self,
        local: Local,
        remote: StrOrBytesPath,
        *,
        mode: int | None = None,
        preserve: bool = True,
        fsync: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> TransferResult:
        """Write a file, or a directory with all that is in it, to this host.

        Each file is put together beside its place, checked, and moved there in one step: nothing half-written is
        ever to be seen under its name, and whatever fails, the old file or the new one is there.  A file that is there
        already and the same is left alone; of a large one that is there, only the blocks of 128 KiB that differ are
        sent.  Symbolic links stay links, and holes holes.  What a transfer that was killed has left beside a target
        is removed by the next one to it.

        Args:
          local: a path; or contents: bytes, a file open in binary mode, or an async iterable of bytes.
          remote: the path itself, not that of a directory to put it in; ``~`` is this host's user's home.
          mode: of the files, such as ``0o644``.
          preserve: keep modes and times, and as root the numbers of owners and groups.
          fsync: return only when it is on the disk.
          resume: when this is interrupted, keep what has come in ``.NAME.trickle-part`` beside the target, and go on
            from there the next time.
          progress: called with the bytes of files that are done, and of all (None: not known).  What it raises ends
            the transfer, and is raised here.

        Returns:
          The bytes of all files, their SHA-256, the bytes that had to be sent, and what was skipped.

        Raises:
          RemoteError: it cannot be written: ``PermissionError``, for one, or ``IsADirectoryError``.
          OSError: it cannot be read here, or was changed while it was read.
          HostLost: the connection died.
        """
        how = TransferOptions(mode, preserve, fsync, resume, progress)
        return await put(self._core, self._options, local, remote, how)

    @trio.lowlevel.enable_ki_protection
    async def fetch(
        self,
        remote: StrOrBytesPath,
        local: StrOrBytesPath,
        *,
        mode: int | None = None,
        preserve: bool = True,
        fsync: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
        max_size: int | None = None,
    ) -> TransferResult:
        """Bring a file, or a directory with all that is in it, from this host; as ``put``, the other way round.

        Nothing is written outside of *local*, whatever the host says, and no file gets set-user-ID or set-group-ID
        from it.

        Args:
          max_size: bytes that all the files together may take here; by default as many as the host has to say.

        Raises:
          RemoteError: it cannot be read, or was changed while it was read.
          OSError: it cannot be written here, or is larger than *max_size* (``errno.EFBIG``).
          HostLost: the connection died; ProtocolError, if what came is not from an agent of ours.
        """
        how = TransferOptions(mode, preserve, fsync, resume, progress, max_size)
        return await fetch(self._core, self._options, remote, local, how)

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def open_host(
        self,
        tunnel: Tunnel | str,
        *,
        wait: bool = True,
        connect_timeout: float = 30.0,
        heartbeat: float = 10.0,
        lease: float = 60.0,
        workers: int = 16,
        max_open: int = 256,
        max_payload: int = 512 * 2**20,
        modules: ModulePolicy | None = None,
        output: Sink | None = None,
    ) -> AsyncIterator[Host]:
        """As ``trickle.open_host``, but from this host: it is what runs ssh, with its keys, its network and its names.

        All that goes to and fro passes through here.  When this host is lost, so is what is beyond it.  It counts as
        one of this host's *max_open*.
        """
        settings = OpenSettings(
            wait=wait,
            connect_timeout=connect_timeout,
            heartbeat=heartbeat,
            lease=lease,
            workers=workers,
            max_open=max_open,
            max_payload=max_payload,
            modules=modules,
            output=output,
        )
        async with (
            relay_through(self._core, self._options) as relay,
            open_core(as_tunnel(tunnel), settings, relay.start) as core,
        ):
            yield await opened(core)

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def open_group(
        self,
        tunnels: Iterable[Tunnel | str],
        *,
        connect_limit: int = 32,
        connect_retries: int = 0,
        connect_timeout: float = 30.0,
        heartbeat: float = 10.0,
        lease: float = 60.0,
        workers: int = 16,
        max_open: int = 256,
        max_payload: int = 512 * 2**20,
        modules: ModulePolicy | None = None,
        output: Sink | None = None,
    ) -> AsyncIterator[Group]:
        """As ``trickle.open_group``, but from this host; see ``open_host``.

        Raises:
          ValueError: two tunnels have the same name, or there are more of them than this host's *max_open*.
        """
        from trickle._group import by_name, group_of

        settings = OpenSettings(
            wait=False,
            connect_timeout=connect_timeout,
            heartbeat=heartbeat,
            lease=lease,
            workers=workers,
            max_open=max_open,
            max_payload=max_payload,
            modules=modules,
            output=output,
            connect_retries=connect_retries,
        )
        named = by_name(tunnels)
        most = self._core.settings.max_open
        if len(named) > most:
            raise ValueError(f"{self.name}: {len(named)} hosts are more than its max_open={most}; open it with more")
        turns = Turns(connect_limit, len(named))
        async with (
            relay_through(self._core, self._options) as relay,
            group_of(named, settings, lambda name: relay.start, turns) as group,
        ):
            yield group

    def explain(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """What ``call(fn, *args, **kwargs)`` would send now: modules, bytes, and what cannot be sent or foreseen.

        For development: it reads all that code, which takes seconds for large packages, and the event loop waits.

        Raises:
          Unsendable: *fn* or an argument cannot be sent.
          RuntimeError: it depends on the host's Python, which is not known yet.
        """
        return self._core.explain(fn, args, kwargs)

    def statistics(self) -> HostStatistics:
        """How this host does now."""
        return self._core.statistics()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """End all calls, with their verdicts, and the agent; the views of this host are closed too.

        Another task's call raises ``trio.ClosedResourceError``, after its verdict.  In a cancelled scope the grace
        period is skipped.
        """
        await self._core.aclose(self._options.grace_period)
        await trio.lowlevel.checkpoint()


class Session:
    """A pinned worker on a host, from ``async with host.session()``."""

    def __init__(self, state: SessionState, options: CallOptions) -> None:
        self._state = state
        self._options = options

    @property
    def name(self) -> str:
        """What the host is called."""
        return self._state.core.name

    @overload
    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` in this session's worker, after the calls that came before.

        Raises:
          WorkerDied: the worker is gone, and the state with it: it died, or a call in it was cancelled.
          Exception: otherwise as ``Host.call``.
        """
        self._state.check()
        return await self._state.core.call(fn, args, kwargs, self._options, CallRecord(), self._state)

    @contextlib.asynccontextmanager
    @trio.lowlevel.enable_ki_protection
    async def stream(
        self, fn: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[trio.abc.ReceiveChannel[T]]:
        """As ``Host.stream``, in this session's worker.  Leaving the block before its end ends the worker too."""
        self._state.check()
        async with open_flow(self._state.core, "stream", fn, args, kwargs, self._options, self._state) as flow:
            yield Stream(flow)


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_host(
    tunnel: Tunnel | str,
    *,
    wait: bool = True,
    connect_timeout: float = 30.0,
    heartbeat: float = 10.0,
    lease: float = 60.0,
    workers: int = 16,
    max_open: int = 256,
    max_payload: int = 512 * 2**20,
    modules: ModulePolicy | None = None,
    output: Sink | None = None,
) -> AsyncIterator[Host]:
    """Start an agent on a host, for the time of the block.

    Args:
      tunnel: how to reach it; a plain string is the name of an ssh host.
      wait: whether to wait for the agent's answer.  If not, the first calls leave with the boot code, which saves
        a round trip, and ConnectError comes from the first verb, never from leaving the block.
      connect_timeout: seconds in which the agent must have answered.
      heartbeat: seconds between signs of life, both ways.
      lease: seconds of silence after which each end takes the other for lost; ``math.inf`` for debuggers.
      workers: how many plain calls run at once; more of them wait.
      max_open: how many sessions, streams, channels and processes may be open at once; more of them wait to be opened,
        so one that is opened inside of another's block needs room for both.
      max_payload: bytes that the arguments or the result of one call may take.
      modules: what of this program's modules the host may have; everything by default.
      output: where printed lines go: a callable, or a trio memory channel, of OutputLine; by default to this
        program's stderr.

    Raises:
      ConnectError: no agent answered.
    """
    settings = OpenSettings(
        wait=wait,
        connect_timeout=connect_timeout,
        heartbeat=heartbeat,
        lease=lease,
        workers=workers,
        max_open=max_open,
        max_payload=max_payload,
        modules=modules,
        output=output,
    )
    async with open_core(as_tunnel(tunnel), settings) as core:
        yield await opened(core)


async def opened(core: HostCore) -> Host:
    """The host, when it has answered if that is to be waited for."""
    host = Host(core, CallOptions())
    if core.settings.wait:
        await host.wait_connected()
    return host


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_core(
    tunnel: Tunnel, settings: OpenSettings, start: StartTunnel = start_tunnel
) -> AsyncIterator[HostCore]:
    """A host's core for the time of the block, at the end of which all its calls have their verdicts."""
    raised: BaseException | None = None
    with one_interrupt():
        async with trio.open_nursery() as nursery:
            reducing = Reducing()
            core = HostCore(tunnel, settings, nursery, reducing, start)
            try:
                yield core
            except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
                raised = exc
            await core.aclose(GRACE_PERIOD)
            await reducing.aclose()
    if raised is not None:
        raise raised


def again(error: ConnectError | HostLost) -> ConnectError | HostLost:
    """The same error for another waiter: one exception must not be raised in two tasks."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    if hasattr(error, "__notes__"):
        copy.__notes__ = list(error.__notes__)
    copy.__cause__ = error.__cause__
    return copy


def died(host: str, call: RemoteCall, what: str) -> WorkerDied:
    """The WorkerDied for a call's or a session's End."""
    if call.detail >= 256:
        number = call.detail - 256
        hint = SIGNALS.get(number, "")
        return WorkerDied(f"{host}: {what} was killed by signal {number}{hint}", host=host, signal=number)
    if call.verdict == frames.DIED:
        return WorkerDied(f"{host}: {what} exited with status {call.detail}", host=host, exit_status=call.detail)
    return WorkerDied(f"{host}: {what} is gone ({call.verdict_name})", host=host)


def _deadline() -> float:
    """Until when a call that is made now is wanted: by the scopes around it, and over there by the call around it."""
    return min(trio.current_effective_deadline(), trio.current_time() + remote.time_left())


def _reason(exc: BaseException | None) -> str | None:
    """Why a call is no longer wanted, for the code that runs over there."""
    if exc is None:
        return "the caller has left its block"
    if isinstance(exc, trio.Cancelled):
        return exc.reason or ("deadline" if exc.source == "deadline" else None)
    return type(exc).__name__


def _gathered(options: bytes, outgoing: _pickling.OutgoingCall) -> bytes | list[bytes]:
    """A call's payload: in pieces, if it is large."""
    pieces = [options, *outgoing.pieces]
    return b"".join(pieces) if sum(map(len, pieces)) <= frames.CHUNK else pieces


def bytes_in(pieces: Sequence[bytes | bytearray]) -> bytes | None:
    """The bytes that these pieces of a pickle are one object of, copied once; None if they are something else."""
    start = bytes(pieces[0][:11])
    if start[:2] not in (b"\x80\x04", b"\x80\x05") or start[2:3] not in (b"B", b"\x8e"):
        return None
    begin = 7 if start[2:3] == b"B" else 11
    size = int.from_bytes(start[3:begin], "little")
    behind = sum(map(len, pieces)) - begin - size  # MEMOIZE, perhaps, and STOP
    if len(start) < begin or behind not in (1, 2) or b"".join(pieces[-2:])[-behind:] != b"\x94."[-behind:]:
        return None
    views = [memoryview(piece) for piece in pieces]
    views[0] = views[0][begin:]
    while behind:
        cut = min(behind, len(views[-1]))
        views[-1] = views[-1][: len(views[-1]) - cut]
        behind -= cut
        if not views[-1]:
            views.pop()
    return b"".join(views)


def _is_one_string(payload: bytes) -> bool:
    """Whether a pickle is that of one bytes or str object and nothing else: that is a copy, whatever its size."""
    start = 11 if payload[2:3] == b"\x95" else 2  # behind PROTO, and FRAME where there is one
    opcode = payload[start : start + 1]
    width = {b"B": 4, b"X": 4, b"\x8e": 8, b"\x8d": 8}.get(opcode)  # BINBYTES, BINUNICODE, and the 8s of both
    if width is None:
        return False
    end = start + 1 + width + int.from_bytes(payload[start + 1 : start + 1 + width], "little")
    return payload[end:] in (b".", b"\x94.", b"q\0.")  # perhaps MEMOIZE or BINPUT, and STOP
