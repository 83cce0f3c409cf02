"""Turn what a host says about an exception into an exception to raise here.

What the far end says is _agent/results.py's job.  Nothing is imported, and no ``__init__`` of the program's
own classes is called, on behalf of a host.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

from trickle._exceptions import RemoteError, UnsafeResult
from trickle._unpickling import loads

ExceptionT = TypeVar("ExceptionT", bound=Exception)
Members = tuple[tuple[type, str, Any], ...]  # class, name, value

MAX_TEXT: Final = 64 * 1024  # characters, as the far end has it
MAX_NAME: Final = 1000
MAX_BASES: Final = 64
MAX_NOTES: Final = 32
MAX_ARGUMENTS: Final = 64
MAX_ATTRIBUTES: Final = 32
MAX_CHILDREN: Final = 1000  # of a group and its groups, together

# Raised here they would steer trio or trickle, or the generators between them and the program.
CONTROL_FLOW: Final = (StopIteration, StopAsyncIteration, GeneratorExit)
OWN_PACKAGES: Final = frozenset({"trio", "trickle", "outcome", "sniffio"})

# What builtins keep in their C structs, where their __init__ would put it, and the types of it.
_TEXT: Final = (str, bytes, type(None))
_NUMBER: Final = (int, type(None))
_MEMBERS: Final[Mapping[type, Mapping[str, tuple[type, ...]]]] = {
    OSError: {
        "errno": _NUMBER,
        "strerror": _TEXT,
        "filename": (*_TEXT, int),
        "filename2": (*_TEXT, int),
    },
    ImportError: {"msg": _TEXT, "name": _TEXT, "path": _TEXT},
    SyntaxError: {
        "msg": _TEXT,
        "filename": _TEXT,
        "text": _TEXT,
        "lineno": _NUMBER,
        "offset": _NUMBER,
        "end_lineno": _NUMBER,
        "end_offset": _NUMBER,
    },
    UnicodeEncodeError: {"encoding": (str,), "object": (str,), "start": (int,), "end": (int,), "reason": (str,)},
    UnicodeDecodeError: {"encoding": (str,), "object": (bytes,), "start": (int,), "end": (int,), "reason": (str,)},
    UnicodeTranslateError: {"object": (str,), "start": (int,), "end": (int,), "reason": (str,)},
    NameError: {"name": _TEXT},
    AttributeError: {"name": _TEXT},
}
_CONTROL_CHARACTERS: Final = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])  # all but tab and newline


def rebuild_exception(payload: bytes, *, host: str) -> Exception:
    """Return the exception that *host* described, as near to the original as is safe.

    It is a `RemoteError`, and an instance of the original's class too where that is a builtin or is imported
    here already; of the nearest builtin base where the class is not known here; of a class of exception
    groups where it was one.

    Raises:
      UnsafeResult: *payload* is no description of an exception.
    """
    description = loads(payload, host=host)
    try:
        return _Rebuilding(host).rebuild(description)
    except Exception as exc:
        raise UnsafeResult(
            f"{host}: something was raised there, but what was sent does not describe an exception", host=host
        ) from exc


class RemoteExceptionGroup(RemoteError, ExceptionGroup[ExceptionT]):
    """A function raised an exception group, over there.  Its leaves are what they would be if raised alone."""

    __module__ = "trickle"  # as that of all others that are shown

    def __str__(self) -> str:
        return f"{self.host}: {ExceptionGroup.__str__(self)}"

    def derive(self, excs: Sequence[Any], /) -> RemoteExceptionGroup[Any]:
        return _revive_group(self.message, excs, _attributes_but_notes(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive_group, (self.message, list(self.exceptions), dict(self.__dict__))


class _Rebuilding:
    """The rebuilding of one exception, and of those in it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._children_left = MAX_CHILDREN

    def rebuild(self, description: Any) -> Exception:
        said = _Said.checked(description)
        attributes = {
            **said.attributes,
            "host": self._host,
            "type_name": said.type_name,
            "remote_traceback": said.traceback,
            "_text": said.text,
        }
        if said.children:
            exc: Exception = self._rebuild_group(said, attributes)
        else:
            exc = _revive(_class_here(said.names), said.args, attributes, said.members)
        for note in said.notes:
            exc.add_note(note)
        shown = said.own_traceback or said.traceback  # the children of a group show theirs
        if shown:
            exc.add_note(f"\nOn {self._host}:\n{shown.rstrip()}")
        return exc

    def _rebuild_group(self, said: _Said, attributes: dict[str, Any]) -> Exception:
        self._children_left -= len(said.children)
        if self._children_left < 0:
            raise ValueError("too many exceptions in a group")
        message = said.args[0] if said.args and type(said.args[0]) is str else said.text
        return _revive_group(_clean(message), [self.rebuild(child) for child in said.children], attributes)


