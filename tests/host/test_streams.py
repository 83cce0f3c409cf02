"""What flows between this program and a function over there: in order, no faster than it is taken, and over in time."""

import gc
import math
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
import trio.testing

import trickle
from tests import flows, work
from tests.hosts import file_appears, is_running, local

OpenAny: TypeAlias = "Callable[[], AbstractAsyncContextManager[trickle.Host]]"
SIZES = [0, 1, 100, 4096, 65536, 65537, 300_000, 3_000_000]


async def everything(channel: trio.abc.ReceiveChannel[object]) -> list[object]:
    return [value async for value in channel]


# ---- streams


async def test_a_stream_gives_what_the_generator_yields_in_order(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(far) as host:
        async with host.stream(flows.count, 1000) as numbers:
            assert [number async for number in numbers] == list(range(1000))

        assert host.statistics().verdicts == {"returned": 1}


@pytest.mark.parametrize("size", SIZES)
async def test_things_of_any_size_flow(size: int) -> None:
    async with trickle.open_host(local()) as host, host.stream(flows.count, 5, size or 1) as things:
        assert [thing async for thing in things] == [(number, b"x" * (size or 1)) for number in range(5)]


async def test_anything_iterable_is_a_stream() -> None:
    async with trickle.open_host(local()) as host, host.stream(flows.count_in_a_list, 3) as numbers:
        assert await everything(numbers) == [0, 1, 2]


async def test_an_async_generator_is_a_stream(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(local()) as host, host.stream(flows.async_count, 5) as numbers:
        assert [number async for number in numbers] == [0, 1, 2, 3, 4]


async def test_leaving_the_block_closes_the_generator(far: trickle.abc.Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with host.stream(flows.count_and_tell, str(shared / "end")) as things:
            await things.receive()

        assert (shared / "end").read_text().startswith("closed at ")
        assert host.statistics().verdicts == {"cancelled": 1}
        assert await host.call(work.add, 1, 2) == 3


async def test_leaving_the_block_closes_an_async_generator(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        async with host.stream(flows.async_count_and_tell, str(tmp_path / "end")) as things:
            await things.receive()

        assert (tmp_path / "end").read_text() == "closed"


async def test_leaving_the_block_in_the_middle_of_a_step_interrupts_it(far: trickle.abc.Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with host.stream(flows.one_and_a_long_step, str(shared / "step")) as things:
            pid = await things.receive()
            await file_appears(shared / "step")

        assert not is_running(pid)
        assert (shared / "step.cleaned").read_text() == "clean"


async def test_a_generator_that_does_not_close_is_killed(far: trickle.abc.Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with host.options(grace_period=0.1).stream(flows.refuse_to_close, str(shared / "x")) as things:
            pid = await things.receive()

        assert not is_running(pid)
        assert host.statistics().verdicts == {"killed": 1}


async def test_a_cancelled_block_closes_the_generator(far: trickle.abc.Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        with trio.CancelScope() as scope:
            async with host.stream(flows.count_and_tell, str(shared / "end")) as things:
                await things.receive()
                scope.cancel()
                await trio.sleep_forever()

        assert scope.cancelled_caught
        assert (shared / "end").read_text().startswith("closed at ")


async def test_the_error_of_a_generator_comes_behind_what_it_yielded(far: trickle.abc.Tunnel) -> None:
    received = []

    async with trickle.open_host(far) as host:
        with pytest.raises(ValueError, match="no more than 3") as caught:
            async with host.stream(flows.count_and_fail, 3) as numbers:
                async for number in numbers:
                    received.append(number)

    assert received == [0, 1, 2]
    assert isinstance(caught.value, trickle.RemoteError)


async def test_an_error_that_nobody_received_comes_from_leaving() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(ValueError, match="no more than 0"):
            async with host.stream(flows.count_and_fail, 0):
                while not host.statistics().verdicts:
                    await trio.sleep(0.005)
        with pytest.raises(KeyError, match="while closing"):
            async with host.stream(flows.fail_when_closed) as things:
                await things.receive()


async def test_the_error_of_the_block_is_raised_as_itself() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(ZeroDivisionError):
            async with host.stream(flows.count_and_fail, 0):
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            async with host.open_channel(flows.send_without_end):
                raise ZeroDivisionError

        assert await host.call(work.add, 1, 2) == 3


async def test_what_cannot_be_sent_is_the_generators_error() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(TypeError, match="cannot be sent"):
            async with host.stream(flows.unpicklable) as things:
                await things.receive()


async def test_a_thing_that_is_not_plain_data_is_refused_and_the_next_one_is_not() -> None:
    async with trickle.open_host(local()) as host:
        async with host.options(max_result=1000).stream(flows.count, 3, 2000) as things:
            for _ in range(3):
                with pytest.raises(trickle.UnsafeResult, match="max_result"):
                    await things.receive()
            with pytest.raises(trio.EndOfChannel):
                await things.receive()


async def test_a_generator_whose_process_dies_says_so() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.WorkerDied) as caught:
            async with host.stream(flows.die_after, 2) as numbers:
                assert [await numbers.receive(), await numbers.receive()] == [0, 1]
                await numbers.receive()

    assert caught.value.signal == 9


async def test_a_lost_host_ends_its_streams(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.HostLost):
            async with host.stream(flows.one_and_a_long_step, str(tmp_path / "step")) as things:
                await things.receive()
                os.kill(host.info.pid, signal.SIGKILL)
                await things.receive()


async def test_a_closed_stream_says_so() -> None:
    async with trickle.open_host(local()) as host:
        async with host.stream(flows.count, 10) as numbers:
            await numbers.receive()
            await numbers.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await numbers.receive()
            await numbers.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await numbers.receive()


async def test_a_generator_waits_for_a_receiver_that_does_not_take(far: trickle.abc.Tunnel, shared: Path) -> None:
    async with trickle.open_host(far) as host:
        async with host.stream(flows.count_and_tell, str(shared / "end"), 10_000) as things:
            await things.receive()
            before = -1
            while (now := int((shared / "end.count").read_text() or -1)) != before:
                before = now
                await trio.sleep(0.3)

            assert now * 10_000 < 3 * 2**20
            assert await host.call(work.add, 1, 2) == 3  # others are not held up
            async with host.stream(flows.count, 100, 10_000) as others:
                assert len(await everything(others)) == 100


async def test_streams_have_processes_of_their_own_and_leave_none(tmp_path: Path) -> None:
    async with trickle.open_host(local(), workers=1) as host:
        async with host.stream(flows.one_and_a_long_step, str(tmp_path / "a")) as first:
            async with host.stream(flows.one_and_a_long_step, str(tmp_path / "b")) as second:
                pids = {await first.receive(), await second.receive(), await host.call(work.pid)}
                assert len(pids) == 3
                assert host.statistics().open == 2

        assert host.statistics().open == 0


async def test_a_stream_counts_for_max_open() -> None:
    async with trickle.open_host(local(), max_open=1) as host:
        async with host.stream(flows.count, 3) as numbers:
            with trio.move_on_after(0.2) as scope:
                async with host.stream(flows.count, 3):
                    pass
            assert scope.cancelled_caught
            assert await everything(numbers) == [0, 1, 2]


async def test_streams_of_a_session_find_its_state() -> None:
    async with trickle.open_host(local()) as host, host.session() as session:
        pid = await session.call(work.pid)
        for _ in range(2):
            async with session.stream(flows.count, 3) as numbers:
                assert await everything(numbers) == [0, 1, 2]
        assert await session.call(work.pid) == pid


async def test_a_stream_needs_no_answer_of_the_host_to_begin() -> None:
    async with trickle.open_host(local(), wait=False) as host, host.stream(flows.count, 3) as numbers:
        assert await everything(numbers) == [0, 1, 2]


async def test_what_a_stream_prints_is_its_own_output() -> None:
    lines: list[trickle.OutputLine] = []

    async with trickle.open_host(local()) as host:
        async with host.options(output=lines.append).stream(flows.print_and_yield) as numbers:
            await everything(numbers)

    assert [line.text for line in lines] == ["line 0", "line 1", "line 2"]


async def test_a_deadline_ends_a_stream_and_more_time_is_noticed(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        await host.call(work.pid)
        with trio.move_on_after(2.0) as scope:  # in which it has to begin
            async with host.stream(flows.count_and_tell, str(tmp_path / "a")) as things:
                await things.receive()
                scope.deadline += 3600
                await trio.sleep(4.0)  # past what the host was told, and its patience
                assert len(await things.receive()) == 1
        assert not scope.cancelled_caught

        with trio.move_on_after(3600) as scope:
            async with host.stream(flows.count_and_tell, str(tmp_path / "b")) as things:
                await things.receive()
                scope.deadline = trio.current_time()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert (tmp_path / "b").read_text().startswith("closed")


# ---- channels


async def test_a_channel_goes_both_ways(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(far) as host, host.open_channel(flows.echo, suffix="!") as channel:
        for value in (1, "two", [3.0]):
            await channel.send(value)
            assert await channel.receive() == (value, "!")
        await channel.send_eof()

        assert await everything(channel) == []
        assert await channel.result() == "done"


@pytest.mark.parametrize("size", SIZES)
async def test_things_of_any_size_go_there_and_back(size: int) -> None:
    async with trickle.open_host(local()) as host, host.open_channel(flows.echo) as channel:
        for _ in range(3):
            await channel.send(bytes(size))
            assert await channel.receive() == (bytes(size), "")


async def test_a_sender_waits_for_a_function_that_does_not_receive(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_channel(flows.receive_when_told, str(tmp_path / "go")) as channel:
            sent, before = 0, -1

            async def send() -> None:
                nonlocal sent
                while True:
                    await channel.send(bytes(10_000))
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while sent != before:
                    before = sent
                    await trio.sleep(0.3)
                nursery.cancel_scope.cancel()

            assert sent * 10_000 < 3 * 2**20
            (tmp_path / "go").touch()
            await channel.send_eof()
            assert await channel.result() == sent


async def test_functions_see_timeouts_and_the_end(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.what_receiving_gives) as channel:
        assert await channel.receive() == "go on"
        await channel.send("x")
        await channel.send_eof()

        assert await channel.result() == ["timeout", "x", "eof", "eof"]


async def test_functions_end_their_side_of_a_channel(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.what_sending_gives) as channel:
        assert await everything(channel) == [1]
        assert "closed for sending" in str(await channel.result())


async def test_a_function_that_takes_no_more_breaks_the_sender(open_any: OpenAny, shared: Path) -> None:
    async with open_any() as host:
        async with host.open_channel(flows.take_one_and_close, str(shared / "closed")) as channel:
            await channel.send(1)
            await file_appears(shared / "closed")
            with pytest.raises(trio.BrokenResourceError, match="takes nothing more"):
                while True:
                    await channel.send(bytes(1000))
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()


async def test_sending_to_a_function_that_has_ended_breaks_too(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.what_sending_gives) as channel:
        await channel.result()
        with pytest.raises(trio.BrokenResourceError):
            await channel.send(1)


async def test_sending_to_a_host_that_is_lost_says_so(open_any: OpenAny) -> None:
    async with open_any() as host:
        async with host.open_channel(flows.add_up) as channel:
            await channel.send(1)
            host._core.link._process.send_signal(signal.SIGKILL)  # type: ignore[union-attr]
            await host._core.link.gone.wait()
            for _ in range(2):
                with pytest.raises(trickle.HostLost):
                    await channel.send(1)


async def test_sending_to_a_process_that_has_died_says_so(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(far) as host, host.open_channel(flows.die_when_told) as channel:
        await channel.send(None)
        with pytest.raises(trickle.WorkerDied):
            await channel.result()
        with pytest.raises(trickle.WorkerDied) as caught:
            await channel.send(1)

    assert caught.value.signal == 9


async def test_the_error_of_a_function_comes_behind_what_it_sent(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.send_and_fail) as channel:
        assert [await channel.receive(), await channel.receive()] == [1, 2]
        for _ in range(2):
            with pytest.raises(ValueError, match="after two"):
                await channel.receive()
        with pytest.raises(ValueError, match="after two"):
            await channel.result()


async def test_leaving_the_block_ends_the_function(open_any: OpenAny, shared: Path) -> None:
    async with open_any() as host:
        async with host.open_channel(flows.wait_for_something, str(shared / "pid")):
            pid = int(await file_appears(shared / "pid"))

        assert pid == os.getpid() or not is_running(pid)  # in memory it was a thread
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_a_function_that_nobody_receives_from_ends_too(open_any: OpenAny) -> None:
    async with open_any() as host:
        async with host.open_channel(flows.send_without_end) as channel:
            await channel.receive()

        assert host.statistics().verdicts == {"cancelled": 1}


async def test_closing_tells_other_tasks_that_use_the_channel(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.add_up) as channel:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await channel.receive()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await channel.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await channel.send(1)


async def test_functions_and_lambdas_flow_there() -> None:
    async with trickle.open_host(local()) as host, host.open_channel(flows.use_a_value) as channel:
        await channel.send(lambda x: x * 2 + 2)
        assert await channel.result() == 42


async def test_what_cannot_be_sent_is_said_here_and_the_channel_goes_on() -> None:
    async with trickle.open_host(local()) as host, host.open_channel(flows.add_up) as channel:
        with pytest.raises(trickle.Unsendable):
            await channel.send(value for value in ())
        await channel.send(42)
        await channel.send_eof()
        assert await channel.result() == 42


async def test_a_function_may_send_and_receive_in_two_threads() -> None:
    async with trickle.open_host(local()) as host, host.open_channel(flows.in_two_threads) as channel:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(100):
                    await channel.send(number)
                await channel.send_eof()

            nursery.start_soon(send)
            assert await everything(channel) == list(range(100))
        assert await channel.result() == sum(range(100))


async def test_several_tasks_may_receive(open_any: OpenAny) -> None:
    shares: list[list[object]] = [[], [], []]

    async def take(things: trio.abc.ReceiveChannel[object], share: list[object]) -> None:
        async for thing in things:
            share.append(thing)
            await trio.sleep(0.001)

    async with open_any() as host:
        async with host.stream(flows.count, 100) as numbers, trio.open_nursery() as nursery:
            for share in shares:
                nursery.start_soon(take, numbers, share)
        async with host.open_channel(flows.echo) as channel, trio.open_nursery() as nursery:
            for share in shares:
                nursery.start_soon(take, channel, share)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(100):  # all of them wait for each
                await channel.send(number)
            await channel.send_eof()

    echoed = [(number, "") for number in range(100)]
    assert sorted((thing for share in shares for thing in share), key=repr) == sorted([*range(100), *echoed], key=repr)


async def test_a_function_may_leave_its_channel_to_a_thread(open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.echo_in_a_thread) as channel:
        await channel.send("x")
        assert await channel.receive() == "x"
        await channel.send_eof()
        assert await channel.result() == "done"


@pytest.mark.parametrize("timeout", [math.inf, 1e10, -1.0], ids=repr)
async def test_a_function_may_wait_as_long_as_it_has_time(timeout: float, open_any: OpenAny) -> None:
    async with open_any() as host, host.open_channel(flows.receive_within, timeout) as channel:
        assert await channel.receive() == "receives"
        if timeout < 0:
            with pytest.raises(TimeoutError):
                await channel.result()
        else:
            await trio.sleep(0.05)  # it waits
            await channel.send("x")
            assert await channel.result() == "x"


async def test_a_function_with_a_channel_hears_why_it_is_not_wanted(open_any: OpenAny, shared: Path) -> None:
    async with open_any() as host:
        async with host.open_channel(flows.tell_why_it_ends, str(shared / "why")) as channel:
            await channel.receive()

    assert (shared / "why").read_text() == "the caller has left its block"


async def test_who_waits_for_the_result_of_a_channel_that_is_closed_hears_of_that() -> None:
    async with trickle.open_host(local("web1")) as host, host.open_channel(flows.receive_nothing) as channel:
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.result)
                await trio.testing.wait_all_tasks_blocked()
                await channel.aclose()
        assert caught.group_contains(trio.ClosedResourceError, match="web1: this channel was closed here")
        with pytest.raises(trio.ClosedResourceError):
            await channel.result()


async def test_aclose_of_the_host_ends_its_channels(open_any: OpenAny) -> None:
    async with open_any() as host:
        with pytest.raises(trio.ClosedResourceError):
            async with host.open_channel(flows.add_up) as channel:
                await host.aclose()
                await channel.receive()


async def test_nothing_of_a_stream_is_kept_when_it_is_over(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        link = host._core.link
        for _ in range(3):
            async with host.stream(flows.count_and_tell, str(tmp_path / "end")) as things:
                await things.receive()
        gc.collect()

        assert not link.calls and not link._flowing and not link._connection._calls


async def test_a_program_that_gives_up_on_one_thing_can_wait_for_it_again(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_channel(flows.echo) as channel:
            with trio.move_on_after(0.05):
                await channel.receive()
            await channel.send(1)
            assert await channel.receive() == (1, "")


def test_streams_are_trios_channels() -> None:
    assert issubclass(trickle.RemoteChannel, trio.abc.SendChannel)
    assert issubclass(trickle.RemoteChannel, trio.abc.ReceiveChannel)
