"""Make the inventories that intersphinx reads in the place of the ones on the network.

They hold only the names that our pages refer to.  When the build says ``reference target not found``, add the
name below and run ``python docs/inventories/make.py``.
"""

import zlib
from pathlib import Path

PYTHON = {
    "py:class": {
        "library/abc.html": "abc.ABC",
        "library/collections.abc.html": (
            "collections.abc.AsyncIterable collections.abc.AsyncIterator collections.abc.Awaitable"
            " collections.abc.Callable collections.abc.Iterable collections.abc.Iterator collections.abc.Mapping"
            " collections.abc.Sequence"
        ),
        "library/contextlib.html": "contextlib.AbstractAsyncContextManager",
        "library/os.html": "os.PathLike",
        "library/signal.html": "signal.Signals",
        "library/subprocess.html": "subprocess.CompletedProcess",
        "library/typing.html": "typing.Any typing.Generic typing.NamedTuple",
    },
    "py:exception": {
        "library/exceptions.html": (
            "BaseException Exception ExceptionGroup FileNotFoundError GeneratorExit StopAsyncIteration StopIteration"
            " RuntimeError TypeError ValueError"
        ),
        "library/subprocess.html": "subprocess.CalledProcessError",
    },
    "py:function": {
        "library/subprocess.html": "subprocess.run",
    },
}

TRIO = {
    "py:class": {
        "reference-core.html": "trio.MemorySendChannel",
        "reference-io.html": "trio.abc.ReceiveChannel trio.abc.ReceiveStream trio.abc.SendChannel trio.abc.SendStream",
    },
    "py:exception": {
        "reference-core.html": (
            "trio.BrokenResourceError trio.Cancelled trio.ClosedResourceError trio.EndOfChannel trio.TooSlowError"
        ),
    },
    "py:function": {
        "reference-core.html": "trio.fail_after trio.move_on_after trio.to_thread.run_sync",
        "reference-io.html": "trio.run_process",
    },
}


def write_inventory(path: Path, project: str, roles: dict[str, dict[str, str]]) -> None:
    """Write *roles* (role -> page -> names) in Sphinx's format, version 2."""
    lines = [
        f"{name} {role} 1 {page}#$ -\n"
        for role, pages in roles.items()
        for page, names in pages.items()
        for name in names.split()
    ]
    header = (
        "# Sphinx inventory version 2\n"
        f"# Project: {project}\n"
        "# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    path.write_bytes(header.encode() + zlib.compress("".join(sorted(lines)).encode(), 9))


if __name__ == "__main__":
    here = Path(__file__).parent
    write_inventory(here / "python.inv", "Python", PYTHON)
    write_inventory(here / "trio.inv", "Trio", TRIO)
