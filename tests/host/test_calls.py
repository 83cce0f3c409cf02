"""Calls on one host: what comes back, what is raised, what is printed, what the statistics say."""

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from tests import flows, torture, work
from tests.hosts import file_appears, local
from tests.pythons import far_pythons, python_id
from trickle._settings import CallOptions
from trickle.abc import Tunnel
from trickle.testing import open_memory_host


async def test_a_call_returns_what_the_function_returns() -> None:
    async with trickle.open_host(local()) as host:
        result = await host.call(work.echo, 1, "two", key=[3.0, None, b"four"])

    assert result == ((1, "two"), {"key": [3.0, None, b"four"]})


async def test_a_builtin_can_be_called() -> None:
    async with trickle.open_host(local()) as host:
        pid = await host.call(os.getpid)

    assert pid != os.getpid()


async def test_keyword_arguments_with_trickles_own_names_go_to_the_function() -> None:
    async with trickle.open_host(local()) as host:
        result = await host.call(work.echo, fn=1, self=2, timeout=3, session=4)

    assert result == ((), {"fn": 1, "self": 2, "timeout": 3, "session": 4})


async def test_a_lambda_and_a_closure_can_be_called() -> None:
    factor = 6

    def multiply(value: int) -> int:
        return value * factor

    async with trickle.open_host(local()) as host:
        results = [await host.call(multiply, 7), await host.call(lambda value: value + factor, 1)]

    assert results == [42, 7]


async def test_info_says_what_answered() -> None:
    async with trickle.open_host(local()) as host:
        info = host.info

    assert info.python_version == sys.version_info[:3]
    assert (info.system, info.implementation) == (os.uname().sysname, "cpython")


async def test_info_raises_until_the_agent_has_answered() -> None:
    async with trickle.open_host(local(), wait=False) as host:
        with pytest.raises(RuntimeError, match="here: it has not answered yet"):
            host.info  # noqa: B018
        info = await host.wait_connected()

        assert host.info == info


async def test_the_first_calls_need_not_wait_for_the_agent() -> None:
    async with trickle.open_host(local(), wait=False) as host:
        result = await host.call(work.add, 1, b=2)

    assert result == 3


async def test_a_host_that_is_not_waited_for_can_be_left_at_once() -> None:
    async with trickle.open_host(local(), wait=False):
        pass


async def test_calls_run_side_by_side() -> None:
    results = []

    async def call(host: trickle.Host, read: int, write: int) -> None:
        results.append(await host.call(_pass_on, read, write))

    first_read, first_write = os.pipe()
    second_read, second_write = os.pipe()
    names = [f"/proc/{os.getpid()}/fd/{fd}" for fd in (first_read, first_write, second_read, second_write)]
    try:
        async with trickle.open_host(local()) as host, trio.open_nursery() as nursery:
            nursery.start_soon(call, host, names[0], names[3])
            nursery.start_soon(call, host, names[2], names[1])
            os.write(first_write, b"x")  # goes round through both of them
    finally:
        for fd in (first_read, first_write, second_read, second_write):
            os.close(fd)

    assert results == [b"x", b"x"]


def _pass_on(read, write):  # type: ignore[no-untyped-def]
    with open(read, "rb", 0) as source, open(write, "wb", 0) as target:
        data = source.read(1)
        target.write(data)
        return data


async def test_calls_that_do_not_overlap_run_in_the_same_worker() -> None:
    async with trickle.open_host(local()) as host:
        counts = [await host.call(work.count_calls) for _ in range(3)]

    assert counts == [1, 2, 3]


async def test_thousands_of_tiny_calls_do_not_fork_thousands_of_workers() -> None:
    pids = []

    async def call(host: trickle.Host) -> None:
        pids.append(await host.call(work.pid))

    async with trickle.open_host(local()) as host, trio.open_nursery() as nursery:
        for _ in range(2000):
            nursery.start_soon(call, host)

    assert len(pids) == 2000
    assert len(set(pids)) <= 16


