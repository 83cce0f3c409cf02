"""Real far ends: an sshd in three forms, and a Python without most of its library."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers, pythons
from tests import sshd as sshd_module
from tests.requirements import require
from tests.sshd import Sshd


@pytest.fixture(scope="session")
def public_directory() -> Iterator[Path]:
    """A temporary directory that other users can enter, unlike pytest's; short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="far-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def _sshd_directory(public_directory: Path) -> Path:
    sshd_module.sshd_binary()
    directory = public_directory / "ssh"
    directory.mkdir()
    sshd_module.prepare(directory)
    return directory


@pytest.fixture(scope="session")
def login_user(public_directory: Path) -> Iterator[str]:
    """Who the tests log in as: a user with /bin/sh made for this session, or (not root) the current one."""
    with sshd_module.login_user(public_directory / "home") as name:
        yield name


@pytest.fixture(scope="session")
def sshd(_sshd_directory: Path, login_user: str) -> Iterator[Sshd]:
    """A real sshd on a free port of loopback."""
    with sshd_module.listening_sshd(_sshd_directory, login_user) as listening:
        assert listening.pid is not None
        with leftovers.daemon(listening.pid):
            yield listening


@pytest.fixture(scope="session")
def piped_sshd(_sshd_directory: Path, login_user: str) -> Iterator[Sshd]:
    """A real sshd as ProxyCommand: each connection starts one of its own.  The cheapest."""
    with sshd_module.piped_sshd(_sshd_directory, login_user) as piped:
        yield piped


@pytest.fixture(scope="session")
def mastered_sshd(sshd: Sshd) -> Iterator[Sshd]:
    """The listening sshd through a ControlMaster that is already live."""
    with sshd_module.mastered_sshd(sshd) as mastered:
        assert mastered.master_pid is not None
        with leftovers.daemon(mastered.master_pid):
            yield mastered


@pytest.fixture(scope="session")
def minimal_python(public_directory: Path) -> str:
    """The path of a Python that can import what Debian's python3-minimal can, and no more."""
    path = pythons.make_minimal_python(public_directory / "minimal")
    if path is None:
        require("minimal", "the Python of this machine cannot be copied")
    return path


@pytest.fixture(scope="session")
def python27() -> str:
    """The path of a Python 2.7, which has to be refused."""
    path = pythons.python27()
    if path is None:
        require("python27", "no Python 2.7 on this machine")
    return path