class _Said(NamedTuple):
    """A host's description of an exception, checked and bounded."""

    names: tuple[tuple[str, str], ...]  # (module, qualified name) of its class and of the bases
    text: str
    args: tuple[Any, ...]
    members: Members
    attributes: dict[str, Any]
    notes: list[str]
    traceback: str
    own_traceback: str  # of a group, where that has those of its children in it: without them
    children: list[Any]

    @property
    def type_name(self) -> str:
        return ".".join(self.names[0])

    @classmethod
    def checked(cls, description: Any) -> _Said:
        """Raise some exception if *description* is not what the far end's describe_exception() makes."""
        args = description["args"]
        attributes = description["attributes"]
        members = description["members"]
        if type(args) is not tuple or type(attributes) is not dict or type(members) is not dict:
            raise TypeError("a field has the wrong type")
        names = [description["type"], *description["bases"][:MAX_BASES]]
        return cls(
            names=tuple((_clean(module, MAX_NAME), _clean(name, MAX_NAME)) for module, name in names),
            text=_clean(description["text"]),
            args=args[:MAX_ARGUMENTS],
            members=_checked_members(members),
            attributes=_checked_attributes(attributes),
            notes=[_clean(note) for note in description["notes"][:MAX_NOTES]],
            traceback=_clean(description["traceback"]),
            own_traceback=_clean(description["own_traceback"]),
            children=list(description["children"] or ()),
        )


def _clean(text: Any, limit: int = MAX_TEXT) -> str:
    """Return *text* bounded, and without what a terminal would obey."""
    if type(text) is not str:
        raise TypeError("a text is not one")
    printable = text[:limit].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be printed
    return printable.translate(_CONTROL_CHARACTERS)


def _checked_members(said: dict[Any, Any]) -> Members:
    members = []
    for cls, kinds in _MEMBERS.items():
        for name, types_here in kinds.items():
            if name in said and type(said[name]) in types_here:
                value = said[name]
                # Python prints these itself, with the traceback.
                members.append((cls, name, _clean(value) if type(value) is str and cls is SyntaxError else value))
    return tuple(members)


