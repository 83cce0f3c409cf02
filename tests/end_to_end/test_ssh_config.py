"""What the user's ssh_config says holds; but it changes nothing of what runs, makes us no master, and asks nobody."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import leftovers, work
from tests import sshd as sshd_module
from tests.hosts import file_appears, process_ends
from tests.sshd import Sshd
from tests.terminals import run_on_a_terminal


def host_of(sshd: Sshd, alias: str = "h0", *options: str) -> trickle.SSH:
    return trickle.SSH(alias, name="web1", ssh_options=(*options, *sshd.ssh_options))


CONFIGS = {
    "a master is wanted": "ControlMaster auto\nControlPath {there}/cm-%C\nControlPersist 60",
    "a master is wanted by all means": "ControlMaster yes\nControlPath {there}/cm-%C",
    "a master would be asked about": "ControlMaster autoask\nControlPath {there}/cm-%C",
    "a master that is gone": "ControlMaster auto\nControlPath {there}/stale",
    "another command": "RemoteCommand touch {there}/ran; exit 1",
    "another command on a terminal": "RequestTTY force\nRemoteCommand touch {there}/ran; exit 1",
    "a terminal": "RequestTTY yes",
    "a terminal by all means": "RequestTTY force",
    "an escape character": "RequestTTY force\nEscapeChar ~",
    "no command": "SessionType none",
    "a subsystem": "SessionType subsystem",
    "no stdin": "StdinNull yes",
    "in the background": "ForkAfterAuthentication yes",
    "a port that is taken": "ExitOnForwardFailure yes\nLocalForward 127.0.0.1:{port} 127.0.0.1:1",
    "forwardings of all kinds": "DynamicForward 127.0.0.1:{port}\nRemoteForward 127.0.0.1:{port} 127.0.0.1:1\n"
    "ForwardAgent yes\nForwardX11 yes\nExitOnForwardFailure yes",
    "a command here that prints": "PermitLocalCommand yes\n"
    "LocalCommand echo noise from here; echo more >&2; touch {there}/local",
    "all there is to debug": "LogLevel DEBUG3",
    "nothing to say": "LogLevel QUIET",
    "a picture of the key": "VisualHostKey yes\nLogLevel INFO",
    "questions allowed": "BatchMode no\nNumberOfPasswordPrompts 3\nStrictHostKeyChecking ask",
    "variables": "SendEnv LANG LC_* HOME\nSetEnv TRICKLE_OTHER=1",
    "a condition": 'Match exec "cat; echo noise; touch {there}/matched"\n  Compression yes',
    "keys for an agent": "AddKeysToAgent ask",
    "options that it does not know": "IgnoreUnknown UseKeychain\nUseKeychain yes",
    "signs of life": "ServerAliveInterval 1\nServerAliveCountMax 1\nTCPKeepAlive no",
}


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_call_works_whatever_ssh_config_says(name: str, sshd: Sshd, shared: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(shared / "stale"))
        extra = CONFIGS[name].format(there=shared, port=taken.getsockname()[1])
        async with trickle.open_host(host_of(sshd.variant("user", extra)), connect_timeout=60) as host:
            assert await host.call(work.size_of, bytes(range(256)) * 1000) == 256_000

    assert not (shared / "ran").exists()
    assert not [path for path in shared.iterdir() if path.name.startswith("cm-")]
    assert ("LocalCommand" in extra) == (shared / "local").exists()
    assert ("Match" in extra) == (shared / "matched").exists()


@pytest.mark.parametrize("word", ["LogLevel DEBUG3", "LogLevel QUIET", "VisualHostKey yes"])
async def test_an_error_is_told_apart_whatever_else_ssh_says(word: str, sshd: Sshd) -> None:
    tunnel = trickle.SSH("h0", ssh_options=sshd.variant("user", word).ssh_options, python="/no/such/python")

    with pytest.raises(trickle.ConnectError, match="h0: ") as caught:
        async with trickle.open_host(tunnel):
            pass

    assert (caught.value.reason, caught.value.exit_status) == ("no Python", 127)


# ---- masters


@pytest.fixture
def master(sshd: Sshd) -> Iterator[Sshd]:
    """A master of this test's own."""
    with sshd_module.mastered_sshd(sshd) as mastered:
        assert mastered.master_pid is not None
        with leftovers.daemon(mastered.master_pid):
            yield mastered


