"""Pickling calls: what goes by reference, what is reported as needed, and the errors.  tests/agent makes the calls."""

import calendar
import functools
import keyword
import os
import pathlib
import pickle
import pickletools
import random
import secrets
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trickle._agent import functions
from trickle._exceptions import Unsendable
from trickle._pickling import NeedsVersion, OutgoingCall, dumps_call

from ..agent.far_end import far_end
from ..agent.script import PREAMBLE, ScriptCall, run_script

VALUE = 5


def dump(fn: Callable[..., object], *args: object, **kwargs: object) -> OutgoingCall:
    return dumps_call(fn, args, kwargs, host="web1", far_version=None)


def path_of_failure(fn: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(Unsendable) as caught:
        dump(fn, *args, **kwargs)
    assert caught.value.host == "web1"
    assert str(caught.value).startswith(f"web1: cannot send {caught.value.path}: ")
    return caught.value.path


def calls_of_script(tmp_path: Path, body: str) -> list[ScriptCall]:
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(body) + "\nremote.finish()\n")
    return run_script([script])


class Holder:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def method(self) -> None: ...

    def get(self) -> dict[str, Any]:
        return vars(self)


use_hidden = Holder(state="x" * 1000).get


class Slotted:
    __slots__ = ("lock",)


def use_global() -> int:
    return VALUE


# ---- what is sent


def test_an_importable_function_costs_few_bytes() -> None:
    outgoing = dump(os.path.join, "a", "b")

    assert len(outgoing.payload) < 80
    assert outgoing.modules == frozenset()
    assert functions.loads_call(outgoing.payload) == (os.path.join, ("a", "b"), {})


def test_modules_of_functions_classes_and_instances_are_reported() -> None:
    assert dump(use_global).modules == {__name__}
    assert dump(len, Holder()).modules == {__name__}
    assert dump(Holder().method).modules == {__name__}
    assert dump(functools.partial(use_global)).modules == {__name__}
    assert dump(isinstance, 1, pytest).modules == {"pytest"}


def test_what_sent_source_imports_is_reported() -> None:
    def local() -> object:
        import pluggy
        from packaging import version

        return pluggy, version

    assert dump(local).modules == {"pluggy", "packaging", "packaging.version"}


def test_a_closure_that_needs_nothing_of_its_module_leaves_it_here() -> None:
    assert dump(lambda: os.getpid()).modules == frozenset()
    assert dump(lambda: VALUE).modules == {__name__}
    assert dump(lambda: Holder).modules == {__name__}
    assert dump(lambda: eval("VALUE")).modules == {__name__}


@pytest.mark.parametrize(("far_version", "protocol"), [(None, 4), ((3, 6), 4), ((3, 7), 4), ((3, 8), 5), ((3, 13), 5)])
def test_the_protocol_is_the_highest_that_both_know(far_version: tuple[int, int] | None, protocol: int) -> None:
    outgoing = dumps_call(len, ("x",), {}, host="web1", far_version=far_version)

    assert next(pickletools.genops(outgoing.payload))[1] == protocol


def test_classes_in_private_corners_of_the_library_go_by_their_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    private = types.ModuleType("pathlib._local")
    private.__spec__ = pathlib.__spec__
    private.PurePosixPath = pathlib.PurePosixPath  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pathlib._local", private)
    monkeypatch.setattr(pathlib.PurePosixPath, "__module__", "pathlib._local")  # as in 3.13

    outgoing = dump(str, pathlib.PurePosixPath("/a"))

    assert b"_local" not in outgoing.payload
    assert functions.loads_call(outgoing.payload)[1] == (pathlib.PurePosixPath("/a"),)


def test_shared_objects_stay_shared() -> None:
    shared: list[int] = []

    _, args, _ = functions.loads_call(dump(print, shared, [shared]).payload)

    assert args[1][0] is args[0]


@pytest.mark.parametrize(
    ("fn", "module", "name"),
    [
        (random.random, "random", "random"),
        (random.choice, "random", "choice"),
        (secrets.choice, "secrets", "choice"),
        (secrets.randbits, "secrets", "randbits"),
        (calendar.month, "calendar", "month"),
        (keyword.iskeyword, "keyword", "iskeyword"),
        (use_hidden, __name__, "use_hidden"),
    ],
)
def test_methods_that_modules_have_as_functions_go_by_their_name(fn: Any, module: str, name: str) -> None:
    outgoing = dump(fn, [1])

    assert functions.loads_call(outgoing.payload)[0] == fn
    assert outgoing.modules == {module}.difference(sys.stdlib_module_names)
    assert len(outgoing.payload) < 200  # no state
    assert module.encode() in outgoing.payload
    assert name.encode() in outgoing.payload


