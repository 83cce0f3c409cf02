"""The agent of a host in memory: what broker.py and worker.py do over there, done by trio tasks of this program.

The rules are the broker's, and so is the order in which things happen.  Bytes come and go through two streams; what
becomes of them on the way, and when the tunnel ends, is _memory_tunnel.py's job.
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import heapq
import math
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any

import trio

from trickle import remote
from trickle._agent import asynchronous, functions, options, results
from trickle._agent.about import about_this_host
from trickle._agent.broker import BACKSTOP
from trickle._agent.pool import LONGEST_STACK
from trickle._agent.reaper import UNKILLABLE_AFTER
from trickle._boot import DAMAGED, GUARD
from trickle._memory_flows import MemoryFlow, raise_not_apart
from trickle._wire import frames
from trickle._wire.armor import Unarmor
from trickle._wire.connection import AGENT, LEAST_PAYLOAD, Connection
from trickle._wire.frames import (
    BY_CALLER,
    BY_DEADLINE,
    CANCELLED,
    DIED,
    KILLED,
    NEVER_STARTED,
    RAISED,
    RETURNED,
    UNKILLABLE,
    Begin,
    Call,
    Cancel,
    Close,
    Data,
    Frame,
    Grace,
    Hello,
    Item,
    Modules,
    Ping,
    Renew,
    Session,
    WireError,
)
from trickle._wire.payload import split_options

FAILED = 70  # the exit status of an agent that lost its controller, or was sent nonsense
SIGKILLED = 256 + 9  # in an End: the worker died of SIGKILL
LAST_LOOK = 0.1  # seconds in which the reader gets what has arrived, before the controller is judged silent
RETRY_KILL = 0.05  # seconds between looks at a function that has been killed and still runs
MAX_SWALLOWED = 100  # cancellations that a function may swallow at once: it would let no mock clock go on
OWN_FRAMES = ("trickle._memory_", "trio._threads", "outcome.")  # modules of what calls a function
AT_ONCE = 0.1  # seconds between one and the next


class Run:
    """One call that has not ended."""

    def __init__(
        self, id: int, session: SessionWorker | None, timeout_ms: int, host: str, flow: MemoryFlow, is_alone: bool
    ) -> None:
        self.id = id
        self.session = session
        self.host = host
        self.flow = flow
        self.is_alone = is_alone  # it has a worker of its own
        self.clock = trio.lowlevel.current_clock()
        self.deadline = deadline_after(timeout_ms)
        self.grace_ms: int | None = None
        self.parts: list[bytes] = []
        self.to_credit = 0  # bytes of them that took credit
        self.whole = False
        self.assigned = False  # it has a worker
        self.launched = False  # and has begun there
        self.cancelled = False
        self.killed: int | None = None  # the verdict that goes with how it was killed
        self.kill_came = trio.Event()
        self.detail = 0
        self.stack = b""
        self.ended = False
        self.scope = trio.CancelScope(shield=True)  # what ends the caller's program here is not its call's business
        self.task: trio.lowlevel.Task | None = None
        self.coroutine: Coroutine[Any, Any, Any] | None = None


class SessionWorker:
    """A pinned worker: one call at a time, in order."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.queue: deque[Run] = deque()
        self.current: Run | None = None


