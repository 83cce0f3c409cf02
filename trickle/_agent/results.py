"""Pack what a call returned or raised into bytes that the controller's restricted unpickler reads.

Reading them is _unpickling.py's and _remote_errors.py's job, on the controller.
"""

import sys

try:
    import _pickle as pickle  # the pickle module costs more to import, and adds nothing that is needed here
except ImportError:
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

    Reducer = Callable[[Any], Tuple[Any, ...]]
    Described = Dict[str, Any]

PROTOCOL = 5 if sys.version_info >= (3, 8) else 4  # the reader needs 4's opcodes, and knows none after 5's

_SCALARS = frozenset([type(None), bool, int, float])
MOST_PIECES = 8  # of a pickle: where there are more, they are small, and are put together

MAX_TEXT = 64 * 1024  # characters of a str(), and of a traceback: more is no longer read by a person
MAX_CHILD_TEXT = 8 * 1024  # of each exception in a group: the group's own traceback shows them too
MAX_INTEGER_BITS = 4096  # of an exception's argument: str() of a huge one is slow, and refused by newer Pythons
MAX_CLASSES = 64  # of an exception's bases
MAX_ITEMS = 32  # of its arguments, its notes, its attributes
MAX_CHILDREN = 200  # of a group and its groups, together
MAX_DEPTH = 8  # of groups in groups, and of containers in an argument
MAX_CHAIN = 1000  # causes and contexts walked


# Results


def dumps_result(value: "Any") -> bytes:
    """Pickle *value* for the controller.

    Raises:
      TypeError: it cannot be pickled.
    """
    return b"".join(pickle_result(value))


def pickle_result(value: "Any") -> "List[bytes]":
    """The same, in pieces: what is large in it is not copied.

    Raises:
      TypeError: it cannot be pickled.
    """
    if type(value) in _SCALARS:
        return [pickle.dumps(value, PROTOCOL)]
    output = _Buffer()
    pickler = pickle.Pickler(output, PROTOCOL)
    pickler.dispatch_table = _REDUCERS
    try:
        pickler.dump(value)
    except Exception as exc:
        is_generator = type(value).__name__ in ("generator", "async_generator")
        hint = "; call it with stream()" if is_generator else ""
        text = "the function has returned, or sent, what cannot be sent: %s (%s)%s"
        raise TypeError(text % (_describe_type(value), _text_of(exc), hint)) from exc
    return output.pieces if len(output.pieces) <= MOST_PIECES else [b"".join(output.pieces)]


class _Buffer:
    """What a pickler writes to; ``io`` would do, but this shares large buffers instead of copying them."""

    def __init__(self) -> None:
        self.pieces: "List[bytes]" = []

    def write(self, piece: bytes) -> None:
        self.pieces.append(piece)


def _describe_type(value: "Any") -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else "%s.%s" % (cls.__module__, cls.__qualname__)


def _reduce_to_text(value: "Any") -> "Tuple[Any, ...]":
    return type(value), (str(value),)


def _reduce_complex(value: complex) -> "Tuple[Any, ...]":
    return complex, (value.real, value.imag)


def _reduce_fraction(value: "Any") -> "Tuple[Any, ...]":
    return type(value), (value.numerator, value.denominator)


def _reduce_zone(value: "Any") -> "Tuple[Any, ...]":
    if value.key is None:
        raise TypeError("a time zone that was read from a file has no name to be sent by")
    return type(value), (value.key,)


def _reduce_enum(value: "Any") -> "Tuple[Any, ...]":
    return type(value), (value.value,)


# Types whose own pickles differ between Python versions, or are more than a call with scalar arguments.
# By name, because importing their modules would cost every connection: a value's type says where it is from.
_SPECIAL_TYPES = {
    ("builtins", "complex"): _reduce_complex,
    ("fractions", "Fraction"): _reduce_fraction,
    ("uuid", "UUID"): _reduce_to_text,
    ("zoneinfo", "ZoneInfo"): _reduce_zone,
}  # type: Dict[Tuple[str, str], Reducer]
for _name in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
    _SPECIAL_TYPES["pathlib", _name] = _reduce_to_text
    _SPECIAL_TYPES["pathlib._local", _name] = _reduce_to_text  # where 3.13 keeps them
for _name in (
    "IPv4Address",
    "IPv6Address",
    "IPv4Network",
    "IPv6Network",
    "IPv4Interface",
    "IPv6Interface",
):
    _SPECIAL_TYPES["ipaddress", _name] = _reduce_to_text

