"""Find the source of modules for far ends, and decide what each far end is sent.

Nothing is ever imported here on behalf of a host: modules are found by the import system and read.
"""

import fnmatch
import importlib.machinery
import importlib.util
import os
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from pickle import dumps
from typing import Any, NamedTuple, Protocol

from ._imports import StaticImport, static_imports

MAX_NAME = 255  # characters in a dotted name; a host that asks for more is not ours
MAX_QUESTIONS = 10_000  # that one host may ask: about forty times what trio's whole test suite imports
MAX_PACKED = 64  # bundles kept packed: one for each different function called, mostly

# The far end has its own of these, or must not have them.
NEVER_SENT = frozenset({"__main__", "__mp_main__", "trickle", "sitecustomize", "usercustomize"})
# In every controller's standard library, not in every far end's.
NEWER_THAN_3_6 = frozenset({"annotationlib", "compression", "contextvars", "dataclasses", "graphlib"})
NEWER_THAN_3_6 |= {"_contextvars", "tomllib", "zoneinfo"}

STANDARD_LIBRARY = sys.stdlib_module_names | set(sys.builtin_module_names)


class ModuleEntry(NamedTuple):
    """One module as it travels.

    *kind* is "module", "package", "namespace" or "missing"; of a missing one *filename* is the reason, or
    empty where an ordinary "No module named" says it all.
    """

    name: str
    kind: str
    filename: str
    source: bytes  # compressed by zlib, in UTF-8


class Permits(Protocol):
    """What decides whether a host may be sent a module."""

    def permits(self, name: str) -> bool: ...


