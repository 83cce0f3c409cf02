"""A line's path says where it runs and what it may import.  These tests hold the three rooms to that."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import pythons

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trickle"
WIRE = sorted((PACKAGE / "_wire").rglob("*.py"))
AGENT = sorted((PACKAGE / "_agent").rglob("*.py"))
SHIPPED = [*WIRE, *AGENT, PACKAGE / "remote.py"]
HERE = sorted(path for path in PACKAGE.rglob("*.py") if path not in SHIPPED)

SHIPPED_ROOMS = ("trickle._wire", "trickle._agent", "trickle.remote")
OLDEST = (3, 6)

# Each is paid for on every connect, in milliseconds and memory, by agents that may never need it.
DEAR = {"asyncio", "dataclasses", "inspect", "logging", "re", "subprocess", "typing"}
# What reads, writes, waits or looks at a clock.
INPUT_AND_OUTPUT = {
    "asyncio", "fcntl", "io", "multiprocessing", "os", "pathlib", "posix", "queue", "select", "selectors",
    "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "trio",
}  # fmt: skip


# The exceptions, each with its reason.
PERMITTED = {
    # A coroutine is run by trio, which the controller forwards; only in the function that does so.
    ("trickle/_agent/asynchronous.py", "trio"),
    # A worker imports it when a function names hosts by a pattern; controllers have it too.
    ("trickle/_agent/host_names.py", "re"),
    ("trickle/_host_names.py", "trickle._agent.host_names"),
    ("trickle/__init__.py", "trickle._agent.host_names"),
    # A worker imports it when it is to run a command.
    ("trickle/_agent/processes.py", "subprocess"),
    # A pickle of a function by value names the functions that rebuild it over there.
    ("trickle/_pickling.py", "trickle._agent.functions"),
    ("trickle/_source_code.py", "trickle._agent.functions"),
    # A transfer reads and writes files at both ends, and does so by the same code.
    ("trickle/_files.py", "trickle._agent.files"),
    ("trickle/_files.py", "trickle._agent.file_source"),
    ("trickle/_files.py", "trickle._agent.file_target"),
    # A process that reduces results makes functions out of what _pickling.py wrote, as a host does.
    ("trickle/_reducing.py", "trickle._agent.functions"),
    ("trickle/_explanation.py", "trickle._agent.functions"),
    # A host in memory has its agent here; nothing that `import trickle` loads imports this file.
    ("trickle/_memory_agent.py", "trickle._agent"),
    ("trickle/_memory_flows.py", "trickle._agent"),
}


class Import(NamedTuple):
    module: str
    line: int
    on_import: bool  # not inside of a function

    def is_in(self, *packages: str) -> bool:
        return any(self.module == name or self.module.startswith(f"{name}.") for name in packages)


def imports_of(path: Path) -> list[Import]:
    """What this file imports while it runs: what only type checkers read is left out."""
    module = path.relative_to(ROOT).with_suffix("").parts
    package = module[:-1]
    return list(_imports(ast.parse(path.read_text(), str(path)).body, package, on_import=True))


def _imports(nodes: list[ast.stmt], package: tuple[str, ...], *, on_import: bool) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, node.lineno, on_import)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                base += name.split(".") if name else []
                for alias in names:
                    # What is imported from one of our packages may be a module of it.
                    parts = [*base, alias.name] if base[0] == "trickle" else base
                    yield Import(".".join(parts), node.lineno, on_import)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                yield from _imports(node.orelse, package, on_import=on_import)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _imports(node.body, package, on_import=False)
            case _:
                yield from _imports(_statements_in(node), package, on_import=on_import)


def _statements_in(node: ast.AST) -> list[ast.stmt]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            found.append(child)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            found += child.body
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_permitted(path: Path, found: Import) -> bool:
    return any(relative(path) == where and found.is_in(module) for where, module in PERMITTED)


def test_all_three_rooms_were_found() -> None:
    assert WIRE
    assert AGENT
    assert PACKAGE / "_boot.py" in HERE


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_shipped_code_imports_only_the_standard_library_and_shipped_code(path: Path) -> None:
    foreign = [
        found
        for found in imports_of(path)
        if found.module.split(".")[0] not in sys.stdlib_module_names
        and not found.is_in(*SHIPPED_ROOMS)
        and not is_permitted(path, found)
    ]

    assert foreign == []


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_shipped_code_imports_nothing_dear_before_it_needs_it(path: Path) -> None:
    dear = [
        found for found in imports_of(path) if found.on_import and found.is_in(*DEAR) and not is_permitted(path, found)
    ]

    assert dear == []


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_shipped_code_keeps_to_the_grammar_of_the_oldest_python(path: Path) -> None:
    ast.parse(path.read_text(), str(path), feature_version=OLDEST)


@pytest.mark.parametrize("python", pythons.far_pythons(), ids=pythons.python_id)
def test_shipped_code_compiles_on_every_python_found(python: str) -> None:
    script = """
import json, sys
for path in json.load(sys.stdin):
    with open(path, encoding="utf-8") as file:
        compile(file.read(), path, "exec", 0, True)
"""
    paths = json.dumps([str(path) for path in SHIPPED])

    done = subprocess.run([python, "-I", "-S", "-c", script], input=paths, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", WIRE, ids=relative)
def test_the_wire_does_no_input_and_output(path: Path) -> None:
    forbidden = [found for found in imports_of(path) if found.is_in(*INPUT_AND_OUTPUT)]

    assert forbidden == []


@pytest.mark.parametrize("path", WIRE, ids=relative)
def test_the_wire_knows_neither_of_its_ends(path: Path) -> None:
    foreign = [found for found in imports_of(path) if found.is_in("trickle") and not found.is_in("trickle._wire")]

    assert foreign == []


@pytest.mark.parametrize("path", HERE, ids=relative)
def test_the_controller_reads_the_agents_files_and_never_imports_them(path: Path) -> None:
    imported = [found for found in imports_of(path) if found.is_in("trickle._agent") and not is_permitted(path, found)]

    assert imported == []


def test_the_rules_see_imports_wherever_they_hide(tmp_path: Path) -> None:
    source = """
import os.path, re as r
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import trio
else:
    import select
try:
    import ssl
except ImportError:
    import socket
class C:
    def f(self):
        with open("x"):
            from trickle import _agent
for _ in ():
    from trickle._agent.broker import main
"""
    path = tmp_path / "module.py"
    path.write_text(source)

    found = list(_imports(ast.parse(source).body, ("trickle", "_wire"), on_import=True))

    assert [f.module for f in found if f.on_import] == [
        *("os.path", "re", "typing", "select", "ssl", "socket", "trickle._agent.broker.main")
    ]
    assert [f.module for f in found if not f.on_import] == ["trickle._agent"]
    relative_imports = ast.parse("from . import frames\nfrom .._agent.broker import main\nfrom .. import remote")
    assert [f.module for f in _imports(relative_imports.body, ("trickle", "_wire"), on_import=True)] == [
        *("trickle._wire.frames", "trickle._agent.broker.main", "trickle.remote")
    ]
