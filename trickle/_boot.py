"""What starts an agent: the command line, and the bytes that its Python reads first.  _link.py sends them."""

from __future__ import annotations

import binascii
import functools
import importlib.resources
import marshal
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader
from importlib.machinery import PathFinder
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType

# What comes first is for a shell, a router or an interactive Python that reads our bytes by mistake.
GUARD_WORDS = (b"exit 86", b"raise SystemExit(86)")
GUARD = b"".join(b"%b\n" % words for words in GUARD_WORDS)

# Given to the far end's Python.  It has under 200 characters and neither quote, backslash, '!' nor newline, so that
# it passes through any number of shells.  It ends by itself after 60 s (SIGALRM), or when the bytes are not what was
# sent (status 85), the guard included.
BOOT_LINE = (
    "import zlib,_signal as s,binascii as a;s.alarm(60);f=open(0,'rb',closefd=0);g=f.read(29);"
    "n,c=map(int,next(f).split());b=f.read(n);c==a.crc32(g+b)or sys.exit(85);exec(zlib.decompress(a.a2b_base64(b)))"
).replace("'", '"')
assert len(GUARD) == 29

TOO_OLD = 83
DAMAGED = 85
WRONG_READER = 86
NOT_PULLED = 87  # see _tunnels.RUN

# Tries each name in turn.  A Python older than 3.6 stops with 83 (see FIRST_WORDS) and Python 2.7, which does not
# know -I, with 2.  What ends in another way has perhaps read our bytes, unless it cannot even start: only then is
# there a next one to try.  /usr/bin/python3 of a Mac without developer tools is a stub that opens a dialog.
FIND_PYTHON = (
    "for p in python3 /usr/libexec/platform-python python; do "
    "c=$(command -v $p) || continue; "
    '[ "$c" = /usr/bin/python3 ] && [ -x /usr/bin/xcode-select ] && { xcode-select -p >/dev/null 2>&1 || '
    '{ f="$f $c (a stub, without the developer tools),"; continue; }; }; '
    '"$c" -I -S -c "$@"; s=$?; '
    'case $s in 0|70|85) exit $s;; 2|83) f="$f $c ($("$c" -V 2>&1)),";; '
    '*) "$c" -I -S -c "import zlib" </dev/null >/dev/null 2>&1 && exit $s; f="$f $c (does not start),";; esac; done; '
    'echo "trickle: found no Python 3.6 or later;$f" >&2; exit 83'
)
FIRST_WORDS = "import sys;sys.version_info<(3,6)and sys.exit(83);"

LOADER = "_agent/loader.py"
CODE_TAG = f"{sys.implementation.cache_tag} {MAGIC_NUMBER!r}"  # as the loader has it

# Tokens of the agent's files: a long string, any other string, a comment.  To parse the files and write them anew
# takes more than five times as long, which the first connection would wait for.  Each token begins with a character of
# its own, which the search makes use of.
NOT_CODE = re.compile(
    r"""
    (?P<long> \"\"\" [^"\\]* (?: (?: \\. | "(?!\"\") ) [^"\\]* )* \"\"\" )
    | (?P<string> ''' (?:[^\\]|\\.)*? ''' | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
    | \#[^\n]*
    """,
    re.VERBOSE | re.DOTALL,
)

# What most agents never need goes as modules do, when it is asked for.
SENT_LATER = {
    "trickle._wire.items": "_wire/items.py",
    "trickle._agent.channels": "_agent/channels.py",
    "trickle._agent.file_source": "_agent/file_source.py",
    "trickle._agent.file_target": "_agent/file_target.py",
    "trickle._agent.file_writing": "_agent/file_writing.py",
    "trickle._agent.files": "_agent/files.py",
    "trickle._agent.host_names": "_agent/host_names.py",
    "trickle._agent.processes": "_agent/processes.py",
    "trickle._agent.recursion": "_agent/recursion.py",
    "trickle._agent.resources": "_agent/resources.py",
}


def python_command(python: str | None, code: str = BOOT_LINE, words: Sequence[str] = ()) -> tuple[str, ...]:
    """The words that run a line of code over there, with the Python named or with the first that will do.

    Args:
      python: its path.
      code: what it is to run.
      words: what that finds in ``sys.argv[1:]``.
    """
    if python is not None:
        return (python, "-I", "-S", "-c", FIRST_WORDS + code, *words)
    return ("sh", "-c", FIND_PYTHON, "trickle", FIRST_WORDS + code, *words)


