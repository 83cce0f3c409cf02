"""Every example runs, and ends well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_ssh, sudo
from tests.containers import Docker
from tests.requirements import require

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PATIENCE = 120  # seconds: only ends an example that hangs


def run(example: str, *arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    search = os.environ.get("PATH", os.defpath)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{path}:{search}" if path else search}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
    )


@pytest.mark.parametrize("example", [path.name for path in EXAMPLES])
def test_example_runs_without_arguments(example: str, request: pytest.FixtureRequest) -> None:
    if example == "containers.py":
        request.getfixturevalue("docker")
    if example == "sudo.py" and not sudo.is_free():
        require("sudo", "sudo asks for a password on this machine, or is not there")

    done = run(example)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_first_light_shows_an_answer_a_failure_and_a_timeout() -> None:
    lines = run("first_light.py").stdout.splitlines()

    assert any("RuntimeError" in line for line in lines)
    assert any("timed out" in line or "CallTimeout" in line for line in lines)
    assert any("Python 3" in line for line in lines)


def test_fleet_gives_unreachable_hosts_a_row_with_the_reason(tmp_path: Path) -> None:
    fake_ssh.install(tmp_path)

    done = run("fleet.py", "local:here", "web1", "nowhere.invalid", path=tmp_path)

    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"here", "web1", "nowhere.invalid"} <= rows.keys()
    assert "cannot be looked up" in rows["nowhere.invalid"]
    assert done.returncode == 1


def test_own_tunnel_is_a_sandbox_that_keeps_the_contract() -> None:
    lines = run("own_tunnel.py").stdout.splitlines()
    checked = run("own_tunnel.py", "--check")

    if "outside: written" in lines:
        require("bwrap", "bubblewrap cannot be run on this machine")
    assert lines == ["inside: written", "outside: refused: Read-only file system", "here: ['file'] []"]
    assert (checked.stdout, checked.stderr, checked.returncode) == ("sandbox keeps the contract\n", "", 0)


def test_own_tunnel_shows_itself_without_bubblewrap(tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)

    lines = run("own_tunnel.py", path=tmp_path).stdout.splitlines()

    assert lines == ["inside: written", "outside: written", "here: ['file'] ['file']"]


def test_each_policy_has_an_example_that_shows_it() -> None:
    assert run("quorum.py").stdout.splitlines() == ["42, say at least 3 of 5", "the slow one was stopped: True"]
    assert run("all_or_nothing.py").stdout.startswith("<trickle.Results: 0 successful, 1 failed, 2 not needed>")
    assert run("retry.py").stdout.splitlines() == [
        "amber  ConnectionResetError: attempt 1",
        "amber  'worked at attempt 3'",
    ]
    assert run("word_count.py").stdout == "'to': 25 of 105 words\n"
    assert run("slowest.py").stdout.splitlines() == [
        f"{name}: /page/46605 took 104728 ms, of 200000 requests" for name in ("amber", "birch")
    ]
    rows = run("rolling_restart.py").stdout.splitlines()
    assert rows[0] == "web1: restarted" or "web2: RuntimeError" in rows[0]
    assert len(rows) == 6 and sum("does not come up" in row for row in rows) == 2


def test_tail_prints_each_line_of_each_host_in_order() -> None:
    lines = run("tail.py").stdout.splitlines()

    assert len(lines) == 6
    for name in ("one", "two"):
        of_host = [line for line in lines if line.startswith(f"{name}: ")]
        assert of_host == [f"{name}: {word}" for word in ("starting", "loading", "ready")]


def test_deploy_rolls_back_what_one_host_does_not_like() -> None:
    lines = run("deploy.py").stdout.splitlines()

    assert "release 1: deployed" in lines and "release 2: rolled back" in lines
    assert "not healthy: web3: RuntimeError: the page is not what it should be" in lines
    assert {"web1: 1 -> 2", "web1: back to 1", "web2: back to 1"} <= set(lines)
    assert not any(line.startswith("web4: 1") for line in lines)  # it was never touched
    assert [line for line in lines if "shows" in line] == [f"web{n} shows <h1>Release 1</h1>" for n in range(1, 5)]


def test_containers_gives_an_image_that_cannot_be_had_a_row_with_the_reason(docker: Docker) -> None:
    done = run("containers.py", "python:3.12-slim", "127.0.0.1:1/nothing")

    had, missing = done.stdout.splitlines()
    assert had.split()[:2] == ["python:3.12-slim", "Python"]
    assert "cannot be pulled" in missing
    assert done.returncode == 1
