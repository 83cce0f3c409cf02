"""How many bytes are sent until there is a first result?

Counted: what goes into the tunnel's stdin until the agent has answered (*boot*: the agent itself, its configuration,
a hello and a ping), and from there to the first result (*rest*: the call, and the modules that it needs).  Not
counted: the command line (under 250 bytes), and what ssh adds or takes away.

A host on this machine, without ssh, gets the agent as source and compiled: bytes cost nothing there, and starting
does.  For execnet, *boot* is what it sends before its gateway is there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import trickle
from benchmarks import _harness
from benchmarks._harness import BYTES, FREE, NOT_INSTALLED, Bench
from benchmarks._own_package import own_function
from benchmarks._peers import HAS_EXECNET, gateway, local

PLACEMENTS = (FREE,)  # nothing is timed


async def trickle_bytes(fn: Callable[[], object], tunnel: trickle.abc.Tunnel) -> tuple[int, int]:
    async with trickle.open_host(tunnel) as host:
        boot = host.statistics().bytes_sent
        await host.call(fn)
        return boot, host.statistics().bytes_sent - boot


@contextlib.contextmanager
def execnet_counter() -> Iterator[list[int]]:
    """The sizes of what execnet writes."""
    from execnet.gateway_base import Popen2IO

    sizes: list[int] = []
    original = Popen2IO.write

    def write(self: Popen2IO, data: bytes) -> None:
        sizes.append(len(data))
        original(self, data)

    Popen2IO.write = write  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        Popen2IO.write = original  # type: ignore[method-assign]


def execnet_bytes() -> tuple[int, int]:
    with execnet_counter() as sizes, gateway(f"popen//python={sys.executable}") as opened:
        boot = sum(sizes)
        opened.remote_exec("channel.send(int())").receive()
        return boot, sum(sizes) - boot


async def measure(bench: Bench) -> None:
    elsewhere = trickle.Command(("env",), name="elsewhere", python=sys.executable)
    builtin = await trickle_bytes(int, elsewhere)
    near = await trickle_bytes(int, local())
    with own_function() as own:
        packaged = await trickle_bytes(own, elsewhere)
    of_execnet = execnet_bytes() if HAS_EXECNET else None
    bench.record(
        "boot_bytes: until the first result",
        {
            "trickle: boot": [builtin[0]],
            "trickle: boot, with compiled code, on this machine": [near[0]],
            "trickle: rest, a builtin": [builtin[1]],
            "trickle: rest, a package of three modules": [packaged[1]],
            "execnet: boot": [of_execnet[0]] if of_execnet else NOT_INSTALLED,
            "execnet: rest, a builtin": [of_execnet[1]] if of_execnet else NOT_INSTALLED,
        },
        unit=BYTES,
    )


if __name__ == "__main__":
    _harness.main(question="boot_bytes")
