"""Room for the descriptors of many hosts."""

import resource
import subprocess
import sys
from pathlib import Path

import trickle
from tests.hosts import local
from tests.requirements import require
from trickle._descriptors import PER_HOST, SPARE

PROGRAM = """
import os, resource, sys
import trickle, trio
from trickle import _descriptors

soft, hard, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

async def main():
    tunnels = [trickle.Command(["cat"], name=f"n{number}") for number in range(count)]
    async with trickle.open_group(tunnels):
        pass

try:
    trio.run(main)
except OSError as exc:
    print(exc.errno, exc.strerror)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def run(soft: int, hard: int, count: int) -> list[str]:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        require("descriptors", "the hard limit on open descriptors is lower here than what the test sets")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (soft, hard, count))], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_limit_is_raised_when_many_hosts_need_it() -> None:
    assert run(400, 3000, 50) == ["(3000, 3000)"]


def test_the_limit_is_left_alone_when_few_need_it() -> None:
    assert run(600, 3000, 5) == ["(600, 3000)"]


def test_too_low_a_hard_limit_is_told_before_anything_is_started() -> None:
    told, limits = run(400, 500, 100)

    assert told.startswith("24 100 hosts need ")
    needed = int(told.split()[4])
    assert PER_HOST * 100 + SPARE <= needed < PER_HOST * 100 + SPARE + 50
    assert "may not have more than 500" in told and "ulimit -Hn" in told
    assert limits == "(400, 500)"


async def test_a_host_needs_no_more_than_is_said() -> None:
    def open_now() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_now()
    async with trickle.open_group([local(f"n{number}") for number in range(8)]) as group:
        await group.wait_connected()

        assert open_now() - before <= 8 * PER_HOST
