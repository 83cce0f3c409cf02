"""Find the source of modules for far ends, and what else of them is needed there.  Read once, shared by all hosts.

Nothing is ever imported here on behalf of a host: modules are found by the import system and read.  What a host is
sent, and may be sent, is _module_server.py's job.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import struct
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FrozenImporter, ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from pickle import dumps
from pkgutil import iter_modules
from types import CodeType
from typing import Any, NamedTuple

from . import _boot
from ._import_reader import ImportReader
from ._imports import StaticImport, static_imports

MAX_PACKED = 64  # bundles kept packed: one for each different function called, mostly
MAX_REFUSALS = 20_000  # names that are remembered not to be there: hosts can ask for any
BARE = 64  # bytes of compressed source up to which a package is taken to have none
SMALL_UNIT = 512 * 1024  # bytes of source up to which what a host may need is sent before it is known to

# The far end has its own of these, or must not have them.
NEVER_SENT = frozenset({"__main__", "__mp_main__", "trickle", "sitecustomize", "usercustomize"})
# In every controller's standard library, not in every far end's.
NEWER_THAN_3_6 = frozenset({"annotationlib", "compression", "contextvars", "dataclasses", "graphlib"})
NEWER_THAN_3_6 |= {"_contextvars", "tomllib", "zoneinfo"}

STANDARD_LIBRARY = sys.stdlib_module_names | set(sys.builtin_module_names)


class ModuleEntry(NamedTuple):
    """One answer as it travels.

    *kind* is "module", "package" or "namespace"; the first two with "spare " before them where the host's own copy
    of the package comes first; "elsewhere" of a package that a host without a copy has to ask for once more;
    "missing", with the reason in place of *filename*, or nothing where an ordinary "No module named" says it all.
    What is no module has the kind "data", "listing", "metadata" or "code": of a module, compiled, with the number of
    the Pythons that can run it in place of *filename*.
    """

    name: str
    kind: str
    filename: str  # of a namespace, its folders, a line each
    source: bytes  # compressed by zlib, in UTF-8
    children: tuple[str, ...] = ()  # of a package: see `_children_in`

    @property
    def text(self) -> str:
        """The source, as text."""
        return zlib.decompress(self.source).decode() if self.source else ""


class ModuleLibrary:
    """The modules of this program that can be sent, read once and shared by all hosts.

    May be used from several threads, one at a time.
    """

    def __init__(self, never_sent: frozenset[str] = NEVER_SENT) -> None:
        self._never_sent = never_sent
        self._lock = threading.RLock()
        self._entries: dict[str, ModuleEntry] = {}
        self._refusals: dict[str, str] = {}
        self._specs: dict[str, ModuleSpec | None] = {}
        self._units: dict[str, Compiled | None] = {}
        self._imports: dict[str, tuple[StaticImport, ...]] = {}
        self._closures: dict[tuple[str, bool, bool], tuple[ModuleEntry, ...]] = {}
        self._bytecode: dict[str, ModuleEntry | None] = {}
        self._packed: OrderedDict[tuple[ModuleEntry, ...], bytes] = OrderedDict()
        self._path: list[str] = []
        self._reader: ImportReader | None = None
        self.times_packed: int = 0

    def find(self, name: str) -> ModuleEntry | None:
        """The module *name*, ready to send, or None where the far end's own copy counts."""
        with self._lock:
            self._notice_new_paths()
            entry = self._entries.get(name)
            if entry is None and name not in self._refusals:
                if len(self._refusals) + len(self._specs) + len(self._closures) > MAX_REFUSALS:
                    self._forget(self._refusals, self._specs, self._closures)
                try:
                    entry = self._entries[name] = self._read(name)
                except LookupError as exc:
                    self._refusals[name] = str(exc.args[0])
            return entry

    def why_not(self, name: str) -> str:
        """Why *name* is not sent: a clause that fits after a colon; empty if it is sent."""
        with self._lock:
            return "" if self.find(name) else self._refusals[name]

    def spec(self, name: str) -> ModuleSpec | None:
        """Where *name* is, without importing it or its parents."""
        with self._lock:
            return self._spec(name)

    def closure(self, names: Iterable[str]) -> list[str]:
        """*names* and all that their code imports, as far as it can be sent; parents come before children."""
        return [entry.name for entry in self.entries_for(names) if entry.kind not in ("missing", "elsewhere")]

    def entries_for(self, names: Iterable[str], *, asked: bool = False, spare: bool = False) -> list[ModuleEntry]:
        """The closure of *names*, and a "missing" entry for each import in it that cannot be answered.

        Args:
          asked: whether a host has asked for them, so that they are not all that it will want of their packages.
          spare: whether they are packages that the host is known to have no copies of.
        """
        found: dict[str, ModuleEntry] = {}
        with self._lock, contextlib.closing(ImportReader()) as self._reader:
            try:
                for name in names:
                    for entry in self._closure_of(name, asked, spare):
                        found.setdefault(entry.name, entry)
            finally:
                self._reader = None
        return list(found.values())

    def missing(self, name: str) -> ModuleEntry:
        """The answer that there is nothing to send for *name*."""
        reason = self.why_not(name)
        return ModuleEntry(name, "missing", "" if reason in (NOT_FOUND, THEIRS) else reason, b"")

    def text_of_file(self, filename: str) -> str | None:
        """The source that was read from a file of that name; None if none was."""
        with self._lock:
            texts = [entry.text for entry in self._entries.values() if entry.filename == filename]
        return texts[0] if texts else None

    def pack(self, entries: tuple[ModuleEntry, ...]) -> bytes:
        """*entries* as one bundle; packed once, however many hosts it goes to."""
        with self._lock:
            packed = self._packed.get(entries)
            if packed is None:
                self.times_packed += 1
                packed = self._packed[entries] = dumps([tuple(entry) for entry in entries], protocol=4)
                if len(self._packed) > MAX_PACKED:
                    self._packed.popitem(last=False)
            return packed

    def bytecode_of(self, entry: ModuleEntry) -> ModuleEntry | None:
        """The code of a module, ready to send beside its source; None where this Python has not kept it."""
        with self._lock:
            if entry.name not in self._bytecode:
                spec = self._spec(entry.name) if entry.source else None
                code = bytecode(spec) if spec is not None and spec.origin == entry.filename else b""
                compressed = zlib.compress(code, 1)  # it does not go far
                found = ModuleEntry(f"{entry.name}#", "code", MAGIC_NUMBER.hex(), compressed) if code else None
                self._bytecode[entry.name] = found
            return self._bytecode[entry.name]

    def imports_of(self, entry: ModuleEntry) -> tuple[StaticImport, ...]:
        """What a module names in import statements."""
        with self._lock:
            imports = self._imports.get(entry.name)
            if imports is None:
                imports = self._imports[entry.name] = self._read_imports(entry) if entry.source else ()
            return imports

    def _read_imports(self, entry: ModuleEntry) -> tuple[StaticImport, ...]:
        imports = self._reader.imports_of(self._spec(entry.name)) if self._reader is not None else None
        if imports is not None:
            return imports
        code = self._code(entry)
        return static_imports(code, entry.name, not entry.kind.endswith("module")) if code is not None else ()

    def _notice_new_paths(self) -> None:
        """Look again, if the program has since changed where it looks."""
        if sys.path != self._path:
            self._path = list(sys.path)
            self._forget(self._refusals, self._specs, self._closures, self._entries, self._imports, self._units)
            self._forget(self._bytecode)

    def _forget(self, *tables: dict[Any, Any]) -> None:
        for table in tables:
            table.clear()

    # ---- closures

    def _closure_of(self, name: str, asked: bool, spare: bool) -> tuple[ModuleEntry, ...]:
        self._notice_new_paths()
        closure = self._closures.get((name, asked, spare))
        if closure is None:
            closure = self._closures[name, asked, spare] = tuple(self._walk(name, asked, spare))
        return closure

    def _walk(self, name: str, asked: bool, spare: bool) -> list[ModuleEntry]:
        """Follow the imports from *name*, breadth first."""
        found: dict[str, ModuleEntry] = {}
        seen: set[tuple[str, bool]] = set()
        unit = self.unit_of(name) if spare else ""
        pending = [StaticImport(name, certain=True, deferred=False)]
        for wanted in pending:
            if (wanted.name, wanted.certain) in seen:
                continue
            seen.add((wanted.name, wanted.certain))
            for each in (*parents(wanted.name), wanted.name):
                if each in found:
                    continue
                entry = self.find(each)
                if entry is None:
                    if self._worth_denying(wanted, each):
                        found[each] = self.missing(each)
                elif entry.kind.startswith("spare") and self._is_large(each) and self.unit_of(each) != unit:
                    # Hosts mostly have their own of these.
                    top = self.unit_of(each)
                    found[top] = ModuleEntry(top, "elsewhere", "", b"")
                    break
                else:
                    found[each] = entry
                    pending.extend(self._followed(entry, asked))
        return list(found.values())

    def _is_large(self, name: str) -> bool:
        compiled = self._compiled_in(self.unit_of(name))
        return compiled is not None and compiled.size > SMALL_UNIT

    def _worth_denying(self, wanted: StaticImport, name: str) -> bool:
        """Whether the far end would otherwise come and ask for *name*, which is not sent."""
        top, dot, _ = name.partition(".")
        if top in STANDARD_LIBRARY:
            return name == top and (top in NEWER_THAN_3_6 or self._spec(top) is None)
        if not dot:
            return top not in self._never_sent
        parent = self.find(name.rpartition(".")[0])
        if parent is None or parent.kind.endswith("module"):
            return False  # nobody asks below what is not sent, or is no package
        last = name.rpartition(".")[2]
        return (AND_MORE in parent.children and wanted.certain) or last in [c.rstrip("/?") for c in parent.children]

    def _followed(self, entry: ModuleEntry, asked: bool) -> Iterator[StaticImport]:
        """The imports of a module that belong in its closure.

        The program's own functions import what they need; those of an installed package mostly what is
        optional or meant for tests: for trio that would bring in pytest, and 800 KB.  But once a host has asked for
        what was not foreseen, it gets what functions import from their own package in one go: for sympy's integrals
        and equations that saves five questions, and costs a third more bytes.
        """
        installed = is_installed(entry.filename)
        top = entry.name.partition(".")[0]
        for each in self.imports_of(entry):
            is_near = asked and each.name.partition(".")[0] == top and not _FOR_TESTS.intersection(each.name.split("."))
            # That something is not there costs next to nothing to say.
            is_nowhere = each.certain and self._spec_of_top(each.name) is None
            if not (installed and each.deferred) or is_near or is_nowhere:
                yield each
        if asked and entry.kind.endswith("package"):
            yield from self._bare_packages(entry)

    def _bare_packages(self, entry: ModuleEntry) -> Iterator[StaticImport]:
        """Packages below that hold nothing but data, or other packages: who asks for one mostly wants its data."""
        for child in entry.children:
            below = self.find(f"{entry.name}.{child[:-1]}") if child.endswith("/") else None
            if below is not None and len(below.source) < BARE and not self.imports_of(below):
                yield StaticImport(below.name, certain=False, deferred=False)

    def _spec_of_top(self, name: str) -> ModuleSpec | None:
        return self._spec(name.partition(".")[0])

    def _code(self, entry: ModuleEntry) -> CodeType | None:
        """The code of a module; Python's own cache has it, mostly, and is filled as an import would."""
        spec = self._spec(entry.name)
        try:
            code = spec.loader.get_code(entry.name)  # type: ignore[union-attr]
        except Exception:  # any loader's own trouble; source for another Python
            code = None
        if isinstance(code, CodeType):
            return code
        try:
            return compile(entry.text, entry.filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError):
            return None

    # ---- one module

    def _read(self, name: str) -> ModuleEntry:
        """Find and read *name*; LookupError with the reason if it cannot be sent."""
        top = name.partition(".")[0]
        if name in _boot.SENT_LATER:
            source = _boot.lean_source(_boot.SENT_LATER[name])
            return ModuleEntry(name, "module", f"<trickle>/{_boot.SENT_LATER[name]}", zlib.compress(source.encode(), 9))
        if top in STANDARD_LIBRARY or top in self._never_sent:
            raise LookupError(THEIRS)
        spec = self._spec(name)
        if spec is None:
            raise LookupError(MADE_HERE if name in sys.modules else NOT_FOUND)
        kind = "module"
        children: tuple[str, ...] = ()
        if spec.submodule_search_locations is None:
            source = _source(spec)
        elif spec.origin is None:
            folders = "\n".join(spec.submodule_search_locations)
            return ModuleEntry(name, "namespace", folders, b"", _children_in(spec.submodule_search_locations))
        else:
            kind, source = "package", _source(spec)
            children = _children_in(spec.submodule_search_locations)
            if "__path__" in source:
                children += (AND_MORE,)
        if self._compiled_in(self.unit_of(name)) is not None:
            kind = f"spare {kind}"
        source = source.replace("\r\n", "\n")
        return ModuleEntry(name, kind, _filename(spec), zlib.compress(source.encode()), children)

    def unit_of(self, name: str) -> str:
        """The package that must not be mixed of two copies: that of the top level, below namespaces."""
        for each in (*parents(name), name):
            spec = self._spec(each)
            if spec is None or spec.origin is not None or spec.submodule_search_locations is None:
                return each
        return name

    def _spec(self, name: str) -> ModuleSpec | None:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if isinstance(spec, ModuleSpec) and spec.name == name:
            return spec
        if name not in self._specs:
            self._specs[name] = self._search(name)
        return self._specs[name]

    def _search(self, name: str) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        path: list[str] | None = None
        if parent:
            parent_spec = self._spec(parent)
            locations = getattr(sys.modules.get(parent), "__path__", None)
            if locations is None and parent_spec is not None:
                locations = parent_spec.submodule_search_locations
            if locations is None:
                return None
            path = list(locations)
        for finder in list(sys.meta_path):
            spec = _ask(finder, name, path)
            if spec is not None:
                _add_portions(spec, sys.path if path is None else path)
                return spec
        return None

    def _compiled_in(self, unit: str) -> Compiled | None:
        """What is compiled in a top-level package; None if nothing is."""
        if unit not in self._units:
            spec = self._spec(unit)
            if spec is None:
                self._units[unit] = None
            elif isinstance(spec.loader, ExtensionFileLoader):
                self._units[unit] = Compiled(Path(spec.loader.path).name, 0)
            else:
                self._units[unit] = _compiled_file(list(spec.submodule_search_locations or ()))
        return self._units[unit]