async def test_no_more_calls_run_at_once_than_there_are_workers(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    scopes = {path: trio.CancelScope() for path in paths}

    async def call(path: Path) -> None:
        with scopes[path]:
            await host.call(work.say_and_run, str(path))

    async with trickle.open_host(local(), workers=2) as host, trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(call, path)
        while sum(path.exists() for path in paths) < 2:
            await trio.sleep(0.01)
        (waiting,) = [path for path in paths if not path.exists()]
        statistics = host.statistics()
        scopes[waiting].cancel()  # first: when the others have ended, there is a worker for it
        while not host.statistics().verdicts:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert (statistics.calls_running, statistics.calls_waiting) == (2, 1)
    assert not waiting.exists()
    assert host.statistics().verdicts == {"cancelled": 2, "never started": 1}


async def test_an_error_is_raised_as_itself_and_as_a_remote_error() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(KeyError) as caught:
            await host.call(work.fail, "KeyError", "missing")

    error = caught.value
    assert isinstance(error, trickle.RemoteError)
    assert (error.host, error.type_name, error.args) == ("web1", "builtins.KeyError", ("missing",))
    assert "work.py" in error.remote_traceback
    assert "raise getattr(__builtins__, kind)" in error.remote_traceback  # the source line
    assert "web1" in str(error)


async def test_an_os_error_keeps_its_number_and_file_name() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(FileNotFoundError) as caught:
            await host.call(os.stat, "/no/such/file")

    assert (caught.value.errno, caught.value.filename) == (2, "/no/such/file")


async def test_an_error_class_of_the_programs_own_comes_back_as_itself() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(work.OwnError) as caught:
            await host.call(work.fail_in_own_way)

    assert isinstance(caught.value, trickle.RemoteError)


async def test_the_remote_traceback_is_shown_with_the_cause() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(RuntimeError) as caught:
            await host.call(work.fail_with_cause)

    shown = "".join(traceback.format_exception(caught.value))
    assert '{}["missing"]' in shown
    assert "direct cause" in shown


async def test_what_would_steer_our_control_flow_comes_back_plain() -> None:
    async with trickle.open_host(local()) as host:
        for kind in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"):
            with pytest.raises(trickle.RemoteError) as caught:
                await host.call(work.fail, kind)

            assert caught.value.type_name == f"builtins.{kind}"
            assert not isinstance(caught.value, (StopIteration, StopAsyncIteration, SystemExit))


async def test_sys_exit_ends_the_call_and_not_the_worker(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        pid = await host.call(work.pid)
        with pytest.raises(trickle.RemoteError, match="SystemExit"):
            await host.call(work.exit_politely, 3)

        assert host.statistics().verdicts == {"returned": 1, "raised": 1}
        assert await host.call(work.pid) == pid


async def test_a_result_that_cannot_be_sent_is_an_error_of_the_call() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(TypeError, match="lock"):
            await host.call(work.give_lock)

        assert await host.call(work.add, 1) == 1


async def test_a_result_of_a_class_that_was_not_allowed_is_refused() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(trickle.UnsafeResult, match=r"web1: .*Thing") as caught:
            await host.call(work.give_thing)

        assert caught.value.host == "web1"
        allowed = await host.options(allow=(work.Thing,)).call(work.give_thing)
        trusted = await host.options(trust="full").call(work.give_thing)

    assert isinstance(allowed, work.Thing)
    assert isinstance(trusted, work.Thing)


async def test_an_argument_that_cannot_be_sent_is_named_before_anything_is_sent() -> None:
    async with trickle.open_host(local("web1")) as host:
        before = host.statistics().verdicts
        with pytest.raises(trickle.Unsendable, match=r"web1: .*argument 2") as caught:
            await host.call(work.echo, {"a": [open]}, {"b": (value for value in ())})

        assert caught.value.host == "web1"
        assert host.statistics().verdicts == before


class Keeper:
    def __init__(self, kept: object) -> None:
        self.kept = kept

    def method(self) -> None: ...


def take_and_give(channel: Any) -> None:
    for item in channel:
        channel.send(item)


async def test_live_things_stay_here_and_are_named() -> None:
    async with (
        open_memory_host() as memory,
        trickle.open_group([local()]) as group,
        group["here"].session() as session,
        session.stream(range, 3) as stream,
        group["here"].open_channel(take_and_give) as channel,
        group["here"].open_process(["sleep", "1000"]) as process,
    ):
        host = group["here"]
        for kept in (memory, host, host.options(cwd="/"), group, session, stream, channel, process):
            kind = type(kept).__name__
            for caller in (host, memory):
                with pytest.raises(trickle.Unsendable, match=f"a live {kind} stays here; send a function") as caught:
                    await caller.call(Keeper([kept]).method)

                assert caught.value.path == f"the function, .__self__.kept[0]: {type(kept).__module__}.{kind}"
        process.kill()


async def test_a_result_above_max_result_is_refused_unless_it_is_bytes_or_text() -> None:
    async with trickle.open_host(local()) as host:
        small = host.options(max_result=1000)

        with pytest.raises(trickle.UnsafeResult, match="max_result"):
            await small.call(work.give_list, 10_000)
        assert len(await small.call(work.give_bytes, 10_000)) == 10_000
        assert await host.call(work.give_list, 10_000) == list(range(10_000))


async def test_payloads_above_max_payload_are_refused_by_the_sender() -> None:
    async with trickle.open_host(local(), max_payload=100_000) as host:
        with pytest.raises(trickle.Unsendable, match="max_payload is 100000"):
            await host.call(work.size_of, b"x" * 200_000)
        with pytest.raises(ValueError, match="max_payload allows 100000"):
            await host.call(work.give_bytes, 200_000)

        assert await host.call(work.size_of, b"x" * 90_000) == 90_000


async def test_a_hundred_megabytes_go_both_ways() -> None:
    data = os.urandom(1024) * 100 * 1024

    async with trickle.open_host(local()) as host:
        result = await host.call(bytes, data)

    assert result == data


async def test_small_calls_do_not_wait_behind_bulk() -> None:
    order = []

    async def bulk(host: trickle.Host) -> None:
        await host.call(work.size_of, bytes(50_000_000))
        order.append("bulk")

    async with trickle.open_host(local()) as host, trio.open_nursery() as nursery:
        await host.call(work.pid)
        nursery.start_soon(bulk, host)
        await trio.testing.wait_all_tasks_blocked()
        await host.call(work.pid)
        order.append("small")

    assert order == ["small", "bulk"]


async def test_what_is_printed_at_any_level_arrives_line_by_line() -> None:
    lines = []

    async with trickle.open_host(local("web1"), output=lines.append) as host:
        await host.call(work.write_at_every_level, "hello")

    assert {(line.host, line.call) for line in lines} == {("web1", 1)}
    assert sorted((line.text, line.stream) for line in lines) == [
        ("hello child", "stdout"),
        ("hello grandchild", "stderr"),
        ("hello print", "stdout"),
        ("hello write", "stdout"),
    ]


async def test_output_goes_to_stderr_labelled_with_its_host(capsys: pytest.CaptureFixture[str]) -> None:
    async with trickle.open_host(local("web1")) as host:
        await host.call(work.shout, 2, 3)

    assert capsys.readouterr().err.splitlines() == ["web1: 0 xxx", "web1: 1 xxx", "web1: done", "web1: and no newline"]


async def test_output_cannot_steer_this_programs_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async with trickle.open_host(local("web1")) as host:
        await host.call(print, "red \x1b[31m and bell \x07")

    assert "\x1b" not in capsys.readouterr().err


async def test_output_is_utf_8_whatever_the_locale_over_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    lines = []

    async with trickle.open_host(local(), output=lines.append) as host:
        await host.call(work.print_unicode)

    assert lines[0].text == "grüße \u2713"


async def test_a_megabyte_of_prints_arrives_before_the_call_returns() -> None:
    lines = []

    async with trickle.open_host(local(), output=lines.append) as host:
        await host.call(work.shout, 10_000, 100)

        assert len(lines) == 10_002

    assert [line.text.split()[0] for line in lines[:10_000]] == [str(number) for number in range(10_000)]


async def test_short_lines_by_the_thousand_arrive_before_their_call_returns() -> None:
    lines = []

    async with trickle.open_host(local(), output=lines.append) as host:
        for calls in range(1, 4):
            await host.call(print, "\n" * 60_000, flush=True)

            assert len(lines) == calls * 60_001


async def test_what_reads_or_writes_behind_the_end_of_a_call_hears_of_it_before_its_lines_have_been_given() -> None:
    async with trickle.open_host(local(), output=lambda line: None) as host:
        for _ in range(5):
            done = await host.run_process(["seq", "20000"])  # whose empty stdin is closed when it may have ended
            assert done.returncode == 0
        async with host.open_process(["seq", "20000"], stdin=subprocess.PIPE) as process:
            await process.wait()
            process.terminate()
            assert process.stdin is not None
            with pytest.raises(trio.BrokenResourceError):
                await process.stdin.send_all(b"x")


async def test_what_a_host_had_said_before_it_was_lost_is_given_to_a_slow_sink_too() -> None:
    lines = []

    def sink(line: trickle.OutputLine) -> None:
        lines.append(line)
        time.sleep(0.001)

    async with trickle.open_host(local(), output=sink) as host, trio.open_nursery() as nursery:
        await host.call(print, "\n" * 20)  # it has shown how slow it is
        nursery.start_soon(_kill_when_it_has_printed, host, lines)
        with pytest.raises(trickle.HostLost):
            await host.call(work.print_and_hang, "\n" * 600)

    assert len(lines) == 21 + 601


async def _kill_when_it_has_printed(host: trickle.Host, lines: list[trickle.OutputLine]) -> None:
    while len(lines) <= 21:
        await trio.sleep(0)
    os.kill(host.info.pid, signal.SIGKILL)


async def test_calls_by_the_thousand_wait_for_their_lines() -> None:
    lines = []

    def sink(line: trickle.OutputLine) -> None:
        lines.append(line)
        time.sleep(0.0005)

    async with trickle.open_host(local(), output=sink) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.call, print, "\n" * 1_000)
        for number in range(1_000):
            nursery.start_soon(host.call, print, number)

    assert len(lines) == 1_001 + 1_000


async def test_a_slow_sink_costs_neither_a_cancelled_call_its_verdict_nor_the_loop_its_turns() -> None:
    lines = []
    turns = 0

    def sink(line: trickle.OutputLine) -> None:
        lines.append(line)
        time.sleep(0.001)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0)
            turns += 1

    async with trickle.open_host(local(), output=sink) as host, trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            await host.options(grace_period=1).call(work.print_and_return, "\n" * 3_000, 7)
        assert host.statistics().state == "connected"
        nursery.start_soon(count_turns)
        before = len(lines)
        while len(lines) < before + 500:
            await trio.sleep(0)
        nursery.cancel_scope.cancel()

    assert turns > 10
    assert len(lines) == 3_001


