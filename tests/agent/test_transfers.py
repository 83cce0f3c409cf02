"""A transfer that fails at any of its system calls: the old file or the new one is there, and nothing else is left."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.far_end import ROOT
from tests.pythons import far_pythons, python_id

DRIVER = Path(__file__).with_name("files_driver.py")
OLDEST, NEWEST = far_pythons()[0], sys.executable


@pytest.mark.parametrize(
    ("scenario", "python"),
    [
        ("file", NEWEST),
        ("file", OLDEST),
        ("file with a name", OLDEST),
        ("resumed", NEWEST),
        ("tree", NEWEST),
        ("tree with names", OLDEST),
    ],
    ids=lambda value: python_id(value) if "/" in value else value,
)
def test_whatever_fails_the_old_file_or_the_new_one_is_there(scenario: str, python: str, tmp_path: Path) -> None:
    words = [python, "-I", "-S", str(DRIVER), str(ROOT), str(tmp_path), scenario]

    done = subprocess.run(words, capture_output=True, text=True, check=True)

    *problems, summary = done.stdout.splitlines()
    made, _, rest = summary.partition(" failures, ")
    assert (problems, rest) == ([], "0 problems")
    assert int(made) > 90
