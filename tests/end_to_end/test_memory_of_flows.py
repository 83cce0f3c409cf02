"""What flows against somebody who does not take it: memory stays within what docs/explanation/architecture.md says."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

import trickle
from tests import flows
from tests.hosts import private, running_below
from trickle._agent import file_target

MIB = 2**20
HOST, FLOW = 12 * MIB, MIB  # bytes: what a host, and each flow besides, takes at each end at the most
WIDE = 7 * MIB  # what four flows that have moved much take besides
TRANSFER = 2 * MIB  # what each takes besides: a message that is read or written, and its worker's code for files
MUCH = 20  # things: more than it takes to be counted among them
FLOWS = 4
TEN_GB = 10 * 10**9


@contextlib.asynccontextmanager
async def large_things(host: trickle.Host) -> AsyncIterator[None]:
    async with host.stream(flows.count, TEN_GB // 100_000, 100_000) as things:
        await things.receive()
        yield


@contextlib.asynccontextmanager
async def large_things_behind_many(host: trickle.Host) -> AsyncIterator[None]:
    async with host.stream(flows.count, TEN_GB // 100_000, 100_000) as things:
        for _ in range(MUCH):
            await things.receive()
        yield


@contextlib.asynccontextmanager
async def things_behind_many_received(host: trickle.Host) -> AsyncIterator[None]:
    async with host.open_channel(flows.receive_some, MUCH) as channel, trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await channel.send(bytes(100_000))

        nursery.start_soon(send)
        assert await channel.receive() == MUCH
        yield
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def tiny_things(host: trickle.Host) -> AsyncIterator[None]:
    async with host.stream(flows.count, TEN_GB) as things:
        await things.receive()
        yield


@contextlib.asynccontextmanager
async def output_of_a_process(host: trickle.Host) -> AsyncIterator[None]:
    async with host.open_process(["head", "-c", str(TEN_GB), "/dev/zero"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        await process.stdout.receive_some(1)
        yield


@contextlib.asynccontextmanager
async def input_of_a_process(host: trickle.Host) -> AsyncIterator[None]:
    async with host.open_process(["sleep", "3600"], stdin=subprocess.PIPE) as process, trio.open_nursery() as nursery:
        nursery.start_soon(send_without_end, process.stdin)
        yield
        nursery.cancel_scope.cancel()


async def send_without_end(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(bytes(100_000))


@contextlib.asynccontextmanager
async def things_that_nobody_receives(host: trickle.Host) -> AsyncIterator[None]:
    async with host.open_channel(flows.receive_nothing) as channel, trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await channel.send(bytes(100_000))

        nursery.start_soon(send)
        yield
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def prints_that_nobody_reads(host: trickle.Host) -> AsyncIterator[None]:
    send, receive = trio.open_memory_channel[trickle.OutputLine](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.options(output=send).call, flows.print_without_end)
        await receive.receive()
        yield
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def a_file_that_is_not_written_there(host: trickle.Host) -> AsyncIterator[None]:
    others = running_below(host.info.pid)
    stopped: list[int] = []

    async def contents() -> AsyncIterator[bytes]:
        for number in range(TEN_GB // 100_000):
            if number == MUCH:
                stopped.extend(running_below(host.info.pid) - others)
                (worker,) = stopped
                os.kill(worker, signal.SIGSTOP)
            yield bytes(100_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.put, contents(), Path(tempfile.gettempdir(), f"trickle-not-written-{os.getpid()}"))
        while not stopped:
            await trio.sleep(0.005)
        try:
            yield
        finally:
            os.kill(stopped[0], signal.SIGCONT)
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def a_file_that_is_not_written_here(host: trickle.Host) -> AsyncIterator[None]:
    writing, go = threading.Event(), threading.Event()

    def write(target: file_target.Target, ops: object) -> None:
        writing.set()
        go.wait()

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as monkeypatch:
        there = Path(directory, "there")
        with there.open("wb") as file:
            for _ in range(100):
                file.write(bytes(400_000))
        Path(directory).chmod(0o755)
        monkeypatch.setattr(file_target.Target, "write", write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.fetch, there, Path(directory, "here"))
            while not writing.is_set():
                await trio.sleep(0.005)
            try:
                yield
            finally:
                go.set()  # nothing else ends its thread
                nursery.cancel_scope.cancel()


TRANSFERS = [a_file_that_is_not_written_there, a_file_that_is_not_written_here]
AFTER_MUCH = [large_things_behind_many, things_behind_many_received, *TRANSFERS]
CASES = [
    *AFTER_MUCH,
    large_things,
    tiny_things,
    output_of_a_process,
    input_of_a_process,
    things_that_nobody_receives,
    prints_that_nobody_reads,
]


async def comes_to_a_stop(host: trickle.Host) -> None:
    before = (-1, -1)
    while True:
        statistics = host.statistics()
        now = (statistics.bytes_received, statistics.bytes_sent)
        if max(now[0] - before[0], now[1] - before[1]) < 1000:  # heartbeats go on
            return
        before = now
        await trio.sleep(0.5)


@pytest.mark.parametrize("stop", CASES, ids=lambda case: case.__name__)
async def test_ten_gigabytes_for_nobody_take_little_memory_and_hold_up_nobody(
    stop: Callable[[trickle.Host], AbstractAsyncContextManager[None]], far: trickle.abc.Tunnel
) -> None:
    async with trickle.open_host(far) as host:
        await host.call(flows.count_in_a_list, 1)  # the code that they need is there before
        (idle,) = [private(pid) for pid in running_below(host.info.pid)]
        broker = private(host.info.pid)
        tracemalloc.start()
        try:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(FLOWS):
                    await stack.enter_async_context(stop(host))
                await comes_to_a_stop(host)
                here = tracemalloc.get_traced_memory()[1]
                workers = [private(pid) for pid in running_below(host.info.pid)]
                there = private(host.info.pid) - broker + sum(max(0, each - idle) for each in workers)

                async with host.stream(flows.count, 100, 100_000) as things:
                    assert len([thing async for thing in things]) == 100
                assert len(await host.call(bytes, 3_000_000)) == 3_000_000
                assert await host.call(len, bytes(3_000_000)) == 3_000_000
        finally:
            tracemalloc.stop()
    bound = HOST + FLOWS * FLOW + (WIDE if stop in AFTER_MUCH else 0)
    if stop in TRANSFERS:
        bound += FLOWS * TRANSFER
    print(f"{stop.__name__}: {here / MIB:.1f} MiB here, {there / MIB:.1f} there")
    assert here < bound
    assert there < bound
