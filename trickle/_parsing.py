"""Parse Python source, one at a time: CPython 3.11's ``ast`` fails now and then when threads do so at once."""

from __future__ import annotations

import ast
import threading

_lock = threading.Lock()


def parse(source: str | bytes) -> ast.Module:
    """The tree of *source*, as ``ast.parse`` gives it."""
    with _lock:
        return ast.parse(source)
