"""What does a call cost on a connection that is there: one at a time, and two thousand at once?

Measured: ``host.call`` of a builtin function with a small argument and a small result, from before it until the
result; and how many of them end in a second when 2,000 tasks call at once.  Not measured: the function's own work,
the first call of a worker (a fork), and the network.

The floor is a ping-pong of 32 bytes between two bare Python processes over pipes.  Between it and trickle stand
trio's loop here, packing and unpacking, and over there the broker, which hands the call to a worker: two hops more
than the floor has.  *trio over pipes* shares the floor's far end, and shows what trio's loop takes of it.
execnet's *echo* sends an object to code that already runs there; its *remote_exec* is nearest to a call.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import CALLS_PER_SECOND, MICROSECONDS, NOT_INSTALLED, Bench, Measure, each, timed, timed_async
from benchmarks._peers import ECHO, PYTHON, echo_process, fileno, gateway_if_installed, local

MESSAGE = bytes(32)
IN_FLIGHT = 2_000


def bare_ping(process: subprocess.Popen[bytes]) -> None:
    os.write(fileno(process.stdin), MESSAGE)
    os.read(fileno(process.stdout), 65536)


async def trio_ping(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.send_all(MESSAGE)
    await process.stdout.receive_some()


async def at_once(host: trickle.Host) -> float:
    """Calls per second."""
    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(host.call, abs, -1)
    return IN_FLIGHT / (time.perf_counter() - started)


def rate(ping: Measure) -> Measure:
    """The calls per second of one after the other."""

    async def measure(samples: int) -> list[float]:
        return [IN_FLIGHT / sum(await ping(IN_FLIGHT)) for _ in range(samples)]

    return measure


async def measure(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        bare = stack.enter_context(echo_process())
        by_trio = await trio.lowlevel.open_process((*PYTHON, "-c", ECHO), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.push_async_callback(by_trio.wait)
        stack.callback(by_trio.kill)
        host = await stack.enter_async_context(trickle.open_host(local()))
        other_host = await stack.enter_async_context(trickle.open_host(local()))
        session = await stack.enter_async_context(other_host.session())
        gateway = stack.enter_context(gateway_if_installed())

        latency: dict[str, Measure | str] = {
            "os.read and os.write over pipes": timed(lambda: bare_ping(bare)),
            "trio over pipes": timed_async(lambda: trio_ping(by_trio)),
            "trickle: host.call": timed_async(lambda: host.call(abs, -1)),
            "trickle: session.call": timed_async(lambda: session.call(abs, -1)),
            "execnet: echo": NOT_INSTALLED,
            "execnet: remote_exec": NOT_INSTALLED,
        }
        throughput: dict[str, Measure | str] = {
            "os.read and os.write, one by one": rate(timed(lambda: bare_ping(bare))),
            "trickle: host.call": each(lambda: at_once(host)),
            "execnet: send all, receive all": NOT_INSTALLED,
            "execnet: remote_exec": NOT_INSTALLED,
        }
        if gateway is not None:
            channel = gateway.remote_exec("for item in channel: channel.send(abs(item))")

            def echo() -> None:
                channel.send(-1)
                channel.receive()

            def remote_exec() -> None:
                gateway.remote_exec("channel.send(abs(-1))").receive()

            async def all_by_echo(samples: int) -> list[float]:
                rates = []
                for _ in range(samples):
                    started = time.perf_counter()
                    for _ in range(IN_FLIGHT):
                        channel.send(-1)
                    for _ in range(IN_FLIGHT):
                        channel.receive()
                    rates.append(IN_FLIGHT / (time.perf_counter() - started))
                return rates

            async def all_by_remote_exec(samples: int) -> list[float]:
                rates = []
                for _ in range(samples):
                    started = time.perf_counter()
                    channels = [gateway.remote_exec("channel.send(abs(-1))") for _ in range(IN_FLIGHT)]
                    for each_channel in channels:
                        each_channel.receive()
                    rates.append(IN_FLIGHT / (time.perf_counter() - started))
                return rates

            latency["execnet: echo"] = timed(echo)
            latency["execnet: remote_exec"] = timed(remote_exec)
            throughput["execnet: send all, receive all"] = all_by_echo
            throughput["execnet: remote_exec"] = all_by_remote_exec

        await bench.compare(
            "call: one at a time",
            latency,
            unit=MICROSECONDS,
            floor="os.read and os.write over pipes",
            rounds=bench.pick(10, 30),
            samples=100,
        )
        await bench.compare(
            f"call: {IN_FLIGHT:,} at once",
            throughput,
            unit=CALLS_PER_SECOND,
            floor="os.read and os.write, one by one",
            rounds=bench.pick(3, 8),
        )


if __name__ == "__main__":
    _harness.main(question="call")