@dataclass(frozen=True)
class ModulePolicy:
    """Which of this program's modules a host may be sent.

    Patterns are those of `fnmatch` on dotted names.  A pattern that names a package counts for all of it,
    and the parents of what *allow* names are permitted with it.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()

    def permits(self, name: str) -> bool:
        """Whether the module *name* may be sent."""
        if _matches(name, self.deny):
            return False
        return _matches(name, self.allow) or any(pattern.startswith(f"{name}.") for pattern in self.allow)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    names = [name, *_parents(name)]
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in names)


class ModuleLibrary:
    """The modules of this program that can be sent, read once and shared by all hosts.

    May be used from several threads: at worst something is read twice.
    """

    def __init__(self) -> None:
        self._entries: dict[str, ModuleEntry] = {}
        self._refusals: dict[str, str] = {}
        self._specs: dict[str, ModuleSpec | None] = {}
        self._extensions: dict[str, str] = {}
        self._imports: dict[str, tuple[StaticImport, ...]] = {}
        self._closures: dict[str, tuple[ModuleEntry, ...]] = {}
        self._packed: OrderedDict[tuple[ModuleEntry, ...], bytes] = OrderedDict()
        self._path: list[str] = []

    def find(self, name: str) -> ModuleEntry | None:
        """The module *name*, ready to send, or None where the far end's own copy counts."""
        self._notice_new_paths()
        entry = self._entries.get(name)
        if entry is None and name not in self._refusals:
            try:
                entry = self._entries[name] = self._read(name)
            except LookupError as exc:
                self._refusals[name] = str(exc.args[0])
        return entry

    def why_not(self, name: str) -> str:
        """Why *name* is not sent: a clause that fits after a colon; empty if it is sent."""
        return "" if self.find(name) else self._refusals[name]

    def closure(self, names: Iterable[str]) -> list[str]:
        """*names* and all that their code imports, as far as it can be sent; parents come before children."""
        return [entry.name for entry in self.entries_for(names) if entry.kind != "missing"]

    def entries_for(self, names: Iterable[str]) -> list[ModuleEntry]:
        """The closure of *names*, and a "missing" entry for each import in it that cannot be answered."""
        found: dict[str, ModuleEntry] = {}
        for name in names:
            for entry in self._closure_of(name):
                found.setdefault(entry.name, entry)
        return list(found.values())

    def missing(self, name: str) -> ModuleEntry:
        """The answer that there is nothing to send for *name*."""
        reason = self.why_not(name)
        return ModuleEntry(name, "missing", "" if reason in (NOT_FOUND, THEIRS) else reason, b"")

    def pack(self, entries: tuple[ModuleEntry, ...]) -> bytes:
        """*entries* as one bundle; packed once, however many hosts it goes to."""
        packed = self._packed.get(entries)
        if packed is None:
            packed = self._packed[entries] = dumps([tuple(entry) for entry in entries], protocol=4)
            if len(self._packed) > MAX_PACKED:
                self._packed.popitem(last=False)
        return packed

    def _notice_new_paths(self) -> None:
        """Look again for what was not found, if the program has since changed where it looks."""
        if sys.path != self._path:
            self._path = list(sys.path)
            self._refusals.clear()
            self._specs.clear()
            self._closures.clear()

    def _closure_of(self, name: str) -> tuple[ModuleEntry, ...]:
        self._notice_new_paths()
        closure = self._closures.get(name)
        if closure is None:
            closure = self._closures[name] = tuple(self._walk(name))
        return closure

    def _walk(self, name: str) -> list[ModuleEntry]:
        """Follow the imports from *name*, breadth first."""
        found: dict[str, ModuleEntry] = {}
        pending = [StaticImport(name, certain=True, guarded=False, deferred=False)]
        for wanted in pending:
            for each in (*_parents(wanted.name), wanted.name):
                if each in found:
                    continue
                entry = self.find(each)
                if entry is not None:
                    found[each] = entry
                    pending.extend(self._followed(entry))
                elif self._worth_denying(wanted, each):
                    found[each] = self.missing(each)
        return list(found.values())

    def _worth_denying(self, wanted: StaticImport, name: str) -> bool:
        """Whether the far end would otherwise come and ask for *name*, which is not sent."""
        top = name.partition(".")[0]
        if top in STANDARD_LIBRARY:
            return name == top and (top in NEWER_THAN_3_6 or self._spec(top) is None)
        parent = self.find(name.rpartition(".")[0]) if name != top else None
        if name != top and (parent is None or parent.kind == "module"):
            return False  # nobody asks below what is not sent, or is no package
        return top not in NEVER_SENT and (wanted.certain or wanted.guarded)

    def _followed(self, entry: ModuleEntry) -> Iterator[StaticImport]:
        """The imports of a module that belong in its closure.

        The program's own functions import what they need; those of an installed package mostly what is
        optional or meant for tests: for trio that would bring in pytest, and 800 KB.
        """
        installed = "site-packages" in entry.filename or "dist-packages" in entry.filename
        return (each for each in self._imports_of(entry) if not (installed and each.deferred))

    def _imports_of(self, entry: ModuleEntry) -> tuple[StaticImport, ...]:
        imports = self._imports.get(entry.name)
        if imports is None:
            source = zlib.decompress(entry.source).decode()
            imports = static_imports(source, entry.name, entry.kind != "module")
            self._imports[entry.name] = imports
        return imports

    def _read(self, name: str) -> ModuleEntry:
        """Find and read *name*; LookupError with the reason if it cannot be sent."""
        top = name.partition(".")[0]
        if top in STANDARD_LIBRARY or top in NEVER_SENT:
            raise LookupError(THEIRS)
        spec = self._spec(name)
        if spec is None:
            raise LookupError(NOT_FOUND)
        extension = self._extension_in(top)
        if extension:
            raise LookupError(f"{top} contains an extension module ({extension}), so the host needs its own")
        if spec.submodule_search_locations is not None and spec.origin is None:
            return ModuleEntry(name, "namespace", "", zlib.compress(b""))
        kind = "module" if spec.submodule_search_locations is None else "package"
        source = _source(spec).replace("\r\n", "\n")
        return ModuleEntry(name, kind, _filename(spec), zlib.compress(source.encode()))

    def _spec(self, name: str) -> ModuleSpec | None:
        """Where *name* is, without importing it or its parents."""
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
                return spec
        return None

    def _extension_in(self, top: str) -> str:
        """The name of some compiled file under the top-level package *top*, or an empty string."""
        if top not in self._extensions:
            spec = self._spec(top)
            locations = spec.submodule_search_locations if spec is not None else None
            self._extensions[top] = _compiled_file(list(locations or ()))
        return self._extensions[top]


