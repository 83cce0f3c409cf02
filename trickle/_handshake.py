"""What is said before the first frame: banners, sudo's prompts, an engine that pulls an image, the agent's marker.

Sans-IO: _link.py gives it what has come and sends what it asks for.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence

from trickle._boot import GUARD_WORDS, boot_pieces
from trickle._tunnels import Local
from trickle._wire.armor import END_OF_ARMOR, armored
from trickle._wire.frames import WireError
from trickle.abc import NONCE, Tunnel

KEPT_NOISE = 16 * 1024  # bytes of what a host says before its agent, and on stderr, that are kept
LONGEST_SIGN = 256  # bytes: no prompt or marker is longer
ECHO = re.compile(re.escape(GUARD_WORDS[-1]))
ROUTER = re.compile(rb"^(\S+[>#] ?)?% ?(Unknown|Invalid|Bad|Unrecognized|Ambiguous) ", re.MULTILINE)
COMPLAINT = re.compile(rb"|".join(rb"\b%b(?!\w)" % re.escape(words) for words in GUARD_WORDS))
CODE = re.compile(rb"[A-Za-z0-9+/=.]{64,}|\bl[Q-T][A-Za-z0-9+/=.]{14,}")  # the agent, and frames, which begin so
CUT_CODE = re.compile(rb"\A[A-Za-z0-9+/=.]+")
SKIPPED_NOISE = 1024 * 1024  # bytes before the first frame: more is not a banner


class Handshake:
    """One attempt to reach an agent, from the tunnel's first word to the agent's marker.

    Args:
      tunnel: what leads there; None if there is none, as to this machine.
      nonce: that of an earlier attempt, to look for what it has left.

    Attributes:
      nonce: what makes this connection's prompts and markers its own.
      stage: what is being waited for, in words.
      preparing: whether that is something that ``connect_timeout`` is not meant for.
      prepared: whether the tunnel has said that it may leave something behind.
      refused: whether a prompt came again for which its secret had been sent.
      misread: what took what is sent for something else, as far as it shows: ``"echo"``, ``"router"``, ``"commands"``.
      marked: whether the agent has begun to speak.
      is_armored: whether what is sent must not be obeyed by a wrong reader.
      stderr: the last of what came there, prompts and our own words left out.
    """

    def __init__(self, tunnel: Tunnel | None, nonce: str | None = None, *, is_near: bool = False) -> None:
        self.nonce: str = nonce or secrets.token_hex(16)
        self.stage: str = "starting the tunnel"
        self.preparing: bool = False
        self.prepared: bool = False
        self.refused: bool = False
        self.misread: str = ""
        self.marked: bool = False
        self.stderr: bytes = b""
        self._marker = self.nonce[::-1].encode()  # occurs in nothing that is sent there
        self._ready = (2 * self.nonce).encode()  # see abc.announced
        self._noise = bytearray()
        self._line = b""  # of stderr, as far as it has come
        self._may_prepare = any(each.leftovers() is not None for each in chain(tunnel))
        asked = [each.answers(self.nonce) for each in chain(tunnel)]
        self._answers = {prompt.encode(): secret.encode() for answers in asked for prompt, secret in answers.items()}
        self._unready = sum(map(bool, asked))
        self._awaited = "waiting to be asked for a password" if self._unready else "waiting for the agent"
        self._unsent: list[bytes] = []
        self._sent: set[bytes] = set()
        self.is_armored: bool = True
        self._is_near = is_near
        self._boot: list[bytes] = []

    def command(self, argv: Sequence[str]) -> list[str]:
        """*argv* with this connection's nonce in it."""
        return [word.replace(NONCE, self.nonce) for word in argv]

    def started(self) -> None:
        """The tunnel's command runs."""
        self.stage = self._awaited

    def answers(self) -> bytes:
        """What is to be sent to those who have asked for it."""
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    @property
    def may_boot(self) -> bool:
        """Whether nobody but a Python reads what is sent."""
        return not self._unready

    def boot(self, configuration: Mapping[str, object]) -> list[bytes]:
        """What starts the agent, in pieces."""
        self._boot = boot_pieces({**configuration, "nonce": self.nonce}, is_near=self._is_near)
        return self._boot

    def outgoing(self, data: bytes) -> bytes:
        """What to send for *data*: nothing that a wrong reader could obey, until the agent has spoken."""
        if self.is_armored:
            if not self.marked:
                return armored(data) if data else b""
            self.is_armored = False
            self._boot = []
            return END_OF_ARMOR + data
        return data

    def receive(self, data: bytes) -> bytes:
        """Take what has come on stdout; what is returned comes after the agent's marker.

        Raises:
          WireError: so much has come without one that it is none of ours.
        """
        if self.marked:
            return data
        if self.misread:  # what else it says is for the error message alone
            self._noise = _last_of(self._noise + data)
            return b""
        start = max(0, len(self._noise) - LONGEST_SIGN)  # one may have begun in what came before
        self._noise += data
        while self._unready and (at := self._noise.find(self._ready, start)) >= 0:
            del self._noise[at : at + len(self._ready)]
            self._unready -= 1
            if not self._unready:
                self.stage = self._awaited = "waiting for the agent"
        at = self._noise.find(self._marker, start)
        if at < 0:
            if ECHO.search(self._noise, start):
                self.misread = "echo"
            elif ROUTER.search(self._noise, start):
                self.misread = "router"
            if len(self._noise) > SKIPPED_NOISE:
                raise WireError(f"{SKIPPED_NOISE} bytes came before the agent answered")
            return b""
        after = bytes(self._noise[at + len(self._marker) :])
        self._noise = _last_of(self._noise[:at])
        self.marked = True
        return after

    @property
    def noise(self) -> bytes:
        """The last of what came on stdout before the agent spoke."""
        return CODE.sub(b"...", self._noise)[-KEPT_NOISE:]

    def receive_stderr(self, data: bytes) -> None:
        """Take what has come on stderr."""
        if self.marked:
            self._keep(data)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in map(self._without_prompts, lines):
            if not self._means_us(line):
                self._keep(line + b"\n")
        self._line = self._without_last_prompt(self._without_prompts(self._line))
        if len(self._line) > KEPT_NOISE:
            self._keep(self._line[:-LONGEST_SIGN])
            self._line = self._line[-LONGEST_SIGN:]

    def end_of_stderr(self) -> None:
        """There is no more."""
        self._keep(self._line)
        self._line = b""

    def _keep(self, data: bytes) -> None:
        for code in CODE.findall(data):  # the agent, or arguments behind it: they are not for error messages
            if any(code[:64] in piece for piece in self._boot):
                self.misread = "commands"
        if COMPLAINT.search(data):
            self.misread = "commands"
        self.stderr = (self.stderr + CODE.sub(b"...", data))[-KEPT_NOISE:]

    def _without_prompts(self, line: bytes) -> bytes:
        """What follows the prompts that *line* begins with, which are answered: each once."""
        while prompt := next(filter(line.startswith, self._answers), None):
            self._answer(prompt)
            line = line[len(prompt) :]
        return line

    def _without_last_prompt(self, line: bytes) -> bytes:
        """An unfinished line without a prompt behind something else, such as a lecture without a line end."""
        if prompt := next(filter(line.endswith, self._answers), None):
            self._answer(prompt)
            self._keep(line[: -len(prompt)])
            return b""
        return line

    def _answer(self, prompt: bytes) -> None:
        if prompt in self._sent:
            self.refused = True
            return
        self._sent.add(prompt)
        self._unsent.append(self._answers[prompt] + b"\n")
        self.stage = self._awaited = "waiting for the password to be taken"

    def _means_us(self, line: bytes) -> bool:
        """Whether it is a tunnel's own command that speaks: see Tunnel.leftovers."""
        said = re.fullmatch(rb"trickle %s (prepared|preparing.*)" % self.nonce.encode(), line.rstrip(b"\r"))
        if said is None or not self._may_prepare:
            return False
        self.prepared = said[1] == b"prepared"
        self.preparing = not self.prepared
        self.stage = said[1].decode("utf-8", "replace") if self.preparing else self._awaited
        return True


def _last_of(noise: bytearray) -> bytearray:
    """The last of it; what is cut off there and may be code stays long enough to be taken for code."""
    if len(noise) <= KEPT_NOISE:
        return noise
    return bytearray(CUT_CODE.sub(b"." * 64, noise[64 - KEPT_NOISE :]))


def chain(tunnel: Tunnel | None) -> Iterator[Tunnel]:
    """The tunnels that lead there, the last one first."""
    while tunnel is not None:
        yield tunnel
        tunnel = tunnel.via


def starts_new_session(tunnel: Tunnel) -> bool:
    """Whether the process that runs on this machine is to have a session of its own."""
    commands = [each for each in chain(tunnel) if not isinstance(each, Local)]
    return not commands or commands[-1].new_session
