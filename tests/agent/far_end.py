"""A far end's importer and unpickling in a process of any Python, asked from here."""

import pickle
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trickle._module_server import ModuleServer
from trickle._modules import ModuleLibrary
from trickle._pickling import OutgoingCall, dumps_call

from ..pythons import version_of

ROOT = Path(__file__).parent.parent.parent
DRIVER = Path(__file__).with_name("far_driver.py")


class RaisedThere(Exception):
    """What the far end raised, as text."""

    def __init__(self, type_name: str, message: str, traceback: str) -> None:
        super().__init__(f"{type_name}: {message}\n{traceback}")
        self.type_name = type_name
        self.message = message
        self.traceback = traceback


class FarEnd:
    """One process, and the server of modules that answers it.

    Attributes:
      asked: the names that it asked for, in order.
    """

    def __init__(self, python: str, server: ModuleServer, process: subprocess.Popen[bytes]) -> None:
        self.version = (version_of(python) or (0, 0))[:2]
        self.server = server
        self.asked: list[str] = []
        self._process = process

    def call(self, fn: Callable[..., object], *args: object, **kwargs: object) -> Any:
        """Call *fn* over there, having sent the modules that it is known to need."""
        outgoing = dumps_call(fn, args, kwargs, host="far", far_version=self.version, implementation="CPython")
        self.send_modules(outgoing.modules)
        return self.call_pickled(outgoing)

    def call_pickled(self, outgoing: OutgoingCall) -> Any:
        """Make a call that has been pickled, maybe by another process."""
        return self._request("call", outgoing.payload)

    def send_modules(self, names: Iterable[str]) -> None:
        """Send the closure of *names*, as far as it is not there yet."""
        bundle = self.server.bundle_for(names)
        if bundle is not None:
            self._request("bundle", bundle)

    def run(self, source: str, **arguments: object) -> Any:
        """Execute statements over there, and return what they call ``result``."""
        return self._request("run", source, arguments)

    def _request(self, action: str, *arguments: object) -> Any:
        self._write((action, arguments))
        while True:
            kind, *values = self._read()
            if kind == "fetch":
                self.asked.append(values[0])
                self._write(self.server.answer(values[0]))
            elif kind == "raised":
                raise RaisedThere(*values)
            else:
                return values[0]

    def _write(self, message: object) -> None:
        assert self._process.stdin is not None
        data = pickle.dumps(message, protocol=4)
        self._process.stdin.write(struct.pack("<Q", len(data)) + data)
        self._process.stdin.flush()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        (size,) = struct.unpack("<Q", self._process.stdout.read(8))
        return pickle.loads(self._process.stdout.read(size))


@contextmanager
def far_end(python: str, *, server: ModuleServer | None = None, site_packages: Iterable[Path] = ()) -> Iterator[FarEnd]:
    """Start a far end; *site_packages* are directories of its own that it finds modules in."""
    words = [python, "-I", "-S", DRIVER, ROOT, *site_packages]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as process:
        yield FarEnd(python, server or ModuleServer(library=ModuleLibrary()), process)
