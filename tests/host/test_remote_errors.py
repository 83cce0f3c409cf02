"""What was raised over there is raised here as itself, where that is safe."""

import builtins
import copy
import pickle
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, Never

import pytest
import trio

import trickle
from trickle._agent.results import describe_exception, dumps_result
from trickle._remote_errors import CONTROL_FLOW, rebuild_exception


def described(exc: BaseException) -> dict[str, Any]:
    """What a far end sends about *exc*, to be tampered with."""
    description = pickle.loads(describe_exception(exc))
    assert isinstance(description, dict)
    return description


def rebuilt(exc: BaseException, **changes: object) -> Any:
    return rebuild_exception(dumps_result(described(exc) | changes), host="web1")


def raised(fn: Callable[..., object], *args: object) -> Exception:
    try:
        fn(*args)
    except Exception as exc:
        return exc
    raise AssertionError(f"{fn} raised nothing")


def fail() -> Never:
    raise KeyError("x")


class Refused(ConnectionRefusedError):
    pass


class NeedsTwo(Exception):
    def __new__(cls, first: object, second: object) -> "NeedsTwo":
        return super().__new__(cls, first, second)


class CountsItsInits(Exception):
    inits = 0

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        CountsItsInits.inits += 1


class HasSlots(Exception):
    __slots__ = ("value",)


class HasProperty(OSError):
    @property
    def errno(self) -> int:
        raise AssertionError

    @errno.setter
    def errno(self, value: int) -> None:
        raise AssertionError


def test_builtins_are_caught_as_themselves_and_as_remote_errors() -> None:
    error = rebuilt(raised(fail))

    assert isinstance(error, KeyError)
    assert isinstance(error, trickle.RemoteError)
    assert type(error).__name__ == "RemoteKeyError"
    assert error.args == ("x",)
    assert str(error) == "web1: KeyError: 'x'"
    assert (error.host, error.type_name) == ("web1", "builtins.KeyError")
    assert 'raise KeyError("x")' in error.remote_traceback


EVERY_BUILTIN = [
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, Exception) and not issubclass(cls, (*CONTROL_FLOW, ExceptionGroup))
]


@pytest.mark.parametrize("cls", [cls for cls in EVERY_BUILTIN if cls is not Exception])
def test_every_builtin_error_is_caught_as_itself(cls: type[Exception]) -> None:
    unicode_errors = {UnicodeEncodeError: ("ascii", "x", 0, 1, "why"), UnicodeDecodeError: ("ascii", b"x", 0, 1, "why")}
    args = {**unicode_errors, UnicodeTranslateError: ("x", 0, 1, "why")}.get(cls, ())

    error = rebuilt(cls(*args))

    assert isinstance(error, cls)
    assert isinstance(error, trickle.RemoteError)


def test_os_errors_have_their_numbers_and_names() -> None:
    error = rebuilt(raised(open, "/no/such/file"))

    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.strerror, error.filename) == (2, "No such file or directory", "/no/such/file")


def test_os_errors_with_two_names_have_both() -> None:
    error = rebuilt(OSError(1, "no", "from", None, "to"))

    assert (error.filename, error.filename2) == ("from", "to")


