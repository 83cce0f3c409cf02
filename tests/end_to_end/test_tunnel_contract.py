"""Every tunnel of ours keeps the contract of tunnels, which is published as trickle.testing.check_tunnel.

The tests run trio themselves: what is checked is bounded step by step, and takes its time.
"""

import dataclasses
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import trio

import trickle
from tests import leftovers, pythons, sudo
from tests import sshd as sshd_module
from tests.containers import IMAGE, Docker, Engine
from tests.requirements import require
from tests.sshd import Sshd
from trickle.abc import Tunnel, announced
from trickle.testing import check_tunnel

PASSWORD = "open sesame"


@pytest.fixture
def check(caplog: pytest.LogCaptureFixture) -> Callable[[Callable[[], Tunnel]], None]:
    """Check a tunnel, and that no part of the check was left out."""

    def check(make_tunnel: Callable[[], Tunnel]) -> None:
        trio.run(check_tunnel, make_tunnel)
        assert "is not checked" not in caplog.text

    return check


def need(*programs: str, kind: str, root: bool = False) -> None:
    for program in programs:
        if shutil.which(program) is None:
            require(kind, f"no {program} on this machine")
    if root and os.getuid() != 0:
        require(kind, "only root can do that")


SANDBOX = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent")
Check = Callable[[Callable[[], Tunnel]], None]


# ---- this machine


def test_local(check: Check) -> None:
    check(lambda: trickle.Local())


@pytest.mark.parametrize("python", [pythons.far_pythons()[0], pythons.far_pythons()[-1]], ids=pythons.python_id)
def test_local_with_the_oldest_and_the_newest_python(python: str, check: Check) -> None:
    version = pythons.version_of(python)
    assert version is not None

    check(lambda: trickle.Local("here", python=python, python_version=version[:2]))


def test_command(check: Check) -> None:
    check(lambda: trickle.Command(["env", "-u", "LANG"], python=sys.executable))


def test_command_that_has_a_shell_read_the_words(check: Check) -> None:
    once = trickle.Command(["sh", "-c"], shell=True)

    check(lambda: trickle.Command(["sh", "-c"], shell=True, via=once, python=sys.executable))


def test_command_that_enters_namespaces(check: Check) -> None:
    need("unshare", "nsenter", kind="netns", root=True)
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "echo; exec sleep 3600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as outside:
        assert outside.stdout is not None
        try:
            outside.stdout.readline()
            (inside,) = map(int, Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split())
            with leftovers.daemon(outside.pid):
                enter = ["nsenter", "-t", str(inside), "--pid", "--mount"]
                check(lambda: trickle.Command(enter, python=sys.executable))
        finally:
            outside.kill()


def test_command_that_makes_a_sandbox(check: Check) -> None:
    need("bwrap", kind="bwrap")

    check(lambda: trickle.Command(SANDBOX, python=sys.executable))


def test_what_cannot_be_seen_over_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    need("bwrap", kind="bwrap")
    outer = trickle.Command(SANDBOX, python=sys.executable, name="outer")  # another one for each connection
    inner = trickle.Command(SANDBOX, python=sys.executable, name="inner", via=outer)

    trio.run(check_tunnel, lambda: inner)

    assert "inner: its processes over there cannot be seen from outside: whether any is left is not" in caplog.text


# ---- ssh


def test_ssh(piped_sshd: Sshd, check: Check) -> None:
    check(lambda: trickle.SSH(piped_sshd.alias(), ssh_options=piped_sshd.ssh_options))


def test_ssh_by_a_master(mastered_sshd: Sshd, check: Check) -> None:
    check(lambda: trickle.SSH(mastered_sshd.alias(), ssh_options=mastered_sshd.ssh_options))


def test_ssh_via_ssh(sshd: Sshd, piped_sshd: Sshd, public_directory: Path, check: Check) -> None:
    key = public_directory / "bastion-key"  # of the user who logs in to the bastion
    shutil.copy(sshd.directory / "id", key)
    user = pwd.getpwnam(sshd.user)
    os.chown(key, user.pw_uid, user.pw_gid)
    beyond = sshd.variant("bastion", f"IdentityFile {key}")
    bastion = trickle.SSH("h0", ssh_options=piped_sshd.ssh_options)

    check(lambda: trickle.SSH("h1", ssh_options=beyond.ssh_options, via=bastion))


# ---- sudo


@pytest.fixture
def sudoer(login_user: str) -> Iterator[str]:
    """Somebody who may do anything, once the password was given."""
    sudo.need_sudo()
    with sudo.rules(f"{login_user} ALL=(ALL:ALL) ALL"), sshd_module.password(login_user, PASSWORD):
        yield login_user
    sudo.forget(login_user)


def test_sudo_that_does_not_ask(login_user: str, check: Check) -> None:
    sudo.need_sudo()

    check(lambda: trickle.Sudo(login_user))


def test_sudo_that_asks(sudoer: str, check: Check) -> None:
    somebody = trickle.Command(["setpriv", f"--reuid={sudoer}", "--clear-groups"])

    check(lambda: trickle.Sudo(password=PASSWORD, via=somebody))


def test_sudo_via_ssh(sudoer: str, piped_sshd: Sshd, check: Check) -> None:
    there = trickle.SSH("h0", ssh_options=piped_sshd.ssh_options)

    check(lambda: trickle.Sudo("nobody", password=PASSWORD, via=there))


def test_sudo_via_sudo_via_ssh(sudoer: str, piped_sshd: Sshd, check: Check) -> None:
    root = trickle.Sudo(password=PASSWORD, via=trickle.SSH("h0", ssh_options=piped_sshd.ssh_options))

    check(lambda: trickle.Sudo("nobody", via=root))


# ---- somebody's own


@dataclasses.dataclass(frozen=True)
class Su(Tunnel):
    """Another user, by su, which always asks with the same words."""

    user: str
    password: str = dataclasses.field(repr=False)

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        words = ("su", "-s", "/bin/sh", "-c", 'exec "$0" "$@"', "--", self.user)
        return self.through((*words, *announced(argv)))

    def answers(self, nonce: str) -> Mapping[str, str]:
        return {"Password: ": self.password}


def test_su(sudoer: str, check: Check) -> None:
    need("su", kind="sudo")
    somebody = trickle.Command(["setpriv", f"--reuid={sudoer}", "--clear-groups"])

    check(lambda: Su(sudoer, PASSWORD, via=somebody))


# ---- containers


@pytest.fixture(params=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each container engine."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def running(engine: Engine) -> Iterator[str]:
    """The name of a container that runs already."""
    name = f"running{os.getpid()}"
    engine.run("run", "--detach", "--init", "--name", name, IMAGE, "sleep", "1000000")
    yield name
    engine.remove(name)


def test_a_fresh_container(engine: Engine, check: Check) -> None:
    check(lambda: trickle.Docker("py", image=IMAGE, engine=engine.name, env={"A": "b c"}))

    assert engine.containers() == set()


def test_a_running_container(engine: Engine, running: str, check: Check) -> None:
    check(lambda: trickle.DockerExec(running, engine=engine.name, env={"A": "b c"}))

    assert len(engine.containers()) == 1


def test_a_fresh_container_via_sudo_via_ssh(docker: Docker, sudoer: str, piped_sshd: Sshd, check: Check) -> None:
    there = trickle.Sudo(password=PASSWORD, via=trickle.SSH("h0", ssh_options=piped_sshd.ssh_options))
    engine = [f"{name}={value}" for name, value in docker.environment.items()]

    check(lambda: trickle.Docker("py", image=IMAGE, via=trickle.Command(["env", *engine], via=there)))

    assert docker.containers() == set()
