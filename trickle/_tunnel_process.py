"""The process of a tunnel: started, held, and let go of in forks.  What goes through its pipes is _link.py's job."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import weakref
from collections.abc import Sequence
from typing import Protocol

import trio

from trickle._ssh_version import without_newer_options

EXIT_PATIENCE = 5.0  # seconds: an agent at the end of its stdin takes up to 2 to kill what it runs
# Bytes that a pipe of bulk holds: with the usual 64 KiB, half as much again of work goes into waiting.
WIDE, NARROW = 256 * 1024, 64 * 1024
# Processes: what one user's pipes hold in all has a limit, above which all new ones hold next to nothing.
MOST_WIDE = 32
MOST_PIECES = 64  # written at once without being put together: those of a batch of bulk are fewer


class TunnelProcess(Protocol):
    """What a link needs of the process that its tunnel runs."""

    @property
    def stdin(self) -> trio.abc.SendStream: ...

    @property
    def stdout(self) -> trio.abc.ReceiveStream: ...

    @property
    def stderr(self) -> trio.abc.ReceiveStream: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int:
        """Return its exit status, once it has ended."""

    def send_signal(self, number: int) -> None:
        """Send a signal to it and its process group."""


class StartTunnel(Protocol):
    """Run a tunnel's command."""

    async def __call__(self, argv: Sequence[str], *, new_session: bool) -> TunnelProcess:
        """Return the process, with pipes on all three sides; OSError if it cannot be run."""


class LocalProcess:
    """A process of this machine, in a session of its own."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert isinstance(process.stdin, trio.lowlevel.FdStream) and isinstance(process.stdout, trio.lowlevel.FdStream)
        self._process = process
        self._fds = process.stdin.fileno, process.stdout.fileno  # -1 when they have been closed
        self.stdin: trio.abc.SendStream = process.stdin
        self.stdout: trio.abc.ReceiveStream = process.stdout
        self.stderr: trio.abc.ReceiveStream = process.stderr
        _live.add(self)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # sudo, which ends with its stdin
            os.killpg(self._process.pid, number)
            if number == signal.SIGTERM:
                os.killpg(self._process.pid, signal.SIGCONT)  # one that was stopped does not see the other

    def write_now(self, data: bytes) -> int:
        """How many of these bytes stdin has taken at once.  If it is broken, 0: ``send_all`` says how."""
        try:
            return os.write(self._fds[0](), data)
        except OSError:
            return 0

    async def send_pieces(self, pieces: list[bytes]) -> None:
        """Have stdin take all that these are together; errors as those of its ``send_all``."""
        if len(pieces) > MOST_PIECES:
            await self.stdin.send_all(b"".join(pieces))
            return
        await trio.lowlevel.checkpoint()
        left: list[bytes | memoryview] = [piece for piece in pieces if piece]
        while left:
            try:
                sent = os.writev(self._fds[0](), left)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fds[0]())
                continue
            except OSError as exc:
                raise trio.BrokenResourceError from exc
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = memoryview(left[0])[sent:]

    async def receive_some(self, max_bytes: int) -> bytes:
        """As stdout's, but for its look whether something is there already: mostly nothing is."""
        while True:
            await trio.lowlevel.wait_readable(self._fds[1]())
            try:
                return os.read(self._fds[1](), max_bytes)
            except BlockingIOError:
                pass
            except OSError as exc:
                raise trio.BrokenResourceError from exc

    def widen(self) -> None:
        """Have the pipes hold more, for the bulk that is about to come; as far as this machine can and allows it."""
        if self not in _wide and _has_room(_wide):
            _wide.add(self)
            _resize(self.stdin, WIDE)
            _resize(self.stdout, WIDE)

    def widen_to_boot(self) -> None:
        """Have stdin take at once what starts an agent, until `narrow`."""
        if self not in _wide and _has_room(_booting):
            _booting.add(self)
            _resize(self.stdin, WIDE)

    def narrow(self) -> None:
        """The agent has started, or will not."""
        if self in _booting and (self in _wide or _resize(self.stdin, NARROW)):
            _booting.remove(self)


def _has_room(processes: weakref.WeakSet[LocalProcess]) -> bool:
    return len(processes) < MOST_WIDE or sum(process.returncode is None for process in processes) < MOST_WIDE


def _resize(stream: trio.abc.SendStream | trio.abc.ReceiveStream, size: int) -> bool:
    """Whether a pipe holds so much now; it cannot hold less than is in it."""
    fd = stream.fileno() if isinstance(stream, trio.lowlevel.FdStream) else -1
    if fd < 0 or not hasattr(fcntl, "F_SETPIPE_SZ"):
        return False  # closed, perhaps
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return False
    return True


_live: weakref.WeakSet[LocalProcess] = weakref.WeakSet()
_wide: weakref.WeakSet[LocalProcess] = weakref.WeakSet()
_booting: weakref.WeakSet[LocalProcess] = weakref.WeakSet()


async def start_tunnel(argv: Sequence[str], *, new_session: bool) -> TunnelProcess:
    """Run a tunnel's command with pipes on all three sides, in a session or just a process group of its own.

    Raises:
      OSError: it cannot be run.
    """
    process = await trio.lowlevel.open_process(
        await without_newer_options(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=new_session,  # so or so Ctrl-C reaches us first, and we end it in order
        process_group=None if new_session else 0,
        env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
    )
    return LocalProcess(process)


async def end_process(process: TunnelProcess, patience: float, last_patience: float = EXIT_PATIENCE) -> None:
    """Close its stdin, which ends what runs over there, and kill what has not ended *patience* seconds later.

    Args:
      last_patience: seconds between SIGTERM and SIGKILL.
    """
    await trio.aclose_forcefully(process.stdin)
    with trio.move_on_after(patience):
        await process.wait()
    for number, wait in ((signal.SIGTERM, last_patience), (signal.SIGKILL, EXIT_PATIENCE)):
        if process.returncode is None:
            process.send_signal(number)
            with trio.move_on_after(wait):
                await process.wait()


def _let_go_in_fork() -> None:
    """A fork of this program does not hold the agents' pipes: they must end with this process, not with the fork."""
    streams = [stream for process in _live for stream in (process.stdin, process.stdout, process.stderr)]
    fds = [stream.fileno() for stream in streams if isinstance(stream, trio.lowlevel.FdStream)]
    open_fds = [fd for fd in fds if fd >= 0]
    if not open_fds:
        return
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
    except OSError:  # there is no number left for it
        for fd in open_fds:
            os.close(fd)
        return
    for fd in open_fds:
        os.dup2(nothing, fd, inheritable=False)  # not closed: its number must not go to something else
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go_in_fork)
