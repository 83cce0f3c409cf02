"""Say in one sentence why no agent answered: from the exit status and what was said on the way."""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Iterator, Mapping

from trickle._boot import DAMAGED, GUARD_WORDS, NOT_PULLED, TOO_OLD, WRONG_READER
from trickle._exceptions import ConnectError

LAST_LINES = 5  # of what was said, for the message
USED_UP = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@dataclasses.dataclass(frozen=True)
class Cause:
    """One way in which connecting fails, and how it is known.

    Args:
      reason: ConnectError.reason.
      happened: what happened, behind the host's name; a format, for the groups of *says* among others.
      advice: what to try.
      says: what is then said, on stderr or before any agent on stdout.
      statuses: the exit statuses that it may then have; all, if there are none here.
      passing: whether it may go away by itself, so that ``connect_retries`` and ``retries`` try again.
    """

    reason: str
    happened: str
    advice: str
    says: re.Pattern[str] | None = None
    statuses: frozenset[int] = frozenset()
    passing: bool = False

    def found_in(self, exit_status: int | None, said: str) -> dict[str, str] | None:
        """The groups of *says* if this is what happened, else None."""
        if self.statuses and exit_status is not None and exit_status not in self.statuses:
            return None
        if self.says is None:
            return {} if exit_status in self.statuses else None
        found = self.says.search(said)
        return found.groupdict() if found is not None else None


def _cause(
    reason: str, happened: str, advice: str, *statuses: int, says: str | None = None, passing: bool = False
) -> Cause:
    pattern = re.compile(says, re.MULTILINE) if says is not None else None
    return Cause(reason, happened, advice, pattern, frozenset(statuses), passing)


SSH = 255  # ssh's status for all of its own failures
SUDO = 1  # and sudo's
ENGINE = 1, 125, 126, 127, NOT_PULLED  # what docker and podman end with when they run nothing, and what pulls for them
CONNECTING = r"(^ssh: connect to host .*|open failed: connect failed|^[Nn]c(at)?\b.*): "  # nc is a usual ProxyCommand

