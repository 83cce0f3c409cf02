"""More real far ends: an sshd in two more forms than ../conftest.py has, and Pythons that lack something."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers, pythons
from tests import sshd as sshd_module
from tests.requirements import require
from tests.sshd import Sshd


@pytest.fixture(scope="session")
def sshd(_sshd_directory: Path, login_user: str) -> Iterator[Sshd]:
    """A real sshd on a free port of loopback."""
    with sshd_module.listening_sshd(_sshd_directory, login_user) as listening:
        assert listening.pid is not None
        with leftovers.daemon(listening.pid):
            yield listening


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