async def test_a_cancel_between_a_result_and_lines_that_came_before_it_changes_nothing() -> None:
    lines = []
    scope = trio.CancelScope()

    def sink(line: trickle.OutputLine) -> None:
        lines.append(line)
        if host.statistics().verdicts:
            scope.cancel()

    async with trickle.open_host(local(), output=sink) as host:
        with scope:
            assert await host.call(work.print_and_return, "\n" * 60_000, 7) == 7
        assert host.statistics().verdicts == {"returned": 1}

    assert len(lines) == 60_001


async def test_output_may_go_to_a_memory_channel_which_holds_it_up() -> None:
    send, receive = trio.open_memory_channel[trickle.OutputLine](1)
    texts = []

    async def read() -> None:
        async for line in receive:
            texts.append(line.text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with send, trickle.open_host(local()) as host:
            await host.options(output=send).call(work.shout, 1000)

    assert len(texts) == 1002


async def test_an_output_sink_that_fails_costs_nothing_but_its_line(caplog: pytest.LogCaptureFixture) -> None:
    def sink(line: trickle.OutputLine) -> None:
        raise ZeroDivisionError

    async with trickle.open_host(local(), output=sink) as host:
        await host.call(print, "lost")

        assert await host.call(work.add, 1) == 1

    assert "sink failed" in caplog.text


async def test_logging_records_arrive_in_the_logger_of_the_host(caplog: pytest.LogCaptureFixture) -> None:
    async with trickle.open_host(local("web1")) as host:
        await host.call(_log_something)

    records = [record for record in caplog.records if record.name == "trickle.remote.web1"]
    assert [(record.levelno, record.getMessage()) for record in records] == [(logging.WARNING, "app.db: slow query: 7")]


def _log_something() -> None:
    import logging

    logging.getLogger("app.db").warning("slow query: %d", 7)


async def test_logging_records_are_filtered_over_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trickle.remote.web1")  # all that comes is taken

    async with trickle.open_host(local("web1")) as host:
        await host.call(_log_at_levels)

    came = [record.getMessage() for record in caplog.records if record.name == "trickle.remote.web1"]
    assert came == ["quiet: an error", "talkative: a detail"]


def _log_at_levels() -> None:
    import logging

    logging.getLogger("quiet").setLevel(logging.ERROR)
    logging.getLogger("talkative").setLevel(logging.DEBUG)
    logging.getLogger("quiet").warning("a warning")
    logging.getLogger("quiet").error("an error")
    logging.getLogger("usual").info("some information")
    logging.getLogger("talkative").debug("a detail")


async def test_environment_and_directory_are_set_for_the_call_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    async with trickle.open_host(local()) as host:
        view = host.options(env={"COLOUR": "blue"}, cwd=tmp_path)

        assert await view.call(work.environment, "COLOUR") == "blue"
        assert await view.call(work.directory) == str(tmp_path)
        assert await host.call(work.environment, "COLOUR") is None
        assert await host.call(work.directory) == str(os.getcwd())


async def test_a_call_does_not_leave_its_directory_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    away = trickle.Command(["env", "-C", str(tmp_path / "gone")], name="web1", python=sys.executable)

    async with trickle.open_host(away, workers=1) as host:
        await host.wait_connected()
        (tmp_path / "gone").rmdir()
        assert await host.options(cwd=tmp_path).call(work.directory) == str(tmp_path)
        assert await host.call(work.directory) == "/"


async def test_surroundings_that_cannot_be_had_in_whole_are_not_left_in_part(tmp_path: Path) -> None:
    async with trickle.open_host(local(), workers=1) as host:
        with pytest.raises(UnicodeEncodeError):
            await host.options(env={"COLOUR": "blue", "B": "\ud800"}, cwd=tmp_path).call(work.directory)

        assert await host.call(work.directory) == os.getcwd()
        assert await host.call(work.environment, "COLOUR") is None


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
async def test_a_host_without_a_locale_takes_any_letters(python: str, tmp_path: Path) -> None:
    directory = tmp_path / "ü"
    directory.mkdir()
    plain = trickle.Command(["env", "-u", "LANG", "-u", "LC_CTYPE", "LC_ALL=C"], name="web1", python=python)

    async with trickle.open_host(plain) as host:
        view = host.options(env={"COLOUR": "grün"}, cwd=directory)
        assert await view.call(work.environment_in_bytes, "COLOUR") == "grün".encode()
        words = ["sh", "-c", 'printf "%s %s %s" "$COLOUR" "$A" "$1"; pwd', "sh", "ü"]
        done = await view.run_process(words, env={"A": "ä", "COLOUR": "rot"}, cwd=directory, capture_stdout=True)
        assert done.stdout.decode() == f"rot ä ü{directory}\n"
        done = await host.run_process('printf "%s" ü', shell=True, capture_stdout=True)
        assert done.stdout.decode() == "ü"


async def test_options_make_views_and_refuse_what_does_not_exist() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(TypeError, match="timeout"):
            host.options(timeout=3)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="grace_period"):
            host.options(grace_period=-1)
        with pytest.raises(ValueError, match="trust"):
            host.options(trust="some")  # type: ignore[arg-type]


