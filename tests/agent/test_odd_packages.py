"""Packages that are found or made in unusual ways, in every Python that is found."""

import py_compile
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from site import addsitedir

import pytest

from ..pythons import far_pythons, python_id
from .far_end import ROOT, FarEnd, RaisedThere, far_end

pytestmark = pytest.mark.parametrize("python", far_pythons(), ids=python_id)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that this program imports from, and forgets afterwards."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    return directory


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory that the far end imports from."""
    directory = tmp_path / "there"
    directory.mkdir()
    return directory


@pytest.fixture
def far(python: str, there: Path) -> Iterator[FarEnd]:
    with far_end(python, site_packages=[there]) as far:
        yield far


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_a_package_that_replaces_itself_is_what_it_makes_of_itself(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "replaced/__init__.py": "import sys\nclass Api:\n"
            "    __name__, __path__, __spec__ = __name__, __path__, __spec__\n"
            "    def hello(self): return 'hello'\nsys.modules[__name__] = Api()\n",
            "replaced/below.py": "VALUE = 'below'\n",
        },
    )

    result = far.run("import replaced\nfrom replaced import below\nresult = replaced.hello(), below.VALUE")

    assert result == ("hello", "below")


def test_a_package_may_make_modules_below_itself(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "makes.py": "import sys, types\n__path__ = []\nmoves = types.ModuleType(__name__ + '.moves')\n"
            "moves.__path__ = []\nmoves.value = 5\nsys.modules[__name__ + '.moves'] = moves\n"
            "inner = types.ModuleType(__name__ + '.moves.inner')\nsys.modules[__name__ + '.moves.inner'] = inner\n"
        },
    )

    result = far.run("import makes\nfrom makes.moves import value\nimport makes.moves.inner\nresult = value")

    assert result == 5
    assert far.asked == ["makes"]


def test_modules_may_put_others_in_their_place(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "stands_for/__init__.py": "",
            "stands_for/module.py": "import sys, stands_for.other\nsys.modules[__name__] = stands_for.other\n",
            "stands_for/package/__init__.py": "import sys\nfrom stands_for.package import _inner\n"
            "sys.modules[__name__] = _inner\n",
            "stands_for/package/_inner.py": "NAME = 'inner'\n",
            "stands_for/other.py": "NAME = 'other'\n",
        },
    )

    result = far.run(
        "import stands_for.module, stands_for.package\n"
        "result = sys.modules['stands_for.module'].NAME, sys.modules['stands_for.package'].NAME"
    )

    assert result == ("other", "inner")


def test_a_package_may_bring_a_copy_of_what_is_missing(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "vendors/__init__.py": "try:\n    import nowhere_to_be_found as found\n"
            "except ImportError:\n    from . import _copy as found\n",
            "vendors/_copy.py": "NAME = 'copy'\n",
        },
    )

    far.send_modules(["vendors"])
    result = far.run("import vendors; result = vendors.found.NAME")

    assert result == "copy"
    assert far.asked == []


@pytest.mark.parametrize(
    ("encoding", "first_line"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-8", "# -*- coding: utf-8 -*-"),
        ("cp1252", "# -*- coding: cp1252 -*-"),
        ("iso8859-15", "# vim: set fileencoding=iso8859-15 :"),
    ],
)
def test_source_may_have_any_encoding(far: FarEnd, here: Path, encoding: str, first_line: str) -> None:
    (here / "encoded.py").write_bytes(
        f"{first_line}\nTEXT = 'Olá €'  # déjà\ndef f():\n    1 / 0  # vu €\n".encode(encoding)
    )

    assert far.run("import encoded; result = encoded.TEXT") == "Olá €"
    with pytest.raises(RaisedThere) as caught:
        far.run("import encoded; encoded.f()")
    assert "1 / 0  # vu €" in caught.value.traceback


def test_names_of_modules_may_have_other_letters(far: FarEnd, here: Path) -> None:
    write(here, {"paket/__init__.py": "from . import größe\n", "paket/größe.py": "WERT = 5\n"})

    far.send_modules(["paket"])

    assert far.run("import paket; result = paket.größe.WERT") == 5
    assert far.asked == []


def test_modules_may_import_each_other(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "circle/__init__.py": "from . import left\n",
            "circle/left.py": "from . import right\nNAME = 'left'\ndef other(): return right.NAME\n",
            "circle/right.py": "import circle.left\nNAME = 'right'\ndef other(): return circle.left.NAME\n",
        },
    )

    far.send_modules(["circle"])
    result = far.run("import circle.right; result = circle.left.other(), circle.right.other()")

    assert result == ("right", "left")
    assert far.asked == []


def test_a_star_brings_what_all_names_modules_included(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "starry/__init__.py": "__all__ = ['below', 'VALUE']\nVALUE, HIDDEN = 1, 2\n",
            "starry/below.py": "VALUE = 'below'\n",
            "takes_all.py": "from starry import *\nRESULT = below.VALUE, VALUE, 'HIDDEN' in globals()\n",
        },
    )

    far.send_modules(["takes_all"])
    result = far.run("import takes_all; result = takes_all.RESULT")

    assert result == ("below", 1, False)


def test_a_module_may_make_its_attributes_when_they_are_wanted(far: FarEnd, here: Path) -> None:
    if far.version < (3, 7):
        with pytest.raises(RaisedThere, match="AttributeError"):  # as it would there without us
            lazily(far, here)
    else:
        assert lazily(far, here) == ("heavy", "heavy", True)


def lazily(far: FarEnd, here: Path) -> object:
    write(
        here,
        {
            "lazy/__init__.py": "import importlib\ndef __getattr__(name):\n"
            "    if name != 'heavy': raise AttributeError(name)\n"
            "    return importlib.import_module('lazy.' + name)\n",
            "lazy/heavy.py": "NAME = 'heavy'\n",
        },
    )
    return far.run(
        "import lazy\nearly = 'lazy.heavy' in sys.modules\n"
        "result = lazy.heavy.NAME, sys.modules['lazy.heavy'].NAME, not early"
    )


def test_pythons_own_lazy_loader_works(far: FarEnd, here: Path) -> None:
    write(here, {"later.py": "import sys\nsys.later_was_run = True\nVALUE = 3\n"})
    script = """
