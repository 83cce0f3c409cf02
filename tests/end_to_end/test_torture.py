"""Whatever remote code is doing: when its scope exits, every process of it is gone, and the verdict is true."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

import trickle
from tests import torture, work
from tests.hosts import file_appears, is_running, local, process_ends
from tests.requirements import require
from tests.sshd import Sshd

WAYS = ("local", "ssh")


@pytest.fixture
def shared(public_directory: Path) -> Path:
    """A directory that the user who logs in can write to as well."""
    path = public_directory / f"torture{time.monotonic_ns()}"
    path.mkdir()
    path.chmod(0o777)
    return path


@contextlib.asynccontextmanager
async def open_way(way: str, sshd: Sshd, **options: object) -> AsyncIterator[trickle.Host]:
    tunnel = local("web1") if way == "local" else trickle.SSH("h0", name="web1", ssh_options=sshd.ssh_options)
    async with trickle.open_host(tunnel, **options) as host:  # type: ignore[arg-type]
        yield host


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", torture.TABLE, ids=lambda function: function.__name__)
async def test_it_is_gone_when_its_scope_exits(
    function: Callable[[str], object], way: str, piped_sshd: Sshd, shared: Path
) -> None:
    lines: list[trickle.OutputLine] = []

    async with open_way(way, piped_sshd, output=lines.append) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=0.5).call, function, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {torture.TABLE[function]: 1}
        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_fifty_calls_at_once_are_gone_when_their_scope_exits(way: str, piped_sshd: Sshd, shared: Path) -> None:
    functions = [torture.sleep, torture.busy_loop, torture.child_under_timeout, torture.gil_held_in_c, torture.stopped]
    paths = [shared / str(number) for number in range(50)]

    async with open_way(way, piped_sshd, workers=50) as host:
        async with trio.open_nursery() as nursery:
            for number, path in enumerate(paths):
                function = functions[number % len(functions)]
                nursery.start_soon(host.options(grace_period=0.5).call, function, str(path))
            pids = [int(pid) for path in paths for pid in (await file_appears(path)).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert sum(host.statistics().verdicts.values()) == 50
        assert await host.call(work.add, 1, 2) == 3


async def test_a_host_cancelled_a_thousand_times_stays_usable() -> None:
    async with trickle.open_host(local()) as host:
        for number in range(500):
            with trio.move_on_after(0.001 * (number % 10)):
                await host.call(_queue_loop)
            with trio.move_on_after(0.001 * (number % 10)):
                await host.call(_import_loop)

        assert await host.call(work.add, 1, 2) == 3
        assert set(host.statistics().verdicts) <= {"cancelled", "never started", "returned"}


def _queue_loop() -> None:
    import queue

    waiting: queue.Queue[int] = queue.Queue()
    while True:
        waiting.put(1)
        waiting.get()


def _import_loop() -> None:
    import importlib
    import sys

    while True:
        for name in ("json", "csv", "textwrap"):
            sys.modules.pop(name, None)
            importlib.import_module(name)


def test_children_under_sudo_are_gone(login_user: str) -> None:
    if os.getuid() != 0:
        require("sudo", "only root can set up sudo for the test")
    if not Path("/usr/bin/sudo").exists():
        require("sudo", "no sudo on this machine")
    rule = Path(f"/etc/sudoers.d/trickle-test-{os.getpid()}")
    rule.write_text(f"{login_user} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SUDO_CONTROLLER, login_user, str(Path(__file__).parents[2])],
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        rule.unlink()

    assert (done.stdout.split(), done.stderr) == (["gone"], "")


# sudo hands SIGTERM on to what it runs, which an ordinary user could not kill.
_SUDO_CONTROLLER = """
import os, sys, trio, trickle, pwd, time
sys.path.insert(0, sys.argv[2])

def sudo_sleep(path):
    import os, subprocess
    with open(path, "w") as file:
        file.write("x")
    subprocess.Popen(["sudo", "-n", "sleep", "54321"]).wait()

def sleepers():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/cmdline" % name, "rb") as file:
                    if file.read() == b"sleep\\0" + b"54321\\0":
                        found.append(name)
            except OSError:
                pass
    return found

async def main():
    tunnel = trickle.Command(["setpriv", "--reuid", sys.argv[1], "--clear-groups", "env", "HOME=/"], name="user",
                             python="/usr/bin/python3")
    async with trickle.open_host(tunnel) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=0.5).call, sudo_sleep, "/dev/null")
            while not sleepers():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        print("left" if sleepers() else "gone")

trio.run(main)
"""


async def test_a_stopped_controller_loses_its_work_at_the_end_of_the_lease(tmp_path: Path) -> None:
    script = tmp_path / "controller.py"
    script.write_text(_STOPPED_CONTROLLER)
    process = await trio.lowlevel.open_process([sys.executable, str(script), str(tmp_path / "pids")])
    try:
        pids = [int(pid) for pid in (await file_appears(tmp_path / "pids")).split()]
        process.send_signal(signal.SIGSTOP)

        for pid in pids:
            await process_ends(pid)
    finally:
        process.kill()
        await process.wait()


_STOPPED_CONTROLLER = """
import sys, trio, trickle

def run(path):
    import os, subprocess, time
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    with open(path + ".new", "w") as file:
        file.write("%d %d" % (os.getpid(), child.pid))
    os.rename(path + ".new", path)
    time.sleep(3600)

async def main():
    async with trickle.open_host(trickle.Local(python=sys.executable), heartbeat=0.5, lease=2) as host:
        await host.call(run, sys.argv[1])

trio.run(main)
"""


async def test_a_fork_of_the_controller_does_not_keep_its_work_alive(tmp_path: Path) -> None:
    script = tmp_path / "controller.py"
    script.write_text(_FORKING_CONTROLLER)
    process = await trio.lowlevel.open_process([sys.executable, str(script), str(tmp_path / "pids")])
    pids = [int(pid) for pid in (await file_appears(tmp_path / "pids")).split()]
    fork = int(await file_appears(tmp_path / "pids.fork"))
    try:
        process.kill()
        await process.wait()

        for pid in pids:
            await process_ends(pid)
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


_FORKING_CONTROLLER = _STOPPED_CONTROLLER.replace(
    "        await host.call(run, sys.argv[1])",
    """
        import os, time
        pid = os.fork()
        if not pid:
            time.sleep(3600)
        with open(sys.argv[1] + ".fork.new", "w") as file:
            file.write(str(pid))
        os.rename(sys.argv[1] + ".fork.new", sys.argv[1] + ".fork")
        await host.call(run, sys.argv[1])""",
)


async def test_ctrl_c_in_a_terminal_ends_everything_cleanly(tmp_path: Path) -> None:
    import pty

    script = tmp_path / "controller.py"
    script.write_text(_STOPPED_CONTROLLER)
    master, slave = pty.openpty()
    process = await trio.lowlevel.open_process(
        ["setsid", "--ctty", sys.executable, str(script), str(tmp_path / "pids")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    try:
        pids = [int(pid) for pid in (await file_appears(tmp_path / "pids")).split()]
        os.write(master, b"\x03")  # the terminal makes it a SIGINT to the whole foreground group
        await process.wait()
        said = await trio.to_thread.run_sync(_read_all, master)
    finally:
        os.close(master)

    assert not [pid for pid in pids if is_running(pid)]
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1


def _read_all(fd: int) -> str:
    said = b""
    with contextlib.suppress(OSError):  # EIO, at the end of a terminal
        while data := os.read(fd, 65536):
            said += data
    return said.decode()
