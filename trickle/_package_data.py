"""The files that lie in packages, and the metadata of distributions: found and read, never imported.

Who may be sent what of it is _module_server.py's job.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

MAX_FILES = 10_000  # of one package: what has more is no package's data
MAX_DEPTH = 32  # folders
MAX_FILE = 64 * 2**20  # bytes: above, it is a matter for host.put
KEPT_METADATA = ("entry_points.txt", "top_level.txt")


class PackageFile(NamedTuple):
    """A file that lies in a package, below its folder."""

    size: int  # bytes; -1: not known before it is read
    path: str  # empty where it is in no folder: in a zip file, say
    read: Callable[[], bytes]


def files_of(spec: ModuleSpec) -> dict[str, PackageFile]:
    """The files of a package by their relative names, in its folders and below; none of them leads out of it.

    Python's own leavings (``__pycache__``) do not count.
    """
    found: dict[str, PackageFile] = {}
    locations = [Path(location) for location in spec.submodule_search_locations or ()]
    entries = [_in_folder(location) for location in locations if location.is_dir()] or [_in_reader(spec)]
    for name, file in (pair for each in entries for pair in each):
        if len(found) == MAX_FILES:
            break
        found.setdefault(name, file)  # of several portions, the first counts
    return found


def _in_folder(root: Path) -> Iterator[tuple[str, PackageFile]]:
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    for folder, subfolders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        subfolders[:] = sorted(_wanted(subfolders)) if len(relative.parts) < MAX_DEPTH else []
        for name in sorted(_wanted(names)):
            path = Path(folder, name)
            if os.path.realpath(path).startswith(inside) and path.is_file():
                yield (relative / name).as_posix(), PackageFile(path.stat().st_size, str(path), _reader(path, inside))


def _reader(path: Path, inside: str) -> Callable[[], bytes]:
    def read() -> bytes:
        if not os.path.realpath(path).startswith(inside):  # it may have become a link since
            raise OSError(f"{path} leads out of its package")
        return path.read_bytes()

    return read


def _in_reader(spec: ModuleSpec) -> Iterator[tuple[str, PackageFile]]:
    """What the loader itself offers: that of a zip file, or somebody's own."""
    try:
        reader = spec.loader.get_resource_reader(spec.name)  # type: ignore[union-attr]
        root = reader.files()
    except Exception:  # any loader's own trouble, or it has nothing of the kind
        return
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        prefix, folder, depth = pending.pop()
        for entry in sorted(folder.iterdir(), key=lambda entry: str(entry.name)):
            if entry.name in _wanted([entry.name]) and "/" not in entry.name:
                name = prefix + entry.name
                if entry.is_file():
                    yield name, PackageFile(-1, "", entry.read_bytes)
                elif depth < MAX_DEPTH:
                    pending.append((f"{name}/", entry, depth + 1))


def _wanted(names: Iterable[str]) -> set[str]:
    return {name for name in names if name not in ("__pycache__", "", ".", "..") and not name.endswith(".pyc")}


def distributions(name: str | None = None) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that this program has, or the one of that name, if there is one; the first of each counts."""
    if name is not None:
        try:
            return {name: importlib.metadata.distribution(name)}
        except (importlib.metadata.PackageNotFoundError, ValueError):
            return {}
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        own_name = distribution.metadata["Name"]
        if own_name:
            found.setdefault(own_name, distribution)
    return found


def modules_of(distribution: importlib.metadata.Distribution) -> list[str]:
    """The names that a distribution adds to the top level."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return declared
    tops = {file.parts[0] for file in distribution.files or () if file.suffix == ".py"}
    return sorted({top.removesuffix(".py") for top in tops if top.removesuffix(".py").isidentifier()})


def metadata_of(distribution: importlib.metadata.Distribution) -> Mapping[str, str]:
    """The metadata files of a distribution that travel, by name: not its list of files, and no description."""
    # Written anew: the description, which may be in the headers or behind them, is nine tenths of it.
    message: Any = distribution.metadata  # an email.message.Message
    headers = [(key, value) for key, value in message.items() if key.lower() != "description"]
    files = {"METADATA": "".join(f"{key}: {_folded(str(value))}\n" for key, value in headers)}
    for name in KEPT_METADATA:
        text = distribution.read_text(name)
        if text:
            files[name] = text
    files.setdefault("top_level.txt", "".join(f"{module}\n" for module in modules_of(distribution)))
    return files


def _folded(value: str) -> str:
    return value.replace("\r\n", "\n").replace("\n", "\n        ")
