"""Every way in which connecting fails, provoked on the real thing: each is known for what it is, and told well.

One row for each cause in the table of trickle/_diagnosis.py, and for some of them more than one.  Stand-ins, which are
shell scripts, are a Python 3.5, a router, and a command line that shows what it does not know.
"""

import contextlib
import dataclasses
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trickle
from tests import containers, pythons
from tests import sshd as sshd_module
from tests import sudo as sudo_module
from tests.requirements import require
from tests.sshd import Sshd
from trickle import _diagnosis
from trickle._diagnosis import Cause, causes
from trickle.abc import Tunnel

LONG = 100.0  # seconds to connect in: what ends by itself never takes so long
NOBODY = 65534
THERE = "192.0.2.1"  # an address for documentation, in a namespace without a way there
LATER = "waiting for the agent"
NOWHERE = 'ForceCommand PATH=/nowhere; eval "$SSH_ORIGINAL_COMMAND"'


class Lab:
    """What the cases need of this machine; each part is made when the first case asks for it."""

    def __init__(self, request: pytest.FixtureRequest, directory: Path) -> None:
        self._request = request
        self.directory = directory
        self.cleanup = contextlib.ExitStack()

    def python27(self) -> str:
        return str(self._request.getfixturevalue("python27"))

    def docker(self) -> containers.Docker:
        engine: containers.Docker = self._request.getfixturevalue("docker")
        return engine

    def podman(self) -> containers.Podman:
        engine: containers.Podman = self._request.getfixturevalue("podman")
        return engine

    def path_with(self, **programs: str) -> trickle.Command:
        """A machine on which only these programs can be found."""
        for name, program in programs.items():
            (self.directory / name).symlink_to(program)
        return trickle.Command(["env", f"PATH={self.directory}"], name="web1")

    # ---- ssh

    def sshd(self) -> Sshd:
        sshd: Sshd = self._request.getfixturevalue("sshd")
        return sshd

    def ssh(self, *options: str) -> trickle.SSH:
        """A host that could be reached, but for these options."""
        return trickle.SSH("h0", ssh_options=(*options, *self.sshd().ssh_options), name="web1")

    def ssh_to(self, extra: str) -> trickle.SSH:
        """An sshd of this test's own, with *extra* lines in its configuration."""
        sshd_directory = self._request.getfixturevalue("_sshd_directory")
        user = self._request.getfixturevalue("login_user")
        listening = sshd_module.listening_sshd(sshd_directory, user, "own", extra + "\n")
        own = self.cleanup.enter_context(listening)
        assert own.port is not None
        if "MaxStartups" in extra:  # take the only place
            first = b""
            while not first.startswith(b"SSH-"):  # an earlier connection may not be over yet
                held = self.cleanup.enter_context(socket.create_connection(("127.0.0.1", own.port)))
                first = held.recv(4)
        return trickle.SSH("h0", ssh_options=own.ssh_options, name="web1")

    def network(self, setup: str) -> trickle.Command:
        """A namespace of the test's own, which ends with what runs in it."""
        if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
            require("netns", "network namespaces need root, unshare and ip")
        return trickle.Command(["unshare", "-n", "-m", "sh", "-c", f'{setup}; exec "$@"', "sh"])

    def ssh_in(self, setup: str, host: str = THERE, *options: str) -> trickle.SSH:
        ssh_options = ("-F", "/dev/null", *options)
        return trickle.SSH(host, ssh_options=ssh_options, via=self.network(setup), name="web1")

    # ---- users

    def user(self, uid: int = NOBODY, *words: str) -> trickle.Command:
        """Be another user of this machine."""
        if os.getuid() != 0:
            require("sudo", "only root can be other users")
        if not shutil.which("setpriv"):
            require("sudo", "no setpriv on this machine")
        return trickle.Command(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words])

    def sudo(self, *rules: str, password: str | None = None) -> trickle.Sudo:
        """sudo for the user of the tests, with these rules in sudoers: USER stands for its name."""
        sudo_module.need_sudo()
        user: str = self._request.getfixturevalue("login_user")
        self.cleanup.enter_context(sudo_module.rules(*(rule.replace("USER", user) for rule in rules)))
        return trickle.Sudo(password=password, via=self.user(pwd.getpwnam(user).pw_uid), name="web1")


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to fail.

    Args:
      cause: what it is to be known for.
      happened: the message's first part, behind the host's name.
      says: what stands in its last lines, which come from the host; a regular expression.
      exit_status: the tunnel's; one of these, where it ends at the same time as it is ended.
      provoke: gives a tunnel that fails so.
      stage: how far it comes.
      connect_timeout: seconds.
    """

    cause: Cause
    happened: str
    says: str
    exit_status: int | tuple[int | None, ...] | None
    provoke: Callable[[Lab], Tunnel]
    stage: str = LATER
    connect_timeout: float = LONG


def known_by(reason: str, sign: str | int = "") -> Cause:
    """The one cause with this reason that is known by this status alone, or that has this text in it."""
    found = []
    for cause in causes():
        if isinstance(sign, int):
            fits = sign in cause.statuses and cause.says is None
        else:
            fits = sign in f"{cause.happened}\n{cause.says.pattern if cause.says is not None else ''}"
        if cause.reason == reason and fits:
            found.append(cause)
    assert len(found) == 1, (reason, sign, found)
    return found[0]


def shell(script: str, python: str | None = None) -> trickle.Command:
    """A host whose login does *script*; "$@" is what it was asked to run."""
    return trickle.Command(["sh", "-c", script, "login"], name="web1", python=python)


def local(python: str) -> trickle.Command:
    return trickle.Command(["env"], name="web1", python=python)


def docker_command(lab: Lab, **changes: object) -> trickle.Docker:
    lab.docker()
    options = {"image": containers.IMAGE, "run_options": ("--network", "none"), **changes}
    return trickle.Docker("web1", **options)  # type: ignore[arg-type]


def running(lab: Lab) -> str:
    """The name of a container that runs."""
    name = f"trickle-{os.getpid()}-{lab.directory.name}"
    lab.docker().run("run", "--detach", "--name", name, "--network", "none", containers.IMAGE, "sleep", "3600")
    lab.cleanup.callback(lab.docker().remove, name)
    return name


# ---- how to provoke what takes more than a line


def old_python(lab: Lab) -> Tunnel:
    """Python 3.4 and 3.5 know -I, and so get to our first words.  None is to be had any more: this does as they do."""
    python = lab.directory / "python3.5"
    python.write_text("#!/bin/sh\nexit 83\n")
    python.chmod(0o755)
    return local(str(python))


def python_without_its_library(lab: Lab) -> Tunnel:
    """A Python as an upgrade leaves it that has broken off: the program, and of its library hardly anything."""
    original = Path(pythons.system_python())
    major, minor, _ = pythons.version_of(str(original)) or (0, 0, 0)
    python, library = lab.directory / "bin" / "python3", lab.directory / "lib" / f"python{major}.{minor}"
    for directory in (python.parent, library):
        directory.mkdir(parents=True)
    shutil.copy(original.resolve(), python)
    (library / "os.py").touch()  # by which it knows that this is its library
    where = f"LD_LIBRARY_PATH={original.resolve().parent.parent}/lib"
    return trickle.Command(["env", where], name="web1", python=str(python))


def only_a_broken_python(lab: Lab) -> Tunnel:
    return lab.path_with(sh="/bin/sh", python3=str(python_without_its_library(lab).python))


def changed_key(lab: Lab) -> Tunnel:
    key = lab.directory / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (lab.directory / "known").write_text(f"trickle-tests {key.with_suffix('.pub').read_text()}")
    return lab.ssh("-o", f"UserKnownHostsFile={lab.directory}/known")


def wrong_key(lab: Lab) -> Tunnel:
    key = lab.directory / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = lab.directory / "config"
    lines = lab.sshd().ssh_config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "IdentityFile" not in line))
    return trickle.SSH("h0", ssh_options=("-F", str(config), "-i", str(key)), name="web1")


def behind_a_jump_host(lab: Lab) -> Tunnel:
    words = " ".join(["ssh", *lab.sshd().ssh_options, "-W", "%h:%p", "h1"])
    return lab.ssh("-p", "1", "-o", f"ProxyCommand={words}")


def lookup(lab: Lab, name: str, text: str) -> Tunnel:
    file = lab.directory / "etc"
    file.write_text(text)
    return lab.ssh_in(f"ip link set lo up; mount --bind {file} /etc/{name}", "nowhere.invalid")


SILENT = f"""
ip link add v0 type veth peer name v1; ip addr add 192.0.2.2/24 dev v0; ip link set v0 up; ip link set v1 up
ip neigh add {THERE} lladdr 02:00:00:00:00:01 dev v0 nud permanent
""".strip().replace("\n", "; ")


def stopped_container(lab: Lab) -> Tunnel:
    name = running(lab)
    lab.docker().run("kill", name)
    return trickle.DockerExec(name, name="web1")


def paused_container(lab: Lab) -> Tunnel:
    name = running(lab)
    lab.docker().run("pause", name)
    lab.cleanup.callback(lab.docker().run, "unpause", name)
    return trickle.DockerExec(name, name="web1")


def engine_of_another(lab: Lab) -> Tunnel:
    where = f"DOCKER_HOST=unix://{lab.docker().socket}"
    return trickle.DockerExec("any", via=lab.user(NOBODY, "env", "HOME=/", where), name="web1")


def no_init(lab: Lab) -> Tunnel:
    """A podman whose configuration names an init program that is not there."""
    podman = lab.podman()
    configuration = lab.directory / "containers.conf"
    original = Path(podman.environment["CONTAINERS_CONF"]).read_text()
    configuration.write_text(re.sub("init_path = .*", 'init_path = "/nowhere/init"', original))
    via = trickle.Command(["env", f"CONTAINERS_CONF={configuration}"])
    return trickle.Docker("web1", image=containers.IMAGE, engine="podman", via=via)


def full_disk(lab: Lab) -> Tunnel:
    """An engine whose data are on a file system without room."""
    lab.docker()  # skips the test if there can be none
    place = lab.directory / "engine"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=True)
    lab.cleanup.callback(subprocess.run, ["umount", "--recursive", "--lazy", str(place)], check=True)
    engine = containers.Docker("docker", place, {"DOCKER_HOST": f"unix://{place}/docker.sock"})
    engine.start()
    lab.cleanup.callback(engine.stop)
    (lab.directory / "image").mkdir()
    (lab.directory / "image" / "file").write_text("an image needs something in it")
    archive = lab.directory / "image.tar"
    subprocess.run(["tar", "-C", str(lab.directory / "image"), "-cf", str(archive), "."], check=True)
    engine.run("import", str(archive), "tiny")
    with pytest.raises(OSError), open(place / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    via = trickle.Command(["env", f"DOCKER_HOST=unix://{place}/docker.sock"])
    return trickle.Docker("web1", image="tiny", via=via)


def little_memory(lab: Lab) -> Tunnel:
    """As little as makes a Python complain; with less, it does not even come to that."""
    python = pythons.system_python()
    for limit in range(6_000, 60_000, 500):
        script = f"ulimit -v {limit}; exec {python} -I -S -c 'import zlib, _signal, binascii; bytes(20_000_000)'"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        if done.stderr.endswith("MemoryError\n"):
            return shell(f'ulimit -v {limit}; exec "$@"', python=python)
    raise AssertionError("no limit makes it complain")


def killed_for_memory(lab: Lab) -> Tunnel:
    return docker_command(lab, run_options=("--network", "none", "--memory", "6m"))


def sudo_through_zsh(lab: Lab) -> Tunnel:
    zsh = shutil.which("zsh")
    if zsh is None:
        require("shells", "no zsh on this machine")
    through = trickle.Command(["env", "PATH=/nowhere", zsh, "-f", "-c"], shell=True)
    return trickle.Sudo(via=through, name="web1")


def german_sudo(lab: Lab) -> Tunnel:
    via = lab.user(NOBODY, "env", "LANGUAGE=de", "LC_ALL=C.UTF-8")
    done = subprocess.run([*via.argv, "sudo", "-n", "true"], capture_output=True, text=True)
    if "Passwort" not in done.stderr:
        require("sudo", "this sudo speaks no German")
    return trickle.Sudo(via=via, name="web1")


CASES = {
    # ---- finding a Python
    "none at all": Case(
        known_by("no Python", r"later;\s*$"), "it has no Python that we could find", r"found no Python", 83,
        lambda lab: lab.path_with(sh="/bin/sh"),
    ),
    "only an old one": Case(
        known_by("too old", "found no Python"), r"it has no Python 3.6 or later, only .*python3 \(Python 2.7.*\)",
        "found no Python", 83, lambda lab: lab.path_with(sh="/bin/sh", python3=lab.python27()),
    ),
    "python= is 3.5": Case(
        known_by("too old", 83), "its Python is older than 3.6", "", 83, old_python,
    ),
    "python= is 2.7": Case(
        known_by("too old", "Unknown option"), "its Python is older than 3.6", "Unknown option: -I", 2,
        lambda lab: local(lab.python27()),
    ),
    "python= is not there": Case(
        known_by("no Python", 127), "a command was not found there", "/no/such", 127,
        lambda lab: local("/no/such"),
    ),
    "python= cannot be run": Case(
        known_by("no Python", 126), "a command cannot be run there", "/etc/passwd", 126,
        lambda lab: local("/etc/passwd"),
    ),
    "python= is not there, behind sudo": Case(
        known_by("no Python", "sudo"), "there is no command /no/such there", "sudo: /no/such: command not found", 1,
        lambda lab: dataclasses.replace(lab.sudo("USER ALL=(ALL) NOPASSWD: ALL"), python="/no/such"),
    ),
    "python= is true": Case(
        known_by("not a Python", 0), "what was run there ended at once, and well: that is no Python", "", 0,
        lambda lab: local("/bin/true"),
    ),
    "a Python without its library": Case(
        known_by("no Python", "does not start"), "the Python there does not start", "encodings", 1,
        python_without_its_library,
    ),
    "only a Python without its library": Case(
        known_by("no Python", "that works"), r"it has no Python that works, only .*python3 \(does not start\)",
        "found no Python", 83, only_a_broken_python,
    ),
    # ---- what reads our bytes
    "a login that reads a byte": Case(
        known_by("stdin", 85), "something there read our stdin", "", 85,
        lambda lab: shell('head -c 1 >/dev/null; exec "$@"'),
    ),
    "a login that reads a line": Case(
        known_by("stdin", "ValueError"), "something there read our stdin", "ValueError", 1,
        lambda lab: lab.ssh_to('ForceCommand read line; eval "exec $SSH_ORIGINAL_COMMAND"'),
    ),
    "a login that reads all": Case(
        known_by("stdin", "StopIteration"), "something there read our stdin", "StopIteration", None,
        lambda lab: shell('cat >/dev/null; exec "$@"'), connect_timeout=5,
    ),
    "a shell": Case(
        known_by("not a Python", 86),
        "what answered is not the Python that was asked for: it took our bytes for commands", "", 86,
        lambda lab: lab.ssh_to("ForceCommand /bin/sh"),
    ),
    "an interactive Python": Case(
        known_by("not a Python", "<(stdin"),
        "what answered is a Python that reads commands, not the one that was asked for", "SyntaxError", (86, None),
        lambda lab: lab.ssh_to(f"ForceCommand {pythons.system_python()} -i"),
    ),
    "a router": Case(
        known_by("not a Python", "router"),
        "what answered is a command line that does not know our commands, such as a router's",
        "% Unknown command", None,
        lambda lab: shell('while read -r line; do echo "% Unknown command or computer name"; done'),
    ),
    "an echo": Case(
        known_by("echo"), "something there sends back what we send: .*", "", None, lambda lab: shell("exec cat"),
    ),
    "an account without a shell": Case(
        known_by("no shell"), "its account may not run commands", "currently not available", 1,
        lambda lab: lab.ssh_to("ForceCommand /usr/sbin/nologin"),
    ),
    "an account for files alone": Case(
        known_by("no shell"), "its account may not run commands", "sftp connections only", 1,
        lambda lab: lab.ssh_to("ForceCommand internal-sftp"),
    ),
    # ---- sudo
    "sudo, and no password given": Case(
        known_by("password needed"), "sudo asks for a password there", "sudo: a password is required", 1,
        lambda lab: lab.sudo("USER ALL=(ALL) ALL"),
    ),
    "sudo, and a wrong password": Case(
        known_by("wrong password"), "sudo does not take the password", "Sorry, try again", None,
        lambda lab: lab.sudo("USER ALL=(ALL) ALL", password="wrong"),
        stage="waiting for the password to be taken",
    ),
    "sudo that lets one try once": Case(
        known_by("wrong password"), "sudo does not take the password", "1 incorrect password attempt", 1,
        lambda lab: lab.sudo("Defaults:USER passwd_tries=1", "USER ALL=(ALL) ALL", password="wrong"),
        stage="waiting for the password to be taken",
    ),
    "sudo for somebody whom it does not know": Case(
        known_by("not in sudoers"), "sudo does not allow it to this user", "not in the sudoers file", 1,
        lambda lab: lab.sudo("Defaults:USER !authenticate"),
    ),
    "sudo for another command": Case(
        known_by("not in sudoers"), "sudo does not allow it to this user", "not allowed to execute", 1,
        lambda lab: lab.sudo("Defaults:USER !authenticate", "USER ALL=(ALL) /bin/true"),
    ),
    "sudo that wants a terminal": Case(
        known_by("requiretty"), "sudo wants a terminal there, and trickle has none", "must have a tty", 1,
        lambda lab: lab.sudo("Defaults:USER requiretty", "USER ALL=(ALL) NOPASSWD: ALL"),
    ),
    "sudo to a user who is not there": Case(
        known_by("no such user", "sudo"), "there is no such user", "unknown user", 1,
        lambda lab: dataclasses.replace(lab.sudo("USER ALL=(ALL) NOPASSWD: ALL"), user="nosuchuser"),
    ),
    "sudo that may not become root": Case(
        known_by("sudo"), "sudo did not run our command", "no new privileges", 1,
        lambda lab: trickle.Sudo(via=lab.user(NOBODY, "--no-new-privs"), name="web1"),
    ),
    "sudo in another language": Case(
        known_by("sudo"), "sudo did not run our command", "sudo: Ein Passwort ist notwendig", 1, german_sudo,
    ),
    "no sudo over there": Case(
        known_by("not installed", "not found|No such file"), "there is no sudo there", "sudo.*not found", 127,
        lambda lab: trickle.Sudo(via=trickle.SSH("h0", ssh_options=lab.ssh_to(NOWHERE).ssh_options), name="web1"),
    ),
    # ---- engines
    "no sudo where people use zsh": Case(
        known_by("not installed", "Unknown command"), "there is no sudo there", "command not found: sudo", 127,
        sudo_through_zsh,
    ),
    "no docker over there": Case(
        known_by("not installed", "not found|No such file"), "there is no docker there", "docker.*not found", 87,
        lambda lab: trickle.Docker("web1", image="any", via=lab.path_with(sh="/bin/sh")),
        stage="preparing to run any: pulling it",
    ),
    "no engine": Case(
        known_by("engine not running"), "the container engine does not answer", "Cannot connect to the Docker", 87,
        lambda lab: docker_command(lab, via=trickle.Command(["env", f"DOCKER_HOST=unix://{lab.directory}/no.sock"])),
        stage=f"preparing to run {containers.IMAGE}: pulling it",
    ),
    "an engine for others": Case(
        known_by("engine refused"), "this user may not use the container engine", "permission denied", 1,
        engine_of_another,
    ),
    "no such container": Case(
        known_by("no such container"), "there is no such container", "No such container", 1,
        lambda lab: trickle.DockerExec(f"none-{lab.docker().name}", name="web1"),
    ),
    "a container that has ended": Case(
        known_by("container not running"), "the container is not running", "is not running", 1, stopped_container,
    ),
    "a container that is paused": Case(
        known_by("container not running"), "the container is not running", "is paused", 1, paused_container,
    ),
    "no such user in the image": Case(
        known_by("no such user", "unable"), "there is no such user", "unable to find user nosuchuser", 1,
        lambda lab: docker_command(lab, user="nosuchuser"),
    ),
    "no such image": Case(
        known_by("no such image"), "the image is not there and cannot be pulled", "connection refused", 87,
        lambda lab: docker_command(lab, image="127.0.0.1:1/no/such"),
        stage="preparing to run 127.0.0.1:1/no/such: pulling it",
    ),
    "no init": Case(
        known_by("no init"), "its container engine finds no program to be the container's first process",
        "container-init binary not found", 125, no_init,
    ),
    "a full disk": Case(
        known_by("disk full"), "there is no room left on the engine's disk", "no space left on device", 1, full_disk,
    ),
    # ---- ssh
    "an option that ssh does not know": Case(
        known_by("ssh options"), "the ssh that was run has no option nonsense", "Bad configuration option", 255,
        lambda lab: lab.ssh("-o", "Nonsense=1"),
    ),
    "a name server that does not answer": Case(
        known_by("name lookup", "Temporary"), "the name nowhere.invalid could not be looked up just now",
        "Temporary failure in name resolution", 255, lambda lab: lookup(lab, "resolv.conf", "nameserver 127.0.0.1\n"),
    ),
    "a name that nobody has": Case(
        known_by("name lookup", "cannot be"), "the name nowhere.invalid cannot be looked up",
        "Could not resolve hostname", 255, lambda lab: lookup(lab, "nsswitch.conf", "hosts: files\n"),
    ),
    "a host key that has changed": Case(
        known_by("host key changed"), "its host key is not the one in known_hosts", "Host key verification failed",
        255, changed_key,
    ),
    "a host key that is not known": Case(
        known_by("host key unknown"), "its host key is not known", "Host key verification failed", 255,
        lambda lab: lab.ssh("-o", "UserKnownHostsFile=/dev/null"),
    ),
    "a key that is not let in": Case(
        known_by("authentication"), "it did not let us in", r"Permission denied \(publickey\)", 255, wrong_key,
    ),
    "a user who is not let in": Case(
        known_by("authentication"), "it did not let us in", r"Permission denied \(publickey\)", 255,
        lambda lab: lab.ssh_to("AllowUsers nobody"),
    ),
    "nobody listens": Case(
        known_by("refused"), "the connection was refused", "port 1: Connection refused", 255,
        lambda lab: lab.ssh("-p", "1"),
    ),
    "no network": Case(
        known_by("unreachable", "Network"), "it cannot be reached", "Network is unreachable", 255,
        lambda lab: lab.ssh_in("ip link set lo up"),
    ),
    "no route": Case(
        known_by("unreachable", "Network"), "it cannot be reached", "No route to host", 255,
        lambda lab: lab.ssh_in(f"ip link set lo up; ip route add unreachable {THERE}"),
    ),
    "a jump host that cannot reach it": Case(
        known_by("unreachable", "forwarding"), "the host on the way there cannot reach it", "stdio forwarding failed",
        255, behind_a_jump_host,
    ),
    "nothing at that address": Case(
        known_by("timed out", "Connection"), "nothing answered at its address", "Connection timed out", 255,
        lambda lab: lab.ssh_in(SILENT, THERE, "-o", "ConnectTimeout=1"),
    ),
    "too many logins at once": Case(
        known_by("too many sessions"), "the connection was closed before the login", "kex_exchange_identification",
        255, lambda lab: lab.ssh_to("MaxStartups 1:100:1"),
    ),
    "an sshd that is killed": Case(
        known_by("connection closed"), "it closed the connection", "closed by remote host|Broken pipe|reset by", 255,
        lambda lab: lab.ssh_to("ForceCommand kill -9 $PPID"),
    ),
    "an ssh that says nothing": Case(
        known_by("unknown", r"\A"), "ssh failed and did not say why", "", 255,
        lambda lab: lab.ssh("-o", "LogLevel=QUIET", "-p", "1"),
    ),
    # ---- anywhere
    "no memory": Case(
        known_by("out of memory"), "it has no memory left", "MemoryError", 1, little_memory,
    ),
    "no more processes": Case(
        known_by("too many processes"), "no process can be started there", "Cannot fork|fork: ", 2,
        lambda lab: trickle.Command([*lab.user(NOBODY - 1).argv, "prlimit", "--nproc=1"], name="web1"),
    ),
    "killed by the kernel": Case(
        known_by("killed", 137), "what we started there was killed", "", 137, killed_for_memory,
    ),
    "killed with -9": Case(
        known_by("killed", 137), "what we started there was killed", "", -9, lambda lab: shell("kill -9 $$"),
    ),
    "killed otherwise": Case(
        known_by("killed", "signal"), "the tunnel was killed by signal 15", "", -15, lambda lab: shell("kill $$"),
    ),
    "an ssh that is not installed": Case(
        known_by("not installed", "cannot run"), r"cannot run '/no/such/ssh' \(No such file or directory\)", "", None,
        lambda lab: trickle.Command(["/no/such/ssh"], name="web1"), stage="starting the tunnel",
    ),
    "a command that cannot be run": Case(
        known_by("not run"), r"cannot run '/etc/passwd' \(Permission denied\)", "", None,
        lambda lab: trickle.Command(["/etc/passwd"], name="web1"), stage="starting the tunnel",
    ),
    "nothing answers": Case(
        known_by("timed out", "no agent"), r"no agent answered within 2 s \(waiting for the agent\)", "Welcome", None,
        lambda lab: shell("echo Welcome; exec sleep 3600"), connect_timeout=2,
    ),
    "an end with nothing said": Case(
        known_by("unknown", "with status"), "the tunnel ended with status 7 before an agent answered", "", 7,
        lambda lab: shell("exit 7"),
    ),
    "an end that is none": Case(
        known_by("unknown", "stdout"), "the tunnel has closed its stdout, and no agent had answered", "I stay", None,
        lambda lab: shell("echo I stay >&2; exec >&- 2>&-; exec sleep 3600"),
    ),
}  # fmt: skip


@pytest.fixture
def lab(request: pytest.FixtureRequest, public_directory: Path) -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp(dir=public_directory))
    directory.chmod(0o755)
    made = Lab(request, directory)
    with made.cleanup:
        yield made


@pytest.mark.parametrize("name", CASES)
async def test_a_failure_is_known_for_what_it_is(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    tunnel = case.provoke(lab)
    found = []
    make_error = _diagnosis._error

    def keep(cause: Cause, *args: Any, **kwargs: Any) -> trickle.ConnectError:
        found.append(cause)
        return make_error(cause, *args, **kwargs)

    monkeypatch.setattr(_diagnosis, "_error", keep)
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel, connect_timeout=case.connect_timeout):
            pass

    error = caught.value
    first, *last = str(error).splitlines()
    assert (error.reason, found) == (case.cause.reason, [case.cause]), str(error)
    assert re.fullmatch(f"web1: {case.happened}; {re.escape(case.cause.advice)}", first)
    assert re.search(case.says, "\n".join(last))
    assert all(line.startswith("  ") for line in last) and len(last) <= 5
    assert (error.host, error.stage) == ("web1", case.stage)
    assert error.exit_status in (case.exit_status if isinstance(case.exit_status, tuple) else (case.exit_status,))


def test_every_cause_is_provoked() -> None:
    assert {case.cause for case in CASES.values()} == set(causes())


# What logins, banners and the programs that they run may say without its being why connecting failed.
NOISE = r"""
Permission denied (contact the administrator)
cat: /var/lib/motd: Permission denied
-bash: /home/me/.history: No space left on device
mkdir: cannot create directory '/tmp/x': No space left on device
curl: (7) Failed to connect to news.example.com port 80: Connection refused
No route to host
Host key verification failed?
Out of memory: see the log
sudo: unable to resolve host web1: Name or service not known
python3: command not found
>>> Authorized use only <<<
Killed
""".strip()


@pytest.fixture
def noisy(lab: Lab) -> str:
    """A shell command that says all of it, on both streams."""
    file = lab.directory / "noise"
    file.write_text(NOISE + "\n")
    return f"cat {file}; cat {file} >&2"


FAILURES: dict[str, tuple[str, str, int | None]] = {
    "nothing went wrong, but the end": ("exit 7", "unknown", 7),
    "its own error": ("exit 1", "unknown", 1),
    "no Python": ("PATH=/nowhere; eval $words", "no Python", 127),
    "a Python that cannot be run": ("exec /etc/passwd", "no Python", 126),
    "an old Python": ("exit 83", "too old", 83),
    "stdin": ("read line; eval $words", "stdin", 1),
    "a shell": ("exec sh", "not a Python", 86),
    "killed": ("kill -9 $$", "killed", -9),
    "sudo": ("setpriv --reuid=65534 --regid=65534 --clear-groups sudo -n true", "password needed", 1),
    "refused": ("ssh -F /dev/null -o BatchMode=yes -p 1 127.0.0.1", "refused", 255),
    "nothing answers": ("exec sleep 3600", "timed out", None),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_what_a_login_says_is_not_taken_for_what_went_wrong(failure: str, noisy: str, lab: Lab) -> None:
    script, reason, status = FAILURES[failure]
    if failure == "sudo":
        lab.user()
    tunnel = shell(f"{noisy}; words='\"$@\"'; {script}")

    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel, connect_timeout=3 if status is None else LONG):
            pass

    assert (caught.value.reason, caught.value.exit_status) == (reason, status), str(caught.value)


async def test_what_a_login_says_does_no_harm_when_all_is_well(noisy: str) -> None:
    async with trickle.open_host(shell(f'{noisy}; exec "$@"')) as host:
        assert await host.call(max, 1, 2) == 2


@pytest.mark.parametrize("way", ["success", "authentication", "connection closed"])
async def test_what_a_banner_says_is_not_taken_for_what_went_wrong(way: str, lab: Lab) -> None:
    banner = lab.directory / "banner"
    banner.write_text(NOISE + "\n")
    extra = {"success": "", "authentication": "AllowUsers nobody", "connection closed": "ForceCommand kill -9 $PPID"}[
        way
    ]
    own = lab.ssh_to(f"Banner {banner}\n{extra}")
    tunnel = dataclasses.replace(own, ssh_options=("-o", "LogLevel=INFO", *own.ssh_options))

    if way == "success":
        async with trickle.open_host(tunnel) as host:
            assert await host.call(max, 1, 2) == 2
    else:
        with pytest.raises(trickle.ConnectError) as caught:
            async with trickle.open_host(tunnel):
                pass
        assert caught.value.reason == way
        assert "Authorized use only" in caught.value.stderr


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec ssh -F /dev/null -o BatchMode=yes -p 1 127.0.0.1", "refused"),
        ("exec bash -c /no/such/python", "no Python"),
        ("exec bash -c /etc/passwd", "no Python"),
    ],
)
async def test_other_languages_make_no_difference(script: str, reason: str) -> None:
    """But to sudo: see the cases."""
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(shell(f"export LANGUAGE=de LC_ALL=C.UTF-8; {script}")):
            pass

    assert caught.value.reason == reason
