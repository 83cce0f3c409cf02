"""Turn a call into the bytes that its host makes the call from: trickle/_agent/functions.py is the other end.

What can be imported goes by reference.  The rest goes as source: functions and classes of the script,
lambdas, closures.  Which modules the host then needs is reported, not sent.
"""

import builtins
import copyreg
import functools
import marshal
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from . import remote
from ._agent import functions
from ._culprit import culprit_path
from ._exceptions import RemoteError, Unsendable
from ._imports import absolute_name
from ._modules import STANDARD_LIBRARY
from ._results import Results
from ._source_code import (
    NamesUsed,
    Snippet,
    attributes_in,
    code_of_statement,
    imported_from,
    names_annotated,
    names_used,
    names_used_by_statement,
    snippet_of_function,
    snippet_of_statement,
    source_file,
)
from ._stays_here import LIVE
from ._wire.frames import LARGE

# Every module over there has its own.
OWN_NAMES = frozenset({"__name__", "__builtins__", "__doc__", "__loader__", "__spec__"})
NOT_NOTED = STANDARD_LIBRARY | {"trickle", "__main__"}
OF_EVERY_HOST = {"__main__", "trickle.remote", functions.__name__}


class NeedsVersion(Exception):
    """Only code can be sent, no source: wait until the host's Python is known, and pickle again."""


class OutgoingCall(NamedTuple):
    """A call as bytes.

    Attributes:
      pieces: those bytes; what is large in the arguments was not copied.
      modules: names that unpickling imports, or source in the payload; those of the standard library are left
        out, and some may turn out to be attributes of modules.
      snippets: source in the payload.
    """

    pieces: list[bytes]
    modules: frozenset[str]
    snippets: tuple[Snippet, ...] = ()

    @property
    def payload(self) -> bytes:
        """All of them in one."""
        return b"".join(self.pieces)


def dumps_call(
    fn: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    host: str,
    far_version: tuple[int, int] | None,
    implementation: str | None = None,
    stays_here: bool = False,
) -> OutgoingCall:
    """Pickle ``fn(*args, **kwargs)`` for a host.

    Args:
      stays_here: whether it is for a process of this machine, which has all of trickle.
      far_version: of the host's Python; None while it is not known.
      implementation: of the host's Python, as in HostInfo; None while a tunnel's ``python_version=`` is all that is
        known, which is about CPython.

    Raises:
      Unsendable: something in it cannot be sent; the message says where it is.
      NeedsVersion: this call can only be pickled once the far version is known.
    """
    call = _Call(host, far_version, implementation, stays_here)
    try:
        reference = _reference_to(fn, call)
        if reference is None:
            pieces = call.pickle_in_pieces((fn, args, dict(kwargs)))
        elif not kwargs and all(map(_is_small, args)):
            return OutgoingCall([reference.pickled, pickle.dumps((args, {}), call.protocol)], reference.modules)
        else:
            call.modules.update(reference.modules)
            pieces = [reference.pickled, *call.pickle_in_pieces((args, dict(kwargs)))]
    except (Unsendable, NeedsVersion):
        raise
    except Exception as exc:  # whatever a __reduce__ or __getstate__ of the program's raises
        parts = [("the function", fn), *_labelled(args, kwargs)]
        raise call.unsendable(parts, exc) from exc
    call.need_what_annotations_name()
    items = [item for item in call.items.values() if item is not None]
    if items:
        pieces.insert(0, pickle.dumps(items, call.protocol))
    return OutgoingCall(pieces, frozenset(call.modules), tuple(call.snippets))


def _labelled(args: tuple[object, ...], kwargs: Mapping[str, object]) -> list[tuple[str, object]]:
    positional = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    return positional + [(f"keyword argument {name!r}", value) for name, value in kwargs.items()]


