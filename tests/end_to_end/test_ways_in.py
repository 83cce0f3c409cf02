"""Every way to a far end that the fixtures offer leads to one that answers."""

import os
import sys

import pytest

import trickle
from tests import delay_pipe, pythons
from tests.requirements import require
from tests.sshd import Sshd


@pytest.mark.parametrize("way", ["sshd", "piped_sshd", "mastered_sshd"])
async def test_a_call_runs_as_the_user_who_logged_in(way: str, request: pytest.FixtureRequest) -> None:
    sshd: Sshd = request.getfixturevalue(way)

    async with trickle.open_host(trickle.SSH(sshd.alias(), ssh_options=sshd.ssh_options)) as host:
        home = await host.call(os.path.expanduser, "~")

    assert host.info.user == sshd.user
    assert home == sshd.ssh("echo $HOME").stdout.rstrip()


async def test_a_group_reaches_twenty_hosts_over_ssh(piped_sshd: Sshd) -> None:
    tunnels = [trickle.SSH(alias, ssh_options=piped_sshd.ssh_options) for alias in piped_sshd.aliases]

    async with trickle.open_group(tunnels) as group:
        results = await group.call(os.getppid)

    assert len(set(results.unwrap().values())) == 20


async def test_a_far_end_with_python3_minimal_answers(minimal_python: str) -> None:
    async with trickle.open_host(trickle.Local(python=minimal_python)) as host:
        assert await host.call(os.readlink, "/proc/self/exe") == minimal_python


def test_the_oldest_python_was_found() -> None:
    if not any(version < (3, 7) for version in map(pythons.version_of, pythons.far_pythons()) if version):
        require("pythons", "no Python 3.6, the oldest that far ends may have, on this machine")


@pytest.mark.parametrize("python", pythons.far_pythons(), ids=pythons.python_id)
async def test_a_far_end_with_each_python_answers(python: str) -> None:
    async with trickle.open_host(trickle.Local(python=python)) as host:
        assert await host.call(max, 1, 2) == 2

    assert host.info.python_version == pythons.version_of(python)


async def test_a_far_end_behind_a_slow_link_answers() -> None:
    tunnel = trickle.Command((sys.executable, delay_pipe.__file__, "50", "--"), name="far")

    async with trickle.open_host(tunnel) as host:
        assert await host.call(max, 1, 2) == 2
