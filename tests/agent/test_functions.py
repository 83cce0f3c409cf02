"""Calls pickled here and made over there, in every Python that is found."""

import functools
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..pythons import far_pythons, python_id
from .far_end import FarEnd, RaisedThere, far_end
from .script import PREAMBLE, ScriptCall, run_script

pytestmark = pytest.mark.parametrize("python", far_pythons(), ids=python_id)

OFFSET = 100
CALLS: dict[str, list[ScriptCall]] = {}  # of each script: they are the same for every far end


@pytest.fixture
def far(python: str) -> Iterator[FarEnd]:
    with far_end(python) as far:
        yield far


def make_script_results(far: FarEnd, tmp_path: Path, body: str) -> list[Any]:
    """Run a script that makes calls of ``remote``, and make these calls over there."""
    if body not in CALLS:
        script = tmp_path / "script.py"
        script.write_text(PREAMBLE + textwrap.dedent(body) + "\nremote.finish()\n")
        CALLS[body] = run_script([script])
    return make_results(far, CALLS[body])


def make_results(far: FarEnd, calls: list[ScriptCall]) -> list[Any]:
    results = []
    for call in calls:
        assert call.outgoing is not None, call.error
        if call.bundle is not None:
            far.run("importer.add_bundle(bundle)", bundle=call.bundle)
        results.append(far.call_pickled(call.outgoing))
    return results


# ---- by reference


def test_builtins_and_standard_functions_go_by_reference(far: FarEnd) -> None:
    assert far.call(sorted, [3, 1, 2], reverse=True) == [3, 2, 1]
    assert len(far.call(os.getloadavg)) == 3
    assert far.call(" ".join, ["a", "b"]) == "a b"
    assert far.call(functools.partial(int, base=2), "101") == 5
    assert far.asked == []


