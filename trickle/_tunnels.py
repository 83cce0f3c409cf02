"""The tunnels that come with trickle: build the command line that reaches a host.  Running it is _link.py's job."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from trickle.abc import Tunnel, join_words

# What ssh is always told.  -T: a terminal would garble frames.  ControlMaster=no: use a live master, but never become
# one, for a master outlives its own command and takes the others along when it dies.  The rest keeps the user's
# ssh_config from changing what runs or where its stdin goes.  None of it weakens the checking of host keys.
SSH_OPTIONS = (
    *(
        "-T",
        "-o",
        "BatchMode=yes",
        "-o",
        "ControlMaster=no",
        "-o",
        "RemoteCommand=none",
        "-o",
        "StdinNull=no",
    ),
    *("-o", "ForkAfterAuthentication=no", "-o", "ClearAllForwardings=yes"),
)
# These come after the user's words, of which ssh takes the first that it reads.
SSH_DEFAULTS = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
# Options that older versions of OpenSSH refuse to start with, and the version that brought them.
SSH_NEWER = {"RemoteCommand": (7, 6), "StdinNull": (8, 7), "ForkAfterAuthentication": (8, 7)}

_SAFE = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")


@dataclasses.dataclass(frozen=True)
class Local(Tunnel):
    """A Python on this machine, in processes of its own.

    Args:
      name: what the host is called.
    """

    name: str | None = "localhost"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.via is not None:
            raise ValueError("Local() is reached through nothing: via= belongs to the tunnel around it")

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """*argv* itself."""
        return tuple(argv)


@dataclasses.dataclass(frozen=True)
class SSH(Tunnel):
    """A host reached by the system's ``ssh``, so that ssh_config, agents and known_hosts work as they always do.

    ``via=SSH("bastion")`` runs ssh *on* the bastion, with its keys; for a jump host in between, use
    ``ssh_options=("-J", "bastion")`` or ssh_config.

    Args:
      host: a host name or an alias of ssh_config; ``user@host`` works too.
      user: the user to log in as.
      port: the port to connect to.
      ssh_options: words for ssh's command line, such as ``("-i", "key")``.
    """

    host: str
    user: str | None = dataclasses.field(default=None, kw_only=True)
    port: int | None = dataclasses.field(default=None, kw_only=True)
    ssh_options: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.ssh_options, str):
            raise ValueError(f"ssh_options={self.ssh_options!r}: give a tuple of words, such as ('-i', 'key')")
        object.__setattr__(self, "ssh_options", tuple(self.ssh_options))
        if not isinstance(self.host, str) or not self.host or self.host.startswith("-") or not self.host.isprintable():
            raise ValueError(f"{self.host!r} is not a host name")
        for what, value in (("host", self.host), ("user", self.user)):
            if value is not None and not re.fullmatch(r"[^\s\\!'\"`$;&|<>(){}*?#~-][^\s\\!'\"`$;&|<>(){}*?#]*", value):
                raise ValueError(f"{what}={value!r}: it has a character that cannot be passed to ssh safely")
        if self.user is not None and not _SAFE.fullmatch(self.user):
            raise ValueError(f"user={self.user!r}: only letters, digits and _./:=,@%+- can be passed on safely")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port!r}: a port is a number from 1 to 65535")
        if self.via is not None:
            for word in self.ssh_options:
                if not _SAFE.fullmatch(word):
                    raise ValueError(
                        f"ssh_options word {word!r}: with via=, only letters, digits and _./:=,@%+- can be passed on"
                    )
        super().__post_init__()

    def default_name(self) -> str:
        """``host``, or ``user@host``."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``ssh ... host 'argv, as one command line'``."""
        login = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        words = (
            "ssh",
            *SSH_OPTIONS,
            *login,
            *port,
            *self.ssh_options,
            *SSH_DEFAULTS,
            self.host,
            join_words(argv),
        )
        return self._through(words)


@dataclasses.dataclass(frozen=True)
class Command(Tunnel):
    """Any prefix that runs a command with stdin and stdout connected: ``kubectl exec -i pod --``, ``lxc exec c --``.

    Args:
      argv: the words of the prefix.
      shell: whether the far side joins the words and hands them to a shell, as ssh does.
    """

    argv: Sequence[str]
    shell: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.argv, str):
            raise ValueError(f"Command({self.argv!r}): give a list of words, such as ('nsenter', '-t', '1', '-a')")
        object.__setattr__(self, "argv", tuple(os.fspath(word) for word in self.argv))
        if not self.argv:
            raise ValueError("Command(): an empty prefix reaches nothing; Local() is a Python on this machine")
        super().__post_init__()

    def default_name(self) -> str:
        """The command's own name."""
        return os.path.basename(self.argv[0])  # noqa: PTH119 (a word, not a path of ours)

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The prefix, and *argv* behind it: word by word, or as one command line."""
        return self._through((*self.argv, join_words(argv)) if self.shell else (*self.argv, *argv))


def as_tunnel(tunnel: Tunnel | str) -> Tunnel:
    """A plain string is the name of an ssh host."""
    if isinstance(tunnel, str):
        return SSH(tunnel)
    if isinstance(tunnel, Tunnel):
        return tunnel
    raise TypeError(f"{tunnel!r} is neither a tunnel nor a host name")
