"""The tunnels that come with trickle: build the command line that reaches a host.  Running it is _link.py's job."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from trickle.abc import NONCE, Tunnel, announced, is_plain_word, join_words

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

# Pulls an image that the engine $1 does not have (87: it could not be pulled), creates a container and starts it.
# While it pulls, it says so every second: once nobody is there to hear that, all of this process group ends.  `run`
# would do the rest in one, but dies of a warning that nobody hears, and leaves what it has created.
RUN = (
    '$1 image inspect "$2" >/dev/null 2>&1 </dev/null || {'
    ' p="trickle $0 preparing to run $2: pulling it"; echo "$p" >&2;'
    ' { trap "" PIPE; while sleep 1 && echo 2>/dev/null; do echo "$p" >&2 || kill 0; done; } </dev/null |'
    ' $1 pull "$2" >&2 || exit 87; };'
    ' echo "trickle $0 prepared" >&2; e=$1; shift 2;'
    ' c=$($e create "$@" 2>&1 </dev/null) || { s=$?; echo "$c" >&2; exit $s; };'
    " for c in $c; do :; done; exec $e start --attach --interactive --detach-keys= $c"
)
# Ends containers with the connection's label: those that `ps` lists with the options $2, by the commands `kill` and $3.
# It looks a second time when there was none: the engine goes on to make one for a client that was killed.
LEFTOVERS = (
    "for i in 1 2 3 4 5; do c=$($1 ps --quiet --filter label=trickle=$0 $2); case $i$c in"
    " 1) sleep 1;; 2|3|4|5) exit;; *) $1 kill $c; $1 $3 $c || sleep 1;;"
    " esac; done </dev/null >/dev/null 2>&1"
)
RUNNING = "--all --filter status=running --filter status=paused"
# Frames go through the container's stdout, which an engine would keep in a log.
CREATE_OPTIONS = ("--interactive", "--init", "--log-driver=none", "--label", f"trickle={NONCE}")


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
        if self.user is not None and not is_plain_word(self.user):
            raise ValueError(f"user={self.user!r}: only letters, digits and _./:=,@%+- can be passed on safely")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port={self.port!r}: a port is a number from 1 to 65535")
        if self.via is not None:
            for word in self.ssh_options:
                if not is_plain_word(word):
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


@dataclasses.dataclass(frozen=True)
class Docker(Tunnel):
    """A fresh container, which is gone at the end of the block.  An image that is not there is pulled first.

    Pulling does not count for ``connect_timeout``.  The container has the label ``trickle``.

    Args:
      name: what the host is called; the engine gives the container a name of its own.
      image: what to run; it needs a Python and, unless ``python=`` is given, ``sh``.
      engine: the program that runs containers: ``"docker"``, or ``"podman"``.
      rm: whether the container is removed when it ends.
      user: the user in the container.
      run_options: more words for ``docker run``, such as ``("--network", "none")``.
      env: environment variables of the container, as a mapping or as pairs.  They stand in the command line, where
        other users of the machine can read them; secrets belong into ``options(env=)``.
    """

    name: str | None
    image: str = dataclasses.field(kw_only=True)
    engine: str = dataclasses.field(default="docker", kw_only=True)
    rm: bool = dataclasses.field(default=True, kw_only=True)
    user: str | None = dataclasses.field(default=None, kw_only=True)
    run_options: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    env: Mapping[str, str] | Iterable[tuple[str, str]] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.run_options, str):
            raise ValueError(f"run_options={self.run_options!r}: give a tuple of words, such as ('--network', 'none')")
        object.__setattr__(self, "run_options", tuple(self.run_options))
        object.__setattr__(self, "env", _pairs(self.env))
        _check_words(image=self.image, engine=self.engine, user=self.user)
        super().__post_init__()

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``docker create ... image argv`` and ``docker start``, in a shell that pulls the image before if it has to."""
        first, *others = argv
        words = (
            *(*CREATE_OPTIONS, *(("--rm",) if self.rm else ())),
            *_engine_options(self.user, self.env),
            *self.run_options,
            *("--entrypoint", first, self.image, *others),
        )
        return self._through(("sh", "-c", RUN, NONCE, self.engine, self.image, *words))

    def leftovers(self) -> tuple[str, ...]:
        """``docker kill`` of the containers with this connection's label, and ``docker rm`` unless they are kept."""
        which, verb = ("--all", "rm --force --volumes") if self.rm else (RUNNING, "wait")
        return self._through(("sh", "-c", LEFTOVERS, NONCE, self.engine, which, verb))


