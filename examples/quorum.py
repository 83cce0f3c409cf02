"""Ask five replicas, and go on as soon as most of them have answered.

Usage: python quorum.py [HOST...]

HOST is a name for ``ssh``; with none, five processes of this machine play the replicas, one of which hangs.
"""

import sys
import time
from collections import Counter

import trio

import trickle
import trickle.remote


def read_value() -> int:
    """Runs over there."""
    if trickle.remote.host_name == "replica3":
        time.sleep(3600)
    return 42


async def main(hosts: list[str]) -> None:
    local = [trickle.Local(name) for name in trickle.hosts("replica[1-5]")]
    async with trickle.open_group(hosts or local) as group:
        quorum = len(group) // 2 + 1
        results = await group.options(need=quorum, timeout=30).call(read_value)

    values = Counter(results.successful().values())
    if values.total() < quorum:
        results.raise_failures()
    print(f"{values.most_common(1)[0][0]}, say at least {quorum} of {len(results)}")
    stopped = [name for name, error in results.failures().items() if isinstance(error, trickle.NotNeeded)]
    print("the slow one was stopped:", "replica3" in stopped)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