WRONG_OPTIONS: list[dict[str, Any]] = [
    {"allow": int},
    {"allow": ("int",)},
    {"allow": None},
    {"max_result": None},
    {"max_result": -1},
    {"max_result": "8 MiB"},
    {"cwd": 5},
    {"cwd": b"/tmp"},
    {"env": "PATH"},
    {"env": ["PATH"]},
    {"env": {"": "x"}},
    {"env": {"A": 5}},
    {"reconnect": "no"},
    {"output": "stdout"},
]


@pytest.mark.parametrize("wrong", WRONG_OPTIONS, ids=str)
async def test_what_an_option_cannot_be_is_said_before_anything_is_called(wrong: dict[str, Any]) -> None:
    async with open_memory_host() as host:
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            host.options(**wrong)


def test_allowed_classes_may_come_from_anything_iterable() -> None:
    assert CallOptions(allow=iter([int, str])).allow == (int, str)  # type: ignore[arg-type]


async def test_workers_have_the_path_of_a_plain_python() -> None:
    async with trickle.open_host(local()) as host:
        path = await host.call(work.sys_path)

    assert [entry for entry in path if "site-packages" in entry] == [
        entry for entry in sys.path if "site-packages" in entry
    ]


async def test_statistics_count_what_happened() -> None:
    async with trickle.open_host(local()) as host:
        await host.call(work.add, 1)
        with pytest.raises(ValueError):
            await host.call(work.fail)
        statistics = host.statistics()

    assert statistics.state == "connected"
    assert statistics.verdicts == {"returned": 1, "raised": 1}
    assert statistics.bytes_sent > 1000 and statistics.bytes_received > 100
    assert (statistics.calls_running, statistics.workers, statistics.open) == (0, 16, 0)
    assert 0 <= statistics.seconds_since_heard < math.inf
    assert host.statistics().state == "closed"


