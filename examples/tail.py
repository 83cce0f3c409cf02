"""Follow a file on several hosts, line by line, until something is found.

    python examples/tail.py /var/log/syslog web1 web2

Without arguments it makes a log of its own, and follows it on two local hosts.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trio

import trickle


def follow(path: str, until: str) -> Iterator[str]:
    """The lines of a file, also those that are still to come."""
    with Path(path).open() as file:
        while True:
            line = file.readline()
            if not line:
                time.sleep(0.05)
                continue
            yield line.rstrip()
            if until in line:
                return


async def show(host: trickle.Host, path: str, until: str) -> None:
    async with host.stream(follow, path, until) as lines:
        async for line in lines:
            print(f"{host.name}: {line}")


async def main(path: str, tunnels: list[trickle.abc.Tunnel | str], until: str = "ready") -> None:
    async with trickle.open_group(tunnels) as group, trio.open_nursery() as nursery:
        for host in group.values():
            nursery.start_soon(show, host, path, until)


def write_a_log(path: Path) -> None:
    for word in ("starting", "loading", "ready"):
        with path.open("a") as file:
            file.write(f"{word}\n")
        time.sleep(0.2)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        trio.run(main, sys.argv[1], sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "log"
            log.touch()
            threading.Thread(target=write_a_log, args=(log,)).start()
            trio.run(main, str(log), [trickle.Local("one"), trickle.Local("two")])
