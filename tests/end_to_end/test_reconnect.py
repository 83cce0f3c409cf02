"""Connecting again over a real ssh: when sshd drops connections, when it is not up yet, and when it was killed."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import sshd as sshd_module
from tests import work
from tests.hosts import file_appears, process_ends, running_below
from tests.sshd import Sshd

HOSTS = 40  # at once: of so many, an sshd that drops a third of those above 10 drops some for certain
MANY = 1000  # attempts: more than it takes on the slowest machine


@pytest.fixture
def shared(public_directory: Path) -> Iterator[Path]:
    """A directory that the user who logs in can write to as well."""
    path = public_directory / "reconnect"
    path.mkdir()
    path.chmod(0o777)
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def ssh(sshd: Sshd, name: str = "web1") -> trickle.SSH:
    return trickle.SSH(sshd.alias(), ssh_options=sshd.ssh_options, name=name)


async def test_an_sshd_that_drops_connections_is_reached_by_all_and_no_call_runs_twice(
    _sshd_directory: Path, login_user: str, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trickle")
    few_at_once = sshd_module.listening_sshd(_sshd_directory, login_user, "few", "MaxStartups 10:30:100\n")

    with few_at_once as sshd:
        tunnels = [ssh(sshd, f"web{number}") for number in range(HOSTS)]
        async with trickle.open_group(tunnels, connect_limit=HOSTS, connect_retries=MANY) as group:
            results = await group.call(work.append, str(shared / "ran"), "ran\n")

    results.raise_failures()
    assert (shared / "ran").read_text() == "ran\n" * HOSTS
    assert any("failed (too many sessions)" in record.getMessage() for record in caplog.records)


async def test_a_host_that_is_not_up_yet_is_reached_when_it_is(
    _sshd_directory: Path, login_user: str, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trickle")
    with sshd_module.listening_sshd(_sshd_directory, login_user, "later") as sshd:
        pass

    async with trickle.open_group([ssh(sshd)], connect_retries=MANY) as group:
        while not any("failed (refused)" in record.getMessage() for record in caplog.records):
            await trio.sleep(0.01)
        assert not group.unreachable
        with sshd_module.listening_sshd(_sshd_directory, login_user, "later", wanted_port=sshd.port):
            await group["web1"].call(work.append, str(shared / "ran"), "ran\n")
            assert (shared / "ran").read_text() == "ran\n"
            await group["web1"].aclose()


async def test_a_host_whose_sshd_was_killed_is_reached_when_it_is_up_again(
    _sshd_directory: Path, login_user: str, shared: Path, sshd: Sshd
) -> None:
    ran = shared / "ran"

    async def fails(host: trickle.Host) -> None:
        with pytest.raises(trickle.HostLost, match="web1: "):
            await host.call(work.append_and_wait, str(ran), str(shared / "started"))

    with sshd_module.listening_sshd(_sshd_directory, login_user, "killed") as first:
        assert first.pid is not None
        async with trickle.open_group([ssh(first), ssh(sshd, "web2")]) as group:
            await group.wait_connected()
            agent, other = group["web1"].info.pid, group["web2"].info.pid
            again = group.options(reconnect=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, again["web1"])
                await file_appears(shared / "started")
                for pid in [first.pid, *descendants(first.pid)]:
                    os.kill(pid, signal.SIGKILL)
            await process_ends(agent)
            assert isinstance(group.unreachable["web1"], trickle.HostLost)

            with pytest.raises(trickle.ConnectError) as caught:
                await again["web1"].call(work.add, 1, 2)
            assert caught.value.reason == "refused"
            assert isinstance(group.unreachable["web1"], trickle.ConnectError)
            with sshd_module.listening_sshd(_sshd_directory, login_user, "killed", wanted_port=first.port):
                results = await again.call(work.add, 1, 2)
                assert results.unwrap() == {"web1": 3, "web2": 3}
                assert not group.unreachable
                assert group["web1"].info.pid != agent
                assert group["web2"].info.pid == other
                await group["web1"].aclose()

    assert ran.read_text() == "ran\n"


def descendants(pid: int) -> Iterator[int]:
    for child in running_below(pid):
        yield child
        yield from descendants(child)
