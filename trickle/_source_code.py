"""Find the source of functions and of a script's definitions, as snippets that another Python can compile.

A snippet is a tuple that trickle/_agent/functions.py knows how to compile with its own lines and columns.
"""

import ast
import contextlib
import dis
import functools
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from trickle._parsing import parse

from ._agent.functions import compile_snippet, snippet_source

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinitionNode = FunctionNode | ast.ClassDef
TypeAliasNode: type[ast.stmt] = getattr(ast, "TypeAlias", ast.Nonlocal)  # 3.12; before, what no module has


class Snippet(NamedTuple):
    """Some lines of a file; ``compile_snippet`` in trickle/_agent/functions.py knows what to do with them."""

    filename: str
    line: int  # of the first
    text: str
    start: int = 0  # characters to ignore in the first line
    end: int = -1  # characters that count in the last line; -1: all
    before: str = ""
    after: str = ""
    features: tuple[str, ...] = ()


class NamesUsed(NamedTuple):
    """Global names in some code, and the modules that it imports itself."""

    before: frozenset[str]  # used as soon as a definition is executed: bases, decorators, defaults
    after: frozenset[str]  # used when what it defines is called
    imports: frozenset[tuple[str, int]]  # module and number of leading dots


def imported_from(name: str) -> tuple[str, str]:
    """The module that the script has *name* from, and what is called so there; empty if it is not from a module."""
    script = vars(sys.modules["__main__"])
    for filename in _files_of_script():
        file = source_file(filename, script)
        if file is not None and name in file.imported:
            return file.imported[name]
    return "", ""


def snippet_of_function(code: CodeType, module_globals: dict[str, Any]) -> Snippet | None:
    """The lambda or ``def``, without decorators, that *code* was compiled from; None if it is not found."""
    file = source_file(code.co_filename, module_globals)
    found = file.function(code) if file else None
    if file is not None and found is None:  # the module may have been reloaded since
        file = source_file(code.co_filename, module_globals, again=True)
        found = file.function(code) if file else None
    return found


def snippet_of_statement(name: str, value: Any) -> Snippet | None:
    """The statement of the script that makes *name* what it is; None if *value* is rather sent as data."""
    if isinstance(value, FunctionType | type) and value.__module__ != "__main__":
        return None
    for filename in _files_of(value):
        file = source_file(filename, vars(sys.modules["__main__"]))
        node = _defining_statement(file.bindings(name), name, value) if file else None
        if file is not None and node is not None:
            return file.statement(node)
    return None


@functools.lru_cache(maxsize=1_000)
def code_of_statement(snippet: Snippet) -> CodeType:
    """What a statement of the script is compiled to."""
    return compile_snippet(snippet)


def names_used_by_statement(snippet: Snippet) -> NamesUsed:
    """The global names that a statement of the script uses."""
    return names_used(code_of_statement(snippet))


@functools.lru_cache(maxsize=1_000)
def names_used(code: CodeType) -> NamesUsed:
    """The global names that *code* uses, those in the functions and classes that it defines included."""
    before: set[str] = set()
    after: set[str] = set()
    imports: set[tuple[str, int]] = set()
    pending = [(code, bool(code.co_flags & inspect.CO_OPTIMIZED))]
    for each, is_called_later in pending:
        loaded, imported = _names_in(each)
        (after if is_called_later else before).update(loaded)
        imports.update(imported)
        for inner in each.co_consts:
            if isinstance(inner, CodeType):
                at_once = not inner.co_flags & inspect.CO_OPTIMIZED or inner.co_name in _RUN_AT_ONCE
                pending.append((inner, is_called_later or not at_once))
    return NamesUsed(frozenset(before), frozenset(after), frozenset(imports))


@functools.lru_cache(maxsize=1_000)
def names_annotated(snippet: Snippet) -> frozenset[str]:
    """The names in annotations that are texts, of parameters and of what classes have: no code uses them."""
    names: set[str] = set()
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        for annotation in _annotations_in(parse(snippet_source(snippet))):
            names.update(_names_in_texts(annotation, "annotations" in snippet.features))
    return frozenset(names)


