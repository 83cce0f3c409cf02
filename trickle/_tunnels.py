"""The tunnels that come with trickle: build the command line that reaches a host.  Running it is _link.py's job."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from trickle import _boot
from trickle.abc import NONCE, Tunnel, announced, check_words, is_plain_word, join_words

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
    *("-o", "SessionType=default", "-o", "ForkAfterAuthentication=no", "-o", "ClearAllForwardings=yes"),
)
# These come after the user's words, of which ssh takes the first that it reads.
SSH_DEFAULTS = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
# Options that older versions of OpenSSH refuse to start with, and the version that brought them.
SSH_NEWER = {"RemoteCommand": (7, 6), "StdinNull": (8, 7), "SessionType": (8, 7), "ForkAfterAuthentication": (8, 7)}
# On another machine nobody has asked for the version.  This comes before those options; it must not be a list of them,
# as it takes the place of a list in the user's ssh_config there.
SSH_ELSEWHERE = ("-o", "IgnoreUnknown=*")

# Pulls an image that the engine $1 does not have (87: it could not be pulled), creates a container and starts it.
# While it pulls, it says so every second: once nobody is there to hear that, all of this process group ends.  `run`
# would do the rest in one, but dies of a warning that nobody hears, and leaves what it has created.  It is started from
# a directory where podman's conmon can leave no file: it notes there that memory ran out.
RUN = (
    '$1 image inspect "$2" >/dev/null 2>&1 </dev/null || {'
    ' p="trickle $0 preparing to run $2: pulling it"; echo "$p" >&2;'
    ' { trap "" PIPE; while sleep 1 && echo 2>/dev/null; do echo "$p" >&2 || kill 0; done; } </dev/null |'
    ' $1 pull "$2" >&2 || exit 87; };'
    ' echo "trickle $0 prepared" >&2; e=$1; shift 2;'
    ' c=$($e create "$@" 2>&1 </dev/null) || { s=$?; echo "$c" >&2; exit $s; };'
    " for c in $c; do :; done; case $e in /*) cd /proc;; */*) ;; *) cd /proc;; esac 2>/dev/null;"
    " exec $e start --attach --interactive --detach-keys= $c"
)
# Ends containers with the connection's label: those that `ps` lists with the options $2, by the commands `kill` and $3.
# It looks a second time when there was none: the engine goes on to make one for a client that was killed.
# A podman that was killed forgets a process that it was about to start a container with, and does not list the files
# of a container that it was about to make.
LEFTOVERS = (
    'for i in 1 2 3 4 5; do c=$(pgrep -d, -f "conmon .* -n trickle-$0 ") && pkill -9 -P $c;'
    " c=$($1 ps --quiet --filter label=trickle=$0 $2); case $i$c in"
    " 1) sleep 1;; 2|3|4|5) c=$($1 ps --all --quiet --filter label=trickle=$0);"
    ' [ "$c" ] || $1 rm --force --volumes trickle-$0; exit;; *) $1 kill $c; $1 $3 $c || sleep 1;;'
    " esac; done </dev/null >/dev/null 2>&1"
)
RUNNING = "--all --filter status=running --filter status=paused"
# Frames go through the container's stdout, which an engine would keep in a log.
CREATE_OPTIONS = (
    *("--interactive", "--init", "--log-driver=none"),
    *("--label", f"trickle={NONCE}", "--name", f"trickle-{NONCE}"),
)

_HOST = re.compile(r"[^\s\\!'\"`$;&|<>(){}*?#~-][^\s\\!'\"`$;&|<>(){}*?#]*")


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
        object.__setattr__(self, "ssh_options", _words("ssh_options", self.ssh_options, ("-i", "key")))
        if not isinstance(self.host, str) or not _HOST.fullmatch(self.host) or not self.host.isprintable():
            raise ValueError(f"host={self.host!r}: it is not a host name that can be passed to ssh safely")
        check_words(user=self.user)
        if self.port is not None and not (type(self.port) is int and 0 < self.port < 65536):
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
            *(SSH_ELSEWHERE if self.via is not None else ()),
            *SSH_OPTIONS,
            *login,
            *port,
            *self.ssh_options,
            *SSH_DEFAULTS,
            self.host,
            join_words(argv),
        )
        return self.through(words)


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
        object.__setattr__(self, "argv", _words("argv", self.argv, ("nsenter", "-t", "1", "-a")))
        if not self.argv:
            raise ValueError("Command(): an empty prefix reaches nothing; Local() is a Python on this machine")
        super().__post_init__()

    def default_name(self) -> str:
        """The command's own name."""
        return os.path.basename(self.argv[0])  # noqa: PTH119 (a word, not a path of ours)

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The prefix, and *argv* behind it: word by word, or as one command line."""
        return self.through((*self.argv, join_words(argv)) if self.shell else (*self.argv, *argv))


@dataclasses.dataclass(frozen=True)
class Docker(Tunnel):
    """A fresh container, which is gone at the end of the block.  An image that is not there is pulled first.

    Pulling does not count for ``connect_timeout``.  The container has the label ``trickle``.

    Args:
      name: what the host is called.  The container's own name is ``trickle-`` and 32 hexadecimal digits.
      image: what to run; it needs a Python and, unless ``python=`` is given, ``sh``.
      engine: the program that runs containers: ``"docker"``, or ``"podman"``.
      rm: whether the container is removed when it ends.
      user: the user in the container.
      run_options: more words for ``docker run``, such as ``("--network", "none")``.
      env: environment variables of the container, as a mapping or as pairs.  They stand in the command line, where
        other users of the machine can read them; secrets belong into ``options(env=)``.
    """

    name: str | None = dataclasses.field()  # required, unlike the base's
    image: str = dataclasses.field(kw_only=True)
    engine: str = dataclasses.field(default="docker", kw_only=True)
    rm: bool = dataclasses.field(default=True, kw_only=True)
    user: str | None = dataclasses.field(default=None, kw_only=True)
    run_options: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    env: Mapping[str, str] | Iterable[tuple[str, str]] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_options", _words("run_options", self.run_options, ("--network", "none")))
        object.__setattr__(self, "env", _pairs(self.env))
        check_words(image=self.image or "", engine=self.engine or "", user=self.user)
        super().__post_init__()

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``docker create ... image argv`` and ``docker start``, in a shell that pulls the image if need be."""
        first, *others = argv
        words = (
            *(*CREATE_OPTIONS, *(("--rm",) if self.rm else ())),
            *_engine_options(self.user, self.env),
            *self.run_options,
            *("--entrypoint", first, self.image, *others),
        )
        return self.through(("sh", "-c", RUN, NONCE, self.engine, self.image, *words))

    def leftovers(self) -> tuple[str, ...]:
        """``docker kill`` of the containers with this connection's label, and ``docker rm`` unless they are kept."""
        which, verb = ("--all", "rm --force --volumes") if self.rm else (RUNNING, "wait")
        return self.through(("sh", "-c", LEFTOVERS, NONCE, self.engine, which, verb))


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
        check_words(container=self.container or "", engine=self.engine or "", user=self.user)
        super().__post_init__()

    def default_name(self) -> str:
        """The container's."""
        return self.container

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``docker exec -i ... container argv``."""
        options = _engine_options(self.user, self.env)
        return self.through((self.engine, "exec", "--interactive", "--detach-keys=", *options, self.container, *argv))


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
        check_words(user=self.user or "")
        if self.password is not None and not _is_password(self.password):
            raise ValueError("password: it is not a text, or empty, or has a line end in it, which no prompt takes")
        super().__post_init__()

    def default_name(self) -> str:
        """``sudo:db1``; for another user than root, ``sudo:user@db1``."""
        where = self.via.name if self.via is not None else Local().name
        return f"sudo:{where}" if self.user == "root" else f"sudo:{self.user}@{where}"

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``sudo ... argv``."""
        if self.password is None:
            return self.through(("sudo", "-n", "-H", "-u", self.user, "--", *argv))
        # -k: what happens does not depend on whether the password was given before.  sudo makes one % of two, so
        # that the prompt itself stands in no command line: what prints that is not given the password.
        prompt = self._prompt(NONCE).replace("%", "%%")
        return self.through(("sudo", "-k", "-S", "-p", prompt, "-H", "-u", self.user, "--", *announced(argv)))

    def answers(self, nonce: str) -> Mapping[str, str]:
        """The password, for sudo's prompt."""
        return {} if self.password is None else {self._prompt(nonce): self.password}

    def _prompt(self, nonce: str) -> str:
        """One for each sudo on the way, as each has a password of its own."""
        number, tunnel = 1, self.via
        while tunnel is not None:
            number += isinstance(tunnel, Sudo)
            tunnel = tunnel.via
        return f"trickle%{nonce}:{number}:"


