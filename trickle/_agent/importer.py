"""Import what the controller has: modules arrive over the link, as source, before or when they are needed.

How a question reaches the controller is the worker's job.  Python holds its global import lock while a finder
searches, so the thread that reads the link must neither import nor fork while an answer is awaited.
"""

import sys
import zlib
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader

try:
    import _pickle as pickle
except ImportError:  # a Python without its accelerators
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Answer = Tuple[str, str, bytes]  # kind, filename or reason, compressed source

MAX_NAME = 255  # the controller gives up on a host that asks for longer names
# The agent has its own, or these are about this host: site imports the last two, if it finds them.
NEVER_ASKED = frozenset(("trickle", "__main__", "__mp_main__", "sitecustomize", "usercustomize"))
# The standard library tries these, and does without (copy: org.python, for Jython).  A question for one would
# cost a round trip and find nothing.
TRIED_BY_LIBRARY = frozenset(("_dbm", "_hashlib", "_winapi", "_wmi", "contextvars", "java", "msvcrt", "nt"))
TRIED_BY_LIBRARY |= {"org", "winreg"}


class Importer:
    """A finder that serves the controller's modules; the standard library of this host goes first.

    There is no lock: every step on the table is one operation on a dict, so that neither other threads nor
    an exception raised into a waiting one can see, or leave, anything half done.

    Args:
      fetch: asks the controller for a module, and returns when the table has an answer for it; called from
        any thread.  It raises OSError if the link is gone.
    """

    def __init__(self, fetch: "Callable[[str], object]") -> None:
        self._fetch = fetch
        self._answers: "Dict[str, Answer]" = {}
        self._library_path: "List[str]" = []
        self._in_library: "Dict[str, bool]" = {}

    def install(self, library_path: "List[str]") -> None:
        """Go first in ``sys.meta_path``.  What is on *library_path* counts as the standard library."""
        self._library_path = library_path
        sys.meta_path.insert(0, self)

    def add_bundle(self, data: bytes) -> None:
        """Keep a bundle of the controller's; cheap, and safe in any thread."""
        self._answers.update({name: (kind, filename, source) for name, kind, filename, source in pickle.loads(data)})

    def has_answer(self, name: str) -> bool:
        """Whether the controller has said what it has for *name*."""
        return name in self._answers

    def why_missing(self, name: str) -> str:
        """Why the controller did not send the module *name*; empty where there is nothing special to say."""
        kind, reason, _ = self._answers.get(name, ("", "", b""))
        return reason if kind == "missing" else ""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Optional[ModuleSpec]":
        """Find *name* in the controller's modules; None leaves it to this host's own finders."""
        if not self._may_ask(name):
            return None
        if name not in self._answers:
            self._fetch(name)
        kind, filename, source = self._answers.get(name, ("missing", "", b""))
        if kind == "missing":
            return None
        if kind == "namespace":
            spec = ModuleSpec(name, None, is_package=True)
        else:
            loader = ForwardedLoader(name, filename, kind == "package", source)
            spec = ModuleSpec(name, loader, origin=filename, is_package=kind == "package")
            spec.has_location = True  # so that the module gets a __file__
        return spec

    def _may_ask(self, name: str) -> bool:
        top, dot, _ = name.partition(".")
        if top in NEVER_ASKED or self._is_library(top):
            return False
        if dot and self._answers.get(top, ("missing",))[0] == "missing":
            return False  # this host's own package: never a mix within one
        if name in self._answers:
            return True
        if top in TRIED_BY_LIBRARY:
            return False
        return len(name) <= MAX_NAME and all(part.isidentifier() for part in name.split("."))

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


class ForwardedLoader(SourceFileLoader):
    """Executes a module that came from the controller, under the controller's file name.

    As a kind of source loader it leaves no frames of its own in tracebacks.  There is no file: whatever the
    base class would read from one is overridden.
    """

    def __init__(self, name: str, filename: str, package: bool, compressed: bytes) -> None:
        super().__init__(name, filename)
        self._package = package
        self._compressed = compressed

    def is_package(self, fullname: str) -> bool:
        return self._package

    def get_source(self, fullname: str) -> str:
        return zlib.decompress(self._compressed).decode("utf-8")

    def get_code(self, fullname: str) -> "CodeType":
        source = self.get_source(fullname)
        _hide_other_file(self.path, source)
        return compile_source(source, self.path)

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError("no such file was sent: %r" % (path,))
        return zlib.decompress(self._compressed)


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


def compile_source(source: str, filename: str, flags: int = 0) -> "CodeType":
    """Compile source from the controller; a SyntaxError says which Python this is."""
    try:
        return compile(source, filename, "exec", flags, dont_inherit=True)  # type: ignore[no-any-return]
    except SyntaxError as exc:
        version = "%d.%d" % sys.version_info[:2]
        exc.msg = "%s (this host has Python %s; the code may need a newer one)" % (exc.msg, version)
        exc.args = (exc.msg,) + exc.args[1:]
        raise
