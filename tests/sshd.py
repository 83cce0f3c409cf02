"""A private sshd for the tests: keys, configuration, a login and ways in.

The fixtures made of it are in end_to_end/conftest.py.
"""

import contextlib
import dataclasses
import itertools
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import require

ALIASES = tuple(f"h{number}" for number in range(20))
_masters = itertools.count()
MARK = "TRICKLE_TEST_MARK"  # leftovers.py looks for it; ssh carries it over

SSHD_CONFIG = """\
{port_lines}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile {directory}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 1000:30:2000
MaxSessions 1000
LogLevel VERBOSE
AcceptEnv {mark}
"""

SSH_CONFIG = """\
Host {aliases}
  HostName 127.0.0.1
  HostKeyAlias trickle-tests
  User {user}
  IdentityFile {directory}/id
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  KexAlgorithms curve25519-sha256
  LogLevel ERROR
  SendEnv {mark}
{way_in}
"""


@dataclasses.dataclass(frozen=True)
class Sshd:
    """A way into an sshd of ours: ``SSH(sshd.alias(3), ssh_options=sshd.ssh_options)``."""

    directory: Path
    user: str
    ssh_config: Path
    log: Path
    port: int | None = None
    pid: int | None = None
    master_pid: int | None = None

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Words for ssh's command line, before the host."""
        return ("-F", str(self.ssh_config))

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names of hosts, ``h0`` to ``h19``, which all lead to the same sshd."""
        return ALIASES

    def alias(self, number: int = 0) -> str:
        """The name of one host."""
        return ALIASES[number]

    def ssh(self, *words: str, alias: str = "h0") -> "subprocess.CompletedProcess[str]":
        """Run a command over there with plain ssh, to look at things without trickle."""
        return subprocess.run(
            ["ssh", *self.ssh_options, alias, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def variant(self, name: str, extra: str) -> "Sshd":
        """The same sshd by an ssh_config of its own, where *extra* lines come first and so win."""
        path = self.directory / f"ssh_config.{name}"
        path.write_text(f"{extra}\n{self.ssh_config.read_text()}")
        return dataclasses.replace(self, ssh_config=path)


def sshd_binary() -> str:
    """The absolute path of sshd (it insists on one); skips the test when there is none."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin")
    if path is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        require("ssh", "OpenSSH (sshd, ssh, ssh-keygen) is not installed on this machine")
    return path


@contextlib.contextmanager
def login_user(home: Path, kind: str = "test") -> Iterator[str]:
    """The name of somebody to log in as: made for these tests if we are root, else ourselves.

    Not root itself: its shell runs start-up files of this machine, which are none of our business.
    """
    if os.getuid() != 0 or not shutil.which("useradd"):
        yield pwd.getpwuid(os.getuid()).pw_name
        return
    _remove_stale_users()
    name = f"trickle-{kind}-{os.getpid()}"
    account("useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", name)
    account("usermod", "-p", "*", name)  # not "!", which sshd without PAM takes for a locked account
    entry = pwd.getpwnam(name)
    home.mkdir(exist_ok=True)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    try:
        yield name
    finally:
        account("userdel", "--force", name, check=False)


@contextlib.contextmanager
def login_shell(user: str, shell: str) -> Iterator[None]:
    """Another login shell for somebody whom login_user made."""
    before = pwd.getpwnam(user).pw_shell
    account("usermod", "--shell", shell, user)
    try:
        yield
    finally:
        account("usermod", "--shell", before, user)


@contextlib.contextmanager
def password(user: str, text: str) -> Iterator[str]:
    """A password for somebody whom login_user made."""
    account("chpasswd", input=f"{user}:{text}\n")
    try:
        yield text
    finally:
        account("usermod", "-p", "*", user)


def account(*command: str, check: bool = True, input: str = "") -> None:
    """Run a command that changes the users of this machine."""
    for attempts_left in reversed(range(20)):  # /etc/passwd is locked while another session does the same
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        if done.returncode == 0 or "lock" not in done.stderr:
            break
        if attempts_left:
            time.sleep(0.25)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr}")


def _remove_stale_users() -> None:
    """Remove users of test sessions that were killed before they could."""
    for entry in pwd.getpwall():
        prefix, _, pid = entry.pw_name.rpartition("-")
        if prefix.startswith("trickle-") and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            account("userdel", "--force", entry.pw_name, check=False)