class _Call:
    """What is known of the host, and what is gathered while one call is pickled for it."""

    def __init__(
        self, host: str, far_version: tuple[int, int] | None, implementation: str | None, stays_here: bool = False
    ) -> None:
        self.host = host
        self.stays_here = stays_here
        self.far_version = far_version
        self.implementation = implementation
        self.protocol = 4 if far_version is None or far_version < (3, 8) else 5
        self.modules: set[str] = set()
        self.snippets: list[Snippet] = []
        self.items: dict[str, functions.MainItem | None] = {}
        self.annotated: dict[str, None] = {}  # names in annotations of what is sent of the script, in order
        self.only_annotated = False  # whether it is only such that is being pickled
        self.submodules: dict[str, set[str]] = {}  # that the files of what is sent import, by the package's name

    def pickle(self, obj: object, needed: set[str] | None = None) -> bytes:
        """Pickle *obj*; names of the script that its functions use are added to *needed*."""
        return b"".join(self.pickle_in_pieces(obj, needed))

    def pickle_in_pieces(self, obj: object, needed: set[str] | None = None) -> list[bytes]:
        """The same; what is large in *obj* is not copied."""
        pieces = _Pieces()
        _Pickler(pieces, self, set() if needed is None else needed).dump(obj)
        return pieces if len(pieces) <= MOST_PIECES else [b"".join(pieces)]

    def note_module(self, name: str) -> None:
        """Remember that the host will import *name*."""
        top = name.partition(".")[0]
        if self.only_annotated and top not in STANDARD_LIBRARY and name not in OF_EVERY_HOST | self.modules:
            raise pickle.PicklingError(f"only annotations need {name}")
        if top not in NOT_NOTED:
            self.modules.add(name)

    def note_imports(self, used: NamesUsed, module_globals: Mapping[str, Any]) -> None:
        """Remember what code that is sent imports itself."""
        package = module_globals.get("__package__") or ""
        if package and module_globals is vars(sys.modules["__main__"]) and any(level for _, level in used.imports):
            self.items.setdefault("__package__", self._value_item("__package__", package))  # python -m package.script
        for name, level in used.imports:
            self.note_module(absolute_name(name, level, package))

    def note_submodules(self, code: CodeType, module_globals: dict[str, Any]) -> None:
        """Remember which submodules code looks for in packages, where its file has imported them (``import a.b``)."""
        file = source_file(code.co_filename, module_globals)
        if file is not None and file.submodules:
            names = attributes_in(code)
            for dotted in file.submodules:
                package, *below = dotted.split(".")
                if names.issuperset(below):
                    self.submodules.setdefault(package, set()).add(dotted)

    def need(self, name: str) -> None:
        """See to it that the global *name* of the script is set over there, with all that it uses itself."""
        script = vars(sys.modules["__main__"])
        if name in self.items or name in OWN_NAMES or name not in script:
            return
        reference = self._reference_to_import(name, script[name])
        if reference is not None:
            self.items[name] = name, "value", reference, [], [], self.only_annotated
            return
        snippet = snippet_of_statement(name, script[name])
        if snippet is None:
            self.items[name] = None  # it may refer to itself
            self.items[name] = self._value_item(name, script[name])
            return
        self.note_submodules(code_of_statement(snippet), script)
        used = names_used_by_statement(snippet)
        before = used.before | self.note_annotations(snippet)
        self.items[name] = (name, "statement", tuple(snippet), sorted(before), sorted(used.after), self.only_annotated)
        self.snippets.append(snippet)
        self.note_imports(used, script)
        for each in sorted(used.before | used.after):
            self.need(each)

    def note_annotations(self, snippet: Snippet) -> set[str]:
        """Remember which globals of the script annotations name that are texts, as ``__future__`` makes them.

        Returns those that were there when a statement was executed here: ``dataclass`` looks for its ClassVar.
        """
        script = vars(sys.modules["__main__"])
        names = names_annotated(snippet).intersection(script)
        self.annotated.update(dict.fromkeys(sorted(names)))
        file = source_file(snippet.filename, script)
        return {
            name
            for name in names
            if imported_from(name)[0]
            or (file is not None and file.binds_before(name, snippet.line))
            or isinstance(script[name], ModuleType)
            or _place_of(script[name])[0] not in ("", "__main__")
        }

    def need_what_annotations_name(self) -> None:
        """Have that go along, too, unless it cannot be sent or takes modules for which there is no other reason.

        No code that is called uses it: it is for dataclasses, ``get_type_hints`` and the like.
        """
        self.only_annotated = True
        while self.annotated:
            name = next(iter(self.annotated))
            del self.annotated[name]
            before = dict(self.items), self.snippets.copy(), dict(self.annotated)
            try:
                self.need(name)
            except Exception:  # the call does without
                self.items, self.snippets, self.annotated = before

    def defines(self, name: str) -> bool:
        """Whether the host makes the global *name* of the script by executing its source."""
        self.need(name)
        item = self.items.get(name)
        return item is not None and item[1] == "statement"

    def _reference_to_import(self, name: str, value: object) -> bytes | None:
        """A pickle that gives the host its own *value*, where that is what the script means by an import; else None."""
        module, attribute = imported_from(name)
        if module == "trickle.remote":
            is_theirs = hasattr(remote, attribute) and getattr(remote, attribute) is value
        else:
            found = sys.modules.get(module)
            is_here = isinstance(found, ModuleType) and vars(found).get(attribute, self) is value
            is_theirs = is_here and _is_meant_by_name(value, module)
        if not is_theirs:
            return None
        self.note_module(module)
        return _pickled_attribute(module, attribute, self.protocol)

    def _value_item(self, name: str, value: object) -> "functions.MainItem":
        needed: set[str] = set()
        try:
            pickled = self.pickle(value, needed)
        except (Unsendable, NeedsVersion):
            raise
        except Exception as exc:  # as in dumps_call
            if self.only_annotated:
                raise  # and nobody reads it
            raise self.unsendable([(f"global {name!r} of __main__", value)], exc) from exc
        return name, "value", pickled, [], sorted(needed), self.only_annotated

    def unsendable(self, parts: list[tuple[str, object]], exc: Exception) -> Unsendable:
        """The error that says which of *parts* failed, and where in it."""
        path = culprit_path(parts, self._can_send)
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        return Unsendable(f"{self.host}: cannot send {path or parts[0][0]}: {reason}", host=self.host, path=path)

    def _can_send(self, obj: object) -> bool:
        try:
            _Call(self.host, self.far_version, self.implementation).pickle(obj)
        except NeedsVersion:
            return True
        except Exception:
            return False
        return True


