"""What a connection has left behind is removed, wherever in a chain of tunnels the one is that left it."""

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

import trickle
from tests import work
from tests.hosts import file_appears, running_below
from trickle import _cleanup
from trickle.abc import NONCE, Tunnel, announced


@dataclasses.dataclass(frozen=True)
class Leaving(Tunnel):
    """Leaves a file, called as the connection's nonce; a leftovers command is to remove it."""

    directory: Path

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        script = 'echo "trickle $0 prepared" >&2; echo >$1/$0; shift; exec "$@"'
        return self.through(("sh", "-c", script, NONCE, str(self.directory), *argv))

    def leftovers(self) -> tuple[str, ...]:
        return self.through(("rm", f"{self.directory}/{NONCE}"))


@dataclasses.dataclass(frozen=True)
class Asking(Tunnel):
    """Asks for a password each time."""

    who: str

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        script = 'printf "%s of %s: " $0 $1 >&2; read answer; [ "$answer" = secret-$1 ] && shift && exec "$@"'
        return self.through(("sh", "-c", script, NONCE, self.who, *announced(argv)))

    def answers(self, nonce: str) -> Mapping[str, str]:
        return {f"{nonce} of {self.who}: ": f"secret-{self.who}"}


async def connect_and_kill(tunnel: Tunnel) -> None:
    before = running_below()
    async with trickle.open_host(tunnel) as host:
        (process,) = running_below() - before
        os.kill(process, signal.SIGKILL)
        with pytest.raises(trickle.HostLost):
            await host.call(work.add, 1)


async def test_a_connection_that_ended_in_order_has_left_nothing_to_remove(tmp_path: Path) -> None:
    async with trickle.open_host(Leaving(tmp_path, python=sys.executable)) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert len(list(tmp_path.iterdir())) == 1


async def test_what_a_lost_connection_has_left_is_removed(tmp_path: Path) -> None:
    await connect_and_kill(Leaving(tmp_path, python=sys.executable))

    assert list(tmp_path.iterdir()) == []


async def test_it_is_removed_through_a_tunnel_that_asks(tmp_path: Path) -> None:
    await connect_and_kill(Leaving(tmp_path, python=sys.executable, via=Asking("one", via=Asking("two"))))

    assert list(tmp_path.iterdir()) == []


async def test_each_tunnel_on_the_way_removes_what_it_has_left(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    middle = Leaving(inner, via=Leaving(outer))

    await connect_and_kill(trickle.Command(["env"], name="last", python=sys.executable, via=middle))

    assert [*inner.iterdir(), *outer.iterdir()] == []


async def test_connecting_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_open, Leaving(tmp_path, python=_sleeping_python(tmp_path)))
        await file_appears(tmp_path / "running")
        nursery.cancel_scope.cancel()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "running"]


async def _open(tunnel: Tunnel) -> None:
    async with trickle.open_host(tunnel):
        pass


def _sleeping_python(directory: Path) -> str:
    python = directory / "python"
    python.write_text(f"#!/bin/sh\necho >{directory}/running\nexec sleep 1000000\n")
    python.chmod(0o755)
    return str(python)


async def test_a_removal_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cleanup, "PATIENCE", 0.2)

    @dataclasses.dataclass(frozen=True)
    class Hanging(Leaving):
        def leftovers(self) -> tuple[str, ...]:
            return ("sleep", "1000000")

    await connect_and_kill(Hanging(tmp_path, python=sys.executable))

    assert len(list(tmp_path.iterdir())) == 1
