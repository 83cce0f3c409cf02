"""Sudo for real: every way in which it lets somebody in or does not, and nothing left of it, however it ends."""

import contextlib
import dataclasses
import logging
import os
import pwd
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import sshd as sshd_module
from tests import sudo, torture, work
from tests.hosts import file_appears, is_running, process_ends
from tests.sshd import MARK, Sshd
from tests.terminals import run_on_a_terminal

PASSWORD = "correct horse 'battery\" staple$HOME\\"
OTHER_PASSWORD = "another secret"
PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).parents[2]
ALL = "ALL=(ALL:ALL)"


@pytest.fixture(scope="module", autouse=True)
def _sudo() -> None:
    sudo.need_sudo()


@pytest.fixture(scope="module")
def user(login_user: str) -> Iterator[str]:
    """Somebody with a password, whose mark sudo keeps."""
    with sshd_module.password(login_user, PASSWORD):
        yield login_user
    sudo.forget(login_user)


@pytest.fixture(scope="module")
def other(public_directory: Path) -> Iterator[str]:
    """Somebody else with a password."""
    with sshd_module.login_user(public_directory / "other", "other") as name:
        with sshd_module.password(name, OTHER_PASSWORD):
            yield name
    sudo.forget(name)


@pytest.fixture(params=["setpriv", "ssh"])
def there(request: pytest.FixtureRequest, user: str, piped_sshd: Sshd) -> trickle.abc.Tunnel:
    """That user, once in a process of this machine and once behind an ssh."""
    return as_user(user) if request.param == "setpriv" else trickle.SSH("h0", ssh_options=piped_sshd.ssh_options)


def as_user(user: str, *more: str) -> trickle.Command:
    home = pwd.getpwnam(user).pw_dir
    words = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "env", f"HOME={home}", *more]
    return trickle.Command(words, name="there")


@contextlib.contextmanager
def rules(user: str, *lines: str) -> Iterator[None]:
    """Rules for *user*, whose mark is kept, so that what is left behind is found."""
    sudo.forget(user)
    with sudo.rules(f'Defaults:{user} env_keep += "{MARK}"', *(f"{user} {line}" for line in lines)):
        yield


@contextlib.contextmanager
def defaults(user: str, *settings: str) -> Iterator[None]:
    """A rule that asks for a password, and these settings."""
    sudo.forget(user)
    keep = f'env_keep += "{MARK}"'
    with sudo.rules(f"{user} {ALL} ALL", *(f"Defaults:{user} {setting}" for setting in (keep, *settings))):
        yield


async def error_of(tunnel: trickle.abc.Tunnel, connect_timeout: float = 60.0) -> trickle.ConnectError:
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel, connect_timeout=connect_timeout):
            pass
    error = caught.value
    assert str(error).startswith(f"{tunnel.name}: ")
    assert PASSWORD not in f"{error}{error!r}{error.stderr}{tunnel!r}"
    return error


async def whoami(tunnel: trickle.abc.Tunnel) -> tuple[str, str]:
    async with trickle.open_host(tunnel, connect_timeout=60.0) as host:
        return host.info.user, await host.call(os.path.expanduser, "~")


# ---- who is let in


async def test_without_a_password_where_none_is_asked_for(there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} NOPASSWD: ALL"):
        assert await whoami(trickle.Sudo(via=there)) == ("root", "/root")


async def test_with_a_password_where_none_is_asked_for(there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} NOPASSWD: ALL"):
        assert await whoami(trickle.Sudo(via=there, password=PASSWORD)) == ("root", "/root")


async def test_with_the_right_password(there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} ALL"):
        assert await whoami(trickle.Sudo(via=there, password=PASSWORD)) == ("root", "/root")


