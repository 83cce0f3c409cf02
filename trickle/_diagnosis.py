"""Say in one sentence why no agent answered: from the exit status and what was said on the way."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from trickle._boot import DAMAGED, NOT_PULLED, TOO_OLD, WRONG_READER
from trickle._exceptions import ConnectError


@dataclasses.dataclass(frozen=True)
class Cause:
    """One way in which connecting fails, and how it is known.

    Args:
      reason: ConnectError.reason.
      happened: what happened, behind the host's name; with the groups of *says*, ``stage`` and ``timeout`` filled in.
      advice: what to try.
      says: what then stands in stderr.
      statuses: the exit statuses that mean it.
      passing: whether it may go away by itself, so that ``connect_retries`` tries again.
    """

    reason: str
    happened: str
    advice: str
    says: str | None = None
    statuses: frozenset[int] = frozenset()
    passing: bool = False


def _cause(reason: str, happened: str, advice: str, *known_by: str | int, passing: bool = False) -> Cause:
    says = [each for each in known_by if isinstance(each, str)]
    statuses = frozenset(each for each in known_by if isinstance(each, int))
    return Cause(reason, happened, advice, "|".join(says) or None, statuses, passing)


# The first that fits counts.  What is ours comes first, then sudo and the engines, which the other programs run, then
# ssh, then what any of them may say.  The texts are those of OpenSSH 7 to 9, sudo 1.8 and 1.9, Docker 20 to 28,
# Podman 4, and glibc; those of sudo and glibc are translated in other locales, and then the reason is "unknown".
WRONG_PASSWORD = _cause(
    "wrong password", "sudo does not take the password", "check password=, and whose password sudo wants there",
    r"Sorry, try again\.", r"\d+ incorrect password attempt",
)  # fmt: skip
COMMANDS = _cause(
    "not a Python", "what answered is not the Python that was asked for: it took our bytes for commands",
    "look for a ForceCommand there, or another program in the place of the shell", WRONG_READER,
)  # fmt: skip
MISREAD = {  # see Handshake.misread
    "commands": COMMANDS,
    "router": _cause(
        "not a Python", "what answered is a command line that does not know our commands, such as a router's",
        "check the host name and the port",
    ),
    "echo": _cause(
        "echo", "something there sends back what we send: a terminal on the way, or a program that is not a shell",
        "look for ssh -t in a wrapper of ssh, script, or a ForceCommand; there must be no terminal on the way",
    ),
}  # fmt: skip
TIMED_OUT = _cause(
    "timed out", "no agent answered within {timeout:g} s ({stage})", "raise connect_timeout if it is just slow",
)  # fmt: skip
CAUSES = (
    _cause("no Python", "it has no Python that we could find", "install Python 3.6 or later there, or give python=",
           r"trickle: found no Python 3\.6 or later;\s*$"),
    _cause("too old", "it has no Python 3.6 or later, only {what}", "install one, or give python=",
           r"trickle: found no Python 3\.6 or later; (?P<what>.*\(Python \d.*),$"),
    _cause("no Python", "it has no Python that works, only {what}", "mend it, install another one, or give python=",
           r"trickle: found no Python 3\.6 or later; (?P<what>.*),$"),
    _cause("no Python", "the Python there does not start", "mend it, or give python= the path of another one",
           r"^Fatal Python error: (\w*init|Py_Initialize)", r": error while loading shared libraries: ",
           r"^xcode-select: "),
    _cause("too old", "its Python is older than 3.6", "give python= the path of a newer one",
           TOO_OLD, r"Unknown option: -I\b"),
    _cause("stdin", "something there read our stdin", "look for a start-up file (.bashrc, .profile) that reads",
           DAMAGED, r"^ValueError: (invalid literal for int|not enough values|too many values)", r"^StopIteration$"),
    _cause("not a Python", "what answered is a Python that reads commands, not the one that was asked for",
           "look for a ForceCommand there, or another program in the place of python3",
           r'^ *File "<(stdin|python-input-\d+)>", line \d+', r"^SyntaxError: "),
    COMMANDS,
    WRONG_PASSWORD,
    _cause("password needed", "sudo asks for a password there", "give password=, or a NOPASSWD rule in sudoers",
           r"sudo: a password is required", r"sudo: a terminal is required", r"sudo: no password was provided"),
    _cause("not in sudoers", "sudo does not allow it to this user", "add a rule for it to sudoers there",
           r"is not in the sudoers file", r"is not allowed to (execute|run) ", r"may not run sudo"),
    _cause("requiretty", "sudo wants a terminal there, and trickle has none",
           "switch requiretty off for this user in sudoers", r"sudo: sorry, you must have a tty"),
    _cause("no sudo", "it has no sudo", "install it there, or log in as that user",
           r"\bsudo: ([Cc]ommand )?not found", r"([Cc]ommand not found|Unknown command):? sudo$",
           r"\bsudo\W{0,2}: No such file"),
    _cause("no such user", "there is no such user", "check user=", r"sudo: unknown user"),
    _cause("engine not running", "the container engine does not answer", "start it, or check DOCKER_HOST",
           r"Cannot connect to the Docker daemon", r"Cannot connect to Podman", r"error during connect:"),
    _cause("engine refused", "this user may not use the container engine",
           "add the user to its group (docker), or reach it through Sudo()",
           r"permission denied while trying to connect to the Docker"),
    _cause("no init", "its container engine finds no program to be the container's first process",
           'install one (catatonit for podman, docker-init for docker), or give run_options=("--init=false",)',
           r"container-init binary not found", r'exec: "docker-init": executable file not found'),
    _cause("no such container", "there is no such container", "check the name with docker ps",
           r"No such container", r"no container with name or ID"),
    _cause("container not running", "the container is not running", "start it, or unpause it",
           r"[Cc]ontainer \S+ is (not running|paused|restarting)", r"container state improper"),
    _cause("disk full", "there is no room left on its disk", "make room there",
           r"[Nn]o space left on device", r"Disk quota exceeded"),
    _cause("no such image", "the image is not there and cannot be pulled",
           "check its name, and whether the engine has to log in to its registry", NOT_PULLED),
    _cause("name lookup", "its name could not be looked up just now", "try again, or check DNS",
           r"Temporary failure in name resolution", passing=True),
    _cause("name lookup", "its name cannot be looked up", "check the spelling, DNS and ssh_config",
           r"Could not resolve hostname"),
    _cause("host key changed", "its host key is not the one in known_hosts",
           "find out why before you remove the old key with ssh-keygen -R", r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    _cause("host key unknown", "its host key is not known",
           "connect once by hand with ssh and check the key, or add it to known_hosts",
           r"Host key verification failed", r"No .* host key is known"),
    _cause("authentication", "it did not let us in",
           "check the user name and the keys (ssh-add -l); passwords are never asked for",
           r"Permission denied \(", r"Too many authentication failures"),
    _cause("refused", "it refused the connection", "check that sshd runs there, and the port",
           r"Connection refused", passing=True),
    _cause("unreachable", "it cannot be reached", "check the network and the address",
           r"No route to host", r"Network is unreachable", r"Host is down", passing=True),
    _cause("timed out", "it did not answer", "check the address and firewalls",
           r"Connection timed out", r"Operation timed out", passing=True),
    _cause("too many sessions", "it closed the connection before the login",
           "it may limit how many connect at once (MaxStartups): give connect_retries, or a lower connect_limit",
           r"(kex|ssh)_exchange_identification", passing=True),
    _cause("connection closed", "it closed the connection", "see its own log, such as sshd's",
           r"Connection (closed|reset) by", passing=True),
    _cause("ssh too old", "the ssh that was run does not know one of our options",
           "install OpenSSH 8.7 or later on the machine that runs it", r"Bad configuration option"),
    _cause("out of memory", "it has no memory left", "see what takes it there, or raise the limit",
           r"Cannot allocate memory", r"^MemoryError", r"[Oo]ut of memory"),
    _cause("killed", "what we started there was killed", "look for the kernel's out-of-memory killer in its log",
           137, -9),
    _cause("no Python", "a command was not found there", "check python= and what is installed",
           126, 127, r"executable file not found in \$PATH"),
)  # fmt: skip


def connect_error(
    host: str,
    *,
    stage: str,
    exit_status: int | None,
    stderr: str,
    noise: bytes,
    refused: bool = False,
    misread: str = "",
    timeout: float | None = None,
) -> tuple[ConnectError, bool]:
    """The ConnectError for a tunnel that ended, or had its time, before an agent answered.

    Returns:
      It, and whether the cause may go away by itself.
    """
    stdout = noise.decode("utf-8", "replace")
    cause, groups = _find(exit_status, stderr)
    if refused:
        cause = WRONG_PASSWORD
    elif misread and (cause is None or cause.reason not in (COMMANDS.reason, "stdin")):
        cause = MISREAD[misread]
    elif cause is None:
        cause = TIMED_OUT if timeout is not None else _unknown(exit_status, bool(stderr.strip() or stdout.strip()))
    happened = cause.happened.format_map({"stage": stage, "timeout": timeout, **groups})
    message = f"{host}: {printable(happened)}; {cause.advice}"
    said = stderr.strip() or stdout.strip()
    message += "".join(f"\n  {printable(line)}" for line in said.splitlines()[-5:])
    error = ConnectError(message, host=host, reason=cause.reason, stage=stage, exit_status=exit_status, stderr=stderr)
    return error, cause.passing


def _find(exit_status: int | None, stderr: str) -> tuple[Cause | None, dict[str, str]]:
    for cause in CAUSES:
        found = re.search(cause.says, stderr, re.MULTILINE) if cause.says is not None else None
        if found is not None or exit_status in cause.statuses:
            return cause, found.groupdict() if found is not None else {}
    return None, {}


def _unknown(exit_status: int | None, said_something: bool) -> Cause:
    advice = "see what it said before" if said_something else "run its command by hand to see why"
    if exit_status is not None and exit_status < 0:
        return Cause("killed", f"the tunnel was killed by signal {-exit_status}", advice)
    return Cause("unknown", f"the tunnel ended with status {exit_status} before an agent answered", advice)


def causes() -> Iterator[Cause]:
    """All of them, for the documentation."""
    yield from CAUSES
    yield from MISREAD.values()
    yield TIMED_OUT


def printable(text: str) -> str:
    """A host's text without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
