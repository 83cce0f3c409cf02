"""The base class of tunnels, and what those need who write their own.  The ones that come along are in _tunnels.py."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

__all__ = ["NONCE", "Tunnel", "announced", "check_words", "is_plain_word", "join_words"]

NONCE = "TRICKLE-NONCE"
"""Stands for 32 hex digits in the words of a command; each connection puts its own there."""

OLDEST = (3, 6)  # Python at the far end

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
_UNQUOTED_WORD = re.compile(r"(?![=%])[A-Za-z0-9_./:=,@%+-]+")  # zsh knows =sh, and fish %self
_UNQUOTABLE = re.compile(r"[\\!\n\r\0]")


def is_plain_word(word: str) -> bool:
    """Whether *word* has nothing but ``A-Za-z0-9_./:=,@%+-``: it passes any login shell, however deep it is nested."""
    return _PLAIN_WORD.fullmatch(word) is not None


def join_words(words: Iterable[str]) -> str:
    """One command line that sh, dash, bash, zsh, csh and fish all read as these words.

    Raises:
      ValueError: a word has a backslash, an exclamation mark or a line end, which no quoting carries through all
        of these shells.
    """
    return " ".join(word if _UNQUOTED_WORD.fullmatch(word) else _quoted(word) for word in words)


def announced(argv: Sequence[str]) -> tuple[str, ...]:
    """The words that say on stdout that they were reached, and then run *argv*: for tunnels with ``answers``.

    What asks for a secret must not be given the agent's code for it, so until this was said nothing goes there but
    secrets.  What is said is NONCE twice, which stands nowhere in the words.
    """
    return ("sh", "-c", 'echo $0$0; exec "$@"', NONCE, *argv)


def check_words(**words: str | None) -> None:
    """Nothing, if each of these is None or a plain word that is no option: for the fields of a tunnel.

    Raises:
      ValueError: one is not; the message calls it by its keyword.
    """
    for what, word in words.items():
        if word is not None and not (isinstance(word, str) and is_plain_word(word) and not word.startswith("-")):
            raise ValueError(
                f"{what}={word!r}: only letters, digits and _./:=,@%+- can be passed on safely, and no '-' comes first"
            )


def _is_version(version: object) -> bool:
    return isinstance(version, tuple) and len(version) == 2 and all(type(number) is int for number in version)


def _quoted(word: str) -> str:
    if _UNQUOTABLE.search(word):
        raise ValueError(
            f"{word!r} cannot be passed through every login shell: leave out backslashes, '!' and newlines"
        )
    return "'" + word.replace("'", """'"'"'""") + "'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tunnel(abc.ABC):
    """How to reach a Python: frozen, hashable data without I/O.

    A tunnel of your own is a frozen dataclass, at the top level of a module, that says in ``wrap`` how a command gets
    to where it should run.  ``trickle.testing.check_tunnel`` tells whether it is a good one.

    Args:
      name: what the host is called in results, output and errors; unique in a group.  ``dataclasses.replace`` keeps
        it, also one that was made of the other fields: give it ``name=None`` as well.
      python: path of the Python to use over there; by default the first of ``python3``,
        ``/usr/libexec/platform-python`` and ``python`` that is 3.6 or later.
      python_version: the far CPython's version, such as ``(3, 11)``, when you know it: saves a round trip for what
        depends on it.  If it is another one, there is a warning in the log, and early calls may fail.
      trust: ``"data"`` reads results as plain data only; ``"full"`` unpickles whatever that host sends, which lets
        it run code here.
      via: another tunnel that this one's command is run through.
    """

    name: str | None = None
    python: str | None = None
    python_version: tuple[int, int] | None = None
    trust: Literal["data", "full"] = "data"
    via: Tunnel | None = None

    new_session: ClassVar[bool] = True
    """Whether its command starts in a session of its own, or just in a process group of its own."""

    def __post_init__(self) -> None:
        if self.via is not None and not isinstance(self.via, Tunnel):
            raise ValueError(f"via={self.via!r}: it is a tunnel, such as SSH('bastion')")
        check_words(python=self.python)
        version = self.python_version
        if version is not None and not (_is_version(version) and version >= OLDEST):
            raise ValueError(f"python_version={version!r}: it is a pair of numbers such as (3, 11), of 3.6 or later")
        if self.trust not in ("data", "full"):
            raise ValueError(f'trust={self.trust!r}: it is "data" or "full"')
        if self.name is None:
            object.__setattr__(self, "name", self.default_name())
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ValueError(f"name={self.name!r}: a host's name is a line of printable text")

    @abc.abstractmethod
    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command that runs *argv* over there with its stdin, stdout and stderr connected.

        The words of *argv* must arrive as they are, empty ones too.  Where the far side joins words and hands them to
        a shell, as sshd does, that is ``join_words(argv)``.  The result goes through ``through``, for ``via=``.
        """

    def through(self, words: Sequence[str]) -> tuple[str, ...]:
        """*words* as ``via`` wraps them; themselves if this tunnel starts on this machine."""
        return self.via.wrap(words) if self.via is not None else tuple(words)

    def default_name(self) -> str:
        """The name of a tunnel that was given none."""
        return type(self).__name__.lower()

    def answers(self, nonce: str) -> Mapping[str, str]:
        """The secrets that this tunnel's command asks for, by prompt: each is sent once, when its prompt has come.

        A prompt is waited for on stderr, at the start of a line, or at the end of one that goes no further.  It should
        contain *nonce*, and must not stand as it is in the command, which a shell may print.  Its command runs
        ``announced(argv)`` behind what asks.
        """
        return {}

    def leftovers(self) -> tuple[str, ...] | None:
        """A command that ends what a connection has left behind, if that did not end in order: by NONCE, as a label.

        It is run only after the tunnel's command has said ``trickle NONCE prepared`` on stderr.  A command that first
        takes a while for what ``connect_timeout`` is not meant for, such as loading an image, says
        ``trickle NONCE preparing WHAT`` before.  Both are heeded only for tunnels that have such a command.
        """
        return None