def _annotations_in(node: ast.AST, in_class: bool = False) -> Iterator[ast.expr]:
    """Those that Python keeps: none of a function's variables."""
    if isinstance(node, FunctionNode):
        parameters = [each for each in ast.iter_child_nodes(node.args) if isinstance(each, ast.arg)]
        yield from filter(None, [*(each.annotation for each in parameters), node.returns])
    elif isinstance(node, ast.AnnAssign) and in_class:
        yield node.annotation
    in_class = isinstance(node, ast.ClassDef) or (in_class and not isinstance(node, FunctionNode | ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _annotations_in(child, in_class)


def _names_in_texts(annotation: ast.AST, is_text: bool) -> Iterator[str]:
    """The names in the texts of an annotation, or in all of it if it is one itself."""
    match annotation:
        case ast.Name(id=name) if is_text:
            yield name
        case ast.Constant(value=str(text)):
            with contextlib.suppress(SyntaxError, ValueError, RecursionError):
                yield from _names_in_texts(parse(text.strip()), True)
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal") as value):
            yield from _names_in_texts(value, is_text)
        case ast.Subscript(
            value=ast.Name(id="Annotated") | ast.Attribute(attr="Annotated") as value,
            slice=ast.Tuple(elts=[first, *rest]),
        ):
            for each in (value, first, *[each for each in rest if not isinstance(each, ast.Constant)]):
                yield from _names_in_texts(each, is_text)
        case _:
            for child in ast.iter_child_nodes(annotation):
                yield from _names_in_texts(child, is_text)


@functools.lru_cache(maxsize=1_000)
def attributes_in(code: CodeType) -> frozenset[str]:
    """The names of attributes, and of globals, in *code* and all that it defines."""
    inner = (attributes_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(code.co_names).union(*inner)


_RUN_AT_ONCE = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "__annotate__"}


def _names_in(code: CodeType) -> tuple[set[str], set[tuple[str, int]]]:
    loaded: set[str] = set()
    stored: set[str] = set()
    imports: set[tuple[str, int]] = set()
    level: Any = 0  # IMPORT_NAME takes both from the stack: they are the constants before it
    names: Any = None
    for instruction in dis.get_instructions(code):
        opname, argument = instruction.opname, instruction.argval
        if opname == "STORE_NAME":
            stored.add(argument)
        elif opname in ("LOAD_GLOBAL", "STORE_GLOBAL") or (opname.startswith(_LOADS) and argument not in stored):
            loaded.add(argument)
        elif opname == "IMPORT_NAME":
            imports.add((argument, level))
            dot = "." if argument else ""
            imports.update((f"{argument}{dot}{name}", level) for name in names or () if name != "*")
        level, names = names, argument
    return loaded, imports


_LOADS = ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


class SourceFile:
    """A file's lines, and where in them functions and definitions are.

    Attributes:
      submodules: what its statements ``import a.b.c`` import.
      imported: where it has names from, outside functions and classes: the module, and what is called so there.
    """

    def __init__(self, filename: str, text: str) -> None:
        self.filename = filename
        self.text = text
        self._lines = text.split("\n")
        self._functions: dict[int, list[tuple[FunctionNode | ast.Lambda, str]]] = {}
        self._bindings: dict[str, list[ast.stmt]] = {}
        self._features: tuple[str, ...] = ()
        self.submodules: set[str] = set()
        self.imported: dict[str, tuple[str, str]] = {}
        try:
            tree = parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return  # what was compiled from it once is not there any more
        self._index_functions(tree)
        for node in _module_level(tree.body):
            for name in _bound_by(node):
                self._bindings.setdefault(name, []).append(node)
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                self._features += tuple(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = {alias.asname or alias.name: alias.name for alias in node.names}
                if "*" in names:
                    names = {name: name for name in _public_names(sys.modules.get(node.module))}
                self.imported.update((name, (node.module, names[name])) for name in names)

    def bindings(self, name: str) -> list[ast.stmt]:
        """The statements outside functions and classes that bind *name*, in order."""
        return self._bindings.get(name, [])

    def binds_before(self, name: str, line: int) -> bool:
        """Whether *name* is defined in this file, and nowhere below that line."""
        lines = [node.lineno for node in self.bindings(name)]
        return bool(lines) and max(lines) < line

    def statement(self, node: ast.stmt) -> Snippet:
        """A statement as it stands there, decorators included."""
        first = _first_line(node)
        start = self._characters(first, node.col_offset)
        before = ""
        if start:  # in the body of an ``if``, or behind a semicolon
            before = "if 1:\n" if first > 1 else "if 1:"
            if not self._lines[first - 1][:start].strip():
                start = 0
        return self._snippet(node, first, start, before=before)

    def function(self, code: CodeType) -> Snippet | None:
        """What *code* was compiled from, in a wrapping that binds its free variables."""
        if not all(name.isidentifier() for name in code.co_freevars):
            return None  # a type parameter's
        candidates = self._functions.get(code.co_firstlineno, [])
        if code.co_name == "<lambda>":
            return self._lambda(code, [each for each in candidates if isinstance(each[0], ast.Lambda)])
        for node, class_name in candidates:
            if not isinstance(node, ast.Lambda) and node.name == code.co_name and _fits(node, code):
                return self._def(node, class_name, code)
        return None

    def _lambda(self, code: CodeType, candidates: list[tuple[Any, str]]) -> Snippet | None:
        candidates = [(node, class_name) for node, class_name in candidates if _fits(node, code)]
        if len(candidates) > 1:
            inside = [each for each in candidates if _contains(each[0].body, code)]
            candidates = sorted(inside, key=lambda each: _extent(each[0]))
        if not candidates:
            return None
        node, class_name = candidates[0]
        before = f"(lambda {', '.join(code.co_freevars)}: ("
        if class_name:
            before = f"class {class_name}: wrapped = {before}"
        if node.lineno > 1:
            before += "\n"  # so that columns stay what they are
        start = self._characters(node.lineno, node.col_offset)
        end = self._characters(node.end_lineno, node.end_col_offset)
        return self._snippet(node, node.lineno, start, end, before, "\n))")

    def _def(self, node: FunctionNode, class_name: str, code: CodeType) -> Snippet:
        before = ""
        if node.col_offset:
            before = f"def wrap({', '.join(code.co_freevars)}):\n"
            if class_name:
                before = f"class {class_name}:\n {before}"
        return self._snippet(node, node.lineno, 0, before=before)

    def _snippet(self, node: Any, first: int, start: int, end: int = -1, before: str = "", after: str = "") -> Snippet:
        text = "\n".join(self._lines[first - 1 : node.end_lineno])
        return Snippet(self.filename, first, text, start, end, before, after, self._features)

    def _characters(self, line: int, column: int) -> int:
        """ast counts bytes of UTF-8."""
        return len(self._lines[line - 1].encode()[:column].decode())

    def _index_functions(self, tree: ast.Module) -> None:
        # The class around a function goes along, because the compiler mangles __names with it.
        pending: list[tuple[ast.AST, str]] = [(tree, "")]
        for node, class_name in pending:
            if isinstance(node, FunctionNode | ast.Lambda):
                self._functions.setdefault(_first_line(node), []).append((node, class_name))
            if isinstance(node, ast.Import):
                self.submodules.update(alias.name for alias in node.names if "." in alias.name and not alias.asname)
            inner = node.name if isinstance(node, ast.ClassDef) else class_name
            pending.extend((child, inner) for child in ast.iter_child_nodes(node))


def _public_names(module: object) -> list[str]:
    """What ``import *`` imports; nothing from a module that is not here."""
    names = getattr(module, "__dict__", {})
    return list(names.get("__all__") or (name for name in names if not name.startswith("_")))


_files: dict[str, SourceFile] = {}


def source_file(filename: str, module_globals: dict[str, Any], *, again: bool = False) -> SourceFile | None:
    """The file of that name as it was when it was first looked at; None if its text is not to be had."""
    if filename not in _files or again:
        linecache.checkcache(filename)
        text = "".join(linecache.getlines(filename, module_globals))
        if not text and filename == "<string>":
            text = _command_line_program()
        if not text:
            return None
        if filename not in _files or _files[filename].text != text:
            _files[filename] = SourceFile(filename, text)
    return _files[filename]


def text_looked_at(filename: str) -> str | None:
    """The text of a file that code was taken from; None if none was."""
    return _files[filename].text if filename in _files else None


def _command_line_program() -> str:
    """The program of ``python -c``, which Python itself keeps nowhere else before 3.13."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word.startswith("-") and not word.startswith("--") and word.endswith("c"):
            return next(words, "")
    return ""


def _files_of(value: Any) -> Iterator[str]:
    """The files in which the script may have defined *value*, the likeliest first."""
    members = vars(value).values() if isinstance(value, type) else [value]
    functions = [inspect.unwrap(member) for member in members if isinstance(member, FunctionType)]
    seen = dict.fromkeys(function.__code__.co_filename for function in functions)
    seen.update(dict.fromkeys(_files_of_script()))
    return iter(seen)


def _files_of_script() -> list[str]:
    script = getattr(sys.modules["__main__"], "__file__", None)
    files = [] if script is None else [script]
    if script is None or hasattr(sys, "ps1"):
        # What was typed into an interactive session or a notebook, the newest first; the program of python -c.
        cells = [name for name in linecache.cache if name.startswith("<") or "ipykernel" in name]
        files += [*reversed(cells), "<string>"]
    return files


def _defining_statement(nodes: list[ast.stmt], name: str, value: Any) -> ast.stmt | None:
    """The one of *nodes*, which bind *name*, whose execution makes it *value*."""
    if not nodes:
        return None
    last = nodes[-1]
    if isinstance(value, FunctionType):
        line = inspect.unwrap(value).__code__.co_firstlineno
        for node in nodes:
            if isinstance(node, FunctionNode) and _first_line(node) == line:
                return node if node.decorator_list or not hasattr(value, "__wrapped__") else None
        decorated = [each for each in nodes if isinstance(each, FunctionNode) and each.decorator_list]
        inner = set(_lines_within(value))  # of what a decorator has kept
        for node in decorated:
            if _first_line(node) in inner:
                return node
        return last if last in decorated else None
    if len(nodes) > 1:  # in branches, or one after the other
        last = _shown_by_lines(nodes, value) or _shown_by_constants(nodes, value) or last
    if isinstance(last, DefinitionNode):
        return last if last.decorator_list or isinstance(value, type) else None
    # A namedtuple, an enumeration by its function, a TypeVar: such an object is pickled by its name.
    own_name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    is_named = own_name == name and getattr(value, "__module__", None) == "__main__"
    return last if is_named and isinstance(last, (ast.Assign, ast.AnnAssign, TypeAliasNode)) else None


def _shown_by_lines(nodes: list[ast.stmt], value: Any) -> ast.stmt | None:
    """The definition in which the functions are that *value* has, or wraps."""
    members = vars(value).values() if isinstance(value, type) else [value]
    lines = {getattr(value, "__firstlineno__", 0)} if isinstance(value, type) else set()  # 3.13
    for member in members:
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        function = inspect.unwrap(function) if callable(function) else function
        if isinstance(function, FunctionType):
            lines.add(function.__code__.co_firstlineno)
    for node in reversed(nodes):
        if isinstance(node, DefinitionNode) and any(
            _first_line(node) <= line <= (node.end_lineno or 0) for line in lines
        ):
            return node
    return None


def _shown_by_constants(nodes: list[ast.stmt], value: Any) -> ast.stmt | None:
    """The one definition of a class whose constants *value* has, if the last one's are others."""
    classes = [each for each in nodes if isinstance(each, ast.ClassDef)] if isinstance(value, type) else []
    fits = {node: _constants_fit(node, vars(value)) for node in classes}
    fitting = [node for node in classes if fits[node]]
    return fitting[0] if len(fitting) == 1 and nodes[-1] in classes and fits[nodes[-1]] is False else None


def _constants_fit(node: ast.ClassDef, members: Mapping[str, Any]) -> bool | None:
    """Whether a class that is defined so has these members; None if there is nothing to tell by."""
    found: bool | None = None
    for each in node.body:
        match each:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=constant)):
                member = members.get(name, node)
                if type(member) is not type(constant) or member != constant:
                    return False
                found = True
    return found


def _lines_within(function: FunctionType) -> Iterator[int]:
    """Where the functions begin that are in a function's closure."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            if isinstance(cell.cell_contents, FunctionType):
                yield cell.cell_contents.__code__.co_firstlineno


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if not isinstance(node, DefinitionNode):
            for field in ("body", "handlers", "orelse", "finalbody", "cases"):
                yield from _module_level(getattr(node, field, []))


def _bound_by(node: ast.stmt) -> list[str]:
    if isinstance(node, DefinitionNode):
        return [node.name]
    if isinstance(node, TypeAliasNode):
        return [node.name.id]  # type: ignore[attr-defined]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", None)
    return int(decorators[0].lineno if decorators else node.lineno)  # type: ignore[attr-defined]


def _fits(node: FunctionNode | ast.Lambda, code: CodeType) -> bool:
    """Whether the parameters are the same: if not, the file has changed."""
    arguments = node.args
    names = [each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    names += [each.arg for each in (arguments.vararg, arguments.kwarg) if each]
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    theirs = code.co_varnames[:count]
    # The compiler has mangled names of two underscores.
    return len(names) == count and all(map(str.endswith, theirs, names))


def _contains(node: ast.expr, code: CodeType) -> bool:
    """Whether all instructions of *code* come from within *node*."""
    first = (node.lineno, node.col_offset)
    last = (node.end_lineno or 0, node.end_col_offset or 0)
    has_positions = False  # Python can be told not to keep them (-X no_debug_ranges)
    for line, end_line, column, end_column in code.co_positions():
        if line is None or end_line is None or column is None or end_column is None or column == end_column:
            continue  # bookkeeping
        has_positions = True
        if (line, column) < first or (end_line, end_column) > last:
            return False
    return has_positions


def _extent(node: ast.expr) -> tuple[int, int]:
    """Sorts nested nodes so that the innermost comes first."""
    lines = (node.end_lineno or 0) - node.lineno
    return lines, 0 if lines else (node.end_col_offset or 0) - node.col_offset
