"""An ssh that is killed with -9, at any moment of connecting: that is told, and nothing is left at either end."""

import os
import signal

import trio

import trickle
from tests import work
from tests.gate import gate_on_port
from tests.hosts import running_below
from tests.sshd import Sshd

MOST = 200  # pieces: far more than it takes to connect


async def test_an_ssh_that_is_killed_while_it_connects_leaves_nothing(sshd: Sshd) -> None:
    stages: list[str] = []

    for pieces in range(MOST):
        stage = await stage_when_killed_after(pieces, sshd)
        if stage == "connected":
            break
        stages.append(stage)

    # The login alone takes this many: versions, keys, the user's key, a channel, a command.
    assert len(stages) > 10
    assert stage == "connected"


async def stage_when_killed_after(pieces: int, sshd: Sshd) -> str:
    """How far connecting had come when ssh was killed; or that it was through before."""
    assert sshd.port is not None
    before = running_below()
    async with gate_on_port(sshd.port) as (gate, port):
        gate.hold_after(pieces)
        tunnel = trickle.SSH("h0", name="web1", ssh_options=("-o", f"Port={port}", *sshd.ssh_options))
        async with trickle.open_host(tunnel, wait=False) as host, trio.open_nursery() as nursery:
            ended = trio.Event()

            async def call() -> None:
                try:
                    assert await host.call(work.add, 1, 2) == 3  # all that it takes has come with the agent's answer
                except trickle.HostLost:
                    pass
                except trickle.ConnectError as exc:
                    assert (exc.reason, exc.exit_status) == ("killed", -9)
                gate.reached.set()
                ended.set()

            nursery.start_soon(call)
            await gate.reached.wait()
            stage = "connected" if host.statistics().state == "connected" else host._core.link.stage
            (ssh,) = running_below() - before
            os.kill(ssh, signal.SIGKILL)
            await ended.wait()  # also while nothing gets through
            gate.open()
    return stage
