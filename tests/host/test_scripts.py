"""Programs of one file: what is sent of them, however they are started."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pythons import far_pythons, python_id, version_of

ROOT = Path(__file__).parents[2]

BODY = """
import sys
{imports}

FACTOR = 3

class Shape:
    def __init__(self, size): self.size = size
    def area(self): return FACTOR * self.size

def work(shape):
    return shape.area(), __name__

async def main():
    import trickle
    async with trickle.open_host(trickle.Local("far", python=sys.argv[1])) as host:
        print(await host.call(work, Shape(2)), await host.call(lambda: FACTOR))
        print(host.statistics().bytes_sent, file=sys.stderr)
"""
START = "import trio\ntrio.run(main)\n"


def run(*words: str, stdin: str | None = None, cwd: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run this Python, with *more* in its environment; the output and the bytes that were sent."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd), **more}
    return subprocess.run(
        [sys.executable, *words], input=stdin, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
@pytest.mark.parametrize("guard", ["", 'if __name__ == "__main__":\n    '], ids=["without a guard", "with a guard"])
def test_a_script_of_one_file_needs_no_module(python: str, guard: str, tmp_path: Path) -> None:
    start = START.replace("\n", "; ").strip("; ")
    (tmp_path / "script.py").write_text(BODY.format(imports="") + guard + start + "\n")

    done = run("script.py", python, cwd=tmp_path)

    assert done.stdout == "(6, '__main__') 3\n", done.stderr


def test_what_a_script_imports_at_its_top_costs_nothing_unless_it_is_used(tmp_path: Path) -> None:
    sent = []
    for name, imports in (("plain", ""), ("laden", "import trio, trickle, jinja2, sympy.core")):
        (tmp_path / f"{name}.py").write_text(BODY.format(imports=imports) + START)
        done = run(f"{name}.py", sys.executable, cwd=tmp_path)
        assert done.stdout == "(6, '__main__') 3\n", done.stderr
        sent.append(int(done.stderr))

    assert abs(sent[0] - sent[1]) < 200  # lines of another number, heartbeats


def test_programs_that_are_no_files_work(tmp_path: Path) -> None:
    program = BODY.format(imports="") + START

    of_command_line = run("-c", program, sys.executable, cwd=tmp_path)

    assert of_command_line.stdout == "(6, '__main__') 3\n", of_command_line.stderr


def test_a_program_on_stdin_works_where_the_pythons_are_alike(tmp_path: Path) -> None:
    program = BODY.format(imports="").replace("Shape(2)", "2").replace("shape.area()", "shape * FACTOR") + START

    alike = run("-", sys.executable, stdin=program, cwd=tmp_path)

    assert alike.stdout == "(6, '__main__') 3\n", alike.stderr


def test_a_program_on_stdin_says_that_it_has_no_source_for_another_python(tmp_path: Path) -> None:
    others = [python for python in far_pythons() if (version_of(python) or ())[:2] != sys.version_info[:2]]
    if not others:
        pytest.skip("there is no other Python here")
    program = BODY.format(imports="").replace("Shape(2)", "2").replace("shape.area()", "shape * FACTOR") + START

    other = run("-", others[0], stdin=program, cwd=tmp_path)

    assert "the source of work cannot be found in <stdin>" in other.stderr


OWN = """
import concurrent.futures, os.path, sys, types, xml.dom.minidom
from os import environ
from sys import executable
from trickle.remote import host_name
import trickle, trio

ENVIRONMENT = environ

def title(text):
    return xml.dom.minidom.parseString(text).documentElement.tagName, concurrent.futures.ThreadPoolExecutor.__name__

def about():
    return environ.get("SECRET"), ENVIRONMENT.get("SECRET"), executable, host_name

class Base:
    def run(self):
        return "base"

class Job(Base):
    def run(self):
        return "job"

    def of_base(self):
        return super().run

    def private(self):
        return self.__work

    def __work(self):
        return "private"

def run(self):
    return "a function"

async def main():
    far = trickle.Command(("env", "-u", "SECRET"), name="far", python=sys.argv[1])
    async with trickle.open_host(far) as host:
        print(await host.call(title, "<a/>"))
        print(await host.call(about) == (None, None, sys.executable, "far"))
        job = Job()
        for method in (job.run, job.of_base(), job.private(), types.MethodType(run, job)):
            print(await host.call(method))

trio.run(main)
"""


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
def test_what_a_script_has_from_elsewhere_is_the_hosts_own_and_methods_are_those_that_were_meant(
    python: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(OWN)

    done = run("script.py", python, cwd=tmp_path, SECRET="of the controller")

    assert done.stdout.splitlines() == [
        "('a', 'ThreadPoolExecutor')",
        "True",
        "job",
        "base",
        "private",
        "a function",
    ], done.stderr


BRANCHES = """
import functools, sys
import trickle, trio

def plain_decorator(fn):
    def wrapper():
        return fn()
    return wrapper

if sys.version_info >= (3, 6):
    class Engine:
        kind = "new"

    class Tool:
        def name(self):
            return "new"

    @functools.lru_cache(maxsize=None)
    def cached():
        return "new"

    @plain_decorator
    def decorated():
        return "new"
else:
    class Engine:
        kind = "old"

    class Tool:
        def name(self):
            return "old"

    @functools.lru_cache(maxsize=None)
    def cached():
        return "old"

    @plain_decorator
    def decorated():
        return "old"

def kinds():
    return Engine.kind, Tool().name(), cached(), decorated()

from concurrent import futures
from xml.etree import ElementTree

try:
    from msvcrt import getch
except ImportError:
    getch = None

def imported():
    return futures.__name__, ElementTree.fromstring("<a/>").tag, getch

def double(fn):
    def wrapper(x):
        return 2 * fn(x)
    return wrapper

def twice(x):
    return x + 1

twice = double(twice)

class Counter:
    pass

class Counter:
    __hidden = 1
    count = 0

    @classmethod
    def hidden(cls):
        return cls.__hidden

Counter.count = 9

def others():
    return twice(1), Counter.hidden(), hasattr(Counter, "count")

class Redefined:
    size = 1

class Redefined:
    size = 2

async def main():
    async with trickle.open_host(trickle.Local(python=sys.argv[1])) as host:
        print(await host.call(kinds) == kinds() == ("new",) * 4, await host.call(lambda: Redefined.size))
        print(await host.call(imported), await host.call(others))

trio.run(main)
"""


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
def test_of_definitions_in_branches_the_one_that_ran_is_sent(python: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(BRANCHES)

    done = run("script.py", python, cwd=tmp_path)

    assert done.stdout == "True 2\n('concurrent.futures', 'a', None) (4, 1, True)\n", done.stderr