class Compiled(NamedTuple):
    """Of a package that is not all source: some compiled file, and how many bytes of source there are."""

    file: str
    size: int


NOT_FOUND = "this program cannot find it either"
THEIRS = "the host's own copy counts"
MADE_HERE = "it was made by this program while it ran, so there is nothing to send"
_FOR_TESTS = frozenset({"tests", "_tests", "test", "testing", "conftest"})
AND_MORE = "..."  # among a package's children: there may be more


def is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed package, and not to the program's own code."""
    return "site-packages" in filename or "dist-packages" in filename


def parents(name: str) -> list[str]:
    """The packages around *name*, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _ask(finder: object, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What one finder of `sys.meta_path` says."""
    if type(finder).__module__ == "_distutils_hack":
        return None  # setuptools': it imports setuptools in order to answer
    find_spec = getattr(finder, "find_spec", None)
    if find_spec is None:
        return None
    try:
        spec = find_spec(name, path)
    except KeyError:
        # A namespace package below one that is not imported: its path object wants the parent.
        return _nested_namespace(name, path or ())
    except Exception:  # somebody else's finder, asked out of turn
        return None
    return spec if isinstance(spec, ModuleSpec) else None


def _nested_namespace(name: str, path: Sequence[str]) -> ModuleSpec | None:
    folders = [os.path.join(folder, name.rpartition(".")[2]) for folder in path]  # noqa: PTH118
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [folder for folder in folders if Path(folder).is_dir()]
    return spec if spec.submodule_search_locations else None


