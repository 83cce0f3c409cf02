"""What an attack did to this program: how long its loop stood, how much memory it took, what was run and written."""

import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

MEBIBYTE = 2**20
STALL, STALL_PER_MIB = 0.1, 0.04  # seconds: what is promised
MEMORY, MEMORY_PER_BYTE = 64 * MEBIBYTE, 16  # bytes: likewise
LENIENCE = 10  # of the tests with times: they are to pass on a machine that does other things too

# What somebody who gets in would do first.  Ours start a tunnel's command before they are watched.
_SUSPECT = (
    "os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty subprocess.Popen pickle.find_class"
    " ctypes.dlopen socket.connect socket.bind webbrowser.open os.remove os.rmdir shutil.rmtree"
    " os.chmod os.chown os.kill os.putenv sys.addaudithook"
)
SUSPECT = frozenset(_SUSPECT.split())
WRITING = ("w", "a", "x", "+")

_noted: list[str] | None = None


def _note(event: str, args: tuple[Any, ...]) -> None:
    if _noted is None:
        return
    if event == "pickle.find_class" and args[0].startswith("tests."):
        return  # a neighbour in memory reads its calls
    if event in SUSPECT:
        _noted.append(f"{event} {args!r}"[:200])
    elif event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in WRITING):
        _noted.append(f"open {args!r}"[:200])


class Damage:
    """Of one attack.

    Attributes:
      stall: seconds of processor time, of all threads, in which the loop gave nobody a turn, at the longest.
      memory: bytes that this process grew by, at its largest, in what it uses or in what it has mapped, whichever is
        less: what was mapped before, and not used, may come into use by chance.
      suspect: what was run or opened for writing.
    """

    def __init__(self) -> None:
        self.stall = 0.0
        self.memory = 0
        self.suspect: list[str] = []


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Damage]:
    """Look on for the time of the block."""
    global _noted
    _install()
    damage = Damage()
    used, mapped = _forget_peak(), _status("VmSize")
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # of modules that are imported meanwhile
    _noted = damage.suspect
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_time_turns, damage)
            try:
                yield damage
            finally:
                nursery.cancel_scope.cancel()
    finally:
        _noted = None
        sys.dont_write_bytecode = writes_none
        damage.memory = min(_status("VmHWM") - used, _status("VmPeak") - mapped)


async def _time_turns(damage: Damage) -> None:
    last = time.process_time()
    try:
        while True:
            await trio.sleep(0.001)
            now = time.process_time()
            damage.stall = max(damage.stall, now - last)
            last = now
    finally:  # the loop may have stood until the very end
        damage.stall = max(damage.stall, time.process_time() - last)


_installed = False


def _install() -> None:
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_note)  # for good: there is no taking it off


def _status(field: str) -> int:
    """A figure of this process, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> int:
    """Have the kernel count the peak of what is used from now on, and return what that is now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")