def logins(sshd: Sshd) -> int:
    return sshd.log.read_text().count("Accepted publickey")


async def test_a_live_master_is_used(master: Sshd) -> None:
    config = master.variant("auto", "ControlMaster auto")
    before = logins(master)

    async with trickle.open_group(
        trickle.SSH(alias, ssh_options=config.ssh_options) for alias in ("h0", "h0.")
    ) as group:
        del group
    async with trickle.open_host(host_of(config)) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert logins(master) == before


async def test_the_death_of_the_master_loses_the_host_and_ends_its_work(master: Sshd, public_directory: Path) -> None:
    directory = public_directory / "master-death"
    directory.mkdir()
    directory.chmod(0o777)

    async with trickle.open_host(host_of(master)) as host:
        with pytest.raises(trickle.HostLost, match="web1: the connection ended"):
            async with trio.open_nursery() as nursery:

                async def kill_master() -> None:
                    await file_appears(directory / "pids")
                    assert master.master_pid is not None
                    os.kill(master.master_pid, signal.SIGKILL)

                nursery.start_soon(kill_master)
                try:
                    await host.call(work.start_children, str(directory / "pids"))
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
    for pid in (directory / "pids").read_text().split():
        await process_ends(int(pid))


# ---- ways through others


async def test_a_jump_host_of_ssh_config(sshd: Sshd) -> None:
    config = sshd.variant("jump", "Host h5\n  ProxyJump h0\nHost h6\n  ProxyJump h0,h1\nHost *\n")
    before = logins(sshd)

    for alias, count in (("h5", 2), ("h6", 3)):
        async with trickle.open_host(trickle.SSH(alias, ssh_options=config.ssh_options)) as host:
            assert await host.call(work.add, 1, 2) == 3
        assert logins(sshd) == before + count
        before += count


async def test_a_jump_host_of_the_tunnel(sshd: Sshd) -> None:
    before = logins(sshd)

    async with trickle.open_host(host_of(sshd, "h5", "-J", "h0")) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert logins(sshd) == before + 2


async def test_a_jump_host_that_cannot_be_reached_is_named(sshd: Sshd) -> None:
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(host_of(sshd, "h5", "-J", "no-such-host.invalid")):
            pass

    assert caught.value.reason == "name lookup"
    assert "no-such-host.invalid" in str(caught.value)


async def test_a_proxy_command(sshd: Sshd, tmp_path: Path) -> None:
    proxy = tmp_path / "proxy"
    proxy.write_text(
        f"#!{sys.executable}\n"
        "import os, select, socket, sys\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').write(sys.argv[1])\n"
        "print('noise', file=sys.stderr)\n"
        f"link = socket.create_connection(('127.0.0.1', {sshd.port}))\n"
        "while True:\n"
        "    for ready in select.select([0, link], [], [])[0]:\n"
        "        data = link.recv(65536) if ready is link else os.read(0, 65536)\n"
        "        if not data: sys.exit()\n"
        "        os.write(1, data) if ready is link else link.sendall(data)\n"
    )
    proxy.chmod(0o755)

    async with trickle.open_host(host_of(sshd.variant("proxy", f"ProxyCommand {proxy} %n"))) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert (tmp_path / "asked").read_text() == "h0"


async def test_an_agent_with_the_keys(sshd: Sshd, tmp_path: Path) -> None:
    path = sshd.directory / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            await trio.sleep(0.01)
        subprocess.run(
            ["ssh-add", "-q", str(sshd.directory / "id")], env={**os.environ, "SSH_AUTH_SOCK": str(path)}, check=True
        )
        config = without_key(sshd, tmp_path, f"IdentityAgent {path}\nIdentitiesOnly no\n")
        async with trickle.open_host(host_of(config)) as host:
            assert await host.call(work.add, 1, 2) == 3
    finally:
        agent.terminate()
        agent.wait()


