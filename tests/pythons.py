"""Find, or make, the Pythons that far ends may have: old ones, 2.7, and one without most of its library."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

OLDEST = (3, 6)

# What a Debian host with nothing but the package python3-minimal can import (the list is 3.11's).
MINIMAL_MODULES = frozenset(
    """
    __future__ _abc _ast _bisect _blake2 _codecs _collections _collections_abc _colorize _compat_pickle
    _csv _datetime _elementtree _functools _hashlib _heapq _imp _io _locale _md5 _opcode _opcode_metadata
    _operator _pickle _posixsubprocess _py_abc _pylong _random _sha1 _sha2 _sha256 _sha3 _sha512 _signal
    _sitebuiltins _socket _sre _ssl _stat _statistics _string _strptime _struct _symtable _thread
    _threading_local _tokenize _tracemalloc _typing _warnings _weakref _weakrefset abc argparse array ast
    atexit base64 binascii bisect calendar cmath codecs collections compileall configparser contextlib
    copy copyreg csv dataclasses datetime dis email encodings enum errno faulthandler fcntl filecmp
    fnmatch functools genericpath getopt glob grp hashlib heapq imp importlib inspect io ipaddress json
    keyword linecache locale logging math opcode operator optparse os pathlib pickle pkgutil platform
    posixpath pwd py_compile pyexpat quopri random re reprlib runpy select selectors shutil signal site
    socket spwd sre_compile sre_constants sre_parse ssl stat string stringprep struct subprocess sysconfig
    syslog tempfile textwrap threading time token tokenize traceback tracemalloc types typing unicodedata
    urllib uu warnings weakref zipfile zipimport zlib
    """.split()  # noqa: SIM905
)


@functools.cache
def version_of(python: str) -> tuple[int, int, int] | None:
    """The version of the Python at this path, or None if it does not run."""
    script = "import sys; sys.stdout.write('%d %d %d' % sys.version_info[:3])"
    try:
        words = subprocess.run(
            [python, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, micro = map(int, words)
    return major, minor, micro


@functools.cache
def _all_pythons() -> tuple[str, ...]:
    """Every Python that this machine has, one path for each version, oldest first."""
    candidates = [Path("/usr/bin/python3"), *Path.home().glob(".pyenv/versions/*/bin/python")]
    candidates += [Path(sys.executable)]
    found: dict[tuple[int, int, int], str] = {}
    for candidate in candidates:
        version = version_of(str(candidate))
        if version is not None:
            found.setdefault(version, str(candidate))
    return tuple(found[version] for version in sorted(found))


def far_pythons() -> tuple[str, ...]:
    """Paths of Pythons that trickle supports at the far end, oldest first; never empty."""
    return tuple(python for python in _all_pythons() if (version_of(python) or (0,)) >= OLDEST)


def system_python() -> str:
    """One that can be copied: the system's own, or that which this virtual environment is made from."""
    if (version_of("/usr/bin/python3") or (0,)) >= OLDEST:
        return "/usr/bin/python3"
    base: str = getattr(sys, "_base_executable", sys.executable)
    return base


def python27() -> str | None:
    """The path of a Python 2.7, which must be refused politely, or None."""
    for python in (*_all_pythons(), shutil.which("python2.7")):
        if python is not None and (version_of(python) or (0,))[:2] == (2, 7):
            return python
    return None


def python_id(python: str) -> str:
    """A name for a test's parameter: ``py3.6``."""
    version = version_of(python)
    return "py" + ".".join(map(str, version[:2])) if version else "py-none"


def make_minimal_python(prefix: Path) -> str | None:
    """Copy a Python into *prefix* with only what Debian's python3-minimal can import; return its path.

    None where Python finds its library in a way that a copy does not follow (macOS frameworks).
    """
    original = system_python()
    script = "import os, sys; print(os.path.realpath(sys.executable)); print(os.path.dirname(os.__file__))"
    words = subprocess.run([original, "-I", "-c", script], capture_output=True, check=True, text=True)
    executable, library = map(Path, words.stdout.splitlines())
    python = prefix / "bin" / executable.name
    python.parent.mkdir(parents=True)
    shutil.copy2(executable, python)
    shutil.copytree(library, prefix / "lib" / library.name, ignore=_not_minimal(library), symlinks=False)
    (python.parent / "python3").symlink_to(python.name)
    where = subprocess.run([python, "-I", "-S", "-c", "import os; print(os.__file__)"], capture_output=True, text=True)
    return str(python) if where.stdout.startswith(os.fspath(prefix)) else None


def _not_minimal(library: Path) -> Callable[[str, list[str]], set[str]]:
    """What `shutil.copytree` leaves out: it gets a directory and the names in it."""
    dynamic = library / "lib-dynload"

    def ignored(directory: str, names: list[str]) -> set[str]:
        if Path(directory) not in (library, dynamic):
            return {"__pycache__"}.intersection(names)
        return {
            name
            for name in names
            if name.split(".")[0] not in MINIMAL_MODULES
            and name != "lib-dynload"
            and not name.startswith("_sysconfigdata")
        }

    return ignored
