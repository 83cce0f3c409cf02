"""Ask each host its load, its Python and its free disk, and print a table.

Usage: python fleet.py [HOST...]

HOST is a name for ``ssh``, or ``local:NAME`` for a process of this machine; with none, two of those.  A host
that does not answer gets a row with the reason, and then the exit status is 1.
"""

import os
import platform
import shutil
import sys
from typing import NamedTuple

import trio

import trickle

TIMEOUT = 30  # seconds for each host, connecting included


class Health(NamedTuple):
    load: float
    python: str
    free: int


def health() -> "tuple[float, str, int]":
    """Runs over there, on any Python from 3.6 on: what comes back are plain values."""
    return os.getloadavg()[0], platform.python_version(), shutil.disk_usage("/").free


def tunnel(word: str) -> trickle.abc.Tunnel | str:
    kind, _, name = word.partition(":")
    return trickle.Local(name=name) if kind == "local" else word


def row(name: str, result: trickle.Success[tuple[float, str, int]] | trickle.Failure) -> str:
    match result:
        case trickle.Success(answer):
            here = Health(*answer)
            return f"{name:<24} {here.load:>6.2f}  {here.python:<9} {here.free / 2**30:>8.1f} GiB"
        case trickle.Failure(error):
            reason, *_ = str(error).splitlines()
            return f"{name:<24} {reason.removeprefix(f'{name}: ')}"


async def main(words: list[str]) -> int:
    async with trickle.open_group(tunnel(word) for word in words) as group:
        print(f"{'host':<24} {'load':>6}  {'python':<9} {'free disk':>12}")
        results = await group.options(timeout=TIMEOUT).call(health)
        for name, result in results.items():
            print(row(name, result))
    return 1 if results.failures() else 0


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:] or ["local:amber", "local:birch"]))
