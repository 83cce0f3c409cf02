"""For tests of programs that use trickle: a host in memory, faults that are scripted, a check of your own tunnels.

Not imported by ``import trickle``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import trio

from trickle._check_tunnel import check_tunnel
from trickle._group import Group, by_name, group_of
from trickle._host import Host
from trickle._host_core import open_core
from trickle._memory_agent import prepare_remote
from trickle._memory_tunnel import (
    Fault,
    Garbage,
    LinkLost,
    Memory,
    MemoryTunnel,
    Silence,
    SlowLink,
    Unreachable,
    WorkerKilled,
)
from trickle._settings import CallOptions, OpenSettings, Sink

__all__ = [
    "Fault",
    "Garbage",
    "LinkLost",
    "Silence",
    "SlowLink",
    "Unreachable",
    "WorkerKilled",
    "check_tunnel",
    "open_memory_group",
    "open_memory_host",
]


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_memory_host(
    *,
    faults: Sequence[Fault] = (),
    name: str = "memory",
    wait: bool = True,
    connect_timeout: float = 30.0,
    heartbeat: float = 10.0,
    lease: float = 60.0,
    workers: int = 16,
    max_open: int = 256,
    max_payload: int = 512 * 2**20,
    output: Sink | None = None,
) -> AsyncIterator[Host]:
    """A host without a process or a pipe, for the time of the block; it works under ``trio.testing.MockClock``.

    All that this end of trickle does is real, and the agent at the other end keeps a real one's rules: verdicts, grace
    periods, deadlines, the lease, the limit of workers, sessions.  But functions run in this process:

    - Arguments and results are copies, as ever, but modules and their globals are shared with this program.  What
      belongs to its ``__main__`` goes by value, as to any host; instances of its classes do not come back from here.
    - An ``async def`` function runs as a task of this program's own trio.  A cancellation reaches it at checkpoints.
      After the grace period its shields no longer hold, and what swallows even that is left where it is; tasks
      of its own that do so cannot be stopped, and hold up the end of the block.
    - A plain function runs to its end at once.  It must be quick: nothing interrupts it, and all else waits for it.
    - A generator that is streamed goes on step by step, as such a plain function; an async one as a task.
    - A function with a channel runs in a thread, for which no mock clock waits, and is cancelled where it sends or
      receives.  Async functions with a channel, processes and files are refused.
    - What it prints goes where this program's prints go.  ``env=`` and ``cwd=`` are for plain functions and generators
      alone.

    Args:
      faults: what is to go wrong.  Each strikes once, on whatever connection is up.
      name: what the host is called.
      wait: as for ``open_host``, and so are the arguments below.
      connect_timeout: seconds in which the agent must have answered.
      heartbeat: seconds between signs of life, both ways.
      lease: seconds of silence after which each end takes the other for lost.
      workers: how many plain calls run at once; more of them wait.
      max_open: how many sessions may be open at once.
      max_payload: bytes that the arguments or the result of one call may take, or one thing in a stream or channel.
      output: where printed lines would go.

    Raises:
      ConnectError: the host is Unreachable.
    """
    settings = OpenSettings(
        wait=wait,
        connect_timeout=connect_timeout,
        heartbeat=heartbeat,
        lease=lease,
        workers=workers,
        max_open=max_open,
        max_payload=max_payload,
        output=output,
        sends_modules=False,  # they are here, and packing them takes a thread, for which no mock clock waits
    )
    async with (
        _memories({name: faults}) as memories,
        open_core(MemoryTunnel(name=name), settings, memories[name].start) as core,
    ):
        host = Host(core, CallOptions())
        if wait:
            await host.wait_connected()
        yield host


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_memory_group(
    names: Iterable[str],
    *,
    faults: Mapping[str, Sequence[Fault]] | None = None,
    connect_timeout: float = 30.0,
    heartbeat: float = 10.0,
    lease: float = 60.0,
    workers: int = 16,
    max_open: int = 256,
    max_payload: int = 512 * 2**20,
    output: Sink | None = None,
) -> AsyncIterator[Group]:
    """A group of hosts like that of ``open_memory_host``, for the time of the block.

    Args:
      names: what the hosts are called.
      faults: what is to go wrong, by host.
      connect_timeout: as for ``open_memory_host``, and so are the arguments below.

    Raises:
      ValueError: two hosts have the same name, or faults are for a host that is not there.
    """
    settings = OpenSettings(
        wait=False,
        connect_timeout=connect_timeout,
        heartbeat=heartbeat,
        lease=lease,
        workers=workers,
        max_open=max_open,
        max_payload=max_payload,
        output=output,
        sends_modules=False,  # as above
    )
    tunnels = by_name(MemoryTunnel(name=name) for name in names)
    faults = faults or {}
    if strangers := faults.keys() - tunnels.keys():
        raise ValueError(f"faults for {', '.join(sorted(strangers))}: no host of this group is called so")
    async with (
        _memories({name: faults.get(name, ()) for name in tunnels}) as memories,
        group_of(tunnels, settings, lambda name: memories[name].start, None) as group,
    ):
        yield group


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def _memories(faults: Mapping[str, Sequence[Fault]]) -> AsyncIterator[dict[str, Memory]]:
    """What hosts in memory live in, by name, for the time of the block."""
    for each in faults.values():
        if isinstance(each, str | bytes | Fault) or not all(isinstance(fault, Fault) for fault in each):
            raise TypeError(f"faults={each!r}: it is a sequence of faults, such as [LinkLost(at=1)]")
    prepare_remote()
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        memories = {name: Memory(nursery, tuple(each)) for name, each in faults.items()}
        try:
            yield memories
        except BaseException as exc:  # kept aside, so that it is raised as itself when all is over
            raised = exc
        async with trio.open_nursery() as ending:  # together: none is gone before all are, whose nursery it is
            for memory in memories.values():
                ending.start_soon(memory.end)
    if raised is not None:
        raise raised


for _name in __all__:
    globals()[_name].__module__ = __name__  # as users know it
del _name