class _Reference(NamedTuple):
    """A function that its host has by its name: what that takes is worked out once."""

    module: str
    qualname: str
    pickled: bytes
    modules: frozenset[str]


MOST_REFERENCES = 1000
_references: dict[tuple[object, int], _Reference] = {}  # by function and protocol
_HASHED_BY_IDENTITY = (FunctionType, BuiltinFunctionType, type)
_NUMBERS = frozenset({type(None), bool, int, float})


def _is_small(value: object) -> bool:
    """Whether every pickler pickles it alike, and it does not matter if it is copied."""
    return type(value) in _NUMBERS or (type(value) in (str, bytes) and len(value) <= LARGE)  # type: ignore[arg-type]


MOST_PIECES = 8  # of a pickle: where there are more, they are small, and are put together


class _Pieces(list[bytes]):
    """What a pickler writes to: it hands over large buffers as they are."""

    write = list.append


def _reference_to(fn: Any, call: _Call) -> _Reference | None:
    """The reference to *fn*; None if it goes by value, or is none of the usual callables."""
    if type(fn) not in _HASHED_BY_IDENTITY:
        return None
    known = _references.get((fn, call.protocol))
    if known is not None and _attribute_of(known.module, known.qualname) is fn:
        return known
    module, qualname = _place_of(fn)
    if module in ("", "__main__"):
        return None
    own = _Call(call.host, call.far_version, call.implementation)
    reference = _Reference(module, qualname, own.pickle(fn), frozenset(own.modules))
    if len(_references) >= MOST_REFERENCES:
        _references.clear()
    _references[fn, call.protocol] = reference
    return reference