@pytest.mark.parametrize(
    ("original", "names"),
    [
        (raised(b"\xff".decode), ["encoding", "object", "start", "end", "reason"]),
        (raised("\udc80".encode), ["encoding", "object", "start", "end", "reason"]),
        (raised(compile, "a b", "script.py", "exec"), ["msg", "filename", "lineno", "offset", "text"]),
        (raised(__import__, "no_such_module"), ["msg", "name", "path"]),
        (raised(eval, "no_such_name"), ["name"]),
        (raised(getattr, 1, "no_such_attribute"), ["name"]),
        (subprocess.CalledProcessError(3, "false", b"out", b"err"), ["returncode", "cmd", "output", "stderr"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_attributes_arrive(original: Exception, names: list[str]) -> None:
    error = rebuilt(original)

    assert isinstance(error, type(original))
    assert [getattr(error, name) for name in names] == [getattr(original, name) for name in names]


def test_classes_that_are_imported_here_are_used() -> None:
    error = rebuilt(Refused(111, "refused"))

    assert isinstance(error, Refused)
    assert error.errno == 111


def test_classes_that_are_not_here_are_caught_as_their_nearest_builtin() -> None:
    error = rebuilt(Refused(111, "refused"), type=("elsewhere", "Refused"))

    assert not isinstance(error, Refused)
    assert isinstance(error, ConnectionRefusedError)
    assert getattr(error, "type_name", "") == "elsewhere.Refused"
    assert str(error) == "web1: elsewhere.Refused: [Errno 111] refused"


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)

    error = rebuilt(NeedsTwo(1, 2), type=("this", "Error"))

    assert type(error) is trickle.RemoteError
    assert "this" not in sys.modules


def test_no_code_of_a_module_runs_to_find_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap(types.ModuleType):
        def __getattribute__(self, name: str) -> Never:
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "trap", Trap("trap"))
    monkeypatch.setitem(sys.modules, "no_module", Trap)

    errors = [rebuilt(NeedsTwo(1, 2), type=(module, "Error")) for module in ("trap", "no_module")]

    assert {type(error) for error in errors} == {trickle.RemoteError}


@pytest.mark.parametrize(
    "original",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(1),
        StopAsyncIteration(1),
        trio.TooSlowError("x"),
        trio.BrokenResourceError("x"),
        trickle.HostLost("web2: gone."),
        trickle.Unsendable("web2: cannot be sent."),
        type("Ours", (trio.BrokenResourceError,), {})("x"),
        type("Ours", (StopIteration,), {})("x"),
        Exception("x"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_what_would_steer_the_program_is_a_plain_remote_error(original: BaseException) -> None:
    error = rebuilt(original)

    assert type(error) is trickle.RemoteError
    assert error.args == original.args
    assert type(original).__name__ in str(error)


@pytest.mark.parametrize("name", ["BaseExceptionGroup.__class__", "int", "open", "__dict__", "KeyError.__init__", ""])
def test_names_that_lead_elsewhere_give_a_plain_remote_error(name: str) -> None:
    error = rebuilt(Exception("x"), type=("builtins", name))

    assert type(error) is trickle.RemoteError


def test_init_is_never_called() -> None:
    original = CountsItsInits("x")

    error = rebuilt(original)

    assert isinstance(error, CountsItsInits)
    assert CountsItsInits.inits == 1


def test_new_that_wants_other_arguments_gives_a_plain_remote_error() -> None:
    error = rebuilt(NeedsTwo(1, 2), args=(1,))

    assert type(error) is trickle.RemoteError
    assert error.type_name.endswith(".NeedsTwo")


def test_properties_of_a_class_are_not_called() -> None:
    error = rebuilt(OSError(2, "no"), type=(__name__, "HasProperty"))

    assert isinstance(error, HasProperty)
    assert error.strerror == "no"


def test_a_host_cannot_replace_methods() -> None:
    attributes = {"with_traceback": 1, "add_note": 2, "__class__": 3, "_text": "x", "host": "web9", "mine": 4}

    error = rebuilt(raised(fail), attributes=attributes)

    assert callable(error.with_traceback)
    assert callable(error.add_note)
    assert error.host == "web1"
    assert str(error) == "web1: KeyError: 'x'"
    assert error.mine == 4


def test_arguments_that_are_no_plain_data_arrive_as_text() -> None:
    error = rebuilt(ValueError(object, 1))

    assert isinstance(error, ValueError)
    assert error.args == ("<class 'object'>", 1)


def test_terminals_obey_nothing_that_a_host_says() -> None:
    original = ValueError("\x1b[31mred\x07\x9b1m\n\tblack")
    original.add_note("\x1b]0;title\x07")
    syntax_error = SyntaxError("\x1b[1m", ("\x1b[2m", 1, 1, "\x1b[3m"))

    shown = [
        *traceback.format_exception(rebuilt(original, type=("\x1b", "\r"))),
        *traceback.format_exception(rebuilt(syntax_error)),
        *traceback.format_exception(rebuilt(ExceptionGroup("\x1b[4m", [original]))),
    ]

    assert not set("".join(shown)) & {"\x1b", "\x07", "\x9b", "\r"}
    assert "[31mred1m\n\tblack" in str(rebuilt(original))


def test_what_python_prints_shows_host_and_remote_traceback() -> None:
    shown = "".join(traceback.format_exception(rebuilt(raised(fail))))

    assert "RemoteKeyError: web1: KeyError: 'x'" in shown
    assert "On web1:\nTraceback (most recent call last):" in shown
    assert 'raise KeyError("x")' in shown


def fail_with_groups() -> Never:
    children = [raised(fail), ExceptionGroup("inner", [ValueError("a")])]
    raise ExceptionGroup("2 settings are wrong", children) from raised(open, "/no/such/file")


def test_a_group_shows_where_it_was_raised_and_its_children_only_once() -> None:
    error = rebuilt(raised(fail_with_groups))

    shown = "".join(traceback.format_exception(error))
    (note,) = error.__notes__

    assert "trickle.RemoteExceptionGroup: web1: 2 settings are wrong (2 sub-exceptions)" in shown
    assert note.startswith("\nOn web1:\nTraceback (most recent call last):")
    assert 'raise ExceptionGroup("2 settings are wrong", children) from' in note
    assert "FileNotFoundError" in note  # what it came from
    assert shown.count('raise KeyError("x")') == 1
    assert 'raise KeyError("x")' in error.remote_traceback


def test_notes_are_kept() -> None:
    original = raised(fail)
    original.add_note("look behind the sofa")

    error = rebuilt(original)

    assert error.__notes__[0] == "look behind the sofa"


def test_groups_are_caught_leaf_by_leaf() -> None:
    original = ExceptionGroup("many", [KeyError(1), ExceptionGroup("more", [ValueError(2), Refused(3, "x")])])
    caught: list[BaseException] = []

    try:
        try:
            raise rebuilt(original)
        except* (KeyError, OSError) as group:
            caught += [group]
    except ExceptionGroup as rest:
        caught += [rest]

    matched = caught[0]
    assert [repr(exc) for exc in caught] == [
        "RemoteExceptionGroup('many', [RemoteKeyError(1), RemoteExceptionGroup('more', [RemoteRefused(3, 'x')])])",
        "RemoteExceptionGroup('many', [RemoteExceptionGroup('more', [RemoteValueError(2)])])",
    ]
    assert isinstance(matched, trickle.RemoteError)
    assert matched.host == "web1"
    assert str(matched) == "web1: many (2 sub-exceptions)"


def test_groups_of_what_steers_programs_are_groups_of_plain_remote_errors() -> None:
    error = rebuilt(BaseExceptionGroup("stop", [KeyboardInterrupt(), SystemExit(1)]))

    assert isinstance(error, ExceptionGroup)
    assert {type(exc) for exc in error.exceptions} == {trickle.RemoteError}


def test_groups_can_be_taken_apart() -> None:
    error = rebuilt(ExceptionGroup("many", [KeyError(1), ValueError(2)]))

    part = error.subgroup(ValueError)
    none = error.subgroup(OSError)
    derived = error.derive([KeyError(3)])

    assert [type(exc).__name__ for exc in part.exceptions] == ["RemoteValueError"]
    assert none is None
    assert (derived.host, derived.type_name, derived.message) == ("web1", "builtins.ExceptionGroup", "many")


@pytest.mark.parametrize("through", [lambda exc: pickle.loads(pickle.dumps(exc)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    "original",
    [
        raised(fail),
        raised(open, "/no/such/file"),
        raised(b"\xff".decode),
        raised(__import__, "no_such_module"),
        MemoryError("x"),
        raised(compile, "a b", "script.py", "exec"),
        subprocess.CalledProcessError(3, "false"),
        SystemExit(3),
        NeedsTwo(1, 2),
        ExceptionGroup("many", [KeyError(1), ExceptionGroup("more", [ValueError(2)])]),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_rebuilt_errors_survive_pickle_and_copy(original: BaseException, through: Any) -> None:
    error = rebuilt(original)

    other = through(error)

    assert type(other) is type(error)
    assert traceback.format_exception(other) == traceback.format_exception(error)
    assert other.__reduce__()[1][0] == error.__reduce__()[1][0]
    for name in ("errno", "filename", "start", "reason", "returncode", "name", "host", "type_name", "args"):
        if name != "args" or not isinstance(error, ExceptionGroup):
            assert getattr(other, name, None) == getattr(error, name, None)


def test_layouts_that_conflict_give_a_plain_remote_error() -> None:
    error = rebuilt(HasSlots("x"))

    assert isinstance(error, trickle.RemoteError)
    assert error.args == ("x",)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": None},
        {"type": ("one",)},
        {"type": (1, 2)},
        {"bases": 3},
        {"bases": [("a", "b", "c")]},
        {"text": b"bytes"},
        {"args": [1]},
        {"members": []},
        {"attributes": None},
        {"notes": [1]},
        {"traceback": 3.5},
        {"own_traceback": None},
        {"children": [None]},
        {"children": 7},
    ],
    ids=repr,
)
def test_descriptions_that_are_none_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(trickle.UnsafeResult, match=r"^web1: "):
        rebuilt(raised(fail), **changes)


@pytest.mark.parametrize("payload", [b"", b"garbage", dumps_result(None), dumps_result([]), dumps_result({})])
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(trickle.UnsafeResult, match=r"^web1: "):
        rebuild_exception(payload, host="web1")


def test_members_of_the_wrong_type_are_left_out() -> None:
    error = rebuilt(raised(b"\xff".decode), members={"encoding": 1, "object": "x", "start": "y", "errno": []})

    assert isinstance(error, UnicodeDecodeError)
    assert str(error).startswith("web1: UnicodeDecodeError: 'utf-8' codec")


def test_groups_that_are_too_many_are_refused() -> None:
    leaf = described(KeyError(1))
    description = described(ExceptionGroup("many", [KeyError(1)])) | {"children": [leaf] * 2000}

    with pytest.raises(trickle.UnsafeResult):
        rebuild_exception(dumps_result(description), host="web1")


def test_groups_that_contain_themselves_are_refused() -> None:
    description = described(ExceptionGroup("many", [KeyError(1)]))
    description["children"] = [description]

    with pytest.raises(trickle.UnsafeResult):
        rebuild_exception(dumps_result(description), host="web1")


def test_texts_are_bounded() -> None:
    description = described(raised(fail)) | {"text": "x" * 10**6, "traceback": "y" * 10**6, "notes": ["z" * 10**6] * 9}

    error = rebuild_exception(dumps_result(description), host="web1")

    assert len("".join(traceback.format_exception(error))) < 2**20