async def test_a_closed_host_refuses_calls() -> None:
    async with trickle.open_host(local("web1")) as host:
        pass

    with pytest.raises(trio.ClosedResourceError, match="web1: this host was closed"):
        await host.call(work.pid)


async def test_a_function_that_forks_answers_once(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        assert await host.call(work.fork_and_both_return) == "parent"
        assert await host.call(work.fork_and_exit, 3) == 3

        assert host.statistics().verdicts == {"returned": 2}
        assert await host.call(work.add, 1) == 1


async def test_a_session_keeps_its_worker() -> None:
    async with trickle.open_host(local()) as host:
        await host.call(work.count_calls)
        async with host.session() as session:
            counts = [await session.call(work.count_calls) for _ in range(3)]
            other = await host.call(work.count_calls)
            open_sessions = host.statistics().open

    assert counts == [1, 2, 3]
    assert (other, open_sessions, session.name) == (2, 1, "here")


async def test_the_calls_of_a_session_queue() -> None:
    results = []

    async with trickle.open_host(local()) as host, host.session() as session, trio.open_nursery() as nursery:

        async def call() -> None:
            results.append(await session.call(work.count_calls))

        for _ in range(20):
            nursery.start_soon(call)

    assert sorted(results) == list(range(1, 21))


async def test_leaving_a_session_ends_its_worker() -> None:
    async with trickle.open_host(local()) as host:
        async with host.session() as session:
            pid = await session.call(work.pid)

        assert not os.path.exists(f"/proc/{pid}")


async def test_a_session_whose_worker_died_is_over() -> None:
    async with trickle.open_host(local()) as host:
        async with host.session() as session:
            with pytest.raises(trickle.WorkerDied) as caught:
                await session.call(work.exit_at_once, 3)
            with pytest.raises(trickle.WorkerDied):
                await session.call(work.add, 1)

        assert caught.value.exit_status == 3
        assert await host.call(work.add, 1) == 1


@pytest.mark.parametrize("end", ["cancelled", "killed", "died"])
async def test_calls_that_wait_for_a_sessions_worker_are_told_when_it_is_lost(end: str, tmp_path: Path) -> None:
    path = tmp_path / "started"
    errors = []

    async def wait_behind(session: trickle.Session) -> None:
        try:
            await session.call(work.add, 1, 2)
        except trickle.WorkerDied as exc:
            errors.append(str(exc))

    async def run_first(session: trickle.Session) -> None:
        with first, contextlib.suppress(trickle.WorkerDied):
            await session.call(torture.gil_held_in_c if end == "killed" else torture.sleep, str(path))

    first = trio.CancelScope()
    async with trickle.open_host(local("web1")) as host:
        async with host.options(grace_period=0.1).session() as session, trio.open_nursery() as nursery:
            nursery.start_soon(run_first, session)
            pid = int((await file_appears(path)).split()[-1])
            for _ in range(3):
                nursery.start_soon(wait_behind, session)
            while host.statistics().calls_waiting < 3:  # behind the one that runs
                await trio.sleep(0)
            await host.call(work.pid)  # what was sent before this has arrived
            if end == "died":
                os.kill(pid, signal.SIGKILL)
            else:
                first.cancel()

        assert len(errors) == 3
        assert all(error.startswith("web1: ") for error in errors)
        assert host.statistics().verdicts == {end: 1, "never started": 3, "returned": 1}
    if end == "died":
        assert all("signal 9" in error for error in errors)


async def test_names_of_the_controllers_trickle_are_harmless_until_they_are_used() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(RuntimeError, match=r"trickle\.SSH is not to be had on a remote host"):
            await host.call(work.use_a_stand_in)


async def test_calls_that_print_more_than_a_pipe_holds_follow_each_other() -> None:
    lines = []

    async with trickle.open_host(local(), output=lines.append) as host:
        for _ in range(20):
            await host.call(work.shout, 2000, 100)

    assert len(lines) == 20 * 2002


async def test_a_full_memory_channel_holds_up_neither_other_calls_nor_a_cancel() -> None:
    send, receive = trio.open_memory_channel[trickle.OutputLine](1)

    async with trickle.open_host(local()) as host:
        with send, receive:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.options(output=send).call, work.shout, 100_000, 100)
                while not receive.statistics().tasks_waiting_send:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert await host.call(work.add, 1, 2) == 3
            assert host.statistics().verdicts == {"cancelled": 1, "returned": 1}


