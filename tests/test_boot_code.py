"""What is sent of the agent's files: all that they do, every line where it was, nothing that is for readers only."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator

import pytest

import trickle
from tests import work
from tests.pythons import far_pythons, python_id
from trickle import _boot

FILES = sorted({*_boot.shipped_files().values(), *_boot.SENT_LATER.values(), _boot.LOADER})


@pytest.mark.parametrize("path", FILES)
def test_what_is_sent_of_a_file_does_the_same(path: str) -> None:
    source = _boot._read(path)

    sent = _boot._lean(source)

    assert ast.dump(without_docstrings(ast.parse(sent))) == ast.dump(without_docstrings(ast.parse(source)))
    assert statement_lines(sent) == statement_lines(source)


@pytest.mark.parametrize("path", FILES)
def test_no_docstrings_are_sent(path: str) -> None:
    sent = ast.parse(_boot._lean(_boot._read(path)))

    assert not any(map(ast.get_docstring, documented(sent)))


@pytest.mark.parametrize("path", FILES)
def test_no_comments_are_sent(path: str) -> None:
    sent = _boot._lean(_boot._read(path))

    tokens = tokenize.generate_tokens(io.StringIO(sent).readline)
    assert not [token.line for token in tokens if token.type == tokenize.COMMENT]


def test_what_looks_like_a_comment_in_a_string_is_kept() -> None:
    source = "a = 'ü # 1'  # one\nb = b'#', \"\"\"\n# two\n\"\"\"  # ü\nc = f'# {a} #'  # three '#'\n"

    sent = _boot._lean(source)

    assert sent == "a = 'ü # 1'\nb = b'#', \"\"\"\n# two\n\"\"\"\nc = f'# {a} #'\n"


async def test_a_python_like_this_one_gets_it_compiled() -> None:
    async with trickle.open_host(trickle.Local(python=sys.executable)) as host:
        code = await host.call(work.compiled_files)

    assert set(code) == set(_boot.shipped_files())
    for name, path in _boot.shipped_files().items():
        assert code[name] == [f"<trickle>/{path}"]


async def test_another_tunnel_gets_source_alone() -> None:
    tunnel = trickle.Command(("env",), name="web1", python=sys.executable)

    async with trickle.open_host(tunnel) as host:
        assert await host.call(work.compiled_files) == {}


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
@pytest.mark.parametrize("is_near", [True, False])
async def test_sources_that_run_are_kept_packed_for_tracebacks(python: str, is_near: bool) -> None:
    tunnel = trickle.Local(python=python) if is_near else trickle.Command(("env",), name="web1", python=python)

    async with trickle.open_host(tunnel) as host:
        kept, source, line = await host.call(work.agent_sources)

    assert kept == 0
    assert source == _boot.lean_source("_agent/broker.py")
    assert line == _boot.lean_source("_agent/worker.py").splitlines(keepends=True)[0]


def test_compiled_code_that_is_damaged_is_not_run() -> None:
    data = bytearray(b"".join(_boot.boot_pieces({"nonce": "x"}, is_near=True)))
    assert data.endswith(b"\n") and len(data) > 2 * len(b"".join(_boot.boot_pieces({"nonce": "x"})))
    data[-100] ^= 1

    done = subprocess.run(
        _boot.python_command(sys.executable), input=data, capture_output=True, timeout=60, check=False
    )

    assert done.returncode == _boot.DAMAGED


@pytest.fixture
def other_tag(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled is for another Python."""
    monkeypatch.setattr(_boot, "CODE_TAG", "another")
    _boot._compiled_files.cache_clear()
    yield
    _boot._compiled_files.cache_clear()


@pytest.mark.usefixtures("other_tag")
async def test_code_of_another_python_is_not_run() -> None:
    async with trickle.open_host(trickle.Local(python=sys.executable)) as host:
        assert await host.call(work.compiled_files) == {}


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in documented(tree):
        node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return tree


def documented(tree: ast.Module) -> list[ast.Module | ast.ClassDef | ast.FunctionDef]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None]


def statement_lines(source: str) -> set[tuple[str, int]]:
    return {(type(node).__name__, node.lineno) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)}
