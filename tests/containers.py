"""Container engines for the tests: a dockerd of their own, podman with a place of its own, an image, a registry.

The fixtures made of them are in conftest.py.  The image is this machine's own Python with a shell and a few programs:
nothing is downloaded.  Engines need root.
"""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests import leftovers, pythons
from tests.requirements import require
from tests.sshd import free_port

IMAGE = "trickle-test:python"
ALSO_CALLED = ("python:3.12-slim", "python:3.9-slim")  # in docs and examples: nothing is to be pulled for those
PASSWD = b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"
PROGRAMS = ("sh", "cat", "env", "id", "kill", "ls", "sleep", "timeout")
USELESS = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "lib2to3",
    "ensurepip",
}
PATIENCE = 60  # seconds for an engine to start or to stop
# The engine is to leave this machine's network alone, and so it has none for its containers.
NO_NETWORK = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")

CONTAINERS_CONF = """\
[containers]
netns = "none"
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
init_path = "{init}"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{directory}/tmp"
"""

STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{directory}/root"
runroot = "{directory}/run"
"""

REGISTRY_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {directory}/images}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclasses.dataclass
class Engine:
    """A container engine: what runs its client, and what that needs in its environment."""

    name: str
    directory: Path
    environment: Mapping[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        """What its client says to a command."""
        done = subprocess.run(
            [self.name, *words],
            env={**_without_mark(), **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"{self.name} {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def containers(self) -> set[str]:
        """The ids of all that it knows of, running or not."""
        return self.listed()

    def listed(self, *filters: str) -> set[str]:
        """The same, as its client lists them, or those that pass all *filters*."""
        words = (word for each in filters for word in ("--filter", each))
        return set(self.run("ps", "--all", "--quiet", "--no-trunc", *words).split())

    def monitors(self) -> list[str]:
        """The command lines of podman's processes that look after a container of this engine."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_text(errors="replace").split("\0")
                if words[0].endswith("conmon") and str(self.directory) in " ".join(words):
                    found.append(" ".join(words)[:500])
        return found

    def has_image(self, image: str) -> bool:
        """Whether an image is there."""
        return bool(self.run("images", "--quiet", image))

    def remove_all(self) -> None:
        """Remove every container."""
        for container in self.containers():
            self.remove(container)

    def remove(self, container: str) -> None:
        """Kill and remove one, whatever it does.  (podman's ``rm --force`` alone waits 10 s for it to stop.)"""
        self.run("kill", container, check=False)
        self.run("rm", "--force", "--volumes", container, check=False)