async def test_a_generator_function_that_is_called_says_what_to_do() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(TypeError, match=r"call it with stream\(\)"):
            await host.call(flows.count, 3)


async def test_half_of_a_surrogate_pair_in_an_error_can_be_printed() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(ValueError) as caught:
            await host.call(work.fail, "ValueError", "\ud800")

    str(caught.value).encode()


async def test_a_function_that_raises_call_cancelled_itself_has_raised() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.RemoteError) as caught:
            await host.call(work.raise_call_cancelled)

        assert caught.value.type_name == "trickle.remote.CallCancelled"
        assert host.statistics().verdicts == {"raised": 1}


async def test_an_error_that_cannot_be_looked_at_is_still_an_error() -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(trickle.RemoteError, match="Unspeakable"):
            await host.call(work.raise_unspeakable)

        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.parametrize("data", [b"\xff\x00garbage" * 10, b""])
async def test_garbage_in_a_workers_own_descriptors_ends_that_worker_alone(data: bytes) -> None:
    if not data and not sys.platform.startswith("linux"):
        pytest.skip("there it is nothing, and here a message")
    async with trickle.open_host(local()) as host, trio.open_nursery() as nursery:
        results = []

        async def other_call() -> None:
            results.append(await host.call(work.sleep_and_say, 1.0))

        nursery.start_soon(other_call)
        with pytest.raises(trickle.WorkerDied):
            await host.call(work.spoil_descriptors, data)

    assert results == ["slept"]