class _Reduced:
    """Stands for what a function makes over there."""

    def __init__(self, maker: Callable[..., object], *args: object) -> None:
        self._reduced = (maker, args)

    def __reduce__(self) -> Any:
        return self._reduced


@functools.lru_cache(maxsize=MOST_REFERENCES)
def _pickled_attribute(module: str, attribute: str, protocol: int) -> bytes:
    return pickle.dumps(_Reduced(functions.attribute, module, attribute), protocol)


class _Pickler(pickle.Pickler):
    """Pickles what can be imported by reference, and functions that cannot by value."""

    def __init__(self, stream: _Pieces, call: _Call, needed: set[str]) -> None:
        super().__init__(stream, call.protocol)
        self._call = call
        self._needed = needed
        self._namespaces: dict[int, _Reduced] = {}

    def reducer_override(self, obj: Any) -> Any:
        """How *obj* is pickled, where that is not the usual way."""
        if isinstance(obj, FunctionType):
            reference = self._by_name(obj)
            return self._function_by_value(obj) if reference is None else reference
        if isinstance(obj, MethodType):
            return self._method(obj)
        if isinstance(obj, ModuleType):
            return self._module(obj)
        if isinstance(obj, CellType):
            return functions.make_cell, ()
        if obj is os.environ:  # the host's, and not ours with all that is in it
            return functions.attribute, ("os", "environ")
        if isinstance(obj, BuiltinFunctionType):
            found = self._function_of_module(obj)
            if found is not None:
                return found
        if type(obj) in LIVE:
            raise pickle.PicklingError(
                f"a live {type(obj).__name__} stays here; send a function or a static method, and plain values to it"
            )
        if not self._call.stays_here:
            if type(obj) is Results:
                raise pickle.PicklingError("trickle.Results stay here; send what is in them, as by successful()")
            if isinstance(obj, BaseException) and isinstance(obj, RemoteError):
                raise pickle.PicklingError("an error of a host stays here; send str(error), or error.remote_traceback")
        # Most objects have __module__ from their class; those with one of their own may be pickled by name.
        if isinstance(obj, type) or getattr(obj, "__module__", None) != type(obj).__module__:
            reference = self._by_name(obj)
            return NotImplemented if reference is None else reference
        return NotImplemented

    def _by_name(self, obj: Any) -> Any:
        """A reference to *obj*; None if it cannot be had by its name."""
        module_name, qualname = _place_of(obj)
        if not module_name:
            return None
        if module_name == "__main__":
            if self._call.defines(qualname.partition(".")[0]):
                return functions.main_attribute, (qualname,)
            if isinstance(obj, type):
                raise pickle.PicklingError(f"the source of {qualname} cannot be found; move it to a module")
            return None
        self._call.note_module(module_name)
        public_name = _without_private_parts(module_name)
        if public_name != module_name and _attribute_of(public_name, qualname) is obj:
            return functions.attribute, (public_name, qualname)
        return NotImplemented

    def _method(self, method: MethodType) -> Any:
        """By its name, as pickle has it, but where another method goes by that: an override, or what decorates it."""
        reference = self._function_of_module(method)
        if reference is not None:
            return reference
        function, owner = method.__func__, method.__self__
        try:
            found = getattr(owner, getattr(function, "__name__", ""), None)
        except Exception:  # its class's own idea of attributes
            found = None
        if isinstance(found, MethodType) and found.__func__ is function and found.__self__ is owner:
            return NotImplemented
        return functions.bound, (function, owner)

    def _function_of_module(self, method: MethodType | BuiltinFunctionType) -> Any:
        """A reference, if a module has that method of an instance as a function: ``random.uniform``; else None.

        The instance stays here with its state: the host has its own.
        """
        found = _place_of_method(method) if _is_of_instance(method) else None
        if found is None:
            return None
        self._call.note_module(found[0])
        return functions.attribute, found

    def _module(self, module: ModuleType) -> Any:
        if module is sys.modules["__main__"]:
            return functions.main_module, ()
        if not _is_importable(module):
            raise pickle.PicklingError(
                f"module {module.__name__} was made by this program while it ran, so there is nothing to send;"
                " put its code into a file"
            )
        below = sorted(self._call.submodules.get(module.__name__, ()))
        for name in (module.__name__, *below):
            self._call.note_module(name)
        return functions.import_module, (module.__name__, *below)

    def _function_by_value(self, function: FunctionType) -> Any:
        """Make it without contents first: its cells and globals may lead back to it."""
        code, closure = function.__code__, function.__closure__ or ()
        cells = dict(zip(code.co_freevars, closure, strict=True))
        globals_of, namespace = self._globals_of(function)
        attributes = {
            "__qualname__": function.__qualname__,
            "__module__": function.__module__,
            "__defaults__": function.__defaults__,
            "__kwdefaults__": function.__kwdefaults__,
            **vars(function),
        }
        contents = [(cell, cell.cell_contents) for cell in closure if not _is_empty(cell)]
        return (
            functions.make_function,
            (self._code_of(function), globals_of, function.__name__, cells),
            (attributes, contents, namespace),
            None,
            None,
            functions.fill_function,
        )

    def _code_of(self, function: FunctionType) -> _Reduced:
        code, call = function.__code__, self._call
        snippet = snippet_of_function(code, function.__globals__)
        if snippet is not None:
            call.snippets.append(snippet)
            if function.__globals__ is vars(sys.modules["__main__"]):
                call.note_annotations(snippet)
            return _Reduced(functions.code_from_source, tuple(snippet), code.co_name)
        if call.far_version is None:
            raise NeedsVersion
        here = (*sys.version_info[:2], sys.implementation.name)
        if (*call.far_version, (call.implementation or "cpython").lower()) == here:
            return _Reduced(functions.code_from_marshal, marshal.dumps(code))
        raise pickle.PicklingError(
            f"the source of {function.__qualname__} cannot be found in {code.co_filename}, and without it a"
            f" function can only go to Python {here[0]}.{here[1]}; move it to a module"
        )

    def _globals_of(self, function: FunctionType) -> tuple[object, dict[str, object]]:
        """What stands for a function's globals, and those of them that it brings along itself."""
        names, module_globals = names_used(function.__code__), function.__globals__
        self._call.note_imports(names, module_globals)
        self._call.note_submodules(function.__code__, module_globals)
        used = sorted(names.before | names.after)
        module_name = module_globals.get("__name__", "")
        module = sys.modules.get(module_name)
        if module is not None and vars(module) is module_globals:
            if module_name == "__main__":
                self._needed.update(used)
                for name in used:
                    self._call.need(name)
                return module, {}
            if _is_importable(module) and not _needs_nothing_of(module, names):
                return module, {}
        # Functions that exec() or runpy defined share a namespace over there, too.
        namespace = self._namespaces.setdefault(id(module_globals), _Reduced(functions.make_namespace, module_name))
        return namespace, {name: module_globals[name] for name in used if name in module_globals}


