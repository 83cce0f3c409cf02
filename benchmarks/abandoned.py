"""How soon is remote work gone when nobody is left to end it?

Measured, with work on 20 hosts, each a broker, a worker and a child in a session of its own: from a fault until the
last of these processes has ended.  Three faults: ``kill -9`` of the controller; SIGSTOP of the controller; a network
that drops every packet silently from one moment on, between network namespaces, with 5 hosts over ssh.  After the
last two it is the lease that ends the work: its row is what was given, and less than that is right as well, since a
lease is counted from the last word that was heard.  All hosts are this machine, so that processes can be counted by
their pids.  Not measured: when the controller notices a partition, and what ssh and sshd leave (they have timeouts
of their own).

The floor is ``kill -9`` of a process group of 20 bare Pythons.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trickle
from benchmarks import _far, _harness
from benchmarks._harness import FREE, MILLISECONDS, ROOT, SECONDS, Bench, Measure, blocking, each
from benchmarks._peers import PYTHON
from tests import sshd
from tests.network import Network, network_of_two

PLACEMENTS = (FREE,)  # for most of it, it is the waiting that is measured
HOSTS = 20
HOSTS_PARTED = 5
HEARTBEAT, LEASE = 0.5, 3.0  # seconds
LONG_LEASE = 60.0
GIVE_UP = 30.0  # seconds


class Watch:
    """Waits for processes to end, whoever their parent is."""

    def __init__(self, pids: set[int]) -> None:
        self._poller = select.poll()
        self._open = [os.pidfd_open(pid) for pid in pids]
        for fd in self._open:
            self._poller.register(fd, select.POLLIN)

    def wait_for_all(self) -> float:
        """When the last of them has ended, by `time.perf_counter`."""
        try:
            left = len(self._open)
            give_up = time.perf_counter() + GIVE_UP
            while left:
                ended = self._poller.poll(1000)
                for fd, _ in ended:
                    self._poller.unregister(fd)
                left -= len(ended)
                assert time.perf_counter() < give_up, f"{left} processes are still there"
            return time.perf_counter()
        finally:
            for fd in self._open:
                os.close(fd)


def below(pid: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
            children = set(map(int, (task / "children").read_text().split()))
            waiting += children
            found |= children
    return found


@contextlib.contextmanager
def controller(lease: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process with work on all hosts."""
    words = (sys.executable, "-m", "benchmarks._controller", str(HOSTS), str(HEARTBEAT), str(lease))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"begun\n"
            yield process
        finally:
            process.kill()


def gone_after(number: signal.Signals, lease: float) -> float:
    """Seconds from a signal to the controller until all its work is gone."""
    with controller(lease) as process:
        pids = below(process.pid)
        assert len(pids) == 3 * HOSTS, f"{len(pids)} processes on {HOSTS} hosts"
        watch = Watch(pids)
        started = time.perf_counter()
        process.send_signal(number)
        return watch.wait_for_all() - started


def bare_group() -> float:
    """Seconds from ``kill -9`` of a process group of bare Pythons until all of them have ended."""
    script = f"import os, time\nfor _ in range({HOSTS - 1}):\n if not os.fork(): break\nprint('begun', flush=True)\n"
    words = (*PYTHON, "-c", f"{script}time.sleep({_far.SECONDS})")
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        for _ in range(HOSTS):
            process.stdout.readline()
        watch = Watch({process.pid, *below(process.pid)})
        started = time.perf_counter()
        os.killpg(process.pid, signal.SIGKILL)
        return watch.wait_for_all() - started


async def gone_after_a_partition(network: Network) -> float:
    """Seconds from the moment that no packet passes any more until all work is gone at the far end."""
    begun = trio.Semaphore(0)
    tunnels = [dataclasses.replace(network.tunnel, name=f"h{n}", python=sys.executable) for n in range(HOSTS_PARTED)]
    async with trickle.open_group(
        tunnels, heartbeat=HEARTBEAT, lease=LEASE, output=lambda line: begun.release()
    ) as group:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.call, _far.sleep_beside_a_child)
            for _ in tunnels:
                await begun.acquire()
            agents = {host.info.pid for host in group.values()}
            watch = Watch(agents.union(*map(below, agents)))
            network.drop_both_ways()
            started = time.perf_counter()
            ended = await trio.to_thread.run_sync(watch.wait_for_all)
        network.heal()
    return ended - started


@contextlib.contextmanager
def network() -> Iterator[Network | str]:
    """Two namespaces and an sshd, or the reason why there are none."""
    with contextlib.ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sshd.sshd_binary()
            sshd.prepare(directory)
            made = stack.enter_context(network_of_two(directory, getpass.getuser()))
        except pytest.skip.Exception:
            yield "needs root, ip, nft, sshd"
            return
        yield made


async def measure(bench: Bench) -> None:
    if not hasattr(os, "pidfd_open"):
        raise SystemExit("this waits for processes by pidfd_open, which is Linux's")
    logging.getLogger("trickle").setLevel(logging.ERROR)  # that hosts are lost is what is asked for
    await bench.compare(
        f"abandoned: kill -9 of the controller of {HOSTS} hosts",
        {
            f"kill -9 of a group of {HOSTS} bare Pythons": blocking(bare_group),
            "trickle": blocking(lambda: gone_after(signal.SIGKILL, LONG_LEASE)),
        },
        unit=MILLISECONDS,
        floor=f"kill -9 of a group of {HOSTS} bare Pythons",
        rounds=bench.pick(1, 30),
        warm_up=not bench.quick,
    )
    with network() as parted:
        candidates: dict[str, Measure | str] = {
            "the lease": blocking(lambda: LEASE),
            f"the controller of {HOSTS} hosts is stopped": blocking(lambda: gone_after(signal.SIGSTOP, LEASE)),
            f"the network to {HOSTS_PARTED} hosts drops everything": parted
            if isinstance(parted, str)
            else each(lambda: gone_after_a_partition(parted)),
        }
        await bench.compare(
            "abandoned: the lease runs out",
            candidates,
            unit=SECONDS,
            floor="the lease",
            rounds=bench.pick(1, 10),
            warm_up=not bench.quick,
        )


if __name__ == "__main__":
    _harness.main(question="abandoned")
