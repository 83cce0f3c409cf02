"""Run scripts whose calls are pickled, so that a far end can make them: the scripts' side, and the tests' side."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trickle._exceptions import Unsendable
from trickle._module_server import ModuleServer
from trickle._pickling import NeedsVersion, OutgoingCall, dumps_call

from .far_end import ROOT

PREAMBLE = "from tests.agent.script import Collector; remote = Collector()\n"


class Collector:
    """What a script under test knows as ``remote``: pickles its calls instead of making them."""

    def __init__(self, far_version: tuple[int, int] | None = None) -> None:
        self.calls: list[ScriptCall] = []
        self.far_version = far_version
        self._server = ModuleServer()

    def call(self, fn: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Pickle a call, and the modules that it needs."""
        try:
            outgoing = dumps_call(fn, args, kwargs, host="far", far_version=self.far_version, implementation="CPython")
        except Unsendable as exc:
            self.calls.append(ScriptCall(None, None, str(exc), exc.path))
        except NeedsVersion:
            self.calls.append(ScriptCall(None, None, "needs version", ""))
        else:
            bundle = self._server.bundle_for(outgoing.modules)
            self.calls.append(ScriptCall(outgoing, bundle, "", ""))

    def finish(self) -> None:
        """Hand the calls to the test."""
        sys.stdout.buffer.write(pickle.dumps([tuple(call) for call in self.calls]))


class ScriptCall(NamedTuple):
    """A call that a script made, or the error that it met."""

    outgoing: OutgoingCall | None
    bundle: bytes | None
    error: str
    path: str


def run_script(words: Sequence[str | Path], *, stdin: str | None = None) -> list[ScriptCall]:
    """Run this Python with *words* (a script, or ``-c`` and a program), and return the calls that it made."""
    done = subprocess.run(
        [sys.executable, *words],
        input=None if stdin is None else stdin.encode(),
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
    calls: list[tuple[Any, ...]] = pickle.loads(done.stdout)
    return [ScriptCall(*call) for call in calls]
