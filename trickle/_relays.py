"""Start a tunnel on a host instead of here: that host is then a relay for what is beyond it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import trio

from trickle import _processes
from trickle._exceptions import ConnectError, RemoteError, Unsendable, WorkerDied
from trickle._processes import RemoteProcess
from trickle._settings import CallOptions
from trickle._tunnel_process import TunnelProcess

if TYPE_CHECKING:
    from trickle._host_core import HostCore

LOST = 255  # the exit status of a tunnel whose relay is gone, as ssh's when its connection is


class RelayedProcess:
    """A tunnel's process on a relay, as a link sees it.  It lives until its pipes have been closed."""

    def __init__(self, process: RemoteProcess) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._lost: trio.BrokenResourceError | trio.ClosedResourceError | None = None
        self.stdin: trio.abc.SendStream = process.stdin
        self.stdout: trio.abc.ReceiveStream = process.stdout
        self.stderr: trio.abc.ReceiveStream = _Stderr(self, process.stderr)
        self.let_go: trio.Event = trio.Event()

    @property
    def returncode(self) -> int | None:
        """The exit status over there; 255 when the relay is lost."""
        return LOST if self._lost is not None else self._process.returncode

    async def wait(self) -> int:
        """Return it, once there is one."""
        try:
            return await self._process.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:  # the relay is lost, or was closed
            self._lost = exc
            return LOST

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)


class _Stderr(trio.abc.ReceiveStream):
    """The tunnel's stderr, whose last words are the relay's when that is lost."""

    def __init__(self, process: RelayedProcess, stream: trio.abc.ReceiveStream) -> None:
        self._process = process
        self._stream = stream
        self._told = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            return await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._told:
                return b""
            self._told = True
            return f"lost with its relay {exc}\n".encode()

    async def aclose(self) -> None:
        """The last that a link closes."""
        self._process.let_go.set()
        await self._stream.aclose()


class Relay:
    """Starts tunnels on one host, for the time of a block."""

    def __init__(self, core: HostCore, options: CallOptions, nursery: trio.Nursery) -> None:
        self._core = core
        self._options = options.replace(env={**(options.env or {}), "SSH_ASKPASS_REQUIRE": "never"})
        self._nursery = nursery

    async def start(self, argv: Sequence[str], *, new_session: bool) -> TunnelProcess:
        """Run a tunnel's command over there.

        Raises:
          OSError: it cannot be run, or the relay is lost, or in memory.
        """
        try:
            process: RelayedProcess = await self._nursery.start(self._hold, argv)
        except OSError:  # those from over there are RemoteErrors as well
            raise
        except (
            *(ConnectError, trio.BrokenResourceError, trio.ClosedResourceError, NotImplementedError),
            *(RemoteError, Unsendable, WorkerDied),
        ) as exc:
            failed = OSError(0, str(exc))
            failed.host = self._core.name  # type: ignore[attr-defined]  # as errors from over there have it
            raise failed from exc
        return process

    @trio.lowlevel.enable_ki_protection
    async def _hold(self, argv: Sequence[str], task_status: trio.TaskStatus[RelayedProcess]) -> None:
        pipe = subprocess.PIPE
        process: RelayedProcess | None = None
        held = _processes.open_process(self._core, self._options, argv, stdin=pipe, stdout=pipe, stderr=pipe)
        with trio.CancelScope() as scope:
            try:
                async with held as remote:
                    await trio.lowlevel.checkpoint_if_cancelled()  # else nobody would hear that it has started
                    scope.shield = True  # the link that it belongs to lets go of it, and is bounded
                    process = RelayedProcess(remote)
                    task_status.started(process)
                    await process.let_go.wait()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                if process is None:
                    raise  # to start; later, the link hears of it from the pipes


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def relay_through(core: HostCore, options: CallOptions) -> AsyncIterator[Relay]:
    """What starts tunnels on a host, until all of them have ended."""
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield Relay(core, options, nursery)
        except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
            raised = exc
    if raised is not None:
        raise raised
