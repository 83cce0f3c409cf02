"""What one host was sent of this program's code, and the answers to what it asks.  Finding it is _modules.py's job.

A host asks by names alone, of which there are four kinds: ``a.b`` is a module; ``a.b!`` a package of which the host
has no copy of its own; ``a.b/`` the list of the files in a package, and ``a.b/folder/file`` one of them; ``@name`` the
metadata of a distribution, and ``@`` that of all.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pickle import dumps

from . import _package_data
from ._boot import LOADER, SENT_LATER, shipped_files
from ._module_policy import ModulePolicy
from ._modules import LIBRARY, RECURSIVE, ModuleEntry, ModuleLibrary, is_installed
from ._package_data import MAX_FILE, PackageFile

logger = logging.getLogger("trickle")

MAX_NAME = 255  # characters in a dotted name; a host that asks for more is not ours
MAX_KEY = 1024  # characters in the name of a file
MAX_QUESTIONS = 10_000  # that one host may ask: about forty times what trio's whole test suite imports
SENT_TOGETHER = 256 * 1024  # bytes of files that are sent with their list, or with one of their folder
DATA_HELPER = "trickle._agent.resources"  # what a far end needs in order to make something of files and metadata
SHIPPED = frozenset({*shipped_files().values(), *SENT_LATER.values(), LOADER})
DEFAULT_POLICY = ModulePolicy()
DENIED = "the policy of this program (modules=) keeps it here"
LOOKS_PRIVATE = "it looks private, and so it is kept here unless ModulePolicy(allow=...) has its full name"


class ModuleServer:
    """What one host was sent, and the answers to what it asks.  Not for two threads at once.

    Args:
      policy: what the host may be sent.
      host: what it is called in the log.
      sends_bytecode: whether the host may be able to run this Python's, and costs nothing to send more to.
    """

    def __init__(
        self,
        policy: ModulePolicy | None = None,
        library: ModuleLibrary = LIBRARY,
        host: str = "a host",
        *,
        sends_bytecode: bool = False,
    ) -> None:
        self.sends_bytecode = sends_bytecode
        self._policy = policy or DEFAULT_POLICY
        self._library = library
        self._host = host
        self._sent: set[str] = set()
        self._mentioned: set[str] = set()  # packages that the host has to ask for if it has none
        self._bundled: set[str] = set()
        self._files: dict[str, Mapping[str, PackageFile]] = {}
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
        return self._pack(self._library.entries_for(wanted), "for a call")

    def would_send(self, names: Iterable[str]) -> tuple[ModuleEntry, ...]:
        """What `bundle_for` would put into a bundle, without doing so."""
        wanted = [name for name in sorted(names) if name not in self._bundled]
        return self._fresh(self._library.entries_for(wanted))

    def closure_of(self, names: Iterable[str]) -> tuple[ModuleEntry, ...]:
        """What the host needs of this program for *names*, sent before or not, as far as it may have it."""
        return tuple(self._permitted(entry) for entry in self._library.entries_for(sorted(names)))

    def bytecode_for(self, entries: Iterable[ModuleEntry]) -> tuple[ModuleEntry, ...]:
        """What goes with *entries* to a host that can run it, so that it need not compile them."""
        if not self.sends_bytecode:
            return ()
        found = (self._library.bytecode_of(entry) for entry in entries if entry.kind in _MODULE_KINDS)
        return tuple(entry for entry in found if entry is not None)

    def answer(self, key: str) -> bytes | None:
        """The bundle that answers a host's question; None if it was answered before.

        Raises:
          ValueError: no agent of ours asks this, or so much.
        """
        self._questions += 1
        if self._questions > MAX_QUESTIONS:
            raise ValueError(f"asked for more than {MAX_QUESTIONS} modules")
        if not isinstance(key, str) or len(key) > MAX_KEY:
            raise ValueError(f"asked for a name of more than {MAX_KEY} characters")
        if key in self._sent:
            return None
        return self._pack(list(self._answers(key)), f"asked for {key!a}")

    def _answers(self, key: str) -> Iterator[ModuleEntry]:
        if key.startswith("@"):
            return self._about_distributions(key)
        module, slash, path = key.partition("/")
        spare = not slash and module.endswith("!")
        module = module.removesuffix("!") if spare else module
        if len(module) > MAX_NAME:
            raise ValueError(f"asked for a module name of more than {MAX_NAME} characters")
        if not all(part.isidentifier() for part in module.split(".")):
            logger.warning("%s: asked for %a, which no agent of ours does: refused", self._host, key)
            return iter([ModuleEntry(key, "missing", "it is not the name of a module", b"")])
        return self._about_files(key, module, path) if slash else self._about_module(module, spare)

    # ---- modules

    def _about_module(self, name: str, spare: bool) -> Iterator[ModuleEntry]:
        if self._is_main_script(name):
            yield ModuleEntry(name, "missing", "it is this program's main script, which nothing here imports", b"")
            return
        library = self._library_for(name)
        entries = library.entries_for([name], asked=True, spare=spare)
        if all(entry.name != name for entry in entries):
            entries.append(library.missing(name))
        yield from entries
        if spare:
            yield ModuleEntry(f"{name}!", "missing", "", b"")  # so that the host knows that this was all

    def _library_for(self, name: str) -> ModuleLibrary:
        """trickle itself is sent only to those that ask for it: its agents have what others need of it."""
        return RECURSIVE if name.partition(".")[0] == "trickle" else self._library

    def _is_main_script(self, name: str) -> bool:
        entry = self._library.find(name)
        return entry is not None and name not in sys.modules and is_main_file(entry.filename)

    def _pack(self, entries: list[ModuleEntry], why: str) -> bytes | None:
        fresh = self._fresh(entries)
        if any(entry.kind in ("data", "listing", "metadata") for entry in fresh) and DATA_HELPER not in self._sent:
            helper = self._library.find(DATA_HELPER)
            assert helper is not None
            fresh += (helper,)
        self._sent.update(entry.name for entry in fresh if entry.kind != "elsewhere")
        self._mentioned.update(entry.name for entry in fresh if entry.kind == "elsewhere")
        fresh += self.bytecode_for(fresh)
        self._log(fresh, why)
        return self._library.pack(fresh) if fresh else None

    def _fresh(self, entries: list[ModuleEntry]) -> tuple[ModuleEntry, ...]:
        """What of *entries* the host has not been sent yet, or the policy's word in its place."""
        permitted = [self._permitted(entry) for entry in entries]
        return tuple(entry for entry in permitted if entry.name not in self._sent and not self._is_known(entry))

    def _is_known(self, entry: ModuleEntry) -> bool:
        return entry.kind == "elsewhere" and entry.name in self._mentioned

    def _permitted(self, entry: ModuleEntry) -> ModuleEntry:
        if entry.kind not in _MODULE_KINDS or entry.name in SENT_LATER:
            return entry
        reason = self._refusal(entry.name, entry.filename)
        return ModuleEntry(entry.name, "missing", reason, b"") if reason else entry

    def _refusal(self, name: str, filename: str) -> str:
        """Why the policy keeps it here; empty if it does not."""
        if self._policy.permits(name, installed=is_installed(filename)):
            return ""
        return LOOKS_PRIVATE if self._policy.permits(name) else DENIED

    def _log(self, entries: tuple[ModuleEntry, ...], why: str) -> None:
        for entry in entries:
            if entry.kind == "missing" and entry.filename:
                level = logging.INFO if entry.filename in (DENIED, LOOKS_PRIVATE) else logging.DEBUG
                logger.log(level, "%s: %s is not sent: %s", self._host, entry.name, entry.filename)
        if logger.isEnabledFor(logging.DEBUG):
            names = [entry.name for entry in entries if entry.kind not in ("missing", "code")]
            size = sum(len(entry.source) for entry in entries)
            logger.debug("%s: sent %d bytes, %s: %s", self._host, size, why, " ".join(names)[:8000] or "nothing")

    # ---- files in packages

    def _about_files(self, key: str, package: str, path: str) -> Iterator[ModuleEntry]:
        files = self._files_of(package)
        if not path:
            listing = "\n".join(files)
            yield ModuleEntry(key, "listing", "", zlib.compress(listing.encode("utf-8", "surrogateescape")))
            wanted = [name for name in files if _is_data(package, name)]
        elif path in files:
            folder = os.path.dirname(path)  # noqa: PTH120
            beside = [name for name in files if name != path and os.path.dirname(name) == folder]  # noqa: PTH120
            wanted = [path, *(name for name in beside if _is_data(package, name))]
        else:
            logger.warning("%s: asked for %a, which is no file of that package: refused", self._host, key)
            yield ModuleEntry(key, "missing", "there is no such file in that package", b"")
            return
        left = SENT_TOGETHER
        for name in wanted:
            size = files[name].size
            if name == path:
                yield self._file(f"{package}/{name}", files[name])
            elif 0 <= size <= left and f"{package}/{name}" not in self._sent:
                left -= size
                yield self._file(f"{package}/{name}", files[name])

    def _file(self, key: str, file: PackageFile) -> ModuleEntry:
        try:
            if file.size > MAX_FILE:
                raise OSError(f"it has {file.size} bytes; what is that large is sent by host.put")
            return ModuleEntry(key, "data", "", zlib.compress(file.read()))
        except OSError as exc:
            return ModuleEntry(key, "missing", f"it cannot be read ({exc})", b"")

    def _files_of(self, package: str) -> Mapping[str, PackageFile]:
        """The files that the host may have of a package: none, unless it may have the package itself."""
        if package not in self._files:
            library = self._library_for(package)
            entry, spec = library.find(package), library.spec(package)
            if entry is None or spec is None or self._refusal(package, entry.filename):
                return {}
            self._files[package] = {
                name: file
                for name, file in _package_data.files_of(spec).items()
                if not self._file_refusal(f"{package}/{name}", file, entry.filename) and not is_main_file(file.path)
            }
        return self._files[package]

    def _file_refusal(self, key: str, file: PackageFile, filename: str) -> str:
        where = file.path or filename
        module = key.removesuffix(".py").replace("/", ".") if key.endswith(".py") else key
        return self._refusal(key, where) or self._refusal(module, where)

    # ---- metadata of distributions

    def _about_distributions(self, key: str) -> Iterator[ModuleEntry]:
        known = []
        for name, distribution in _package_data.distributions(key[1:] or None).items():
            kind = self._kind_of_metadata(distribution)
            if kind:
                known.append(name)
                content = dumps(dict(_package_data.metadata_of(distribution)), 4)
                yield ModuleEntry(f"@{name}", kind, "", zlib.compress(content))
        if key == "@":
            yield ModuleEntry(key, "listing", "", zlib.compress("\n".join(known).encode()))
        elif not known:
            yield ModuleEntry(key, "missing", "", b"")

    def _kind_of_metadata(self, distribution: Distribution) -> str:
        """What the metadata of a distribution counts for; empty if no module of it is sent."""
        entries = [entry for entry in map(self._library.find, _package_data.modules_of(distribution)) if entry]
        sent = [entry for entry in entries if not self._refusal(entry.name, entry.filename)]
        if not sent:
            return ""
        # Where the host's own copy of the code comes first, so does what describes it.
        return "spare metadata" if all(entry.kind.startswith("spare") for entry in sent) else "metadata"


def _is_data(package: str, name: str) -> bool:
    """Whether a file is likely to be wanted: source mostly travels as modules.  trickle over there sends its agent."""
    return name in SHIPPED if package == "trickle" else not name.endswith((".py", ".pyi"))


_MODULE_KINDS = ("module", "package", "namespace", "spare module", "spare package")


def is_main_file(filename: str) -> bool:
    """Whether this is the file that the program was started with."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return isinstance(script, str) and filename != "" and os.path.realpath(script) == os.path.realpath(filename)
