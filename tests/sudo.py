"""Rules for sudo that a test makes, and what it finds of the processes that came of them."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import require
from tests.sshd import MARK

DIRECTORY = Path("/etc/sudoers.d")
STATE = (Path("/run/sudo/ts"), Path("/var/lib/sudo/lectured"))


def need_sudo() -> None:
    """Skip the test where nobody can set up sudo."""
    if os.getuid() != 0:
        require("sudo", "only root can set up sudo for the test")
    if not shutil.which("sudo") or not shutil.which("visudo") or not shutil.which("setpriv"):
        require("sudo", "no sudo, visudo or setpriv on this machine")


def is_free() -> bool:
    """Whether we may be root without a password."""
    return (
        shutil.which("sudo") is not None and not subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode
    )


@contextlib.contextmanager
def rules(*lines: str) -> Iterator[None]:
    """These lines are in sudoers.  A mistake in them is found before it locks everybody out."""
    _remove_stale_rules()
    path = DIRECTORY / f"trickle-rules-{os.getpid()}"
    draft = DIRECTORY / f"{path.name}.draft"  # sudo does not read names with a dot
    draft.write_text("".join(f"{line}\n" for line in lines))
    draft.chmod(0o440)
    try:
        subprocess.run(["visudo", "-cqf", draft], check=True, capture_output=True)
        draft.rename(path)
        yield
    finally:
        draft.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def forget(user: str) -> None:
    """Remove what sudo remembers of somebody."""
    for directory in STATE:
        (directory / user).unlink(missing_ok=True)


def sudo_processes() -> list[int]:
    """The processes of this test that are sudo itself."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile
            is_sudo = entry.name.isdigit() and (entry / "comm").read_text() == "sudo\n"
            if is_sudo and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return sorted(found)


def _remove_stale_rules() -> None:
    """Remove those of test sessions that were killed before they could."""
    for path in DIRECTORY.glob("trickle-rules-*"):
        pid = path.name.removesuffix(".draft").rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