def test_functions_of_modules_bring_their_module(far: FarEnd, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "by_reference.py").write_text(
        "class A:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def get(self): return self.x\n"
        "    @classmethod\n"
        "    def make(cls, x): return cls(x).get()\n"
        "    def __call__(self, y): return self.x + y\n"
        "def double(x): return 2 * x\n"
        "twice = lambda x: double(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import by_reference as module  # type: ignore[import-not-found]

    assert far.call(module.double, 4) == 8
    assert far.call(module.A(5).get) == 5
    assert far.call(module.A.make, 6) == 6
    assert far.call(module.A(1), 2) == 3
    assert far.call(module.A.get, module.A(9)) == 9
    assert far.call(module.twice, 4) == 8
    assert far.asked == []


# ---- lambdas and closures


def test_lambdas_on_one_line_are_told_apart(far: FarEnd) -> None:
    first, second = (lambda x: x + 1), (lambda x: x + 2)
    nested = lambda: lambda x: lambda: x * 10  # noqa: E731

    assert [far.call(first, 0), far.call(second, 0)] == [1, 2]
    assert far.call(nested()(3)) == 30


def test_closures_bring_their_cells(far: FarEnd) -> None:
    base, table = 10, {"a": 1}

    def outer(x: int, *rest: int, key: str = "a", **more: int) -> int:
        def inner() -> int:
            return base + table[key] + x

        return inner() + sum(rest) + sum(more.values())

    assert far.call(outer, 1) == 12
    assert far.call(outer, 1, 2, key="a", other=3) == 17


def test_a_closure_may_refer_to_itself_and_to_others(far: FarEnd) -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert far.call(even, 10) is True
    assert far.call(factorial, 5) == 120


def test_two_closures_share_a_cell(far: FarEnd) -> None:
    count = 0

    def increase() -> None:
        nonlocal count
        count += 1

    def use(increase: Any, read: Any) -> int:
        increase()
        increase()
        return int(read())

    assert far.call(use, increase, lambda: count) == 2


def test_mutable_defaults_and_attributes_travel(far: FarEnd) -> None:
    def f(x: int = 1, *, y: Any = OFFSET) -> Any:
        return x, y, f.mark  # type: ignore[attr-defined]

    f.mark = "marked"  # type: ignore[attr-defined]

    assert far.call(f) == (1, 100, "marked")


def test_methods_and_private_names_of_local_functions_work(far: FarEnd) -> None:
    class Holder:
        def caller(self) -> Any:
            __secret = 5

            def reveal(x: int) -> int:
                return __secret + x

            return reveal, lambda: __secret

    reveal, show = Holder().caller()

    assert far.call(reveal, 1) == 6
    assert far.call(show) == 5


def test_decorated_local_functions_work(far: FarEnd) -> None:
    def twice(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(x: int) -> Any:
            return fn(fn(x))

        return wrapper

    @twice
    def add(x: int) -> int:
        return x + 3

    assert far.call(add, 0) == 6


def test_tracebacks_show_the_lines_of_closures(far: FarEnd) -> None:
    def fail(x: int) -> float:
        return x / 0  # the line to show

    with pytest.raises(RaisedThere) as caught:
        far.call(fail, 1)

    line = fail.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line}, in fail' in caught.value.traceback
    assert "return x / 0  # the line to show" in caught.value.traceback


def test_a_newer_syntax_is_a_syntax_error_that_names_the_python(far: FarEnd) -> None:
    if far.version >= (3, 10):
        pytest.skip("this Python knows match")

    def newer(x: object) -> str:
        match x:
            case _:
                return "matched"

    with pytest.raises(RaisedThere) as caught:
        far.call(newer, 1)

    assert caught.value.type_name == "SyntaxError"
    assert f"this host has Python 3.{far.version[1]}" in caught.value.message


def test_functions_that_exec_made_share_their_globals(far: FarEnd) -> None:
    namespace: dict[str, Any] = {"__name__": "made_up"}
    source = "def f(x): return g(x) + K\ndef g(x): return abs(x)\nK = 5\n"
    code = compile(source, "<made up>", "exec")
    exec(code, namespace)
    import linecache

    linecache.cache["<made up>"] = (len(source), None, source.splitlines(True), "<made up>")

    assert far.call(namespace["f"], -2) == 7


# ---- the script


def test_a_scripts_function_brings_what_it_uses(far: FarEnd, tmp_path: Path) -> None:
    body = """
    import json, os.path
    from collections import OrderedDict as OD
    PREFIX = ["p"]

    def helper(x):
        return json.dumps(x)

    class Shape:
        kind = PREFIX[0]
        def __init__(self, n): self.n = n
        def area(self): return helper(self.n)

    def work(n, shape=Shape(1)):
        '''Documented.'''
        return Shape(n).area(), shape.kind, PREFIX, os.path.join("a", "b"), OD(a=1), __name__

    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - 1)

    remote.call(work, 7)
    remote.call(Shape(3).area)
    remote.call(even, 4)
    remote.call(lambda: helper(PREFIX))
    remote.call(isinstance, Shape(2), Shape)
    """

    results = make_script_results(far, tmp_path, body)

    assert results[0] == ("7", "p", ["p"], "a/b", {"a": 1}, "__main__")
    assert results[1:] == ["3", True, '["p"]', True]


def test_a_script_needs_no_guard_and_may_have_one(far: FarEnd, tmp_path: Path) -> None:
    body = """
    def f(): return "without"
    remote.call(f)
    if __name__ == "__main__":
        def g(): return "with"
        remote.call(g)
        h = lambda: "lambda"
        remote.call(h)
    """

    assert make_script_results(far, tmp_path, body) == ["without", "with", "lambda"]


def test_globals_of_a_script_live_from_call_to_call_until_changed_here(far: FarEnd, tmp_path: Path) -> None:
    body = """
    counter = 0
    limit = 10
    def count():
        global counter
        counter += 1
        return counter, limit
    remote.call(count)
    remote.call(count)
    limit = 20
    remote.call(count)
    counter = 100
    remote.call(count)
    """

    assert make_script_results(far, tmp_path, body) == [(1, 10), (2, 10), (3, 20), (101, 20)]


def test_definitions_of_a_script_are_executed_once(far: FarEnd, tmp_path: Path) -> None:
    body = """
    class A:
        made = 0
        def __init__(self): A.made += 1
    def make(): return A().made
    remote.call(make)
    remote.call(make)
    """

    assert make_script_results(far, tmp_path, body) == [1, 2]


def test_decorators_of_a_script_run_over_there(far: FarEnd, tmp_path: Path) -> None:
    body = """
    import functools
    from functools import lru_cache
    REGISTRY = {}
    FACTOR = 3

    def register(name):
        def decorate(fn):
            REGISTRY[name] = fn
            @functools.wraps(fn)
            def wrapper(*args):
                return FACTOR * fn(*args)
            return wrapper
        return decorate

    @register("a")
    def a(x): return x + 1

    @lru_cache(maxsize=None)
    def cached(x): return x * 2

    def plain(fn):
        def wrapper(x): return fn(x) + 0.5
        return wrapper

    @plain
    def b(x): return x

    remote.call(a, 1)
    remote.call(cached, 2)
    remote.call(b, 3)
    remote.call(REGISTRY["a"], 1)
    """

    assert make_script_results(far, tmp_path, body) == [6, 4, 3.5, 2]


def test_classes_made_by_a_call_work(far: FarEnd, tmp_path: Path) -> None:
    body = """
    import collections, enum, typing
    Point = collections.namedtuple("Point", "x y")
    Color = enum.Enum("Color", "RED GREEN")
    class Pair(typing.NamedTuple):
        left: int
        right: int = 2
    class Level(enum.IntEnum):
        LOW = 1
    T = typing.TypeVar("T")
    def f(p: Point, c: Color, *, t: T = None): return p.x, c is Color.RED, tuple(Pair(1)), Level(1) is Level.LOW
    remote.call(f, Point(1, 2), Color.RED)
    """

    assert make_script_results(far, tmp_path, body) == [(1, True, (1, 2), True)]


def test_dataclasses_of_a_script_work(far: FarEnd, tmp_path: Path) -> None:
    if far.version < (3, 7):
        pytest.skip("new in 3.7")
    body = """
    from dataclasses import dataclass, field
    @dataclass(frozen=True)
    class Disk:
        name: str
        sizes: list = field(default_factory=list)
        def total(self): return sum(self.sizes)
    remote.call(Disk("sda", [1, 2]).total)
    remote.call(lambda disk: disk == Disk("sda"), Disk("sda"))
    """

    assert make_script_results(far, tmp_path, body) == [3, True]


def test_inheritance_and_super_work_in_a_script(far: FarEnd, tmp_path: Path) -> None:
    body = """
    class Base:
        def hello(self): return "base"
    class Child(Base):
        __slots__ = ("x",)
        def hello(self): return super().hello() + " child"
        class Inner:
            def value(self): return 1
    CHILD = Child()
    remote.call(Child().hello)
    remote.call(lambda: CHILD.hello())
    remote.call(Child.Inner().value)
    """

    assert make_script_results(far, tmp_path, body) == ["base child", "base child", 1]


def test_tables_of_functions_may_refer_back(far: FarEnd, tmp_path: Path) -> None:
    body = """
    def a(n): return TABLE["b"](n)
    def b(n): return n if n > 5 else TABLE["a"](n + 1)
    TABLE = {"a": a, "b": b, "c": lambda n: TABLE["a"](n)}
    remote.call(a, 1)
    remote.call(TABLE["c"], 2)
    """

    assert make_script_results(far, tmp_path, body) == [6, 6]


def test_a_scripts_own_modules_come_along(far: FarEnd, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 4\ndef f(x): return x + VALUE\n")
    body = """
    import neighbour
    from neighbour import f
    def use(): return neighbour.VALUE + f(1)
    def late():
        import neighbour as n
        return n.VALUE
    remote.call(use)
    remote.call(late)
    """

    results = make_script_results(far, tmp_path, body)

    assert results == [9, 4]
    assert far.asked == []


def test_future_annotations_of_a_script_are_kept(far: FarEnd, tmp_path: Path) -> None:
    if far.version < (3, 7):
        pytest.skip("new in 3.7")
    script = tmp_path / "script.py"
    script.write_text(
        f"from __future__ import annotations\n{PREAMBLE}"
        "def f(x: Undefined) -> AlsoUndefined: return 8\n"
        "remote.call(f, 1)\nremote.finish()\n"
    )

    assert make_results(far, run_script([script])) == [8]


FUTURE = """from __future__ import annotations
import dataclasses, functools, inspect, sys, typing as t
from dataclasses import InitVar, dataclass
from decimal import Decimal
from typing import ClassVar, Optional
{preamble}
import sympy
from neighbour import Neighbour
if t.TYPE_CHECKING:
    from nowhere import Nothing

lock = __import__("threading").Lock()
secret = "secret"

class Square:
    side = 2

class Locked:
    held = lock

class Distant:
    def solve(self): return sympy.Symbol("x")

@dataclass
class Server:
    runs: ClassVar[int] = 0
    kinds: t.ClassVar[t.List[str]] = ["x"]
    port: InitVar[int] = 22
    address: int = 0
    def __post_init__(self, port): self.address = port

class Links:
    square: Optional[Square]
    later: Optional[Later]

class Later: ...

class Areas:
    @functools.singledispatchmethod
    def of(self, shape): return "nothing"
    @of.register
    def _(self, shape: Square): return shape.side ** 2
    @of.register
    def _(self, shape: Decimal): return "a number"

class Odd:
    far: sympy.Symbol
    locked: Locked
    distant: Distant
    neighbour: Neighbour
    nothing: Nothing
    word: t.Literal["secret"]

def fields(): return [each.name for each in dataclasses.fields(Server)], Server(port=7).address, Server.kinds
def hints():
    return t.get_type_hints(Links) == {{"square": Optional[Square], "later": Optional[Later]}}
def parameters(x: Later): return inspect.signature(parameters, eval_str=True).parameters["x"].annotation is Later
def areas(): return Areas().of(Square()), Areas().of(Decimal(1)), Areas().of(1)
def odd(x: sympy.Symbol, y: Locked, z: Distant) -> Nothing:
    return Odd.__name__, sorted({{"sympy", "neighbour"}} & set(sys.modules)), "secret" in globals()
def local():
    @dataclass
    class Here:
        runs: ClassVar[int] = 0
        late: Square = None
    return [each.name for each in dataclasses.fields(Here)]
for function in (fields, hints, areas, local):
    remote.call(function)
remote.call(odd, 1, 2, 3)
if sys.argv[1:]:
    remote.call(parameters, 1)
remote.finish()
"""


def test_annotations_of_a_script_mean_over_there_what_they_mean_here(far: FarEnd, tmp_path: Path) -> None:
    if far.version < (3, 8):
        pytest.skip("singledispatchmethod is new in 3.8")
    (tmp_path / "neighbour.py").write_text("class Neighbour: ...\n")
    script = tmp_path / "script.py"
    script.write_text(FUTURE.format(preamble=PREAMBLE))

    calls = run_script([script, "parameters"] if far.version >= (3, 10) else [script])
    fields, hints, areas, local, odd, *parameters = make_results(far, calls)

    assert fields == (["address"], 7, ["x"])
    assert hints is True
    assert areas == (4, "a number", "nothing")
    assert local == ["late"]
    assert odd == ("Odd", [], False)  # what only annotations name is not worth a module
    assert all(parameters)
    assert far.asked == []


def test_what_only_annotations_name_is_left_out_where_it_cannot_be_had(far: FarEnd, tmp_path: Path) -> None:
    if far.version < (3, 7):
        pytest.skip("new in 3.7")
    (tmp_path / "script.py").write_text(
        f"""from __future__ import annotations
import sys, os
{PREAMBLE}
os.only_here = "only here"
class Broken:
    size = os.only_here
class Child(Broken): ...
def work(x: Broken, y: Child): return sorted({{"work", "Broken", "Child"}}.intersection(globals()))
remote.call(work, 1, 2)
remote.finish()
"""
    )

    assert make_results(far, run_script([tmp_path / "script.py"])) == [["work"]]


def test_texts_as_annotations_bring_what_they_name(far: FarEnd, tmp_path: Path) -> None:
    if far.version < (3, 7):
        pytest.skip("dataclasses are new in 3.7")
    body = """
    import dataclasses, typing
    from typing import ClassVar as Shared
    @dataclasses.dataclass
    class Node:
        next: "typing.Optional[Node]" = None
        count: "Shared[int]" = 0
    def fields(): return [each.name for each in dataclasses.fields(Node)]
    remote.call(fields)
    """

    assert make_script_results(far, tmp_path, body) == [["next"]]


def test_classes_that_use_each_other_are_defined_in_an_order_that_works(far: FarEnd, tmp_path: Path) -> None:
    body = """
    class Base:
        def make(self): return Second()
    class First(Base): ...
    class Second(First): ...
    def make(): return type(First().make()).__name__
    remote.call(make)
    """

    assert make_script_results(far, tmp_path, body) == ["Second"]


def test_what_a_script_imports_and_compares_by_identity_is_the_hosts_own(far: FarEnd, tmp_path: Path) -> None:
    (tmp_path / "unset.py").write_text(
        "class Unset: ...\n"
        "class Named:\n"
        "    def __init__(self, name): self.name = name\n"
        "UNSET, NOTHING, NAMED = Unset(), object(), Named('x')\n"
        "_random = __import__('random').Random(1)\n"
        "draw = _random.randrange\n"
        "def take(x=UNSET, y=NOTHING): return x is UNSET, y is NOTHING\n"
        "def is_own(fn): return fn.__self__ is _random\n"
    )
    body = """
    from datetime import UTC
    from sys import argv, stdout, version_info
    from unittest.mock import DEFAULT
    from random import uniform
    import sys, unset, random
    from unset import *

    def all_same():
        import datetime, unittest.mock
        return (
            DEFAULT is unittest.mock.DEFAULT, stdout is sys.stdout, version_info is sys.version_info,
            uniform == random.uniform, *take(UNSET, NOTHING), is_own(draw), argv == ["here"],
            UTC == datetime.timezone.utc,
        )
    sys.argv = argv = ["here"]
    remote.call(all_same)
    remote.call(lambda fn, x=uniform: (fn == random.uniform, x == fn), random.uniform)
    """

    results = make_script_results(far, tmp_path, body)

    assert results == [(True,) * 9, (True, True)]
    assert far.asked == []


def test_tracebacks_show_the_lines_of_a_script(far: FarEnd, tmp_path: Path) -> None:
    body = """

    def outer(x):
        return inner(x)  # one

    def inner(x):
        return [1 / y for y in (1, x)]  # two

    remote.call(outer, 0)
    """

    with pytest.raises(RaisedThere) as caught:
        make_script_results(far, tmp_path, body)

    assert 'script.py", line 5, in outer' in caught.value.traceback
    assert 'script.py", line 8, in inner' in caught.value.traceback


def test_tracebacks_show_the_source_of_a_script_that_is_not_there(far: FarEnd, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        PREAMBLE
        + "\ndef outer(x):\n    return inner(x)  # one\n\ndef inner(x):\n    return 1 / x  # two\n"
        + "remote.call(outer, 0)\nremote.finish()\n"
    )
    (call,) = run_script([script])
    script.unlink()
    assert call.outgoing is not None

    with pytest.raises(RaisedThere) as caught:
        far.call_pickled(call.outgoing)

    assert 'script.py", line 4, in outer\n    return inner(x)  # one\n' in caught.value.traceback
    assert 'script.py", line 7, in inner\n    return 1 / x  # two\n' in caught.value.traceback


def test_the_program_of_a_command_line_works(far: FarEnd) -> None:
    program = PREAMBLE + "\ndef f(x): return g(x)\ndef g(x): return x + 1\n"
    program += "remote.call(f, 1); remote.call(lambda: g(2))\nremote.finish()"

    assert make_results(far, run_script(["-c", program])) == [2, 3]


def test_cells_of_a_notebook_work(far: FarEnd, tmp_path: Path) -> None:
    body = """
    import linecache, sys
    del sys.modules["__main__"].__file__
    def cell(number, source):
        name = "<ipython-input-%d>" % number
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), globals())
    cell(1, "K = 1\\ndef f(): return g() + K\\n")
    cell(2, "def g(): return 10\\nclass A:\\n    kind = 'old'\\n")
    cell(3, "remote.call(f); remote.call(lambda: A.kind)\\n")
    cell(4, "def g(): return 20\\nclass A:\\n    kind = 'new'\\n")
    cell(5, "remote.call(f); remote.call(lambda: A.kind)\\n")
    """

    assert make_script_results(far, tmp_path, body) == [11, "old", 21, "new"]
