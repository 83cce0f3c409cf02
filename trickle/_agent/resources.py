"""Files that lie in the controller's packages, and metadata of its distributions.  Sent with the first of them."""

import errno
import io
import os
import pickle
import posixpath
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Set

    from trickle._agent.importer import Importer


class Reader:
    """What loaders give to importlib.resources, for one package, in all the forms that it has asked for it in."""

    def __init__(self, importer: "Importer", package: str) -> None:
        self._importer = importer
        self._package = package
        listing = zlib.decompress(importer.answer(package + "/")[2] or zlib.compress(b""))
        self._files = set(listing.decode("utf-8", "surrogateescape").split("\n")) - {""}
        self._folders: "Dict[str, Set[str]]" = {"": set()}  # folder -> what is right in it
        for path in self._files:
            folder, name = posixpath.split(path)
            while name not in self._folders.setdefault(folder, set()):
                self._folders[folder].add(name)
                if not folder:
                    break
                folder, name = posixpath.split(folder)

    # ---- since 3.9

    def files(self) -> "File":
        return File(self, "")

    # ---- until 3.8

    def open_resource(self, resource: str) -> "Any":
        return io.BytesIO(self.read(resource))

    def resource_path(self, resource: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "it has no path on this host", resource)  # it gets a temporary one

    def is_resource(self, name: str) -> bool:
        return name in self._files

    def contents(self) -> "List[str]":
        return sorted(self._folders[""])

    # ---- for File and the loader

    def file_at(self, folder: str, path: str) -> "File":
        """The file at *path*, which has to lie below the package's own *folder*."""
        relative = os.path.relpath(path, folder)
        return File(self, _normal(relative.replace(os.sep, "/")))

    def is_file(self, path: str) -> bool:
        return path in self._files

    def entries(self, path: str) -> "Optional[Set[str]]":
        """What is right in a folder; None if it is none."""
        return self._folders.get(path)

    def read(self, path: str) -> bytes:
        if path in self._folders:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.shown(path))
        if path in self._files:
            kind, reason, data, _ = self._importer.answer("%s/%s" % (self._package, path))
            if kind == "data":
                return zlib.decompress(data)
        else:
            reason = "the controller's package has no such file, or it is not sent"
        raise FileNotFoundError(errno.ENOENT, reason, self.shown(path))

    def shown(self, path: str) -> str:
        module = sys.modules.get(self._package)
        folders = list(getattr(module, "__path__", None) or [self._package])
        return posixpath.join(folders[0], path) if path else folders[0]


def _normal(path: str) -> str:
    path = posixpath.normpath(path)
    if path.startswith(("../", "/")) or path == "..":
        raise FileNotFoundError(errno.ENOENT, "it leads out of the package", path)
    return "" if path == "." else path


class File:
    """A file or folder in a package of the controller's: a ``Traversable``."""

    def __init__(self, reader: Reader, path: str) -> None:
        self._reader = reader
        self._path = path

    @property
    def name(self) -> str:
        return posixpath.basename(self._path or self._reader.shown(""))

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> "File":
        return File(self._reader, posixpath.dirname(self._path))

    def __str__(self) -> str:
        return self._reader.shown(self._path)

    def __repr__(self) -> str:
        return "<file of the controller %r>" % str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def is_dir(self) -> bool:
        return self._reader.entries(self._path) is not None

    def is_file(self) -> bool:
        return self._reader.is_file(self._path)

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def iterdir(self) -> "Iterator[File]":
        entries = self._reader.entries(self._path)
        if entries is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self))
        return iter([self.joinpath(name) for name in sorted(entries)])

    def joinpath(self, *others: str) -> "File":
        return File(self._reader, _normal(posixpath.join(self._path, *map(str, others))))

    def __truediv__(self, other: str) -> "File":
        return self.joinpath(other)

    def read_bytes(self) -> bytes:
        return self._reader.read(self._path)

    def read_text(self, encoding: "Optional[str]" = None, errors: "Optional[str]" = None) -> str:
        return str(self.open("r", encoding=encoding, errors=errors).read())

    def open(self, mode: str = "r", *args: "Any", **kwargs: "Any") -> "Any":
        if mode not in ("r", "rb", "rt"):
            raise ValueError("files of the controller can be read, not opened with mode %r" % mode)
        stream = io.BytesIO(self.read_bytes())
        return stream if "b" in mode else io.TextIOWrapper(stream, *args, **kwargs)


# ---- importlib.metadata


def distributions(importer: "Importer", key: str, context: "Any") -> "Iterator[Any]":
    """The distributions that the answer to *key* tells of; not those of which this host's own copies count."""
    metadata = sys.modules[type(context).__module__]  # importlib's, or the backport
    listing = importer.answer(key)[0] == "listing"
    names = zlib.decompress(importer.answer(key)[2]).decode().split("\n") if listing else [key[1:]]
    for name in filter(None, names):
        kind, _, data, _ = importer.answer("@" + name)
        if kind == "spare metadata" and _has_own(importer, metadata, name):
            continue
        if kind.endswith("metadata"):
            yield _distribution_class(metadata)(pickle.loads(zlib.decompress(data)))


def _has_own(importer: "Importer", metadata: "Any", name: str) -> bool:
    context = metadata.DistributionFinder.Context(name=name)
    for finder in importer.others():
        if hasattr(finder, "find_distributions") and any(True for _ in finder.find_distributions(context)):
            return True
    return False


_classes: "Dict[str, Any]" = {}


def _distribution_class(metadata: "Any") -> "Any":
    if metadata.__name__ not in _classes:

        class ForwardedDistribution(metadata.Distribution):  # type: ignore[misc]
            def __init__(self, files: "Dict[str, str]") -> None:
                self._texts = files

            def read_text(self, filename: str) -> "Optional[str]":
                return self._texts.get(filename)

            def locate_file(self, path: "Any") -> "Any":
                raise FileNotFoundError(errno.ENOENT, "distributions of the controller have no files here", str(path))

        _classes[metadata.__name__] = ForwardedDistribution
    return _classes[metadata.__name__]
