"""What far ends of every Python pack must be what the controller reads."""

import subprocess
import sys
from pathlib import Path

import pytest

from trickle._remote_errors import rebuild_exception
from trickle._unpickling import loads

from ..pythons import far_pythons, python_id

PACKAGE = Path(__file__).parent.parent.parent / "trickle"

each_python = pytest.mark.parametrize("python", far_pythons(), ids=python_id)

SETUP = """
import sys
sys.modules["trickle"] = type(sys)("trickle")  # the package itself is the controller's
sys.modules["trickle"].__path__ = [sys.argv[1]]
from trickle._agent.results import dumps_result, describe_exception
def send(data): sys.stdout.buffer.write(data)
"""
IMPORTS = """
import collections, datetime, decimal, fractions, ipaddress, pathlib, uuid
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath, Path
from uuid import UUID
"""
PLAIN_VALUES = """[
    None, True, -1, 2**31, 2**63, -2**200, 10**700, 1.5, float("inf"), 2j, "", "text", "\\ud800", "long" * 20000,
    b"", b"bytes" * 100, b"long" * 20000, bytearray(b"ab"), bytearray(),
    [], [[1], [2]], (), (1,), (1, 2, 3, 4), {}, {"a": {"b": (1, 2)}}, {(1, (2, "x")): 3}, {"long" * 2000: 1},
    set(), {1, 2}, {"a"}, frozenset(), frozenset([frozenset([1]), (2,)]), {2**100: 1}, {frozenset([1]): 2},
    range(1, 10, 2), range(2**70), slice(1, None), Ellipsis, NotImplemented,
    date(2020, 2, 29), time(1, 2, 3, 4), time(1, fold=1), time(1, tzinfo=timezone.utc),
    datetime.datetime(2020, 1, 1), datetime.datetime(1, 12, 31, fold=1), datetime.datetime.max,
    datetime.datetime(2020, 1, 1, tzinfo=timezone.utc), timedelta(-1, 2, 3), timezone.utc,
    timezone(timedelta(hours=3), "here"), Decimal("1.50"), Decimal("-Infinity"), Decimal("1e999999"),
    Fraction(-22, 7), UUID(int=5), PurePosixPath("/a/b"), Path("/etc"), Path(""), PureWindowsPath("c:\\\\x"),
    ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("fe80::/64"), ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("::1/64"),
    OrderedDict([(2, 1), (1, 2)]), deque([1, 2], 2), deque("ab"), Counter("aab"), defaultdict(list, {1: [2]}),
    defaultdict(None, {1: 2}), {UUID(int=1): {date(2020, 1, 1): Decimal(1), (Path("/"), 1): 2}},
]"""


def run(python: str, script: str) -> bytes:
    """Run *script* by *python* and return what it sends."""
    words = [python, "-I", "-S", "-c", SETUP + script, str(PACKAGE)]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def evaluate_plain_values() -> list[object]:
    namespace: dict[str, object] = {}
    exec(IMPORTS, namespace)
    values = eval(PLAIN_VALUES, namespace)
    assert isinstance(values, list)
    return values


@each_python
def test_plain_values_arrive_as_they_are(python: str) -> None:
    data = run(python, IMPORTS + f"send(dumps_result({PLAIN_VALUES}))")

    values = loads(data, host="web1")

    expected = evaluate_plain_values()
    assert isinstance(values, list)
    assert list(map(type, values)) == list(map(type, expected))
    assert list(map(repr, values)) == list(map(repr, expected))


@each_python
def test_shared_and_recursive_values_keep_their_shape(python: str) -> None:
    script = "t = (1, 2); l = [t, t]; l.append(l); d = {'l': l}; d['d'] = d; r = ([],); r[0].append(r)\n"

    values = loads(run(python, script + "send(dumps_result((l, d, r)))"), host="web1")

    assert isinstance(values, tuple)
    shared, mapping, recursive = values
    assert shared[0] is shared[1]
    assert shared[2] is shared
    assert mapping["d"] is mapping
    assert recursive[0][0] is recursive


@each_python
def test_large_results_arrive(python: str) -> None:
    script = "send(dumps_result([{'name': 'web%d' % i, 'load': (i / 2, None)} for i in range(30000)]))"

    values = loads(run(python, script), host="web1")

    assert values == [{"name": f"web{i}", "load": (i / 2, None)} for i in range(30000)]


@each_python
@pytest.mark.parametrize("value", ["lambda: 0", "[object(), sys.stdin]", "(i for i in ())"])
def test_what_cannot_be_sent_is_named(python: str, value: str) -> None:
    script = f"""
value = {value}
try: dumps_result(value)
except TypeError as exc: send(("%s|%s" % (type(value).__name__, exc)).encode())
"""

    type_name, message = run(python, script).decode().split("|", 1)

    assert message.startswith(f"the function has returned, or sent, what cannot be sent: {type_name} (")


