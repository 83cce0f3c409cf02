"""Whatever remote code is doing: when its scope exits, every process of it is gone, and the verdict is true."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import loops, pythons, torture, work
from tests.hosts import file_appears, is_running, local, process_ends, running_below
from tests.requirements import require
from tests.sshd import Sshd
from trickle.abc import Tunnel


@pytest.mark.parametrize("function", torture.TABLE, ids=lambda function: function.__name__)
async def test_it_is_gone_when_its_scope_exits(function: Callable[[str], object], far: Tunnel, shared: Path) -> None:
    verdict = torture.TABLE[function]
    grace_period = 0.5 if verdict == "killed" else 60.0  # the rest needs little of it, however slow this machine is
    lines: list[trickle.OutputLine] = []

    async with trickle.open_host(far, output=lines.append) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=grace_period).call, function, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {verdict: 1}
        assert await host.call(work.add, 1, 2) == 3


async def test_fifty_calls_at_once_are_gone_when_their_scope_exits(far: Tunnel, shared: Path) -> None:
    functions = [torture.sleep, torture.busy_loop, torture.child_under_timeout, torture.gil_held_in_c, torture.stopped]
    paths = [shared / str(number) for number in range(50)]

    async with trickle.open_host(far, workers=50) as host:
        async with trio.open_nursery() as nursery:
            for number, path in enumerate(paths):
                function = functions[number % len(functions)]
                nursery.start_soon(host.options(grace_period=0.5).call, function, str(path))
            pids = [int(pid) for path in paths for pid in (await file_appears(path)).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert sum(host.statistics().verdicts.values()) == 50
        assert await host.call(work.add, 1, 2) == 3


@pytest.mark.takes(600)
@pytest.mark.parametrize("loop", [loops.queue_loop, loops.import_loop], ids=lambda loop: loop.__name__)
async def test_a_host_cancelled_a_thousand_times_stays_usable(loop: Callable[[], None], far: Tunnel) -> None:
    async def cancel_in_turn(lane: int) -> None:
        for number in range(250):
            with trio.CancelScope() as scope:
                if number % 10 == lane:
                    scope.deadline = trio.current_time() + number / 10_000  # up to 25 ms: before it runs, or just then
                    await host.call(loop)
                else:
                    await cancel_when_it_runs(scope, (37 * number % 101) / 25_000)  # up to 4 ms into its loop

    async def cancel_when_it_runs(scope: trio.CancelScope, seconds: float) -> None:
        def cancel_soon(line: trickle.OutputLine) -> None:
            assert line.text == "started"
            scope.deadline = trio.current_time() + seconds

        await host.options(output=cancel_soon).call(loop)

    async with trickle.open_host(far) as host:
        async with trio.open_nursery() as nursery:
            for lane in range(4):
                nursery.start_soon(cancel_in_turn, lane)

        verdicts = host.statistics().verdicts
        assert set(verdicts) <= {"cancelled", "never started"}
        assert verdicts["cancelled"] >= 900
        assert await host.call(work.add, 1, 2) == 3
        assert len(running_below(host.info.pid)) == 1


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A control group whose processes can be frozen, so that not even SIGKILL ends them: the old kind does that."""
    parent = Path("/sys/fs/cgroup/freezer")
    if not os.access(parent, os.W_OK):
        require("freezer", "no freezer of cgroup version 1 that we may use")
    directory = parent / f"trickle-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    (directory / "freezer.state").write_text("THAWED")
    while (directory / "cgroup.procs").read_text():
        time.sleep(0.01)
    directory.rmdir()


async def test_what_sigkill_does_not_end_is_unkillable_and_told(
    freezer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with trickle.open_host(local("web1")) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, torture.child_in_a_new_session, str(tmp_path / "pids"))
            worker, child = (await file_appears(tmp_path / "pids")).split()
            (freezer / "cgroup.procs").write_text(child)
            (freezer / "freezer.state").write_text("FROZEN")
            nursery.cancel_scope.cancel()

        assert (is_running(int(worker)), is_running(int(child))) == (False, True)
        assert host.statistics().verdicts == {"unkillable": 1}
        assert "survived SIGKILL" in caplog.text and child in caplog.text
        assert await host.call(work.add, 1, 2) == 3
        (freezer / "freezer.state").write_text("THAWED")
        await process_ends(int(child))  # SIGKILL was waiting for it


@pytest.mark.parametrize("way", ["setpriv", "ssh"])
async def test_children_under_sudo_are_gone(way: str, piped_sshd: Sshd, shared: Path, sudo: None) -> None:
    tunnel: Tunnel = trickle.SSH(piped_sshd.alias(), ssh_options=piped_sshd.ssh_options)
    if way == "setpriv":
        as_user = ("setpriv", "--reuid", piped_sshd.user, "--clear-groups", "env", "HOME=/")
        tunnel = trickle.Command(as_user, name="user", python="/usr/bin/python3")

    async with trickle.open_host(tunnel) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, torture.child_under_sudo, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        # sudo hands SIGTERM on to what it runs, which an ordinary user could not kill.
        assert host.info.user == piped_sshd.user
        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {"cancelled": 1}


async def test_a_command_under_sudo_is_gone(login_user: str, shared: Path, sudo: None) -> None:
    as_user = ("setpriv", "--reuid", login_user, "--clear-groups", "env", "HOME=/")
    tunnel = trickle.Command(as_user, name="user", python="/usr/bin/python3")
    command = ["sudo", "-n", "sh", "-c", 'echo $$ > "$0"; exec sleep 1000000', str(shared / "pid")]

    async with trickle.open_host(tunnel) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run_process, command)
            pid = int(await file_appears(shared / "pid"))
            nursery.cancel_scope.cancel()

        assert not is_running(pid)


@pytest.fixture
def sudo(login_user: str) -> Iterator[None]:
    """Lets the user who logs in run all as anybody."""
    if os.getuid() != 0:
        require("sudo", "only root can set up sudo for the test")
    if not Path("/usr/bin/sudo").exists():
        require("sudo", "no sudo on this machine")
    rule = Path(f"/etc/sudoers.d/trickle-test-{os.getpid()}")
    rule.write_text(f"{login_user} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    yield
    rule.unlink()


@pytest.mark.parametrize("python", pythons.far_pythons(), ids=pythons.python_id)
@pytest.mark.parametrize("function", [torture.blocked_in_del, torture.full_of_blocking_del])
async def test_a_cancel_that_a_finaliser_swallows_comes_again(
    function: Callable[[str], object], python: str, shared: Path
) -> None:
    knows_what_was_swallowed = (pythons.version_of(python) or (0,)) >= (3, 8)  # sys.unraisablehook
    grace_period = 60.0 if knows_what_was_swallowed else 0.5

    async with trickle.open_host(trickle.Local(python=python), output=lambda line: None) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=grace_period).call, function, str(shared / "pids"))
            pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
            nursery.cancel_scope.cancel()

        assert not [pid for pid in pids if is_running(pid)]
        assert host.statistics().verdicts == {"cancelled" if knows_what_was_swallowed else "killed": 1}


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
    async with trickle.open_host(trickle.Local(python=sys.executable), heartbeat=0.5, lease=4) as host:
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
        said = await trio.to_thread.run_sync(_read_all, master, abandon_on_cancel=True)
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