async def test_a_fork_that_imports_what_is_not_there_is_told_and_the_call_goes_on(far: Tunnel) -> None:
    async with trickle.open_host(far) as host:
        assert await host.call(work.import_in_fork_and_here) == (7, "tests.torture")


async def test_a_host_of_another_trio_loop_is_refused() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(RuntimeError, match="web1: this host belongs to another trio.run"):
            await trio.to_thread.run_sync(trio.run, host.call, work.pid)


async def test_a_host_is_not_closed_from_another_trio_loop() -> None:
    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(RuntimeError, match="web1: this host belongs to another trio.run"):
            await trio.to_thread.run_sync(trio.run, host.aclose)

        assert await host.call(work.add, 1, 2) == 3


async def test_no_more_sessions_are_open_than_max_open() -> None:
    async with trickle.open_host(local(), max_open=2) as host, host.session(), host.session():
        with trio.move_on_after(0.2) as scope:
            async with host.session():
                pass

    assert scope.cancelled_caught


async def test_many_sessions_on_few_descriptors_fail_one_by_one_and_not_the_host() -> None:
    few = trickle.Command(["sh", "-c", 'ulimit -n 100; exec "$@"', "sh"], name="few", python=sys.executable)

    async with trickle.open_host(few) as host:
        failed = 0
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(25):
                session = await stack.enter_async_context(host.session())
                try:
                    await session.call(work.add, 1)
                except OSError as exc:
                    assert isinstance(exc, trickle.RemoteError)
                    failed += 1
        assert 0 < failed < 25
        assert await host.call(work.add, 1, 2) == 3


