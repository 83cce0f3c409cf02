"""End what a connection has left behind: run the commands that its tunnels have for that, and answer who asks there."""

from __future__ import annotations

import contextlib
import signal

import trio

from trickle._handshake import Handshake, chain, starts_new_session
from trickle._tunnel_process import StartTunnel, TunnelProcess
from trickle.abc import Tunnel

PATIENCE = 10.0  # seconds for each command
READ_SIZE = 4096


async def remove_leftovers(tunnel: Tunnel, nonce: str, start: StartTunnel) -> None:
    """Run these commands, the innermost tunnel's first, whatever comes of them.  Bounded."""
    for each in chain(tunnel):
        command = each.leftovers()
        if command is not None:
            with trio.move_on_after(PATIENCE), contextlib.suppress(OSError):
                await _run(Handshake(each.via, nonce), command, each, start)


async def _run(talk: Handshake, command: tuple[str, ...], tunnel: Tunnel, start: StartTunnel) -> None:
    process = await start(talk.command(command), new_session=starts_new_session(tunnel))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, talk)
            nursery.start_soon(_answer, process, talk)
            await process.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(PATIENCE, shield=True):
            for stream in (process.stdin, process.stdout, process.stderr):
                await trio.aclose_forcefully(stream)
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()


async def _answer(process: TunnelProcess, talk: Handshake) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in process.stderr:
            talk.receive_stderr(bytes(data))
            if answers := talk.answers():
                await process.stdin.send_all(answers)


async def _listen(process: TunnelProcess, talk: Handshake) -> None:
    """Wait until nobody will ask any more, and give the command the end of its stdin."""
    while not talk.may_boot:
        data = await process.stdout.receive_some(READ_SIZE)
        if not data:
            return
        talk.receive(bytes(data))
    await process.stdin.aclose()
    async for _ in process.stdout:
        pass