NOT_FOUND = "this program cannot find it either"
THEIRS = "the host's own copy counts"


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


def _compiled_file(folders: list[str]) -> str:
    for folder in folders:
        for _, subfolders, files in os.walk(folder):
            # Only what can be imported: not an environment or a build tree beside the code.
            subfolders[:] = sorted(each for each in subfolders if each.isidentifier())
            for file in sorted(files):
                if file.endswith((".so", ".pyd")):
                    return file
    return ""


def _source(spec: ModuleSpec) -> str:
    """The source of a module by its own loader; LookupError if there is none."""
    loader: Any = spec.loader
    source = None
    try:
        if hasattr(loader, "get_source"):
            source = loader.get_source(spec.name)
        elif hasattr(loader, "get_data") and spec.origin:
            source = importlib.util.decode_source(loader.get_data(spec.origin))
    except Exception as exc:  # any loader's own trouble: decoding, reading, a zip that is gone
        raise LookupError(f"its source cannot be read ({type(exc).__name__}: {exc})") from exc
    if not isinstance(source, str):
        raise LookupError(f"it has no Python source ({type(loader).__name__})")
    return source


def _filename(spec: ModuleSpec) -> str:
    return spec.origin if spec.has_location and spec.origin else f"<{spec.name}>"


def _parents(name: str) -> list[str]:
    """The packages around *name*, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


LIBRARY = ModuleLibrary()  # shared by all hosts of this program


class ModuleServer:
    """What one host was sent, and the answers to what it asks.  Not for two threads at once."""

    def __init__(self, policy: Permits | None = None, library: ModuleLibrary = LIBRARY) -> None:
        self._policy = policy
        self._library = library
        self._sent: set[str] = set()
        self._bundled: set[str] = set()
        self._questions = 0

    @property
    def modules_sent(self) -> int:
        """How many modules the host has, or was told that it will not get."""
        return len(self._sent)

    def bundle_for(self, names: Iterable[str]) -> bytes | None:
        """The closure of *names*, less what this host already has; None if that is nothing."""
        wanted = [name for name in sorted(names) if name not in self._bundled]
        if not wanted:
            return None
        self._bundled.update(wanted)
        return self._pack(self._library.entries_for(wanted))

    def answer(self, name: str) -> bytes | None:
        """The bundle that answers a host's question for *name*; None if it was answered before.

        Raises:
          ValueError: no agent of ours asks this, or so much.
        """
        self._questions += 1
        if self._questions > MAX_QUESTIONS:
            raise ValueError(f"asked for more than {MAX_QUESTIONS} modules")
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError(f"asked for a module name of more than {MAX_NAME} characters")
        if name in self._sent:
            return None
        if not all(part.isidentifier() for part in name.split(".")):
            return self._pack([ModuleEntry(name, "missing", "", b"")])
        entries = self._library.entries_for([name])
        if all(entry.name != name for entry in entries):
            entries.append(self._library.missing(name))
        return self._pack(entries)

    def _pack(self, entries: list[ModuleEntry]) -> bytes | None:
        fresh = tuple(self._permitted(entry) for entry in entries if entry.name not in self._sent)
        self._sent.update(entry.name for entry in fresh)
        return self._library.pack(fresh) if fresh else None

    def _permitted(self, entry: ModuleEntry) -> ModuleEntry:
        if entry.kind == "missing" or self._policy is None or self._policy.permits(entry.name):
            return entry
        return ModuleEntry(entry.name, "missing", "the policy of this program (modules=) keeps it here", b"")
