"""Packages that people use, none of which the far Pythons have, forwarded to each Python that they support."""

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from ..pythons import far_pythons, python_id
from .far_end import FarEnd, far_end


class Use(NamedTuple):
    """A few lines that use a package in earnest.

    *questions* is how often the far end may have to ask for what was not foreseen: each costs a round trip.
    """

    distributions: str  # with what it needs that supports fewer Pythons
    modules: tuple[str, ...]
    script: str
    expected: Any
    questions: int = 0
    since: tuple[int, int] = (3, 6)  # where the lines, not the package, need a newer Python


USES = [
    Use(
        "jinja2 markupsafe",
        ("jinja2",),
        "import jinja2\nresult = jinja2.Template('{{ x|upper }}{% for i in y %} {{ i }}{% endfor %}')"
        ".render(x='<a>', y=[1])",
        "<A> 1",
    ),
    Use(
        "sympy",
        ("sympy",),
        "import sympy\nx = sympy.Symbol('x')\n"
        "result = [str(sympy.integrate(x * sympy.sin(x), x)), str(sympy.solve(x**2 - 2, x))]",
        ["-x*cos(x) + sin(x)", "[-sqrt(2), sqrt(2)]"],
        questions=1,
    ),
    Use(
        "sqlparse",
        ("sqlparse",),
        "import sqlparse\nresult = sqlparse.format('select a from b', reindent=True, keyword_case='upper')",
        "SELECT a\nFROM b",
    ),
    Use(
        "attrs",
        ("attr", "attrs"),
        "import attr, attrs\n@attrs.define\nclass C:\n"
        "    x: int = attrs.field(validator=attrs.validators.instance_of(int))\n"
        "result = [repr(C(2)), attr.asdict(C(3))]",
        ["C(x=2)", {"x": 3}],
    ),
    Use(
        "rich",
        ("rich.console", "rich.table"),
        "import io, rich.console, rich.table\n"
        "console = rich.console.Console(file=io.StringIO(), width=20, legacy_windows=False)\n"
        "table = rich.table.Table('head')\ntable.add_row('cell')\nconsole.print(table)\n"
        "result = 'cell' in console.file.getvalue()",
        True,
        questions=1,
    ),
    Use(
        "pygments",
        ("pygments", "pygments.lexers", "pygments.formatters"),
        "import pygments, pygments.lexers, pygments.formatters as f\n"
        "result = pygments.highlight('x', pygments.lexers.get_lexer_by_name('python'), f.HtmlFormatter(nowrap=True))",
        '<span class="n">x</span>\n',
        questions=3,  # lexers, formatters and styles are imported by names that are made up when they are needed
    ),
    Use(
        "docutils",
        ("docutils.core",),
        "import docutils.core\n"
        "result = docutils.core.publish_string('*x*', writer_name='pseudoxml')\nresult = 'emphasis' in result.decode()",
        True,
        questions=6,  # likewise
    ),
    Use(
        "networkx",
        ("networkx",),
        "import networkx as n\nresult = n.shortest_path(n.path_graph(4), 0, 3)",
        [0, 1, 2, 3],
        questions=2,  # its plugins (metadata), and the list of its files
    ),
    Use(
        "certifi",
        ("certifi",),
        "import certifi, os, ssl\npath = certifi.where()\n"
        "result = [os.path.isfile(path), ssl.create_default_context(cafile=path).cert_store_stats()['x509'] > 50]",
        [True, True],
        questions=1,
        since=(3, 7),
    ),
    Use(
        "tzdata",
        ("tzdata",),
        "import datetime, zoneinfo\nzoneinfo.reset_tzpath(to=())\n"
        "result = str(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).utcoffset())",
        "2:00:00",
        questions=2,
        since=(3, 9),
    ),
    Use(
        "six",
        ("six",),
        "import six\nfrom six.moves.urllib.parse import urlparse\nfrom six.moves import range as r\n"
        "result = [urlparse('http://host/path').path, list(r(2)), six.text_type.__name__]",
        ["/path", [0, 1], "str"],
    ),
    Use(
        "importlib_metadata",
        ("importlib_metadata",),
        "import importlib_metadata as m\nresult = [m.version('jinja2') > '3', bool(m.entry_points(group='pytest11'))]",
        [True, True],
        questions=4,
    ),
    Use(
        "trio",
        ("trio",),
        "import trio\nasync def f():\n    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(trio.sleep, 0)\n    return 7\nresult = trio.run(f)",
        7,
        since=(3, 11),  # 3.10 needs another package, which newer Pythons have no use for
    ),
    Use(
        "PyYAML",
        ("yaml",),
        "import yaml\nresult = yaml.safe_load('a: [1, 2]')",
        {"a": [1, 2]},
    ),
]


def needed_python(distribution: str) -> tuple[int, int]:
    """The oldest Python that a distribution supports, as it says itself."""
    specifier = importlib.metadata.metadata(distribution)["Requires-Python"] or ">=3.6"
    oldest = next(part for part in specifier.replace(" ", "").split(",") if part.startswith(">="))
    major, minor, *_ = map(int, [*oldest.removeprefix(">=").split("."), "0"])
    return major, minor


def supported(use: Use) -> Callable[[str], bool]:
    needed = max(*map(needed_python, use.distributions.split()), use.since)
    return lambda python: (*map(int, python_id(python).removeprefix("py").split(".")),) >= needed


CASES = [
    pytest.param(python, use, id=f"{python_id(python)}-{use.distributions.split()[0]}")
    for use in USES
    for python in filter(supported(use), far_pythons())
]


@pytest.fixture
def far(python: str) -> Iterator[FarEnd]:
    with far_end(python) as far:
        yield far


@pytest.mark.parametrize(("python", "use"), CASES)
def test_a_package_works_there_as_it_does_here(far: FarEnd, use: Use) -> None:
    lacks = (
        "import importlib.machinery as m; result = [n for n in names if m.PathFinder.find_spec(n.partition('.')[0])]"
    )
    assert far.run(lacks, names=use.modules) == []

    far.send_modules(use.modules)
    result = far.run(use.script)

    assert result == use.expected
    assert len(far.asked) <= use.questions, far.asked
