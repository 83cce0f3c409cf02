"""What the controller finds, and what it decides to send.  No far end: its answers are read here."""

import pickle
import subprocess
import sys
import zipfile
import zlib
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from importlib.util import cache_from_source, spec_from_file_location
from pathlib import Path
from types import CodeType

import pytest

import trickle
from tests.bytecode import write_with_bytecode
from tests.hosts import running_below
from trickle._imports import static_imports
from trickle._module_policy import ModulePolicy
from trickle._module_server import MAX_QUESTIONS, ModuleServer
from trickle._modules import SMALL_UNIT, ModuleEntry, ModuleLibrary, bytecode


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that this program imports from, and forgets afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def library() -> ModuleLibrary:
    return ModuleLibrary()


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def kinds(bundle: bytes | None) -> dict[str, str]:
    assert bundle is not None
    return {name: kind for name, kind, *_ in pickle.loads(bundle)}


# ---- finding


def test_modules_and_packages_are_found_without_being_imported(library: ModuleLibrary, here: Path) -> None:
    write(here, {"found_package/__init__.py": "raise SystemExit\n", "found_package/sub.py": "# süß\n"})

    package, module = library.find("found_package"), library.find("found_package.sub")

    assert package is not None and package.kind == "package"
    assert module is not None and module.kind == "module"
    assert module.filename == str(here / "found_package/sub.py")
    assert zlib.decompress(module.source).decode() == "# süß\n"
    assert "found_package" not in sys.modules


def test_namespace_packages_are_found_at_any_depth(library: ModuleLibrary, here: Path) -> None:
    write(here, {"found_space/inner/leaf.py": "VALUE = 1\n"})

    found = [library.find(name) for name in ("found_space", "found_space.inner", "found_space.inner.leaf")]

    assert [entry and entry.kind for entry in found] == ["namespace", "namespace", "module"]


