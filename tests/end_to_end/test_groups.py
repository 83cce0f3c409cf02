"""The suite of groups over twenty hosts that a real sshd leads to."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import trickle
from tests import far_groups
from tests.group_suite import *  # noqa: F403
from tests.group_suite import Kind
from tests.sshd import Sshd


@pytest.fixture
def kind_with_files(kind: Kind) -> Kind:
    return kind


@pytest.fixture
def kind(piped_sshd: Sshd, public_directory: Path) -> Iterator[Kind]:
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

    nobody_accepts = socket.create_server(("127.0.0.1", 0))
    port = str(nobody_accepts.getsockname()[1])
    silent = trickle.SSH("127.0.0.1", name="silent", ssh_options=("-F", "/dev/null", "-p", port))
    nowhere = trickle.SSH("nowhere.invalid", name="nowhere", ssh_options=("-F", "/dev/null"))
    kind = Kind(
        open=lambda names: trickle.open_group(tunnels(names)),
        open_with_nowhere=lambda names: trickle.open_group([*tunnels(names), nowhere]),
        open_with_silent=lambda names: trickle.open_group([*tunnels(names), silent]),
        far=far_groups,
        kill=kill,
        directory=directory,
        many=20,
    )
    with nobody_accepts:
        yield kind
