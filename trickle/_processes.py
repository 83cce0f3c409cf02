"""Commands on a host: the processes that run them and the streams of their pipes.

What goes to and fro is a channel's business (_channels.py); the far end is _agent/processes.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from trickle._channels import Flow, open_flow
from trickle._exceptions import HostLost, UnsafeResult, WorkerDied
from trickle._interrupts import one_interrupt
from trickle._settings import CallOptions
from trickle._stays_here import stays_here
from trickle._wire import frames
from trickle._wire.frames import CHUNK
from trickle._wire.items import PIPE_CREDIT, STDERR, STDIN, STDOUT

if TYPE_CHECKING:
    from trickle._host_core import CallRecord, HostCore

LAST_SIGNAL = 64  # of Linux, which has more of them than others
MESSAGE = 2 * CHUNK  # bytes, at the most: a chunk of output with what it is
GRANT = 64 * 1024  # bytes that are taken from a pipe before the other end is told so

StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Command: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"


class PipeIn(trio.abc.SendStream):
    """The stdin of a process on a host."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process
        self._credit = PIPE_CREDIT
        self._more = trio.Event()
        self._broken = False
        self._closed = False
        self._busy = False

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Give *data* to the process; returns when it is on its way, and waits while there is no room for it.

        Raises:
          trio.BrokenResourceError: the process does not read it any more, or has ended.
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this stream was closed here.
        """
        with self._alone():
            await trio.lowlevel.checkpoint()
            left = memoryview(data).cast("B")
            while True:
                self._check()
                part = left[: min(CHUNK, self._credit)]
                if part:
                    self._credit -= len(part)
                    left = left[len(part) :]
                    self._process._flow.post(("data", STDIN, bytes(part)))
                if not left:
                    return
                await self._wait_for_room()

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._alone():
            await trio.lowlevel.checkpoint()
            self._check()
            await self._wait_for_room()
            self._check()

    async def _wait_for_room(self) -> None:
        while self._credit <= 0 and not self._broken and not self._closed:
            self._more = trio.Event()
            await self._more.wait()

    @contextlib.contextmanager
    def _alone(self) -> Any:
        if self._busy:
            raise trio.BusyResourceError("another task is using this stream")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"{self._process._name}: this stream was closed here")
        if self._broken:
            raise self._process._broken("the process does not read its stdin any more")

    def _feed(self, count: int) -> bool:
        """Whether there can be room for so much more."""
        self._credit += count
        self._more.set()
        return count > 0 and self._credit <= PIPE_CREDIT

    def _break(self) -> None:
        self._broken = True
        self._more.set()

    async def aclose(self) -> None:
        """Close the stdin of the process, behind what was sent."""
        if not self._closed:
            self._closed = True
            self._more.set()
            self._process._flow.post(("close", STDIN, b""))
        await trio.lowlevel.checkpoint()


class PipeOut(trio.abc.ReceiveStream):
    """The stdout or stderr of a process on a host."""

    def __init__(self, process: RemoteProcess, number: int) -> None:
        self._process = process
        self._number = number
        self._data = bytearray()
        self._taken = 0
        self._came = trio.Event()
        self._ended = False
        self._closed = False
        self._busy = False

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the process has written; ``b""`` at the end.

        Raises:
          HostLost: the connection died.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this stream was closed here.
        """
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes={max_bytes!r}: it is a whole number")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r}: it is 1 or more")
        if self._busy:
            raise trio.BusyResourceError("another task is using this stream")
        self._busy = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._data and not self._ended and not self._closed and self._process._error is None:
                self._came = trio.Event()
                await self._came.wait()
        finally:
            self._busy = False
        if self._closed:
            raise trio.ClosedResourceError(f"{self._process._name}: this stream was closed here")
        if not self._data and not self._ended:
            raise self._process._broken("the process is gone")
        data = bytes(self._data[:max_bytes])
        del self._data[: len(data)]
        self._taken += len(data)
        if self._taken >= GRANT:
            self._process._flow.post(("more", self._number, self._taken))
            self._taken = 0
        return data

    def _feed(self, data: bytes) -> bool:
        """Whether there was room for so much."""
        if not data:
            self._ended = True
        elif not self._closed:
            self._data += data
        self._came.set()
        return self._closed or len(self._data) + self._taken <= PIPE_CREDIT

    async def aclose(self) -> None:
        """Close the pipe: a process that goes on writing to it is sent SIGPIPE."""
        if not self._closed:
            self._closed = True
            self._data.clear()
            self._came.set()
            self._process._flow.post(("close", self._number, b""))
        await trio.lowlevel.checkpoint()