def test_modules_in_a_zip_file_are_found(
    library: ModuleLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "found.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "")
        archive.writestr("zipped/inside.py", "VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "found.zip")

    entry = library.find("zipped.inside")

    assert entry is not None
    assert zlib.decompress(entry.source) == b"VALUE = 1\n"


def test_modules_that_are_imported_already_are_found(library: ModuleLibrary) -> None:
    entry = library.find(__name__)

    assert entry is not None
    assert b"test_modules_that_are_imported_already_are_found" in zlib.decompress(entry.source)


def test_a_module_that_appears_later_is_found_once_the_path_changes(
    library: ModuleLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"appears_later.py": ""})
    assert library.find("appears_later") is None

    monkeypatch.syspath_prepend(tmp_path)

    assert library.find("appears_later") is not None


@pytest.mark.parametrize(
    "name",
    # What is frozen, built in and an extension module of the standard library among them.
    ["os", "os.path", "sys", "zipimport", "_json", "__main__", "trickle", "trickle._modules", "sitecustomize"],
)
def test_the_far_end_has_its_own_of_these(library: ModuleLibrary, name: str) -> None:
    assert library.find(name) is None
    assert library.why_not(name) == "the host's own copy counts"


def test_what_is_pure_of_a_package_with_an_extension_module_is_only_to_spare(
    library: ModuleLibrary, here: Path
) -> None:
    write(here, {"mixed/__init__.py": "", "mixed/pure.py": "", "mixed/deep/fast.abi3.so": "", "mixed/deep/x.py": ""})

    found = [library.find(name) for name in ("mixed", "mixed.pure", "mixed.deep.x")]

    assert [entry and entry.kind for entry in found] == ["spare package", "spare module", "spare module"]


def test_an_extension_module_says_what_it_is(library: ModuleLibrary, here: Path) -> None:
    write(here, {f"quick{EXTENSION_SUFFIXES[0]}": ""})

    assert library.find("quick") is None
    assert (
        library.why_not("quick") == f"quick is an extension module (quick{EXTENSION_SUFFIXES[0]}), which cannot be sent"
    )


def test_an_extension_module_in_a_namespace_says_what_it_is(library: ModuleLibrary, here: Path) -> None:
    write(here, {f"wide/quick{EXTENSION_SUFFIXES[0]}": "", "wide/slow.py": ""})

    kinds = [entry and entry.kind for entry in map(library.find, ("wide", "wide.slow", "wide.quick"))]

    assert kinds == ["namespace", "module", None]
    assert "wide.quick is an extension module" in library.why_not("wide.quick")


@pytest.mark.parametrize("name", ["__phello__", "__phello__.spam"])
def test_a_module_that_this_python_has_frozen_says_so(library: ModuleLibrary, name: str) -> None:
    assert library.find(name) is None
    assert library.why_not(name) == f"{name} is frozen into this program's Python, and has no source to send"


def test_what_an_extension_module_was_compiled_from_is_found_beside_it(library: ModuleLibrary, here: Path) -> None:
    write(here, {f"both_ways{EXTENSION_SUFFIXES[0]}": "", "both_ways.py": "VALUE = 1\n"})

    entry = library.find("both_ways")

    assert entry is not None and entry.kind == "spare module"
    assert entry.filename == str(here / "both_ways.py")
    assert zlib.decompress(entry.source) == b"VALUE = 1\n"


def test_large_packages_that_hosts_may_have_are_only_mentioned(library: ModuleLibrary, here: Path) -> None:
    write(here, {"vast/__init__.py": "import vast_needs\n" + "#" * SMALL_UNIT, "vast/x.so": "", "vast_needs.py": ""})
    write(here, {"uses_vast.py": "import vast\n"})
    server = ModuleServer(library=library)

    assert kinds(server.bundle_for(["uses_vast"])) == {"uses_vast": "module", "vast": "elsewhere"}
    assert kinds(server.answer("vast!")) == {"vast": "spare package", "vast_needs": "module", "vast!": "missing"}


def test_compiled_files_in_an_environment_beside_the_code_do_not_count(library: ModuleLibrary, here: Path) -> None:
    write(here, {"project/mod.py": "", "project/.venv/x.so": "", "project/build/lib.linux-x86_64/x.so": ""})

    assert library.find("project.mod") is not None


def test_a_module_without_source_says_so(library: ModuleLibrary, here: Path) -> None:
    (here / "no_source.pyc").write_bytes(b"")

    assert library.find("no_source") is None
    assert "no Python source" in library.why_not("no_source")


# ---- reading imports


def names_imported(source: str, name: str = "pkg.mod", is_package: bool = False) -> set[str]:
    return {each.name for each in static_imports(compile(source, name, "exec"), name, is_package)}


def test_imports_are_read_wherever_they_stand() -> None:
    source = """
import a.b, c
from d import e
if x:
    import f
try:
    import g
except ImportError:
    import h
def function():
    with y:
        import i
match z:
    case 1:
        import j
"""

    assert names_imported(source) == {"a.b", "c", "d", "d.e", "f", "g", "h", "i", "j"}


def test_relative_imports_are_read() -> None:
    source = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ...far import e\n"

    assert names_imported(source, "p.q.mod") == {"p", "p.d", "p.q", "p.q.a", "p.q.b", "p.q.b.c"}
    assert names_imported("from . import a\n", "p.q", is_package=True) == {"p.q", "p.q.a"}


def test_imports_for_type_checkers_and_for_windows_do_not_count() -> None:
    source = """
if TYPE_CHECKING:
    import a
else:
    import b
if typing.TYPE_CHECKING:
    import c
if sys.platform == "win32":
    import d
"""

    assert names_imported(source) == {"b"}


def test_many_imports_are_read_although_their_numbers_take_more_than_a_byte() -> None:
    numbers = range(400)
    source = "\n".join(f"import m{n}; from p{n} import x{n} as y" for n in numbers)

    found = names_imported(source)

    assert found == {name for n in numbers for name in (f"m{n}", f"p{n}", f"p{n}.x{n}")}
    assert names_imported(f"{source}\nif TYPE_CHECKING:\n    import q\n") == found


def test_source_that_cannot_be_compiled_imports_nothing(library: ModuleLibrary, here: Path) -> None:
    write(here, {"of_old.py": "import json, nowhere\nprint 'old'\n"})

    assert library.closure(["of_old"]) == ["of_old"]


# ---- much source that Python has no bytecode of


LINES = "".join(f"def f{n}(x): return [x, {n}, '{n}']\n" for n in range(1000))  # about 37 KB
BULKY = {f"bulky/part{n}.py": f"from . import part{n + 1}\n{LINES}" for n in range(4)}
BULKY |= {"bulky/__init__.py": "from . import part0\n", "bulky/part4.py": "this is no Python\n"}


@pytest.fixture
def compiled_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules whose code is had in this process, as they come."""
    names: list[str] = []
    code = ModuleLibrary._code

    def noted(library: ModuleLibrary, entry: ModuleEntry) -> CodeType | None:
        names.append(entry.name)
        return code(library, entry)

    monkeypatch.setattr(ModuleLibrary, "_code", noted)
    return names


def test_it_is_compiled_in_another_process(
    library: ModuleLibrary, here: Path, compiled_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, BULKY)
    before = running_below()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    closure = library.closure(["bulky"])

    assert closure == ["bulky", *(f"bulky.part{n}" for n in range(5))]
    assert compiled_here == ["bulky", "bulky.part0"]
    assert not list(here.rglob("*.pyc"))
    assert running_below() == before


def test_its_bytecode_is_kept_and_next_time_read_here(
    library: ModuleLibrary, here: Path, compiled_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, BULKY)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(here / "kept"))

    first = library.closure(["bulky"])
    assert (len(compiled_here), len(list((here / "kept").rglob("bulky/*.pyc")))) == (2, 5)
    compiled_here.clear()
    again = ModuleLibrary().closure(["bulky"])

    assert first == again
    assert compiled_here == first


@pytest.mark.parametrize("python", ["", "/nowhere/python", "/bin/false", "/bin/echo"])
def test_where_no_other_process_can_be_had_it_is_compiled_here(
    library: ModuleLibrary, here: Path, compiled_here: list[str], monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    write(here, BULKY)
    before = running_below()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "executable", python)

    assert library.closure(["bulky"]) == compiled_here
    assert running_below() == before


def test_an_unguarded_script_is_not_run_again_for_it(here: Path) -> None:
    write(here, BULKY)
    script = "print('run')\nfrom trickle._modules import LIBRARY\nprint(len(LIBRARY.closure(['bulky'])))\n"
    write(here, {"unguarded.py": script})

    done = subprocess.run(
        [sys.executable, "-B", here / "unguarded.py"],
        env={"PYTHONPATH": str(Path(trickle.__file__).parents[1])},
        capture_output=True,
        text=True,
    )

    assert (done.stdout.split(), done.stderr) == (["run", "6"], "")


# ---- closures


def test_a_closure_has_parents_and_follows_imports(library: ModuleLibrary, here: Path) -> None:
    write(
        here,
        {
            "closed/__init__.py": "import closed_base\n",
            "closed/api.py": "import os\nfrom . import helper\nfrom .helper import thing\n",
            "closed/helper.py": "def late():\n    import closed_late\n",
            "closed/unused.py": "",
            "closed_base.py": "import closed.api\n",
            "closed_late.py": "",
        },
    )

    names = library.closure(["closed.api"])

    assert names[0] == "closed"
    assert set(names) == {"closed", "closed.api", "closed.helper", "closed_base", "closed_late"}


def test_functions_of_installed_packages_do_not_add_to_a_closure(
    library: ModuleLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages = tmp_path / "site-packages"
    write(site_packages, {"installed.py": "import needed\ndef f():\n    import optional\n"})
    write(site_packages, {"needed.py": "", "optional.py": ""})
    monkeypatch.syspath_prepend(site_packages)

    assert library.closure(["installed"]) == ["installed", "needed"]


# ---- what one host is sent


def test_a_host_is_sent_nothing_twice(library: ModuleLibrary, here: Path) -> None:
    write(here, {"first.py": "import shared\n", "second.py": "import shared\n", "shared.py": ""})
    server = ModuleServer(library=library)

    bundles = [server.bundle_for(["first"]), server.bundle_for(["second"]), server.bundle_for(["first"])]

    assert kinds(bundles[0]) == {"first": "module", "shared": "module"}
    assert kinds(bundles[1]) == {"second": "module"}
    assert bundles[2] is None
    assert server.answer("shared") is None


def test_bytecode_goes_with_its_module_where_it_fits_the_source(library: ModuleLibrary, here: Path) -> None:
    for name in ("fitting", "stale", "other_kind"):
        write_with_bytecode(here / f"{name}.py", "", "")
    write(here, {"stale.py": "VALUE = 1\n", "uncompiled.py": "", "uses_all.py": "import fitting, stale, uncompiled\n"})
    cached = Path(cache_from_source(str(here / "other_kind.py")))
    cached.write_bytes(b"\0" + cached.read_bytes()[1:])
    before = {name: bytecode(found) for name in ("stale", "other_kind") if (found := library.spec(name))}

    server = ModuleServer(library=library, sends_bytecode=True)
    sent = kinds(server.bundle_for(["fitting"]))

    assert before == {"stale": b"", "other_kind": b""}
    assert sent == {"fitting": "module", "fitting#": "code"}
    assert server.modules_sent == 1
    assert kinds(ModuleServer(library=library).bundle_for(["fitting"])) == {"fitting": "module"}


def test_no_bytecode_is_sent_of_what_a_loader_of_its_own_makes_of_source(
    library: ModuleLibrary, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loader(SourceFileLoader):
        """As beartype's and typeguard's."""

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            file = str(here / "instrumented.py")
            return spec_from_file_location(name, file, loader=Loader(name, file)) if name == "instrumented" else None

    write_with_bytecode(here / "instrumented.py", "", "")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    sent = kinds(ModuleServer(library=library, sends_bytecode=True).bundle_for(["instrumented"]))

    assert sent == {"instrumented": "module"}


def test_a_policy_keeps_bytecode_here_too(library: ModuleLibrary, here: Path) -> None:
    write_with_bytecode(here / "kept_here.py", "", "")
    server = ModuleServer(ModulePolicy(deny=("kept_here",)), library, sends_bytecode=True)

    assert kinds(server.answer("kept_here")) == {"kept_here": "missing"}


def test_identical_bundles_are_packed_once(library: ModuleLibrary, here: Path) -> None:
    write(here, {"packed.py": ""})

    bundles = [ModuleServer(library=library).bundle_for(["packed"]) for _ in range(2)]

    assert bundles[0] is bundles[1]


def test_foreseeable_misses_are_answered_beforehand(library: ModuleLibrary, here: Path) -> None:
    write(
        here,
        {
            "foresees/__init__.py": "try:\n    from . import _speedups\nexcept ImportError: pass\n"
            "import os, tomllib, msvcrt, nowhere.sub, compiled_one\nfrom . import attribute\n",
            "compiled_one/x.so": "",
            "compiled_one/__init__.py": "",
        },
    )

    sent = kinds(ModuleServer(library=library).bundle_for(["foresees"]))

    missing = dict.fromkeys({"tomllib", "msvcrt", "nowhere"}, "missing")
    assert sent == {"foresees": "package", "compiled_one": "spare package", **missing}


def test_a_package_says_what_is_below_it(library: ModuleLibrary, here: Path) -> None:
    write(here, {"table/__init__.py": "", "table/mod.py": "", "table/pkg/__init__.py": "", "table/data/x.txt": ""})
    write(
        here, {"table/__pycache__/mod.pyc": "", "table/not-a-module.py": "", f"table/quick{EXTENSION_SUFFIXES[0]}": ""}
    )

    entry = library.find("table")

    assert entry is not None
    assert entry.children == ("data?", "mod", "pkg/", "quick")


def test_answers_are_negative_for_what_is_not_there(library: ModuleLibrary) -> None:
    server = ModuleServer(library=library)

    for name in ("nowhere_at_all", "os", "not-a-name", "", "..", "a..b", "../etc/passwd"):
        assert kinds(server.answer(name)) == {name: "missing"}


def test_questions_that_no_agent_asks_are_refused(library: ModuleLibrary) -> None:
    with pytest.raises(ValueError, match="more than 255 characters"):
        ModuleServer(library=library).answer("a" * 256)


def test_questions_are_bounded(library: ModuleLibrary) -> None:
    server = ModuleServer(library=library)
    for _ in range(MAX_QUESTIONS):
        server.answer("os")

    with pytest.raises(ValueError, match="more than 10000 modules"):
        server.answer("os")


def test_a_policy_turns_modules_into_negative_answers(library: ModuleLibrary, here: Path) -> None:
    write(here, {"policed/__init__.py": "from . import api, secret\n", "policed/api.py": "", "policed/secret.py": ""})
    server = ModuleServer(ModulePolicy(deny=("*.secret",)), library)

    sent = kinds(server.bundle_for(["policed"]))

    assert sent == {"policed": "package", "policed.api": "module", "policed.secret": "missing"}


@pytest.mark.parametrize(
    ("policy", "permitted", "refused"),
    [
        (ModulePolicy(), ["a", "a.b"], []),
        (ModulePolicy(allow=("a.b",)), ["a", "a.b", "a.b.c"], ["a.c", "ab", "b"]),
        (ModulePolicy(allow=("a.*",)), ["a", "a.b"], ["b"]),
        (ModulePolicy(deny=("a",)), ["b", "ab"], ["a", "a.b", "a.b.c"]),
        (ModulePolicy(allow=("a",), deny=("a.x*",)), ["a", "a.b"], ["a.xyz", "a.x.y"]),
    ],
)
def test_policies_match_whole_packages(policy: ModulePolicy, permitted: list[str], refused: list[str]) -> None:
    assert [name for name in permitted + refused if policy.permits(name)] == permitted
