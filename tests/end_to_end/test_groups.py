"""The suite of groups over twenty hosts that a real sshd leads to."""

import os
import signal
import time
from pathlib import Path

import pytest

import trickle
from tests import far_groups
from tests.group_suite import *  # noqa: F403
from tests.group_suite import Kind
from tests.sshd import Sshd


@pytest.fixture
def kind(piped_sshd: Sshd, public_directory: Path) -> Kind:
    directory = public_directory / f"group{time.monotonic_ns()}"
    directory.mkdir()
    directory.chmod(0o777)

    def tunnels(names: list[str]) -> list[trickle.SSH]:
        return [
            trickle.SSH(piped_sshd.alias(number), name=name, ssh_options=piped_sshd.ssh_options)
            for number, name in enumerate(names)
        ]

    async def kill(host: trickle.Host) -> None:
        os.kill(host.info.pid, signal.SIGKILL)

    nowhere = trickle.SSH("nowhere.invalid", name="nowhere", ssh_options=("-F", "/dev/null"))
    return Kind(
        open=lambda names: trickle.open_group(tunnels(names)),
        open_with_nowhere=lambda names: trickle.open_group([*tunnels(names), nowhere]),
        far=far_groups,
        kill=kill,
        directory=directory,
        many=20,
    )
