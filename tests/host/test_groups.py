"""The suite of groups over hosts in memory and over processes of this machine."""

import os
import signal
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import trickle
from tests import far_groups, far_groups_async
from tests.group_suite import *  # noqa: F403
from tests.group_suite import Kind
from tests.hosts import local
from trickle.testing import SlowLink, Unreachable, open_memory_group

SILENT = trickle.Command([sys.executable, "-c", "import sys; sys.stdin.read()"], name="silent")
NOWHERE = trickle.Command([sys.executable, "-c", "import sys; sys.exit('nobody home')"], name="nowhere")


def memory(directory: Path) -> Kind:
    async def kill(host: trickle.Host) -> None:
        process = host._core.link._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        while host.statistics().state != "lost":
            await trio.lowlevel.checkpoint()

    return Kind(
        open=open_memory_group,
        open_with_nowhere=lambda names: open_memory_group(
            [*names, "nowhere"], faults={"nowhere": [Unreachable(times=1000)]}
        ),
        open_with_silent=lambda names: open_memory_group(
            [*names, "silent"], faults={"silent": [SlowLink(bytes_per_second=1e-9)]}
        ),
        far=far_groups_async,
        kill=kill,
        directory=directory,
        many=20,
        in_memory=True,
    )


def processes(directory: Path) -> Kind:
    async def kill(host: trickle.Host) -> None:
        os.kill(host.info.pid, signal.SIGKILL)

    return Kind(
        open=lambda names: trickle.open_group(map(local, names)),
        open_with_nowhere=lambda names: trickle.open_group([*map(local, names), NOWHERE]),
        open_with_silent=lambda names: trickle.open_group([*map(local, names), SILENT]),
        far=far_groups,
        kill=kill,
        directory=directory,
        many=5,
    )


@pytest.fixture(params=["memory", "local"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return memory(tmp_path) if request.param == "memory" else processes(tmp_path)


@pytest.fixture
def kind_with_files(tmp_path: Path) -> Kind:
    return processes(tmp_path)


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest) -> trio.abc.Clock | None:
    is_memory = "memory" in request.node.name
    return MockClock(autojump_threshold=0) if is_memory else None