import importlib.util
spec = importlib.util.find_spec("later")
spec.loader = importlib.util.LazyLoader(spec.loader)
module = importlib.util.module_from_spec(spec)
sys.modules["later"] = module
spec.loader.exec_module(module)
early = hasattr(sys, "later_was_run")
result = early, module.VALUE, hasattr(sys, "later_was_run")
"""

    assert far.run(script) == (False, 3, True)


def test_a_module_without_source_is_refused_with_its_reason(far: FarEnd, here: Path) -> None:
    write(here, {"bare.py": "VALUE = 1\n"})
    py_compile.compile(str(here / "bare.py"), str(here / "bare.pyc"))
    (here / "bare.py").unlink()

    with pytest.raises(RaisedThere, match="No module named 'bare'"):
        far.run("import bare")
    assert far.run("result = importer.why_missing('bare')") == "it has no Python source (SourcelessFileLoader)"


def test_one_finds_oneself_while_one_is_imported(far: FarEnd, here: Path) -> None:
    write(here, {"itself/__init__.py": "import itself, sys\nSAME = itself is sys.modules[__name__]\n"})

    assert far.run("import itself; result = itself.SAME") is True


def test_a_package_may_hide_a_module_of_the_library_below_itself(far: FarEnd, here: Path) -> None:
    write(here, {"own_json/__init__.py": "from . import json\nimport json as theirs\n", "own_json/json.py": "A = 1\n"})

    result = far.run("import own_json; result = own_json.json.A, own_json.theirs.dumps([1])")

    assert result == (1, "[1]")


def test_a_module_that_fails_may_be_imported_again(far: FarEnd, here: Path) -> None:
    write(here, {"fails_once.py": "import sys\nsys.tries = getattr(sys, 'tries', 0) + 1\n1 / (sys.tries - 1)\n"})

    with pytest.raises(RaisedThere, match="ZeroDivisionError"):
        far.run("import fails_once")

    assert far.run("import fails_once; result = sys.tries") == 2


def test_a_package_of_the_old_kind_may_have_portions(
    far: FarEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"
    for portion in ("one", "two"):
        write(tmp_path / portion, {"oldspace/__init__.py": extend, f"oldspace/{portion}.py": f"VALUE = {portion!r}\n"})
        monkeypatch.syspath_prepend(tmp_path / portion)

    result = far.run("from oldspace import one, two; result = one.VALUE, two.VALUE")

    assert result == ("one", "two")


def test_a_finder_of_the_programs_own_is_asked(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        def get_source(self, name: str) -> str:
            return f"NAME = {name!r}\n" + ("" if "." in name else "from . import below\n")

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if name not in ("conjured", "conjured.below"):
                return None
            return ModuleSpec(name, Loader(), is_package=name == "conjured", origin=f"<{name}>")  # type: ignore[arg-type]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])

    result = far.run("import conjured; result = conjured.NAME, conjured.below.NAME")

    assert result == ("conjured", "conjured.below")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site directory whose .pth files a test executes: what they do is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path_hooks", list(sys.path_hooks))
    modules = set(sys.modules)
    yield tmp_path / "site"
    for name in set(sys.modules) - modules:
        if name.startswith(("__editable__", "pthspace")):
            del sys.modules[name]


def test_an_editable_install_is_found(far: FarEnd, tmp_path: Path, site: Path) -> None:
    project, wheels = tmp_path / "project", tmp_path / "wheels"
    write(
        project,
        {
            "pyproject.toml": "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
            "[project]\nname = 'editable-thing'\nversion = '4.5'\n"
            "[tool.setuptools]\npackages = ['editable_thing']\n[tool.setuptools.package-dir]\neditable_thing = 'lib'\n",
            "lib/__init__.py": "from .inner import VALUE\n",
            "lib/inner.py": "VALUE = 'edited'\n",
            "lib/data.txt": "data",
        },
    )
    wheels.mkdir()
    build = f"import setuptools.build_meta as b; b.build_editable({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, capture_output=True)
    with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
        wheel.extractall(site)
    addsitedir(str(site))

    script = "import editable_thing as e, pkgutil; result = e.VALUE, pkgutil.get_data('editable_thing', 'data.txt')"
    assert far.run(script) == ("edited", b"data")


def test_an_editable_install_of_the_old_kind_is_found_with_its_metadata(
    far: FarEnd, tmp_path: Path, site: Path
) -> None:
    info = "Metadata-Version: 2.1\nName: legacy-thing\nVersion: 6.7\n"
    write(
        tmp_path / "project/src",
        {
            "legacy_thing/__init__.py": "from legacy_module import VALUE\n",
            "legacy_thing/data.txt": "data",
            "legacy_module.py": "VALUE = 'linked'\n",
            "legacy_thing.egg-info/PKG-INFO": info,
            "legacy_thing.egg-info/top_level.txt": "legacy_module\nlegacy_thing\n",
        },
    )
    write(site, {"easy-install.pth": "../project/src\n", "legacy-thing.egg-link": f"{tmp_path}/project/src\n../"})
    addsitedir(str(site))

    far.send_modules(["legacy_thing"])
    result = far.run(
        "import legacy_thing as e, pkgutil; result = e.VALUE, pkgutil.get_data('legacy_thing', 'data.txt')"
    )

    assert result == ("linked", b"data")
    assert far.asked == ["legacy_thing/"]
    if far.version >= (3, 8):
        assert far.run("import importlib.metadata as m; result = m.version('legacy-thing')") == "6.7"


def test_namespaces_that_pth_files_make_have_all_their_portions(far: FarEnd, tmp_path: Path, site: Path) -> None:
    for portion in ("one", "two"):
        # As setuptools wrote them.
        line = (
            "import sys, types, os, importlib.util, importlib.machinery; "
            f"p = {str(tmp_path / portion / 'pthspace')!r}; "
            "m = sys.modules.setdefault('pthspace', importlib.util.module_from_spec("
            "importlib.machinery.PathFinder.find_spec('pthspace', [os.path.dirname(p)]))); "
            "mp = m.__dict__.setdefault('__path__', []); (p not in mp) and mp.append(p)\n"
        )
        write(site, {f"{portion}-nspkg.pth": line})
        write(tmp_path / portion, {f"pthspace/{portion}.py": f"VALUE = {portion!r}\n"})
    addsitedir(str(site))

    result = far.run("from pthspace import one, two; result = one.VALUE, two.VALUE")

    assert result == ("one", "two")


def test_a_module_that_only_the_controller_has_frozen_is_refused_clearly(far: FarEnd) -> None:
    script = "import __hello_alias__"  # in 3.11 and later
    if far.version >= (3, 11):
        assert far.run(f"{script}; result = __hello_alias__.__spec__.origin") == "frozen"
        return

    with pytest.raises(RaisedThere, match="No module named '__hello_alias__'"):
        far.run(script)
    reason = far.run("result = importer.why_missing('__hello_alias__')")
    assert reason == "__hello_alias__ is frozen into this program's Python, and has no source to send"


def test_frozen_parts_of_the_standard_library_are_the_far_ends(far: FarEnd) -> None:
    result = far.run("import zipimport, importlib._bootstrap as b; result = zipimport.__spec__.origin, b.__name__")

    assert result[0] in ("frozen", "built-in")
    assert far.asked == []


def test_a_module_made_at_run_time_is_refused_clearly(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("made_here")
    exec("def f(x): return x + 1", made.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", made)

    with pytest.raises(RaisedThere, match="No module named 'made_here'"):
        far.run("import made_here")
    assert "was made by this program while it ran" in far.run("result = importer.why_missing('made_here')")


def test_extension_modules_are_replaced_by_what_is_pure_where_the_package_can(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "speedy/__init__.py": "try: from ._quick import add\nexcept ImportError: from ._slow import add\n",
            "speedy/_slow.py": "def add(a, b): return a + b\n",
            f"speedy/_quick{EXTENSION_SUFFIXES[0]}": "",
        },
    )

    result = far.run("import speedy; result = speedy.add(1, 2), speedy.add.__module__")

    assert result == (3, "speedy._slow")
    assert far.asked == ["speedy"]


def test_extension_modules_without_anything_pure_say_what_is_missing(far: FarEnd, here: Path) -> None:
    write(here, {"needy/__init__.py": "from . import _core\n", f"needy/_core{EXTENSION_SUFFIXES[0]}": ""})

    with pytest.raises(RaisedThere, match="_core"):
        far.run("import needy")

    reason = far.run("result = importer.why_missing('needy._core')")
    assert reason == f"needy._core is an extension module (_core{EXTENSION_SUFFIXES[0]}), which cannot be sent"


def test_an_extension_module_asked_for_by_name_says_what_it_is(far: FarEnd, here: Path) -> None:
    file = f"alone{EXTENSION_SUFFIXES[0]}"
    write(here, {file: "", "uses_alone.py": "import alone\n"})

    far.send_modules(["uses_alone"])
    for name in ("uses_alone", "alone"):
        with pytest.raises(RaisedThere, match="No module named 'alone'"):
            far.run(f"import {name}")

    reason = far.run("result = importer.why_missing('alone')")
    assert reason == f"alone is an extension module ({file}), which cannot be sent"
    assert far.asked == []


def test_large_packages_with_extensions_are_the_hosts_own_or_asked_for(far: FarEnd, here: Path, there: Path) -> None:
    bulk = "#" * 600_000
    for name in ("vast_here", "vast_there"):
        write(here, {f"{name}/__init__.py": f"from . import part\nWHERE = 'here'\n{bulk}", f"{name}/part.py": ""})
        write(here, {f"{name}/_x{EXTENSION_SUFFIXES[0]}": ""})
    write(there, {"vast_there/__init__.py": "WHERE = 'there'\n"})
    write(here, {"uses_both.py": "import vast_here, vast_there\nRESULT = vast_here.WHERE, vast_there.WHERE\n"})

    far.send_modules(["uses_both"])
    result = far.run("import uses_both; result = uses_both.RESULT")

    assert result == ("here", "there")
    assert far.asked == ["vast_here!"]


def test_a_script_that_runs_as_a_module_may_import_its_neighbours(far: FarEnd, tmp_path: Path) -> None:
    from .script import PREAMBLE, ScriptCall, pickle

    write(tmp_path, {"run_as/__init__.py": "", "run_as/neighbour.py": "VALUE = 9\n"})
    write(
        tmp_path,
        {"run_as/program.py": PREAMBLE + "def f():\n    from .neighbour import VALUE\n    return VALUE\n"
         "def g():\n    from . import neighbour\n    return neighbour.VALUE, __name__\n"
         "remote.call(f); remote.call(g)\nremote.finish()\n"},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "run_as.program"],
        stdout=subprocess.PIPE,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        cwd=tmp_path,
    )

    results = []
    for call in (ScriptCall(*each) for each in pickle.loads(done.stdout)):
        assert call.outgoing is not None, call.error
        if call.bundle is not None:
            far.run("importer.add_bundle(bundle)", bundle=call.bundle)
        results.append(far.call_pickled(call.outgoing))
    assert results == [9, (9, "__main__")]
    assert far.asked == []