@pytest.mark.parametrize(("rule", "password"), [("NOPASSWD: ALL", None), ("ALL", PASSWORD)])
async def test_from_a_relay(rule: str, password: str | None, there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} {rule}"):
        async with trickle.open_host(there) as relay, relay.open_host(trickle.Sudo(password=password)) as host:
            assert (relay.info.user, host.info.user) == (user, "root")
            assert await host.call(os.path.expanduser, "~") == "/root"


async def test_another_user_than_root(there: trickle.abc.Tunnel, user: str, other: str) -> None:
    with rules(user, f"ALL=({other}) NOPASSWD: ALL"):
        assert await whoami(trickle.Sudo(other, via=there)) == (other, pwd.getpwnam(other).pw_dir)
        assert await whoami(trickle.Sudo(other, via=there, password=PASSWORD)) == (other, pwd.getpwnam(other).pw_dir)


@pytest.mark.parametrize(
    "setting",
    ["lecture=always", "lecture=always,lecture_file={lecture}", "use_pty", "!use_pty", "passprompt=Password:"],
)
async def test_with_the_right_password_whatever_else_sudo_says(
    setting: str, there: trickle.abc.Tunnel, user: str, tmp_path: Path
) -> None:
    (tmp_path / "lecture").write_text("Think before you type, and no line end here: ")
    with defaults(user, setting.format(lecture=tmp_path / "lecture")):
        assert await whoami(trickle.Sudo(via=there, password=PASSWORD)) == ("root", "/root")


async def test_with_the_right_password_where_sudo_logs_what_goes_through(
    there: trickle.abc.Tunnel, user: str, tmp_path: Path
) -> None:
    with defaults(user, "log_input", "log_output", f"iolog_dir={tmp_path}/log"):
        async with trickle.open_host(trickle.Sudo(via=there, password=PASSWORD)) as host:
            assert await host.call(work.size_of, bytes(1_000_000)) == 1_000_000
            assert host.info.user == "root"

    logged = b"".join(path.read_bytes() for path in (tmp_path / "log").rglob("*") if path.is_file())
    assert logged
    assert PASSWORD.encode() not in logged


async def test_with_the_right_password_behind_a_banner(user: str, _sshd_directory: Path) -> None:
    banner = _sshd_directory / "banner"
    banner.write_text("Authorized use only.\nPassword: ")
    with (
        sshd_module.piped_sshd(_sshd_directory, user, "banner", f"Banner {banner}\n") as piped,
        rules(user, f"{ALL} ALL"),
    ):
        via = trickle.SSH("h0", ssh_options=("-o", "LogLevel=DEBUG3", *piped.ssh_options))
        assert await whoami(trickle.Sudo(via=via, password=PASSWORD)) == ("root", "/root")


@pytest.mark.parametrize("line", ["set -x", "set -xv; BASH_XTRACEFD=1", "PS4='$(echo trickle%) '; set -x"])
async def test_a_shell_that_prints_its_commands_does_not_get_the_password(
    line: str, user: str, piped_sshd: Sshd
) -> None:
    bashrc = Path(pwd.getpwnam(user).pw_dir) / ".bashrc"
    bashrc.write_text(f"{line}\n")
    tunnel = trickle.Sudo(via=trickle.SSH("h0", ssh_options=piped_sshd.ssh_options), password=PASSWORD)
    try:
        with sshd_module.login_shell(user, "/bin/bash"):
            shown = piped_sshd.ssh("true")
            assert "true" in shown.stderr + shown.stdout  # it does print
            with rules(user, f"{ALL} ALL"):
                assert await whoami(tunnel) == ("root", "/root")
            with rules(user, f"{ALL} NOPASSWD: ALL"):
                assert await whoami(tunnel) == ("root", "/root")
    finally:
        bashrc.unlink()


# ---- who is not


async def test_a_password_that_is_needed_and_not_given(there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} ALL"):
        error = await error_of(trickle.Sudo(via=there))

    assert (error.reason, error.exit_status) == ("password needed", 1)
    assert "give password=" in str(error)


