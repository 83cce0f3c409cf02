"""Whether a host can run ``async def`` functions: under this program's own trio, which is forwarded to it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import re
import types
from collections.abc import Callable, Collection
from typing import Any

from trickle._exceptions import Unsendable

# What trio imports of the standard library, and what the package python3-minimal of Debian leaves out of it.
NEEDED = ("contextvars", "queue", "ssl")


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling *fn* gives a coroutine or an async generator, as far as can be seen from here."""
    if type(fn) in _NEVER_ASYNC:
        return False
    if type(fn) is types.FunctionType and not fn.__dict__:  # where what marks a function as async would be
        return bool(fn.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    while isinstance(fn, functools.partial):
        fn = fn.func
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (fn, getattr(fn, "__call__", None))  # noqa: B004
    )


# Asked of every call: what needs no looking into.
_NEVER_ASYNC = (types.BuiltinFunctionType, types.MethodDescriptorType, type)


def check_can_run(fn: Callable[..., Any], host: str, version: tuple[int, ...], lacks: Collection[str]) -> None:
    """Nothing, if a far Python of *version* that *lacks* those modules can run our trio.

    Raises:
      Unsendable: it cannot.
    """
    name = getattr(fn, "__qualname__", repr(fn))
    oldest = oldest_python()
    if version[:2] < oldest:
        raise Unsendable(
            f"{host}: {name} is async, and trio {importlib.metadata.version('trio')} needs Python"
            f" {oldest[0]}.{oldest[1]}; this host has {'.'.join(map(str, version))}: call a plain function there",
            host=host,
            path="fn",
        )
    if version < (3, 11) and importlib.util.find_spec("exceptiongroup") is None:
        raise Unsendable(
            f"{host}: {name} is async, and on Python 3.10 trio needs the package exceptiongroup, which this program"
            " does not have: install it here (it is forwarded), or call a plain function there",
            host=host,
            path="fn",
        )
    if missing := [module for module in NEEDED if module in lacks]:
        raise Unsendable(
            f"{host}: {name} is async, and trio needs the modules {', '.join(missing)}, which the Python of this host"
            " lacks (on Debian, they come with the package python3): call a plain function there",
            host=host,
            path="fn",
        )


@functools.cache
def oldest_python() -> tuple[int, int]:
    """The oldest Python that this program's trio supports, from its own metadata."""
    found = re.search(r">=\s*(\d+)\.(\d+)", importlib.metadata.metadata("trio")["Requires-Python"] or "")
    return (int(found[1]), int(found[2])) if found else (3, 10)
