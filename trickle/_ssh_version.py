"""Ask the system's ssh once what it is, and leave out options that it is too old to know."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

import trio

from trickle._tunnels import SSH_NEWER

_known: dict[str, tuple[int, int]] = {}
_UNKNOWN = (0, 0)


async def without_newer_options(argv: Sequence[str]) -> list[str]:
    """*argv* without the ``-o`` options that this machine's ssh would refuse to start with."""
    if argv[0].rpartition("/")[2] != "ssh":
        return list(argv)
    version = _known.get(argv[0])
    if version is None:
        version = _known[argv[0]] = await _ask(argv[0])
    if version == _UNKNOWN or version >= max(SSH_NEWER.values()):
        return list(argv)
    return leave_out(argv, {name for name, since in SSH_NEWER.items() if version < since})


def leave_out(argv: Sequence[str], names: set[str]) -> list[str]:
    """*argv* without ``-o NAME=...`` for these names."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word != "-o":
            kept.append(word)
            continue
        option = next(words, "")
        if option.partition("=")[0] not in names:
            kept += [word, option]
    return kept


async def _ask(ssh: str) -> tuple[int, int]:
    try:
        with trio.move_on_after(10):
            done = await trio.run_process([ssh, "-V"], capture_stdout=True, capture_stderr=True, check=False)
            if found := re.search(rb"OpenSSH_(\d+)\.(\d+)", done.stderr + done.stdout):
                return int(found[1]), int(found[2])
    except (OSError, subprocess.SubprocessError):
        pass  # the tunnel will say what is wrong with it
    return _UNKNOWN
