"""A group of hosts: the same verbs as a host, for many at once.  One host's failure never costs another's result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, overload

import trio

from trickle._exceptions import CallTimeout, ConnectError, HostLost
from trickle._host import CallRecord, Host, HostCore, HostStatistics
from trickle._interrupts import one_interrupt
from trickle._module_policy import ModulePolicy
from trickle._results import Failure, Results, Success
from trickle._settings import UNSET, CallOptions, OpenSettings, Sink, given, is_number
from trickle._tunnels import as_tunnel
from trickle.abc import Tunnel

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class GroupOptions:
    """How a group's verbs behave, beside what its hosts' options say: see Group.options."""

    timeout: float = math.inf

    def __post_init__(self) -> None:
        if not is_number(self.timeout) or not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout!r}: it is a number of seconds above 0")


class Group(Mapping[str, Host]):
    """Many live hosts, from ``async with open_group(...)``: a mapping from name to host, reachable or not."""

    def __init__(self, hosts: Mapping[str, Host], options: CallOptions, group_options: GroupOptions) -> None:
        self._hosts = dict(hosts)
        self._options = options
        self._group_options = group_options

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def __repr__(self) -> str:
        return f"<trickle.Group of {len(self)} hosts, {len(self.unreachable)} of them unreachable>"

    @property
    def unreachable(self) -> Mapping[str, ConnectError | HostLost]:
        """The hosts that cannot be called now, and why."""
        errors = ((name, host._core.error) for name, host in self._hosts.items())
        return {name: error for name, error in errors if error is not None}

    async def wait_connected(self) -> None:
        """Wait until each host has answered or failed to.  Never raises: see ``unreachable``."""
        for host in self._hosts.values():
            await host._core.link.answered.wait()
        await trio.lowlevel.checkpoint()

    @overload
    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Results[T]: ...

    @overload
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Results[T]: ...

    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Results[Any]:
        """Run ``fn(*args, **kwargs)`` on every host at once, and return a result or an error for each.

        What a call on one host would raise is that host's Failure.  Only cancellation leaves this without results;
        ``options(timeout=)`` keeps those that came.
        """
        results: dict[str, Success[Any] | Failure] = dict.fromkeys(self._hosts, Failure(RuntimeError("not begun")))

        @trio.lowlevel.enable_ki_protection
        async def call_one(name: str, host: Host) -> None:
            results[name] = await self._outcome(host, fn, args, kwargs)

        with one_interrupt():
            async with trio.open_nursery() as nursery:
                for name, host in self._hosts.items():
                    nursery.start_soon(call_one, name, host)
        return Results(results)

    async def _outcome(
        self, host: Host, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Success[Any] | Failure:
        """One host's result; its own timeout is a Failure, a cancel from outside is not."""
        record = CallRecord()
        timeout = self._group_options.timeout
        try:
            with trio.move_on_after(timeout) as scope:
                return Success(await host._core.call(fn, args, kwargs, host._options, record))
        except Exception as exc:
            return Failure(exc)
        assert scope.cancelled_caught
        return Failure(
            CallTimeout(
                f"{host.name}: no result within {timeout:g} s ({record.stage}; verdict: {record.verdict})",
                host=host.name,
                verdict=record.verdict,
                stage=record.stage,
                remote_stack=record.call.remote_stack if record.call is not None else None,
            )
        )

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
    ) -> Group:
        """Another view of this group, whose verbs behave as given; what is not given stays as it is here.

        Args:
          timeout: seconds for each host, connecting included.  A host that takes longer is a
            ``Failure(CallTimeout)``, and what it was doing has been stopped.
          grace_period, trust, allow, max_result, env, cwd, reconnect, output: as in ``Host.options``.
        """
        changes = given(locals())
        for_group = {"timeout": changes.pop("timeout")} if "timeout" in changes else {}
        options = self._options.replace(**changes)
        hosts = {name: Host(host._core, options) for name, host in self._hosts.items()}
        return Group(hosts, options, dataclasses.replace(self._group_options, **for_group))

    def statistics(self) -> Mapping[str, HostStatistics]:
        """How each host does now."""
        return {name: host.statistics() for name, host in self._hosts.items()}


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

    Args:
      tunnels: how to reach each; a plain string is the name of an ssh host.
      connect_limit: how many hosts connect at once.
      connect_retries: how often connecting to a host is tried again, after a delay that grows and is partly random,
        when the cause may go away by itself: refused, timed out, unreachable, too many sessions at once.  With
        retries, calls leave when the agent has answered: a round trip later.
      connect_timeout, heartbeat, lease, workers, max_open, max_payload, modules, output: as in ``open_host``.

    Raises:
      ValueError: two tunnels have the same name.
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
    named = _by_name(tunnels)
    if connect_limit < 1:
        raise ValueError(f"connect_limit={connect_limit!r}: it is a whole number above 0")
    raised: BaseException | None = None
    with one_interrupt():
        async with trio.open_nursery() as nursery:
            options = CallOptions()
            turns = trio.Semaphore(connect_limit)
            cores = {name: HostCore(tunnel, settings, nursery, turns=turns) for name, tunnel in named.items()}
            group = Group({name: Host(core, options) for name, core in cores.items()}, options, GroupOptions())
            try:
                yield group
            except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
                raised = exc
            await _close_all(cores.values(), options.grace_period)
    if raised is not None:
        raise raised


def _by_name(tunnels: Iterable[Tunnel | str]) -> dict[str, Tunnel]:
    named: dict[str, Tunnel] = {}
    for item in [tunnels] if isinstance(tunnels, str) else tunnels:
        tunnel = as_tunnel(item)
        assert tunnel.name is not None
        if tunnel.name in named:
            raise ValueError(f"two hosts of this group are called {tunnel.name!r}; give one of them another name=")
        named[tunnel.name] = tunnel
    return named


async def _close_all(cores: Iterable[HostCore], grace_period: float) -> None:
    if trio.current_effective_deadline() == -math.inf:
        grace_period = 0
    with trio.CancelScope(shield=True):  # bounded by Link.close
        async with trio.open_nursery() as nursery:
            for core in cores:
                nursery.start_soon(core.aclose, grace_period)
