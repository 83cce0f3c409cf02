"""Connecting, and the ways in which it fails: each says which host, what happened and what to try."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

import trickle
from tests import work
from tests.hosts import file_appears, local, running_below
from trickle import _boot

PYTHON = sys.executable


def shell(script: str, name: str = "web1") -> trickle.Command:
    """A host whose login does *script*; "$@" is what it was asked to run."""
    return trickle.Command(["sh", "-c", script, "login"], name=name)


async def error_of(tunnel: trickle.abc.Tunnel, **options: float) -> trickle.ConnectError:
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel, **options):  # type: ignore[arg-type]
            pass
    assert caught.value.host == tunnel.name
    assert str(caught.value).startswith(f"{tunnel.name}: ")
    return caught.value


async def test_a_command_that_does_not_exist_is_named() -> None:
    error = await error_of(trickle.Command(["/no/such/command"], name="web1"))

    assert "cannot run '/no/such/command'" in str(error)
    assert isinstance(error.__cause__, FileNotFoundError)


async def test_a_python_that_does_not_exist_is_named() -> None:
    error = await error_of(trickle.Command(["env"], name="web1", python="/no/such/python"))

    assert (error.reason, error.exit_status) == ("no Python", 127)
    assert "/no/such/python" in error.stderr


async def test_a_tunnel_that_ends_says_its_status_and_last_words() -> None:
    error = await error_of(shell("echo all is lost >&2; exit 7"))

    assert (error.reason, error.exit_status, error.stderr) == ("unknown", 7, "all is lost\n")
    assert "all is lost" in str(error)


async def test_noise_before_the_first_frame_is_skipped() -> None:
    async with trickle.open_host(shell('echo "Welcome to web1!"; seq 10000; exec "$@"')) as host:
        assert await host.call(work.add, 1, 2) == 3


async def test_noise_is_kept_for_the_error_message() -> None:
    error = await error_of(shell("echo Account expired; exit 1"))

    assert "Account expired" in str(error)


async def test_noise_without_end_is_not_read_for_ever() -> None:
    with pytest.raises(trickle.ProtocolError, match="web1: .*before the agent answered"):
        async with trickle.open_host(shell("exec yes")):
            pass


async def test_a_host_that_does_not_answer_is_given_up_after_connect_timeout() -> None:
    error = await error_of(shell("exec sleep 3600"), connect_timeout=0.5)

    assert error.reason == "timed out"
    assert "within 0.5 s (waiting for the agent)" in str(error)


@pytest.mark.parametrize(
    "script", ["trap '' TERM; while :; do sleep 60; done", "kill -STOP $$"], ids=["deaf", "stopped"]
)
async def test_a_tunnel_that_was_given_up_is_not_waited_for(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trickle._link.EXIT_PATIENCE", 3600)  # this is for others

    with trio.fail_after(60):
        error = await error_of(shell(script), connect_timeout=0.5)

    assert error.reason == "timed out"


async def test_a_start_up_file_that_reads_stdin_is_recognised() -> None:
    error = await error_of(shell('read line; exec "$@"'), connect_timeout=20)

    assert error.reason == "stdin"
    assert "something there read our stdin" in str(error)


async def test_bytes_that_are_missing_are_noticed() -> None:
    error = await error_of(shell('head -c 100 >/dev/null; exec "$@"'), connect_timeout=20)

    assert error.reason == "stdin"


async def test_a_shell_that_reads_our_bytes_ends_at_the_first_line() -> None:
    error = await error_of(shell("exec sh"))

    assert (error.reason, error.exit_status) == ("not a Python", 86)


async def test_a_shell_that_shows_what_it_obeys_is_an_echo() -> None:
    error = await error_of(shell('read -r line; echo "web1:~$ $line"; exit 86'))

    assert (error.reason, error.exit_status) == ("echo", 86)


async def test_an_echo_is_not_taken_for_an_answer() -> None:
    error = await error_of(shell("exec cat"))

    assert error.reason == "echo"
    assert "a terminal on the way" in str(error)


@pytest.mark.parametrize(
    ("script", "rest", "reason"),
    [
        # The rest is not there when the first part is: it comes when nothing more is to be read.
        (
            "printf '    exit 86\n         ^^\n' >&2; cat >/dev/null; echo 'SyntaxError: bad' >&2",
            "SyntaxError: bad",
            "not a Python",
        ),
        (
            "printf 'web1>%% Unknown '; cat >/dev/null; echo 'command or name'",
            "web1>% Unknown command or name",
            "not a Python",
        ),
        ("echo 'raise SystemExit(86)'; cat >/dev/null; echo 'There is no exit' >&2", "There is no exit", "echo"),
        (
            "echo 'raise SystemExit(86)'; sleep 0.5; echo 'There is no exit' >&2; exec sleep 3600",
            "There is no exit",
            "echo",
        ),
    ],
)
async def test_what_took_our_bytes_may_end_its_sentence(script: str, rest: str, reason: str) -> None:
    error = await error_of(shell(script))

    assert error.reason == reason
    assert rest in str(error).splitlines()[-1]


async def test_what_comes_late_on_stderr_is_part_of_the_message() -> None:
    error = await error_of(shell("(sleep 0.5; echo all is lost >&2) & exec >&-; exit 7"))

    assert (error.exit_status, error.stderr) == (7, "all is lost\n")


async def test_an_old_python_is_refused_by_name(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\ncase $1 in -V) echo Python 3.5.10;; *) exit 83;; esac\n")
    old.chmod(0o755)

    error = await error_of(shell(f'PATH={tmp_path}:/nowhere; export PATH; exec /bin/sh -c "$3" "$4" "$5"'))

    assert error.reason == "too old"
    assert "only" in str(error) and "Python 3.5.10" in str(error)


async def test_a_host_without_any_python_is_told(tmp_path: Path) -> None:
    error = await error_of(shell(f'PATH={tmp_path}; export PATH; exec /bin/sh -c "$3" "$4" "$5"'))

    assert error.reason == "no Python"


OLD = "case $1 in -V) echo Python 3.5.10;; *) exit 83;; esac"
BROKEN = {
    "a crash": "kill -SEGV $$",
    "an error": "echo Fatal Python error: init_fs_encoding: failed to get the Python codec >&2; exit 1",
    "a shim without a Python": "echo pyenv: python3: command not found >&2; exit 127",
    "another program": "echo I am not a Python; exit 3",
}
FINE = f'exec {PYTHON} "$@"'


def with_programs(directory: Path, **programs: str) -> trickle.Command:
    """A host that has these shell scripts and nothing else in its PATH."""
    directory.mkdir()
    for name, script in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return shell(f'PATH="{directory}"; export PATH; exec /bin/sh -c "$3" "$4" "$5"')


@pytest.mark.parametrize("first", [OLD, *BROKEN.values()], ids=["an old one", *BROKEN])
async def test_the_first_python_that_will_do_is_taken(first: str, tmp_path: Path) -> None:
    tunnel = with_programs(tmp_path / "with blanks", python3=first, python=FINE)

    async with trickle.open_host(tunnel) as host:
        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
async def test_a_python_that_does_not_start_is_named(script: str, tmp_path: Path) -> None:
    error = await error_of(with_programs(tmp_path / "bin", python3=script))

    assert error.reason == "no Python"
    assert f"only {tmp_path}/bin/python3 (does not start); " in str(error)


async def test_an_old_python_beside_a_broken_one_is_named(tmp_path: Path) -> None:
    error = await error_of(with_programs(tmp_path / "bin", python3=BROKEN["a crash"], python=OLD))

    assert error.reason == "too old"
    assert "python3 (does not start), " in str(error) and "python (Python 3.5.10); " in str(error)


async def test_a_python_that_fails_with_our_code_is_not_replaced_by_another(tmp_path: Path) -> None:
    script = f"case $4 in *_signal*) head -c 9 >/dev/null; exit 1;; esac; {FINE}"
    tunnel = with_programs(tmp_path / "bin", python3=script, python=FINE, head='exec /usr/bin/head "$@"')

    error = await error_of(tunnel)

    assert (error.reason, error.exit_status) == ("unknown", 1)


@pytest.mark.parametrize("python", [None, "broken"])
async def test_a_python_without_its_library_is_named(python: str | None, tmp_path: Path) -> None:
    original = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    library = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library.mkdir(parents=True)
    (library / "os.py").touch()
    broken = tmp_path / "bin" / "broken"
    broken.parent.mkdir()
    shutil.copy(original, broken)
    tunnel = with_programs(tmp_path / "path", python3=f'exec {broken} "$@"')
    if python is not None:
        tunnel = trickle.Command(["env"], name="web1", python=str(broken))

    error = await error_of(tunnel)

    assert error.reason == "no Python"
    assert "start; " in str(error) or "does not start)" in str(error)
    assert "Fatal Python error" in error.stderr


async def test_a_connect_error_comes_from_the_first_verb_when_nobody_waits() -> None:
    async with trickle.open_host(shell("exit 7"), wait=False) as host:
        for _ in range(2):
            with pytest.raises(trickle.ConnectError, match="web1: "):
                await host.call(work.add, 1)

        assert host.statistics().state == "lost"


async def test_a_connect_error_never_comes_from_leaving_the_block() -> None:
    async with trickle.open_host(shell("exit 7"), wait=False):
        pass


async def test_a_cancelled_scope_ends_connecting_and_leaves_nothing() -> None:
    before = running_below()

    with trio.move_on_after(0.3) as scope:
        async with trickle.open_host(shell("exec sleep 3600")):
            pass

    assert scope.cancelled_caught
    assert running_below() == before


async def test_a_call_whose_only_caller_gives_up_while_connecting_lets_the_next_one_connect_anew(
    tmp_path: Path,
) -> None:
    script = f'if [ -e {tmp_path}/been ]; then exec "$@"; fi; touch {tmp_path}/been; exec sleep 3600'

    async with trickle.open_host(shell(script), wait=False) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.add, 1)
            await file_appears(tmp_path / "been")
            nursery.cancel_scope.cancel()

        assert await host.call(work.add, 1, 2) == 3


async def test_a_call_cancelled_while_connecting_never_starts_when_others_wait(tmp_path: Path) -> None:
    slow = shell(f'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exec "$@"')
    results = []

    async def other_call(host: trickle.Host) -> None:
        results.append(await host.call(work.add, 1, 2))

    async with trickle.open_host(slow, wait=False) as host, trio.open_nursery() as nursery:
        nursery.start_soon(other_call, host)
        async with trio.open_nursery() as inner:
            inner.start_soon(host.call, work.write_file, str(tmp_path / "ran"), "ran")
            await trio.sleep(0.3)
            (tmp_path / "go").touch()
            inner.cancel_scope.cancel()

    assert results == [3]
    assert not (tmp_path / "ran").exists()


async def in_session(host: trickle.Host) -> None:
    async with host.session() as session:
        await session.call(work.add, 1)


async def in_stream(host: trickle.Host) -> None:
    async with host.stream(range, 3) as numbers:
        await numbers.receive()


async def waiting(host: trickle.Host) -> None:
    await host.wait_connected()


async def calling(host: trickle.Host) -> None:
    await host.call(work.add, 1)


TOGETHER = [
    (calling, calling),
    (calling, waiting),
    (waiting, calling),
    (in_session,),
    (in_session, in_session),
    (in_session, calling),
    (in_stream, calling),
]


@pytest.mark.parametrize("users", TOGETHER, ids=lambda users: " and ".join(user.__name__ for user in users))
async def test_callers_who_give_up_together_while_connecting_do_not_wait_for_each_other(
    users: Sequence[Callable[[trickle.Host], Awaitable[None]]], tmp_path: Path
) -> None:
    script = f'if [ -e {tmp_path}/been ]; then exec "$@"; fi; touch {tmp_path}/been; exec sleep 3600'

    async with trickle.open_host(shell(script), wait=False) as host:
        async with trio.open_nursery() as nursery:
            for user in users:
                nursery.start_soon(user, host.options(grace_period=60))
            await file_appears(tmp_path / "been")
            await trio.testing.wait_all_tasks_blocked(0.1)
            before = trio.current_time()
            nursery.cancel_scope.cancel()

        assert host.statistics().state == "closed"
        assert trio.current_time() - before < 60  # who waits for a verdict waits longer
        assert await host.call(work.add, 1, 2) == 3


async def test_group_verbs_that_time_out_together_while_connecting_do_not_wait_for_each_other() -> None:
    results = []

    async with trickle.open_group([shell("exec sleep 3600")]) as group:
        before = trio.current_time()

        async def call() -> None:
            results.append(await group.options(timeout=0.5, grace_period=60).call(work.add, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)

        assert group["web1"].statistics().state == "closed"
        assert trio.current_time() - before < 60
        assert [type(result.failures()["web1"]) for result in results] == [trickle.CallTimeout] * 2


async def test_an_open_session_keeps_the_host_that_another_caller_gives_up(tmp_path: Path) -> None:
    slow = shell(f'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exec "$@"')

    async with trickle.open_host(slow, wait=False) as host, host.session() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.add, 1)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
            (tmp_path / "go").touch()

        assert await session.call(work.add, 1, 2) == 3


async def test_a_session_whose_call_gave_up_while_connecting_has_lost_its_worker() -> None:
    async with trickle.open_host(shell("exec sleep 3600"), wait=False) as host, host.session() as session:
        with trio.move_on_after(0.1):
            await session.call(work.add, 1)

        with pytest.raises(trickle.WorkerDied, match="open another session"):
            await session.call(work.add, 1)


async def test_a_block_that_is_left_before_the_host_has_answered_raises_nothing() -> None:
    async with trickle.open_host(shell("exec sleep 3600"), wait=False) as host:
        async with host.stream(range, 3):
            await host._core.link.begun.wait()
            await trio.sleep(0.1)  # the call has left

        assert host.statistics().state == "closed"


async def test_waiting_for_a_host_that_another_task_closes_says_that() -> None:
    async with trickle.open_host(shell("exec sleep 3600"), wait=False) as host:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError, match="web1: this host was closed"):
                await host.wait_connected()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await host.aclose()


async def test_garbage_on_the_pipe_is_a_protocol_error() -> None:
    async with trickle.open_host(shell('{ "$@"; echo garbage; }')) as host:
        with pytest.raises(trickle.ProtocolError, match="web1: it broke the rules of the wire") as caught:
            await host.call(work.end_the_broker)

        assert caught.value.host == "web1"


async def test_what_a_host_says_behind_its_end_cannot_hurt() -> None:
    async with trickle.open_host(shell('{ "$@"; echo garbage; }')) as host:
        await host.call(work.add, 1)


async def test_settings_are_checked() -> None:
    for wrong in ({"lease": 1, "heartbeat": 1}, {"workers": 0}, {"connect_timeout": 0}, {"max_payload": 2**33}):
        with pytest.raises(ValueError):
            async with trickle.open_host(local(), **wrong):  # type: ignore[arg-type]
                pass
    with pytest.raises(TypeError, match=r"modules=\['myapp'\]: it is a trickle.ModulePolicy"):
        async with trickle.open_host(local(), modules=["myapp"]):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match="neither a tunnel nor a host name"):
        async with trickle.open_host(42):  # type: ignore[arg-type]
            pass


def test_the_boot_line_passes_through_any_shell() -> None:
    for words in (_boot.python_command(None), _boot.python_command("/usr/bin/python3")):
        assert not set("\\!\n'").intersection("".join(words))
    assert len(_boot.BOOT_LINE) < 200


def test_a_half_dead_boot_ends_at_the_end_of_its_stdin() -> None:
    data = b"".join(_boot.boot_pieces({"nonce": "x"}))

    for length in (0, 3, 9, 20, len(data) // 2):
        done = subprocess.run(
            _boot.python_command(PYTHON), input=data[:length], capture_output=True, timeout=60, check=False
        )
        assert done.returncode != 0


def test_a_boot_that_waits_for_ever_has_a_deadline_of_its_own() -> None:
    words = [word.replace("alarm(60)", "alarm(1)") for word in _boot.python_command(PYTHON)]

    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        status = process.wait(timeout=60)  # its stdin stays open, and nothing comes

    assert words != list(_boot.python_command(PYTHON))
    assert status == -signal.SIGALRM


async def test_a_silent_controller_is_noticed_by_the_agent(tmp_path: Path) -> None:
    """The agent's end of the lease: a controller that says nothing more, with its pipes open."""
    configuration = {
        "name": "web1",
        "nonce": "0123456789abcdef",
        "agent": "a",
        "heartbeat": 0.2,
        "lease": 1.0,
        "workers": 4,
        "max_payload": 1 << 20,
        "grace_period": 5.0,
    }
    process = subprocess.Popen(_boot.python_command(PYTHON), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"".join(_boot.boot_pieces(configuration)))
    process.stdin.flush()
    started = time.monotonic()

    status = await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)

    assert status == 70
    assert time.monotonic() - started >= 1.0
    process.stdin.close()
    process.stdout.close()