def _words(what: str, words: Iterable[str | os.PathLike[str]], example: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(words, str | bytes) or not isinstance(words, Iterable):
        raise ValueError(f"{what}={words!r}: give a tuple of words, such as {example!r}")
    found = tuple(os.fspath(word) if isinstance(word, os.PathLike) else word for word in words)
    for word in found:
        if not isinstance(word, str) or "\0" in word:
            raise ValueError(f"{what}: {word!r} is not a word of a command line")
    return found


def _pairs(env: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if not isinstance(env, Iterable):
        raise ValueError(f"env={env!r}: give a mapping, or pairs of a name and a value")
    pairs = tuple(env.items()) if isinstance(env, Mapping) else tuple(env)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"env: {pair!r} is not a pair of texts, the name of an environment variable and its value")
        name, value = pair
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env: {name!r}: {value!r} is not an environment variable with a text")
    return pairs


def _is_password(password: object) -> bool:
    try:
        return isinstance(password, str) and bool(password.encode()) and not set("\n\r\0") & set(password)
    except UnicodeEncodeError:
        return False


def _engine_options(user: str | None, env: Mapping[str, str] | Iterable[tuple[str, str]]) -> tuple[str, ...]:
    variables = [word for name, value in _pairs(env) for word in ("--env", f"{name}={value}")]
    return (*(("--user", user) if user is not None else ()), *variables)


def as_tunnel(tunnel: Tunnel | str) -> Tunnel:
    """A plain string is the name of an ssh host.

    Raises:
      TypeError: it is neither a tunnel nor a string.
      ValueError: its command, as it is nested, cannot be run; found out here, before anything has begun.
    """
    if isinstance(tunnel, str):
        return SSH(tunnel)
    if not isinstance(tunnel, Tunnel):
        raise TypeError(f"{tunnel!r} is neither a tunnel nor a host name")
    if tunnel.name is None:
        raise ValueError(f"{tunnel!r} has no name: its __post_init__ is to call super().__post_init__()")
    words = tunnel.wrap(_boot.python_command(tunnel.python))
    if not isinstance(words, tuple) or not words or not all(map(_is_word, words)):
        raise ValueError(f"{tunnel.name}: wrap() is to return a tuple of words, and gave {words!r}")
    return tunnel


def _is_word(word: object) -> bool:
    try:
        return isinstance(word, str) and b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False
