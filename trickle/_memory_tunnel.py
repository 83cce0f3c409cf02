"""The tunnel of a host in memory: carries bytes between a link and a memory agent, and goes wrong as it is told to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import trio
import trio.testing

from trickle._memory_agent import MemoryAgent
from trickle._settings import is_count, is_number
from trickle.abc import Tunnel

TICK = 0.001  # seconds between looks at whether a host has gone
CONNECTION_LOST = 255  # the exit status of an ssh whose connection broke


class Fault:
    """Something that is to go wrong on a host in memory."""

    def _refuse(self, name: str, least: float, *, whole: bool = False, above: bool = False) -> None:
        """Nothing, if the field of that name has a number that means something."""
        value = getattr(self, name)
        is_right = is_count(value, int(least)) if whole else is_number(value) and value >= least
        if not is_right or (above and value == least):
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"{type(self).__name__}: {name}={value!r}: it is {kind} {'above' if above else 'from'} {least:g}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkLost(Fault):
    """The connection breaks: this program sees its end, and the agent, which sees it as well, kills all its work.

    Give one of the two.

    Args:
      at: seconds after the host was opened.
      after_bytes: when the agent has said so much, counted over all connections; the rest of a frame is cut off.
    """

    at: float | None = None
    after_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.at is None) == (self.after_bytes is None):
            raise ValueError("LinkLost: give at= or after_bytes=")
        if self.at is not None:
            self._refuse("at", 0)
        else:
            self._refuse("after_bytes", 0, whole=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Silence(Fault):
    """Nothing gets through in either direction, and neither end is told: a partition, or a link that stalls.

    If the silence ends before the leases do, what was held up arrives, and nothing is lost.

    Args:
      at: seconds after the host was opened.
      seconds: how long it lasts.
    """

    at: float
    seconds: float = math.inf

    def __post_init__(self) -> None:
        self._refuse("at", 0)
        self._refuse("seconds", 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Garbage(Fault):
    """Bytes that are no frame come out of the pipe: the host breaks the rules, and is closed.

    Args:
      at: seconds after the host was opened.
      data: the bytes.
    """

    at: float
    data: bytes = b"\xc1 this is not a frame\n"

    def __post_init__(self) -> None:
        self._refuse("at", 0)
        if not isinstance(self.data, bytes):
            raise TypeError(f"Garbage: data={self.data!r}: it is bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerKilled(Fault):
    """The process that a call runs in is killed by SIGKILL.

    A function in memory cannot be stopped dead: its ``finally`` blocks run, until their first checkpoint.

    Args:
      call: which of the calls that were started on this host, counted from 1.
      after: seconds after its start.  With 0 it does nothing at all; later, a plain function has already returned.
    """

    call: int
    after: float = 0.0

    def __post_init__(self) -> None:
        self._refuse("call", 1, whole=True)
        self._refuse("after", 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowLink(Fault):
    """The link moves no more than this, in each direction, the boot code (some 40 kB) included.

    Args:
      bytes_per_second: what it moves.
    """

    bytes_per_second: float

    def __post_init__(self) -> None:
        self._refuse("bytes_per_second", 0, above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unreachable(Fault):
    """The tunnel's command ends before any agent has answered.

    Args:
      stderr: its last words, from which ConnectError finds the reason.
      exit_status: its exit status.
      times: how many attempts fail so; later ones (with ``reconnect=True``) succeed.
    """

    stderr: str = "ssh: connect to host memory port 22: Connection refused\n"
    exit_status: int = 255
    times: int = 1

    def __post_init__(self) -> None:
        self._refuse("times", 1, whole=True)
        if not isinstance(self.stderr, str):
            raise TypeError(f"Unreachable: stderr={self.stderr!r}: it is a str")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryTunnel(Tunnel):
    """How to reach a host in memory."""

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command itself: nothing runs it."""
        return tuple(argv)


class Memory:
    """All of one host in memory: its tunnels, one after the other, their agents, and what is to go wrong."""

    def __init__(self, nursery: trio.Nursery, faults: Sequence[Fault]) -> None:
        self._nursery = nursery
        self._wire: Wire | None = None
        self._wires: list[Wire] = []
        self._opened_at = trio.current_time()
        self._calls = 0
        self._said = 0  # bytes, by the agents
        self._attempts = 0
        self._faults = faults
        self._watching: list[trio.CancelScope] = []
        for fault in faults:
            if isinstance(fault, Silence | Garbage) or (isinstance(fault, LinkLost) and fault.at is not None):
                nursery.start_soon(self._strike_in_time, fault)

    async def start(self, argv: Sequence[str], *, new_session: bool) -> Wire:
        """Start a tunnel with an agent at its end."""
        await trio.lowlevel.checkpoint()
        wire = self._wire = Wire(self._nursery, self)
        self._wires.append(wire)
        self._attempts += 1
        for fault in self._faults:
            if isinstance(fault, Unreachable) and self._attempts <= fault.times:
                await wire.end(fault.exit_status, fault.stderr.encode())
                return wire
        wire.start()
        return wire

    async def end(self) -> None:
        """End every agent, as SIGKILL would, and return when nothing of this host runs."""
        with trio.CancelScope(shield=True):
            for scope in self._watching:
                scope.cancel()
            for wire in self._wires:
                wire.stop()
            while self._nursery.child_tasks:  # noqa: ASYNC110 (tasks say nothing when they end)
                await trio.sleep(TICK)

    # ---- what goes wrong

    @trio.lowlevel.enable_ki_protection
    async def _strike_in_time(self, fault: Silence | Garbage | LinkLost) -> None:
        assert fault.at is not None
        with trio.CancelScope(shield=True) as scope:
            self._watching.append(scope)
            await trio.sleep_until(self._opened_at + fault.at)
            wire = self._wire
            if wire is None:
                return
            match fault:
                case LinkLost():
                    await wire.end(CONNECTION_LOST, b"the connection was lost\n")
                case Garbage():
                    await wire.inject(fault.data)
                case Silence():
                    wire.fall_silent()
                    await trio.sleep(fault.seconds)
                    wire.be_heard()

    def seconds_to_live(self) -> float:
        """What the worker of the next call has; see WorkerKilled."""
        self._calls += 1
        lives = [fault.after for fault in self._faults if isinstance(fault, WorkerKilled) and fault.call == self._calls]
        return min(lives, default=math.inf)

    def until_cut(self, size: int) -> int | None:
        """How many of the next *size* bytes that an agent says get through before the link is lost; None for all."""
        before, self._said = self._said, self._said + size
        for fault in self._faults:
            at = fault.after_bytes if isinstance(fault, LinkLost) else None
            if at is not None and before <= at < self._said:
                self._said = at + 1  # it strikes once
                return at - before
        return None

    @property
    def bytes_per_second(self) -> float:
        """What the link moves in each direction."""
        return min((fault.bytes_per_second for fault in self._faults if isinstance(fault, SlowLink)), default=math.inf)


