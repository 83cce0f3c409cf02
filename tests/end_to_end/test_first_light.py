"""The main job over real ssh and on real old Pythons: calls, errors, cancellation, loss, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

import trickle
from tests import pythons, work
from tests.hosts import file_appears, is_running, local, process_ends, running_below
from tests.sshd import Sshd

WAYS = ("sshd", "piped_sshd", "mastered_sshd")
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=WAYS)
def ssh(request: pytest.FixtureRequest) -> trickle.SSH:
    """A host behind a real sshd: over a port, over a pipe, over a live ControlMaster."""
    sshd: Sshd = request.getfixturevalue(request.param)
    return trickle.SSH(sshd.alias(), name="web1", ssh_options=sshd.ssh_options)


async def test_calls_errors_and_output_come_back_over_ssh(ssh: trickle.SSH) -> None:
    lines = []

    async with trickle.open_host(ssh, output=lines.append) as host:
        result = await host.call(work.echo, 1, key=b"x")
        with pytest.raises(KeyError) as caught:
            await host.call(work.fail, "KeyError", "missing")
        await host.call(work.write_at_every_level, "hello")

    assert result == ((1,), {"key": b"x"})
    assert isinstance(caught.value, trickle.RemoteError) and caught.value.host == "web1"
    assert len(lines) == 4


async def test_a_timeout_over_ssh_really_stops_the_work(ssh: trickle.SSH, shared: Path) -> None:
    async with trickle.open_host(ssh) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.start_children, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not any(is_running(pid) for pid in pids)
        assert host.statistics().verdicts == {"cancelled": 1}
        assert await host.call(work.add, 1, 2) == 3


async def test_an_ssh_that_is_killed_in_mid_call_is_a_lost_host_and_its_work_dies(sshd: Sshd, shared: Path) -> None:
    before = running_below()
    tunnel = trickle.SSH(sshd.alias(), name="web1", ssh_options=sshd.ssh_options)

    async with trickle.open_host(tunnel) as host:
        (ssh,) = running_below() - before
        with pytest.raises(trickle.HostLost, match="web1: the connection ended"):
            async with trio.open_nursery() as nursery:

                async def kill_ssh() -> None:
                    await file_appears(shared / "pid")
                    os.kill(ssh, signal.SIGKILL)

                nursery.start_soon(kill_ssh)
                try:
                    await host.call(work.say_and_run, str(shared / "pid"))
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
        await process_ends(int((shared / "pid").read_text()))


async def test_an_agent_that_is_killed_in_mid_call_over_ssh_takes_its_work_along(
    ssh: trickle.SSH, shared: Path
) -> None:
    async with trickle.open_host(ssh) as host:
        with pytest.raises(trickle.HostLost):
            async with trio.open_nursery() as nursery:

                async def kill_agent() -> None:
                    await file_appears(shared / "pid")
                    os.kill(host.info.pid, signal.SIGKILL)

                nursery.start_soon(kill_agent)
                try:
                    await host.call(work.say_and_run, str(shared / "pid"))
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
        await process_ends(int((shared / "pid").read_text()))


async def test_a_worker_that_dies_over_ssh_is_told(ssh: trickle.SSH) -> None:
    async with trickle.open_host(ssh) as host:
        with pytest.raises(trickle.WorkerDied, match="signal 9"):
            await host.call(work.kill_self)

        assert await host.call(work.add, 1, 2) == 3


async def test_a_hundred_calls_with_random_cancels_over_ssh(ssh: trickle.SSH) -> None:
    ended = []

    async def call(host: trickle.Host, number: int) -> None:
        with trio.move_on_after(0.05 * (number % 5)):
            await host.call(time.sleep, 0.02 * (number % 7))
        ended.append(number)

    async with trickle.open_host(ssh) as host:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, host, number)

        assert len(ended) == 100
        assert set(host.statistics().verdicts) <= {"returned", "cancelled", "never started"}
        assert await host.call(work.add, 1, 2) == 3


async def test_a_hundred_megabytes_go_both_ways_over_ssh(piped_sshd: Sshd) -> None:
    data = os.urandom(1024) * 100 * 1024

    async with trickle.open_host(trickle.SSH("h0", ssh_options=piped_sshd.ssh_options)) as host:
        result = await host.call(bytes, data)

    assert result == data


async def test_a_megabyte_of_prints_comes_over_ssh(ssh: trickle.SSH) -> None:
    lines = []

    async with trickle.open_host(ssh, output=lines.append) as host:
        await host.call(work.shout, 10_000, 100)

        assert len(lines) == 10_002


async def test_a_group_of_ssh_and_local_hosts_keeps_what_came(sshd: Sshd) -> None:
    tunnels: list[trickle.abc.Tunnel] = [trickle.SSH(sshd.alias(n), ssh_options=sshd.ssh_options) for n in range(3)]
    nobody = trickle.SSH("no-such-host.invalid", ssh_options=sshd.ssh_options)

    async with trickle.open_group([*tunnels, local(), nobody]) as group:
        results = await group.options(timeout=60).call(work.add, 1, 2)

    assert results.successful() == {"h0": 3, "h1": 3, "h2": 3, "here": 3}
    error = results.failures()["no-such-host.invalid"]
    assert isinstance(error, trickle.ConnectError) and error.reason == "name lookup"


async def test_a_refused_connection_is_named(sshd: Sshd) -> None:
    tunnel = trickle.SSH("127.0.0.1", port=1, ssh_options=("-F", "/dev/null"))

    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel):
            pass

    assert (caught.value.reason, caught.value.exit_status) == ("refused", 255)


async def test_a_key_that_is_not_let_in_is_named(sshd: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    tunnel = trickle.SSH("h0", ssh_options=("-i", str(tmp_path / "other"), *_without_key(sshd, tmp_path)))

    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel):
            pass

    assert caught.value.reason == "authentication"


def _without_key(sshd: Sshd, directory: Path) -> tuple[str, str]:
    lines = [line for line in sshd.ssh_config.read_text().splitlines() if "IdentityFile" not in line]
    config = directory / "config"
    config.write_text("\n".join(lines) + "\n")
    return ("-F", str(config))


async def test_an_unknown_host_key_is_named(sshd: Sshd, tmp_path: Path) -> None:
    tunnel = trickle.SSH("h0", ssh_options=("-o", "UserKnownHostsFile=/dev/null", *sshd.ssh_options))

    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel):
            pass

    assert caught.value.reason == "host key unknown"


async def test_python_2_is_refused_by_name(python27: str) -> None:
    with pytest.raises(trickle.ConnectError, match="its Python is older than 3.6") as caught:
        async with trickle.open_host(trickle.Local(python=python27)):
            pass

    assert caught.value.reason == "too old"


@pytest.mark.parametrize("python", pythons.far_pythons(), ids=pythons.python_id)
async def test_the_main_job_runs_on_each_python(python: str, tmp_path: Path) -> None:
    lines = []

    async with trickle.open_host(trickle.Local("old", python=python), output=lines.append) as host:
        assert await host.call(work.echo, [1, {"k": (2.5, None)}], x="\u2713") == (
            ([1, {"k": (2.5, None)}],),
            {"x": "\u2713"},
        )
        assert await host.call(lambda value: value * 2, 21) == 42
        with pytest.raises(KeyError) as caught:
            await host.call(work.fail, "KeyError", "missing")
        await host.call(work.write_at_every_level, "hello")
        with pytest.raises(trickle.WorkerDied):
            await host.call(work.exit_at_once, 3)
        assert await host.call(work.size_of, bytes(5_000_000)) == 5_000_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, work.clean_up_then, str(tmp_path / "clean"))
            nursery.start_soon(host.call, work.start_children, str(tmp_path / "pids"))
            nursery.start_soon(host.options(grace_period=0.1).call, work.refuse_to_stop, str(tmp_path / "refuses"))
            await file_appears(tmp_path / "clean.started")
            await file_appears(tmp_path / "refuses")
            pids = [int(pid) for pid in (await file_appears(tmp_path / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not any(is_running(pid) for pid in pids)
        assert (tmp_path / "clean").read_text() == "clean"
        assert await host.call(work.add, 1, 2) == 3
        verdicts = host.statistics().verdicts

    assert "def fail(" in caught.value.remote_traceback or "raise getattr" in caught.value.remote_traceback
    assert verdicts == {"returned": 5, "raised": 1, "died": 1, "cancelled": 2, "killed": 1}
    assert len(lines) == 4


async def test_the_main_job_runs_on_python3_minimal(minimal_python: str, tmp_path: Path) -> None:
    async with trickle.open_host(trickle.Local("minimal", python=minimal_python)) as host:
        assert await host.call(work.echo, 1) == ((1,), {})
        with pytest.raises(KeyError):
            await host.call(work.fail, "KeyError", "missing")
        with pytest.raises(ModuleNotFoundError, match="asyncio"):
            await host.call(work.import_asyncio)
        with pytest.raises(trickle.Unsendable, match="queue"):
            await host.call(trio.sleep, 0)
        with trio.move_on_after(0.3):
            await host.call(time.sleep, 3600)

        assert await host.call(work.add, 1, 2) == 3


def test_fleet_reports_ssh_and_local_hosts_and_who_is_missing(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {sshd.ssh_config} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    hosts = ["h0", "h1", "h2", "local:amber", "local:birch", "nowhere.invalid"]

    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "fleet.py"), *hosts],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
    )

    rows = done.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["h0", "h1", "h2", "amber", "birch", "nowhere.invalid"]
    assert all("GiB" in row for row in rows[:5])
    assert "the name nowhere.invalid cannot be looked up" in rows[5]
    assert (done.returncode, done.stderr) == (1, "")
