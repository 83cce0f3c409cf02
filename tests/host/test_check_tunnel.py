"""The contract suite says what is broken of a tunnel, whatever that is."""

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trickle
from tests import faulty_relay
from trickle import _check_tunnel
from trickle.abc import NONCE, Tunnel, announced
from trickle.testing import check_tunnel

PYTHON = sys.executable


@dataclasses.dataclass(frozen=True)
class Shell(Tunnel):
    """Runs a line of sh, in which "$@" is the command."""

    line: str

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return self.through(("sh", "-c", self.line, "login", *argv))


@dataclasses.dataclass(frozen=True)
class Asking(Tunnel):
    """Asks for a secret, and again if it was wrong; standing in for doas, su and their like."""

    secret: str = dataclasses.field(repr=False)
    right: str = dataclasses.field(default="open sesame", repr=False)
    announces: bool = True

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        line = (
            'nonce=$1; shift; for attempt in 1 2; do printf "secret for %s: " $nonce >&2; IFS= read -r secret;'
            ' [ "$secret" = "$(printenv RIGHT)" ] && exec "$@"; echo no >&2; done; exit 1'
        )
        words = announced(argv) if self.announces else argv
        return self.through(("sh", "-c", line, "ask", NONCE, *words))

    def answers(self, nonce: str) -> Mapping[str, str]:
        return {f"secret for {nonce}: ": self.secret}


# ---- what is broken as data


class Mutable(Shell):
    __setattr__ = object.__setattr__


class Undeclared(Tunnel):
    def __init__(self, line: str) -> None:
        super().__init__()
        object.__setattr__(self, "line", line)

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return tuple(argv)