async def test_a_wrong_password_is_sent_once(there: trickle.abc.Tunnel, user: str, tmp_path: Path) -> None:
    with defaults(user, f"logfile={tmp_path}/log"):
        error = await error_of(trickle.Sudo(via=there, password="wrong"))

    assert error.reason == "wrong password"
    assert error.stderr.count("Sorry, try again.") == 1
    assert "1 incorrect password attempt" in " ".join((tmp_path / "log").read_text().split())


async def test_a_wrong_password_is_not_sent_again_by_reconnecting(user: str, tmp_path: Path) -> None:
    with defaults(user, f"logfile={tmp_path}/log"):
        async with trickle.open_host(trickle.Sudo(via=as_user(user), password="wrong"), wait=False) as host:
            for _ in range(2):
                with pytest.raises(trickle.ConnectError) as caught:
                    await host.options(reconnect=True).call(work.add, 1)
                assert caught.value.reason == "wrong password"

    assert " ".join((tmp_path / "log").read_text().split()).count("incorrect password attempt") == 1


async def test_a_wrong_password_where_sudo_asks_once(there: trickle.abc.Tunnel, user: str) -> None:
    with defaults(user, "passwd_tries=1"):
        error = await error_of(trickle.Sudo(via=there, password="wrong"))

    assert (error.reason, error.exit_status) == ("wrong password", 1)


async def test_an_account_without_rights(there: trickle.abc.Tunnel, user: str) -> None:
    with sudo.rules():
        with_password = await error_of(trickle.Sudo(via=there, password=PASSWORD))
        without = await error_of(trickle.Sudo(via=there))

    assert with_password.reason == "not in sudoers"
    assert without.reason == "password needed"  # sudo tells nobody more than that


async def test_a_user_whom_the_rules_do_not_name(there: trickle.abc.Tunnel, user: str, other: str) -> None:
    with rules(user, f"ALL=({other}) NOPASSWD: ALL"):
        error = await error_of(trickle.Sudo(via=there, password=PASSWORD))

    assert error.reason == "not in sudoers"
    assert "is not allowed to execute" in str(error)


async def test_a_user_who_does_not_exist(there: trickle.abc.Tunnel, user: str) -> None:
    with rules(user, f"{ALL} NOPASSWD: ALL"):
        error = await error_of(trickle.Sudo("no-such-user", via=there))

    assert error.reason == "no such user"


async def test_a_sudo_that_wants_a_terminal(there: trickle.abc.Tunnel, user: str) -> None:
    with defaults(user, "requiretty"):
        for password in (None, PASSWORD):
            error = await error_of(trickle.Sudo(via=there, password=password))

            assert error.reason == "requiretty"


async def test_a_host_without_sudo(user: str, _sshd_directory: Path) -> None:
    script = 'PATH=/nowhere; export PATH; eval "exec $SSH_ORIGINAL_COMMAND"'
    with sshd_module.piped_sshd(_sshd_directory, user, "no_sudo", f"ForceCommand {script}\n") as piped:
        ssh = trickle.SSH("h0", ssh_options=piped.ssh_options)
        for via in (ssh, as_user(user, "PATH=/nowhere")):
            for password in (None, PASSWORD):
                error = await error_of(trickle.Sudo(via=via, password=password))

                assert (error.reason, error.exit_status) == ("not installed", 127)


async def test_a_machine_without_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    error = await error_of(trickle.Sudo())

    assert "cannot run 'sudo'" in str(error)
    assert "is it installed on this machine?" in str(error)


# ---- where the password goes

STRANGE_SUDO = """#!{python}
import os, select, sys
prompt = sys.argv[sys.argv.index("-p") + 1].replace("%%", "%")
words = sys.argv[sys.argv.index("--") + 1:]

def say(text):
    os.write(2, text.encode())

def line():
    given = os.read(0, 1)
    while given and not given.endswith(b"\\n"):
        given += os.read(0, 1)
    return given

def what_comes_by_itself():
    return os.read(0, 1000) if select.select([0], [], [], 1)[0] else b""

def rest():
    given = b""
    while data := os.read(0, 65536):
        given += data
    return given

def note(given):
    with open({path!r} + ".new", "wb") as file:
        file.write(given)
    os.rename({path!r} + ".new", {path!r})

{does}
"""