def _place_of(obj: Any) -> tuple[str, str]:
    """The module and the dotted name by which *obj* can be had; two empty strings if it cannot."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        return "", ""
    module = sys.modules.get(module_name)
    if module is None or not (module_name == "__main__" or _is_importable(module)):
        return "", ""
    return (module_name, qualname) if _attribute_of(module_name, qualname) is obj else ("", "")


def _needs_nothing_of(module: ModuleType, names: NamesUsed) -> bool:
    """Whether code from *module* uses only builtins and what can be imported from elsewhere.

    Then its module need not be sent, with all that it imports in turn.
    """
    if any(level for _, level in names.imports):
        return False  # relative
    for name in names.before | names.after:
        is_known = name in vars(module)
        if name in _LOOK_AROUND or not (is_known or hasattr(builtins, name)):
            return False
        if is_known and not _is_from_elsewhere(vars(module)[name], module):
            return False
    return True


_LOOK_AROUND = {"eval", "exec", "globals", "locals", "vars"}  # code that calls these may use any global


def _is_from_elsewhere(value: object, module: ModuleType) -> bool:
    home = value.__name__ if isinstance(value, ModuleType) else _place_of(value)[0]
    # Over there, trickle is something else.
    return home not in ("", "__main__", module.__name__) and home.partition(".")[0] != "trickle"


def _is_meant_by_name(value: object, module: str) -> bool:
    """Whether to have the host take its own *value* from that *module* of this program, which has it."""
    if value is None or isinstance(value, type | ModuleType | FunctionType):
        return False  # these are sent by their own names
    package, cls = module.partition(".")[0], type(value)
    if _is_of_instance(value) or _is_bare(value, package):
        return True
    # What compares by more than identity may go as a copy: datetime.UTC, which older Pythons do not have, say.
    return package in STANDARD_LIBRARY and (cls.__eq__ is object.__eq__ or cls.__module__ == "sys")


def _is_of_instance(value: object) -> bool:
    """Whether it is a bound method, and not one of a class; functions of C are methods of their modules."""
    return isinstance(value, _METHODS) and not isinstance(value.__self__, _NO_INSTANCES)


_METHODS = (MethodType, BuiltinFunctionType)
_NO_INSTANCES = (type, ModuleType, type(None))


def _is_bare(value: object, package: str) -> bool:
    """Whether all there is to *value* is which one it is: an ``object()``, or one of a class of its *package*'s own."""
    cls = type(value)
    if cls is object:
        return True
    if str(cls.__module__).partition(".")[0] != package or cls in copyreg.dispatch_table:
        return False
    if cls.__reduce__ is not object.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__:
        return False
    try:
        return value.__reduce_ex__(4) == (copyreg.__newobj__, (cls,), None, None, None)  # type: ignore[attr-defined]
    except Exception:  # it cannot be pickled at all
        return False


