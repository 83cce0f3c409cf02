"""What do hosts cost that have nothing to do?

Measured: the CPU time that the controller and all agents use while 200 local hosts (20 with ``--quick``) are connected
and idle, with the heartbeats that are the default, in percent of one CPU and per host; and the memory of both ends for
each host, the controller's beyond what it takes with none.  Not measured: ssh's own share.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import trio

import trickle
from benchmarks import _harness
from benchmarks._crowd import descendants, memory_of_agents, own_memory
from benchmarks._harness import FREE, Bench, Unit

PLACEMENTS = (FREE,)
PERCENT = Unit("% of one CPU", 100, digits=2)
KIBIBYTES = Unit("KiB per host", 1 / 1024, digits=0)
TICK = os.sysconf("SC_CLK_TCK")


def cpu_of(pids: list[int]) -> float:
    """Seconds that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


async def measure(bench: Bench) -> None:
    hosts, seconds = bench.pick(20, 200), bench.pick(11, 60)  # a heartbeat takes ten
    memory = own_memory()
    async with trickle.open_group(trickle.Local(f"n{n}", python=sys.executable) for n in range(hosts)) as group:
        (await group.call(os.getpid)).unwrap()
        await trio.sleep(bench.pick(0, 1))
        agents = descendants(os.getpid())
        here, there, started = time.process_time(), cpu_of(agents), time.perf_counter()
        await trio.sleep(seconds)
        elapsed = time.perf_counter() - started
        bench.record(
            f"idle: CPU of {hosts} hosts with a worker each",
            {
                "the controller": [(time.process_time() - here) / elapsed],
                "all agents": [(cpu_of(agents) - there) / elapsed],
            },
            unit=PERCENT,
        )
        bench.record(
            f"idle: memory of {hosts} hosts with a worker each",
            {
                "the controller": [(own_memory() - memory) / hosts],
                "an agent, broker and worker (PSS)": [memory_of_agents() / hosts],
            },
            unit=KIBIBYTES,
        )


if __name__ == "__main__":
    _harness.main(question="idle")