def strange_sudo(shared: Path, user: str, does: str) -> tuple[trickle.Sudo, Path]:
    """A tunnel through a program of the test's own, and the file in which that notes what it was given."""
    path = shared / "bin"
    path.mkdir()
    (path / "sudo").write_text(STRANGE_SUDO.format(python=PYTHON, path=str(shared / "given"), does=does))
    (path / "sudo").chmod(0o755)
    return trickle.Sudo(via=as_user(user, f"PATH={path}:/usr/bin:/bin"), password=PASSWORD), shared / "given"


@pytest.mark.parametrize("asked", ["Verification code: ", "[sudo] password for me: ", "Password:", "trickle%", "\\n"])
async def test_a_sudo_that_asks_for_something_else_gets_nothing(asked: str, user: str, shared: Path) -> None:
    tunnel, given = strange_sudo(shared, user, f'say("{asked}"); note(rest())')

    error = await error_of(tunnel, connect_timeout=5)

    assert await file_appears(given) == ""
    assert error.reason == "timed out"
    assert error.stage == "waiting to be asked for a password"


async def test_all_that_sudo_gets_to_see_is_the_password(user: str, shared: Path) -> None:
    does = "say(prompt); given = line() + what_comes_by_itself(); note(given); os.execvp(words[0], words)"
    tunnel, given = strange_sudo(shared, user, does)

    assert (await whoami(tunnel))[0] == user

    assert given.read_text() == f"{PASSWORD}\n"


async def test_a_sudo_that_does_not_ask_does_not_get_the_password(user: str, shared: Path) -> None:
    tunnel, given = strange_sudo(shared, user, "note(what_comes_by_itself()); os.execvp(words[0], words)")

    assert (await whoami(tunnel))[0] == user

    assert given.read_text() == ""


async def test_a_sudo_that_asks_again_gets_nothing_more(user: str, shared: Path) -> None:
    does = "say(prompt); given = line(); say('Sorry, try again.\\\\n' + prompt); note(given + rest())"
    tunnel, given = strange_sudo(shared, user, does)

    error = await error_of(tunnel)

    assert await file_appears(given) == f"{PASSWORD}\n"
    assert error.reason == "wrong password"


