"""Name the part of a call's arguments that cannot be pickled, after pickling has failed."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from ._stays_here import LIVE

MAX_DEPTH = 30


def culprit_path(parts: list[tuple[str, Any]], can_send: Callable[[Any], bool]) -> str:
    """The way to the innermost object that cannot be sent, and its type: "argument 2, .lock: _thread.lock".

    Args:
      parts: where the search starts: labels and objects.
    """
    labels: list[str] = []
    culprit: Any = None
    seen: set[int] = set()
    while len(labels) < MAX_DEPTH:
        failing = _first_failing([part for part in parts if id(part[1]) not in seen], can_send)
        if failing is None:
            break
        label, culprit = failing
        labels.append(label)
        seen.add(id(culprit))
        parts = list(_children(culprit))
    return f"{_joined(labels)}: {type_name(culprit)}" if labels else ""


def _first_failing(parts: list[tuple[str, Any]], can_send: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """The first part that cannot be sent, by halving: all of them are pickled about twice, however many."""
    if can_send([part for _, part in parts]):
        return None
    while len(parts) > 1:
        middle = len(parts) // 2
        fails_early = not can_send([part for _, part in parts[:middle]])
        parts = parts[:middle] if fails_early else parts[middle:]
    return parts[0]


def type_name(obj: Any) -> str:
    """What to call *obj* in a message: a class or function by its own name, else by its type's."""
    if isinstance(obj, type | FunctionType):
        return f"{obj.__module__}.{obj.__qualname__}"
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _joined(labels: list[str]) -> str:
    text = labels[0]
    for before, label in itertools.pairwise(labels):
        is_chain = label[0] in ".[" and before[0] in ".["
        text += label if is_chain else f", {label}"
    return text


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an object that are pickled with it, as far as they can be told."""
    if type(obj) in LIVE:
        return
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield "a key", key
            yield f"[{_short(key)}]", value
    elif isinstance(obj, list | tuple | deque):
        for index, item in enumerate(obj):
            yield f"[{index}]", item
    elif isinstance(obj, set | frozenset):
        for item in obj:
            yield "an element", item
    elif isinstance(obj, FunctionType):
        yield from _function_children(obj)
    elif isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, BaseException):
        yield ".args", obj.args
    if not isinstance(obj, type | FunctionType):
        yield from _attributes(obj)


def _function_children(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure variable {name!r}", cell.cell_contents
        except ValueError:  # still empty
            continue
    yield "its defaults", function.__defaults__
    yield "its defaults", function.__kwdefaults__
    for name, value in vars(function).items():
        yield f".{name}", value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(getattr(obj, "__dict__", {}).items()):
        yield f".{name}", value
    for kind in type(obj).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield f".{name}", getattr(obj, name)


def _short(key: Any) -> str:
    return repr(key)[:60] if isinstance(key, str | bytes | int | float) else f"<{type_name(key)}>"
