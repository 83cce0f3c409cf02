"""A group of hosts: the same verbs as a host, for many at once.  One host's failure never costs another's result.

How a verb runs on many hosts is _fan_out.py's job, and how items are spread over them _spread.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import subprocess
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, ParamSpec, TypeVar, overload

import trio

from trickle._channels import Stream, open_flow
from trickle._descriptors import make_room_for
from trickle._exceptions import ConnectError, HostLost
from trickle._fan_out import FanOut, Give, Outcome, Verb, channel_of
from trickle._files import Progress, TransferOptions, TransferResult, fetch, put
from trickle._host import Host
from trickle._host_core import CallRecord, HostCore, HostStatistics, Packed
from trickle._host_names import as_file_name, matching
from trickle._interrupts import one_interrupt
from trickle._module_policy import ModulePolicy
from trickle._processes import Command, StrOrBytesPath, check_stdin, run_process, words_of
from trickle._progress import Board, HostProgress
from trickle._reducing import Reducing, pack_reducers
from trickle._results import Failure, Results, Success
from trickle._settings import UNSET, CallOptions, GroupOptions, OpenSettings, Sink, given, with_defaults_of
from trickle._spread import MapResult, Spread
from trickle._stays_here import stays_here
from trickle._tunnel_process import StartTunnel, start_tunnel
from trickle._tunnels import as_tunnel
from trickle._turns import Turns
from trickle.abc import Tunnel

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("trickle")

GROUP_OPTIONS = frozenset(field.name for field in dataclasses.fields(GroupOptions))


@stays_here
class Group(Mapping[str, Host]):
    """Many live hosts, from ``async with open_group(...)``: a mapping from name to host, reachable or not.

    Slices (``group[:10]``), ``select("web*")``, ``filter`` and the set operations ``|``, ``&``, ``-`` and ``^`` give
    groups of some of the hosts.  These share the live hosts, in the left operand's order and with its options, and own
    nothing.
    """

    def __init__(self, hosts: Mapping[str, Host], options: CallOptions, group_options: GroupOptions) -> None:
        self._hosts = dict(hosts)
        self._options = options
        self._group_options = group_options

    # ---- the mapping, and parts of it

    @overload
    def __getitem__(self, name: str, /) -> Host: ...

    @overload
    def __getitem__(self, part: slice, /) -> Group: ...

    def __getitem__(self, key: str | slice, /) -> Host | Group:
        if isinstance(key, slice):
            return self._of({name: self._hosts[name] for name in list(self._hosts)[key]})
        return self._hosts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def __repr__(self) -> str:
        return f"<trickle.Group of {len(self)} hosts, {len(self.unreachable)} of them unreachable>"

    def __or__(self, other: Group) -> Group:
        return self._combined(other, lambda here, there: True)

    def __and__(self, other: Group) -> Group:
        return self._combined(other, lambda here, there: here and there)

    def __sub__(self, other: Group) -> Group:
        return self._combined(other, lambda here, there: not there)

    def __xor__(self, other: Group) -> Group:
        return self._combined(other, lambda here, there: here is not there)

    def _combined(self, other: Group, is_in: Callable[[bool, bool], bool]) -> Group:
        if not isinstance(other, Group):
            return NotImplemented
        for name in self._hosts.keys() & other._hosts.keys():
            if self._hosts[name]._core is not other._hosts[name]._core:
                raise ValueError(f"{name!r} is one host in one of these groups, and another in the other")
        hosts = dict(self._hosts)
        for name, host in other._hosts.items():
            hosts.setdefault(name, Host(host._core, self._options))
        return self._of({name: host for name, host in hosts.items() if is_in(name in self, name in other)})

    def _of(self, hosts: Mapping[str, Host]) -> Group:
        return Group(hosts, self._options, self._group_options)

    def select(self, *patterns: str) -> Group:
        """The hosts whose names match one of these patterns, in this group's order.

        A pattern is a name, or stands for many as in ``trickle.hosts``, and may have ``*`` and ``?`` besides.

        Raises:
          KeyError: no host has a name that was given without ``*`` and ``?``.
        """
        found = matching(self._hosts, patterns)
        return self._of({name: host for name, host in self._hosts.items() if name in found})

    # ---- how the hosts do

    @property
    def unreachable(self) -> Mapping[str, ConnectError | HostLost]:
        """The hosts that cannot be called now, and why; those that were closed here are not among them."""
        errors = ((name, host._core.error) for name, host in self._hosts.items())
        return {name: error for name, error in errors if error is not None}

    async def wait_connected(self) -> None:
        """Wait until each host has answered or failed to.  Never raises: see ``unreachable``.

        With ``options(reconnect=True)``, hosts that were lost are connected anew.
        """

        board = Board(self._hosts)

        @trio.lowlevel.enable_ki_protection
        async def wait_for(host: Host) -> None:
            record = CallRecord()
            with contextlib.suppress(ConnectError, HostLost, trio.ClosedResourceError):
                link = record.link = host._core.live_link(host._options.reconnect)
                board.begin(host.name, link, record)
                try:
                    await host._core.wait_connected(link)
                finally:
                    board.leave(host.name, link, record)

        with one_interrupt():
            async with board.logged() as nursery:
                for host in self._hosts.values():
                    nursery.start_soon(wait_for, host)

    def statistics(self) -> Mapping[str, HostStatistics]:
        """How each host does now: a verb waits for those that have calls running or waiting."""
        return {name: host.statistics() for name, host in self._hosts.items()}

    # ---- verbs.  Each says what it does on one host; _on_each and _as_completed do that on all, by the options.

    @overload
    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Results[T]: ...

    @overload
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Results[T]: ...

    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Results[Any]:
        """Run ``fn(*args, **kwargs)`` on every host, and return a result or an error for each.

        What a call on one host would raise is that host's Failure.  Only cancellation leaves this without results;
        ``options(timeout=)`` keeps those that came.

        Raises:
          ValueError: ``options(need=)`` asks for more hosts than there are.
        """
        return await self._on_each(_calling(fn, args, kwargs))

    @overload
    def as_completed(
        self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[tuple[str, Success[T] | Failure]]]: ...

    @overload
    def as_completed(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[tuple[str, Success[T] | Failure]]]: ...

    def as_completed(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[tuple[str, Success[Any] | Failure]]]:
        """The same, with each host's name and outcome as it comes: ``async with`` gives a channel of them.

        Every host comes once, unreachable ones too.  Leaving the block cancels the calls that still run, and waits for
        their verdicts.  A host keeps its turn (``options(limit=)``) until its outcome was received.

        Raises:
          ValueError: on entering, as ``call``.
        """
        return self._as_completed(_calling(fn, args, kwargs))

    @overload
    def map(
        self, fn: Callable[[A], Awaitable[T]], items: Iterable[A] | AsyncIterable[A]
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[MapResult[A, T]]]: ...

    @overload
    def map(
        self, fn: Callable[[A], T], items: Iterable[A] | AsyncIterable[A]
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[MapResult[A, T]]]: ...

    def map(
        self, fn: Callable[[Any], Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[MapResult[Any, Any]]]:
        """Run ``fn(item)`` once for each item, on whatever host is free: ``async with`` gives a channel of MapResults.

        A host takes its next item when the outcome of the one before was received.  Items are taken from *items*, which
        may be endless or asynchronous, at most one ahead of that.  Outcomes come in the order in which they are found.
        Leaving the block cancels the calls that still run, and waits for their verdicts.

        A host that cannot be reached takes no items; with ``reconnect=True`` five attempts in a row must have failed,
        or one for a reason that does not go away by itself.
        If a host is lost, an item that had not been sent there goes to another; one that may have run is a
        ``Failure(HostLost)``, unless the calls are ``repeatable``, and still if three hosts were lost under it.  An
        asynchronous generator of items is closed at the end.  When no host is left, the items that are fail with
        the last one's error.

        The options count items here: ``need``, ``max_failures`` and ``on_failure`` those that succeed or fail, after
        which the ones that run are ``Failure(NotNeeded)``, and no more are taken; ``retries`` is for each item, and
        ``timeout`` for each attempt at one, which begins on a host that is connected, and may be tried again like any
        that failed; ``limit`` is how many run at once, those of ``hedge`` included.

        Raises:
          ValueError: on entering: there are no hosts; ``options(need=)`` asks for more items than there are, or for a
            share of items without a ``len()``.
          Exception: on leaving: what iterating over *items* raised.
        """

        def verb(item: Any) -> Verb[Any]:
            return _calling(fn, (item,), {})

        return channel_of(lambda give: Spread(self._hosts, verb, items, self._group_options, give).run)

    def stream(
        self, fn: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[tuple[str, Success[T] | Failure]]]:
        """What ``fn(*args, **kwargs)`` yields on every host, each with its host's name, as it comes.

        A Failure is the last of its host.  Leaving the block closes the generators that still run.  With
        ``options(retries=)`` a generator that is tried again begins anew: what it had yielded before comes again.
        The time that the receiver takes does not count towards ``options(timeout=)``.
        """
        self._options.refuse_reducers("stream")

        def prepare(give: Give[tuple[str, Success[Any] | Failure]]) -> Callable[[], Awaitable[None]]:
            async def stream(host: Host, record: CallRecord) -> None:
                async with open_flow(host._core, "stream", fn, args, kwargs, host._options, record=record) as flow:
                    async for value in Stream[Any](flow):
                        with record.paused():  # the receiver's time is not the host's
                            await give((host.name, Success(value)))

            async def end(outcome: tuple[str, Outcome[None]]) -> None:
                if isinstance(outcome[1], Failure):
                    await give((outcome[0], outcome[1]))

            return FanOut(self._hosts, stream, self._group_options, end).run

        return channel_of(prepare)

    @trio.lowlevel.enable_ki_protection
    async def run_process(
        self,
        command: Command,
        *,
        stdin: bytes | bytearray | memoryview | None = b"",
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        check: bool = True,
        shell: bool = False,
        cwd: StrOrBytesPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Results[subprocess.CompletedProcess[bytes]]:
        """Run a command on every host, and return how it ended on each; see ``Host.run_process``."""
        self._options.refuse_reducers("run_process")
        if isinstance(stdin, trio.abc.ReceiveStream):
            raise TypeError(f"stdin={stdin!r}: for a group it is bytes or None; a stream can be read only once")
        check_stdin(stdin)
        words_of(command, shell)

        async def run(host: Host, record: CallRecord) -> subprocess.CompletedProcess[bytes]:
            return await run_process(
                host._core,
                host._options,
                command,
                stdin=stdin,
                capture_stdout=capture_stdout,
                capture_stderr=capture_stderr,
                check=check,
                shell=shell,
                cwd=cwd,
                env=env,
                record=record,
            )

        return await self._on_each(run)

    @trio.lowlevel.enable_ki_protection
    async def put(
        self,
        local: str | os.PathLike[str] | os.PathLike[bytes] | bytes,
        remote: StrOrBytesPath,
        *,
        mode: int | None = None,
        preserve: bool = True,
        fsync: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Results[TransferResult]:
        """Write a file or a directory to every host; see ``Host.put``."""
        self._options.refuse_reducers("put")
        if not isinstance(local, str | bytes | os.PathLike):
            raise TypeError(f"local={local!r}: for a group it is a path or bytes; the rest can be read only once")
        how = TransferOptions(mode, preserve, fsync, resume, progress)

        async def write(host: Host, record: CallRecord) -> TransferResult:
            return await put(host._core, host._options, local, remote, how, record)

        return await self._on_each(write)

    @trio.lowlevel.enable_ki_protection
    async def fetch(
        self,
        remote: StrOrBytesPath,
        local: str | os.PathLike[str],
        *,
        mode: int | None = None,
        preserve: bool = True,
        fsync: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
        max_size: int | None = None,
    ) -> Results[TransferResult]:
        """Bring a file or a directory from every host; see ``Host.fetch``.

        Args:
          local: the path, in which ``{host}`` stands for each host's name; ``/`` and ``%`` in one become ``%2F`` and
            ``%25``, as in URLs, so that no two are the same.

        Raises:
          ValueError: there is no ``{host}`` in *local*: each host's file would replace the one before.
        """
        self._options.refuse_reducers("fetch")
        where = os.fspath(local)
        if "{host}" not in where:
            raise ValueError(f"local={where!r}: put {{host}} where each host's name is to stand")
        how = TransferOptions(mode, preserve, fsync, resume, progress, max_size)

        async def bring(host: Host, record: CallRecord) -> TransferResult:
            path = where.replace("{host}", as_file_name(host.name))
            return await fetch(host._core, host._options, remote, path, how, record)

        return await self._on_each(bring)

    async def filter(self, predicate: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Group:
        """The hosts on which ``predicate(*args, **kwargs)`` is true.

        Hosts that fail to say are left out, with a warning in the log.
        """
        results: Results[object] = await self.call(predicate, *args, **kwargs)
        for error in results.failures().values():
            logger.warning("left out of a group: %s", next(iter(str(error).splitlines()), repr(error)))
        true = {name for name, answer in results.successful().items() if answer}
        return self._of({name: host for name, host in self._hosts.items() if name in true})

    async def _on_each(self, verb: Verb[T]) -> Results[T]:
        results: dict[str, Outcome[T]] = dict.fromkeys(self._hosts, Failure(RuntimeError("not begun")))

        async def keep(outcome: tuple[str, Outcome[T]]) -> None:
            name, results[name] = outcome

        with one_interrupt():
            await FanOut(self._hosts, verb, self._group_options, keep).run()
        return Results(results)

    def _as_completed(
        self, verb: Verb[T]
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[tuple[str, Success[T] | Failure]]]:
        return channel_of(lambda give: FanOut(self._hosts, verb, self._group_options, give).run)

    # ---- other views

    def reducing(self, fn: Callable[[T], R]) -> Group:
        """Another view of this group, whose calls return, for each host, ``fn(result)``, computed in another process.

        As ``Host.reducing``: there are as many of these processes as this machine has CPUs.

        Raises:
          Unsendable: *fn* can neither be imported nor had as source.
          TypeError: it cannot be called, or is async.
        """
        options = self._options.replace(reducers=(*self._options.reducers, fn))
        pack_reducers(options, "reducing")  # so that it fails here, and not after the work has been done
        return self._with(options, self._group_options)

    @with_defaults_of(CallOptions, GroupOptions)
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
        timeout: float = UNSET,
        limit: int | None = UNSET,
        need: int | float | None = UNSET,
        on_failure: Literal["continue", "cancel"] = UNSET,
        max_failures: int | None = UNSET,
        repeatable: bool = UNSET,
        retries: int = UNSET,
        hedge: float | None = UNSET,
        progress: Callable[[HostProgress], object] | None = UNSET,
    ) -> Group:
        """Another view of this group, whose verbs behave as given; what is not given stays as it is here.

        Hosts that the group stops itself are ``Failure(NotNeeded)``, and have not failed.

        Args:
          timeout: seconds for each host, from its turn on, with connecting and all attempts.  A host that takes longer
            is a ``Failure(CallTimeout)``, and what it was doing has been stopped.
          limit: how many hosts at once; the next begins when one has ended.  All at once by default.
          need: how many successes are enough: a whole number, or a share in a float up to 1.0.  The other hosts are
            stopped then.  When so many cannot come any more, the rest goes on.
          on_failure: ``"cancel"`` stops the other hosts at the first failure, ``"continue"`` does not.
          max_failures: the other hosts are stopped when more than this many have failed, whatever *on_failure* says.
          repeatable: these calls are safe to run more than once, which *retries* and *hedge* need; and an item of
            ``map`` whose host was lost goes to another.
          retries: how often a call that failed is tried again: where the function raised, the command failed, its
            process died, or the connection was lost, or not to be had for a reason that may go away by itself, and
            ``reconnect=True`` brings it back; after a delay that grows, up to 30 s, and is random in part.
          hedge: seconds after which ``map`` gives an item to another free host as well.  The first answer counts, and
            the other call is stopped: it is over by the end of the block, and mostly when the answer comes, which waits
            for that up to the same number of seconds again.
          progress: is called with a HostProgress when a host comes to another state; see also ``trickle.live_view``.
          grace_period, trust, allow, max_result, env, cwd, reconnect, output: as in ``Host.options``.
        """
        changes = given(locals())
        for_group = {name: changes.pop(name) for name in GROUP_OPTIONS & changes.keys()}
        options = self._options.replace(**changes) if changes else self._options
        return self._with(options, dataclasses.replace(self._group_options, **for_group))

    def _with(self, options: CallOptions, group_options: GroupOptions) -> Group:
        hosts = self._hosts
        if options is not self._options:
            hosts = {name: Host(host._core, options) for name, host in self._hosts.items()}
        return Group(hosts, options, group_options)


def _calling(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Verb[Any]:
    packed = Packed()

    async def call(host: Host, record: CallRecord) -> Any:
        record.packed = packed
        return await host._core.call(fn, args, kwargs, host._options, record)

    return call


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_group(
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
    """Start an agent on each of many hosts, for the time of the block.  Entering does not wait for any of them.

    Four descriptors are needed for each host.  If that is more than this process may have open, its limit is raised,
    and stays so.

    Args:
      tunnels: how to reach each; a plain string is the name of an ssh host, and ``trickle.hosts`` gives many of them.
      connect_limit: how many hosts connect at once; one that has not answered within 5 s lets another begin.
      connect_retries: how often connecting to a host is tried again, after a delay that grows and is partly random,
        when the cause may go away by itself: refused, timed out, unreachable, too many sessions at once.  With
        retries, calls leave when the agent has answered: a round trip later.
      connect_timeout, heartbeat, lease, workers, max_open, max_payload, modules, output: as in ``open_host``.

    Raises:
      ValueError: two tunnels have the same name.
      OSError: not even the hard limit on open descriptors is enough for so many hosts.
    """
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
    turns = Turns(connect_limit, len(named))
    make_room_for(len(named))
    async with group_of(named, settings, lambda name: start_tunnel, turns) as group:
        yield group


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def group_of(
    tunnels: Mapping[str, Tunnel], settings: OpenSettings, start: Callable[[str], StartTunnel], turns: Turns | None
) -> AsyncIterator[Group]:
    """The group of these hosts for the time of the block, at the end of which all their calls have their verdicts.

    Args:
      start: gives, for a host's name, what starts its tunnel.
      turns: who connects when; None if all may at once.
    """
    raised: BaseException | None = None
    with one_interrupt():
        async with trio.open_nursery() as nursery:
            options = CallOptions()
            reducing = Reducing()
            cores = {
                name: HostCore(tunnel, settings, nursery, reducing, start(name), turns)
                for name, tunnel in tunnels.items()
            }
            group = Group({name: Host(core, options) for name, core in cores.items()}, options, GroupOptions())
            try:
                yield group
            except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
                raised = exc
            await _close_all(cores, options.grace_period)
            await reducing.aclose()
    if raised is not None:
        raise raised


def by_name(tunnels: Iterable[Tunnel | str]) -> dict[str, Tunnel]:
    """The tunnels by name.

    Raises:
      TypeError: it is a mapping, of which the names are not the tunnels'.
      ValueError: two have the same.
    """
    if isinstance(tunnels, Mapping):
        raise TypeError("a mapping of tunnels: give its values, which have names of their own")
    named: dict[str, Tunnel] = {}
    for item in [tunnels] if isinstance(tunnels, str) else tunnels:
        tunnel = as_tunnel(item)
        assert tunnel.name is not None
        if tunnel.name in named:
            raise ValueError(f"two hosts of this group are called {tunnel.name!r}; give one of them another name=")
        named[tunnel.name] = tunnel
    return named


async def _close_all(cores: Mapping[str, HostCore], grace_period: float) -> None:
    if trio.current_effective_deadline() == -math.inf:
        grace_period = 0
    board = Board(cores)

    async def close(core: HostCore) -> None:
        with board.doing(core.name, "closing"):
            await core.aclose(grace_period)

    with trio.CancelScope(shield=True):  # bounded by Link.close
        async with board.logged() as nursery:
            for core in cores.values():
                nursery.start_soon(close, core)
