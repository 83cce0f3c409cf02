"""What becomes of a host's calls: packed, sent, waited for, stopped when nobody wants them, and read.

The verbs that users call are _host.py's and _group.py's.  The connection itself is _link.py's; packing calls and
reading results are _pickling.py's and _unpickling.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar

import trio

from trickle import _pickling, _unpickling, remote
from trickle._async_support import check_can_run, is_async
from trickle._backoff import LONGEST_DELAY, backoff
from trickle._channels import MODULES
from trickle._diagnosis import WRONG_PASSWORD
from trickle._exceptions import CallTimeout, ConnectError, HostLost, UnsafeResult, Unsendable, WorkerDied
from trickle._explanation import Explanation, explain_call, name_new_syntax
from trickle._interrupts import one_interrupt
from trickle._link import HostInfo, Link, RemoteCall
from trickle._reducing import Reducing
from trickle._remote_errors import rebuild_exception
from trickle._settings import GRACE_PERIOD, VERDICT_SLACK, CallOptions, OpenSettings
from trickle._tunnel_process import StartTunnel, start_tunnel
from trickle._turns import Turns
from trickle._wire import frames
from trickle._wire.payload import pack_options
from trickle.abc import Tunnel

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
E = TypeVar("E", bound=ConnectError | HostLost | WorkerDied)


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
        self.users: Users = Users()
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
        self._check_run()
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

    def _check_run(self) -> None:
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(f"{self.name}: this host belongs to another trio.run; use it in the one that opened it")

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

    def is_abandoned(self, link: Link) -> bool:
        """Whether nobody needed this link any more before it had answered."""
        return link is self._abandoned

    def abandon_unneeded(self, given_up: bool = False) -> None:
        """Close the tunnel of a link that has not answered yet, and that nobody needs any more.

        The next verb connects anew.  To be called wherever somebody needs it no more.

        Args:
          given_up: whether that is so because it took too long; if not, it may as well go on connecting, unless
            others wait for nothing but the end of calls that they have given up.
        """
        link = self.link
        if not (given_up or self.users.leaving) or link.state != "connecting" or self.closed:
            return
        if not self.users.need_it:
            self._abandoned = link
            link.closing = True
            link.lose(HostLost(f"{self.name}: nobody waits for it any more", host=self.name))

    async def wait_connected(self, link: Link) -> HostInfo:
        """What the agent says of itself, once it has answered."""
        self.users.waiting += 1
        try:
            await link.answered.wait()
        finally:
            self.users.waiting -= 1
            self.abandon_unneeded()
        if link.info is None:
            if self.closed:
                raise trio.ClosedResourceError(f"{self.name}: this host was closed")
            assert link.error is not None
            raise again(link.error)
        return link.info

    async def aclose(self, grace_period: float) -> None:
        """End all calls with their verdicts, then the agent."""
        self._check_run()
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
        with _Using(self):
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
        if call.error is None:
            await link.lines_given(call)
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
            del payload  # tracebacks show locals
            link = record.link = self.live_link(options.reconnect)
            payload = await self._pack(link, fn, args, kwargs, options, record.packed, mode)
        call = record.call = link.start_call(
            payload,
            session=session.id if session is not None else 0 if mode is None else None,
            deadline=_deadline(),
            grace_period=options.grace_period,
            sink=options.output,
            flows=mode is not None,
            transfers=mode in ("put", "fetch"),
        )
        call.runs_code = mode in (None, "stream", "channel")
        link.tell_watchers()  # it may have left already, before the record knew of it
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
                payload, asked_for = b"", {}  # tracebacks show locals
                await link.send_modules_for(modules)
            return packed.payloads[version, implementation][0]

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
        if not call.finished.is_set():
            self.users.leaving.add(call)
            try:
                self.abandon_unneeded()
                with trio.move_on_after(options.grace_period + VERDICT_SLACK, shield=True):
                    await call.finished.wait()
            finally:
                self.users.leaving.discard(call)
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
        if len(outgoing.payload) > self.settings.max_payload:
            raise Unsendable(
                f"{self.name}: this takes {len(outgoing.payload)} bytes and max_payload is"
                f" {self.settings.max_payload}; raise it in open_host, or send it in parts",
                host=self.name,
                path="argument 1",
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
            with _Using(self):
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
            verdicts=MappingProxyType(Counter(self.verdicts)),
            bytes_sent=link.bytes_sent,
            bytes_received=link.bytes_received,
            modules_sent=link.modules.modules_sent,
            seconds_since_heard=max(0.0, trio.current_time() - link.heard_at),
        )


class Users:
    """Who needs the link of a host.

    Attributes:
      waiting: how many have a call, or wait for the host to answer.
      leaving: calls whose callers wait for nothing but their end.
      sessions: those that are open.  While a session has calls, it needs what they do.
    """

    def __init__(self) -> None:
        self.waiting: int = 0
        self.leaving: set[RemoteCall] = set()
        self.sessions: set[SessionState] = set()

    @property
    def need_it(self) -> bool:
        """Whether there is one who does."""
        return self.waiting > len(self.leaving) or any(not session.calls for session in self.sessions)


class _Using:
    """For the time of the block somebody needs the link: who else was it for, if this one is cancelled?

    A class, since every call has one, and a generator's block takes five times as long.
    """

    __slots__ = ("_core",)

    def __init__(self, core: HostCore) -> None:
        self._core = core

    def __enter__(self) -> None:
        self._core.users.waiting += 1

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        self._core.users.waiting -= 1
        self._core.abandon_unneeded(given_up=isinstance(exc, trio.Cancelled | KeyboardInterrupt))


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
        self.limit: trio.CancelScope | None = None  # of its time, if it has one

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For the time of the block its time stands still."""
        if self.limit is None or self.limit.deadline == math.inf:
            yield
            return
        deadline, before = self.limit.deadline, trio.current_time()
        self.limit.deadline = math.inf
        try:
            yield
        finally:
            self.limit.deadline = deadline + trio.current_time() - before

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
        if self.call.verdict == frames.RETURNED:
            return "reading its result"
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
        if self.link.error is not None and not (self.spoiled and self.core.is_abandoned(self.link)):
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


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_core(
    tunnel: Tunnel, settings: OpenSettings, start: StartTunnel = start_tunnel
) -> AsyncIterator[HostCore]:
    """A host's core for the time of the block, at the end of which all its calls have their verdicts."""
    raised: BaseException | None = None
    await trio.lowlevel.checkpoint_if_cancelled()
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


def again(error: E) -> E:
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
    width = {b"C": 1, b"\x8c": 1, b"B": 4, b"X": 4, b"\x8e": 8, b"\x8d": 8}.get(opcode)  # short, usual, and the 8s
    if width is None:
        return False
    end = start + 1 + width + int.from_bytes(payload[start + 1 : start + 1 + width], "little")
    return payload[end:] in (b".", b"\x94.", b"q\0.")  # perhaps MEMOIZE or BINPUT, and STOP
