"""Say in one sentence why no agent answered: from the exit status and what was said on the way."""

from __future__ import annotations

import re

from trickle._boot import DAMAGED, TOO_OLD, WRONG_READER
from trickle._exceptions import ConnectError

# What OpenSSH and shells say -> (reason, what happened, what to try).  The first that fits counts.
_SAYINGS = (
    (r"Could not resolve hostname", "name lookup", "its name cannot be looked up",
     "check the spelling, DNS and ssh_config"),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "host key changed", "its host key is not the one in known_hosts",
     "find out why before you remove the old key with ssh-keygen -R"),
    (r"Host key verification failed|No .* host key is known", "host key", "its host key is not known",
     "connect once by hand with ssh and check the key, or add it to known_hosts"),
    (r"Permission denied|Too many authentication failures", "authentication", "it did not let us in",
     "check the user name and the keys (ssh-add -l); passwords are never asked for"),
    (r"Connection refused", "refused", "it refused the connection", "check that sshd runs there, and the port"),
    (r"No route to host|Network is unreachable", "unreachable", "it cannot be reached",
     "check the network and the address"),
    (r"Connection timed out|Operation timed out", "timed out", "it did not answer", "check the address and firewalls"),
    (r"kex_exchange_identification|Connection reset by|Connection closed by", "too many sessions",
     "it closed the connection before the login", "it may limit how many connect at once (MaxStartups); try again"),
    (r"Unknown option: -I", "too old", "its Python is older than 3.6",
     "install Python 3.6 or later there, or give python="),
)  # fmt: skip

_PYTHONS = re.compile(r"trickle: found no Python 3\.6 or later;(.*)")


def connect_error(
    host: str, *, stage: str, exit_status: int | None, stderr: str, noise: bytes, timeout: float | None = None
) -> ConnectError:
    """The ConnectError for a tunnel that ended, or had its time, before an agent answered."""
    reason, happened, advice = _diagnose(exit_status, stderr, noise, timeout, stage)
    message = f"{host}: {happened}; {advice}"
    said = stderr.strip() or noise.decode("utf-8", "replace").strip()
    if said:
        message += "\n" + "\n".join(f"  {printable(line)}" for line in said.splitlines()[-5:])
    return ConnectError(message, host=host, reason=reason, stage=stage, exit_status=exit_status, stderr=stderr)


def _diagnose(
    exit_status: int | None, stderr: str, noise: bytes, timeout: float | None, stage: str
) -> tuple[str, str, str]:
    if found := _PYTHONS.search(stderr):
        if not found[1].strip():
            return (
                "no Python",
                "it has no Python that we could find",
                "install Python 3.6 or later there, or give python=",
            )
        return (
            "too old",
            f"it has no Python 3.6 or later, only{found[1].rstrip(';')}",
            "install one, or give python=",
        )
    if exit_status == TOO_OLD:
        return "too old", "its Python is older than 3.6", "give python= the path of a newer one"
    if exit_status == DAMAGED or "invalid literal for int()" in stderr or "not enough values to unpack" in stderr:
        return (
            "stdin",
            "something there read our stdin",
            "look for a start-up file (.bashrc, .profile) that reads",
        )
    if exit_status == WRONG_READER:
        return (
            "not a Python",
            "what answered is a shell, not the command that was sent",
            "look for a ForceCommand there",
        )
    for pattern, reason, happened, advice in _SAYINGS:
        if re.search(pattern, stderr):
            return reason, happened, advice
    if timeout is not None:
        return (
            "timed out",
            f"no agent answered within {timeout:g} s ({stage})",
            "raise connect_timeout if it is just slow",
        )
    if exit_status in (126, 127):
        return "no Python", "a command was not found there", "check python= and what is installed"
    advice = "see what it said before" if stderr.strip() or noise.strip() else "run its command by hand to see why"
    if exit_status is not None and exit_status < 0:
        return "killed", f"the tunnel was killed by signal {-exit_status}", advice
    return (
        "unknown",
        f"the tunnel ended with status {exit_status} before an agent answered",
        "see what it said before",
    )


def printable(text: str) -> str:
    """A host's text without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
