"""Read which modules a piece of code imports, without running it.

It reads bytecode: Python keeps that beside the source, and reading it is forty times as fast as parsing.
Also a program of its own, for _import_reader.py: it answers questions, a line of JSON each.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple


class StaticImport(NamedTuple):
    """One module that code names in an import statement."""

    name: str
    certain: bool  # False: the b of ``from a import b``, which may be an attribute of a
    deferred: bool  # inside a function: needed when that is called, if ever


def static_imports(code: CodeType, name: str, is_package: bool) -> tuple[StaticImport, ...]:
    """What the module *name* imports, as absolute names.

    Imports for type checkers or for Windows do not count.
    """
    package = name if is_package else name.rpartition(".")[0]
    found: dict[StaticImport, None] = {}
    pending = [(code, False)]
    for each, deferred in pending:
        if _IMPORT_NAME in each.co_code[::2]:
            for module, level, names in _statements(each):
                for imported, certain in _named_by(module, level, names, package):
                    found[StaticImport(imported, certain, deferred)] = None
        for inner in each.co_consts:
            if isinstance(inner, CodeType):
                pending.append((inner, deferred or bool(inner.co_flags & _IN_FUNCTION)))
    return tuple(found)


Statement = tuple[str, int, tuple[str, ...]]  # module, leading dots, names: of ``from ..module import names``

_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_EXTENDED_ARG = dis.opmap["EXTENDED_ARG"]
_LOAD_CONST = dis.opmap["LOAD_CONST"]
_LOAD_SMALL_INT = dis.opmap.get("LOAD_SMALL_INT")  # 3.14
_IN_FUNCTION = 1  # CO_OPTIMIZED: neither a module nor the body of a class


def _statements(code: CodeType) -> Iterator[Statement]:
    """The import statements in *code* itself."""
    if "TYPE_CHECKING" in code.co_names or "win32" in code.co_consts or sys.version_info >= (3, 15):
        return _statements_that_count(code)
    return _statements_by_opcode(code)


def _statements_by_opcode(code: CodeType) -> Iterator[Statement]:
    """All of them, twenty times as fast as `dis` is."""
    opcodes, arguments = code.co_code[::2], code.co_code[1::2]

    def before(index: int) -> tuple[int, int, int]:
        """Where the instruction that ends before *index* begins, its opcode and its argument."""
        start, argument = index - 1, arguments[index - 1]
        shift = 8
        while start and opcodes[start - 1] == _EXTENDED_ARG:
            start -= 1
            argument |= arguments[start] << shift
            shift += 8
        return start, opcodes[index - 1], argument

    index = opcodes.find(_IMPORT_NAME)
    while index >= 0:
        start, _, name = before(index + 1)
        start, opcode, names = before(start)
        level_start, level_opcode, level = before(start)
        if opcode == _LOAD_CONST and level_start >= 0:
            number = code.co_consts[level] if level_opcode == _LOAD_CONST else level
            yield code.co_names[name], number, code.co_consts[names] or ()
        index = opcodes.find(_IMPORT_NAME, index + 1)


def _statements_that_count(code: CodeType) -> Iterator[Statement]:
    """Those that are not behind ``if TYPE_CHECKING`` or ``if sys.platform == "win32"``."""
    skip_until = -1
    values: list[object] = [None, None, None]  # of the instructions before
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name in _NO_VALUE:
            continue
        if instruction.offset >= skip_until:
            if name.startswith("POP_JUMP") and name.endswith("IF_FALSE") and _is_never_true(values):
                skip_until = value
            elif name == "IMPORT_NAME":
                level, names = values[-2:]
                if isinstance(level, int) and isinstance(names, tuple | None):
                    yield value, level, names or ()
        values = [*values[1:], value]


_NO_VALUE = {"CACHE", "EXTENDED_ARG", "RESUME", "NOP", "TO_BOOL", "NOT_TAKEN", "PRECALL"}


def _is_never_true(values: list[object]) -> bool:
    """Whether a condition that was computed from these is true on no far end."""
    return values[-1] == "TYPE_CHECKING" or (values[-1] in _EQUAL and values[-3:-1] == ["platform", "win32"])


_EQUAL = ("==", "bool(==)")


def _named_by(module: str, level: int, names: tuple[str, ...], package: str) -> Iterator[tuple[str, bool]]:
    """The modules that one import statement names, and whether each is certainly a module."""
    base = absolute_name(module, level, package)
    if base:
        yield base, True
        for name in names:
            if name != "*":
                yield f"{base}.{name}", False


def absolute_name(module: str, level: int, package: str) -> str:
    """What ``from <level dots><module>`` means inside *package*; empty when it leads outside."""
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level > len(parts):
        return ""
    kept = parts[: len(parts) - level + 1]
    return ".".join([*kept, module] if module else kept)


def _answer_questions() -> None:
    """For each line with the name of a module, whether it is a package, and its file: what it imports."""
    import json
    from importlib.machinery import SourceFileLoader

    for line in sys.stdin.buffer:
        name, is_package, filename = json.loads(line)
        try:
            code = SourceFileLoader(name, filename).get_code(name)  # keeps the bytecode, as an import would
        except Exception:  # source for another Python; a file that is gone
            code = None
        found = static_imports(code, name, is_package) if code is not None else ()
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _answer_questions()
