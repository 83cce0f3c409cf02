"""Find the syntax in a piece of source that older Pythons do not have, so that errors and people can name it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from trickle._parsing import parse

OLDEST = (3, 6)


class NewSyntax(NamedTuple):
    """Something that Python before *version* does not parse."""

    version: tuple[int, int]
    line: int
    name: str


def new_syntax(source: str) -> list[NewSyntax]:
    """What in *source* is newer than Python 3.6, in the order of its lines; nothing if it cannot be parsed."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines = source.split("\n")
    found = [
        NewSyntax(version, getattr(node, "lineno", 1), name)
        for node in ast.walk(tree)
        for version, name in _new_in(node, lines)
    ]
    return sorted(found, key=lambda each: each.line)


def lowest_version(source: str) -> tuple[int, int]:
    """The oldest Python that has the syntax of *source*, as far as it can be told."""
    return max([each.version for each in new_syntax(source)], default=OLDEST)


def _new_in(node: ast.AST, lines: list[str]) -> Iterator[tuple[tuple[int, int], str]]:
    match node:
        case ast.ImportFrom(module="__future__", names=names) if any(each.name == "annotations" for each in names):
            yield (3, 7), "from __future__ import annotations"
        case ast.NamedExpr():
            yield (3, 8), "an assignment expression (:=)"
        case ast.arguments(posonlyargs=[_, *_] as parameters):
            yield (3, 8), f"a positional-only parameter ({parameters[-1].arg}, /)"
        case ast.JoinedStr(values=values):
            yield from _new_in_string(node, values, lines)
        case ast.Return(value=ast.Tuple() as value) | ast.Yield(value=ast.Tuple() as value) if _has_bare_star(
            value, lines
        ):
            yield (3, 8), "a star in a return or yield without parentheses"
        case ast.For(iter=ast.Tuple() as value) | ast.AsyncFor(iter=ast.Tuple() as value) if _has_bare_star(
            value, lines
        ):
            yield (3, 9), "a star in a for loop without parentheses"
        case ast.With(items=items) | ast.AsyncWith(items=items) if _are_in_parentheses(items, lines):
            yield (3, 9), "with statements in parentheses"
        case ast.Match():
            yield (3, 10), "a match statement"
        case ast.TryStar():
            yield (3, 11), "except*"
        case ast.Subscript(slice=ast.Tuple(elts=elements)) if any(isinstance(each, ast.Starred) for each in elements):
            yield (3, 11), "a star in an index"
        case ast.ExceptHandler(type=ast.Tuple() as value) if not _text_at(value, lines).startswith("("):
            yield (3, 14), "except with several classes and no parentheses"
    if type(node).__name__ == "TypeAlias":
        yield (3, 12), "a type statement"
    elif getattr(node, "type_params", ()):
        yield (3, 12), "type parameters"
    elif type(node).__name__ == "TemplateStr":
        yield (3, 14), "a template string"
    elif getattr(node, "default_value", None) is not None:
        yield (3, 13), "a default of a type parameter"
    for decorator in getattr(node, "decorator_list", ()):
        if not _is_plain_decorator(decorator):
            yield (3, 9), "a decorator that is any expression"


def _is_plain_decorator(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    while isinstance(called, ast.Attribute):
        called = called.value
    return isinstance(called, ast.Name)


def _text_at(node: Any, lines: list[str]) -> str:
    text: str = lines[node.lineno - 1].encode()[node.col_offset :].decode()
    return text


def _has_bare_star(value: ast.Tuple, lines: list[str]) -> bool:
    has_star = any(isinstance(element, ast.Starred) for element in value.elts)
    return has_star and not _text_at(value, lines).startswith("(")


def _are_in_parentheses(items: list[ast.withitem], lines: list[str]) -> bool:
    """Whether one pair of parentheses is around them all: it closes behind the last, and not behind the first."""
    if len(items) == 1 and items[0].optional_vars is None:
        return False
    first, last = (item.optional_vars or item.context_expr for item in (items[0], items[-1]))
    closes_early = len(items) > 1 and _text_behind(first, lines).startswith(")")
    return _text_behind(last, lines).removeprefix(",").lstrip().startswith(")") and not closes_early


def _text_behind(node: Any, lines: list[str]) -> str:
    """What follows a node, comments and line ends left out."""
    behind = [
        lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode(),
        *lines[node.end_lineno : node.end_lineno + 20],
    ]
    return " ".join(line.split("#")[0].strip() for line in behind).lstrip()


def _new_in_string(node: Any, values: list[ast.expr], lines: list[str]) -> Iterator[tuple[tuple[int, int], str]]:
    for before, value in zip([None, *values], values, strict=False):
        if isinstance(value, ast.FormattedValue) and isinstance(before, ast.Constant):
            text = str(before.value).rstrip()
            if text.endswith("=") and text[:-1].rstrip().endswith(ast.unparse(value.value)):
                yield (3, 8), "an f-string with ="
    # What stands in the braces has a position of its own since 3.12, which is also when it may have any quotes.
    if sys.version_info >= (3, 12):
        opening = _text_at(node, lines).lstrip("fFrR")[:1]
        inner = [value for value in values if isinstance(value, ast.FormattedValue)]
        texts = [ast.get_source_segment("\n".join(lines), value.value) or "" for value in inner]
        if not _text_at(node, lines).lstrip("fFrR").startswith(opening * 3) and any(
            opening in text or "\\" in text or "\n" in text for text in texts
        ):
            yield (3, 12), "an f-string with quotes, backslashes or lines in its braces"
