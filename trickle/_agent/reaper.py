"""Find and kill all that a worker started.  When to do so is broker.py's decision.

On Linux a process belongs to a worker when it is in its session, descends from it, or carries its mark in the
environment; elsewhere only the process group can be named.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Tuple

MARK = "TRICKLE_CALL"  # the environment variable that says which call started a process
SIGKILL = 9
HAS_PROC = os.path.exists("/proc/self/stat")


class Claim:
    """How the processes that a worker started are known: by its mark, and by not being older than it."""

    __slots__ = ("mark", "started")

    def __init__(self, mark: bytes, started: int) -> None:
        self.mark = mark
        self.started = started


def _status(pid: int) -> "Tuple[bytes, int, int, int]":
    """State, parent, session and start time of a process, from /proc (see proc(5): fields 3, 4, 6 and 22)."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), int(fields[3]), int(fields[19])


def _environment(pid: int) -> bytes:
    with open("/proc/%d/environ" % pid, "rb") as file:
        return file.read()


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 where there is no /proc."""
    return _status(pid)[3] if HAS_PROC else 0


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
    strangers = {}  # pid -> parent, start time
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            state, parent, session, started = _status(pid)
            if started < oldest or pid in leaders:
                continue  # nothing that is older than a worker was started by it
            leader = session if session in leaders else remembered.get((pid, started)) or _marked_for(pid, leaders)
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
