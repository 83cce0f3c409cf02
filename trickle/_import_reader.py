"""Compile source in a process of its own, for its imports alone: compiling holds this process's interpreter lock.

What the process runs is _imports.py, by itself: neither trickle nor the program is imported there.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

from . import _imports
from ._imports import StaticImport

COMPILED_HERE = 64 * 1024  # bytes of source, about 20 ms: what is more is compiled there


class ImportReader:
    """Reads the imports of what Python has no bytecode of, when there is much of it.  To be closed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._compiled = 0  # bytes of source
        self._usable = bool(sys.executable) and not getattr(sys, "frozen", False)  # else it is the program itself

    def imports_of(self, spec: ModuleSpec | None) -> tuple[StaticImport, ...] | None:
        """What a module imports; None if that had better be read here: what is compiled, small, or not in a file."""
        if spec is None or not _is_uncompiled(spec) or not self._usable:
            return None
        self._compiled += Path(spec.origin or "").stat().st_size
        if self._compiled <= COMPILED_HERE:
            return None
        question = [spec.name, spec.submodule_search_locations is not None, spec.origin]
        try:
            return tuple(StaticImport(*each) for each in json.loads(self._ask(json.dumps(question).encode() + b"\n")))
        except (OSError, ValueError):  # somebody has ended it, or it is not what it should be
            self._usable = False
            self.close()
            return None

    def _ask(self, question: bytes) -> bytes:
        if self._process is None:
            self._process = subprocess.Popen(
                _words(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the program
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()  # it keeps nothing that matters
            process.communicate()


def _words() -> list[str]:
    words = [sys.executable, "-I", "-S"]
    if sys.dont_write_bytecode:
        words.append("-B")
    if sys.pycache_prefix is not None:
        words += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return [*words, _imports.__file__]


def _is_uncompiled(spec: ModuleSpec) -> bool:
    """Whether it is a file of source which Python has no bytecode of."""
    if type(spec.loader) is not SourceFileLoader or spec.origin is None:
        return False
    try:
        return not Path(importlib.util.cache_from_source(spec.origin)).exists()
    except NotImplementedError:  # sys.implementation.cache_tag is None
        return True