@each_python
def test_importing_results_imports_next_to_nothing(python: str) -> None:
    script = "send(' '.join(m for m in ('typing', 'pickle', 'traceback', 're', 'enum') if m in sys.modules).encode())"

    imported = run(python, script).decode().split()

    allowed = {"re", "enum", "typing"} & set(run(python, script.replace("from trickle", "#")).decode().split())
    assert set(imported) <= allowed


@each_python
def test_exceptions_arrive_with_class_arguments_and_source_lines(python: str) -> None:
    script = """
def fail(): open("/no/such/file")
try: fail()
except OSError as exc: send(describe_exception(exc))
"""

    error = rebuild_exception(run(python, script), host="web1")

    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (2, "/no/such/file")
    assert error.args == (2, "No such file or directory")
    assert str(error) == "web1: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"


@each_python
def test_causes_are_in_the_traceback(python: str) -> None:
    script = """
try:
    try: {}["x"]
    except KeyError as exc: raise ValueError("outer") from exc
except ValueError as exc: send(describe_exception(exc))
"""

    error = rebuild_exception(run(python, script), host="web1")

    assert isinstance(error, ValueError)
    traceback = getattr(error, "remote_traceback", "")
    assert "KeyError: 'x'" in traceback
    assert traceback.rstrip().endswith("ValueError: outer")


@each_python
@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration"])
def test_exceptions_that_steer_programs_are_described_too(python: str, name: str) -> None:
    error = rebuild_exception(run(python, f"send(describe_exception({name}(3)))"), host="web1")

    assert type(error).__name__ == "RemoteError"
    assert str(error) == f"web1: {name}: 3"


@each_python
def test_exceptions_that_cannot_be_looked_at_are_described_all_the_same(python: str) -> None:
    script = """
class Nasty(Exception):
    args = property(lambda self: 1 / 0)
    exceptions = property(lambda self: 1 / 0)
    def __str__(self): raise RuntimeError
    __repr__ = __str__
    def __getattr__(self, name): raise RuntimeError
send(describe_exception(Nasty(1)))
"""

    error = rebuild_exception(run(python, script), host="web1")

    assert str(error).startswith("web1: __main__.Nasty: ")


@each_python
def test_huge_texts_keep_head_and_tail(python: str) -> None:
    script = "send(describe_exception(ValueError('<' + 'x' * 10**6 + '>')))"

    data = run(python, script)

    text = str(rebuild_exception(data, host="web1"))
    assert len(data) < 300_000
    assert text.startswith("web1: ValueError: <xx")
    assert text.endswith("xx>")
    assert "characters left out" in text


@each_python
def test_frames_of_the_agent_are_dropped_from_the_top(python: str) -> None:
    script = """
agent = {"__name__": "trickle._agent.worker"}
exec("def run(fn): return fn()", agent)
def ours(): return agent["run"](theirs)
def theirs(): raise KeyError(1)
try: agent["run"](ours)
except KeyError as exc:
    exc.__traceback__ = exc.__traceback__.tb_next
    send(describe_exception(exc))
"""

    traceback = getattr(rebuild_exception(run(python, script), host="web1"), "remote_traceback", "")

    assert [line.split()[-1] for line in traceback.splitlines() if line.startswith("  File")] == [
        "ours",
        "run",  # called by the program itself
        "theirs",
    ]


def test_backported_groups_are_taken_for_groups() -> None:
    script = """
class BaseExceptionGroup(Exception):
    def __init__(self, message, exceptions):
        super().__init__(message)
        self.exceptions = tuple(exceptions)
send(describe_exception(BaseExceptionGroup("many", [KeyError(1), ValueError(2)])))
"""

    group = rebuild_exception(run(sys.executable, script), host="web1")

    assert isinstance(group, ExceptionGroup)
    assert list(map(str, group.exceptions)) == ["web1: KeyError: 1", "web1: ValueError: 2"]


def test_bounds_hold_for_wide_and_deep_groups() -> None:
    script = """
group = ExceptionGroup("leaves", [ValueError("x" * 10**5) for _ in range(500)])
for _ in range(50): group = ExceptionGroup("deeper", [group])
send(describe_exception(ExceptionGroup("top", [group, ExceptionGroup("wide", [KeyError(i) for i in range(500)])])))
"""

    data = run(sys.executable, script)

    assert isinstance(rebuild_exception(data, host="web1"), ExceptionGroup)
    assert len(data) < 2**20
