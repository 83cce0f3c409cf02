"""A user's own code to call: a package of three modules, each of which imports the next."""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "benchmarked_package"
FILES = {
    "__init__.py": '"""A package that only the controller has."""\n',
    "entry.py": f"from {NAME}.middle import twice\n\n\ndef answer():\n    return twice(21)\n",
    "middle.py": f"from {NAME}.leaf import add\n\n\ndef twice(number):\n    return add(number, number)\n",
    "leaf.py": "def add(a, b):\n    return a + b\n",
}


@contextlib.contextmanager
def own_function() -> Iterator[Callable[[], int]]:
    """A function of that package, which the far end does not have."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, NAME)
        package.mkdir()
        for name, text in FILES.items():
            (package / name).write_text(text)
        sys.path.insert(0, folder)
        try:
            answer: Callable[[], int] = importlib.import_module(f"{NAME}.entry").answer
            yield answer
        finally:
            sys.path.remove(folder)
