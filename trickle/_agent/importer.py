"""Import what the controller has: modules arrive over the link, as source, before or when they are needed.

How a question reaches the controller is the worker's job; files and metadata of packages are resources.py's, which
arrives with the first of them.  Python holds its global import lock while a finder searches, so the thread that
reads the link must neither import nor fork while an answer is awaited.
"""

import _imp
import marshal
import os
import sys
import zlib
from _frozen_importlib_external import MAGIC_NUMBER  # as in loader.py
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader

try:
    import _pickle as pickle
except ImportError:  # a Python without its accelerators
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

    Answer = Tuple[str, str, bytes, Tuple[str, ...]]  # kind, filename or reason, compressed source, children

MAX_NAME = 255  # the controller gives up on a host that asks for longer names
# The agent has its own, or these are about this host: site imports the last two, if it finds them.
NEVER_ASKED = frozenset(("trickle", "__main__", "__mp_main__", "sitecustomize", "usercustomize"))
SENT_LATER = frozenset(
    ["trickle._wire.items"]
    + ["trickle._agent." + name for name in ("channels", "files", "file_source", "file_target", "file_writing")]
    + ["trickle._agent." + name for name in ("host_names", "processes", "recursion", "resources")]
)
# The standard library tries these, and does without (copy: org.python, for Jython).  A question for one would
# cost a round trip and find nothing.
TRIED_BY_LIBRARY = frozenset(("_dbm", "_hashlib", "_winapi", "_wmi", "contextvars", "java", "msvcrt", "nt"))
TRIED_BY_LIBRARY |= {"org", "winreg"}
MISSING = ("missing", "", b"", ())  # type: Answer
# The one version that has importlib.resources.files and does not ask loaders for it.
MENDED = "importlib._common" if sys.version_info[:2] == (3, 9) else ""


