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


FULL = """
import multiprocessing, os, resource, sys
import trickle, trio, trio_parallel

def pipes():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + fd))
        except OSError:
            pass
    return {link for link in links if link.startswith("pipe:")}

async def main():
    before = pipes()
    async with trickle.open_host(trickle.Local("web1", python=sys.executable)) as host:
        of_the_host = pipes() - before
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        print(await host.call(abs, -1))
        for attempt in (trickle.open_host(trickle.Local("web2", python=sys.executable)), trickle.open_group(["web2"])):
            try:
                async with attempt:
                    pass
            except (OSError, trickle.ConnectError) as exc:
                print(exc)
        try:
            await host.reducing(len).call(bytes, 3)
        except OSError as exc:
            print(exc)
        fork = os.fork()
        if fork == 0:
            print(len(of_the_host), "pipes, of which a fork has", len(of_the_host & pipes()), flush=True)
            os._exit(0)
        os.waitpid(fork, 0)
        for fd in taken:
            os.close(fd)

trio.run(main)
"""


def test_nothing_is_left_of_them() -> None:
    if not Path("/proc/self/fd").is_dir():
        require("descriptors", "this system does not say which descriptors are open")
    done = subprocess.run([sys.executable, "-u", "-c", FULL], capture_output=True, text=True)

    called, alone, together, reduced, forked = done.stdout.splitlines()
    assert called == "1"
    assert alone.startswith("web2: cannot run ") and alone.endswith("see ulimit -a")
    assert together.startswith("[Errno 24] 1 hosts need ")
    assert reduced.startswith("[Errno 24] web1: cannot start a process of this machine to reduce its result: ")
    assert forked == "3 pipes, of which a fork has 0"
    assert (done.returncode, done.stderr) == (0, "")