@dataclasses.dataclass
class Docker(Engine):
    """A dockerd on a socket of its own."""

    process: "subprocess.Popen[bytes] | None" = None
    declared: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.directory / "docker.sock"

    @property
    def pid(self) -> int:
        """That of dockerd."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start dockerd, unless it runs, and wait until it answers."""
        if self.process is not None and self.process.poll() is None:
            return
        places = (f"--data-root={self.directory}/root", f"--exec-root={self.directory}/exec")
        listen = ("-H", f"unix://{self.socket}", f"--pidfile={self.directory}/docker.pid")
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", *places, *listen, *NO_NETWORK],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_without_mark(),
            )
        process = self.process
        _wait_until(lambda: process.poll() is not None or self.answers())
        if process.poll() is not None:
            raise OSError((self.directory / "log").read_text()[-2000:])
        self.declared.enter_context(leftovers.daemon(self.process.pid))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End dockerd, and return when it is gone."""
        assert self.process is not None
        self.declared.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def answers(self) -> bool:
        """Whether it listens."""
        try:
            return bool(self.get("/_ping") == "OK")
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """The answer of its API, which costs less than a client."""
        connection = _UnixConnection(self.socket)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        return json.loads(text) if response.headers.get_content_subtype() == "json" else text

    def containers(self) -> set[str]:
        """The ids of all that it knows of, running or not."""
        return {each["Id"] for each in self.get("/containers/json?all=1")}


class Podman(Engine):
    """Podman, which has no daemon."""

    def containers(self) -> set[str]:
        """The ids of all that it knows of, running or not: from its files, which costs less than a client."""
        try:
            listed = json.loads((self.directory / "root/overlay-containers/containers.json").read_text())
        except FileNotFoundError:
            return set()
        return {each["id"] for each in listed}

    def trust_registry(self, port: int) -> None:
        """Let it pull from this port of loopback without TLS, as docker does."""
        entry = f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n'
        (self.directory / "registries.conf").write_text(entry)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def docker_engine(image: Path) -> Iterator[Docker]:
    """A dockerd with the image; skips the test where there can be none."""
    _need("docker", "docker", "dockerd", "runc", "iptables")
    with _engine_directory() as directory:
        engine = Docker("docker", directory, {"DOCKER_HOST": f"unix://{directory}/docker.sock"})
        try:
            engine.start()
        except OSError as exc:
            require("docker", f"dockerd does not start here: {exc}")
        try:
            _import_image(engine, image)
            with leftovers.engine(engine.containers):
                yield engine
        finally:
            engine.start()
            engine.remove_all()
            engine.stop()


@contextlib.contextmanager
def podman_engine(image: Path) -> Iterator[Podman]:
    """Podman with the image; skips the test where it does not run."""
    _need("podman", "podman", "runc", "conmon")
    with _engine_directory() as directory:
        # podman's own is catatonit; where that is not there, the one that docker brings does as well
        init = shutil.which("catatonit", path="/usr/libexec/podman:/usr/bin") or shutil.which("docker-init") or ""
        (directory / "containers.conf").write_text(CONTAINERS_CONF.format(directory=directory, init=init))
        (directory / "storage.conf").write_text(STORAGE_CONF.format(directory=directory))
        (directory / "registries.conf").touch()
        variables = ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF")
        files = ("containers.conf", "storage.conf", "registries.conf")
        engine = Podman("podman", directory, {v: f"{directory}/{f}" for v, f in zip(variables, files, strict=True)})
        try:
            _import_image(engine, image)
        except AssertionError as exc:
            require("podman", f"podman does not run here: {exc}")
        try:
            with leftovers.engine(engine.containers):
                yield engine
        finally:
            engine.remove_all()


def _need(kind: str, *programs: str) -> None:
    if os.getuid() != 0:
        require(kind, f"only root can run {kind} for the tests")
    for program in programs:
        if not shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            require(kind, f"no {program} on this machine")


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[int]:
    """The port of a registry on loopback, which is empty."""
    _need("docker", "docker-registry")
    port = free_port()
    (directory / "registry.yml").write_text(REGISTRY_CONFIG.format(directory=directory, port=port))
    with subprocess.Popen(
        ["docker-registry", "serve", str(directory / "registry.yml")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_without_mark(),
    ) as process:
        try:
            _wait_until(lambda: process.poll() is not None or _listens(port))
            with leftovers.daemon(process.pid):
                yield port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


@contextlib.contextmanager
def _engine_directory() -> Iterator[Path]:
    """A place for an engine; what it has mounted there is unmounted in the end."""
    directory = Path(tempfile.mkdtemp(prefix="engine-"))  # short: sockets are in there
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for path in reversed(mounted):
            if path.startswith(f"{directory}/"):
                subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(directory)


def _import_image(engine: Engine, image: Path) -> None:
    done = subprocess.run(
        [engine.name, "import", str(image), IMAGE],
        env={**_without_mark(), **engine.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ALSO_CALLED:
        engine.run("tag", IMAGE, name)


def make_image(path: Path) -> None:
    """Write the file system of the image, as a tar file: a Python with its library, a shell, programs, what they link.

    It is that of a Python of this machine, at the place where it is here.
    """
    python = pythons.system_python()
    script = "import os, sys; print(os.path.realpath(sys.executable)); print(os.path.dirname(os.__file__))"
    words = subprocess.run([python, "-I", "-c", script], capture_output=True, check=True, text=True)
    executable, library = map(Path, words.stdout.splitlines())
    found = {name: shutil.which(name, path="/usr/bin:/bin") for name in PROGRAMS}
    programs = {Path("/usr/bin") / name: Path(place).resolve() for name, place in found.items() if place}
    binaries = {executable, *programs.values(), *library.glob("lib-dynload/*.so")}
    with tarfile.open(path, "w") as tar:
        for name, mode in {
            "tmp": 0o1777,
            "proc": 0o555,
            "sys": 0o555,
            "dev": 0o755,
            "etc": 0o755,
            "root": 0o700,
        }.items():
            _add(tar, name, type=tarfile.DIRTYPE, mode=mode)
        _add(tar, "bin", type=tarfile.SYMTYPE, linkname="usr/bin")
        _add(tar, "etc/passwd", PASSWD)
        for binary in {executable, *_libraries(binaries)}:
            tar.add(binary.resolve(), str(binary))
        for link, program in programs.items():
            tar.add(program, str(link))
        if executable != Path("/usr/bin/python3"):
            _add(tar, "usr/bin/python3", type=tarfile.SYMTYPE, linkname=str(executable))
        tar.add(library, str(library), filter=_without_the_useless)


def _add(tar: tarfile.TarFile, name: str, content: bytes = b"", **attributes: Any) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    tar.addfile(entry, io.BytesIO(content))


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """What these are linked with, and what that is linked with."""
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    return {Path(each) for each in re.findall(r"(/\S+) \(0x", listed)}


def _without_the_useless(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if USELESS.intersection(Path(entry.name).parts) else entry


def _without_mark() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != leftovers.MARK}
