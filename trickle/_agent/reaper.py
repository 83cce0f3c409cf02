"""End workers with all that they started: find it, kill it, see that it is gone.  When is broker.py's decision.

On Linux a process belongs to a worker when it is in its session, descends from it, carries its mark in the
environment, or has its name, which it keeps until it executes a program; elsewhere only the process group can be named.
"""

import binascii
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Set, Tuple

    from trickle._agent.pool import Worker

MARK = "TRICKLE_CALL"  # the environment variable that says which call started a process
SIGKILL, SIGTERM = 9, 15
HAS_PROC = os.path.exists("/proc/self/stat")
UNKILLABLE_AFTER = 2.0  # seconds in which SIGKILL did not end a process
EXEC_LOOKS, EXEC_PAUSE = 20, 0.0005  # seconds: whose child an exec shows as running has neither words nor environment
LOOK_AGAIN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # seconds between looks at what is left


class Reaping:
    """The end of one worker.  It may be left time to go by itself; then what is left gets SIGTERM, then SIGKILL."""

    def __init__(self, worker: "Worker", now: float, patience: float, leave_by: float) -> None:
        self.worker = worker
        self.is_quiet = worker.task is None or worker.task.is_over
        self.patience = patience
        self.leave_by = leave_by
        self.look_at = now
        self.looks = 0
        self.kill_at = 0.0  # SIGKILL from then on; 0 before the first look at what is left
        self.terminated = False
        self.survived = False
        self.known: "Dict[int, int]" = {}  # what is left: pid -> start time

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at what is left."""
        if now < self.look_at:
            return False
        if now < self.leave_by and exit_status(self.worker.pid) is None:
            self.look_at = self.leave_by
            return False
        if not self.kill_at:
            self.kill_at = now + self.patience
        return True

    def step(self, now: float) -> bool:
        """Take the next step against what is left; return whether that is the last one."""
        pid = self.worker.pid
        self.look_at = now + LOOK_AGAIN[min(self.looks, len(LOOK_AGAIN) - 1)]
        self.looks += 1
        if self.known and now < self.kill_at:
            if not self.terminated:
                self.terminated = True
                kill_group(pid, SIGTERM)  # sudo hands it on to what we could not kill
                for left in self.known:  # what has left the group
                    signal_one(left, SIGTERM)
            return False
        kill_group(pid, SIGKILL)
        if not kill(self.known) and exit_status(pid) is not None:
            # One whose function still ran may have started something after the look and before SIGKILL.
            return self.is_quiet or self.looks > 1
        self.survived = now >= self.kill_at + UNKILLABLE_AFTER
        return self.survived


class Reaper:
    """The workers that are being ended."""

    def __init__(self) -> None:
        self.reapings: "List[Reaping]" = []

    def end(self, worker: "Worker", now: float, patience: float, leave_by: float = 0.0) -> None:
        """End a worker with all that it started.

        Args:
          patience: seconds from SIGTERM, for what is left when the worker has gone, to SIGKILL.
          leave_by: until then it may go by itself.
        """
        self.reapings.append(Reaping(worker, now, patience, leave_by))

    @property
    def next_look(self) -> "Optional[float]":
        """When to call `look` again; None if there is nothing to look for."""
        return min(reaping.look_at for reaping in self.reapings) if self.reapings else None

    def look_now(self) -> None:
        """Somebody has died: look at once."""
        for reaping in self.reapings:
            reaping.look_at = 0.0

    def hurry(self, now: float) -> None:
        """SIGKILL at once, to all."""
        for reaping in self.reapings:
            reaping.look_at = reaping.leave_by = 0.0
            reaping.kill_at = now

    def look(self, now: float) -> "List[Reaping]":
        """Take the next step; return those that are over: gone, or survivors of SIGKILL."""
        due = [reaping for reaping in self.reapings if reaping.is_due(now)]
        if not due:
            return due
        # Looked at before the worker is killed: its death would hide whose children its children are.
        left = remnants(
            {reaping.worker.pid: reaping.worker.claim for reaping in due},
            {reaping.worker.pid: reaping.known for reaping in due},
        )
        over = []
        for reaping in due:
            reaping.known = left[reaping.worker.pid]
            if reaping.step(now):
                over.append(reaping)
                self.reapings.remove(reaping)
                _reap(reaping.worker.pid)
        return over


class Claim:
    """How the processes that a worker started are known: by its mark or its name, and by not being older than it."""

    __slots__ = ("mark", "name", "started")

    def __init__(self, mark: str, started: int) -> None:
        self.mark = ("\0%s=%s." % (MARK, mark)).encode()
        self.name = name_of(mark)
        self.started = started


def name_of(mark: str) -> bytes:
    """The name of the worker with that mark: what it forks has it too, and has no mark of its own in /proc."""
    return b"trickle %07x" % (binascii.crc32(mark.encode()) & 0xFFFFFFF)  # of the 15 bytes that there may be


def take_name(mark: str) -> None:
    """Give this process the name of the worker with that mark, where names are to be seen."""
    try:
        with open("/proc/self/comm", "wb", 0) as file:
            file.write(name_of(mark))
    except OSError:
        pass


def _status(pid: int) -> "Tuple[bytes, bytes, int, int, int]":
    """Name, state, parent, session and start time of a process (see proc(5), /proc/pid/stat: fields 2 to 4, 6, 22)."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        head, _, tail = file.read().rpartition(b")")
    fields = tail.split()
    return head.partition(b"(")[2], fields[0], int(fields[1]), int(fields[3]), int(fields[19])


