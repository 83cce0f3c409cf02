"""The audit after each test finds what it is there to find."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import leftovers


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE", 0.1)


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> leftovers.Audit:
    monkeypatch.setenv(leftovers.MARK, "of this test")
    return leftovers.Audit("of this test")


def test_audit_finds_nothing_where_nothing_is_left(audit: leftovers.Audit) -> None:
    subprocess.run(["true"], check=True)

    assert audit.leftovers() == []


@pytest.mark.usefixtures("impatient")
def test_audit_finds_a_process_that_has_left_its_session(audit: leftovers.Audit) -> None:
    script = "sleep 1000 >/dev/null & echo $!"
    parent = subprocess.run(["setsid", "sh", "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    grandchild = int(parent.stdout)

    found = audit.leftovers()

    os.kill(grandchild, 9)
    assert [line.split()[1] for line in found] == [str(grandchild)]
    assert "sleep 1000" in found[0]


@pytest.mark.usefixtures("impatient")
def test_audit_finds_a_child_that_nobody_waited_for(audit: leftovers.Audit) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    found = audit.leftovers()

    child.wait()
    assert found == [f"process {child.pid} (Z): no command line"]


def test_audit_waits_for_a_process_that_is_about_to_end(audit: leftovers.Audit) -> None:
    reading, writing = os.pipe()
    script = "exec 3<&0; read _ <&3 >/dev/null 2>&1 & exit"
    subprocess.run(["setsid", "sh", "-c", script], stdin=reading, check=True)
    os.close(reading)
    assert audit._processes()

    os.close(writing)  # it ends now, and nobody tells us when

    assert audit.leftovers() == []


def test_audit_finds_descriptors(audit: leftovers.Audit) -> None:
    reading, writing = os.pipe()

    found = audit.leftovers()

    os.close(reading)
    os.close(writing)
    assert [line.split(":")[0] for line in found] == [f"descriptor {reading}", f"descriptor {writing}"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory where temporary files are looked for."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(leftovers, "_temporary_files", lambda: set(directory.iterdir()))
    return directory


def test_temporary_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    part = tmp_path / ".data.trickle-part"
    test = leftovers.Beside(tmp_path, "one")

    test.begin()
    part.touch()

    assert f"file {part}" in test.end()


def test_a_file_that_may_be_of_a_test_that_runs_is_that_ones_to_answer_for(tmp_path: Path, temporary: Path) -> None:
    one, other = leftovers.Beside(tmp_path, "one"), leftovers.Beside(tmp_path, "other")

    one.begin()
    (temporary / "of one").touch()
    other.begin()
    (temporary / "of either").touch()

    assert one.end() == [f"file {temporary}/of one"]
    one.begin()
    assert one.end() == []
    assert other.end() == [f"file {temporary}/of either"]


def test_a_file_that_a_test_beside_has_removed_is_nobodys(tmp_path: Path, temporary: Path) -> None:
    one, other = leftovers.Beside(tmp_path, "one"), leftovers.Beside(tmp_path, "other")

    one.begin()
    other.begin()
    (temporary / "of one").touch()

    assert other.end() == []
    (temporary / "of one").unlink()
    assert one.end() == []