class Importer:
    """A finder that serves the controller's modules; the standard library of this host goes first.

    There is no lock: every step on the table is one operation on a dict, so that neither other threads nor
    an exception raised into a waiting one can see, or leave, anything half done.

    Args:
      fetch: asks the controller for a name, and returns when the table has an answer for it; called from
        any thread.  It raises OSError if the link is gone.
    """

    def __init__(self, fetch: "Callable[[str], object]") -> None:
        self._fetch = fetch
        self.whole = False  # whether all of trickle may be asked for: it is used over here
        self._answers: "Dict[str, Answer]" = {}
        self._library_path: "List[str]" = []
        self._in_library: "Dict[str, bool]" = {}
        self._is_own: "Dict[str, bool]" = {}  # packages of which the copy that counts was found out
        self._folders: "Dict[str, str]" = {}  # what is on the __path__ of a package -> its name

    def install(self, library_path: "List[str]") -> None:
        """Go first in ``sys.meta_path``.  What is on *library_path* counts as the standard library."""
        self._library_path = library_path
        sys.meta_path.insert(0, self)
        sys.path_hooks.insert(0, self._folder)
        if MENDED in sys.modules:
            _mend(sys.modules[MENDED])

    def add_bundle(self, data: bytes) -> None:
        """Keep a bundle of the controller's; cheap, and safe in any thread."""
        self._answers.update({answer[0]: tuple(answer[1:]) for answer in pickle.loads(data)})

    def has_answer(self, name: str) -> bool:
        """Whether the controller has said what it has for *name*."""
        return name in self._answers

    def why_missing(self, name: str) -> str:
        """Why the controller did not send the module *name*; empty where there is nothing special to say."""
        kind, reason, _, _ = self._answers.get(name, MISSING)
        return reason if kind == "missing" else ""

    def answer(self, name: str) -> "Answer":
        """What the controller has for *name*, which is asked if it has not said so."""
        if name not in self._answers:
            self._fetch(name)
        return self._answers.get(name, MISSING)

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Optional[ModuleSpec]":
        """Find *name* in the controller's modules; None leaves it to this host's own finders."""
        if name == MENDED:
            return _spec_to_mend(path)
        if not self._may_ask(name) or self._has_own(name, path):
            return None
        kind, filename, source, _ = self.answer(name)
        if kind == "missing":
            return None
        package = not kind.endswith("module")
        folders = filename.split("\n") if kind == "namespace" else [os.path.dirname(filename)] if package else []
        loader = ForwardedLoader(self, name, filename, package, source)
        spec = ModuleSpec(name, loader, origin=filename if source else None, is_package=package)
        spec.has_location = bool(source)  # so that the module gets a __file__
        if package:
            for folder in folders:
                self._folders[folder] = name
                sys.path_importer_cache.pop(folder, None)
            portions = self._own_portions(name, path) if kind == "namespace" else []
            spec.submodule_search_locations = folders + portions
        return spec

    def find_distributions(self, context: "Any") -> "Iterator[Any]":
        """The controller's distributions, for importlib.metadata or its backport."""
        name = context.name
        if name is not None and not all(part.isalnum() for part in name.replace("-", ".").replace("_", ".").split(".")):
            return iter(())
        key = "@%s" % (name or "")
        if self.answer(key)[0] == "missing":
            return iter(())
        found: "Iterator[Any]" = self._resources().distributions(self, key, context)
        return found

    def others(self) -> "Iterator[Any]":
        """This host's own finders."""
        return (finder for finder in list(sys.meta_path) if finder is not self)

    def children(self, name: str) -> "Iterator[Tuple[str, bool]]":
        """The modules right below a package, and whether each is a package, as pkgutil wants to know."""
        for child in self._answers.get(name, MISSING)[3]:
            if child.rstrip("/").isidentifier():
                yield child.rstrip("/"), child.endswith("/")

    def bytecode(self, name: str, filename: str) -> "Optional[CodeType]":
        """The code of a module that came compiled, if this Python can run it.  Once: it is large."""
        _, magic_number, code, _ = self._answers.pop(name + "#", MISSING)
        if magic_number != MAGIC_NUMBER.hex():
            return None
        found: "CodeType" = marshal.loads(zlib.decompress(code))
        _imp._fix_co_filename(found, filename)  # type: ignore[attr-defined, unused-ignore]
        return found

    def reader(self, package: str) -> "Any":
        """What gives the files in *package*."""
        self.answer(package + "/")
        return self._resources().Reader(self, package)

    def _resources(self) -> "Any":
        from trickle._agent import resources

        return resources

    def _may_ask(self, name: str) -> bool:
        """Whether the controller's answer counts for *name*, and is known or may be asked for."""
        top, dot, _ = name.partition(".")
        if top == "trickle":
            return self.whole or name in self._answers or name in SENT_LATER
        if top in NEVER_ASKED or self._is_library(top):
            return False
        if dot:
            unit = self._unit(name)
            if unit != name and (self._is_own.get(unit) or self._answers.get(unit, MISSING)[0] == "missing"):
                return False  # this host's own package: never a mix within one
            parent, _, last = name.rpartition(".")
            kind, _, _, children = self._answers.get(parent, MISSING)
            if kind == "missing" or kind.endswith("module"):
                return False  # made by a module when it was executed, as six.moves is, and so is what is below
            if name not in self._answers and not _has_child(children, last):
                return False
        if name in self._answers:
            return True
        if top in TRIED_BY_LIBRARY:
            return False
        return len(name) <= MAX_NAME and all(part.isidentifier() for part in name.split("."))

    def _unit(self, name: str) -> str:
        """The package that must not be mixed of two copies: that of the top level, below namespaces."""
        parts = name.split(".")
        for count in range(1, len(parts)):
            unit = ".".join(parts[:count])
            if self._answers.get(unit, MISSING)[0] != "namespace":
                return unit
        return name

    def _has_own(self, name: str, path: "Any") -> bool:
        """Whether this host's copy counts, of a package with extension modules; found out once for each."""
        kind = self.answer(name)[0]
        if (kind == "elsewhere" or kind.startswith("spare")) and self._unit(name) == name:
            if name not in self._is_own:
                self._is_own[name] = any(spec.has_location for spec in self._own_specs(name, path))
                if kind == "elsewhere" and not self._is_own[name]:
                    self.answer(name + "!")
            return self._is_own[name]
        return False

    def _own_specs(self, name: str, path: "Any") -> "Iterator[ModuleSpec]":
        for finder in self.others():
            spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
            if spec is not None:
                yield spec

    def _own_portions(self, name: str, path: "Any") -> "List[str]":
        specs = [spec for spec in self._own_specs(name, path) if not spec.has_location]
        return [folder for spec in specs for folder in spec.submodule_search_locations or ()]

    def _is_library(self, top: str) -> bool:
        if top not in self._in_library:
            self._in_library[top] = self._search_library(top)
        return self._in_library[top]

    def _search_library(self, top: str) -> bool:
        # A part of the library that this host lacks (Debian splits it) counts too: nobody else's will do.
        if top in sys.builtin_module_names or top in getattr(sys, "stdlib_module_names", ()):
            return True
        for spec in (
            BuiltinImporter.find_spec(top),
            FrozenImporter.find_spec(top),
            PathFinder.find_spec(top, self._library_path),
        ):
            # A directory without __init__ is found as a namespace, which has no location.
            if spec is not None and (spec.has_location or spec.origin in ("built-in", "frozen")):
                return True
        return False

    def _folder(self, entry: str) -> "_Folder":
        if entry not in self._folders:
            raise ImportError(entry)
        return _Folder(self, self._folders[entry])


