"""A controller to be killed: work on many hosts of this machine, until somebody ends it.  Used by abandoned.py."""

from __future__ import annotations

import sys

import trio

import trickle
from benchmarks import _far


async def main(hosts: int, heartbeat: float, lease: float) -> None:
    tunnels = [trickle.Local(f"h{number}", python=sys.executable) for number in range(hosts)]
    begun = 0

    def on_line(line: trickle.OutputLine) -> None:
        nonlocal begun
        begun += 1
        if begun == hosts:
            print("begun", flush=True)

    async with trickle.open_group(tunnels, heartbeat=heartbeat, lease=lease, output=on_line) as group:
        await group.call(_far.sleep_beside_a_child)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