def _checked_attributes(said: dict[Any, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in list(said.items())[:MAX_ATTRIBUTES]
        if type(name) is str and name.isidentifier() and not name.startswith("_")
    }


# Classes


def _class_here(names: Sequence[tuple[str, str]]) -> type[Exception] | None:
    """Return the class that an exception with a class and bases of these *names* is to be caught as here."""
    if any(module.partition(".")[0] in OWN_PACKAGES for module, _ in names):
        return None
    exact = _find_class(*names[0])
    if exact is not None:
        return exact if _is_safe(exact) else None
    for module, name in names[1:]:
        base = _find_class(module, name) if module == "builtins" else None
        if base is not None:
            return base if _is_safe(base) else None
    return None


def _find_class(module: str, qualname: str) -> type | None:
    """Return a class by its name if it is here already; runs no code of the module's, such as ``__getattr__``."""
    found: Any = sys.modules.get(module)
    if not issubclass(type(found), types.ModuleType):
        return None
    namespace: Mapping[str, Any] = object.__getattribute__(found, "__dict__")
    for part in qualname.split("."):
        found = namespace.get(part)
        if not issubclass(type(found), type):
            return None
        namespace = type.__dict__["__dict__"].__get__(found)
    return found  # type: ignore[no-any-return]


def _is_safe(cls: type) -> bool:
    """Whether an exception of this class may be raised here because a host said so."""
    if not issubclass(cls, Exception) or issubclass(cls, CONTROL_FLOW) or cls is Exception:
        return False
    return not any(str(base.__module__).partition(".")[0] in OWN_PACKAGES for base in cls.__mro__)


@functools.lru_cache(maxsize=1024)
def _remote_class(cls: type) -> type[RemoteError]:
    """Return a class whose instances are caught as `RemoteError` and as *cls*.

    Raises:
      TypeError: there can be no such class.
    """
    namespace = {
        "__module__": "trickle",
        "__doc__": f"A {cls.__name__} that was raised over there.",
        "__reduce__": _reduce,
        "__init__": _ignore_arguments,
    }
    return types.new_class(f"Remote{cls.__name__}", (RemoteError, cls), exec_body=lambda body: body.update(namespace))


def _ignore_arguments(self: RemoteError, *args: object) -> None:
    """Stand in the way of the original's ``__init__``."""


# Instances


def _revive(
    cls: type[Exception] | None, args: tuple[Any, ...], attributes: dict[str, Any], members: Members
) -> RemoteError:
    """Make an exception that is a *cls* too, if that can be; without calling its ``__init__``."""
    exc = _instantiate(cls, args)
    exc.args = args
    for owner, name, value in members:
        if isinstance(exc, owner):
            # By the owner's descriptor, so that no property of a subclass's is called.
            vars(owner)[name].__set__(exc, value)
    exc.__dict__.update({name: value for name, value in attributes.items() if _is_free(type(exc), name)})
    return exc


def _instantiate(cls: type[Exception] | None, args: tuple[Any, ...]) -> RemoteError:
    if cls is None:
        return RemoteError()
    try:
        remote_class = _remote_class(cast("Hashable", cls))
        # MemoryError's own refuses a class of two bases.
        new = BaseException.__new__ if remote_class.__new__ is MemoryError.__new__ else remote_class.__new__
        exc = new(remote_class, *args)
    except Exception:  # their layouts conflict, or __new__ wants something else
        return RemoteError()
    return exc if type(exc) is remote_class else RemoteError()


def _is_free(cls: type, name: str) -> bool:
    """Whether an attribute called *name* hides nothing but a default."""
    if name in RemoteError.__annotations__ or name.startswith("__"):
        return True
    for base in cls.__mro__:
        if name in vars(base):
            default = vars(base)[name]
            return not callable(default) and not hasattr(type(default), "__get__")
    return True


def _reduce(self: RemoteError) -> tuple[Callable[..., RemoteError], tuple[Any, ...]]:
    """Pickle by the class that is combined, because the combination has no name to be found by."""
    cls = type(self).__bases__[1]
    members = []
    for owner, kinds in _MEMBERS.items():
        for name in kinds if isinstance(self, owner) else ():
            try:
                members.append((owner, name, vars(owner)[name].__get__(self)))
            except (AttributeError, TypeError):  # never set
                continue
    return _revive, (cls, self.args, dict(self.__dict__), tuple(members))


def _revive_group(message: str, excs: Sequence[Any], attributes: dict[str, Any]) -> RemoteExceptionGroup[Any]:
    group: RemoteExceptionGroup[Any] = RemoteExceptionGroup.__new__(RemoteExceptionGroup, message, excs)
    group.__dict__.update({name: value for name, value in attributes.items() if _is_free(RemoteExceptionGroup, name)})
    return group


def _attributes_but_notes(exc: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(exc).items() if name != "__notes__"}  # split() copies those