def _has_child(children: "Tuple[str, ...]", name: str) -> bool:
    return "..." in children or name in children or name + "/" in children or name + "?" in children


class _Folder:
    """What stands for a folder of the controller's on a package's ``__path__``: pkgutil asks it what is in there."""

    def __init__(self, importer: Importer, package: str) -> None:
        self._importer = importer
        self._package = package

    def find_spec(self, name: str, target: "Any" = None) -> None:
        """Nothing: the importer has been asked before."""

    def iter_modules(self, prefix: str = "") -> "Iterator[Tuple[str, bool]]":
        for name, is_package in self._importer.children(self._package):
            yield prefix + name, is_package


class ForwardedLoader(SourceFileLoader):
    """Executes a module that came from the controller, under the controller's file name.

    As a kind of source loader it leaves no frames of its own in tracebacks.  There is no file: whatever the
    base class would read from one is overridden.  A namespace has no source either.
    """

    def __init__(self, importer: Importer, name: str, filename: str, package: bool, compressed: bytes) -> None:
        super().__init__(name, filename)
        self._importer = importer
        self._package = package
        self._compressed = compressed

    def is_package(self, fullname: str) -> bool:
        return self._package

    def get_source(self, fullname: str) -> str:
        return zlib.decompress(self._compressed).decode("utf-8") if self._compressed else ""

    def get_code(self, fullname: str) -> "CodeType":
        source = self.get_source(fullname)
        _hide_other_file(self.path, source)
        return self._importer.bytecode(fullname, self.path) or compile_source(source, self.path)

    def get_data(self, path: str) -> bytes:
        if path == self.path:
            return zlib.decompress(self._compressed)
        reader = self.get_resource_reader(self.name)
        if reader is None:
            raise OSError("no such file was sent: %r" % (path,))
        data: bytes = reader.file_at(os.path.dirname(self.path), path).read_bytes()
        return data

    def get_resource_reader(self, fullname: str) -> "Any":  # type: ignore[override]
        package = fullname if self._package else fullname.rpartition(".")[0]
        return self._importer.reader(package) if package else None


def _spec_to_mend(path: "Any") -> "Optional[ModuleSpec]":
    spec = PathFinder.find_spec(MENDED, path)
    if spec is not None and spec.loader is not None:
        execute = spec.loader.exec_module

        def exec_module(module: "Any") -> None:
            execute(module)
            _mend(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def _mend(common: "Any") -> None:
    """Have ``importlib.resources.files`` ask our loaders, as it does in every other version."""
    original = common.from_package

    def from_package(package: "Any") -> "Any":
        spec = package.__spec__
        if isinstance(spec.loader, ForwardedLoader):
            return spec.loader.get_resource_reader(spec.name).files()
        return original(package)

    common.from_package = from_package


def _hide_other_file(filename: str, source: str) -> None:
    """See to it that tracebacks show what was sent, where this host has another file of that name.

    linecache asks the module's loader only when there is no file; importing it takes 10 ms, so it is left
    alone as long as it will be right.
    """
    try:
        with open(filename, "rb") as file:
            if file.read() == source.encode("utf-8"):
                return
    except OSError:
        return
    show_lines(filename, source.splitlines(True))


def show_lines(filename: str, lines: "List[str]") -> None:
    """Make tracebacks take the source of *filename* from *lines*."""
    import linecache

    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)  # None: never looked up again


def _call(fn: "Callable[[], Any]") -> "Any":
    return fn()


call_whole = _call  # calls what would lose an exception that a signal's handler raises in it; the worker has its own


def compile_source(source: str, filename: str, flags: int = 0) -> "CodeType":
    """Compile source from the controller; a SyntaxError says which Python this is."""
    try:
        # CPython's compiler goes on after some of what a signal's handler raises.
        code: "CodeType" = call_whole(lambda: compile(source, filename, "exec", flags, dont_inherit=True))
        return code
    except SyntaxError as exc:
        version = "%d.%d" % sys.version_info[:2]
        exc.msg = "%s (this host has Python %s; the code may need a newer one)" % (exc.msg, version)
        exc.args = (exc.msg,) + exc.args[1:]
        raise