def without_key(sshd: Sshd, directory: Path, extra: str) -> Sshd:
    variant = sshd.variant("keyless", extra)
    lines = [line for line in variant.ssh_config.read_text().splitlines() if line.strip() != identity_of(sshd)]
    variant.ssh_config.write_text("\n".join(lines) + "\n")
    return variant


def identity_of(sshd: Sshd) -> str:
    return f"IdentityFile {sshd.directory}/id"


# ---- nobody is asked


JUMP = "Match originalhost h0\n  ProxyJump h7\n  IdentityFile {key}\nMatch originalhost h7\n  "
QUESTIONS = {
    "a passphrase": ("IdentityFile {there}/locked", "authentication"),
    "a password": ("PreferredAuthentications password", "authentication"),
    "whether to trust a host": ("UserKnownHostsFile {there}/none\nStrictHostKeyChecking ask", "host key unknown"),
    "the jump host's passphrase": (JUMP + "IdentityFile {there}/locked\nMatch all", "authentication"),
    "whether to trust a jump host": (
        JUMP + "UserKnownHostsFile {there}/none\n  StrictHostKeyChecking ask\nMatch all",
        "host key unknown",
    ),
}


@pytest.fixture
def asking(_sshd_directory: Path, login_user: str, tmp_path: Path) -> Iterator[Sshd]:
    """An sshd that takes passwords too, and a key of its own that is locked."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", str(tmp_path / "locked")], check=True
    )
    authorized = _sshd_directory / "authorized_locked"
    authorized.write_bytes((tmp_path / "locked.pub").read_bytes())
    extra = f"PasswordAuthentication yes\nAuthorizedKeysFile {authorized} {_sshd_directory}/authorized_keys\n"
    with sshd_module.piped_sshd(_sshd_directory, login_user, "asking", extra) as piped:
        yield piped


def config_that_asks(question: str, asking: Sshd, directory: Path) -> Sshd:
    """The sshd, by an ssh_config that lets ssh ask; the program that asks leaves a file."""
    askpass = directory / "askpass"
    askpass.write_text(f'#!/bin/sh\necho "$1" >>{directory}/asked\necho yes\n')
    askpass.chmod(0o755)
    extra, _ = QUESTIONS[question]
    extra = extra.format(there=directory, key=asking.directory / "id")
    return without_key(asking, directory, f"BatchMode no\n{extra}\n")


@pytest.mark.parametrize("question", QUESTIONS)
async def test_nobody_is_asked(question: str, asking: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_that_asks(question, asking, tmp_path)
    monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "askpass"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.setenv("DISPLAY", ":0")

    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(host_of(config), connect_timeout=60):
            pass

    assert not (tmp_path / "asked").exists()
    assert caught.value.reason == QUESTIONS[question][1]
    config.ssh("true")
    assert (tmp_path / "asked").exists()  # plain ssh does ask


CONTROLLER = """
import sys, trio, trickle

async def main():
    try:
        async with trickle.open_host(trickle.SSH("h0", ssh_options=sys.argv[1:]), connect_timeout=60):
            print("connected")
    except trickle.ConnectError as exc:
        print(exc.reason)

trio.run(main)
"""


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_is_asked_on_the_terminal(question: str, asking: Sshd, tmp_path: Path) -> None:
    config = config_that_asks(question, asking, tmp_path)

    ours = run_on_a_terminal([sys.executable, "-c", CONTROLLER, *config.ssh_options], until_asked=True)
    _, shown = run_on_a_terminal(["ssh", *config.ssh_options, "h0", "true"], until_asked=True)

    assert ours == (f"{QUESTIONS[question][1]}\n", "")
    assert "passphrase for" in shown or "password:" in shown or "continue connecting" in shown  # plain ssh asks