TIMED_OUT = _cause(
    "timed out", "no agent answered within {timeout} s ({stage})", "raise connect_timeout if it is just slow",
    passing=True,
)  # fmt: skip
WRONG_PASSWORD = _cause(
    "wrong password", "sudo does not take the password", "check password=, and whose password sudo wants there",
    SUDO, says=r"^Sorry, try again\.|^sudo: \d+ incorrect password attempt",
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
NOT_INSTALLED = _cause(
    "not installed", "cannot run {what} ({why})", "is it installed on this machine?",
)  # fmt: skip
NOT_RUN = _cause(
    "not run", "cannot run {what} ({why})", "see whether this user may run it on this machine",
)  # fmt: skip
KILLED = _cause(
    "killed", "the tunnel was killed by signal {signal}", "look for who did that on this machine",
)  # fmt: skip
UNKNOWN = _cause(
    "unknown", "the tunnel ended with status {status} before an agent answered", "see its last words, if it had any",
)  # fmt: skip
NO_END = _cause(
    "unknown", "the tunnel has closed its stdout, and no agent had answered", "see its last words, if it had any",
)  # fmt: skip

# The first that fits counts, so that what a banner or a start-up file says does not pass for the cause: each is known
# by a status or by a line in the very form of the program that writes it, and most by both.  What is ours comes first,
# then what other programs run (sudo, engines), then ssh, then what any of them may say.  The texts are those of
# OpenSSH 7 to 9, sudo 1.8 and 1.9, Docker 20 to 28 and Podman 4.  Of these sudo alone speaks other languages: in those
# a second prompt, which is a wrong password, is known for what it is, and the rest of what it says is just "sudo".
LAST_WORDS = (  # of ours, of what reads our bytes by mistake, and of sudo: also where there is no exit status to go by
    _cause("out of memory", "it has no memory left", "see what takes it there, or raise the limit",
           says=r"^MemoryError|^Fatal Python error: \w+NoMemory|fork: .*Cannot allocate memory"
                r"|error while loading shared libraries: .*(Cannot allocate memory|failed to map segment)"),
    _cause("no Python", "it has no Python that we could find", "install Python 3.6 or later there, or give python=",
           says=r"^trickle: found no Python 3\.6 or later;\s*$"),
    _cause("too old", "it has no Python 3.6 or later, only {what}", "install one, or give python=",
           says=r"^trickle: found no Python 3\.6 or later; (?P<what>.*\(Python \d.*),$"),
    _cause("no Python", "it has no Python that works, only {what}", "mend it, install another one, or give python=",
           says=r"^trickle: found no Python 3\.6 or later; (?P<what>.*),$"),
    _cause("no Python", "the Python there does not start", "mend it, or give python= the path of another one",
           says=r"^Fatal Python error: (\w*init|Py_Initialize)|: error while loading shared libraries: "
                r"|^xcode-select: "),
    _cause("too old", "its Python is older than 3.6", "give python= the path of a newer one", TOO_OLD),
    _cause("too old", "its Python is older than 3.6", "give python= the path of a newer one", 2,
           says=r"^Unknown option: -I$"),  # 2.7
    _cause("stdin", "something there read our stdin", "look for a start-up file (.bashrc, .profile) that reads",
           DAMAGED),
    _cause("stdin", "something there read our stdin", "look for a start-up file (.bashrc, .profile) that reads",
           1, says=r"^StopIteration$|^ValueError: (invalid literal for int\(\)|.* values to unpack)"),
    _cause("not a Python", "what answered is a Python that reads commands, not the one that was asked for",
           "look for a ForceCommand there, or another program in the place of python3",
           says=r'File "<(stdin|python-input-\d+)>", line \d+|^SyntaxError: '),
    COMMANDS,
    _cause("no shell", "its account may not run commands", "give it a login shell, in the place of nologin or of sftp",
           1, says=r"^This account is (currently )?not available|^This service allows sftp connections only"),
    WRONG_PASSWORD,
    _cause("password needed", "sudo asks for a password there", "give password=, or a NOPASSWD rule in sudoers",
           SUDO, says=r"^sudo: (a password is required|a terminal is required|no password was provided)"),
    _cause("not in sudoers", "sudo does not allow it to this user", "add a rule for it to sudoers there",
           SUDO, says=r"is not in the sudoers file|^Sorry, user \S+ (is not allowed to execute|may not run sudo)"),
    _cause("requiretty", "sudo wants a terminal there, and trickle has none",
           "switch requiretty off for this user in sudoers", SUDO, says=r"^sudo: sorry, you must have a tty"),
    _cause("no such user", "there is no such user", "check user=", SUDO, says=r"^sudo: unknown user"),
    _cause("no Python", "there is no command {what} there", "check python= and what is installed",
           SUDO, says=r"^sudo: (?P<what>\S+): command not found"),
)  # fmt: skip
CAUSES = (
    *LAST_WORDS,
    _cause("not installed", "there is no {what} there", "install it there", 1, 127, NOT_PULLED,
           says=r"\b(?P<what>ssh|sudo|docker|podman)\W{0,2}: ([Cc]ommand not found|not found|No such file)"),
    _cause("not installed", "there is no {what} there", "install it there", 1, 127, NOT_PULLED,
           says=r"([Cc]ommand not found|Unknown command):? (?P<what>ssh|sudo|docker|podman)$"),
    # ---- engines
    _cause("no such user", "there is no such user", "check user=", *ENGINE, says=r"unable to find user "),
    _cause("engine not running", "the container engine does not answer", "start it, or check DOCKER_HOST",
           *ENGINE, says=r"Cannot connect to (the Docker daemon|Podman)|^(docker: )?error during connect:"),
    _cause("engine refused", "this user may not use the container engine",
           "add the user to its group (docker), or reach it through Sudo()",
           *ENGINE, says=r"permission denied while trying to connect to the [Dd]ocker"),
    _cause("no init", "its container engine finds no program to be the container's first process",
           'install one (catatonit for podman, docker-init for docker), or give run_options=("--init=false",)',
           *ENGINE, says=r'container-init binary not found|exec: "docker-init": executable file not found'),
    _cause("no such container", "there is no such container", "check the name with docker ps",
           *ENGINE, says=r"No such container: |no container with name or ID "),
    _cause("container not running", "the container is not running", "start it, or unpause it",
           255, *ENGINE, says=r"[Cc]ontainer \S+ is (not running|paused|restarting)|container state improper"),
    _cause("disk full", "there is no room left on the engine's disk", "make room there, such as by docker system prune",
           *ENGINE, says=r"^(docker: |Error|failed to |write ).*(no space left on device|[Dd]isk quota exceeded)"),
    _cause("no such image", "the image is not there and cannot be pulled",
           "check its name, and whether the engine has to log in to its registry", NOT_PULLED),
    # ---- ssh
    _cause("ssh options", "the ssh that was run has no option {what}",
           "look in ssh_config and ssh_options=; if it is one of trickle's, install OpenSSH 8.7 or later where it runs",
           SSH, says=r"Bad configuration option: (?P<what>\S+)"),
    _cause("name lookup", "the name {what} could not be looked up just now", "try again, or check DNS",
           SSH, says=r"Could not resolve hostname (?P<what>\S+): Temporary failure in name resolution", passing=True),
    _cause("name lookup", "the name {what} cannot be looked up", "check the spelling, DNS and ssh_config",
           SSH, says=r"Could not resolve hostname (?P<what>\S+): "),
    _cause("host key changed", "its host key is not the one in known_hosts",
           "find out why before you remove the old key with ssh-keygen -R",
           SSH, says=r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    _cause("host key unknown", "its host key is not known",
           "connect once by hand with ssh and check the key, or add it to known_hosts",
           SSH, says=r"^Host key verification failed\.|^No .* host key is known"),
    _cause("authentication", "it did not let us in",
           "check the user name and the keys (ssh-add -l); passwords are never asked for",
           SSH, says=r"^(\S+@\S+: )?Permission denied \([a-z0-9,-]+\)\.\s*$|Too many authentication failures"),
    _cause("refused", "the connection was refused", "check that sshd runs there, and the port",
           SSH, says=CONNECTING + r"Connection refused", passing=True),
    _cause("unreachable", "it cannot be reached", "check the network and the address",
           SSH, says=CONNECTING + r"(No route to host|Network is unreachable|Host is down)", passing=True),
    _cause("timed out", "nothing answered at its address", "check the address and firewalls",
           SSH, says=CONNECTING + r"(Connection|Operation) timed out|^Connection timed out during banner exchange"
                     r"|^Connection to \S+ port \d+ timed out|^Timeout, server \S+ not responding", passing=True),
    _cause("unreachable", "the host on the way there cannot reach it", "check that it can, from that host",
           SSH, says=r"^stdio forwarding failed|open failed: ", passing=True),
    _cause("too many sessions", "the connection was closed before the login",
           "it may limit how many log in at once (MaxStartups): give connect_retries, or a lower connect_limit",
           SSH, says=r"(kex|ssh)_exchange_identification: |Exceeded MaxStartups", passing=True),
    _cause("connection closed", "it closed the connection", "see its own log, such as sshd's",
           SSH, says=r"Connection (to \S+ )?(closed|reset) by |: Broken pipe", passing=True),
    _cause("unknown", "ssh failed and did not say why", "set LogLevel to INFO, or run ssh by hand",
           SSH, says=r"\A\s*\Z"),
    # ---- any
    _cause("too many processes", "no process can be started there", "see what runs there, or raise ulimit -u",
           says=r"Cannot fork|fork: .*Resource temporarily unavailable"),
    _cause("killed", "what we started there was killed", "look for the kernel's out-of-memory killer in its log",
           137, -9),
    _cause("no Python", "a command cannot be run there", "check python= and what is installed", 126),
    _cause("no Python", "a command was not found there", "check python= and what is installed", 127),
    _cause("not a Python", "what was run there ended at once, and well: that is no Python",
           "check python=, and what its login shell runs", 0),
    _cause("sudo", "sudo did not run our command", "see what it says",
           SUDO, says=r"^sudo: (?!unable to resolve host|unable to send audit|setrlimit)"),  # with these it goes on
)  # fmt: skip


def connect_error(
    host: str,
    *,
    stage: str,
    exit_status: int | None,
    stderr: str,
    noise: bytes = b"",
    refused: bool = False,
    misread: str = "",
    timeout: float | None = None,
    attempts: int = 1,
) -> ConnectError:
    """The ConnectError for a tunnel that ended, or had its time, before an agent answered."""
    stdout = noise.decode("utf-8", "replace")
    found = _find(exit_status, f"{stderr}\n{stdout}")
    facts: dict[str, str] = {}
    if refused:
        cause = WRONG_PASSWORD
    elif exit_status == WRONG_READER and GUARD_WORDS[0] in noise:
        cause = MISREAD["echo"]  # a shell on a terminal, which showed the one line that it got to
    elif misread and not (misread == "commands" and found and found[0].reason in (COMMANDS.reason, "stdin")):
        cause = MISREAD[misread]
    elif found is not None:
        cause, facts = found
    elif timeout is not None:
        cause, facts = TIMED_OUT, {"timeout": f"{timeout:g}", "stage": stage}
    elif exit_status is None:
        cause = NO_END
    elif exit_status < 0:
        cause, facts = KILLED, {"signal": str(-exit_status)}
    else:
        cause, facts = UNKNOWN, {"status": str(exit_status)}
    error = _error(cause, facts, host, attempts=attempts, said=stderr.strip() or stdout.strip())
    error.stage, error.exit_status, error.stderr = stage, exit_status, stderr
    return error


def cannot_run(host: str, what: str, exc: OSError, stage: str) -> ConnectError:
    """The ConnectError for a tunnel whose command could not be started."""
    cause = NOT_INSTALLED if isinstance(exc, FileNotFoundError) else NOT_RUN
    if exc.errno in USED_UP:
        advice = "there are no more descriptors, processes or bytes for this user of this machine: see ulimit -a"
        cause = dataclasses.replace(cause, advice=advice)
    if relay := getattr(exc, "host", ""):  # which was to run it
        cause = dataclasses.replace(cause, advice=cause.advice.replace("this machine", relay))
    error = _error(cause, {"what": repr(what), "why": exc.strerror or repr(exc)}, host)
    error.stage = stage
    error.__cause__ = exc
    return error


def _find(exit_status: int | None, said: str) -> tuple[Cause, dict[str, str]] | None:
    for cause in CAUSES if exit_status is not None else LAST_WORDS:
        facts = cause.found_in(exit_status, said)
        if facts is not None:
            return cause, facts
    return None


def _error(cause: Cause, facts: Mapping[str, str], host: str, *, attempts: int = 1, said: str = "") -> ConnectError:
    happened = cause.happened.format_map(facts)
    if attempts > 1:
        happened += f" (attempt {attempts})"
    last = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
    lines = [f"{host}: {printable(happened)}; {cause.advice}", *last]
    error = ConnectError("\n  ".join(map(printable, lines)), host=host, reason=cause.reason)
    error._is_passing = cause.passing
    return error


def causes() -> Iterator[Cause]:
    """All of them, for the documentation."""
    yield from CAUSES
    yield from (MISREAD["router"], MISREAD["echo"], TIMED_OUT, NOT_INSTALLED, NOT_RUN, KILLED, UNKNOWN, NO_END)


def printable(text: str) -> str:
    """A host's text without what would steer a terminal."""
    return text if text.isprintable() else text.translate(_SHOWN)


def printable_lines(text: str) -> str:
    """The same of a text of several lines."""
    return text.translate(_SHOWN_LINES)


class _Shown(dict[int, str]):
    """What `str.translate` asks: found out once for the characters that are met first."""

    def __missing__(self, code: int) -> str:
        shown = chr(code) if chr(code).isprintable() else "\N{REPLACEMENT CHARACTER}"
        if len(self) < 4096:  # a host may send them all
            self[code] = shown
        return shown


_SHOWN = _Shown({9: "\t"})
_SHOWN_LINES = _Shown({9: "\t", 10: "\n"})
