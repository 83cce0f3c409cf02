"""Modules that come compiled as well as in source: run as they are where the Python is the same, in every Python."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trickle._module_server import ModuleServer
from trickle._modules import ModuleLibrary

from ..bytecode import write_with_bytecode
from ..pythons import far_pythons, python_id
from .far_end import FarEnd, RaisedThere, far_end

pytestmark = pytest.mark.parametrize("python", far_pythons(), ids=python_id)

SOURCE = "HOW = 'source'\n\ndef fail():\n    return 1 / 0  # as it was sent\n"
CODE = SOURCE.replace("'source'", "'code'")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that this program imports from, and forgets afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def far(python: str) -> Iterator[FarEnd]:
    with far_end(python, server=ModuleServer(library=ModuleLibrary(), sends_bytecode=True)) as far:
        yield far


def run_as(far: FarEnd) -> str:
    return "code" if far.version == sys.version_info[:2] else "source"


def test_it_is_run_where_the_python_is_the_same(far: FarEnd, here: Path) -> None:
    write_with_bytecode(here / "came_compiled.py", SOURCE, CODE)

    far.send_modules(["came_compiled"])

    assert far.run("import came_compiled; result = came_compiled.HOW") == run_as(far)
    assert far.asked == []


def test_it_comes_with_an_answer_too(far: FarEnd, here: Path) -> None:
    (here / "asked_compiled").mkdir()
    write_with_bytecode(here / "asked_compiled/__init__.py", SOURCE, f"from . import below\n{CODE}")
    write_with_bytecode(here / "asked_compiled/below.py", SOURCE, CODE)

    result = far.run("import asked_compiled as a, asked_compiled.below as b; result = a.HOW, b.HOW")

    assert result == (run_as(far),) * 2
    assert far.asked == ["asked_compiled"]


def test_its_source_and_its_file_are_what_they_are_here(far: FarEnd, here: Path) -> None:
    file = here / "told_compiled.py"
    write_with_bytecode(file, SOURCE, CODE)
    far.send_modules(["told_compiled"])
    file.unlink()

    assert far.run("import told_compiled as m; result = m.HOW") == run_as(far)
    script = "import inspect, told_compiled as m; result = inspect.getsource(m.fail), m.__file__, m.__spec__.origin"
    assert far.run(script) == ("def fail():\n    return 1 / 0  # as it was sent\n", str(file), str(file))
    with pytest.raises(RaisedThere) as caught:
        far.run("import told_compiled; told_compiled.fail()")
    assert f'File "{file}", line 4, in fail\n    return 1 / 0  # as it was sent' in caught.value.traceback


def test_what_is_imported_again_is_compiled_from_source(far: FarEnd, here: Path) -> None:
    write_with_bytecode(here / "again_compiled.py", SOURCE, CODE)
    far.send_modules(["again_compiled"])

    far.run("import again_compiled; del sys.modules['again_compiled']")

    assert far.run("import again_compiled; result = again_compiled.HOW") == "source"