class MemoryAgent:
    """An agent that serves one connection.

    Args:
      stdin: what comes from the controller, boot code first.
      stdout: what goes there.
      nursery: where functions run; it may have to wait for those that nothing stops.
      fate_of: how many seconds the worker of the next call has to live; ``math.inf`` if it is to live.
    """

    def __init__(
        self,
        stdin: trio.abc.ReceiveStream,
        stdout: trio.abc.SendStream,
        nursery: trio.Nursery,
        fate_of: Callable[[], float],
    ) -> None:
        self.runs: dict[int, Run] = {}
        self.waiting: deque[Run] = deque()
        self.alone: deque[Run] = deque()  # before they begin
        self.sessions: dict[int, SessionWorker] = {}
        self.last_words = b""  # on stderr
        self._stdin = stdin
        self._stdout = stdout
        self._functions = nursery
        self._fate_of = fate_of
        self._main = functions._Main()  # a host's __main__ is not this program's
        self._main._module = functions.make_namespace("__main__")
        self._busy = 0  # plain calls that have a worker
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_serial = 0
        self._timer_came = trio.Event()
        self._something_to_say = trio.Event()
        self._run_ended = trio.Event()
        self._serving = trio.CancelScope()
        self._closing = False
        self._over = False
        self._status = 0

    # ---- the agent's life

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> int:
        """Serve until the controller closes, falls silent or is gone; return the exit status."""
        with trio.CancelScope(shield=True):
            configuration, received = await self._boot()
            if configuration is None:
                return DAMAGED
            self._configure(configuration)
            await self._greet()
            try:
                with self._serving:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write)
                        nursery.start_soon(self._keep_time)
                        nursery.start_soon(self._watch_lease)
                        await self._read(received)
                        self._serving.cancel()
            finally:
                await self._end_everything()
        return self._status

    def stop(self) -> None:
        """End as at the end of stdin."""
        self._serving.cancel()

    async def _boot(self) -> tuple[dict[str, Any] | None, bytes]:
        """Read what the loader would be, and its configuration; None if it is not what was sent."""
        lines = Lines(self._stdin)
        try:
            guard = await lines.exactly(len(GUARD))
            size, checksum = map(int, (await lines.next()).split())
            if binascii.crc32(guard + await lines.exactly(size)) != checksum:
                return None, b""
            line = binascii.a2b_base64(await lines.next())
        except ValueError:
            return None, b""
        return eval(line, {"__builtins__": {}, "inf": math.inf}), lines.rest

    def _configure(self, configuration: dict[str, Any]) -> None:
        self.name: str = configuration["name"]
        self._configuration = configuration
        self._connection = Connection(AGENT, frames.Decoder().feed, configuration["max_payload"])
        self._unarmor = Unarmor()
        self._heard_at = trio.current_time()

    async def _greet(self) -> None:
        self._connection.control(Hello(0, frames.VERSION, 0, about_this_host()))
        marker = self._configuration["nonce"][::-1].encode()
        with contextlib.suppress(trio.BrokenResourceError):  # as the reader finds out
            await self._stdout.send_all(marker + b"".join(self._connection.data_to_send(trio.current_time())))

    async def _read(self, received: bytes) -> None:
        data = received
        try:
            while True:
                if data:
                    self._heard_at = trio.current_time()
                    for frame in self._connection.receive_data(self._unarmor.receive(data), trio.current_time()):
                        self._take(frame)
                    self._act()
                data = bytes(await self._stdin.receive_some())  # all that has come, so that a cancel is read in time
                if not data:
                    return
        except WireError as exc:
            self._fail(str(exc))

    def _fail(self, why: str) -> None:
        self._status = FAILED
        self.last_words = f"trickle agent: {why}\n".encode()
        self._serving.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        try:
            while True:
                data = self._connection.data_to_send(trio.current_time())
                if data:
                    await self._stdout.send_all(b"".join(data))
                    for run in self.runs.values():
                        run.flow.look_for_room()
                elif self._is_finished():
                    self._serving.cancel()
                    return
                else:
                    self._something_to_say = trio.Event()
                    await self._something_to_say.wait()
        except trio.BrokenResourceError:
            pass  # the reader finds out

    def _is_finished(self) -> bool:
        return self._closing and not self.runs and not self.sessions and self._connection.is_drained

    @trio.lowlevel.enable_ki_protection
    async def _watch_lease(self) -> None:
        lease = self._configuration["lease"]
        while True:
            await trio.sleep_until(self._heard_at + lease)
            if trio.current_time() >= self._heard_at + lease:
                await trio.sleep(LAST_LOOK)
                now = trio.current_time()
                if now >= self._heard_at + lease:
                    self._fail(f"nothing heard from the controller for {now - self._heard_at:.1f} s")

    async def _end_everything(self) -> None:
        """SIGKILL to every worker, and a bounded wait until its function has gone."""
        self._over = True
        self.waiting.clear()
        self.alone.clear()
        self.sessions.clear()
        for run in list(self.runs.values()):
            if not run.launched:
                del self.runs[run.id]
            elif run.killed is None:
                self._kill(run, KILLED)
        give_up = trio.current_time() + UNKILLABLE_AFTER
        while self.runs and trio.current_time() < give_up:
            for run in self.runs.values():
                strike(run)
            self._run_ended = trio.Event()
            with trio.move_on_after(RETRY_KILL):
                await self._run_ended.wait()
        self.runs.clear()
        self._timers.clear()

    # ---- timers

    def _at(self, when: float, what: Callable[[], None]) -> None:
        if self._over:
            return
        self._timer_serial += 1
        heapq.heappush(self._timers, (when, self._timer_serial, what))
        self._timer_came.set()

    @trio.lowlevel.enable_ki_protection
    async def _keep_time(self) -> None:
        self._beat()
        while True:
            while self._timers and self._timers[0][0] <= trio.current_time():
                heapq.heappop(self._timers)[2]()
            self._timer_came = trio.Event()
            with trio.move_on_at(self._timers[0][0] if self._timers else math.inf):
                await self._timer_came.wait()

    def _beat(self) -> None:
        self._connection.control(Ping())
        self._something_to_say.set()
        self._at(trio.current_time() + self._configuration["heartbeat"], self._beat)

    # ---- from the controller

    def _take(self, frame: Frame) -> None:
        match frame:
            case Call() | Begin():
                self._on_call(frame)
            case Data():
                self._on_data(frame)
            case Item():
                if (run := self.runs.get(frame.id)) is not None:
                    run.flow.feed(frame)
            case Cancel():
                self._on_cancel(frame)
            case Renew():
                self._on_renew(frame)
            case Grace():
                if (run := self.runs.get(frame.id)) is not None:
                    run.grace_ms = frame.grace_ms
            case Session():
                self.sessions[frame.id] = SessionWorker(frame.id)
            case Close():
                self._on_close(frame)
            case Hello() | Ping() | Modules():
                pass  # modules are imported from where the controller has them
            case _:
                raise WireError(f"{frame!r} is not for the controller to say")

    def _on_call(self, frame: Call | Begin) -> None:
        is_alone = frame.session == frame.id
        session = self.sessions.get(frame.session)
        flow = MemoryFlow(
            frame.id,
            self._connection,
            lambda: self._something_to_say.set(),
            self._load_value,
            self._configuration["max_payload"],
        )
        run = Run(frame.id, session, frame.timeout_ms, self.name, flow, is_alone)
        self.runs[frame.id] = run
        if isinstance(frame, Call):
            run.parts.append(frame.payload)
            run.whole = True
        if self._closing or (frame.session and session is None and not is_alone):  # its session was lost a moment ago
            self._end(run, NEVER_STARTED)
            return
        self._watch_deadline(run)
        (session.queue if session is not None else self.alone if is_alone else self.waiting).append(run)

    def _on_data(self, frame: Data) -> None:
        run = self.runs.get(frame.id)
        if run is None:
            return  # it came with a call that ended on arrival
        run.parts.append(frame.payload)
        run.whole = bool(frame.last)
        run.to_credit += len(frame.payload)
        if run.assigned:
            self._give_credit(run)
            if run.whole:
                self._launch(run)

    def _on_cancel(self, frame: Cancel) -> None:
        if frame.id in self.sessions:
            self._close_session(self.sessions[frame.id], frame.grace_ms / 1000)
            return
        run = self.runs.get(frame.id)
        if run is None:
            if self._connection.drop(frame.id):  # it is over, but its result was still on the way
                self._end_id(frame.id, CANCELLED)
        elif not run.cancelled:
            self._cancel(run, frame.grace_ms / 1000, frame.cause, frame.payload.decode("utf-8", "replace") or None)

    def _on_renew(self, frame: Renew) -> None:
        run = self.runs.get(frame.id)
        if run is not None:
            run.deadline = deadline_after(frame.timeout_ms)
            self._watch_deadline(run)

    def _on_close(self, frame: Close) -> None:
        self._closing = True
        grace_period = frame.grace_ms / 1000
        for run in list(self.runs.values()):
            if not run.cancelled:
                self._cancel(run, grace_period, BY_CALLER, "the host was closed")
        for session in list(self.sessions.values()):
            self._close_session(session, grace_period)
        self._something_to_say.set()

    # ---- deadlines and the ladder

    def _watch_deadline(self, run: Run) -> None:
        deadline = run.deadline
        if deadline < math.inf:
            self._at(deadline + BACKSTOP, lambda: self._deadline_passed(run, deadline))

    def _deadline_passed(self, run: Run, deadline: float) -> None:
        if run.deadline == deadline and not run.ended and not run.cancelled:
            usual = self._configuration["grace_period"]
            grace_period = usual if run.grace_ms is None else run.grace_ms / 1000
            self._cancel(run, grace_period, BY_DEADLINE, "deadline")
            self._act()

    def _cancel(self, run: Run, grace_period: float, cause: int, reason: str | None) -> None:
        """First rung: ask.  What has not started never will."""
        run.cancelled = True
        if not run.launched:
            self._end(run, NEVER_STARTED)
            return
        if cause == BY_DEADLINE:
            run.stack = stack_of(run)
        run.flow.disown(reason)
        run.scope.cancel()
        # What SIGTERM does over there to a function that has no handler for it.
        self._at(trio.current_time() + grace_period, lambda: self._kill(run, KILLED))

    def _kill(self, run: Run, verdict: int, detail: int = 0) -> None:
        """Last rung: no shield holds any more."""
        if not run.ended and run.killed is None:
            run.killed, run.detail = verdict, detail
            self._insist(run, trio.current_time() + UNKILLABLE_AFTER)

    def _insist(self, run: Run, give_up: float) -> None:
        if run.ended:
            return
        strike(run)
        now = trio.current_time()
        if now < give_up:
            self._at(now + RETRY_KILL, lambda: self._insist(run, give_up))
        else:
            self._end(run, UNKILLABLE)

    # ---- sessions

    def _close_session(self, session: SessionWorker, grace_period: float) -> None:
        del self.sessions[session.id]
        for run in list(self.runs.values()):
            if run.session is session and not run.cancelled:
                self._cancel(run, grace_period, BY_CALLER, "the session was closed")
        if session.current is None:
            self._end_id(session.id, CANCELLED)

    def _leave_session(self, session: SessionWorker, run: Run) -> int | None:
        """Let a call go from its worker; return the verdict of a session that ends with it, behind the call's End."""
        session.current = None
        if session.id not in self.sessions:  # it was closed meanwhile
            return CANCELLED
        if not run.launched or not (run.cancelled or run.killed):
            return None
        del self.sessions[session.id]  # its worker is not to be used again, and its state is lost
        for queued in session.queue:
            if not queued.ended:
                self._end(queued, NEVER_STARTED)
        return DIED

    # ---- calls

    def _act(self) -> None:
        """Start what can be started."""
        for session in list(self.sessions.values()):
            while session.queue and session.current is None:
                run = session.queue.popleft()
                if not run.ended:
                    session.current = run
                    self._assign(run)
        while self.alone:
            run = self.alone.popleft()
            if not run.ended:
                self._assign(run)
        while self.waiting and self._busy < self._configuration["workers"]:
            run = self.waiting.popleft()
            if not run.ended:
                self._busy += 1
                self._assign(run)
        self._something_to_say.set()

    def _assign(self, run: Run) -> None:
        run.assigned = True
        if run.whole:
            self._launch(run)
        self._give_credit(run)

    def _give_credit(self, run: Run) -> None:
        if run.to_credit:
            self._connection.used(run.id, run.to_credit)
            run.to_credit = 0

    def _launch(self, run: Run) -> None:
        run.launched = True
        seconds_to_live = self._fate_of()
        if seconds_to_live <= 0:
            run.killed, run.detail = DIED, SIGKILLED
        elif seconds_to_live < math.inf:
            self._at(trio.current_time() + seconds_to_live, lambda: self._kill(run, DIED, SIGKILLED))
        self._functions.start_soon(self._perform, run, name=f"call {run.id} on {self.name}")

    @trio.lowlevel.enable_ki_protection
    async def _perform(self, run: Run) -> None:
        """The life of a worker's call."""
        with trio.CancelScope(shield=True):
            run.task = trio.lowlevel.current_task()
            current_run.set(run)
            verdict, payload = await self._outcome(run)
            limit = max(self._configuration["max_payload"], LEAST_PAYLOAD if verdict == RAISED else 0)
            if len(payload) > limit:
                error = ValueError(f"the result takes {len(payload)} bytes; max_payload allows {limit}")
                verdict, payload = RAISED, results.describe_exception(error)
            if run.killed is not None:
                verdict, payload = run.killed, run.stack
            elif verdict == CANCELLED:
                payload = run.stack
            run.task = run.coroutine = None
            if not run.ended:
                self._end(run, verdict, run.detail, payload)
                if not self._over:
                    self._act()

    async def _outcome(self, run: Run) -> tuple[int, bytes]:
        if run.cancelled or run.killed is not None:
            return CANCELLED, b""
        try:
            return RETURNED, results.dumps_result(await self._value(run))
        except BaseException as exc:
            if run.cancelled and isinstance(exc, remote.CallCancelled):
                return CANCELLED, b""
            exc.__traceback__ = without_own_frames(exc.__traceback__)
            return RAISED, results.describe_exception(exc)

    async def _value(self, run: Run) -> object:
        payload = b"".join(run.parts)
        asked_for, start = split_options(payload)
        run.parts = []
        mode = asked_for.pop("flow", None)
        surroundings = options.Surroundings(asked_for) if asked_for else None
        with surroundings or contextlib.nullcontext():
            fn, args, kwargs = self._load(payload, start)
            value = fn(*args, **kwargs) if mode is None else run.flow.run(mode, fn, args, kwargs, surroundings)
        if not asynchronous.is_coroutine(value):
            return value
        if asked_for and mode is None:
            value.close()
            raise_not_apart()
        run.coroutine = value
        with run.scope:
            return await Steps(value, run)
        raise remote.CallCancelled(run.flow.reason)

    def _load(self, payload: bytes, start: int = 0) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        former, functions.main = functions.main, self._main
        try:
            return functions.loads_call(payload, start)
        finally:
            functions.main = former

    def _load_value(self, payload: bytes) -> object:
        return self._load(payload)[1][0]

    def _end(self, run: Run, verdict: int, detail: int = 0, payload: bytes = b"") -> None:
        run.ended = True
        run.flow.end()
        self.runs.pop(run.id, None)
        self._run_ended.set()
        if run.session is None and not run.is_alone:
            self._busy -= run.assigned
        session, session_verdict = run.session, None
        if session is not None and session.current is run:
            session_verdict = self._leave_session(session, run)
        if not self._over:
            self._end_id(run.id, verdict, detail, payload)
            if session is not None and session_verdict is not None:
                self._end_id(session.id, session_verdict)

    def _end_id(self, id: int, verdict: int, detail: int = 0, payload: bytes = b"") -> None:
        if self._connection.is_open(id):
            self._connection.end(id, verdict, detail, payload)
        self._something_to_say.set()