async def test_a_silent_agent_is_a_lost_host(tmp_path: Path) -> None:
    async with trickle.open_host(local("web1"), heartbeat=0.2, lease=1.0) as host:
        os.kill(host.info.pid, signal.SIGSTOP)
        try:
            with pytest.raises(trickle.HostLost, match="web1: nothing was heard from it for 1 s"):
                await host.call(work.add, 1)
        finally:
            os.kill(host.info.pid, signal.SIGCONT)


async def test_without_a_lease_silence_is_nothing() -> None:
    async with trickle.open_host(local(), heartbeat=0.05, lease=math.inf) as host, trio.open_nursery() as nursery:
        os.kill(host.info.pid, signal.SIGSTOP)
        try:
            nursery.start_soon(host.call, work.add, 1, 2)
            await trio.sleep(1)  # twenty heartbeats
            assert host.statistics().state == "connected"
        finally:
            os.kill(host.info.pid, signal.SIGCONT)

    assert host.statistics().verdicts == {"returned": 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the clock is Linux's")
def test_the_agents_lease_goes_on_while_the_machine_sleeps() -> None:
    enter = ["unshare", "--time", "--boottime", "100000"]  # in there, that is how long this machine has slept
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("no time namespaces for us on this machine")
    script = "import time; from trickle._agent import pipe; print(pipe._lease_clock() - time.clock_gettime(1))"
    usual, asleep = (
        float(subprocess.check_output([*words, PYTHON, "-c", script], cwd=Path(trickle.__file__).parents[1]))
        for words in ((), enter)
    )

    assert round(asleep - usual, -2) == 100_000


async def test_a_loop_that_was_blocked_for_less_than_the_lease_loses_nothing() -> None:
    async with trickle.open_host(local(), heartbeat=0.2, lease=4.0) as host:
        time.sleep(2.5)

        assert await host.call(work.add, 1, 2) == 3