@dataclasses.dataclass(frozen=True)
class DockerExec(Tunnel):
    """A container that runs already.

    Args:
      container: its name or id.
      engine: the program that runs containers: ``"docker"``, or ``"podman"``.
      user: the user in the container.
      env: environment variables, as a mapping or as pairs; see Docker.
    """

    container: str
    engine: str = dataclasses.field(default="docker", kw_only=True)
    user: str | None = dataclasses.field(default=None, kw_only=True)
    env: Mapping[str, str] | Iterable[tuple[str, str]] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", _pairs(self.env))
        _check_words(container=self.container, engine=self.engine, user=self.user)
        super().__post_init__()

    def default_name(self) -> str:
        """The container's."""
        return self.container

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``docker exec -i ... container argv``."""
        options = _engine_options(self.user, self.env)
        return self._through((self.engine, "exec", "--interactive", "--detach-keys=", *options, self.container, *argv))


@dataclasses.dataclass(frozen=True)
class Sudo(Tunnel):
    """Another user of a host that another tunnel reaches: ``Sudo(via=SSH("db1"))``.

    Args:
      user: who to be over there.
      password: what to answer when sudo asks for a password.  Without it, sudo is told not to ask.
    """

    user: str = "root"
    password: str | None = dataclasses.field(default=None, kw_only=True, repr=False)

    # sudo keeps who has given a password by the session and its terminal: in a new one it would have forgotten.
    new_session: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_words(user=self.user)
        if self.password is not None and (not self.password or set("\n\r\0") & set(self.password)):
            raise ValueError("password: it is empty, or has a line end in it, which no prompt takes")
        super().__post_init__()

    def default_name(self) -> str:
        """``sudo:db1``; for another user than root, ``sudo:user@db1``."""
        where = self.via.name if self.via is not None else Local().name
        return f"sudo:{where}" if self.user == "root" else f"sudo:{self.user}@{where}"

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``sudo ... argv``."""
        if self.password is None:
            return self._through(("sudo", "-n", "-H", "-u", self.user, "--", *argv))
        # -k: what happens does not depend on whether the password was given before.  sudo makes one % of two, so
        # that the prompt itself stands in no command line: what prints that is not given the password.
        prompt = f"trickle%%{NONCE}:{self.user}:"
        return self._through(("sudo", "-k", "-S", "-p", prompt, "-H", "-u", self.user, "--", *announced(argv)))

    def answers(self, nonce: str) -> Mapping[str, str]:
        """The password, for sudo's prompt."""
        return {} if self.password is None else {f"trickle%{nonce}:{self.user}:": self.password}


def _pairs(env: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs = tuple((name, value) for name, value in (env.items() if isinstance(env, Mapping) else env))
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str) or not name or "=" in name:
            raise ValueError(f"env: {name!r}: {value!r} is not an environment variable with a text")
    return pairs


def _engine_options(user: str | None, env: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[str, ...]:
    variables = [word for name, value in _pairs(env) for word in ("--env", f"{name}={value}")]
    return (*(("--user", user) if user is not None else ()), *variables)


def _check_words(**words: str | None) -> None:
    for what, word in words.items():
        if word is not None and (not is_plain_word(word) or word.startswith("-")):
            raise ValueError(f"{what}={word!r}: only letters, digits and _./:=,@%+- can be passed on safely")


def as_tunnel(tunnel: Tunnel | str) -> Tunnel:
    """A plain string is the name of an ssh host."""
    if isinstance(tunnel, str):
        return SSH(tunnel)
    if isinstance(tunnel, Tunnel):
        return tunnel
    raise TypeError(f"{tunnel!r} is neither a tunnel nor a host name")
