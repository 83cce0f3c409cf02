"""An agent that lies: it reads the boot bytes, says hello as an honest one does, and then does what its attack says.

``python -I -S liar.py NAME DIRECTORY`` runs the attack of that name in attacks.py.  What would be written on the
controller's machine, if an attack came off, would be in DIRECTORY.
"""

import ast
import binascii
import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GUARD_SIZE = 29  # bytes that come before the boot code


def load_the_wire() -> None:
    """Make ``trickle._wire`` importable without ``trickle`` itself, which takes half a second."""
    sys.path.insert(0, str(ROOT))
    package = types.ModuleType("trickle")
    package.__path__ = [str(ROOT / "trickle")]
    sys.modules["trickle"] = package


if __name__ == "__main__":
    load_the_wire()

from trickle._wire import frames  # noqa: E402
from trickle._wire.armor import Unarmor  # noqa: E402
from trickle._wire.frames import Frame  # noqa: E402

ABOUT = {
    "hostname": "liar",
    "pid": "1",
    "user": "root",
    "python": "/usr/bin/python3",
    "python_version": "3.11.2",
    "implementation": "cpython",
    "system": "Linux",
    "machine": "x86_64",
    "lacks": "",
}


class Liar:
    """What attacks are made of.

    Attributes:
      directory: what is written there was written by an attack.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._decoder = frames.Decoder()
        self._unarmor = Unarmor()
        self._heard: list[Frame] = []
        sys.stdin.buffer.read(GUARD_SIZE)
        size, _ = map(int, sys.stdin.buffer.readline().split())
        sys.stdin.buffer.read(size)
        configuration = ast.literal_eval(binascii.a2b_base64(sys.stdin.buffer.readline()).decode())
        self.nonce: str = configuration["nonce"]

    def marker(self) -> None:
        """What is computed over there, so that no echo is taken for an agent."""
        self.raw(self.nonce[::-1].encode())

    def hello(self, version: int = frames.VERSION, **changes: str) -> None:
        """Say the marker and the first frame."""
        self.marker()
        self.greet(version, **changes)

    def greet(self, version: int = frames.VERSION, id: int = 0, **changes: str) -> None:
        """Say the first frame."""
        about = "\n".join(f"{name}={value}" for name, value in {**ABOUT, **changes}.items())
        self.say(frames.Hello(id, version, 0, about.encode("utf-8", "surrogateescape")))

    def raw(self, data: bytes) -> None:
        """Say bytes."""
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:
            sys.exit()  # it has closed us

    def say(self, *said: Frame) -> None:
        """Say frames, whatever they are."""
        self.raw(b"".join(map(frames.encode, said)))

    def flood(self, *said: Frame, size: int = 2**20) -> None:
        """Say them over and over, *size* bytes of them, and as fast as they are taken."""
        some = b"".join(map(frames.encode, said))
        times = max(1, min(size, 2**18) // len(some))
        for _ in range(max(1, size // (times * len(some)))):
            self.raw(some * times)

    def hear(self) -> Iterator[Frame]:
        """What the controller says; it ends this program when it has no more to say."""
        while True:
            while self._heard:
                frame = self._heard.pop(0)
                if isinstance(frame, (frames.Modules, frames.Data, frames.Item)):
                    self.acknowledge(len(frame.payload))
                if isinstance(frame, frames.Close):
                    sys.exit()
                yield frame
            data = os.read(0, 2**18)
            if not data:
                sys.exit()
            self._heard += self._decoder.feed(self._unarmor.receive(data))

    _unacked = 0

    def acknowledge(self, size: int) -> None:
        """Make room on the link, as an honest agent does."""
        self._unacked += size
        if self._unacked >= 64 * 1024:
            self.say(frames.Ack(0, self._unacked))
            self._unacked = 0

    def next_call(self) -> int:
        """The number of the next call, whose arguments have come."""
        for frame in self.hear():
            if isinstance(frame, frames.Call) or (isinstance(frame, frames.Data) and frame.last):
                return frame.id
        raise AssertionError

    def next_frame(self, *kinds: type[Frame]) -> Any:
        """The next of these."""
        for frame in self.hear():
            if isinstance(frame, kinds):
                return frame
        raise AssertionError

    def end(self, id: int, verdict: int = frames.RETURNED, payload: bytes = b"\x80\x04N.", detail: int = 0) -> None:
        """Say how a call ended, as an honest agent does: its result in pieces, if it is large."""
        self._given = 0
        while len(payload) > frames.CHUNK:
            self.give_room(id)
            self.say(frames.Data(id, 0, 0, payload[: frames.CHUNK]))
            payload = payload[frames.CHUNK :]
        self.say(frames.End(id, verdict, detail, payload))

    _given = 0

    def give_room(self, id: int) -> None:
        """Wait for credit, as an honest agent does."""
        self._given += frames.CHUNK
        while self._given > 256 * 1024:
            self._given -= self.next_frame(frames.Credit).size

    def item(self, id: int, payload: bytes) -> None:
        """Say a thing that flows."""
        while len(payload) > frames.CHUNK:
            self.say(frames.Item(id, 0, 0, payload[: frames.CHUNK]))
            payload = payload[frames.CHUNK :]
        self.say(frames.Item(id, frames.LAST, 0, payload))

    def next_item(self) -> bytes:
        """The next thing that the controller says, whole."""
        parts = b""
        for frame in self.hear():
            if isinstance(frame, frames.Item):
                parts += frame.payload
                if frame.flags == frames.LAST:
                    return parts
        raise AssertionError

    def stay(self) -> None:
        """Do nothing until it has no more to say."""
        for _ in self.hear():
            pass


def main() -> None:
    name, directory = sys.argv[1:]
    attacks: Any = importlib.import_module("tests.hostile.attacks")
    liar = Liar(directory)
    (attacks.all_answers if name == attacks.ALL_ANSWERS else attacks.ATTACKS[name].run)(liar)
    liar.stay()


if __name__ == "__main__":
    main()