def _environment(pid: int) -> bytes:
    """A process's environment; waits a moment for that of one which is on its way into another program."""
    for _ in range(EXEC_LOOKS):
        environment = _read(pid, "environ")
        if environment or _read(pid, "cmdline") or not _has_program(pid):
            break
        time.sleep(EXEC_PAUSE)
    return environment


def _read(pid: int, name: str) -> bytes:
    with open("/proc/%d/%s" % (pid, name), "rb") as file:
        return file.read()


def _has_program(pid: int) -> bool:
    """Whether it is not one of the kernel's own."""
    try:
        return bool(os.readlink("/proc/%d/exe" % pid))
    except OSError:
        return False


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 where there is no /proc."""
    return _status(pid)[4] if HAS_PROC else 0


def remnants(leaders: "Dict[int, Claim]", known: "Dict[int, Dict[int, int]]") -> "Dict[int, Dict[int, int]]":
    """The processes, zombies aside, that belong to each of *leaders*: pid -> start time.  One look at /proc.

    *known* are those that earlier looks found: they belong to their leader also when nothing shows it any more.
    """
    found: "Dict[int, Dict[int, int]]" = {leader: {} for leader in leaders}
    if not HAS_PROC:
        return found
    oldest = min(claim.started for claim in leaders.values())
    owner = {leader: leader for leader in leaders}  # of every process that belongs to one
    remembered = {(pid, started): leader for leader in leaders for pid, started in known.get(leader, {}).items()}
    named = {claim.name: leader for leader, claim in leaders.items()}
    strangers = {}  # pid -> parent, start time
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            command, state, parent, session, started = _status(pid)
            if started < oldest or pid in leaders:
                continue  # nothing that is older than a worker was started by it
            leader = session if session in leaders else remembered.get((pid, started)) or named.get(command, 0)
            leader = leader or _marked_for(pid, leaders)
        except OSError:
            continue  # gone, or not ours to read
        if leader:
            owner[pid] = leader
            if state not in b"ZX":
                found[leader][pid] = started
        elif state not in b"ZX":
            strangers[pid] = (parent, started)
    while True:  # descendants that changed both session and environment
        adopted = [pid for pid, (parent, _) in strangers.items() if parent in owner]
        if not adopted:
            return found
        for pid in adopted:
            parent, started = strangers.pop(pid)
            owner[pid] = owner[parent]
            found[owner[parent]][pid] = started


def _marked_for(pid: int, leaders: "Dict[int, Claim]") -> int:
    try:
        environment = b"\0" + _environment(pid)
    except OSError:
        return 0  # another user's: we could not kill it either
    for leader, claim in leaders.items():
        if claim.mark in environment:
            return leader
    return 0


def kill(pids: "Iterable[int]") -> int:
    """SIGKILL to each, and how many of them it could be sent to."""
    count = 0
    for pid in pids:
        try:
            os.kill(pid, SIGKILL)
            count += 1
        except OSError:
            pass  # gone already, or another user's, of which we have no say
    return count


def signal_one(pid: int, number: int) -> None:
    """A signal to one process that has not been reaped."""
    try:
        os.kill(pid, number)
    except OSError:
        pass


def kill_group(pid: int, number: int) -> None:
    """A signal to the process group of a worker that has not been reaped."""
    try:
        os.killpg(pid, number)
    except OSError:
        pass  # nothing is left of it, or (macOS) only zombies


def exit_status(pid: int) -> "Optional[int]":
    """How a child ended, which stays to be reaped: its status, or 256 + a signal's number; None if it has not."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except AttributeError:  # macOS before Python 3.13 has no waitid: reap it now
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if not reaped:
            return None
        return 256 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    except OSError:
        return 0  # reaped already
    if info is None or not info.si_pid:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else 256 + info.si_status


def is_stopped(pid: int) -> bool:
    """Whether a child was stopped by a signal, and not continued; False where that cannot be known."""
    try:
        info = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, OSError):
        return False
    return info is not None and bool(info.si_pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:
        pass


def reap_orphans(ours: "Set[int]") -> None:
    """In a container without an init, what has lost its parent falls to us: reap it, but for *ours*."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return
        if info is None or info.si_pid in ours:
            return
        _reap(info.si_pid)