@stays_here
class RemoteProcess:
    """A process on a host, from ``async with host.open_process(...)``; as far as it goes like ``trio.Process``.

    Attributes:
      args: the command.
      pid: its number over there.
      stdin: a SendStream, if ``stdin=subprocess.PIPE`` was given.
      stdout: a ReceiveStream, if ``stdout=subprocess.PIPE`` was given.
      stderr: a ReceiveStream, if ``stderr=subprocess.PIPE`` was given.
    """

    def __init__(self, name: str, flow: Flow, args: Command) -> None:
        self.args: Command = args
        self.pid: int = 0
        self.stdin: trio.abc.SendStream | None = None
        self.stdout: trio.abc.ReceiveStream | None = None
        self.stderr: trio.abc.ReceiveStream | None = None
        self._name = name
        self._flow = flow
        self._pipes: dict[int, PipeOut] = {}
        self._stdin: PipeIn | None = None
        self._returncode: int | None = None
        self._tail = b""
        self._error: Exception | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        status = "running" if self._returncode is None else f"exited with {self._returncode}"
        return f"<trickle.RemoteProcess {self.args!r} on {self._name!r}: {status}>"

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the number of the signal that ended it.

        None while it runs; and for good, if how it ended was never heard, since its host was lost.
        """
        return self._returncode

    async def wait(self) -> int:
        """Wait until the process has ended, and return its ``returncode``.

        Raises:
          HostLost: the connection died.
        """
        await self._ended.wait()
        if self._returncode is None:
            raise self._broken("the process is gone")
        return self._returncode

    def send_signal(self, sig: signal.Signals | int) -> None:
        """Send it a signal, if it still runs.

        Raises:
          ValueError: that is no signal's number.
        """
        if not isinstance(sig, int) or not 0 <= sig <= LAST_SIGNAL:
            raise ValueError(f"sig={sig!r}: the number of a signal is 1 to {LAST_SIGNAL}, or 0 for none")
        if self._returncode is None:
            self._flow.post(("signal", 0, int(sig)))

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _broken(self, what: str) -> Exception:
        error = self._error
        if isinstance(error, HostLost | WorkerDied):
            from trickle._host_core import again

            return again(error)
        if isinstance(error, trio.ClosedResourceError):  # of the host, by another task
            return trio.ClosedResourceError(*error.args)
        broken = trio.BrokenResourceError(f"{self._name}: {what}")
        broken.__cause__ = error
        return broken

    def _open_pipes(self, stdin: int | None, stdout: int | None, stderr: int | None) -> None:
        if stdin == subprocess.PIPE:
            self.stdin = self._stdin = PipeIn(self)
        if stdout == subprocess.PIPE:
            self.stdout = self._pipes[STDOUT] = PipeOut(self, STDOUT)
        if stderr == subprocess.PIPE:
            self.stderr = self._pipes[STDERR] = PipeOut(self, STDERR)

    @trio.lowlevel.enable_ki_protection
    async def _attend(self) -> None:
        """Take what the host says of this process, until there is nothing more."""
        try:
            while True:
                try:
                    message = await self._flow.receive()
                    if not _is_message(message) or not self._take(*message):
                        raise self._flow.protocol_error("said of a process what no agent of ours says")
                except trio.EndOfChannel:
                    break
        except trio.Cancelled:
            pass  # the block is left
        except Exception as exc:
            self._error = exc
        self._ended.set()
        for pipe in self._pipes.values():
            pipe._came.set()
        if self._stdin is not None:
            self._stdin._break()

    def _take(self, what: str, number: int, value: Any) -> bool:
        """Whether it can be so."""
        if what == "exit" and type(value) is bytes and self._returncode is None:
            self._returncode, self._tail = number, value
            self._ended.set()
        elif what == "data" and type(value) is bytes and number in self._pipes:
            return self._pipes[number]._feed(value)
        elif what == "more" and type(value) is int and self._stdin is not None:
            return self._stdin._feed(value)
        elif what == "broken" and self._stdin is not None:
            self._stdin._break()
        else:
            return False
        return True

    async def _take_rest(self) -> None:
        """Its block is over: learn how it ended, from what had come, or from how its call did."""
        call = self._flow.call
        with contextlib.suppress(Exception), trio.CancelScope(shield=True):
            while call.inbox and self._returncode is None:
                payload = self._flow.link.take_item(call)
                message = await self._flow.core.read_result(payload, self._flow.options)
                if not _is_message(message) or not self._take(*message):
                    break
        if self._returncode is None and call.verdict == frames.CANCELLED and 0 < call.detail <= 256 + LAST_SIGNAL + 1:
            status = call.detail - 1
            self._returncode = status if status < 256 else 256 - status
        elif self._returncode is None and call.verdict == frames.KILLED:
            self._returncode = -signal.SIGKILL  # with all that its worker had started


def _is_message(message: object) -> bool:
    return type(message) is tuple and [type(part) for part in message[:2]] == [str, int] and len(message) == 3


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_process(
    core: HostCore,
    options: CallOptions,
    command: Command,
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    shell: bool = False,
    cwd: StrOrBytesPath | None = None,
    env: Mapping[str, str] | None = None,
    keep_tail: bool = False,
    record: CallRecord | None = None,
) -> AsyncIterator[RemoteProcess]:
    """See Host.open_process."""
    for what, value in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        allowed = (None, subprocess.PIPE, subprocess.DEVNULL, *((subprocess.STDOUT,) if what == "stderr" else ()))
        if value not in allowed:
            raise ValueError(f"{what}={value!r}: over there it is None, subprocess.PIPE or subprocess.DEVNULL")
    arguments = {
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "shell": shell,
        "cwd": os.fspath(cwd) if cwd is not None else None,
        "env": dict(env) if env is not None else None,
        "keep_tail": keep_tail,
    }
    what_to_run = (words_of(command, shell), arguments)
    async with (
        contextlib.AsyncExitStack() as stack,
        open_flow(core, "process", len, what_to_run, {}, options.for_messages(MESSAGE), record=record) as flow,
    ):
        process = RemoteProcess(core.name, flow, command)
        started = await flow.receive()
        if not _is_message(started) or started[0] != "started":
            raise flow.protocol_error("said of a process what no agent of ours says")
        process.pid = started[1]
        process._open_pipes(stdin, stdout, stderr)
        flow.nursery.start_soon(process._attend)
        stack.push_async_callback(process._take_rest)  # when the flow is over
        yield process


def words_of(command: Command, shell: bool) -> Any:
    """What is to be run, as it goes there.

    Raises:
      TypeError: it is no such thing.
      ValueError: it is nothing.
    """
    if isinstance(command, str | bytes | os.PathLike):
        if not shell:
            raise TypeError(
                f"command={command!r}: with shell=False it is a sequence of words, such as ['ls', '-l']; with"
                " shell=True a string"
            )
        return os.fspath(command)
    if shell:
        raise TypeError(f"command={command!r}: with shell=True it is a string")
    try:
        words = [os.fspath(word) for word in command]
    except TypeError:
        raise TypeError(f"command={command!r}: it is a sequence of words, each a str, bytes or os.PathLike") from None
    if not words:
        raise ValueError("command=[]: its first word is the program")
    return words


def check_stdin(stdin: object) -> None:
    """Nothing, if a command may be given that.

    Raises:
      TypeError: it may not.
    """
    if not isinstance(stdin, bytes | bytearray | memoryview | trio.abc.ReceiveStream | None):
        raise TypeError(f"stdin={stdin!r}: it is bytes, a trio.abc.ReceiveStream, or None")


@trio.lowlevel.enable_ki_protection
async def run_process(
    core: HostCore,
    options: CallOptions,
    command: Command,
    *,
    stdin: bytes | bytearray | memoryview | trio.abc.ReceiveStream | None = b"",
    capture_stdout: bool = False,
    capture_stderr: bool = False,
    check: bool = True,
    shell: bool = False,
    cwd: StrOrBytesPath | None = None,
    env: Mapping[str, str] | None = None,
    record: CallRecord | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """See Host.run_process."""
    check_stdin(stdin)
    captured: dict[int, bytearray] = {}
    raised: BaseException | None = None

    @trio.lowlevel.enable_ki_protection
    async def capture(number: int, stream: trio.abc.ReceiveStream) -> None:
        nonlocal raised
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # which process.wait() raises too
            async for data in stream:
                size = sum(map(len, captured.values())) + len(data)
                if size > core.settings.max_payload:
                    raised = UnsafeResult(
                        f"{core.name}: {size} bytes or more of output are more than max_payload"
                        f" ({core.settings.max_payload}) lets run_process keep; the process was ended: read it as it"
                        " comes, with open_process, have the command write to a file and fetch that, or raise"
                        " max_payload in open_host",
                        host=core.name,
                    )
                    nursery.cancel_scope.cancel()
                    return
                captured[number] += data

    @trio.lowlevel.enable_ki_protection
    async def give(stream: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        nonlocal raised
        try:
            with scope, contextlib.suppress(trio.BrokenResourceError):  # a process need not read all of it
                async with stream:
                    if isinstance(stdin, trio.abc.ReceiveStream):
                        async for data in stdin:
                            await stream.send_all(data)
                    elif stdin is not None:
                        await stream.send_all(stdin)
        except Exception as exc:  # of the program's own stream
            raised = exc
            nursery.cancel_scope.cancel()

    async with open_process(
        core,
        options,
        command,
        stdin=None if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE if capture_stdout else None,
        stderr=subprocess.PIPE if capture_stderr else None,
        shell=shell,
        cwd=cwd,
        env=env,
        keep_tail=check,
        record=record,
    ) as process:
        with one_interrupt():
            async with trio.open_nursery() as nursery:
                giving = trio.CancelScope()
                if process.stdin is not None:
                    nursery.start_soon(give, process.stdin, giving)
                for number, stream in process._pipes.items():
                    captured[number] = bytearray()
                    nursery.start_soon(capture, number, stream)
                try:
                    await process.wait()
                except Exception as exc:
                    raised = raised or exc
                    nursery.cancel_scope.cancel()
                giving.cancel()
        if raised is not None:
            raise raised
    returncode = process.returncode
    assert returncode is not None
    stdout = bytes(captured[STDOUT]) if capture_stdout else None
    stderr = bytes(captured[STDERR]) if capture_stderr else None
    if check and returncode:
        error = subprocess.CalledProcessError(returncode, command, output=stdout, stderr=stderr)
        error.host = core.name  # type: ignore[attr-defined]
        tail = (stderr if stderr is not None else process._tail).decode("utf-8", "replace").splitlines()[-5:]
        error.add_note("\n".join([f"{core.name}: it said on stderr:", *tail]) if tail else f"on {core.name}")
        raise error
    return subprocess.CompletedProcess(command, returncode, stdout, stderr)
