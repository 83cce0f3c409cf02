"""How fast do large arguments and results move?

Measured: 100 MB of bytes as the one argument of ``len``, and as the result of ``bytes(100_000_000)``, in MB/s of wall
time, with packing, copies and the answer.  Not measured: objects that are not bytes (pickling them is Python's own
cost), the network, and how other calls fare meanwhile.

The floor is ``cat`` at the end of a pipe, to ``/dev/null`` or from a file in memory, and this end reading or writing
with plain ``os`` calls.  Every figure is that of one direction.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable

import trickle
from benchmarks import _harness
from benchmarks._harness import MEGABYTES_PER_SECOND, NOT_INSTALLED, Bench, Measure, blocking, each
from benchmarks._peers import fileno, gateway_if_installed, local, write_all

SIZE = 100_000_000  # bytes
READ_SIZE = 256 * 1024


def cat_takes(data: bytes) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    with subprocess.Popen("cat >/dev/null", shell=True, stdin=subprocess.PIPE) as process:
        write_all(fileno(process.stdin), data)
    return SIZE / (time.perf_counter() - started)


def cat_gives(path: str) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    with subprocess.Popen(("cat", path), stdout=subprocess.PIPE) as process:
        parts = []
        while part := os.read(fileno(process.stdout), READ_SIZE):
            parts.append(part)
        assert len(b"".join(parts)) == SIZE
    return SIZE / (time.perf_counter() - started)


async def trickle_takes(host: trickle.Host, data: bytes) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    assert await host.call(len, data) == SIZE
    return SIZE / (time.perf_counter() - started)


async def trickle_gives(host: trickle.Host) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    assert len(await host.call(bytes, SIZE)) == SIZE
    return SIZE / (time.perf_counter() - started)


def per_second(act: Callable[[], object]) -> Measure:
    """Bytes per second, when *act* moves SIZE of them."""

    def once() -> float:
        started = time.perf_counter()
        act()
        return SIZE / (time.perf_counter() - started)

    return blocking(once)


async def measure(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        data = bytes(SIZE)
        in_memory = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 (it is one)
        write_all(in_memory.fileno(), data)
        host = await stack.enter_async_context(trickle.open_host(local()))
        gateway = stack.enter_context(gateway_if_installed())
        taking: dict[str, Measure | str] = {
            "cat": blocking(lambda: cat_takes(data)),
            "trickle": each(lambda: trickle_takes(host, data)),
            "execnet": NOT_INSTALLED,
        }
        giving: dict[str, Measure | str] = {
            "cat": blocking(lambda: cat_gives(in_memory.name)),
            "trickle": each(lambda: trickle_gives(host)),
            "execnet": NOT_INSTALLED,
        }
        if gateway is not None:
            taker = gateway.remote_exec("for item in channel: channel.send(len(item))")
            giver = gateway.remote_exec("for size in channel: channel.send(bytes(size))")

            def execnet_takes() -> None:
                taker.send(data)
                assert taker.receive() == SIZE

            def execnet_gives() -> None:
                giver.send(SIZE)
                assert len(giver.receive()) == SIZE

            taking["execnet"] = per_second(execnet_takes)
            giving["execnet"] = per_second(execnet_gives)
        rounds = bench.pick(2, 8)
        for title, candidates in (("payload: 100 MB argument", taking), ("payload: 100 MB result", giving)):
            await bench.compare(title, candidates, unit=MEGABYTES_PER_SECOND, floor="cat", rounds=rounds)


if __name__ == "__main__":
    _harness.main(question="payload")
