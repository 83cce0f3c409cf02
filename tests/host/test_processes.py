"""Commands over there: what flows through their pipes, how they end, and that they do end."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trickle
from tests import work
from tests.hosts import file_appears, is_running, local, process_ends
from trickle.testing import open_memory_group

PIPE = subprocess.PIPE


async def test_a_command_runs_and_its_output_comes_back(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(far) as host:
        done = await host.run_process(["printf", "%s|", "a b", "$HOME", "*"], capture_stdout=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"a b|$HOME|*|", None)


async def test_a_shell_is_used_only_when_asked_for() -> None:
    async with trickle.open_host(local()) as host:
        done = await host.run_process(
            "echo $((1 + 2)); echo no >&2", shell=True, capture_stdout=True, capture_stderr=True
        )
        assert (done.stdout, done.stderr) == (b"3\n", b"no\n")
        with pytest.raises(TypeError, match="sequence of words"):
            await host.run_process("echo 1")
        with pytest.raises(TypeError, match="it is a string"):
            await host.run_process(["echo"], shell=True)


async def test_odd_words_arrive_as_they_are() -> None:
    words = [b"\xff\xfe", "\N{SNOWMAN}", "", "a\nb", Path("x/y")]

    async with trickle.open_host(local()) as host:
        done = await host.run_process(["printf", "%s|", *words], capture_stdout=True)

    assert done.stdout == b"\xff\xfe|\xe2\x98\x83||a\nb|x/y|"


async def test_what_a_command_reads_may_be_bytes_or_a_stream_or_nothing() -> None:
    async with trickle.open_host(local()) as host:
        done = await host.run_process(["cat"], stdin=b"given", capture_stdout=True)
        assert done.stdout == b"given"
        assert (await host.run_process(["cat"], stdin=None, capture_stdout=True)).stdout == b""

        async with trio.open_nursery() as nursery:
            send, receive = trio.testing.memory_stream_one_way_pair()

            async def feed() -> None:
                for _ in range(3):
                    await send.send_all(b"part ")
                await send.aclose()

            nursery.start_soon(feed)
            done = await host.run_process(["cat"], stdin=receive, capture_stdout=True)
        assert done.stdout == b"part part part "


async def test_a_command_that_reads_less_than_it_is_given_is_not_waited_for() -> None:
    async with trickle.open_host(local()) as host:
        done = await host.run_process(["head", "-c", "3"], stdin=bytes(5_000_000), capture_stdout=True)
        assert done.stdout == bytes(3)

        _, endless = trio.testing.memory_stream_one_way_pair()
        assert (await host.run_process(["true"], stdin=endless)).returncode == 0


@pytest.mark.parametrize("size", [0, 1, 65536, 1_000_003, 20_000_000])
async def test_bytes_go_through_unchanged(size: int) -> None:
    data = os.urandom(size)

    async with trickle.open_host(local()) as host:
        done = await host.run_process(["cat"], stdin=data, capture_stdout=True)

    assert done.stdout == data


async def test_a_failing_command_raises_with_its_host_and_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            await host.run_process(["sh", "-c", "echo no such thing >&2; exit 3"])
        assert (caught.value.returncode, caught.value.host) == (3, "web1")  # type: ignore[attr-defined]
        assert caught.value.__notes__ == ["web1: it said on stderr:\nno such thing"]

        with pytest.raises(subprocess.CalledProcessError) as caught:
            await host.run_process(["sh", "-c", "echo gone >&2; kill -9 $$"], capture_stderr=True)
        assert (caught.value.returncode, caught.value.stderr) == (-9, b"gone\n")

        assert (await host.run_process(["false"], check=False)).returncode == 1

    assert capsys.readouterr().err == "web1: no such thing\n"


async def test_a_command_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(FileNotFoundError, match="web1: .*no-such-command"):
            await host.run_process(["no-such-command"])
        with pytest.raises(FileNotFoundError):
            async with host.open_process(["true"], cwd=tmp_path / "nowhere"):
                pass
        with pytest.raises(ValueError, match="stdin="):
            async with host.open_process(["true"], stdin=subprocess.STDOUT):
                pass

        assert await host.call(work.add, 1, 2) == 3


async def test_surroundings_are_as_asked_for(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        done = await host.run_process(
            'pwd; echo "$A $HOME"', shell=True, cwd=tmp_path, env={"A": "b"}, capture_stdout=True
        )
        assert done.stdout.decode().split("\n")[:2] == [str(tmp_path), "b "]

        view = host.options(env={"A": "from options"}, cwd=tmp_path)
        done = await view.run_process("pwd; echo $A", shell=True, capture_stdout=True)
        assert done.stdout.decode() == f"{tmp_path}\nfrom options\n"


async def test_the_limit_of_results_is_none_of_commands() -> None:
    async with trickle.open_host(local()) as host:
        view = host.options(max_result=0)
        done = await view.run_process(["head", "-c", "300000", "/dev/zero"], capture_stdout=True)
        assert done.stdout == bytes(300_000)
        async with view.open_host(local("inner")) as inner:
            assert await inner.call(bytes, 500_000) == bytes(500_000)


async def test_what_is_not_captured_is_printed_here() -> None:
    lines: list[tuple[str, str]] = []

    async with trickle.open_host(local(), output=lambda line: lines.append((line.stream, line.text))) as host:
        await host.run_process("echo out; echo err >&2", shell=True)
        async with host.open_process(["sh", "-c", "echo again"]) as process:
            await process.wait()

    assert sorted(lines) == [("stderr", "err"), ("stdout", "again"), ("stdout", "out")]


async def test_a_cancelled_command_gets_sigterm_and_may_clean_up(far: trickle.abc.Tunnel, shared: Path) -> None:
    script = (
        f"trap 'echo clean > {shared}/clean; exit' TERM; echo $$ > {shared}/new; mv {shared}/new {shared}/pid;"
        " while :; do sleep 0.01; done"
    )

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: host.run_process(["sh", "-c", script]))
            pid = int(await file_appears(shared / "pid"))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)
        assert (shared / "clean").read_text() == "clean\n"
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_a_command_that_ignores_sigterm_is_killed_with_its_children(
    far: trickle.abc.Tunnel, shared: Path
) -> None:
    script = (
        f"trap '' TERM; setsid sleep 3600 & echo $$ $! > {shared}/new; mv {shared}/new {shared}/pid;"
        " while :; do sleep 0.01; done"
    )

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: host.options(grace_period=0.3).run_process(["sh", "-c", script]))
            pids = [int(pid) for pid in (await file_appears(shared / "pid")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {"killed": 1}


async def test_leaving_the_block_ends_the_process(far: trickle.abc.Tunnel) -> None:
    async with trickle.open_host(far) as host:
        async with host.open_process(["sleep", "3600"]) as process:
            assert is_running(process.pid)
            assert process.returncode is None

        assert not is_running(process.pid)


async def test_a_lost_controller_ends_the_process(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.HostLost):
            async with host.open_process(["sleep", "3600"], stdout=PIPE) as process:
                assert process.stdout is not None
                os.kill(host.info.pid, signal.SIGKILL)
                with pytest.raises(trickle.HostLost):
                    await process.stdout.receive_some()
                await process.wait()

        await process_ends(process.pid)


async def test_signals_reach_the_process() -> None:
    async with trickle.open_host(local()) as host:
        for send, number in (
            (trickle.RemoteProcess.terminate, signal.SIGTERM),
            (trickle.RemoteProcess.kill, signal.SIGKILL),
            (lambda process: process.send_signal(signal.SIGUSR1), signal.SIGUSR1),
        ):
            async with host.open_process(["sleep", "3600"]) as process:
                send(process)
                assert await process.wait() == -number
                assert process.returncode == -number
                send(process)  # to nobody


async def test_stdout_and_stderr_do_not_hold_each_other_up() -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_process("yes & yes >&2 & wait", shell=True, stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            received = 0
            while received < 3_000_000:  # much more than there is room for, and nobody reads stdout
                received += len(await process.stderr.receive_some())
            assert len(await process.stdout.receive_some()) > 0
            assert await host.call(work.add, 1, 2) == 3


async def test_stderr_may_go_where_stdout_goes() -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_process(
            "echo a; echo b >&2", shell=True, stdout=PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            assert b"".join([data async for data in process.stdout]) == b"a\nb\n"


async def test_a_closed_stdout_breaks_the_process() -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_process(["yes"], stdout=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.aclose()
            assert await process.wait() == -signal.SIGPIPE


async def test_a_process_that_has_ended_breaks_stdin() -> None:
    async with trickle.open_host(local()) as host:
        async with host.open_process(["true"], stdin=PIPE) as process:
            assert process.stdin is not None
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await process.stdin.send_all(bytes(100_000))
            with pytest.raises(trio.BrokenResourceError):
                await process.stdin.send_all(b"x")


async def test_the_pipes_of_a_process_are_trios_streams() -> None:
    async with trickle.open_host(local()) as host, contextlib.AsyncExitStack() as stack:

        async def make() -> tuple[trio.abc.SendStream, trio.abc.ReceiveStream]:
            process = await stack.enter_async_context(host.open_process(["cat"], stdin=PIPE, stdout=PIPE))
            assert process.stdin is not None and process.stdout is not None
            return process.stdin, process.stdout

        async def make_full() -> tuple[trio.abc.SendStream, trio.abc.ReceiveStream]:
            send, receive = await make()
            is_full = False
            while not is_full:
                with trio.move_on_after(1.0) as scope:  # in which whoever can read has read something
                    await send.send_all(bytes(65536))
                is_full = scope.cancelled_caught
            return send, receive

        await trio.testing.check_one_way_stream(make, make_full)


async def test_two_processes_make_trios_half_closeable_streams() -> None:
    async with trickle.open_host(local()) as host, contextlib.AsyncExitStack() as stack:
        HalfCloseable = trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]

        async def make() -> tuple[HalfCloseable, HalfCloseable]:
            one = await stack.enter_async_context(host.open_process(["cat"], stdin=PIPE, stdout=PIPE))
            two = await stack.enter_async_context(host.open_process(["cat"], stdin=PIPE, stdout=PIPE))
            assert one.stdin and one.stdout and two.stdin and two.stdout
            return trio.StapledStream(one.stdin, two.stdout), trio.StapledStream(two.stdin, one.stdout)

        await trio.testing.check_half_closeable_stream(make, None)


async def test_many_processes_run_at_once() -> None:
    async with trickle.open_host(local(), workers=1) as host:
        done: list[bytes] = []

        async def run(number: int) -> None:
            result = await host.run_process(["sh", "-c", f"cat >/dev/null; echo {number}"], capture_stdout=True)
            done.append(result.stdout)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(run, number)

    assert sorted(map(int, done)) == list(range(10))


async def test_a_command_that_kills_our_process_over_there_is_told_by_its_class() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.WorkerDied) as caught:
            await host.run_process(["sh", "-c", "kill -9 $PPID; sleep 3600"])

        assert (caught.value.host, caught.value.signal) == ("here", 9)


async def test_what_is_captured_is_bounded() -> None:
    async with trickle.open_host(local(), max_payload=100_000) as host:
        done = await host.run_process(["head", "-c", "100000", "/dev/zero"], capture_stdout=True)
        assert len(done.stdout) == 100_000
        for command in ("yes", "yes >&2", "head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2; sleep 3600"):
            with pytest.raises(
                trickle.UnsafeResult, match=r"here: .* max_payload \(100000\) .* open_process"
            ) as caught:
                await host.run_process(command, shell=True, capture_stdout=True, capture_stderr=True)
            assert caught.value.host == "here"

        assert await host.call(work.add, 1, 2) == 3
        assert host.statistics().open == 0


async def test_how_a_process_ended_is_known_after_its_block(far: trickle.abc.Tunnel, shared: Path) -> None:
    script = f"trap '' TERM; echo > {shared}/deaf; while :; do sleep 0.01; done"

    async with trickle.open_host(far) as host:
        async with host.open_process(["sleep", "3600"]) as left:
            pass
        async with host.open_process(
            ["sh", "-c", "trap 'exit 3' TERM; echo; while :; do sleep 0.01; done"], stdout=PIPE
        ) as clean:
            assert clean.stdout is not None
            await clean.stdout.receive_some()
        with trio.CancelScope() as scope:
            async with host.options(grace_period=0.1).open_process(["sh", "-c", script]) as deaf:
                await file_appears(shared / "deaf")
                scope.cancel()
                await trio.sleep_forever()
        async with host.open_process("yes & exec yes >&2", shell=True, stdout=PIPE, stderr=PIPE) as loud:
            assert loud.stderr is not None
            await loud.stderr.receive_some()

        assert (left.returncode, clean.returncode, deaf.returncode) == (-signal.SIGTERM, 3, -signal.SIGKILL)
        assert loud.returncode == -signal.SIGTERM
        assert await left.wait() == -signal.SIGTERM
        assert host.statistics().verdicts == {"cancelled": 3, "killed": 1}


async def test_what_is_no_signal_is_refused_and_what_is_none_over_there_does_nothing() -> None:
    async with trickle.open_host(local()) as host, host.open_process(["cat"], stdin=PIPE) as process:
        assert process.stdin is not None
        for number in (-9, 65, 9999):
            with pytest.raises(ValueError, match="1 to 64"):
                process.send_signal(number)
        process._flow.post(("signal", 0, 9999))
        await process.stdin.aclose()

        assert await process.wait() == 0


async def test_another_tasks_aclose_of_the_host_closes_its_processes() -> None:
    async with trickle.open_host(local()) as host:

        async def run() -> None:
            await host.run_process(["sleep", "3600"])

        async def fill(stream: trio.abc.SendStream) -> None:
            while True:
                await stream.send_all(bytes(100_000))

        async def expect(what: Callable[..., Awaitable[object]], *args: object) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await what(*args)

        opened = host.open_process(["sleep", "3600"], stdin=PIPE, stdout=PIPE)
        async with opened as process, trio.open_nursery() as nursery:
            assert process.stdin is not None and process.stdout is not None
            nursery.start_soon(expect, run)
            nursery.start_soon(expect, process.wait)
            nursery.start_soon(expect, process.stdout.receive_some)
            nursery.start_soon(expect, fill, process.stdin)
            while host.statistics().calls_running < 2:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await host.aclose()


@pytest.mark.parametrize(
    ("command", "wrong", "says"),
    [
        ([], {}, "its first word is the program"),
        (["echo", 5], {}, "a sequence of words"),
        (5, {}, "a sequence of words"),
        ("ls", {}, "with shell=True a string"),
        (["ls"], {"shell": True}, "with shell=True it is a string"),
        (["cat"], {"stdin": "hello"}, "stdin='hello': it is bytes"),
        (["cat"], {"stdin": subprocess.PIPE}, "stdin=-1: it is bytes"),
    ],
)
async def test_what_cannot_be_a_command_is_said_before_anything_is_run(command: Any, wrong: Any, says: str) -> None:
    async with open_memory_group(["a"]) as group:  # where none could run
        for verb in (group["a"].run_process, group.run_process):
            with pytest.raises((TypeError, ValueError), match=re.escape(says)):
                await verb(command, **wrong)  # type: ignore[operator]
