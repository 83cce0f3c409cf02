"""What does a call cost on a connection that is there: one at a time, two thousand at once, on ten hosts, over ssh?

Measured: ``host.call`` of a builtin function with a small argument and a small result, from before it until the
result; how many of them end in a second when 2,000 tasks call at once; a call on all of ten local hosts, until the
last answer; calls that overlap (16 that sleep for 10 ms each); and one at a time over a real ssh and sshd.  Not
measured: the function's own work, the first call of a worker (a fork), and a network.

The floor is a ping-pong of 32 bytes between bare Python processes over pipes, or over ssh.  Between it and trickle
stand trio's loop here, packing and unpacking, and over there the broker, which hands the call to a worker: two hops
more than the floor has.  *trio over pipes* has the floor's far end, and shows what trio's loop takes of it.  The
others are each asked by their documented fast path (_rivals.py): what they do in a call is less.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import (
    CALLS_PER_SECOND,
    MICROSECONDS,
    MILLISECONDS,
    NOT_INSTALLED,
    Bench,
    Measure,
    each,
    timed,
    timed_async,
)
from benchmarks._peers import (
    ECHO,
    HAS_EXECNET,
    NO_SSHD,
    PYTHON,
    echo_process,
    fileno,
    gateway,
    gateway_if_installed,
    local,
)
from benchmarks._rivals import Rival, open_all
from tests import sshd

MESSAGE = bytes(32)
IN_FLIGHT = 2_000
HOSTS = 10
OVERLAPPING, NAP = 16, 0.01  # calls, and seconds that each takes
BARE, BARE_ONE_BY_ONE = "os.read and os.write over pipes", "os.read and os.write, one by one"


def bare_ping(process: subprocess.Popen[bytes]) -> None:
    os.write(fileno(process.stdin), MESSAGE)
    os.read(fileno(process.stdout), 65536)


def bare_ping_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        os.write(fileno(process.stdin), MESSAGE)
    for process in processes:
        os.read(fileno(process.stdout), 65536)


async def trio_ping(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.send_all(MESSAGE)
    await process.stdout.receive_some()


async def at_once(host: trickle.Host, count: int, fn: Callable[[Any], object], value: object) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(host.call, fn, value)


def rate(act: Callable[[], Awaitable[object]]) -> Measure:
    """Calls per second, when *act* makes IN_FLIGHT of them."""

    async def once() -> float:
        started = time.perf_counter()
        await act()
        return IN_FLIGHT / (time.perf_counter() - started)

    return each(once)


def one_by_one(ping: Measure) -> Measure:
    """The calls per second of one after the other."""

    async def measure(samples: int) -> list[float]:
        return [IN_FLIGHT / sum(await ping(IN_FLIGHT)) for _ in range(samples)]

    return measure


async def measure(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await measure_here(bench, stack)
    async with contextlib.AsyncExitStack() as stack:
        await measure_group(bench, stack)
    async with contextlib.AsyncExitStack() as stack:
        await measure_ssh(bench, stack)


async def measure_here(bench: Bench, stack: contextlib.AsyncExitStack) -> None:
    rivals = open_all(stack)  # first, as some have threads that are to be started before there is much else
    bare = stack.enter_context(echo_process())
    by_trio = await trio.lowlevel.open_process((*PYTHON, "-c", ECHO), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.push_async_callback(by_trio.wait)
    stack.callback(by_trio.kill)
    host = await stack.enter_async_context(trickle.open_host(local()))
    other_host = await stack.enter_async_context(trickle.open_host(local()))
    session = await stack.enter_async_context(other_host.session())
    process = stack.enter_context(gateway_if_installed())

    latency: dict[str, Measure | str] = {
        BARE: timed(lambda: bare_ping(bare)),
        "trio over pipes": timed_async(lambda: trio_ping(by_trio)),
        "trickle: host.call": timed_async(lambda: host.call(abs, -1)),
        "trickle: session.call": timed_async(lambda: session.call(abs, -1)),
    }
    throughput: dict[str, Measure | str] = {
        BARE_ONE_BY_ONE: one_by_one(timed(lambda: bare_ping(bare))),
        "trickle: host.call": rate(lambda: at_once(host, IN_FLIGHT, abs, -1)),
    }
    for name, rival in rivals.items():
        latency[name] = rival if isinstance(rival, str) else timed_async(functools.partial(rival.call, abs, -1))
        throughput[name] = rival if isinstance(rival, str) else many_of(rival)
    latency["execnet: remote_exec"] = throughput["execnet: remote_exec"] = NOT_INSTALLED
    if process is not None:

        async def all_by_remote_exec() -> None:
            channels = [process.remote_exec("channel.send(abs(-1))") for _ in range(IN_FLIGHT)]
            for channel in channels:
                channel.receive()

        latency["execnet: remote_exec"] = timed(lambda: process.remote_exec("channel.send(abs(-1))").receive())
        throughput["execnet: remote_exec"] = rate(all_by_remote_exec)

    rounds = bench.pick(5, 30)
    await bench.compare(
        "call: one at a time", latency, unit=MICROSECONDS, floor=BARE, rounds=rounds, samples=bench.pick(30, 100)
    )
    await bench.compare(
        f"call: {IN_FLIGHT:,} at once",
        throughput,
        unit=CALLS_PER_SECOND,
        floor=BARE_ONE_BY_ONE,
        rounds=bench.pick(1, 8),
        warm_up=not bench.quick,
    )
    await bench.compare(
        f"call: {OVERLAPPING} that sleep for {NAP * 1000:.0f} ms, at once",
        {
            "trio.sleep": timed_async(functools.partial(trio.sleep, NAP)),
            "trickle": timed_async(lambda: at_once(host, OVERLAPPING, time.sleep, NAP)),
        },
        unit=MILLISECONDS,
        floor="trio.sleep",
        rounds=bench.pick(5, 30),
    )


def many_of(rival: Rival) -> Measure | str:
    call_many = rival.call_many
    return "not offered" if call_many is None else rate(lambda: call_many(abs, -1, IN_FLIGHT))


async def measure_group(bench: Bench, stack: contextlib.AsyncExitStack) -> None:
    bare = [stack.enter_context(echo_process()) for _ in range(HOSTS)]
    tunnels = [trickle.Local(f"n{number}", python=sys.executable) for number in range(HOSTS)]
    group = await stack.enter_async_context(trickle.open_group(tunnels))
    await group.wait_connected()
    candidates: dict[str, Measure | str] = {
        BARE: timed(lambda: bare_ping_all(bare)),
        "trickle: group.call": timed_async(lambda: group.call(abs, -1)),
        "execnet": NOT_INSTALLED,
    }
    if HAS_EXECNET:
        processes = [stack.enter_context(gateway(f"popen//python={sys.executable}")) for _ in range(HOSTS)]
        channels = [process.remote_exec("for item in channel: channel.send(abs(item))") for process in processes]

        def ask_all() -> None:
            for channel in channels:
                channel.send(-1)
            for channel in channels:
                channel.receive()

        candidates["execnet"] = timed(ask_all)
    await bench.compare(
        f"call: on {HOSTS} local hosts",
        candidates,
        unit=MICROSECONDS,
        floor=BARE,
        rounds=bench.pick(5, 20),
        samples=bench.pick(5, 20),
    )


async def measure_ssh(bench: Bench, stack: contextlib.AsyncExitStack) -> None:
    floor = "os.read and os.write over ssh"
    candidates: dict[str, Measure | str] = dict.fromkeys((floor, "trickle: host.call", "execnet"), NO_SSHD)
    with contextlib.suppress(pytest.skip.Exception):
        sshd.sshd_binary()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sshd.prepare(directory)
        piped = stack.enter_context(sshd.piped_sshd(directory, getpass.getuser()))
        tunnel = trickle.SSH(piped.alias(), ssh_options=piped.ssh_options, python=sys.executable)
        words = ("ssh", *piped.ssh_options, piped.alias(), f"{sys.executable} -I -S -c {shlex.quote(ECHO)}")
        bare = stack.enter_context(echo_process(words))
        host = await stack.enter_async_context(trickle.open_host(tunnel))
        candidates[floor] = timed(lambda: bare_ping(bare))
        candidates["trickle: host.call"] = timed_async(lambda: host.call(abs, -1))
        candidates["execnet"] = NOT_INSTALLED
        if HAS_EXECNET:
            way = f"ssh={piped.alias()}//ssh_config={piped.ssh_config}//python={sys.executable}"
            channel = stack.enter_context(gateway(way)).remote_exec("for item in channel: channel.send(abs(item))")

            def echo() -> None:
                channel.send(-1)
                channel.receive()

            candidates["execnet"] = timed(echo)
    await bench.compare(
        "call: one at a time over ssh",
        candidates,
        unit=MICROSECONDS,
        floor=floor,
        rounds=bench.pick(5, 20),
        samples=bench.pick(30, 100),
    )


if __name__ == "__main__":
    _harness.main(question="call")
