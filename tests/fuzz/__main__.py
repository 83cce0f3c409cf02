"""Fuzz a target with atheris: ``python -m tests.fuzz unpickling -max_total_time=600``, options as libFuzzer's.

What is found to reach new code goes to ``.cache/fuzz/NAME``, and what breaks to the directory it was started in.
"""

import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parents[2] / ".cache" / "fuzz"

with atheris.instrument_imports(include=["trickle"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} [OPTION OF LIBFUZZER...]")
    name, *options = sys.argv[1:]
    directories = [option for option in options if not option.startswith("-")]
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    if not directories:
        options += [str(found), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], "-max_len=4096", *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