# Types whose own pickles are fine already.
_ORDINARY_TYPES = {
    ("decimal", "Decimal"),
    ("datetime", "date"),
    ("datetime", "time"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
}


class _Reducers(dict):  # type: ignore[type-arg]
    """A pickler's ``dispatch_table`` that finds out about a type when a value of it turns up."""

    def __missing__(self, cls: "type") -> "Reducer":
        reducer = _SPECIAL_TYPES.get((cls.__module__, cls.__qualname__))
        if reducer is not None and _is_genuine(cls):
            self[cls] = reducer
            return reducer
        enum = sys.modules.get("enum")
        if enum is not None and issubclass(cls, enum.Enum):
            return _reduce_enum  # by value: how an Enum pickles itself differs from version to version
        return sys.modules["copyreg"].dispatch_table[cls]  # type: ignore[no-any-return]


_REDUCERS = _Reducers()


def _is_genuine(cls: type) -> bool:
    """Whether the name of *cls* leads back to it: a user's class can claim any name."""
    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


# Exceptions


def describe_exception(exc: BaseException) -> bytes:
    """Pack *exc* as plain data: what it is, what it says and where it was raised, all of bounded size.

    Frames of trickle's own at the top of its tracebacks are dropped from the exceptions themselves.  Never
    raises: what cannot be had is left out.
    """
    try:
        return dumps_result(_Describer().describe(exc, 0))
    except Exception as problem:  # such as MemoryError
        said = "(nothing more can be said: describing it raised %s)" % type(problem).__name__
        return dumps_result(dict(_describe_class(exc), traceback=said))


class _Describer:
    """Describes one exception, and those in it if it is a group."""

    def __init__(self) -> None:
        self.children_left = MAX_CHILDREN

    def describe(self, exc: BaseException, depth: int) -> "Described":
        limit = MAX_CHILD_TEXT if depth else MAX_TEXT
        children = _children_of(exc)
        described = _describe_class(exc)
        _drop_own_frames(exc)
        form = "frames" if children and depth else "whole"
        described["traceback"] = _shorten(_format_traceback(exc, form), limit)
        if children and not depth:
            described["own_traceback"] = _shorten(_format_traceback(exc, "own"), limit)
        described["text"] = _shorten(_text_of(exc), limit)
        described["args"], described["args_are_faithful"] = _describe_arguments(exc, limit)
        described["members"] = _describe_members(exc, limit)
        described["attributes"] = _describe_attributes(exc, limit)
        described["notes"] = _describe_notes(exc, limit)
        if depth < MAX_DEPTH:
            described["children"] = self.describe_children(children, depth)
        return described

    def describe_children(self, children: "Sequence[BaseException]", depth: int) -> "List[Described]":
        descriptions: "List[Described]" = []
        for child in children:
            if self.children_left == 0:
                break
            self.children_left -= 1
            descriptions.append(self.describe(child, depth + 1))
        return descriptions


def _describe_class(exc: BaseException) -> "Described":
    """Return a description that says only what *exc* is."""
    return {
        "type": _name_of(type(exc)),
        "bases": [_name_of(cls) for cls in type(exc).__mro__[1 : MAX_CLASSES + 1]],
        "text": "",
        "args": (),
        "args_are_faithful": False,
        "members": {},
        "attributes": {},
        "notes": [],
        "traceback": "",
        "own_traceback": "",
        "children": [],
    }


def _name_of(cls: type) -> "Tuple[str, str]":
    return str(cls.__module__), str(cls.__qualname__)


def _attribute_of(exc: BaseException, name: str) -> "Any":
    """Return an attribute, or None if it is not there; a property of the program's may raise anything."""
    try:
        return getattr(exc, name)
    except Exception:
        return None


def _text_of(exc: BaseException) -> str:
    try:
        return str.__add__(str(exc), "")  # an instance of a subclass of str becomes a plain one
    except Exception as problem:
        return "(no text: its __str__ raised %s)" % type(problem).__name__


def _repr_of(value: "Any", limit: int) -> str:
    try:
        return _shorten(str.__add__(repr(value), ""), limit)
    except Exception as problem:
        return "<%s: its __repr__ raised %s>" % (_describe_type(value), type(problem).__name__)


def _shorten(text: str, limit: int) -> str:
    """Return *text* in at most *limit* characters, its head and its tail kept."""
    if len(text) <= limit:
        return text
    mark = "\n... (%d characters left out) ...\n" % (len(text) - limit)
    head = max(0, limit - len(mark)) // 2
    tail = max(0, limit - len(mark) - head)
    return text[:head] + mark + text[len(text) - tail :]


def _describe_arguments(exc: BaseException, limit: int) -> "Tuple[Tuple[Any, ...], bool]":
    """Return the arguments, and whether each is itself and not its repr()."""
    args = _attribute_of(exc, "args")
    if type(args) is not tuple:
        return (), False
    if _children_of(exc):
        args = args[:1]  # the message; what else there is is the children
    limit //= max(1, len(args))
    described = tuple(arg if _is_small_and_plain(arg, limit) else _repr_of(arg, limit) for arg in args[:MAX_ITEMS])
    return described, len(args) <= MAX_ITEMS and all(map(_is_same, described, args))


def _is_same(one: object, other: object) -> bool:
    return one is other


def _is_small_and_plain(value: "Any", limit: int) -> bool:
    try:
        return _is_plain(value, 0) and len(dumps_result(value)) <= limit
    except Exception:
        return False


def _is_plain(value: "Any", depth: int) -> bool:
    """Whether the controller reads *value* as it is, with no class of the program's own in it."""
    cls = type(value)
    if cls in (type(None), bool, float, complex, str, bytes):
        return True
    if cls is int:
        return bool(value.bit_length() <= MAX_INTEGER_BITS)
    if cls in (tuple, list, set, frozenset):
        return depth < MAX_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    if cls is dict:
        return depth < MAX_DEPTH and all(
            _is_plain(key, depth + 1) and _is_plain(item, depth + 1) for key, item in value.items()
        )
    name = (cls.__module__, cls.__qualname__)
    return (name in _SPECIAL_TYPES or name in _ORDINARY_TYPES) and _is_genuine(cls)


# What builtin exceptions keep in their C structs, where their __init__ would put it.
_MEMBERS = (
    (OSError, ("errno", "strerror", "filename", "filename2")),
    (ImportError, ("msg", "name", "path")),
    (SyntaxError, ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset")),
    (UnicodeError, ("encoding", "object", "start", "end", "reason")),
    (NameError, ("name",)),
    (AttributeError, ("name",)),
)  # type: Tuple[Tuple[type, Tuple[str, ...]], ...]


def _describe_members(exc: BaseException, limit: int) -> "Dict[str, Any]":
    members = {}
    for cls, names in _MEMBERS:
        for name in names if isinstance(exc, cls) else ():
            value = _attribute_of(exc, name)
            if value is not None and _is_small_and_plain(value, limit):
                members[name] = value
    return members


def _describe_attributes(exc: BaseException, limit: int) -> "Dict[str, Any]":
    """Return the plain data that the program keeps on *exc*, such as a CalledProcessError's returncode."""
    attributes: "Dict[str, Any]" = {}
    for name, value in list(exc.__dict__.items()):
        if len(attributes) == MAX_ITEMS:
            break
        if type(name) is str and not name.startswith("_") and _is_small_and_plain(value, limit // 8):
            attributes[name] = value
    return attributes


def _describe_notes(exc: BaseException, limit: int) -> "List[str]":
    notes = _attribute_of(exc, "__notes__")
    if type(notes) is not list:
        return []
    return [_shorten(note, limit // 8) for note in notes[:MAX_ITEMS] if type(note) is str]


def _children_of(exc: BaseException) -> "Sequence[BaseException]":
    """Return the exceptions in a group, if *exc* is one: Python 3.11's own, or the backport's."""
    if not any(cls.__name__ == "BaseExceptionGroup" for cls in type(exc).__mro__):
        return ()
    children = _attribute_of(exc, "exceptions")
    if type(children) is not tuple or not all(isinstance(child, BaseException) for child in children):
        return ()
    return children


def _format_traceback(exc: BaseException, form: str) -> str:
    """Return what Python would print: the whole, its own (without what is in groups), or its own frames alone."""
    try:
        import traceback  # not at the top: most connections never need it

        from trickle._agent import functions

        functions.show_sources()
        if form == "whole":
            return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        if form == "own":
            return "".join(_without_children(traceback.TracebackException(type(exc), exc, exc.__traceback__)).format())
        frames = traceback.format_tb(exc.__traceback__)
        head = ["Traceback (most recent call last):\n"] if frames else []
        return "%s%s: %s\n" % ("".join(head + frames), type(exc).__name__, _text_of(exc))
    except Exception as problem:  # a __str__, __repr__ or loader of the program's own
        return "(no traceback: formatting it raised %s)\n" % type(problem).__name__


def _without_children(said: "Any") -> "Any":
    """A `traceback.TracebackException` of a group that is shown like any other exception, with what it comes from."""
    waiting = [said]
    while waiting:
        link = waiting.pop()
        if link is not None:
            link.exceptions = None
            waiting += [link.__cause__, link.__context__]
    return said


def _drop_own_frames(exc: BaseException) -> None:
    """Cut trickle's frames off the top of the tracebacks of *exc* and of all that it came from."""
    seen: "set[int]" = set()
    waiting: "List[Optional[BaseException]]" = [exc]
    while waiting and len(seen) < MAX_CHAIN:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.__traceback__ = _without_own_frames(link.__traceback__)
        waiting += [link.__cause__, link.__context__]


# What runs coroutines: trio's own loop is above it.
_ABOVE_COROUTINES = (("trickle._agent.asynchronous", "main"), ("trickle._agent.channels", "_send_all"))


def _without_own_frames(traceback: "Any") -> "Any":
    each = traceback
    while each is not None:
        frame = each.tb_frame
        each = each.tb_next
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _ABOVE_COROUTINES:
            traceback = each
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__")
        if not (isinstance(module, str) and module.startswith("trickle._agent.")):
            return traceback
        traceback = traceback.tb_next
    return None
