"""How fast do arguments and results move, from 1 KB to 100 MB, and objects that are not bytes?

Measured: bytes as the one argument of ``len`` and as the result of ``bytes(SIZE)``, in MB/s of wall time, with packing,
copies and the answer, one at a time; and 1,000 records of mixed Python objects (texts, numbers, dates, lists and
dicts) as the argument of ``len`` and as the result of the function that makes them, in ms; and 100 MB both ways over a
real ssh and sshd with a pipe between them.  Not measured: a network, and how other calls fare meanwhile (cancel.py).

The floor of 1 MB and more is ``cat`` at the end of a pipe: to ``/dev/null`` or from a file in memory, with plain
``os`` calls at this end, its start included.  What is smaller has none: see call.py.  Over ssh it is ``ssh host cat``,
ssh's start included.  The floor of records is pickle, there and back, in this process; that of the records as a result
has making them as well.  The others are each asked by their documented fast path (_rivals.py); execnet and mitogen
send no dates, and rpyc would send references.  With ``--quick`` they are not asked for 100 MB, and 20 MB go over ssh.
Every figure of bytes is that of one direction.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trickle
from benchmarks import _harness
from benchmarks._far import records
from benchmarks._harness import (
    MEGABYTES_PER_SECOND,
    MILLISECONDS,
    NOT_QUICK,
    Bench,
    Measure,
    blocking,
    each,
    timed,
    timed_async,
)
from benchmarks._peers import fileno, local, ssh_tunnel, write_all
from benchmarks._rivals import Rivals, open_all

SIZES = {"1 KB": 1_000, "100 KB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000, "100 MB": 100_000_000}
SMALLEST_FOR_CAT = 1_000_000  # bytes: with less it is starting cat that is measured
AT_LEAST = 300_000  # bytes that a sample moves, by calls one after the other
LARGEST_QUICK = 10_000_000  # bytes
RECORDS = 1_000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
READ_SIZE = 256 * 1024
NO_RECORDS = {"execnet": "sends no dates", "mitogen": "sends no dates", "rpyc": "sends references"}


def cat_takes(data: bytes, *ssh: str) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    with subprocess.Popen(
        (*ssh, "cat", *((">/dev/null",) if ssh else ())), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        write_all(fileno(process.stdin), data)
    return len(data) / (time.perf_counter() - started)


def cat_gives(path: str, size: int, *ssh: str) -> float:
    """Bytes per second."""
    started = time.perf_counter()
    with subprocess.Popen((*ssh, "cat", path), stdout=subprocess.PIPE) as process:
        parts = []
        while part := os.read(fileno(process.stdout), READ_SIZE):
            parts.append(part)
        assert len(b"".join(parts)) == size
    return size / (time.perf_counter() - started)


def rate(act: Callable[[], Awaitable[object]], size: int) -> Measure:
    """Bytes per second, when *act* moves so many."""
    repeat = -(-AT_LEAST // size)

    async def once() -> float:
        started = time.perf_counter()
        for _ in range(repeat):
            await act()
        return repeat * size / (time.perf_counter() - started)

    return each(once)


async def measure(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        rivals = open_all(stack)
        host = await stack.enter_async_context(trickle.open_host(local()))
        for title, size in SIZES.items():
            await measure_bytes(bench, title, size, host, rivals)
        await measure_records(bench, host, rivals)
        if (tunnel := stack.enter_context(ssh_tunnel())) is not None:
            await measure_ssh(bench, tunnel)


async def measure_bytes(bench: Bench, title: str, size: int, host: trickle.Host, rivals: Rivals) -> None:
    data = bytes(size)
    taking: dict[str, Measure | str] = {}
    giving: dict[str, Measure | str] = {}
    with contextlib.ExitStack() as stack:
        floor = None
        if size >= SMALLEST_FOR_CAT:
            floor = "cat"
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=MEMORY))
            write_all(file.fileno(), data)
            taking[floor] = blocking(functools.partial(cat_takes, data))
            giving[floor] = blocking(functools.partial(cat_gives, file.name, size))
        taking["trickle"] = rate(functools.partial(host.call, len, data), size)
        giving["trickle"] = rate(functools.partial(host.call, bytes, size), size)
        for name, rival in rivals.items():
            if isinstance(rival, str):
                taking[name] = giving[name] = rival
            elif size > LARGEST_QUICK and bench.quick:
                taking[name] = giving[name] = NOT_QUICK
            else:
                taking[name] = rate(functools.partial(rival.call, len, data), size)
                giving[name] = rate(functools.partial(rival.call, bytes, size), size)
        rounds = bench.pick(1 if size >= LARGEST_QUICK else 3, 8)
        for way, candidates in (("argument", taking), ("result", giving)):
            await bench.compare(
                f"payload: {title} of bytes, {way}", candidates, unit=MEGABYTES_PER_SECOND, floor=floor, rounds=rounds
            )


async def measure_ssh(bench: Bench, tunnel: trickle.SSH) -> None:
    size = bench.pick(20_000_000, SIZES["100 MB"])
    data = bytes(size)
    ssh = ("ssh", *tunnel.ssh_options, tunnel.host)
    floor = "ssh host cat"
    async with trickle.open_host(tunnel) as host:
        with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
            write_all(file.fileno(), data)
            for way, at_cat, call in (
                ("argument", functools.partial(cat_takes, data, *ssh), functools.partial(host.call, len, data)),
                (
                    "result",
                    functools.partial(cat_gives, file.name, size, *ssh),
                    functools.partial(host.call, bytes, size),
                ),
            ):
                await bench.compare(
                    f"payload: {size // 1_000_000} MB of bytes over ssh, {way}",
                    {floor: blocking(at_cat), "trickle": rate(call, size)},
                    unit=MEGABYTES_PER_SECOND,
                    floor=floor,
                    rounds=bench.pick(1, 8),
                )


async def measure_records(bench: Bench, host: trickle.Host, rivals: Rivals) -> None:
    made = records(RECORDS)
    floor = "pickle, there and back"
    taking: dict[str, Measure | str] = {
        floor: timed(lambda: pickle.loads(pickle.dumps(made, 4))),
        "trickle": timed_async(functools.partial(host.call, len, made)),
    }
    giving: dict[str, Measure | str] = {
        floor: timed(lambda: pickle.loads(pickle.dumps(records(RECORDS), 4))),
        "trickle": timed_async(functools.partial(host.call, records, RECORDS)),
    }
    for name, rival in rivals.items():
        if isinstance(rival, str) or name in NO_RECORDS:
            taking[name] = giving[name] = NO_RECORDS.get(name, str(rival))
        else:
            taking[name] = timed_async(functools.partial(rival.call, len, made))
            giving[name] = timed_async(functools.partial(rival.call, records, RECORDS))
    for way, candidates in (("argument", taking), ("result", giving)):
        await bench.compare(
            f"payload: {RECORDS:,} records, {way}", candidates, unit=MILLISECONDS, floor=floor, rounds=bench.pick(5, 20)
        )


if __name__ == "__main__":
    _harness.main(question="payload")