class Lines:
    """Reads the head of a stream by lines and sizes."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self.rest = b""

    async def next(self) -> bytes:
        """The next line.  ValueError at the end of the stream."""
        while b"\n" not in self.rest:
            await self._more()
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    async def exactly(self, size: int) -> bytes:
        """So many bytes.  ValueError at the end of the stream."""
        while len(self.rest) < size:
            await self._more()
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    async def _more(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise ValueError("the stream ended")
        self.rest += data


class Steps:
    """Runs a coroutine step by step, so that one that lets nothing stop it can be left where it is."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], run: Run) -> None:
        self._coroutine = coroutine
        self._run = run
        self._swallowed = 0
        self._swallowed_at = -math.inf

    def __await__(self) -> Generator[Any, Any, Any]:
        answer = None
        while True:
            try:
                trap = self._coroutine.send(answer)
            except StopIteration as stop:
                return stop.value
            if self._run.killed is not None:
                strike(self._run)  # it may have put up another shield
            answer = yield trap
            error = getattr(answer, "error", None)  # an outcome.Error: trio throws nothing into its tasks
            if isinstance(error, trio.Cancelled) and self._is_stubborn():
                yield from self._wait_for_kill().__await__()
                self._leave()
                raise error

    def _is_stubborn(self) -> bool:
        now = trio.current_time()
        self._swallowed = self._swallowed + 1 if now < self._swallowed_at + AT_ONCE else 1
        self._swallowed_at = now
        return self._swallowed > MAX_SWALLOWED

    async def _wait_for_kill(self) -> None:
        with trio.CancelScope(shield=True):
            await self._run.kill_came.wait()

    def _leave(self) -> None:
        """Never resume the coroutine: this task is then in none of the scopes that it is still in."""
        # Neither may it be thrown away, not even at the end of the program: that would be to ask it once more.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._coroutine))
        assert self._run.task is not None
        self._run.task._activate_cancel_status(self._run.scope._cancel_status)


