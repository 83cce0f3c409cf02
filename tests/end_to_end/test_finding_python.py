"""Through real login shells with noisy start-up files, to the Python that is there, or a word on why it will not do."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import trickle
from tests import pythons, work
from tests import sshd as sshd_module
from tests.requirements import require
from tests.sshd import Sshd

SHELLS = ["sh", "dash", "bash", "zsh", "tcsh", "csh", "fish"]
PYTHON = "/usr/bin/python3"

# What each shell reads when sshd runs it; it must print, or the test proves nothing.
NOISE = "echo noise on stdout; echo noise on stderr >&2; printf 'no line end'"
CSH_NOISE = "echo noise on stdout; sh -c 'echo noise on stderr >&2'; printf 'no line end'"
START_UP_FILES = {
    ".profile": NOISE,
    ".bashrc": NOISE,
    ".zshenv": NOISE,
    ".cshrc": CSH_NOISE,
    ".config/fish/config.fish": NOISE,
}
READ_BY_SSHD = {"bash", "zsh", "tcsh", "csh", "fish"}  # sh and dash read none for a command


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    if os.getuid() != 0:
        require("ssh", "only root can give the test's user another shell")


@pytest.fixture
def noisy_home(login_user: str) -> Iterator[Path]:
    """The home of somebody whose start-up files print."""
    entry = pwd.getpwnam(login_user)
    home = Path(entry.pw_dir)
    for name, text in START_UP_FILES.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    for path in (home / ".config").rglob("*"):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    os.chown(home / ".config", entry.pw_uid, entry.pw_gid)
    yield home
    for name in START_UP_FILES:
        (home / name).unlink()
    shutil.rmtree(home / ".config")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, login_user: str, noisy_home: Path) -> Iterator[str]:
    """That user's login shell."""
    path = shutil.which(request.param)
    if path is None:
        require("shells", f"no {request.param} on this machine")
    with sshd_module.login_shell(login_user, path):
        yield request.param


@pytest.mark.parametrize("python", [None, PYTHON])
async def test_it_is_found_through_each_login_shell(python: str | None, shell: str, piped_sshd: Sshd) -> None:
    assert ("noise on stdout" in piped_sshd.ssh("true").stdout) == (shell in READ_BY_SSHD)

    async with trickle.open_host(trickle.SSH("h0", ssh_options=piped_sshd.ssh_options, python=python)) as host:
        assert await host.call(work.add, 1, 2) == 3


async def test_it_is_found_through_two_of_them(shell: str, sshd: Sshd, login_user: str) -> None:
    with sshd_module.key_of_ones_own(sshd, login_user) as options:
        bastion = trickle.SSH("h0", ssh_options=sshd.ssh_options)
        async with trickle.open_host(trickle.SSH("h1", ssh_options=options, via=bastion)) as host:
            assert await host.call(work.add, 1, 2) == 3
        third = trickle.SSH("h2", ssh_options=options, via=host.tunnel)
        async with trickle.open_host(third) as host:
            assert await host.call(work.add, 1, 2) == 3


# ---- what will not do


def forced(directory: Path, user: str, name: str, script: str) -> trickle.SSH:
    """A host on which *script* comes before what is asked for."""
    path = directory / f"{name}.sh"
    path.write_text(f'#!/bin/sh\n{script}\neval "exec $SSH_ORIGINAL_COMMAND"\n')
    path.chmod(0o755)
    with sshd_module.piped_sshd(directory, user, name, f"ForceCommand {path}\n") as piped:
        return trickle.SSH("h0", name="web1", ssh_options=piped.ssh_options)


async def error_of(tunnel: trickle.abc.Tunnel) -> trickle.ConnectError:
    with pytest.raises(trickle.ConnectError, match="^web1: ") as caught:
        async with trickle.open_host(tunnel, connect_timeout=60):
            pass
    return caught.value


@pytest.fixture
def programs(public_directory: Path) -> Iterator[Path]:
    """A directory for a PATH of the test's own; sh is there already."""
    path = public_directory / "programs"
    path.mkdir()
    (path / "sh").symlink_to("/bin/sh")
    yield path
    shutil.rmtree(path)


async def test_a_host_without_any(programs: Path, _sshd_directory: Path, login_user: str) -> None:
    error = await error_of(forced(_sshd_directory, login_user, "none", f"export PATH={programs}"))

    assert (error.reason, error.exit_status) == ("no Python", 83)
    assert str(error).startswith("web1: it has no Python that we could find; install Python 3.6 or later there")


async def test_a_host_with_python_2_alone(python27: str, tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "python").symlink_to(python27)
    tunnel = trickle.Command(["env", f"PATH={tmp_path}:"], name="web1")  # as root: the user cannot read that Python

    error = await error_of(tunnel)

    assert error.reason == "too old"
    assert f"only {tmp_path}/python (Python 2.7" in str(error)


async def test_a_python_2_that_was_asked_for(python27: str) -> None:
    error = await error_of(trickle.Command(["env"], name="web1", python=python27))

    assert error.reason == "too old"
    assert str(error).startswith("web1: its Python is older than 3.6; give python= the path of a newer one")


async def test_a_path_that_leads_nowhere(piped_sshd: Sshd) -> None:
    tunnel = trickle.SSH("h0", name="web1", ssh_options=piped_sshd.ssh_options, python="/no/such/python")

    error = await error_of(tunnel)

    assert (error.reason, error.exit_status) == ("no Python", 127)
    assert "/no/such/python" in str(error)


async def test_a_path_that_leads_to_something_else(piped_sshd: Sshd) -> None:
    tunnel = trickle.SSH("h0", name="web1", ssh_options=piped_sshd.ssh_options, python="/bin/echo")

    error = await error_of(tunnel)

    assert (error.reason, error.exit_status) == ("not a Python", 0)


STUB = """#!/bin/sh
echo 'xcode-select: note: No developer tools were found, requesting install.' >&2
touch "$DIALOG"
exit 1
"""
LIKE_A_MAC = 'mount -t overlay overlay -o lowerdir="$0":/usr/bin /usr/bin && exec "$@"'


@pytest.mark.parametrize("has_tools", [False, True])
async def test_the_stub_of_a_mac_is_not_started(has_tools: bool, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # The same file is the stub without the tools, and a Python with them.
    real = f'[ -e {tmp_path}/tools ] && exec {pythons.far_pythons()[0]} "$@"\n'
    (programs / "python3").write_text(STUB.replace("\n", f"\n{real}", 1))
    (programs / "xcode-select").write_text(f"#!/bin/sh\n[ -e {tmp_path}/tools ] || exit 2\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    if has_tools:
        (tmp_path / "tools").touch()
    probe = subprocess.run(["unshare", "--mount", "sh", "-c", LIKE_A_MAC, programs, "true"], capture_output=True)
    if probe.returncode:
        require("netns", f"no namespaces with overlays here: {probe.stderr.decode()}")
    words = ["env", "PATH=/usr/bin:/bin", f"DIALOG={tmp_path}/dialog"]
    tunnel = trickle.Command([*words, "unshare", "--mount", "sh", "-c", LIKE_A_MAC, str(programs)], name="web1")

    if has_tools:
        async with trickle.open_host(tunnel) as host:
            assert await host.call(work.add, 1, 2) == 3
    else:
        error = await error_of(tunnel)
        assert error.reason == "no Python"
        assert "only /usr/bin/python3 (a stub, without the developer tools)" in str(error)

    assert not (tmp_path / "dialog").exists()
