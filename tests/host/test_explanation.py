"""What a call would send, and what is said of code that is too new."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import trickle
from tests.hosts import local
from tests.pythons import far_pythons, python_id, version_of
from trickle._syntax import OLDEST, lowest_version, new_syntax


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


# ---- syntax

SYNTAX = {
    (3, 6): [
        "with open(x) as f: pass",
        "with (a): pass",
        "with (a) as b, (c) as d:\n  pass",
        "with (a), (b): pass",
        "@a.b(c)\ndef f(): return (*a, b)",
        "f'{x}= {y}'",
        "f\"{a['b']}\"",
        "f'''{a['b']}'''",
        "def f(a, *, b): pass",
        "try:\n a\nexcept (A, B):\n b",
    ],
    (3, 7): ["from __future__ import annotations"],
    (3, 8): [
        "(x := 1)",
        "lambda a, /: a",
        "f'{x=}'",
        "f'{x.y = !r}'",
        "def f():\n  return *a, b",
        "def f():\n  yield *a, b",
    ],
    (3, 9): [
        "with (a as b, c as d):\n  pass",
        "with (  # why not\n  a as b,\n  c as d,\n):\n  pass",
        "with (a, b): pass",
        "@a[0]\ndef f(): pass",
        "@(lambda f: f)\nclass C: pass",
        "for x in *a, b: pass",
    ],
    (3, 10): ["match x:\n  case 1: pass"],
    (3, 11): ["try:\n a\nexcept* A:\n b", "x[*a]"],
    (3, 12): ["type X = int", "def f[T](x: T): pass", "class C[T]: pass", "f'{a['b']}'"],
    (3, 13): ["def f[T=int](x: T): pass"],
    (3, 14): ["try:\n a\nexcept A, B:\n b", "t'{x}'"],
}


@pytest.mark.parametrize(
    ("version", "source"),
    [(version, source) for version, sources in SYNTAX.items() for source in sources if version <= sys.version_info[:2]],
)
def test_the_oldest_python_is_told_from_the_syntax(version: tuple[int, int], source: str) -> None:
    assert lowest_version(source) == version


def test_new_syntax_has_its_line() -> None:
    source = "x = 1\n\nif (y := x):\n    match y:\n        case 1: pass\n"

    assert [(each.version, each.line) for each in new_syntax(source)] == [((3, 8), 3), ((3, 10), 4)]
    assert lowest_version("this is no Python") == OLDEST


@pytest.mark.parametrize("python", [p for p in far_pythons() if (version_of(p) or (0,)) < (3, 10)], ids=python_id)
async def test_code_that_is_too_new_says_what_is_too_new(
    python: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "too_new", raising=False)
    write(
        here,
        {"too_new.py": "def f(x):\n    return x\n\n\ndef g(x):\n    match x:\n        case _:\n            return 1\n"},
    )
    import too_new  # type: ignore[import-not-found]

    def newer(x: object) -> object:
        match x:
            case _:
                return x

    async with trickle.open_host(trickle.Local("far", python=python)) as host:
        with pytest.raises(SyntaxError) as of_module:
            await host.call(too_new.f, 1)
        with pytest.raises(SyntaxError) as of_function:
            await host.call(newer, 1)

    version = ".".join(map(str, version_of(python) or ()))
    needs = f"a match statement needs Python 3.10, and this host has {version}"
    assert f"far: SyntaxError: {too_new.__file__}, line 6: {needs}" in str(of_module.value)
    assert f"far: SyntaxError: {__file__}, line {newer.__code__.co_firstlineno + 1}: {needs}" in str(of_function.value)


# ---- explain


async def test_explain_says_what_would_be_sent(here: Path) -> None:
    write(
        here,
        {
            "explained/__init__.py": "",
            "explained/work.py": "import json, nowhere_at_all\nfrom . import helper\nimport explained_quick\n"
            "def work(n): return helper.double(n)\n",
            "explained/helper.py": "import importlib\ndef double(n): return (m := n) * 2\n"
            "def load(name): return importlib.import_module(name)\n",
            f"explained_quick{EXTENSION_SUFFIXES[0]}": "",
        },
    )
    sys.modules["explained_quick"] = sys  # it cannot be loaded
    sys.modules["nowhere_at_all"] = sys
    try:
        from explained import work  # type: ignore[import-not-found]

        del sys.modules["explained_quick"], sys.modules["nowhere_at_all"]
        async with trickle.open_host(local("here"), wait=False) as host:
            explanation = host.explain(work.work, 3)
            before = host.statistics().modules_sent
    finally:
        sys.modules.pop("explained_quick", None)
        sys.modules.pop("nowhere_at_all", None)

    assert before == 0
    assert explanation.host == "here"
    assert explanation.modules == ("explained", "explained.work", "explained.helper")
    assert 200 < explanation.bytes < 2000
    assert set(explanation.foreseen) == {*explanation.modules, "nowhere_at_all", "explained_quick"}
    assert explanation.unforeseeable == ("explained.helper",)
    assert explanation.extensions == ("explained_quick",)
    assert explanation.python_version == (3, 8)
    assert explanation.newest_syntax == f"an assignment expression (:=) ({here / 'explained/helper.py'}, line 2)"
    assert "needs Python 3.8" in str(explanation)


async def test_explain_leaves_out_what_the_host_has(here: Path) -> None:
    write(here, {"sent_once.py": "def f(): return 1\n"})
    import sent_once  # type: ignore[import-not-found]

    async with trickle.open_host(local()) as host:
        before = host.explain(sent_once.f)
        await host.call(sent_once.f)
        after = host.explain(sent_once.f)

    assert (before.modules, after.modules) == (("sent_once",), ())
    assert before.bytes > after.bytes


async def test_the_python_that_is_needed_counts_what_was_sent_before(here: Path) -> None:
    write(here, {"sent_before.py": "def f(): return (n := 1)\n"})
    import sent_before  # type: ignore[import-not-found]

    async with trickle.open_host(local()) as host:
        await host.call(sent_before.f)
        explanation = host.explain(sent_before.f)

    assert explanation.modules == ()
    assert explanation.python_version == (3, 8)
    assert "needs Python 3.8 for an assignment expression" in str(explanation)


async def test_explain_raises_what_a_call_would() -> None:
    import threading

    async with trickle.open_host(local(), wait=False) as host:
        with pytest.raises(trickle.Unsendable):
            host.explain(print, threading.Lock())