async def test_the_password_shows_nowhere(user: str, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asked, answered = shared / "asked", shared / "answered"
    does = f"""
open({str(asked)!r}, "w").close()
while not os.path.exists({str(answered)!r}):
    time.sleep(0.01)
say(prompt); line(); os.execvp(words[0], words)
"""
    tunnel, _ = strange_sudo(shared, user, f"import time{does}")

    async with trickle.open_host(tunnel, wait=False) as host:
        await file_appears(asked)
        seen = in_processes(PASSWORD)
        answered.touch()
        await host.wait_connected()
        seen += in_processes(PASSWORD)
        told = (
            f"{tunnel!r}{host.tunnel!r}{host!r}{host.statistics()}{host.info}{dataclasses.replace(tunnel, name='x')!r}"
        )

    assert seen == []
    assert PASSWORD not in told
    assert PASSWORD not in caplog.text


def in_processes(text: str) -> list[str]:
    """Where it stands in the command line or the environment of any process."""
    found = []
    for entry in Path("/proc").iterdir():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # gone meanwhile, or no process
                if text.encode() in (entry / name).read_bytes():
                    found.append(str(entry / name))
    return found


# ---- tunnels in tunnels


@pytest.fixture(scope="module")
def inner_options(sshd: Sshd, user: str) -> Iterator[tuple[str, ...]]:
    """Options for an ssh that the user runs over there, with a key of the user's own."""
    with sshd_module.key_of_ones_own(sshd, user) as options:
        yield options


async def test_sudo_in_ssh_in_ssh(sshd: Sshd, inner_options: tuple[str, ...], user: str) -> None:
    outer = trickle.SSH("h0", ssh_options=sshd.ssh_options)
    inner = trickle.SSH("h1", ssh_options=inner_options, via=outer)

    with rules(user, f"{ALL} NOPASSWD: ALL"):
        assert await whoami(trickle.Sudo(via=inner)) == ("root", "/root")
    with rules(user, f"{ALL} ALL"):
        assert await whoami(trickle.Sudo(via=inner, password=PASSWORD)) == ("root", "/root")
        error = await error_of(trickle.Sudo(via=inner, password="wrong"))
        assert error.reason == "wrong password"
        assert error.host == "sudo:h1"


async def test_ssh_by_sudo(sshd: Sshd, user: str) -> None:
    for rule, password in ((f"{ALL} NOPASSWD: ALL", None), (f"{ALL} ALL", PASSWORD)):
        with rules(user, rule):
            root = trickle.Sudo(via=as_user(user), password=password)
            tunnel = trickle.SSH("h0", ssh_options=sshd.ssh_options, via=root)  # the key is one that root can read

            assert (await whoami(tunnel))[0] == user


async def test_sudo_by_sudo_with_a_password_for_each(there: trickle.abc.Tunnel, user: str, other: str) -> None:
    with sudo.rules(
        f'Defaults env_keep += "{MARK}"',
        f"{user} ALL=({other}) ALL",
        f"{other} {ALL} ALL",
    ):
        first = trickle.Sudo(other, via=there, password=PASSWORD)
        assert await whoami(trickle.Sudo(via=first, password=OTHER_PASSWORD)) == ("root", "/root")

        for second, right in ((PASSWORD, first), (OTHER_PASSWORD, dataclasses.replace(first, password="wrong"))):
            error = await error_of(trickle.Sudo(via=right, password=second))
            assert error.reason == "wrong password"


async def test_sudo_by_sudo_to_the_same_user(user: str) -> None:
    with rules(user, f"{ALL} ALL"):
        first = trickle.Sudo(via=as_user(user), password=PASSWORD)

        assert (await whoami(trickle.Sudo(via=first, password="root is not asked")))[0] == "root"


# ---- tickets


TICKET = """
import getpass, os, pwd, subprocess, sys, trio, trickle
user = pwd.getpwnam(sys.argv[1])
password = getpass.getpass()

async def whoami(tunnel):
    try:
        async with trickle.open_host(tunnel, connect_timeout=60) as host:
            return host.info.user
    except trickle.ConnectError as exc:
        return exc.reason

trio.run(whoami, trickle.Local(python=sys.argv[2]))  # what is imported later may be where the user cannot read
os.initgroups(user.pw_name, user.pw_gid)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.environ["HOME"] = user.pw_dir
os.chdir("/")
subprocess.run(["sudo", "-k"])
print("before:", trio.run(whoami, trickle.Sudo()))
subprocess.run(["sudo", "-S", "-p", "", "-v"], input=password + "\\n", text=True, check=True)
print("after:", trio.run(whoami, trickle.Sudo()))
print("again:", trio.run(whoami, trickle.Sudo()))
elsewhere = subprocess.run(["sudo", "-n", "true"], start_new_session=True, stderr=subprocess.DEVNULL)
print("in another session:", elsewhere.returncode)
print("with the password:", trio.run(whoami, trickle.Sudo(password=password)))
print("with another one:", trio.run(whoami, trickle.Sudo(password="wrong")))
print("still:", trio.run(whoami, trickle.Sudo()))
subprocess.run(["sudo", "-K"])
"""


@pytest.mark.parametrize("setting", ["use_pty", "!use_pty"])
def test_a_password_that_was_given_in_this_terminal_holds(setting: str, user: str, tmp_path: Path) -> None:
    (tmp_path / "controller.py").write_text(TICKET)
    with defaults(user, setting, "timestamp_type=tty"):
        said, _ = run_on_a_terminal([sys.executable, str(tmp_path / "controller.py"), user, PYTHON], f"{PASSWORD}\n")

    assert said.splitlines() == [
        "before: password needed",
        "after: root",
        "again: root",
        "in another session: 1",
        "with the password: root",
        "with another one: wrong password",
        "still: root",
    ]


def test_the_example_asks_once_for_many_hosts(
    user: str, piped_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {piped_sshd.ssh_config} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    example = [sys.executable, str(ROOT / "examples" / "sudo.py"), "h0", "h1"]

    with rules(user, f"{ALL} ALL"):
        right, shown = run_on_a_terminal(example, f"{PASSWORD}\n")
        wrong, _ = run_on_a_terminal(example, "wrong\n")
        none, _ = run_on_a_terminal(example, "\n")

    assert [line.partition(": ")[0] for line in right.splitlines()] == ["sudo:h0", "sudo:h1"]
    assert user in right
    assert shown.count("sudo password") == 1 and PASSWORD not in shown
    assert wrong.count("sudo does not take the password") == 2
    assert none.count("sudo asks for a password there") == 2


# ---- cancelled, and killed


@pytest.mark.parametrize(
    "function",
    [
        torture.sleep,
        torture.gil_held_in_c,
        torture.child_in_a_new_session,
        torture.child_under_timeout,
        torture.swallows_every_base_exception,
        torture.ignores_signals,
    ],
    ids=lambda function: function.__name__,
)
async def test_the_ladder_reaches_what_runs_behind_sudo(
    function: Callable[[str], object], there: trickle.abc.Tunnel, user: str, shared: Path
) -> None:
    verdict = torture.TABLE[function]
    grace_period = 0.5 if verdict == "killed" else 60.0
    with rules(user, f"{ALL} ALL"):
        async with trickle.open_host(trickle.Sudo(via=there, password=PASSWORD)) as host:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.options(grace_period=grace_period).call, function, str(shared / "pids"))
                pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
                nursery.cancel_scope.cancel()

            assert not [pid for pid in pids if is_running(pid)]
            assert host.statistics().verdicts == {verdict: 1}
            assert await host.call(work.add, 1, 2) == 3


def held_at_the_prompt(user: str, asked: Path) -> trickle.Sudo:
    """A sudo whose prompt goes into a file, so that it waits for its answer."""
    via = as_user(user)
    words = ("sh", "-c", 'exec "$@" 2>"$0"', str(asked), *via.argv)
    return trickle.Sudo(via=trickle.Command(words, name="there"), password=PASSWORD)


def slow_python(shared: Path) -> str:
    """The path of a Python that starts when it may, and says when it waits for that."""
    path = shared / "python"
    path.write_text(
        f'#!/bin/sh\necho $$ >{shared}/starts\nwhile [ ! -e {shared}/go ]; do sleep 0.02; done\nexec {PYTHON} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


async def said(path: Path) -> None:
    """Return when something is in the file."""
    while not path.exists() or not path.read_text():
        await trio.sleep(0.01)


def kill_sudo() -> None:
    assert sudo.sudo_processes()
    for pid in sudo.sudo_processes():
        os.kill(pid, signal.SIGKILL)


async def test_a_sudo_that_is_killed_at_its_prompt_leaves_nothing(user: str, shared: Path) -> None:
    with rules(user, f"{ALL} ALL"):
        async with trickle.open_host(held_at_the_prompt(user, shared / "asked"), wait=False) as host:
            await said(shared / "asked")
            kill_sudo()
            with pytest.raises(trickle.ConnectError) as caught:
                await host.wait_connected()

    assert caught.value.reason == "killed"


async def test_a_sudo_that_is_killed_with_the_password_in_hand_leaves_nothing(user: str) -> None:
    with defaults(user):
        async with trickle.open_host(trickle.Sudo(via=as_user(user), password="wrong"), wait=False) as host:
            while host._core.link.stage != "waiting for the password to be taken":  # a wrong one takes sudo two seconds
                await trio.sleep(0.001)
            kill_sudo()
            with pytest.raises(trickle.ConnectError) as caught:
                await host.wait_connected()

    assert caught.value.reason == "killed"


@pytest.mark.parametrize("setting", ["log_output", "!log_output"])
async def test_a_sudo_that_is_killed_before_the_agent_answers_leaves_nothing(
    setting: str, user: str, shared: Path
) -> None:
    with defaults(user, setting, f"iolog_dir={shared}/log"):
        tunnel = trickle.Sudo(via=as_user(user), password=PASSWORD, python=slow_python(shared))
        with contextlib.suppress(trickle.ConnectError, trickle.HostLost):  # it may live on without its sudo
            async with trickle.open_host(tunnel, wait=False) as host:
                await said(shared / "starts")
                kill_sudo()
                (shared / "go").touch()
                await host.call(work.add, 1, 2)


@pytest.mark.parametrize("setting", ["log_output", "!log_output"])
async def test_a_sudo_that_is_killed_in_mid_call_leaves_nothing(setting: str, user: str, shared: Path) -> None:
    with defaults(user, setting, f"iolog_dir={shared}/log"):
        tunnel = trickle.Sudo(via=as_user(user), password=PASSWORD)
        with contextlib.suppress(trickle.HostLost):  # it may live on without its sudo
            async with trickle.open_host(tunnel) as host, trio.open_nursery() as nursery:
                nursery.start_soon(call_until_lost, host, shared / "pids")
                pids = [int(pid) for pid in (await file_appears(shared / "pids")).split()]
                kill_sudo()
                if setting == "log_output":  # then all goes through it
                    for pid in pids:
                        await process_ends(pid)
                nursery.cancel_scope.cancel()

        for pid in pids:
            await process_ends(pid)


async def call_until_lost(host: trickle.Host, path: Path) -> None:
    with contextlib.suppress(trickle.HostLost):
        await host.call(work.start_children, str(path))


CONTROLLER = """
import sys, trio, trickle
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.end_to_end import test_sudo

async def main():
    {does}

trio.run(main)
"""


async def run_controller(does: str, until: Path, directory: Path) -> None:
    """Run a program, and kill it as soon as the file says something."""
    script = directory / "controller.py"
    script.write_text(CONTROLLER.format(does=does))
    process = await trio.lowlevel.open_process([sys.executable, str(script), str(ROOT)])
    try:
        await said(until)
    finally:
        process.kill()
        await process.wait()


async def test_a_controller_that_is_killed_at_the_prompt_leaves_nothing(
    user: str, shared: Path, tmp_path: Path
) -> None:
    asked = shared / "asked"
    does = f"""
    async with trickle.open_host(test_sudo.held_at_the_prompt({user!r}, Path({str(asked)!r})), wait=False) as host:
        await host.wait_connected()
"""
    with rules(user, f"{ALL} ALL"):
        await run_controller(does, asked, tmp_path)
        while sudo.sudo_processes():
            await trio.sleep(0.01)


async def test_a_controller_that_is_killed_in_mid_call_leaves_nothing_behind_sudo(
    user: str, shared: Path, tmp_path: Path
) -> None:
    pids = shared / "pids"
    does = f"""
    tunnel = trickle.Sudo(via=test_sudo.as_user({user!r}), password=test_sudo.PASSWORD)
    async with trickle.open_host(tunnel) as host:
        await host.call(test_sudo.work.start_children, {str(pids)!r})
"""
    with rules(user, f"{ALL} ALL"):
        await run_controller(does, pids, tmp_path)
        for pid in pids.read_text().split():
            await process_ends(int(pid))
        while sudo.sudo_processes():
            await trio.sleep(0.01)
