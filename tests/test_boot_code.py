"""What is sent of the agent's files: all that they do, every line where it was, nothing that is for readers only."""

import ast
import io
import tokenize

import pytest

from trickle import _boot

FILES = sorted({*_boot.shipped_files().values(), "_agent/loader.py"})


@pytest.mark.parametrize("path", FILES)
def test_what_is_sent_of_a_file_does_the_same(path: str) -> None:
    source = _boot._read(path)

    sent = _boot._lean(source)

    assert ast.dump(ast.parse(sent)) == ast.dump(without_docstrings(ast.parse(source)))
    assert statement_lines(sent) >= statement_lines(source) - docstring_lines(source)


@pytest.mark.parametrize("path", FILES)
def test_no_comments_are_sent(path: str) -> None:
    sent = _boot._lean(_boot._read(path))

    tokens = tokenize.generate_tokens(io.StringIO(sent).readline)
    assert not [token.line for token in tokens if token.type == tokenize.COMMENT]


def test_what_looks_like_a_comment_in_a_string_is_kept() -> None:
    source = "a = 'ü # 1'  # one\nb = b'#', \"\"\"\n# two\n\"\"\"  # ü\nc = f'# {a} #'  # three '#'\n"

    sent = _boot._lean(source)

    assert sent == "a = 'ü # 1'\nb = b'#', \"\"\"\n# two\n\"\"\"\nc = f'# {a} #'"


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in documented(tree):
        node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return tree


def documented(tree: ast.Module) -> list[ast.Module | ast.ClassDef | ast.FunctionDef]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None]


def statement_lines(source: str) -> set[tuple[str, int]]:
    return {(type(node).__name__, node.lineno) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)}


def docstring_lines(source: str) -> set[tuple[str, int]]:
    return {("Expr", node.body[0].lineno) for node in documented(ast.parse(source))}
