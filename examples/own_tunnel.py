"""A tunnel of one's own: a sandbox on this machine or any other, in which only one directory can be written.

Usage: python own_tunnel.py [--check]

It needs bubblewrap (https://github.com/containers/bubblewrap); where that cannot be run, a sandbox that is none shows
what would have been. ``--check`` runs the contract suite of tunnels, as a test of yours should.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import trio

import trickle
import trickle.abc
from trickle.testing import check_tunnel

BWRAP = ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid", "--unshare-net")


@dataclasses.dataclass(frozen=True)
class Sandbox(trickle.abc.Tunnel):
    """A sandbox without a network.

    Args:
      writable: the directory that can be written.
      program: what makes the sandbox.
    """

    writable: str
    program: tuple[str, ...] = dataclasses.field(default=BWRAP, kw_only=True)

    def __post_init__(self) -> None:
        if not os.path.isabs(self.writable):  # noqa: PTH117 (perhaps of another machine)
            raise ValueError(f"writable={self.writable!r}: it is an absolute path")
        super().__post_init__()

    def default_name(self) -> str:
        """``sandbox``, or ``sandbox on`` a host."""
        return "sandbox" if self.via is None else f"sandbox on {self.via.name}"

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """``bwrap ... argv``; it ends when what started it has ended."""
        return self.through((*self.program, "--bind", self.writable, self.writable, "--die-with-parent", *argv))


def write(path: str) -> str:
    """Runs over there."""
    try:
        with open(path, "w") as file:  # noqa: PTH123
            file.write("trickle was here")
    except OSError as exc:
        return "refused: %s" % exc.strerror  # noqa: UP031
    return "written"


def program() -> tuple[str, ...]:
    """What makes sandboxes here: bubblewrap, if it may, or a shell that just leaves out the words for it."""
    try:
        subprocess.run([*BWRAP, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ("sh", "-c", 'shift 4; exec "$@"', "no sandbox")
    return BWRAP


async def main(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as inside, tempfile.TemporaryDirectory() as outside:
        tunnel = Sandbox(inside, program=program())
        if words == ["--check"]:
            await check_tunnel(lambda: tunnel)
            print(f"{tunnel.name} keeps the contract")
            return
        async with trickle.open_host(tunnel) as host:
            print("inside:", await host.call(write, f"{inside}/file"))
            print("outside:", await host.call(write, f"{outside}/file"))
        print("here:", os.listdir(inside), os.listdir(outside))  # noqa: PTH208


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
