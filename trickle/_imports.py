"""Read which modules a piece of source imports, without running it."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

from trickle._parsing import parse


class StaticImport(NamedTuple):
    """One module that source code names in an import statement."""

    name: str
    certain: bool  # False: the b of ``from a import b``, which may be an attribute of a
    guarded: bool  # inside a ``try``: the code knows what to do without it
    deferred: bool  # inside a function: needed when that is called, if ever


def static_imports(source: str, name: str, is_package: bool) -> tuple[StaticImport, ...]:
    """What the module *name* imports, as absolute names; empty for source that this Python cannot parse.

    Imports for type checkers or for Windows do not count.
    """
    if "import" not in source:
        return ()
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    package = name if is_package else name.rpartition(".")[0]
    found: dict[StaticImport, None] = {}
    for statement, guarded, deferred in _statements(tree):
        for imported, certain in _named_by(statement, package):
            found[StaticImport(imported, certain, guarded, deferred)] = None
    return tuple(found)


def _statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool, bool]]:
    """Every import statement in *tree*, whether a ``try`` is around it, and whether a function is.

    Only statements are visited: walking the expressions too takes ten times as long.
    """
    pending: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while pending:
        node, guarded, deferred = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, guarded, deferred
            continue
        fields = ("orelse",) if isinstance(node, ast.If) and _is_never_true(node.test) else _BODIES
        guarded = guarded or isinstance(node, ast.Try | ast.TryStar)
        deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in fields:
            pending.extend((child, guarded, deferred) for child in reversed(getattr(node, field, ())))


_BODIES = ("finalbody", "orelse", "handlers", "cases", "body")  # the last is visited first


def _is_never_true(test: ast.expr) -> bool:
    """Whether no far end ever takes this branch."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="sys"), attr="platform"),
            ops=[ast.Eq()],
            comparators=[ast.Constant(value="win32")],
        ):
            return True
    return False


def _named_by(statement: ast.stmt, package: str) -> Iterator[tuple[str, bool]]:
    """The modules that one import statement names, and whether each is certainly a module."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield alias.name, True
    elif isinstance(statement, ast.ImportFrom):
        base = absolute_name(statement.module or "", statement.level, package)
        if base:
            yield base, True
            for alias in statement.names:
                if alias.name != "*":
                    yield f"{base}.{alias.name}", False


def absolute_name(module: str, level: int, package: str) -> str:
    """What ``from <level dots><module>`` means inside *package*; empty when it leads outside."""
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level > len(parts):
        return ""
    kept = parts[: len(parts) - level + 1]
    return ".".join([*kept, module] if module else kept)
