"""One agent's life: run its tunnel, move its frames, and see to it that every call has its end.

What a call means, how it is packed and what comes of it is _host_core.py's job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import secrets
import sys
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import trio
import trio.lowlevel

from trickle import _boot, remote
from trickle._backoff import backoff
from trickle._cleanup import remove_leftovers
from trickle._decoder import MsgpackDecoder
from trickle._diagnosis import cannot_run, connect_error, printable
from trickle._exceptions import ConnectError, HostLost, ProtocolError
from trickle._handshake import Handshake, chain, starts_new_session
from trickle._module_server import MAX_KEY, MAX_QUESTIONS, ModuleServer
from trickle._output import OutputDelivery, shown
from trickle._settings import GRACE_PERIOD, VERDICT_SLACK, OpenSettings, Sink
from trickle._tunnel_process import EXIT_PATIENCE, LocalProcess, StartTunnel, TunnelProcess, end_process, start_tunnel
from trickle._tunnels import Local, Sudo
from trickle._turns import TURN_HELD, Turns
from trickle._wire import frames
from trickle._wire.connection import CONTROLLER, CREDIT, LEAST_PAYLOAD, Connection
from trickle._wire.frames import (
    LARGE,
    Ask,
    Cancel,
    Close,
    Data,
    End,
    Frame,
    Grace,
    Hello,
    Item,
    Note,
    Output,
    Ping,
    Record,
    Renew,
    Session,
    WireError,
    milliseconds,
)
from trickle._wire.items import Inbox, cut
from trickle.abc import Tunnel

logger = logging.getLogger("trickle")

BOOT_PATIENCE = 1.0  # seconds, where perhaps there is no agent
HOPELESS_PATIENCE = 0.5  # seconds, of a tunnel that was given up, between SIGTERM and SIGKILL
READ_SIZE = frames.CHUNK + 1024  # bytes: a buffer of more than 128 KiB would be mapped and unmapped each time
BULK_READ_SIZE = 256 * 1024  # behind one that was full
MAX_DEPTH = 8  # hosts, each opened from the one before it: more is a function that calls itself there
PIECE = frames.CHUNK + 1024  # bytes that are heard in one go: thousands of frames, if they are small
FEW = 4  # frames in a piece, of bulk
SPARE_WORDS = 1000  # heartbeats and notes that an agent may say beyond what it has a reason for
LONGEST_FACT = 1000  # characters, of what an agent says of itself
LATE_SINKS = 100  # calls that ended early, and whose last words still find their way
LAST_LOOK = 0.1  # seconds in which the reader gets what has arrived, before a host is judged silent
# Seconds in which what has failed may say why; it takes them only where something stays that says no more.
LAST_WORDS = 2.0


@dataclasses.dataclass(frozen=True)
class HostInfo:
    """What an agent said of itself when it answered."""

    hostname: str
    pid: int
    user: str
    python: str
    python_version: tuple[int, int, int]
    implementation: str
    system: str
    machine: str


def _is_near(tunnel: Tunnel, start: StartTunnel) -> bool:
    """Whether it leads to this machine, and not to a relay's, so that what is sent costs next to nothing."""
    return start is start_tunnel and all(isinstance(each, Local | Sudo) for each in chain(tunnel))


def _is_like_ours(python_version: tuple[int, int] | None) -> bool:
    """Whether a Python of that version, or one that is not known yet, may run the code that ours has compiled."""
    return python_version in (None, sys.version_info[:2])