class Wire:
    """One tunnel, as a link sees its process, with an agent at the other end."""

    def __init__(self, nursery: trio.Nursery, memory: Memory) -> None:
        pair = trio.testing.memory_stream_one_way_pair
        self.stdin: trio.abc.SendStream
        self.stdout: trio.abc.ReceiveStream
        self.stderr: trio.abc.ReceiveStream
        self.stdin, self._from_controller = pair()
        self._to_agent, agent_stdin = pair()
        agent_stdout, self._from_agent = pair()
        self._to_controller, self.stdout = pair()
        self._to_stderr, self.stderr = pair()
        self.returncode: int | None = None
        self.agent = MemoryAgent(agent_stdin, agent_stdout, nursery, memory.seconds_to_live)
        self._agent_stdout = agent_stdout
        self._memory = memory
        self._nursery = nursery
        self._carrying = trio.CancelScope()
        self._ended = trio.Event()
        self._audible = trio.Event()
        self._audible.set()
        self._silences = 0
        self._sending = trio.Lock()
        self._agent_ended = trio.Event()
        self._status = 0

    # ---- what a link asks for

    async def wait(self) -> int:
        """Return its exit status, once it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Kill the tunnel.  The agent finds out from the end of its stdin, unless nothing gets through."""
        self._nursery.start_soon(self.end, -number, b"")

    # ---- its life

    def start(self) -> None:
        """Have an agent at the other end, and carry what the two ends say."""
        self._nursery.start_soon(self._run_agent)
        self._nursery.start_soon(self._carry)

    def stop(self) -> None:
        """The host is closed: nothing of it may go on."""
        self.agent.stop()
        self._to_agent.close()  # it may wait for the rest of its code
        self._audible.set()
        self._carrying.cancel()

    @trio.lowlevel.enable_ki_protection
    async def end(self, status: int, last_words: bytes) -> None:
        """End this tunnel: both ends see that, unless nothing gets through."""
        with trio.CancelScope(shield=True):
            if self.returncode is not None:
                return
            self.returncode = status
            await self._say(last_words)
            await self._to_controller.aclose()
            if self._audible.is_set():
                await self._to_agent.aclose()
                self._carrying.cancel()
            self._ended.set()

    async def _say(self, last_words: bytes) -> None:
        if last_words:
            await self._to_stderr.send_all(last_words)
        await self._to_stderr.aclose()

    @trio.lowlevel.enable_ki_protection
    async def _run_agent(self) -> None:
        try:
            self._status = await self.agent.run()
        finally:
            self._agent_ended.set()
            with trio.CancelScope(shield=True):
                await self._agent_stdout.aclose()

    @trio.lowlevel.enable_ki_protection
    async def _carry(self) -> None:
        with trio.CancelScope(shield=True):
            with self._carrying:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_to_agent)
                    await self._carry_to_controller()
                    nursery.cancel_scope.cancel()
            await self._agent_ended.wait()
            await self.end(self._status, self.agent.last_words)

    @trio.lowlevel.enable_ki_protection
    async def _carry_to_agent(self) -> None:
        async for data in self._from_controller:
            await self._delay(len(data))
            await self._deliver(self._to_agent, bytes(data))
        await self._audible.wait()
        await self._to_agent.aclose()

    async def _carry_to_controller(self) -> None:
        async for data in self._from_agent:
            await self._delay(len(data))
            cut = self._memory.until_cut(len(data))
            await self._deliver(self._to_controller, bytes(data[:cut]))
            if cut is not None:
                await self.end(CONNECTION_LOST, b"the connection was lost\n")
        await self._audible.wait()

    async def _delay(self, size: int) -> None:
        await trio.sleep(size / self._memory.bytes_per_second)
        await self._audible.wait()

    async def _deliver(self, stream: trio.abc.SendStream, data: bytes) -> None:
        try:
            if data:
                async with self._sending:
                    await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # that end is gone

    # ---- faults

    async def inject(self, data: bytes) -> None:
        """Bytes for the controller that the agent has not said."""
        await self._deliver(self._to_controller, data)

    def fall_silent(self) -> None:
        """From now on nothing gets through."""
        self._silences += 1
        if self._silences == 1:
            self._audible = trio.Event()

    def be_heard(self) -> None:
        """What was held up arrives, unless another silence goes on."""
        self._silences -= 1
        if not self._silences:
            self._audible.set()
