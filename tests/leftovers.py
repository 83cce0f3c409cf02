"""What a test left behind: processes, containers, descriptors, temporary files.

Processes are known by a mark in their environment, which children inherit and which the tests' ssh carries
over, and by being somebody's child: this process's, or that of a daemon which a fixture started.  Temporary files are
anybody's: where tests run in several processes, `Beside` says which of them may be those of a test that still runs.
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.sshd import MARK as MARK

PATIENCE = 10.0  # seconds that a process has to be gone in: far more than any kill takes, also on a busy machine

_daemons: set[int] = set()  # what runs below these belongs to the test that is running then
_known: set[int] = set()  # except for what ran when the daemon was declared
_engines: list[Callable[[], set[str]]] = []  # each lists the containers of one


@contextlib.contextmanager
def engine(containers: Callable[[], set[str]]) -> Iterator[None]:
    """Declare a container engine, by what lists its containers' ids."""
    _engines.append(containers)
    try:
        yield
    finally:
        _engines.remove(containers)


@contextlib.contextmanager
def daemon(pid: int) -> Iterator[None]:
    """Declare a process that outlives tests by intent, once it has come up."""
    _daemons.add(pid)
    _known.update([pid], _below_daemons())
    try:
        yield
    finally:
        _daemons.remove(pid)


class Beside:
    """The tests that run now, in all the processes that share a directory.

    Each process notes there which temporary files were there before its test.  What has appeared since may be that
    test's, and so a file is asked about when no test runs any more in whose time it came.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._mine = directory / f"{name}.running"
        self._lock = directory / "lock"

    def begin(self) -> None:
        """A test begins here."""
        with self._locked():
            self._mine.write_text(json.dumps(sorted(map(str, _temporary_files()))))

    def end(self) -> list[str]:
        """The test has ended; return a line for each file that came in its time and in that of no test that runs."""
        with self._locked():
            found = _temporary_files() - _noted(self._mine)
            self._mine.unlink()
            for other in self._mine.parent.glob("*.running"):
                found &= _noted(other)
        return [f"file {path}" for path in sorted(found)]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _noted(path: Path) -> set[Path]:
    return {Path(name) for name in json.loads(path.read_text())}


class Audit:
    """A look at this machine before a test, to compare with afterwards."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._before = self._around()
        self._containers = _containers()
        self._descriptors = _descriptors()

    def leftovers(self) -> list[str]:
        """Wait until nothing is left, or for `PATIENCE`; return a line for each thing that still is."""
        _dismiss_trio_parallel()
        deadline = time.monotonic() + PATIENCE
        while pids := self._processes():
            if not _wait_for_an_exit(pids, deadline - time.monotonic()):
                break
        while _containers() - self._containers and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._new_descriptors() and "trio_parallel" in sys.modules:
            gc.collect()  # its pipes are closed with the last reference, and there are cycles
        lines = [_describe(pid) for pid in sorted(self._processes())]
        lines += [f"container {id}" for id in sorted(_containers() - self._containers)]
        lines += [f"descriptor {number}: {what}" for number, what in self._new_descriptors()]
        return lines

    def _processes(self) -> set[int]:
        now = _marked(self._mark) | self._around()
        return now - self._before - _known - _multiprocessing_helpers()[0]

    def _around(self) -> set[int]:
        """Our children, zombies too: we are the ones to wait for them."""
        return {*_children(os.getpid()), *_below_daemons()}

    def _new_descriptors(self) -> list[tuple[int, str]]:
        mine = _multiprocessing_helpers()[1]
        return [
            (number, what)
            for number, what in sorted(_descriptors().items())
            if self._descriptors.get(number) != what and number not in mine
        ]


def _marked(mark: bytes) -> set[int]:
    """Processes that were started with this mark.  (This one was not: it was set later.)"""
    found = set()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look into
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def _below_daemons() -> Iterator[int]:
    """Living descendants of the daemons."""
    waiting = [child for pid in _daemons for child in _children(pid)]
    while waiting:
        pid = waiting.pop()
        if not _is_zombie(pid):
            yield pid
        waiting.extend(_children(pid))


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())


def _containers() -> set[str]:
    return {id for containers in _engines for id in containers()}


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def _is_zombie(pid: int) -> bool:
    return _state(pid) in ("Z", "X", None)


def _wait_for_an_exit(pids: Iterable[int], timeout: float) -> bool:
    """Return True as soon as one of these has ended, False when none has in this time."""
    pids = [pid for pid in pids if not _is_zombie(pid)]
    if timeout <= 0 or not pids:
        return False  # a zombie of ours is waited for by nobody else
    poller = select.poll()
    with contextlib.ExitStack() as stack:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                return True
            stack.callback(os.close, descriptor)
            poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(timeout * 1000))


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return f"process {pid} ({_state(pid)}): {words or 'no command line'}"
    return f"process {pid}"


def _descriptors() -> dict[int, str]:
    directory = Path("/proc/self/fd")
    found = {}
    for link in directory.iterdir() if directory.is_dir() else ():
        with contextlib.suppress(OSError):  # the descriptor that lists them is closed by now
            found[int(link.name)] = str(link.readlink())
    return found


def _temporary_files() -> set[Path]:
    found: set[Path] = set()
    for directory in {Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")}:
        with contextlib.suppress(OSError):
            found.update(directory.glob("*trickle*"))
    return found


def _multiprocessing_helpers() -> tuple[set[int], set[int]]:
    """Process and descriptor of multiprocessing's resource tracker, which stays until this process ends."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    pid, descriptor = getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)
    return {pid} if pid else set(), {descriptor} if descriptor is not None else set()


def _dismiss_trio_parallel() -> None:
    """End trio-parallel's idle workers, which it keeps for the next call on purpose."""
    implementation = sys.modules.get("trio_parallel._impl")
    if implementation is not None and implementation.default_context_statistics().idle_workers:
        implementation.DEFAULT_CONTEXT._worker_cache.shutdown(PATIENCE)
        implementation.default_context_statistics()  # drops those that are gone
