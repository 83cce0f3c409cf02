"""Say what a call would send, and what of its code another Python may lack.  Sending it is _host_core.py's job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, MappingProxyType

from trickle._agent.functions import snippet_source
from trickle._exceptions import RemoteError
from trickle._module_server import ModuleServer
from trickle._modules import LIBRARY, ModuleEntry, ModuleLibrary, is_installed
from trickle._pickling import OutgoingCall
from trickle._source_code import text_looked_at
from trickle._syntax import OLDEST, lowest_version, new_syntax

IMPORTERS = {"__import__", "import_module"}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a call would send to a host now.

    Args:
      host: its name.
      function: what would be called.
      bytes: of the call and of the modules that go with it; what goes over the wire has framing around it.
      modules: that would be sent with the call, because it is foreseen that it needs them; parents come first.
      foreseen: imports in their code that the host is told about beforehand: those that are sent, and those that it
        will not get.
      unforeseeable: modules among these whose code imports others by names that it makes up as it runs.
      deferred: imports in functions of installed packages: they are asked for when those functions are called.
      extensions: extension modules, and packages that have some, which the host needs of its own (of packages that
        can do without, what is source is sent).
      not_sent: other modules that are named in the code and not sent, with the reason.
      python_version: the oldest Python whose syntax all that code keeps to, what the host was sent before included, as
        far as it can be told.
      newest_syntax: what that version is needed for, and where; empty for Python 3.6.
    """

    host: str
    function: str
    bytes: int
    modules: tuple[str, ...]
    foreseen: tuple[str, ...]
    unforeseeable: tuple[str, ...]
    deferred: tuple[str, ...]
    extensions: tuple[str, ...]
    not_sent: Mapping[str, str]
    python_version: tuple[int, int]
    newest_syntax: str

    def __str__(self) -> str:
        version = ".".join(map(str, self.python_version))
        lines = [
            f"{self.host}: {self.function} would send {self.bytes} bytes, {len(self.modules)} modules among them,"
            f" and needs Python {version}" + (f" for {self.newest_syntax}" if self.newest_syntax else "")
        ]
        for title, names in (
            ("modules", self.modules),
            ("needed of its own (extension modules)", self.extensions),
            ("asked for as it runs, perhaps", self.deferred),
            ("imports that cannot be foreseen are in", self.unforeseeable),
            ("not sent", tuple(f"{name} ({reason})" for name, reason in self.not_sent.items())),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(names)}")
        return "\n".join(lines)


def explain_call(
    fn: Callable[..., object],
    outgoing: OutgoingCall,
    names: frozenset[str],
    server: ModuleServer,
    host: str,
    library: ModuleLibrary = LIBRARY,
) -> Explanation:
    """What a pickled call would send to the host that *server* is for."""
    entries = server.would_send(names)
    modules = _modules_in(entries)
    missing = {entry.name: entry.filename for entry in entries if entry.kind == "missing"}
    extensions = [entry.name for entry in entries if entry.kind == "elsewhere" or _is_extension(entry)]
    sources = [(snippet.filename, snippet_source(snippet)) for snippet in outgoing.snippets]
    sources += [(entry.filename, entry.text) for entry in _modules_in(server.closure_of(names))]
    version = max([lowest_version(source) for _, source in sources], default=OLDEST)
    return Explanation(
        host=host,
        function=getattr(fn, "__qualname__", None) or repr(fn),
        bytes=len(outgoing.payload) + sum(len(entry.source) for entry in (*entries, *server.bytecode_for(entries))),
        modules=tuple(entry.name for entry in modules),
        foreseen=tuple(entry.name for entry in entries),
        unforeseeable=tuple(entry.name for entry in modules if _imports_by_name(entry)),
        deferred=tuple(sorted(_deferred(modules, library) - {entry.name for entry in entries})),
        extensions=tuple(extensions),
        not_sent=MappingProxyType({name: why for name, why in missing.items() if why and name not in extensions}),
        python_version=version,
        newest_syntax=_newest(sources, version),
    )


def _modules_in(entries: Iterable[ModuleEntry]) -> list[ModuleEntry]:
    return [entry for entry in entries if entry.kind not in ("missing", "elsewhere")]


def _is_extension(entry: ModuleEntry) -> bool:
    return entry.kind == "missing" and "is an extension module" in entry.filename


def _imports_by_name(entry: ModuleEntry) -> bool:
    try:
        pending = [compile(entry.text, entry.filename, "exec", dont_inherit=True)]
    except (SyntaxError, ValueError, RecursionError):
        return False
    for code in pending:
        if IMPORTERS.intersection(code.co_names):
            return True
        pending += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return False


def _deferred(modules: list[ModuleEntry], library: ModuleLibrary) -> set[str]:
    """What installed packages import in functions, and this program has."""
    return {
        each.name
        for entry in modules
        if is_installed(entry.filename)
        for each in library.imports_of(entry)
        if each.deferred and library.find(each.name) is not None
    }


def _newest(sources: list[tuple[str, str]], version: tuple[int, int]) -> str:
    for where, source in sources:
        for found in new_syntax(source):
            if found.version == version:
                return f"{found.name} ({where}, line {found.line})"
    return ""


# ---- errors


def name_new_syntax(error: Exception, version: tuple[int, ...] | None, library: ModuleLibrary = LIBRARY) -> None:
    """Have a SyntaxError that a host of that *version* raised say what its Python does not know."""
    if not isinstance(error, RemoteError) or not isinstance(error, SyntaxError) or version is None:
        return
    source = _source_of(error.filename, library)
    newer = [found for found in new_syntax(source) if found.version > version[:2]] if source else []
    if not newer:
        return
    found = min(newer, key=lambda each: abs(each.line - (error.lineno or 0)))
    error._text = (
        f"{error.filename}, line {found.line}: {found.name} needs Python {'.'.join(map(str, found.version))}, and this"
        f" host has {'.'.join(map(str, version))} ({error._text})"
    )


def _source_of(filename: str | None, library: ModuleLibrary) -> str | None:
    """The source that was sent under that name.  No file is opened: the name is a host's word."""
    return library.text_of_file(filename) or text_looked_at(filename) if isinstance(filename, str) else None