async def test_idle_workers_make_room_for_what_brings_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = trickle.Command(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"], name="few", python=sys.executable)

    async with trickle.open_host(few) as host:
        first = await host.call(work.pid)
        async with trio.open_nursery() as nursery:
            for number in range(16):
                path = str(tmp_path / str(number))
                nursery.start_soon(host.call, work.leave_pid_and_wait_for, path, str(tmp_path / "go on"))
            while "cannot start another worker" not in caplog.text:
                await trio.sleep(0.01)
            (tmp_path / "go on").touch()
        async with host.session() as one, host.session() as other:
            assert await one.call(work.pid) != await other.call(work.pid)
            await host.put(b"contents", tmp_path / "target")
            assert (await host.run_process(["true"])).returncode == 0

        assert (tmp_path / "target").read_bytes() == b"contents"
        assert await host.call(work.pid) == first  # the one that has seen most calls is spared


async def test_a_worker_that_cannot_go_on_says_why() -> None:
    lines: list[trickle.OutputLine] = []

    async with trickle.open_host(local(), output=lines.append) as host:
        await host.call(work.lose_the_environment)
        with pytest.raises(trickle.WorkerDied) as caught:
            await host.call(work.add, 1)
        assert await host.call(work.add, 1) == 1

    assert caught.value.exit_status == 70
    assert lines[0].text == "trickle: this worker cannot go on:"
    assert lines[-1].text.startswith("TypeError: 'NoneType' object")


@pytest.mark.parametrize(
    ("way", "raised"),
    [("signal", "KeyError: 'of a handler'"), ("interrupt_main", "KeyboardInterrupt")],
    ids=["by a signal", "by a thread"],
)
async def test_what_is_raised_between_two_calls_is_told_and_costs_neither(
    way: str, raised: str, far: Tunnel, shared: Path
) -> None:
    lines: list[trickle.OutputLine] = []

    async with trickle.open_host(far, output=lines.append) as host, host.session() as session:
        await session.call(work.count_calls)
        await session.call(work.interrupt_when_idle, way, str(shared / "interrupted"))
        await file_appears(shared / "interrupted")
        assert await session.call(work.count_calls) == 2

    assert lines[0].text == "trickle: this was raised between two calls, and costs none:"
    assert lines[-1].text == raised


async def test_a_sink_that_cannot_take_lines_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="output=5"):
        async with trickle.open_host(local(), output=5):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("size", [0, 1, 100, 255, 256, 70_000])
async def test_bytes_and_str_are_exempt_from_max_result_as_the_whole_result(size: int) -> None:
    async with open_memory_host() as host:
        small = host.options(max_result=1)

        assert await small.call(bytes, size) == bytes(size)
        assert await small.call(str.ljust, "", size) == " " * size
        with pytest.raises(trickle.UnsafeResult, match="max_result"):
            await small.call(list, [bytes(size)])


async def test_every_other_verdict_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "trickle")
    async with trickle.open_host(local()) as host:
        await host.call(work.add, 1)
        with trio.move_on_after(0.1):
            await host.call(time.sleep, 3600)
        verdict = next(name for name in host.statistics().verdicts if name != "returned")

    assert f"here: call 2: {verdict}" in caplog.text
    assert "call 1: returned" not in caplog.text


def print_thirty_lines() -> None:
    for number in range(30):
        print(number)


async def test_leaving_waits_for_a_slow_sink_as_long_as_it_takes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trickle._link.EXIT_PATIENCE", 0.5)
    send, receive = trio.open_memory_channel[trickle.OutputLine](0)
    taken = []

    async def take() -> None:
        async for line in receive:
            taken.append(line.text)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async with trickle.open_host(local(), output=send) as host:
            await host.call(print_thirty_lines)
        nursery.cancel_scope.cancel()

    assert len(taken) == 30


async def test_lines_that_a_sink_never_takes_are_counted_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trickle._link.EXIT_PATIENCE", 0.1)
    send, receive = trio.open_memory_channel[trickle.OutputLine](1)

    with send, receive:
        async with trickle.open_host(local("web1"), output=send) as host:
            await host.call(print_thirty_lines)

    assert "web1: 29 lines of output are dropped" in caplog.text


async def test_what_a_closed_or_lost_host_opens_is_refused_as_its_calls_are() -> None:
    async with trickle.open_host(local("web1")) as host:
        await host.aclose()

        with pytest.raises(trio.ClosedResourceError, match="web1: this host was closed"):
            async with host.open_host(local("web2")):
                pass


def _say_at_the_end(path: str) -> None:
    try:
        work.say_and_run(path)
    finally:
        print("cleaned up")


async def test_what_a_cancelled_call_prints_goes_where_its_output_goes(far: Tunnel, shared: Path) -> None:
    trap = f"trap 'echo bye; exit 0' TERM; echo > {shared}/process; while :; do sleep 0.05; done"
    hosts: list[str] = []
    mine: list[tuple[int | None, str]] = []
    async with trickle.open_host(far, output=lambda line: hosts.append(line.text)) as host:
        watched = host.options(output=lambda line: mine.append((line.call, line.text)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.call, _say_at_the_end, str(shared / "call"))
            await file_appears(shared / "call")
            nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            async with watched.open_process(trap, shell=True):  # which has started there, and is told to end
                await file_appears(shared / "process")
                scope.cancel()
                await trio.sleep_forever()

    assert (mine, hosts) == ([(1, "cleaned up"), (2, "bye")], [])
