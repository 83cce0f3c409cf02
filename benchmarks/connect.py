"""How long does it take to connect, and to have the first result?

Measured: from before the process is started until the block of ``open_host`` is entered, and until the first result
of a builtin function; then a whole program, with its start, its imports and its end.  All on this machine, so
without any login: over ssh that comes on top, and is ssh's own.  Not measured: finding a Python over there
(``python=`` says which), modules of the user's own (see round_trips.py), and many hosts at once.

The floor is a Python of the same kind that starts and ends.  execnet has two ways: *from disk* imports its own code
from this machine's files, which works only here; *sent* sends it through the pipe, as it does over ssh.
"""

from __future__ import annotations

import subprocess
import sys
import time

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import MILLISECONDS, Bench, blocking, each, timed, timed_async
from benchmarks._peers import PYTHON, gateway, if_execnet, local

TRICKLE_PROGRAM = """
import sys, trio, trickle
async def main():
    async with trickle.open_host(trickle.Local(python=sys.executable), wait=False) as host:
        await host.call(abs, -1)
trio.run(main)
"""
EXECNET_PROGRAM = """
import sys, execnet
gateway = execnet.makegateway("popen//python=" + sys.executable)
channel = gateway.remote_exec("channel.send(abs(channel.receive()))")
channel.send(-1)
channel.receive()
"""
TRIO_PROGRAM = "import trio; trio.run(trio.lowlevel.checkpoint)"


def bare(*options: str) -> None:
    subprocess.run((sys.executable, *options, "-c", "pass"), check=True)


async def bare_by_trio() -> None:
    await trio.run_process((*PYTHON, "-c", "pass"))


async def entered() -> float:
    started = time.perf_counter()
    async with trickle.open_host(local()):
        return time.perf_counter() - started


async def first_result(*, wait: bool) -> float:
    started = time.perf_counter()
    async with trickle.open_host(local(), wait=wait) as host:
        await host.call(abs, -1)
        return time.perf_counter() - started


async def left() -> float:
    async with trickle.open_host(local()) as host:
        await host.call(abs, -1)
        started = time.perf_counter()
    return time.perf_counter() - started


def execnet_entered(spec: str) -> float:
    started = time.perf_counter()
    with gateway(spec):
        return time.perf_counter() - started


def execnet_first_result(spec: str) -> float:
    started = time.perf_counter()
    with gateway(spec) as opened:
        channel = opened.remote_exec("channel.send(abs(channel.receive()))")
        channel.send(-1)
        channel.receive()
        return time.perf_counter() - started


def execnet_left(spec: str) -> float:
    with gateway(spec) as opened:
        channel = opened.remote_exec("channel.send(abs(channel.receive()))")
        channel.send(-1)
        channel.receive()
        started = time.perf_counter()
    return time.perf_counter() - started


async def measure(bench: Bench) -> None:
    sent = f"popen//python={sys.executable}"
    await bench.compare(
        "connect: to the first result",
        {
            "python -I -S -c pass": timed(lambda: bare("-I", "-S")),
            "python -I -S -c pass, by trio": timed_async(bare_by_trio),
            "python -c pass": timed(bare),
            "trickle: connected": each(entered),
            "trickle: first result": each(lambda: first_result(wait=True)),
            "trickle: first result, wait=False": each(lambda: first_result(wait=False)),
            "trickle: leaving the block": each(left),
            "execnet: connected, from disk": if_execnet(blocking(lambda: execnet_entered("popen"))),
            "execnet: first result, from disk": if_execnet(blocking(lambda: execnet_first_result("popen"))),
            "execnet: connected, sent": if_execnet(blocking(lambda: execnet_entered(sent))),
            "execnet: first result, sent": if_execnet(blocking(lambda: execnet_first_result(sent))),
            "execnet: leaving the block, sent": if_execnet(blocking(lambda: execnet_left(sent))),
        },
        unit=MILLISECONDS,
        floor="python -I -S -c pass",
        rounds=bench.pick(2, 40),
    )
    await bench.compare(
        "connect: a whole program with one remote call",
        {
            "python -c pass": timed(bare),
            "trio, no remote call": timed(lambda: subprocess.run((sys.executable, "-c", TRIO_PROGRAM), check=True)),
            "trickle": timed(lambda: subprocess.run((sys.executable, "-c", TRICKLE_PROGRAM), check=True)),
            "execnet, sent": if_execnet(
                timed(lambda: subprocess.run((sys.executable, "-c", EXECNET_PROGRAM), check=True))
            ),
        },
        unit=MILLISECONDS,
        floor="python -c pass",
        rounds=bench.pick(1, 15),
    )


if __name__ == "__main__":
    _harness.main(question="connect")