def prepare(directory: Path) -> None:
    """Make the keys that all forms of the sshd share."""
    directory.chmod(0o755)  # sshd reads authorized_keys as the user who logs in
    for name in ("host_key", "id"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name)], check=True
        )
    shutil.copy(directory / "id.pub", directory / "authorized_keys")
    (directory / "known_hosts").write_text(f"trickle-tests {(directory / 'host_key.pub').read_text()}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def write_configs(directory: Path, name: str, *, user: str, way_in: str, port: int | None = None) -> tuple[Path, Path]:
    """Write ``sshd_config.NAME`` and ``ssh_config.NAME``; return both paths."""
    port_lines = f"Port {port}\nListenAddress 127.0.0.1" if port else ""
    sshd_config = directory / f"sshd_config.{name}"
    sshd_config.write_text(SSHD_CONFIG.format(directory=directory, port_lines=port_lines, mark=MARK))
    ssh_config = directory / f"ssh_config.{name}"
    ssh_config.write_text(
        SSH_CONFIG.format(aliases=" ".join(ALIASES), user=user, directory=directory, way_in=way_in, mark=MARK)
    )
    return sshd_config, ssh_config


@contextlib.contextmanager
def listening_sshd(
    directory: Path, user: str, name: str = "port", extra: str = "", wanted_port: int | None = None
) -> Iterator[Sshd]:
    """An sshd on a free port of loopback, or on that port, ended by its pid.

    *extra* lines of its sshd_config make a host of its own kind, with a *name* of its own.
    """
    binary = sshd_binary()
    log = directory / "sshd.log"
    for _ in range(5):  # the port is free when it is picked; somebody else may still be faster
        port = wanted_port or free_port()
        sshd_config, ssh_config = write_configs(directory, name, user=user, port=port, way_in=f"  Port {port}")
        with sshd_config.open("a") as file:
            file.write(extra)
        with log.open("ab") as output:
            daemon = subprocess.Popen(
                [binary, "-D", "-e", "-f", str(sshd_config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_without_mark(),
            )
        if _answers(daemon, port):
            break
    else:
        raise RuntimeError(f"sshd does not start: {log.read_text()}")
    try:
        yield Sshd(directory, user, ssh_config, log, port=port, pid=daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()


@contextlib.contextmanager
def piped_sshd(directory: Path, user: str, name: str = "pipe", extra: str = "") -> Iterator[Sshd]:
    """A real ssh and a real sshd with a pipe between them: no port, no daemon, no root.

    *extra* lines of its sshd_config make a host of its own kind, with a *name* of its own.
    """
    log = directory / "sshd-inetd.log"
    way_in = f"  ProxyCommand {sshd_binary()} -i -E {log} -f {directory}/sshd_config.{name}"
    sshd_config, ssh_config = write_configs(directory, name, user=user, way_in=way_in)
    sshd_config.write_text(f"{extra}\n{sshd_config.read_text()}")  # the first that it reads counts
    yield Sshd(directory, user, ssh_config, log)


@contextlib.contextmanager
def mastered_sshd(listening: Sshd) -> Iterator[Sshd]:
    """The listening sshd by way of a ControlMaster that is live before the test begins."""
    name = f"master{next(_masters)}"  # a test may have one of its own beside the session's
    way_in = f"  Port {listening.port}\n  ControlPath {listening.directory}/{name}"
    _, ssh_config = write_configs(listening.directory, name, user=listening.user, port=listening.port, way_in=way_in)
    master = subprocess.Popen(
        ["ssh", "-F", str(ssh_config), "-M", "-N", "-T", "h0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=_without_mark(),
    )
    try:
        deadline = time.monotonic() + 30
        check = ["ssh", "-F", str(ssh_config), "-O", "check", "h0"]
        while subprocess.run(check, capture_output=True).returncode:
            if master.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the ControlMaster does not start: {listening.log.read_text()}")
        mastered = dataclasses.replace(listening, ssh_config=ssh_config, master_pid=master.pid)
        mastered.ssh("true")  # by then all the processes of the master's own session are there
        yield mastered
    finally:
        master.terminate()
        master.wait()


@contextlib.contextmanager
def key_of_ones_own(sshd: Sshd, user: str) -> Iterator[tuple[str, ...]]:
    """Options for an ssh that the user who has logged in runs over there, with a key in that user's home."""
    entry = pwd.getpwnam(user)
    key = Path(entry.pw_dir) / "trickle_id"
    key.write_bytes((sshd.directory / "id").read_bytes())
    key.chmod(0o600)
    os.chown(key, entry.pw_uid, entry.pw_gid)
    config = Path(entry.pw_dir) / "trickle_ssh_config"
    config.write_text(sshd.ssh_config.read_text().replace(f"{sshd.directory}/id\n", f"{key}\n"))
    try:
        yield ("-F", str(config))
    finally:
        key.unlink()
        config.unlink()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(daemon: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + 30
    while daemon.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            return probe.recv(8).startswith(b"SSH-")
    return False


def _without_mark() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != MARK}
