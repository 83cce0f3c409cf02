"""What fuzzers start from and have found, run once more; and that the seeds are in the corpus."""

from pathlib import Path

import pytest

from tests.fuzz.seeds import CORPUS, write
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_must_hold_holds_for_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())

    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_inputs_of_the_targets(name: str, tmp_path: Path) -> None:
    write(tmp_path)

    for path in (tmp_path / name).iterdir():
        TARGETS[name](path.read_bytes())