class RemoteCall:
    """One call, as this end sees it."""

    __slots__ = (
        "arrivals",
        "deadline",
        "detail",
        "error",
        "finished",
        "id",
        "inbox",
        "is_session",
        "pieces",
        "room",
        "runs_code",
        "session",
        "sink",
        "unwanted",
        "verdict",
    )

    def __init__(self, id: int, sink: Sink | None) -> None:
        self.id: int = id
        self.sink: Sink | None = sink
        self.deadline: float = math.inf
        self.is_session: bool = False
        self.runs_code: bool = True  # of the program's own: no command, and no transfer
        self.unwanted: bool = False  # its end was asked for
        self.session: int = 0  # the number of the one that it belongs to
        self.finished: trio.Event = trio.Event()
        self.verdict: int | None = None  # None with an error: unknown
        self.detail: int = 0
        self.pieces: list[bytes | bytearray] = []  # of the result or error, as far as it has come
        self.error: ConnectError | HostLost | None = None
        self.inbox: Inbox | None = None  # of a call with a flow
        # Of a call with a flow alone:
        self.arrivals: trio.lowlevel.ParkingLot  # who waits for what comes
        self.room: trio.lowlevel.ParkingLot  # who waits to send

    @property
    def remote_stack(self) -> str | None:
        """Where its deadline found it, innermost frame first; None if that is not known, or says nothing."""
        if self.verdict in (frames.RETURNED, frames.RAISED) or not self.pieces or not self.runs_code:
            return None
        return shown(self.payload)

    @property
    def payload(self) -> bytes:
        """The result or error, as far as it has come."""
        return b"".join(self.pieces)

    def add(self, piece: bytes) -> None:
        """Keep a piece of the result or error.  Small ones are put together: an object for each would be much more."""
        if len(piece) > LARGE or not self.pieces:
            self.pieces.append(piece)
        elif isinstance(self.pieces[-1], bytearray):
            self.pieces[-1] += piece
        else:
            self.pieces.append(bytearray(piece))

    @property
    def verdict_name(self) -> str:
        """The verdict in words."""
        return frames.VERDICTS[self.verdict] if self.verdict is not None else "unknown"


State = Literal["connecting", "connected", "lost", "closed"]


