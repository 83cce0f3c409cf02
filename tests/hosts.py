"""Tunnels for tests that run on this machine, and waiting for what happens there."""

import os
import re
import sys
from pathlib import Path

import trio

import trickle


def local(name: str = "here", **options: object) -> trickle.Local:
    """This Python, as a host."""
    return trickle.Local(name, python=sys.executable, **options)  # type: ignore[arg-type]


async def file_appears(path: Path) -> str:
    """The text of a file, once it is there; the function that writes it does so in one step."""
    while not path.exists():
        await trio.sleep(0.005)
    return path.read_text()


def is_running(pid: int) -> bool:
    """Whether there is such a process, zombies aside."""
    return _state(pid) not in ("Z", "X", None)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    return _state(pid) == "T"


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


async def process_ends(pid: int) -> None:
    """Return when the process has gone."""
    while is_running(pid):
        await trio.sleep(0.005)


def running_below(pid: int = os.getpid()) -> set[int]:
    """The living children of a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.update(map(int, (task / "children").read_text().split()))
    return found


def private(pid: int) -> int:
    """Bytes of memory that a process shares with no file."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
