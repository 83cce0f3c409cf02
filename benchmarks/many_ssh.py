"""How long do many connections to one sshd take, when it drops some of them?

Measured: from opening a group of 300 hosts (30 with ``--quick``), which all lead to one sshd of this machine, until all
have answered, until half of them have, and how many attempts failed: with sshd's default of ``MaxStartups 10:30:100``,
which drops a third of the logins that come while 10 others are under way, and all when 100 are, and with one that drops
none; as many at once as a group takes by default, and all at once.  sshd, the ssh clients and the agents share this
machine's CPUs, of which a login takes most: with hosts of their own it would be faster.  Not measured: a network.

The floor is the same number of ``ssh HOST true``, 32 at a time.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import FREE, Bench, Unit
from tests import sshd as sshd_module
from tests.sshd import Sshd

PLACEMENTS = (FREE,)  # one CPU would only have all of them wait for each other
SECONDS = Unit("s")
FAILED = Unit("attempts that failed", digits=0)
DEFAULT_LIMIT = 32  # of hosts that connect at once
ENOUGH = 1000  # retries: no host needs as many


@contextlib.contextmanager
def listening() -> Iterator[tuple[Sshd, Sshd]]:
    """Two sshds: one that drops connections as by default, and one that drops none."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sshd_module.prepare(directory)
        user = sshd_module.login_user(directory / "home") if os.getuid() == 0 else None
        with contextlib.ExitStack() as stack:
            login = stack.enter_context(user) if user is not None else getpass.getuser()
            default = sshd_module.listening_sshd(directory, login, "default", "MaxStartups 10:30:100\n")
            patient = sshd_module.listening_sshd(directory, login, "patient")
            yield stack.enter_context(default), stack.enter_context(patient)


class FailedAttempts(logging.Handler):
    """Counts what trickle's log says."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "attempt" in record.getMessage()


async def connected(sshd: Sshd, hosts: int, limit: int) -> tuple[float, float, int]:
    """Seconds until half of the hosts and until all have answered, and how many attempts failed."""
    log, logger = FailedAttempts(), logging.getLogger("trickle")
    tunnels = [
        trickle.SSH("h0", name=f"web{number}", ssh_options=sshd.ssh_options, python="/usr/bin/python3")
        for number in range(hosts)
    ]
    times: list[float] = []
    started = time.perf_counter()

    async def wait_for(host: trickle.Host) -> None:
        await host.wait_connected()
        times.append(time.perf_counter() - started)

    logger.addHandler(log)
    level, logger.level = logger.level, logging.INFO
    try:
        async with (
            trickle.open_group(tunnels, connect_limit=limit, connect_retries=ENOUGH) as group,
            trio.open_nursery() as nursery,
        ):
            for host in group.values():
                nursery.start_soon(wait_for, host)
    finally:
        logger.level = level
        logger.removeHandler(log)
    return times[hosts // 2], times[-1], log.count


async def plain(sshd: Sshd, hosts: int) -> float:
    """Seconds that as many logins take without trickle."""
    limiter = trio.CapacityLimiter(DEFAULT_LIMIT)
    words = ["ssh", *sshd.ssh_options, "h0", "true"]

    async def login() -> None:
        async with limiter:
            await trio.run_process(words, stdin=subprocess.DEVNULL)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(hosts):
            nursery.start_soon(login)
    return time.perf_counter() - started


async def measure(bench: Bench) -> None:
    hosts = bench.pick(30, 300)
    floor = f"{hosts} x ssh HOST true"
    with listening() as (default, patient):
        ways = {
            "none is dropped": (patient, DEFAULT_LIMIT),
            "none is dropped, all at once": (patient, hosts),
            "MaxStartups 10:30:100": (default, DEFAULT_LIMIT),
            "MaxStartups 10:30:100, all at once": (default, hosts),
        }
        half: dict[str, list[float]] = {name: [] for name in ways}
        all_: dict[str, list[float]] = {floor: [], **{name: [] for name in ways}}
        failed: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(bench.pick(1, 3)):
            all_[floor].append(await plain(patient, hosts))
            for name, (sshd, limit) in ways.items():
                until_half, until_all, attempts = await connected(sshd, hosts, limit)
                half[name].append(until_half)
                all_[name].append(until_all)
                failed[name].append(attempts)
    bench.record(f"many ssh: until all {hosts} have answered", all_, unit=SECONDS, floor=floor)
    bench.record("many ssh: until half of them have", half, unit=SECONDS)
    bench.record("many ssh: how many attempts failed", failed, unit=FAILED)


if __name__ == "__main__":
    _harness.main(question="many_ssh")