def boot_pieces(configuration: Mapping[str, object], *, is_near: bool = False) -> list[bytes]:
    """What goes to the far Python's stdin before the first frame: text alone, as a terminal may be on the way.

    In pieces, of which all hosts share the large ones.

    Args:
      is_near: whether the agent runs on this machine, perhaps in a Python like this one, for which the files go
        compiled as well: they are three times as large, and save it half of its start.
    """
    compiled = _compiled_files() if is_near else b""
    configuration = {**configuration, "compiled": _checked(compiled)}
    return [_first_bytes(), binascii.b2a_base64(ascii(configuration).encode()), compiled]


@functools.cache
def _first_bytes() -> bytes:
    blob = _boot_blob()
    return GUARD + b"%d %d\n" % (len(blob), binascii.crc32(GUARD + blob)) + blob


@functools.lru_cache(maxsize=2)  # of what there is, and of nothing
def _checked(compiled: bytes) -> tuple[int, int]:
    return len(compiled), binascii.crc32(compiled)


@functools.cache
def _compiled_files() -> bytes:
    """The code of the agent's files, behind the name of what can run it.

    It comes from this Python's own cache (``__pycache__``): to compile them takes the time that this is to save.
    Empty where trickle itself was sent here, and so has no files.
    """
    code: dict[str, CodeType] = {}
    for name, path in shipped_files().items():
        found = _code(path)
        if found is None:
            return b""
        code[name] = _renamed(found, f"<trickle>/{path}")
    data = marshal.dumps((CODE_TAG, marshal.dumps(code)))
    return binascii.b2a_base64(zlib.compress(data, 1))


def _code(path: str) -> CodeType | None:
    """One of this package's files, compiled, without importing anything; None where there is no such file."""
    *folders, stem = path.removesuffix(".py").removesuffix("/__init__").split("/")
    name = ".".join(["trickle", *folders, stem])
    spec = PathFinder.find_spec(name, [str(Path(top, *folders)) for top in sys.modules["trickle"].__path__])
    return spec.loader.get_code(name) if spec is not None and isinstance(spec.loader, InspectLoader) else None


def _renamed(code: CodeType, file_name: str) -> CodeType:
    """*code* as if it came from the file of that name."""
    parts = (_renamed(part, file_name) if isinstance(part, CodeType) else part for part in code.co_consts)
    return code.replace(co_filename=file_name, co_consts=tuple(parts))


def _boot_blob() -> bytes:
    """The loader and the agent's files, packed once for all hosts.

    The files are packed on their own within it, as the far end keeps them.
    """
    filenames = {name: f"<trickle>/{path}" for name, path in shipped_files().items()}
    sources = {name: _lean(_read(path)) for name, path in shipped_files().items()}
    packed = binascii.b2a_base64(zlib.compress(marshal.dumps(sources, 2)), newline=False)  # 2: every Python 3 reads it
    program = f"{_lean(_read(LOADER))}\nstart(f, {filenames!r}, {packed!r})\n"
    return binascii.b2a_base64(zlib.compress(program.encode()))


def shipped_files() -> dict[str, str]:
    """The modules that the far end has, and the files in this package that they are made of."""
    return {
        "trickle": "_agent/far_init.py",
        "trickle.remote": "remote.py",
        "trickle._wire": "_wire/__init__.py",
        "trickle._wire.frames": "_wire/frames.py",
        "trickle._wire.armor": "_wire/armor.py",
        "trickle._wire.connection": "_wire/connection.py",
        "trickle._wire.payload": "_wire/payload.py",
        "trickle._agent": "_agent/__init__.py",
        **{f"trickle._agent.{stem}": f"_agent/{stem}.py" for stem in _agent_stems()},
    }


def _agent_stems() -> list[str]:
    names = [entry.name for entry in importlib.resources.files("trickle").joinpath("_agent").iterdir()]
    others = {"__init__.py", "loader.py", "far_init.py", *(path.rpartition("/")[2] for path in SENT_LATER.values())}
    return sorted(n[:-3] for n in names if n.endswith(".py") and n not in others)


def _read(path: str) -> str:
    return importlib.resources.files("trickle").joinpath(path).read_text(encoding="utf-8")


def lean_source(path: str) -> str:
    """One of the agent's files as it is sent."""
    return _lean(_read(path))


def _lean(source: str) -> str:
    """*source* without comments and docstrings, every line where it was: tracebacks over there stay right."""
    return "\n".join(map(str.rstrip, NOT_CODE.sub(_without, source).split("\n")))


def _without(match: re.Match[str]) -> str:
    text, (start, end), source = match["long"], match.span(), match.string
    if text is None:
        return match["string"] or ""
    # Alone on its lines it is a docstring: the agent's files have no other text that is.
    is_alone = not source[source.rfind("\n", 0, start) + 1 : start].strip(" ") and source[end : end + 1] in ("", "\n")
    return "''" + "\n" * text.count("\n") if is_alone else text