def strike(run: Run) -> None:
    """Cancel what a run does, with no regard to the shields that it has put up."""
    run.kill_came.set()
    run.scope.cancel()
    status = getattr(run.scope, "_cancel_status", None)
    for below in [*status.children] if status is not None else []:
        _remove_shields(below)


def _remove_shields(status: Any) -> None:
    status._scope.shield = False
    for below in [*status.children]:
        _remove_shields(below)


def deadline_after(timeout_ms: int) -> float:
    """When so many milliseconds will have passed, by trio's clock."""
    return math.inf if timeout_ms == frames.NEVER else trio.current_time() + timeout_ms / 1000


def stack_of(run: Run) -> bytes:
    """Where a run is, innermost frame first, as faulthandler shows it."""
    lines = [
        f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}'
        for frame in asynchronous.frames_of(run.coroutine)
    ]
    return "\n".join(lines).encode("utf-8", "replace")[:LONGEST_STACK]


def without_own_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The part of a traceback that is the function's."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(OWN_FRAMES):
        traceback = traceback.tb_next
    return traceback


# ---- trickle.remote, for code that runs in memory

current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)


class _Runner:
    """What ``trickle.remote`` asks, answered for the call that the asking task belongs to."""

    def check_cancelled(self) -> None:
        run = current_run.get()
        if run is not None and run.cancelled:
            raise remote.CallCancelled(run.flow.reason)

    def time_left(self) -> float:
        run = current_run.get()
        return run.deadline - run.clock.current_time() if run is not None else math.inf


class _Remote(types.ModuleType):
    @property
    def host_name(self) -> str | None:
        run = current_run.get()
        return run.host if run is not None else None


def prepare_remote() -> None:
    """Have ``trickle.remote`` know of runs in memory; harmless for all other code."""
    remote._runner = _Runner()  # type: ignore[assignment]
    sys.modules[remote.__name__].__class__ = _Remote
