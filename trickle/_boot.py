"""What starts an agent: the command line, and the bytes that its Python reads first.  _link.py sends them."""

from __future__ import annotations

import ast
import functools
import importlib.resources
import zlib
from collections.abc import Mapping

from trickle._parsing import parse

# Given to the far end's Python.  It has under 200 characters and neither quote, backslash, '!' nor newline, so that
# it passes through any number of shells.  It skips two lines, which are there for a shell or an interactive Python
# that reads our bytes by mistake.  It ends by itself after 60 s (SIGALRM), or when the bytes are not what was sent
# (status 85).
BOOT_LINE = (
    "import sys,zlib,_signal;_signal.alarm(60);f=open(0,'rb',closefd=False);next(f);next(f);"
    "n,c=map(int,next(f).split());b=f.read(n);zlib.crc32(b)==c or sys.exit(85);exec(zlib.decompress(b))"
).replace("'", '"')

TOO_OLD = 83
DAMAGED = 85
WRONG_READER = 86
NOT_PULLED = 87  # see _tunnels.RUN

# Tries each name in turn.  A Python older than 3.6 stops with 83 (see FIRST_WORDS) and Python 2.7, which does not
# know -I, with 2.  /usr/bin/python3 of a Mac without developer tools is a stub that opens a dialog.
FIND_PYTHON = (
    "for p in python3 /usr/libexec/platform-python python; do "
    "c=$(command -v $p) || continue; "
    "[ $c = /usr/bin/python3 ] && [ -x /usr/bin/xcode-select ] && { xcode-select -p >/dev/null 2>&1 || continue; }; "
    '$c -I -S -c "$1"; s=$?; '
    'case $s in 2|83) f="$f $c is $($c -V 2>&1);";; *) exit $s;; esac; done; '
    'echo "trickle: found no Python 3.6 or later;$f" >&2; exit 83'
)
FIRST_WORDS = "import sys;sys.version_info<(3,6)and sys.exit(83);"

_LOADER = "_agent/loader.py"


def python_command(python: str | None) -> tuple[str, ...]:
    """The words that run the boot line over there, with the Python named or with the first that will do."""
    if python is not None:
        return (python, "-I", "-S", "-c", FIRST_WORDS + BOOT_LINE)
    return ("sh", "-c", FIND_PYTHON, "trickle", FIRST_WORDS + BOOT_LINE)


def boot_bytes(configuration: Mapping[str, object]) -> bytes:
    """What goes to the far Python's stdin before the first frame."""
    blob = _boot_blob()
    head = f"exit {WRONG_READER}\nraise SystemExit({WRONG_READER})\n{len(blob)} {zlib.crc32(blob)}\n"
    return head.encode() + blob + ascii(dict(configuration)).encode() + b"\n"


@functools.cache
def _boot_blob() -> bytes:
    """The loader and the agent's files, packed once for all hosts."""
    files = {name: (f"<trickle>/{path}", _lean(_read(path))) for name, path in shipped_files().items()}
    program = f"{_lean(_read(_LOADER))}\nstart(f, {files!r})\n"
    return zlib.compress(program.encode(), 9)


def shipped_files() -> dict[str, str]:
    """The modules that the far end has, and the files in this package that they are made of."""
    return {
        "trickle": "_agent/far_init.py",
        "trickle.remote": "remote.py",
        "trickle._wire": "_wire/__init__.py",
        "trickle._wire.frames": "_wire/frames.py",
        "trickle._wire.connection": "_wire/connection.py",
        "trickle._wire.payload": "_wire/payload.py",
        "trickle._agent": "_agent/__init__.py",
        **{f"trickle._agent.{stem}": f"_agent/{stem}.py" for stem in _agent_stems()},
    }


def _agent_stems() -> list[str]:
    names = [entry.name for entry in importlib.resources.files("trickle").joinpath("_agent").iterdir()]
    return sorted(n[:-3] for n in names if n.endswith(".py") and n not in ("__init__.py", "loader.py", "far_init.py"))


def _read(path: str) -> str:
    return importlib.resources.files("trickle").joinpath(path).read_text(encoding="utf-8")


def _lean(source: str) -> str:
    """*source* without comments and docstrings, every line where it was: tracebacks over there stay right."""
    lines = source.splitlines()
    for node in ast.walk(parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            assert text.end_lineno is not None
            for number in range(text.lineno, text.end_lineno + 1):
                lines[number - 1] = ""
            if len(node.body) == 1:
                lines[text.lineno - 1] = " " * text.col_offset + "pass"
    return "\n".join("" if line.lstrip().startswith("#") else line.rstrip() for line in lines)