def _place_of_method(method: MethodType | BuiltinFunctionType) -> tuple[str, str] | None:
    """The module that has a bound method as a function, and its name there; None if there is no such module."""
    home = str(type(method.__self__).__module__)
    if home.partition(".")[0] in STANDARD_LIBRARY:
        candidates = _functions_of_library().get(id(method.__self__), [])
    else:
        module = sys.modules.get(home) if home != "__main__" else None
        is_module = isinstance(module, ModuleType) and _is_importable(module)
        candidates = [(home, name) for name in vars(module)] if is_module else []
    for module_name, name in candidates:
        found = getattr(sys.modules.get(module_name), "__dict__", {}).get(name)
        if type(found) is type(method) and found == method:
            return module_name, name
    return None


_library: dict[int, list[tuple[str, str]]] = {}
_library_looked_at = 0  # when so many modules were loaded


def _functions_of_library() -> dict[int, list[tuple[str, str]]]:
    """What the loaded standard library has as functions that are methods of instances, by the ids of these."""
    global _library, _library_looked_at
    if _library_looked_at != len(sys.modules):
        _library_looked_at = len(sys.modules)
        _library = {}
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] in STANDARD_LIBRARY and isinstance(module, ModuleType):
                for name, value in list(vars(module).items()):
                    if _is_of_instance(value):
                        _library.setdefault(id(value.__self__), []).append((module_name, name))
        for places in _library.values():  # names for all, such as keyword.iskeyword, before collections._iskeyword
            places.sort(key=lambda place: place[0].startswith("_") or place[1].startswith("_"))
    return _library


def _is_importable(module: ModuleType) -> bool:
    return getattr(module, "__spec__", None) is not None


def _attribute_of(module_name: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module_name)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _without_private_parts(module_name: str) -> str:
    """``pathlib._local`` is not in every Python; ``pathlib`` is."""
    return module_name.partition("._")[0]


def _is_empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