def _compiled_file(folders: list[str]) -> Compiled | None:
    found, size = "", 0
    for folder in folders:
        for where, subfolders, files in os.walk(folder):
            # Only what can be imported: not an environment or a build tree beside the code.
            subfolders[:] = sorted(each for each in subfolders if each.isidentifier())
            for file in sorted(files):
                if file.endswith((".so", ".pyd")):
                    found = found or file
                elif file.endswith(".py"):
                    size += Path(where, file).stat().st_size
    return Compiled(found, size) if found else None


def _add_portions(spec: ModuleSpec, path: Sequence[str]) -> None:
    """Find the other portions of a package that looks for them itself when it is imported."""
    if spec.submodule_search_locations is None or spec.origin is None:
        return
    try:
        source = _source(spec)
    except LookupError:
        return
    if "extend_path" in source or "declare_namespace" in source:
        others = [os.path.join(folder, spec.name.rpartition(".")[2]) for folder in path]  # noqa: PTH118
        known = list(spec.submodule_search_locations)
        new = [folder for folder in others if Path(folder, "__init__.py").exists() and folder not in known]
        spec.submodule_search_locations = known + new


def _children_in(locations: Iterable[str]) -> tuple[str, ...]:
    """The modules right below a package, so that a far end need not ask for what is not there.

    Packages have a "/" behind their names, mere folders, which may be namespaces, a "?".  Where a finder of its own
    may know of others, AND_MORE is among them.
    """
    names: set[str] = set()
    for location in locations:
        if not Path(location).is_dir():
            names |= {found.name + "/" * found.ispkg for found in iter_modules([location])} | {AND_MORE}
            continue
        for entry in os.scandir(location):
            if entry.is_dir():
                if entry.name.isidentifier() and entry.name != "__pycache__":
                    names.add(entry.name + ("/" if Path(entry.path, "__init__.py").exists() else "?"))
            else:
                stem = next((entry.name[: -len(end)] for end in _SUFFIXES if entry.name.endswith(end)), "")
                if stem.isidentifier() and stem != "__init__":
                    names.add(stem)
    return tuple(sorted(names))


