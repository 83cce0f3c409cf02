"""How much the pipes to a host hold: more, where much goes through them."""

import fcntl
import os
import sys
from pathlib import Path

import pytest

import trickle
from tests.hosts import local
from trickle import _tunnel_process
from trickle._wire.connection import CREDIT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes of other systems are as they are")


def widths(host: trickle.Host) -> set[int]:
    """Bytes that the pipes to the tunnel's process hold."""
    process = host._core.link._process
    assert isinstance(process, _tunnel_process.LocalProcess)
    streams = (process.stdin, process.stdout)
    return {fcntl.fcntl(stream.fileno(), fcntl.F_GETPIPE_SZ) for stream in streams}  # type: ignore[attr-defined]


async def test_pipes_are_widened_for_bulk_alone(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        await host.call(os.getpid)
        before = widths(host)
        await host.put(b"x", tmp_path / "file")
        after = widths(host)

    assert max(before) < _tunnel_process.WIDE
    assert after == {_tunnel_process.WIDE}


async def test_what_never_answers_is_ended_whose_pipe_was_widened_for_its_start(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 1000\n")
    python.chmod(0o755)

    async with trickle.open_host(trickle.Local(python=str(python)), connect_timeout=1, wait=False) as host:
        with pytest.raises(trickle.ConnectError):
            await host.call(os.getpid)
        link = host._core.link

    assert link._process is not None
    assert link._process.returncode is not None


@pytest.mark.parametrize("direction", ["there", "back"])
async def test_large_arguments_and_results_are_bulk(direction: str) -> None:
    async with trickle.open_host(local()) as host:
        await host.call(os.getpid)
        await (host.call(len, bytes(CREDIT + 1)) if direction == "there" else host.call(bytes, CREDIT + 1))

        assert widths(host) == {_tunnel_process.WIDE}


async def test_of_many_hosts_only_some_have_wide_pipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_tunnel_process, "MOST_WIDE", 1)

    async with trickle.open_group([local("a"), local("b")]) as group:
        for host in group.values():
            await host.put(b"x", tmp_path / "file")
        found = [widths(host) for host in group.values()]

    assert found[0] == {_tunnel_process.WIDE} != found[1]
