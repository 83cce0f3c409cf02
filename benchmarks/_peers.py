"""What trickle is measured against: a bare process at the end of two pipes, and execnet; and the ways to a host."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trickle
from benchmarks._harness import NOT_INSTALLED, ROOT, Measure
from tests import sshd

if TYPE_CHECKING:
    import execnet

PYTHON = (sys.executable, "-I", "-S")  # as trickle starts the far end
ECHO = "import os\nwhile True:\n data = os.read(0, 65536)\n if not data: break\n os.write(1, data)\n"
NO_SSHD = "no sshd"
DELAY_PIPE = ROOT / "tests" / "delay_pipe.py"

HAS_EXECNET = importlib.util.find_spec("execnet") is not None


def local() -> trickle.Local:
    """This machine, with this Python: a search for one on PATH may meet a wrapper that costs more than trickle."""
    return trickle.Local(python=sys.executable)


@contextlib.contextmanager
def ssh_tunnel(extra: str = "") -> Iterator[trickle.SSH | None]:
    """A real ssh and a real sshd, with *extra* lines of configuration, and a pipe between them; None without sshd."""
    with contextlib.ExitStack() as stack:
        try:
            sshd.sshd_binary()
        except pytest.skip.Exception:
            yield None
            return
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sshd.prepare(directory)
        piped = stack.enter_context(sshd.piped_sshd(directory, getpass.getuser(), extra=extra))
        yield trickle.SSH(piped.alias(), ssh_options=piped.ssh_options, python=sys.executable)


def if_execnet(measure: Measure) -> Measure | str:
    """*measure*, or the reason why there is no figure."""
    return measure if HAS_EXECNET else NOT_INSTALLED


@contextlib.contextmanager
def echo_process(argv: Sequence[str] = (*PYTHON, "-c", ECHO)) -> Iterator[subprocess.Popen[bytes]]:
    """A bare Python that writes back what it reads, here or wherever *argv* starts it."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@contextlib.contextmanager
def gateway(spec: str = "popen") -> Iterator[execnet.Gateway]:
    """An execnet gateway.  With ``python=`` in its *spec* it sends its own code there, as over ssh."""
    import execnet

    group = execnet.Group()
    try:
        yield group.makegateway(spec)
    finally:
        group.terminate(timeout=5)


@contextlib.contextmanager
def gateway_if_installed() -> Iterator[execnet.Gateway | None]:
    """An execnet gateway that got its own code sent, or None."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(gateway(f"popen//python={sys.executable}")) if HAS_EXECNET else None


def fileno(file: object) -> int:
    """The descriptor of one of a Popen's pipes."""
    assert file is not None
    number: int = file.fileno()  # type: ignore[attr-defined]
    return number


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write *data*, however many writes it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