class Link:
    """The connection to one agent, from the tunnel's start to its end.

    ``run`` is a service task: it is shielded, never raises, and ends when the tunnel's process has.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        settings: OpenSettings,
        verdicts: Counter[str],
        start: StartTunnel = start_tunnel,
        turns: Turns | None = None,
        begin_at: float = -math.inf,
    ) -> None:
        assert tunnel.name is not None
        self.name: str = tunnel.name
        self.tunnel = tunnel
        self.settings = settings
        self.verdicts = verdicts
        self.state: State = "connecting"
        self.closing: bool = False
        self.info: HostInfo | None = None
        self.lacks: frozenset[str] = frozenset()  # what its Python has not, of what the agent looked for
        self.error: ConnectError | HostLost | None = None
        self.begun: trio.Event = trio.Event()  # to connect: it has its turn; or was given up before that
        self.answered: trio.Event = trio.Event()  # or failed to
        self.gone: trio.Event = trio.Event()
        self._is_near = _is_near(tunnel, start)
        self.modules: ModuleServer = ModuleServer(
            settings.modules, host=self.name, sends_bytecode=self._is_near and _is_like_ours(tunnel.python_version)
        )
        self._modules_lock = trio.Lock()
        self._bundled: frozenset[str] = frozenset()
        self.calls: dict[int, RemoteCall] = {}
        self._late_sinks: dict[int, Sink] = {}  # of calls that ended early
        self._flowing: set[RemoteCall] = set()
        self.watchers: dict[object, Callable[[], object]] = {}  # told when it has answered, and when something was sent
        self.heard_at: float = trio.current_time()
        self._connected_at = math.inf
        self._frame_at = math.inf  # when the last one came
        self._decoder = MsgpackDecoder()
        most = max(settings.max_payload, LEAST_PAYLOAD)
        self._connection = Connection(CONTROLLER, lambda data: self._decoder.feed(data), most)
        self._connection.control(Hello(0, frames.VERSION))
        try:
            self._argv = tunnel.wrap(_boot.python_command(tunnel.python))
        except ValueError as exc:
            raise ValueError(f"{self.name}: {exc}") from None
        self._begin_at = begin_at
        self._attempts = 0
        self._retry_after: ConnectError | None = None  # why this attempt has failed, if another one follows
        self._attempt = Handshake(tunnel, is_near=self._is_near)
        self._attempt_scope = trio.CancelScope()
        self._given_up = False  # we have closed its stdin, before it had answered
        self._waits_for: str | None = None  # before an attempt
        self._newest = 0
        self._wake = trio.Event()
        self._waits = False  # the task that writes, for something to write
        self._has_heard = False  # since something was written straight into the pipe
        self._unsent = b""  # of what was written straight into the pipe
        self._scope = trio.CancelScope()
        self._connect_scope = trio.CancelScope()
        self._start = start
        self._turns = turns
        self._has_turn = False
        self._process: TunnelProcess | None = None
        self._stderr_ended = trio.Event()
        self._output = OutputDelivery(self.name, self._connection.delivered, self._send)
        self._questions = 0
        self._words = 0  # heartbeats and notes
        self._expects_bulk = False
        self._asked: deque[str] = deque()  # bounded by _take_question
        self._nursery: trio.Nursery | None = None

    # ---- what _host_core.py asks for.  None of it blocks but `close`.

    def start_call(
        self,
        payload: bytes | list[bytes],
        *,
        session: int | None,
        deadline: float,
        grace_period: float,
        sink: Sink | None,
        flows: bool = False,
        transfers: bool = False,
    ) -> RemoteCall:
        """Send a call; its ``finished`` event is set when it has ended.

        Args:
          session: the number of the one that it belongs to; 0 for none; None for a worker of its own.
          flows: whether Items go to and fro while it runs.
          transfers: whether they are the messages of a transfer.
        """
        call = self._new_call(sink)
        call.session = call.id if session is None else session
        call.deadline = deadline
        if not isinstance(payload, bytes) and sum(map(len, payload)) > CREDIT:
            self.expect_bulk()
        if flows:
            call.inbox, call.arrivals, call.room = Inbox(), trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot()
            self._flowing.add(call)
        self._connection.call(call.id, call.session, payload, None if deadline == math.inf else deadline)
        if transfers:
            self._connection.expect_messages(call.id)
        if deadline != math.inf and grace_period != GRACE_PERIOD:
            self._connection.control(Grace(call.id, milliseconds(grace_period)))
        self._send()
        return call

    def start_session(self) -> RemoteCall:
        """Pin a worker; it ends as a call does."""
        call = self._new_call(None)
        call.is_session = True
        self._connection.control(Session(call.id))
        self._send()
        return call

    def _new_call(self, sink: Sink | None) -> RemoteCall:
        self._newest += 1
        call = RemoteCall(self._newest, sink)
        self.calls[call.id] = call
        return call

    def has_modules_for(self, names: frozenset[str]) -> bool:
        """Whether nothing is to be sent for them."""
        return names <= self._bundled or not self.settings.sends_modules

    async def send_modules_for(self, names: frozenset[str]) -> None:
        """Send what *names* import, as far as this host does not have it, ahead of the calls that come later."""
        if self.has_modules_for(names):
            return
        async with self._modules_lock:
            # Not to be abandoned: what ModuleServer has handed out once, it takes for sent.
            bundle = await trio.to_thread.run_sync(self.modules.bundle_for, names, limiter=_module_thread())
            self._bundled |= names
            self._send_modules(bundle)

    def _send_modules(self, bundle: bytes | None) -> None:
        if bundle is not None and self.state in ("connecting", "connected"):
            self._connection.modules(bundle)
            self._send()

    def expect_bulk(self) -> None:
        """Prepare for much to come or go."""
        self._expects_bulk = True
        if isinstance(self._process, LocalProcess):
            self._process.widen()

    async def send_item(self, call: RemoteCall, *pieces: bytes) -> bool:
        """Send a thing to a call when there is room for more; False if that has ended, or takes nothing any more."""
        assert call.inbox is not None
        while not call.finished.is_set() and not call.inbox.deaf:
            if self._connection.pending(call.id) <= CREDIT:
                self.post_item(call, *pieces)
                return True
            await call.room.park()
        return False

    def post_item(self, call: RemoteCall, *pieces: bytes) -> None:
        """Send a thing to a call that has not ended, whether there is room or not."""
        for frame in cut(call.id, *pieces):
            self._connection.bulk(frame)
        self._send()

    def send_eof(self, call: RemoteCall) -> None:
        """Tell a call that nothing more will be sent."""
        if not call.finished.is_set():
            self._connection.bulk(Item(call.id, frames.EOF))
            self._send()

    def take_item(self, call: RemoteCall) -> bytes:
        """The next thing that has come of a call."""
        assert call.inbox is not None
        payload, credit = call.inbox.take()
        self._connection.used(call.id, credit)
        self._send()
        return payload

    def renew(self, call: RemoteCall, deadline: float) -> None:
        """Tell the agent of a call's new deadline."""
        call.deadline = deadline
        if self._connection.is_open(call.id):
            left = deadline - trio.current_time()
            self._connection.control(Renew(call.id, frames.NEVER if left == math.inf else milliseconds(left)))
            self._send()

    def cancel(self, call: RemoteCall, *, grace_period: float, reason: str | None, by_deadline: bool) -> None:
        """Ask for the end of a call.  Its verdict comes as always; one that has not left yet ends here and now."""
        if call.finished.is_set():
            return
        if self._connection.withdraw(call.id):
            self._finish(call, frames.NEVER_STARTED)
            return
        call.unwanted = True
        self._connection.drop(call.id)
        cause = frames.BY_DEADLINE if by_deadline else frames.BY_CALLER
        text = (reason or "").encode("utf-8", "replace")[:1024]
        self._connection.control(Cancel(call.id, milliseconds(grace_period), cause, text))
        self._send()

    def lose(self, error: ConnectError | HostLost) -> None:
        """Give this agent up: every waiter is answered now, and the tunnel is killed."""
        if self.state in ("lost", "closed"):
            return
        self.error = error
        self.state = "lost"
        self.begun.set()
        self.answered.set()
        for call in list(self.calls.values()):
            call.error = error
            self._finish(call, None)
        self._output.hurry(EXIT_PATIENCE)
        self._scope.cancel()
        # A host that was never reached is the business of whoever called it; one that is lost may have been idle.
        log = logger.info if self.closing or isinstance(error, ConnectError) else logger.warning
        log("%s", str(error).splitlines()[0])

    async def close(self, grace_period: float) -> None:
        """End every call by the ladder, then the agent.  Returns when its tunnel is gone; bounded."""
        self.closing = True
        if self.state == "connecting":
            self.lose(self._lost("closed before the agent had answered"))
        elif self.state == "connected":
            self._connection.control(Close(0, milliseconds(grace_period)))
            self._send()
            try:
                with trio.move_on_after(grace_period + VERDICT_SLACK, shield=True):
                    await self.gone.wait()
            finally:  # also on a second Ctrl-C
                self.lose(self._lost("it did not close in time"))
        with trio.move_on_after(4 * EXIT_PATIENCE, shield=True):
            await self.gone.wait()

    @property
    def stderr(self) -> str:
        """The last that the tunnel's process said."""
        return self._attempt.stderr.decode("utf-8", "replace")

    @property
    def connected_for(self) -> float:
        """Seconds from its agent's hello until it was last heard of; 0 if there was none."""
        return max(0.0, self.heard_at - self._connected_at)

    @property
    def stage(self) -> str:
        """How far connecting has come, in words."""
        return self._waits_for or self._attempt.stage

    @property
    def bytes_sent(self) -> int:
        return self._connection.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._connection.bytes_received

    async def lines_given(self, call: RemoteCall) -> None:
        """Wait until what a call has printed has been given to who wants it, unless this is cancelled."""
        await self._output.given(call.id)

    def is_sending(self, call: RemoteCall) -> bool:
        """Whether something that a call needs has not left yet: modules, or its arguments."""
        return bool(self._connection.pending(0) or self._connection.pending(call.id))

    def stage_of(self, call: RemoteCall) -> str:
        """How far a call has come, in words."""
        if self.state == "connecting":
            return f"connecting: {self.stage}"
        if self._connection.pending(call.id):
            return "sending its arguments"
        return "running" if call.verdict != frames.NEVER_STARTED else "waiting for a worker"

    # ---- the service task

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Live: from the start of the tunnel to the end of its process."""
        with trio.CancelScope(shield=True):
            try:
                await self._live()
            except Exception as exc:
                logger.exception("%s: an error in trickle itself", self.name)
                self.lose(self._lost(f"an error in trickle itself: {exc!r}"))
            finally:
                if self.state != "lost":
                    self.lose(self._lost("the agent ended"))
                self.gone.set()

    async def _live(self) -> None:
        with self._scope:
            if self._begin_at > trio.current_time():
                self.begun.set()  # its own failures cost it its own time
                self._waits_for = "waiting to connect again"
                await trio.sleep_until(self._begin_at)
            await self._attempt_to_connect()
            while self._retry_after is not None:
                reason, delay = self._retry_after.reason, backoff(self._attempts)
                logger.info(
                    "%s: attempt %d of %d to connect failed (%s); the next one is in %.1f s",
                    *(self.name, self._attempts, self._most_attempts, reason, delay),
                )
                self._waits_for = f"waiting for attempt {self._attempts + 1}; the last one: {reason}"
                await trio.sleep(delay)
                await self._attempt_to_connect()

    async def _attempt_to_connect(self) -> None:
        """From the start of a tunnel to the end of its process, whether an agent answers or not."""
        self._retry_after = None
        try:
            await self._wait_for_turn()
            self._waits_for = None
            self._attempts += 1
            if self._attempts > 1:
                self._attempt = Handshake(self.tunnel, is_near=self._is_near)
            self._given_up = False
            self._decoder = MsgpackDecoder()  # the last agent may have died in the middle of its hello
            self._stderr_ended = trio.Event()
            self._connect_scope = trio.CancelScope()
            with trio.move_on_after(self.settings.connect_timeout) as starting:  # a relay may have no room for it
                process = await self._start_tunnel()
            if starting.cancelled_caught:
                self._given_up = True
                self._fail_to_connect()
            elif process is not None:
                with trio.CancelScope() as self._attempt_scope:
                    await self._live_with(process)
        finally:
            self._give_turn_back()

    @property
    def _most_attempts(self) -> int:
        return 1 + self.settings.connect_retries

    @property
    def _may_retry(self) -> bool:
        return self._attempts < self._most_attempts

    def _fail_to_connect(self) -> None:
        """This attempt is over, and so is this link, if it was the last."""
        if self._retry_after is not None or self.state != "connecting":
            return  # two tasks have noticed
        status = self._process.returncode if self._process is not None else None
        error = connect_error(
            self.name,
            stage=self.stage,
            exit_status=None if self._given_up else status,  # then it ended because of that
            stderr=self.stderr,
            noise=self._attempt.noise,
            refused=self._attempt.refused,
            misread=self._attempt.misread,
            timeout=self.settings.connect_timeout if self._given_up else None,
            attempts=self._attempts,
        )
        if error._is_passing and self._may_retry:
            self._retry_after = error
            self._attempt_scope.cancel()
        else:
            self.lose(error)

    async def _live_with(self, process: TunnelProcess) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, process)
                nursery.start_soon(self._read_stderr, process)
                nursery.start_soon(self._watch, process)
                self._output.start(nursery)
                self._nursery = nursery
                await self._read(process)
                await self._judge_end(process)
                await self._output.finish(EXIT_PATIENCE)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # bounded in there
                await self._end_process(process)

    async def _wait_for_turn(self) -> None:
        """Only so many hosts of a group connect at once."""
        if self._turns is not None:
            self._waits_for = "waiting for its turn"
            await self._turns.take()
            self._has_turn = True
        self.begun.set()

    def _give_turn_back(self) -> None:
        if self._turns is not None and self._has_turn:
            self._has_turn = False
            self._turns.give_back()

    async def _start_tunnel(self) -> TunnelProcess | None:
        if len(remote._path) >= MAX_DEPTH:
            path = " > ".join([*remote._path, self.name])
            message = f"{self.name}: too many hosts one behind the other ({path}); {MAX_DEPTH} is the most"
            self.lose(ConnectError(message, host=self.name, reason="depth", stage=self.stage))
            return None
        argv = self._attempt.command(self._argv)
        try:
            process = self._process = await self._start(argv, new_session=starts_new_session(self.tunnel))
        except OSError as exc:
            self.lose(cannot_run(self.name, argv[0], exc, self.stage))
            return None
        self._attempt.started()
        if self._expects_bulk:
            self.expect_bulk()
        return process

    @trio.lowlevel.enable_ki_protection
    async def _write(self, process: TunnelProcess) -> None:
        """The one task that writes to the pipe: what is asked for before the agent, its code, then whole frames."""
        try:
            while not self._attempt.may_boot:
                if answers := self._attempt.answers():
                    await process.stdin.send_all(answers)
                else:
                    await self._woken()
            first = self._attempt.boot(self._configuration())
            self._connection.bytes_sent += sum(map(len, first))
            if self._is_near and isinstance(process, LocalProcess):
                process.widen_to_boot()
            if self._may_retry:  # calls leave once: what went into an attempt that failed may have run
                await _send_pieces(process, first)
                await self.answered.wait()
                first = []
            while True:
                pieces = self._connection.data_to_send(trio.current_time())
                if first or pieces:
                    if self._attempt.is_armored:
                        data = b"".join(pieces)
                        pieces = [self._attempt.outgoing(data)]
                        self._connection.bytes_sent += len(pieces[0]) - len(data)
                    await _send_pieces(process, first + pieces)
                    first = []
                    self._has_written()
                else:
                    await self._woken()
                    if self._unsent:
                        await process.stdin.send_all(self._unsent)
                        self._unsent = b""
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader finds out why

    async def _woken(self) -> None:
        self._wake = trio.Event()
        self._waits = True
        await self._wake.wait()
        self._waits = False

    def _send(self) -> None:
        """Have what there is to say leave: at once, if nothing has since something was heard; else with what follows.

        So a call that comes alone costs no turn of the event loop, and many are written together.
        """
        if not (self._has_heard and self._waits and isinstance(self._process, LocalProcess)) or self._unsent:
            self._wake.set()
            return
        data = b"".join(self._connection.data_to_send(trio.current_time()))
        self._has_heard = False
        self._unsent = data[self._process.write_now(data) :]
        self._has_written()
        if self._unsent or self._connection.has_to_send:
            self._wake.set()

    def _has_written(self) -> None:
        for call in self._flowing:
            if call.room and self._connection.pending(call.id) <= CREDIT:
                call.room.unpark_all()
        self.tell_watchers()

    def tell_watchers(self) -> None:
        for watcher in list(self.watchers.values()):
            watcher()

    def _configuration(self) -> dict[str, object]:
        return {
            "name": self.name,
            "path": [*remote._path, self.name],
            "agent": secrets.token_hex(6),
            "heartbeat": self.settings.heartbeat,
            "lease": self.settings.lease,
            "workers": self.settings.workers,
            "max_payload": self.settings.max_payload,
            "grace_period": GRACE_PERIOD,
        }

    @trio.lowlevel.enable_ki_protection
    async def _read(self, process: TunnelProcess) -> None:
        """The one task that reads from the pipe, until its end or a broken rule."""
        receive_some = process.receive_some if isinstance(process, LocalProcess) else process.stdout.receive_some
        size = READ_SIZE
        piece = PIECE
        while True:
            try:
                data = await receive_some(size)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            size = READ_SIZE if len(data) < size else BULK_READ_SIZE
            self.heard_at = trio.current_time()
            try:
                heard = 0
                for start in range(0, len(data), piece):
                    if self._output.said >= self._output.many:
                        await self._output.give_turn()
                    heard += self._receive(bytes(data[start : start + piece]))
            except WireError as exc:
                self._break_off(str(exc))
                return
            # To cut it costs copies, which bulk does without: it comes in few frames, and mostly goes on so.
            piece = BULK_READ_SIZE if heard * PIECE <= FEW * len(data) else PIECE
            self._has_heard = not self._attempt.is_armored
            if self._connection.has_to_send:  # credits and acknowledgements
                self._send()

    def _break_off(self, how: str) -> None:
        """It has broken the rules."""
        message = f"{self.name}: it broke the rules of the wire ({how}); this host is closed"
        self.lose(ProtocolError(printable(message), host=self.name, stderr=self.stderr))

    def _receive(self, data: bytes) -> int:
        """How many frames it was that have been heard."""
        if self.state == "connecting":
            data = self._attempt.receive(data)
            if self._attempt.misread:
                self._connect_scope.cancel()
            if self._given_up:
                return 0
        heard = []
        if data:
            heard = self._connection.receive_data(data, trio.current_time())
            for frame in heard:
                self._deliver(frame)
            if heard:
                self._frame_at = self.heard_at
            elif self.heard_at > self._frame_at + 2 * self.settings.lease:
                raise WireError(f"bytes, and no whole frame for {self.heard_at - self._frame_at:.0f} s")
        return len(heard)

    def _deliver(self, frame: Frame) -> None:
        match frame:
            case End():
                call = self.calls[frame.id]
                if frame.verdict not in frames.VERDICTS:
                    raise WireError(f"verdict {frame.verdict}")
                if frame.verdict not in (frames.RETURNED, frames.RAISED):
                    call.pieces.clear()  # parts of a result that nobody wants any more
                if frame.payload:
                    call.add(frame.payload)
                call.detail = frame.detail
                self._finish(call, frame.verdict)
            case Data():
                call = self.calls[frame.id]
                if len(frame.payload) == frames.CHUNK and len(call.pieces) < 2:
                    self.expect_bulk()
                call.add(frame.payload)
                self._connection.used(frame.id, len(frame.payload))
            case Item():
                call = self.calls[frame.id]
                if call.inbox is None:
                    raise WireError(f"{frame!r} of a call in which nothing flows")
                self._connection.used(call.id, call.inbox.feed(frame))
                if len(call.inbox) or call.inbox.eof:
                    call.arrivals.unpark_all()
                if call.inbox.deaf:
                    call.room.unpark_all()
            case Output():
                self._output.take(frame, self._sink_of(frame.id or frame.of) or self.settings.output)
            case Record():
                self._output.log(frame)
            case Ask():
                self._take_question(frame.payload)
            case Note():
                self._count_word()
                logger.log(min(frame.level, logging.ERROR), "%s: %s", self.name, shown(frame.payload))
            case Hello():
                self._greeted(frame)
            case Ping():
                self._count_word()
            case _:
                raise WireError(f"{frame!r} is not for the agent to say")

    def _count_word(self) -> None:
        """It beats, or tells of a fork that failed: so often, and of each worker, and not without end."""
        self._words += 1
        if self._words > SPARE_WORDS:
            seconds = trio.current_time() - self._connected_at
            reasons = seconds * (2 / self.settings.heartbeat + 100) + 4 * self._newest
            if self._words > SPARE_WORDS + reasons:
                raise WireError(f"{self._words} heartbeats and notes, in {seconds:.0f} s")

    def _take_question(self, name: bytes) -> None:
        self._questions += 1
        if self._questions > MAX_QUESTIONS or len(name) > 4 * MAX_KEY:
            raise WireError(f"a question for a module that no agent of ours asks, after {self._questions} others")
        self._asked.append(name.decode("utf-8", "replace"))
        if len(self._asked) == 1:
            assert self._nursery is not None
            self._nursery.start_soon(self._answer_questions)

    def _sink_of(self, id: int) -> Sink | None:
        call = self.calls.get(id)
        return call.sink if call is not None else self._late_sinks.get(id)

    def _finish(self, call: RemoteCall, verdict: int | None) -> None:
        call.verdict = verdict
        self.calls.pop(call.id, None)
        if call.sink is not None and (call.unwanted or verdict != frames.RETURNED):  # its End overtakes its lines
            self._late_sinks[call.id] = call.sink
            if len(self._late_sinks) > LATE_SINKS:
                del self._late_sinks[next(iter(self._late_sinks))]
        if call.inbox is not None:
            self._flowing.discard(call)
            call.arrivals.unpark_all()
            call.room.unpark_all()
        if not call.is_session:
            self.verdicts[call.verdict_name] += 1
        call.finished.set()
        if verdict in (frames.KILLED, frames.UNKILLABLE, frames.DIED):
            logger.info("%s: call %d: %s", self.name, call.id, call.verdict_name)
        elif verdict not in (frames.RETURNED, frames.RAISED) and not call.is_session:
            logger.debug("%s: call %d: %s", self.name, call.id, call.verdict_name)
        if call.remote_stack:
            logger.info("%s: call %d was here at its deadline:\n%s", self.name, call.id, call.remote_stack)

    def _greeted(self, frame: Hello) -> None:
        try:
            about = dict(line.split("=", 1) for line in frame.payload.decode("utf-8", "replace").split("\n"))
            self.info = _info_from(about)
            self.lacks = frozenset(about["lacks"].split())
        except (ValueError, KeyError, TypeError) as exc:
            raise WireError(f"a hello that says {frame.payload[:100]!r}") from exc
        said, found = self.tunnel.python_version, self.info.python_version[:2]
        self.modules.sends_bytecode &= _is_like_ours(found)
        if said is not None and said != found:
            logger.warning("%s: python_version=%s was given, and its Python is %s; correct it", self.name, said, found)
        self.state = "connected"
        self._narrow()
        self._connected_at = trio.current_time()
        self._give_turn_back()
        self.answered.set()
        self.tell_watchers()
        logger.debug("%s: connected to %s, Python %s", self.name, self.info.hostname, self.info.python_version)

    @trio.lowlevel.enable_ki_protection
    async def _read_stderr(self, process: TunnelProcess) -> None:
        attempt = self._attempt
        try:
            async for data in process.stderr:
                was_preparing = attempt.preparing
                attempt.receive_stderr(bytes(data))
                if self.state == "connected":
                    if logger.isEnabledFor(logging.DEBUG):
                        logger.debug("%s: tunnel: %s", self.name, shown(bytes(data)).rstrip())
                elif attempt.refused or attempt.misread:
                    self._connect_scope.cancel()
                elif attempt.preparing != was_preparing:
                    self._set_connect_deadline()
                self._wake.set()  # a prompt may have come
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        attempt.end_of_stderr()
        self._stderr_ended.set()

    def _narrow(self) -> None:
        if isinstance(self._process, LocalProcess):
            self._process.narrow()

    def _set_connect_deadline(self) -> None:
        now = trio.current_time()
        self._connect_scope.deadline = math.inf if self._attempt.preparing else now + self.settings.connect_timeout

    @trio.lowlevel.enable_ki_protection
    async def _watch(self, process: TunnelProcess) -> None:
        """Beat, and give the agent up when it has been silent for too long."""
        with self._connect_scope:
            self._set_connect_deadline()
            with trio.move_on_after(TURN_HELD):
                await self.answered.wait()
            self._give_turn_back()  # to others, who are not to wait for one that perhaps never answers
            await self.answered.wait()
        if not self.answered.is_set():
            await self._ask_for_last_words(process)
            self._fail_to_connect()
            return
        while True:
            self._connection.control(Ping())
            self._send()
            silence_ends = self.heard_at + self.settings.lease
            await trio.sleep_until(min(trio.current_time() + self.settings.heartbeat, silence_ends))
            if self._is_silent():
                await trio.sleep(LAST_LOOK)  # a loop that was blocked reads what has arrived before it judges
                if self._is_silent():
                    self.lose(self._lost(f"nothing was heard from it for {self.settings.lease:g} s"))

    async def _ask_for_last_words(self, process: TunnelProcess) -> None:
        """Have it say the rest of why it failed: what took our bytes, or has lost some, at the end of its stdin."""
        self._given_up = True
        await trio.aclose_forcefully(process.stdin)
        with trio.move_on_after(LAST_WORDS):
            await self._stderr_ended.wait()

    def _is_silent(self) -> bool:
        return trio.current_time() >= self.heard_at + self.settings.lease  # the very sum that _watch sleeps until

    @trio.lowlevel.enable_ki_protection
    async def _answer_questions(self) -> None:
        """Serve modules that workers ask for.  Finding them reads files, so it is done in a thread."""
        while self._asked:
            async with self._modules_lock:
                try:
                    bundle = await trio.to_thread.run_sync(
                        self.modules.answer, self._asked[0], limiter=_module_thread()
                    )
                except ValueError as exc:
                    self.lose(ProtocolError(f"{self.name}: {exc}", host=self.name, stderr=self.stderr))
                    return
                self._send_modules(bundle)
            self._asked.popleft()

    async def _judge_end(self, process: TunnelProcess) -> None:
        """The pipe has ended: say why, from the exit status and the last words on stderr."""
        with trio.move_on_after(EXIT_PATIENCE):
            await process.wait()
        in_order = self.closing and process.returncode == 0
        with trio.move_on_after(LAST_LOOK if in_order else LAST_WORDS):
            await self._stderr_ended.wait()  # unless something still holds it, such as a ControlMaster
        if self.state == "connecting":
            self._fail_to_connect()
        elif in_order:
            self.state = "closed"
            for call in list(self.calls.values()):
                self._finish(call, None)
            self.answered.set()
        else:
            self.lose(self._lost(f"the connection ended (the tunnel's exit status is {process.returncode})"))

    async def _end_process(self, process: TunnelProcess) -> None:
        """Close the pipes, which ends the agent, and kill what is left of the tunnel."""
        # An agent must be let finish: it is the one that can kill all it started.
        hopeless = self._given_up or (self._attempt.marked and self._is_silent())
        self._narrow()
        patience = LAST_LOOK if hopeless else EXIT_PATIENCE if self._attempt.marked else BOOT_PATIENCE
        await end_process(process, patience, HOPELESS_PATIENCE if hopeless else EXIT_PATIENCE)
        if not self._attempt.marked:
            await self._hear_last_words(process)
        await trio.aclose_forcefully(process.stdout)
        await trio.aclose_forcefully(process.stderr)
        if self._attempt.prepared and self.state != "closed":
            await remove_leftovers(self.tunnel, self._attempt.nonce, self._start)

    async def _hear_last_words(self, process: TunnelProcess) -> None:
        """It may have said that it is about to leave something behind."""
        with trio.move_on_after(LAST_WORDS), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in process.stderr:
                self._attempt.receive_stderr(bytes(data))

    def _lost(self, what: str) -> HostLost:
        last = self.stderr.strip().splitlines()[-1:]
        said = f"; its last words: {printable(last[0])}" if last else ""
        return HostLost(f"{self.name}: {what}{said}", host=self.name, stderr=self.stderr)


async def _send_pieces(process: TunnelProcess, pieces: list[bytes]) -> None:
    if isinstance(process, LocalProcess):
        await process.send_pieces(pieces)
    else:
        await process.stdin.send_all(b"".join(pieces))


_module_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("modules")


def _module_thread() -> trio.CapacityLimiter:
    """One thread for all hosts: what they are sent is the same, so the first finds it and the others wait for that.

    It is not the program's own limiter, which may be busy with other things.
    """
    try:
        return _module_limiter.get()
    except LookupError:
        _module_limiter.set(trio.CapacityLimiter(1))
        return _module_limiter.get()


def _info_from(about: dict[str, str]) -> HostInfo:
    major, minor, micro = map(int, about["python_version"].split("."))
    texts = {
        name: printable(about[name][:LONGEST_FACT])
        for name in ("hostname", "user", "python", "implementation", "system", "machine")
    }
    return HostInfo(pid=int(about["pid"]), python_version=(major, minor, micro), **texts)
