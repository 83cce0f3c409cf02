"""How often the far end has to be heard before a call runs: what it says is kept back until then."""

import sys
from pathlib import Path

import pytest

import trickle
from tests import work

# Hands a command what comes in; what it says waits until a file is there.
KEPT_BACK = """
import os, subprocess, sys, threading, time
child = subprocess.Popen(sys.argv[2:], stdin=0, stdout=subprocess.PIPE, bufsize=0)
while not os.path.exists(sys.argv[1]) and child.poll() is None:
    time.sleep(0.005)
while data := child.stdout.read(65536):
    os.write(1, data)
sys.exit(child.wait())
"""

OWN_PACKAGE = {
    "own_of_three/__init__.py": "",
    "own_of_three/entry.py": "from own_of_three.middle import twice\n"
    "def f(path, n):\n    open(path, 'w').close()\n    return twice(n)\n",
    "own_of_three/middle.py": "from .leaf import add\ndef twice(n): return add(n, n)\n",
    "own_of_three/leaf.py": "def add(a, b): return a + b\n",
}


def kept_back_until(path: Path, name: str = "far") -> trickle.Command:
    return trickle.Command((sys.executable, "-c", KEPT_BACK, str(path)), name=name, python=sys.executable)


async def test_a_call_runs_before_anything_is_heard_of_its_host(tmp_path: Path) -> None:
    async with trickle.open_host(kept_back_until(tmp_path / "ran"), wait=False) as host:
        await host.call(work.write_file, str(tmp_path / "ran"), "")


async def test_so_does_one_of_the_programs_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in OWN_PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    from own_of_three import entry  # type: ignore[import-not-found]

    async with trickle.open_host(kept_back_until(tmp_path / "ran"), wait=False) as host:
        assert await host.call(entry.f, str(tmp_path / "ran"), 21) == 42


async def test_so_do_the_calls_of_a_group(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    async with trickle.open_group([kept_back_until(tmp_path / name, name) for name in names]) as group:
        results = await group.call(work.write_file_of_host, str(tmp_path))

    assert results.unwrap() == {name: name for name in names}
