"""A host, as users see it: its verbs, and how it is opened.

What becomes of their calls is _host_core.py's business.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import trio

from trickle._channels import RemoteChannel, Stream, open_flow
from trickle._exceptions import HostLost
from trickle._explanation import Explanation
from trickle._files import Local, Progress, TransferOptions, TransferResult, fetch, put
from trickle._host_core import CallRecord, HostCore, HostStatistics, SessionState, open_core
from trickle._link import HostInfo
from trickle._module_policy import ModulePolicy
from trickle._processes import Command, RemoteProcess, StrOrBytesPath, open_process, run_process
from trickle._reducing import pack_reducers
from trickle._relays import relay_through
from trickle._settings import UNSET, VERDICT_SLACK, CallOptions, OpenSettings, Sink, given, with_defaults_of
from trickle._stays_here import stays_here
from trickle._tunnels import as_tunnel
from trickle._turns import Turns
from trickle.abc import Tunnel

if TYPE_CHECKING:
    from trickle._group import Group

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


@stays_here
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

    @with_defaults_of(CallOptions)
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
          allow: classes of which results may hold instances, beside those of ``trickle.allow``; what errors carry
            is plain data all the same.
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
        cancelled while *fn* runs has the process killed.  Verbs that return no result of a function (streams, channels,
        commands, files) raise TypeError in this view.

        Calls raise what *fn* raises, and WorkerDied if its process ends by itself.

        Raises:
          Unsendable: *fn* can neither be imported nor had as source.
          TypeError: it cannot be called, or is async.
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
        core.users.sessions.add(state)
        given_up = False
        try:
            yield Session(state, self._options)
        except BaseException as exc:
            given_up = isinstance(exc, trio.Cancelled | KeyboardInterrupt)
            raise
        finally:
            state.closed = True
            core.sessions -= 1
            core.slots.release()
            link.cancel(state.pin, grace_period=self._options.grace_period, reason=None, by_deadline=False)
            core.users.sessions.discard(state)
            core.abandon_unneeded(given_up)
            if link.state != "connecting":  # else nothing runs in it, and nothing will
                with trio.move_on_after(self._options.grace_period + VERDICT_SLACK, shield=True):
                    await state.pin.finished.wait()
            if not state.pin.finished.is_set() and link.state != "connecting":
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
          Exception: as ``call``; what *fn* raises comes from ``receive()``, else from leaving the block, also when that
            was cancelled.
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
          Exception: as ``call``; what *fn* raises comes from ``receive()`` or ``result()``, or from leaving, also when
            the block was cancelled.
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
          capture_stdout: whether to return what it writes there; with stderr, up to *max_payload* bytes.
          capture_stderr: whether to return what it writes there.
          check: whether to raise when it fails.
          shell: whether *command* is a string for the shell over there.
          cwd: the directory to run it in.
          env: its environment, instead of the one over there.

        Raises:
          subprocess.CalledProcessError: its exit status is not 0; with ``host``, and the last of its stderr as a note.
          UnsafeResult: it has written more than is kept, and was ended for it.
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
        self._options.refuse_reducers(f"{self.name}: open_host")
        self._core.live_link(self._options.reconnect)  # raises, if it is closed or lost
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
        self._options.refuse_reducers(f"{self.name}: open_group")
        self._core.live_link(self._options.reconnect)  # raises, if it is closed or lost
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


@stays_here
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
      connect_timeout: seconds in which the agent must have answered; a tunnel that says nothing has up to 2 more for
        its last words, and up to 1 to end.
      heartbeat: seconds between signs of life, both ways.
      lease: seconds of silence after which each end takes the other for lost; ``math.inf`` for debuggers.
      workers: how many plain calls run at once; more of them wait.
      max_open: how many sessions, streams, channels and processes may be open at once; more of them wait to be opened,
        so one that is opened inside of another's block needs room for both.
      max_payload: bytes that the arguments or the result of one call may take, or one thing in a stream or channel.
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
