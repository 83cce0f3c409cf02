"""Run a program in a session of its own with a terminal, as a person would."""

import contextlib
import os
import pty
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_on_a_terminal(words: list[str], typed: str | None = None, *, until_asked: bool = False) -> tuple[str, str]:
    """What it says on stdout, and all else that the terminal shows, until it ends.

    Args:
      words: the command.
      typed: what is typed when it asks something on the terminal.
      until_asked: whether it is killed then.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(slave)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # EIO, when nobody has the terminal open any more
            while not (until_asked and _asks(shown)):
                shown += os.read(master, 1000)
                if typed is not None and _asks(shown):
                    os.write(master, typed.encode())
                    typed = None
            os.close(master)  # it hangs up
            master = -1
        return process.communicate(timeout=100)[0], shown.decode()
    finally:
        process.kill()
        process.wait()
        if master >= 0:
            os.close(master)


def _asks(shown: bytes) -> bool:
    return shown.rstrip().endswith((b":", b"?"))