_SUFFIXES = (*EXTENSION_SUFFIXES, ".so", ".pyd", ".py", ".pyc")


def _source(spec: ModuleSpec) -> str:
    """The source of a module by its own loader; LookupError if there is none."""
    loader: Any = spec.loader
    if loader is FrozenImporter:
        raise LookupError(f"{spec.name} is frozen into this program's Python, and has no source to send")
    source = None
    try:
        if isinstance(loader, ExtensionFileLoader):
            # What it was compiled from, where that is Python too (mypyc, Cython's pure mode).
            source = importlib.util.decode_source(Path(_filename(spec)).read_bytes())
        elif hasattr(loader, "get_source"):
            source = loader.get_source(spec.name)
        elif hasattr(loader, "get_data") and spec.origin:
            source = importlib.util.decode_source(loader.get_data(spec.origin))
    except Exception as exc:  # any loader's own trouble: decoding, reading, a zip that is gone
        if isinstance(loader, ExtensionFileLoader):
            file = Path(loader.path).name
            raise LookupError(f"{spec.name} is an extension module ({file}), which cannot be sent") from exc
        raise LookupError(f"its source cannot be read ({type(exc).__name__}: {exc})") from exc
    if not isinstance(source, str):
        raise LookupError(f"it has no Python source ({type(loader).__name__})")
    return source


def bytecode(spec: ModuleSpec) -> bytes:
    """The code of a module, marshalled, from Python's own cache; empty if that has none that fits the source.

    It is not loaded: that would hold up all other threads.
    """
    if type(spec.loader) is not SourceFileLoader or spec.origin is None:
        return b""  # who has a loader of its own may make something else of the source
    try:
        cached = Path(importlib.util.cache_from_source(spec.origin, optimization="")).read_bytes()
        status = Path(spec.origin).stat()
    except (OSError, NotImplementedError):  # sys.implementation.cache_tag is None
        return b""
    head = (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)  # 0: it goes by the other two
    return cached[16:] if cached[:16] == MAGIC_NUMBER + struct.pack("<3I", *head) else b""


def _filename(spec: ModuleSpec) -> str:
    if isinstance(spec.loader, ExtensionFileLoader):
        return re.sub(r"(\.[\w-]+)?\.(so|pyd)$", "", spec.loader.path) + ".py"
    return spec.origin if spec.has_location and spec.origin else f"<{spec.name}>"


LIBRARY = ModuleLibrary()  # shared by all hosts of this program
RECURSIVE = ModuleLibrary(NEVER_SENT - {"trickle"})  # for those that use trickle over there