@dataclasses.dataclass(frozen=True)
class Nameless(Shell):
    def __post_init__(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Wrapped(Tunnel):
    """Gives what a function gives."""

    wrapper: Callable[[Any], Any]

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return self.wrapper(argv)  # type: ignore[no-any-return]


numbers = itertools.count()


def counted(argv: Sequence[str]) -> tuple[str, ...]:
    return ("env", f"NUMBER={next(numbers)}", *argv)


def as_list(argv: Sequence[str]) -> list[str]:
    return [*argv]


def with_a_number(argv: Sequence[str]) -> tuple[object, ...]:
    return ("nice", "-n", 5, *argv)


def prepended(argv: Any) -> tuple[str, ...]:
    if isinstance(argv, list):
        argv.insert(0, "env")
        return tuple(argv)
    return ("env", *argv)


def of_no_empty_words(argv: Sequence[str]) -> tuple[str, ...]:
    if "" in argv:
        raise ValueError("there is an empty word")
    return tuple(argv)


@dataclasses.dataclass(frozen=True)
class OpenAsking(Asking):
    secret: str


@dataclasses.dataclass(frozen=True)
class SecretInCommand(Asking):
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("env", f"PASSWORD={self.secret}", *super().wrap(argv))


@dataclasses.dataclass(frozen=True)
class PromptInCommand(Asking):
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("env", f"PROMPT=secret for {NONCE}: ", *super().wrap(argv))


@dataclasses.dataclass(frozen=True)
class WithoutVia(Shell):
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("sh", "-c", self.line, "login", *argv)


@dataclasses.dataclass(frozen=True)
class InsideOut(Shell):
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("sh", "-c", self.line, "login", *self.through(argv))


@dataclasses.dataclass(frozen=True)
class LeftoversWithoutVia(Shell):
    def leftovers(self) -> tuple[str, ...]:
        return ("true", NONCE)


AS_DATA: dict[str, tuple[Callable[[], object], str]] = {
    "no tunnel": (lambda: "web1", "gave 'web1', which is no tunnel"),
    "no name": (lambda: Nameless("x"), "its name is None"),
    "can be changed": (lambda: Mutable("x"), "it can be changed"),
    "attributes that are no fields": (lambda: Undeclared("x"), r"attributes that are no fields \(line\)"),
    "a list in a field": (lambda: Shell(["x"]), "it cannot be hashed"),  # type: ignore[arg-type]
    "a field made anew": (lambda: Wrapped(functools.partial(counted)), "two that were made alike are not equal"),
    "a lambda in a field": (lambda make=Wrapped(lambda argv: argv): make, "it cannot be pickled"),  # type: ignore[misc]
    "a list of words": (lambda: Wrapped(as_list), r"wrap\(\) gave \['echo'"),
    "words that are none": (lambda: Wrapped(with_a_number), r"wrap\(\) gave \('nice', '-n', 5"),
    "other words each time": (lambda: Wrapped(counted), "gave other words the second time"),
    "changes its argument": (lambda: Wrapped(prepended), "has changed its argument"),
    "refuses words": (lambda: Wrapped(of_no_empty_words), r"wrap\(\(.*''\)\) raised ValueError"),
    "a secret in its repr": (lambda: OpenAsking(secret="open sesame"), "a secret in its repr"),
    "a secret in its command": (lambda: SecretInCommand("open sesame"), "a secret in its command"),
    "the prompt in its command": (lambda: PromptInCommand("open sesame"), "the prompt .* stands in its command"),
    "no via": (lambda: WithoutVia('exec "$@"'), "via= does not compose"),
    "via inside out": (lambda: InsideOut('exec "$@"'), "via= does not compose: .*'prefix', 'true'"),
    "leftovers without via": (lambda: LeftoversWithoutVia('exec "$@"'), "via= does not compose: .*'true'"),
}


@pytest.mark.parametrize(("make", "says"), AS_DATA.values(), ids=AS_DATA)
async def test_what_is_broken_of_a_tunnel_as_data_is_named(make: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        await check_tunnel(make)


# ---- what is broken of what it runs


@dataclasses.dataclass(frozen=True)
class Joined(Tunnel):
    """Hands words to a shell without quoting them, or in quotes that the shell looks into."""

    quote: str = ""

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return self.through(("sh", "-c", " ".join(f"{self.quote}{word}{self.quote}" for word in argv)))


@dataclasses.dataclass(frozen=True)
class WithoutEmptyWords(Tunnel):
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return self.through(("env", *filter(None, argv)))


PTY = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def shell(line: str) -> Callable[[Path], Tunnel]:
    return lambda directory: Shell(line.replace("DIRECTORY", str(directory)), python=PYTHON)


def relay(fault: str) -> Callable[[Path], Tunnel]:
    """A relay with a fault that it knows."""
    assert f'"{fault}"' in Path(faulty_relay.__file__).read_text()
    return lambda directory: trickle.Command((PYTHON, faulty_relay.__file__, fault, str(directory)), python=PYTHON)


# Once there were two connections at a time, there must always be one.
LEFT = (
    "exec 9>>DIRECTORY/lock; if flock -n 9; then [ -e DIRECTORY/two ] && exit 1; else touch DIRECTORY/two; fi;"
    ' flock -s 9; exec "$@"'
)
AS_COMMAND: dict[str, tuple[Callable[[Path], Tunnel], str]] = {
    "cannot be run": (lambda d: trickle.Command(["/no/such/command"]), "cannot run '/no/such/command'"),
    "reaches nothing": (shell("echo all is lost >&2; exit 1"), "a plain command does not run .* all is lost"),
    "joins words": (lambda d: Joined(), "none with words that are empty or need quotes"),
    "joins words in quotes": (lambda d: Joined('"', python=PYTHON), "none with words that are empty or need quotes"),
    "expands a word": (shell('for w do shift; case $w in \\~) w=$HOME;; esac; set -- "$@" "$w"; done; exec "$@"'),
                       "the first that differs is '/.*', and was '~'"),
    "swallows empty words": (lambda d: WithoutEmptyWords(), "the first that differs is 'plain', and was ''"),
    "a terminal": (lambda d: trickle.Command([PYTHON, "-c", PTY], python=PYTHON), "is a terminal over there"),
    "merges stderr into stdout": (shell('exec "$@" 2>&1'), "stderr is mixed into stdout"),
    "throws stderr away": (shell('exec "$@" 2>/dev/null'), "says on stderr does not arrive"),
    "throws stdout away": (shell('exec "$@" >/dev/null'), "nothing comes from stdout"),
    "says good-bye": (shell('"$@"; status=$?; echo good-bye; exit $status'), "something else is on .*good-bye"),
    "loses the exit status": (shell('"$@"; exit 0'), "exit status of its command is lost: it was 7, and became 0"),
    "does not announce": (lambda d: Asking("open sesame", announces=False), "does not say when nobody asks"),
    "a wrong secret": (lambda d: Asking("abracadabra"), "asks twice for a secret"),
    "eats from stdin": (relay("eats from stdin"), "4320000 bytes of 4352000 came; from byte 4 on"),
    "eats from stdout": (relay("eats from stdout"), r"stdout is not what .* from byte 0 on"),
    "translates line ends": (relay("translates line ends"), r"stdout is not what .* b'\\r\\n"),
    "talks in the middle": (relay("talks in the middle"), "still there"),
    "one connection at a time": (shell('exec flock -n DIRECTORY/lock "$@"'), "beside another connection no"),
    "another version": (lambda d: trickle.Local(python=PYTHON, python_version=(3, 6)), r"python_version=\(3, 6\) is"),
    "breaks when it is left": (shell(LEFT), "after all that no agent answers any more"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "says"), AS_COMMAND.values(), ids=AS_COMMAND)
async def test_what_is_broken_of_its_command_is_named(
    make: Callable[[Path], Tunnel], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHT", "open sesame")

    with pytest.raises(AssertionError, match=says):
        await check_tunnel(lambda: make(tmp_path))


async def test_a_tunnel_that_asks_for_a_secret_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT", "open sesame")

    await check_tunnel(lambda: Asking("open sesame", python=PYTHON))


async def test_a_mock_clock_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(RuntimeError, match="takes real time"):
        await check_tunnel(lambda: trickle.Local(python=PYTHON))


@dataclasses.dataclass(frozen=True)
class Scratch(Tunnel):
    """Makes a directory for each connection, as in docs/how-to/write-a-tunnel.md."""

    where: str

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        line = (
            'echo "trickle $0 prepared" >&2; d=$1/$0; shift;'
            ' mkdir "$d" && (cd "$d" && exec "$@"); status=$?; rm -rf "$d"; exit $status'
        )
        return self.through(("sh", "-c", line, NONCE, self.where, *argv))

    def leftovers(self) -> tuple[str, ...]:
        return self.through(("sh", "-c", 'echo removed >>"$1/log"; rm -rf "$1/$0"', NONCE, self.where))


async def test_a_tunnel_that_may_leave_something_behind_passes(tmp_path: Path) -> None:
    await check_tunnel(lambda: Scratch(str(tmp_path), python=PYTHON))

    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # that of connections that were killed or cancelled


HANGS: dict[str, tuple[Callable[[Path], Tunnel], str]] = {
    "outlives its command": (shell('"$@"; s=$?; cat >/dev/null; exit $s'), "does not end when its command has ended"),
    "holds small messages back": (relay("holds small messages back"), "a single byte on stdin is not answered"),
    "loses the end of stdin": (relay("loses the end of stdin"), "the end of stdin does not reach the command"),
    "one direction at a time": (relay("one direction at a time"), "nothing came any more, with as many on their way"),
    "leaves a helper when it is killed": (
        relay("leaves a helper when it is killed"), "after the tunnel's process was killed, this was still"
    ),
    "holds its pipes open after it was killed": (
        relay("holds its pipes open after it was killed"), "after the tunnel's process was killed, this was still"
    ),
    "leaves a helper when connecting is cancelled": (
        relay("leaves a helper when connecting is cancelled"), "after connecting was cancelled at step 1, this was"
    ),
}  # fmt: skip


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One for each that hangs; what has its number there is killed."""
    found = {name: tmp_path / str(number) for number, name in enumerate(HANGS)}
    for path in found.values():
        path.mkdir()
    yield found
    for path in tmp_path.glob("*/[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name), signal.SIGKILL)


async def test_what_hangs_is_named_in_bounded_time(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_check_tunnel, "PATIENCE", 15.0)
    problems: dict[str, str] = {}

    async def check(name: str, make: Callable[[Path], Tunnel]) -> None:
        try:
            await check_tunnel(lambda: make(directories[name]))
        except AssertionError as exc:
            problems[name] = str(exc)

    async with trio.open_nursery() as nursery:  # all at once: most of the time they wait
        for name, (make, _) in HANGS.items():
            nursery.start_soon(check, name, make)

    unnamed = [name for name, (_, says) in HANGS.items() if says not in problems.get(name, "")]
    assert unnamed == [], problems
