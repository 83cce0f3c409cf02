"""What starts an agent: the command line, and the bytes that its Python reads first.  _link.py sends them."""

from __future__ import annotations

import ast
import binascii
import functools
import importlib.resources
import zlib
from collections.abc import Iterable, Mapping, Sequence

from trickle._parsing import parse

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

# What most agents never need goes as modules do, when it is asked for.
SENT_LATER = {
    "trickle._wire.items": "_wire/items.py",
    "trickle._agent.channels": "_agent/channels.py",
    "trickle._agent.file_source": "_agent/file_source.py",
    "trickle._agent.file_target": "_agent/file_target.py",
    "trickle._agent.file_writing": "_agent/file_writing.py",
    "trickle._agent.files": "_agent/files.py",
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


def boot_bytes(configuration: Mapping[str, object]) -> bytes:
    """What goes to the far Python's stdin before the first frame: text alone, as a terminal may be on the way."""
    blob = _boot_blob()
    head = b"%d %d\n" % (len(blob), binascii.crc32(GUARD + blob))
    return GUARD + head + blob + binascii.b2a_base64(ascii(dict(configuration)).encode())


@functools.cache
def _boot_blob() -> bytes:
    """The loader and the agent's files, packed once for all hosts."""
    files = {name: (f"<trickle>/{path}", _lean(_read(path))) for name, path in shipped_files().items()}
    program = f"{_lean(_read(LOADER))}\nstart(f, {files!r})\n"
    return binascii.b2a_base64(zlib.compress(program.encode(), 9))


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
    lines = source.encode().splitlines()  # the tree counts columns in bytes
    strings: dict[int, list[range]] = {}  # line -> columns
    for node in ast.walk(parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            assert text.end_lineno is not None
            for number in range(text.lineno, text.end_lineno + 1):
                lines[number - 1] = b""
            if len(node.body) == 1:
                lines[text.lineno - 1] = b" " * text.col_offset + b"pass"
        elif isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
        ):
            assert node.end_lineno is not None and node.end_col_offset is not None
            for number in range(node.lineno, node.end_lineno + 1):
                start = node.col_offset if number == node.lineno else 0
                end = node.end_col_offset if number == node.end_lineno else len(lines[number - 1])
                strings.setdefault(number, []).append(range(start, end))
    return b"\n".join(_before_comment(line, strings.get(n, ())) for n, line in enumerate(lines, 1)).decode()


def _before_comment(line: bytes, strings: Iterable[range]) -> bytes:
    at = line.find(b"#")
    while any(at in columns for columns in strings):
        at = line.find(b"#", at + 1)
    return (line[:at] if at >= 0 else line).rstrip()