def test_methods_of_the_programs_own_instances_keep_their_state() -> None:
    own = random.Random(5)
    expected = random.Random(5).random()

    assert functions.loads_call(dump(own.random).payload)[0]() == expected
    assert functions.loads_call(dump(functools.partial(own.uniform, 0, 1)).payload)[0]() == expected
    assert functions.loads_call(dump(Holder(a=1).get).payload)[0]() == {"a": 1}


# ---- code without source


def function_without_source() -> Any:
    namespace: dict[str, Any] = {"__name__": "made_up"}
    exec(compile("def f(x): return x + 1", "<nowhere>", "exec"), namespace)
    return namespace["f"]


def test_code_without_source_waits_for_the_far_version() -> None:
    with pytest.raises(NeedsVersion):
        dump(function_without_source())


def test_code_without_source_goes_to_the_same_python() -> None:
    outgoing = dumps_call(
        function_without_source(),
        (1,),
        {},
        host="web1",
        far_version=sys.version_info[:2],
        implementation="CPython",
    )

    fn, args, _ = functions.loads_call(outgoing.payload)

    assert fn(*args) == 2


@pytest.mark.parametrize(("version", "implementation"), [((3, 6), "CPython"), (sys.version_info[:2], "PyPy")])
def test_code_without_source_goes_nowhere_else(version: tuple[int, int], implementation: str) -> None:
    with pytest.raises(Unsendable, match=r"source of f cannot be found in <nowhere>.*move it to a module"):
        dumps_call(function_without_source(), (), {}, host="web1", far_version=version, implementation=implementation)


# ---- errors that name the culprit


def test_an_argument_that_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()

    assert path_of_failure(print, 1, lock) == "argument 2: _thread.lock"
    assert path_of_failure(print, 1, Holder(lock=lock)) == "argument 2, .lock: _thread.lock"


def test_the_way_through_containers_is_named() -> None:
    generator = (number for number in ())
    slotted = Slotted()
    slotted.lock = threading.Lock()

    assert path_of_failure(print, x={"a": [1, 2, 3, generator]}) == "keyword argument 'x', ['a'][3]: generator"
    assert path_of_failure(print, [slotted]) == "argument 1, [0].lock: _thread.lock"


def test_a_closure_variable_that_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()

    assert path_of_failure(lambda: lock) == "the function, closure variable 'lock': _thread.lock"


def test_an_error_of_the_objects_own_is_passed_on() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("not today")

    with pytest.raises(Unsendable, match="not today"):
        dump(print, Stubborn())


def test_a_class_defined_in_a_function_is_named() -> None:
    class Local: ...

    path = path_of_failure(print, Local())

    assert path.startswith("argument 1")
    assert "Local" in path


def test_a_structure_that_is_nested_too_deeply_is_an_error() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    with pytest.raises(Unsendable, match="nested too deeply"):
        dump(print, nested)

    while nested:
        nested = nested[0]


def test_a_global_of_the_script_is_named_only_if_it_is_used(tmp_path: Path) -> None:
    body = """
    import threading
    lock = threading.Lock()
    table = {"a": [lock]}
    def uses(): return lock
    def uses_table(): return helper()
    def helper(): return table
    def innocent(obj): return obj.lock
    remote.call(uses)
    remote.call(uses_table)
    remote.call(innocent, 1)
    """

    uses, uses_table, innocent = calls_of_script(tmp_path, body)

    assert uses.path == "global 'lock' of __main__: _thread.lock"
    assert uses_table.path == "global 'table' of __main__, ['a'][0]: _thread.lock"
    assert innocent.error == ""


def test_only_what_a_function_uses_goes_along(tmp_path: Path) -> None:
    body = """
    secret = "x" * 1000
    def f(): return g()
    def g(): return 1
    def unused(): return secret
    remote.call(f)
    """

    (call,) = calls_of_script(tmp_path, body)

    assert call.outgoing is not None
    (items, *_) = [pickle.loads(call.outgoing.payload)]
    assert [item[0] for item in items] == ["f", "g"]


def test_a_program_without_source_waits_for_the_version_and_then_goes_as_code() -> None:
    program = """
from tests.agent.script import Collector
import sys
unknown, remote = Collector(), Collector(sys.version_info[:2])
K = 10
def f(n): return g(n) + K
def g(n): return 0 if n == 0 else f(n - 1)
unknown.call(f, 1)
remote.call(f, 2)
remote.calls += unknown.calls
remote.finish()
"""

    with_version, without_version = run_script(["-"], stdin=program)

    assert without_version.error == "needs version"
    assert with_version.outgoing is not None
    with far_end(sys.executable) as far:
        assert far.call_pickled(with_version.outgoing) == 30


def test_a_class_without_source_says_what_to_do() -> None:
    program = PREAMBLE + "class A: pass\nremote.call(A)\nremote.finish()\n"

    (call,) = run_script(["-"], stdin=program)

    assert "the source of A cannot be found; move it to a module" in call.error
