"""Files in packages and metadata of distributions, in every Python that is found, against the controller's answers."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trickle._module_policy import ModulePolicy
from trickle._module_server import ModuleServer
from trickle._modules import ModuleLibrary

from ..pythons import far_pythons, python_id
from .far_end import FarEnd, RaisedThere, far_end

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


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def needs(far: FarEnd, *version: int) -> None:
    if far.version < version:
        pytest.skip(f"new in {'.'.join(map(str, version))}")


TREE: dict[str, str | bytes] = {
    "stocked/__init__.py": "VALUE = 1\n",
    "stocked/mod.py": "",
    "stocked/top.txt": "top süß\n",
    "stocked/deep/down/leaf.bin": b"\0\1\2",
    "stocked/sub/__init__.py": "",
    "stocked/sub/inner.txt": "inner",
}


# ---- files


def test_pkgutil_gets_data(far: FarEnd, here: Path) -> None:
    write(here, TREE)
    script = """
import pkgutil, stocked.sub
get = pkgutil.get_data
result = [get("stocked", "top.txt"), get("stocked", "deep/down/leaf.bin"), get("stocked.sub", "inner.txt"),
          get("stocked.mod", "top.txt"), get("stocked", "./deep/../top.txt"), get("stocked", "__init__.py")]
"""

    result = far.run(script)

    top = "top süß\n".encode()
    assert result == [top, b"\0\1\2", b"inner", top, top, b"VALUE = 1\n"]


def test_data_of_a_package_comes_with_one_question(far: FarEnd, here: Path) -> None:
    write(here, TREE)
    far.send_modules(["stocked"])

    far.run("import pkgutil; [pkgutil.get_data('stocked', n) for n in ('top.txt', 'sub/inner.txt')]")

    assert far.asked == ["stocked/"]


def test_what_is_no_data_is_not_found(far: FarEnd, here: Path, tmp_path: Path) -> None:
    write(here, TREE)
    (tmp_path / "outside.txt").write_text("outside")
    script = """
import pkgutil, stocked
result = []
for name in ("nothing.txt", "../outside.txt", "../../outside.txt", outside, "deep"):
    try:
        pkgutil.get_data("stocked", name)
    except OSError as exc:
        result.append(type(exc).__name__)
"""

    result = far.run(script, outside=str(tmp_path / "outside.txt"))

    assert result == ["FileNotFoundError"] * 4 + ["IsADirectoryError"]
    assert far.asked == ["stocked", "stocked/"]


def test_a_module_outside_of_packages_has_no_data(far: FarEnd, here: Path) -> None:
    write(here, {"lonely.py": "", "beside.txt": "beside"})

    with pytest.raises(RaisedThere, match="OSError: no such file was sent"):
        far.run("import lonely, pkgutil; pkgutil.get_data('lonely', 'beside.txt')")


def test_importlib_resources_reads_files(far: FarEnd, here: Path) -> None:
    needs(far, 3, 7)
    write(here, TREE)
    script = """
import warnings
warnings.simplefilter("ignore")
import importlib.resources as r
result = [r.read_text("stocked", "top.txt", encoding="utf-8"), r.read_binary("stocked.sub", "inner.txt"),
          r.open_binary("stocked", "top.txt").read(3), r.is_resource("stocked", "top.txt"),
          r.is_resource("stocked", "deep"), sorted(r.contents("stocked"))]
with r.path("stocked", "top.txt") as path:
    result.append(path.read_text("utf-8"))
result.append(path.exists() and sys.version_info >= (3, 9))  # older ones take a file that happens to be there
"""

    result = far.run(script)

    contents = ["__init__.py", "deep", "mod.py", "sub", "top.txt"]
    assert result == ["top süß\n", b"inner", b"top", True, False, contents, "top süß\n", False]


def test_importlib_resources_walks_whole_trees(far: FarEnd, here: Path) -> None:
    needs(far, 3, 9)
    write(here, TREE)
    script = """
import importlib.resources as r
root = r.files("stocked")
def walk(node, depth=0):
    for entry in node.iterdir():
        result.append((depth, entry.name, entry.is_dir(), entry.is_file()))
        if entry.is_dir():
            walk(entry, depth + 1)
result = []
walk(root)
result = [sorted(result), (root / "deep" / "down" / "leaf.bin").read_bytes(),
          root.joinpath("deep/down", "leaf.bin").open("rb").read(), root.joinpath("top.txt").read_text("utf-8"),
          root.joinpath("nothing").is_file(), root.joinpath("nothing").is_dir(), root.joinpath("mod.py").is_file(),
          root.name, str(root / "top.txt")]
with r.as_file(root / "top.txt") as path:
    result += [path.read_text("utf-8"), path.suffix]
"""

    result = far.run(script)

    assert result == [
        [
            *((0, "__init__.py", False, True), (0, "deep", True, False), (0, "mod.py", False, True)),
            *((0, "sub", True, False), (0, "top.txt", False, True), (1, "__init__.py", False, True)),
            *((1, "down", True, False), (1, "inner.txt", False, True), (2, "leaf.bin", False, True)),
        ],
        *(b"\0\1\2", b"\0\1\2", "top süß\n", False, False, True, "stocked"),
        *(str(here / "stocked/top.txt"), "top süß\n", ".txt"),
    ]


def test_whole_trees_become_real_folders(far: FarEnd, here: Path) -> None:
    needs(far, 3, 12)
    write(here, TREE)
    script = """
import importlib.resources as r
with r.as_file(r.files("stocked") / "deep") as path:
    result = [sorted(p.name for p in path.rglob("*")), (path / "down" / "leaf.bin").read_bytes()]
result.append(path.exists())
"""

    assert far.run(script) == [["down", "leaf.bin"], b"\0\1\2", False]


def test_namespace_packages_of_several_portions_are_joined(
    far: FarEnd, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root, portion in ((tmp_path / "one", "one"), (tmp_path / "two", "two"), (there, "three")):
        write(root, {f"spaced/{portion}.txt": portion, f"spaced/{portion}_mod.py": f"V = {portion!r}\n"})
        if root != there:
            monkeypatch.syspath_prepend(root)

    result = far.run("from spaced import one_mod, two_mod, three_mod; result = one_mod.V, two_mod.V, three_mod.V")

    assert result == ("one", "two", "three")
    assert far.asked == ["spaced", "spaced.one_mod", "spaced.two_mod"]
    if far.version >= (3, 9):
        script = "import importlib.resources as r; result = sorted(e.name for e in r.files('spaced').iterdir())"
        assert far.run(script) == ["one.txt", "one_mod.py", "two.txt", "two_mod.py"]


def test_a_zip_file_has_data(far: FarEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, content in TREE.items():
            archive.writestr(name.replace("stocked", "zipped_up"), content)
    monkeypatch.syspath_prepend(tmp_path / "z.zip")

    result = far.run(
        "import pkgutil, zipped_up.sub\n"
        "result = [pkgutil.get_data('zipped_up', 'deep/down/leaf.bin'), pkgutil.get_data('zipped_up.sub', 'inner.txt'),"
        " sorted((m.name, m.ispkg) for m in pkgutil.iter_modules(zipped_up.__path__))]"
    )

    assert result == [b"\0\1\2", b"inner", [("mod", False), ("sub", True)]]


def test_large_files_are_sent_when_they_are_read(far: FarEnd, here: Path) -> None:
    write(here, {"heavy/__init__.py": "", "heavy/big.bin": os.urandom(600_000), "heavy/small.txt": "small"})

    result = far.run(
        "import heavy\nfrom pkgutil import get_data as get\n"
        "result = get('heavy', 'small.txt'), len(get('heavy', 'big.bin'))"
    )

    assert result == (b"small", 600_000)
    assert far.asked == ["heavy", "heavy/", "heavy/big.bin"]


def test_a_policy_keeps_files_here(python: str, here: Path) -> None:
    write(here, {**TREE, "stocked/.hidden": "h", "stocked/server.key": "k", "stocked/secrets.ini": "s"})
    server = ModuleServer(ModulePolicy(deny=("stocked.sub",)), ModuleLibrary())

    with far_end(python, server=server) as far:
        script = """
import pkgutil, stocked
result = []
for name in ("top.txt", "sub/inner.txt", ".hidden", "server.key", "secrets.ini"):
    try:
        result.append(pkgutil.get_data("stocked", name).decode("utf-8"))
    except FileNotFoundError:
        result.append(None)
"""
        assert far.run(script) == ["top süß\n", None, None, None, None]


def test_symlinks_out_of_a_package_are_not_followed(far: FarEnd, here: Path, tmp_path: Path) -> None:
    write(here, TREE)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_text("outside")
    (here / "stocked/link.txt").symlink_to(tmp_path / "outside/secret.txt")
    (here / "stocked/folder").symlink_to(tmp_path / "outside")
    (here / "stocked/inside.txt").symlink_to(here / "stocked/top.txt")
    script = """
import pkgutil, stocked
result = []
for name in ("link.txt", "folder/secret.txt", "inside.txt"):
    try:
        result.append(pkgutil.get_data("stocked", name).decode("utf-8"))
    except FileNotFoundError:
        result.append(None)
"""

    assert far.run(script) == [None, None, "top süß\n"]


# ---- what is in a package


def test_pkgutil_lists_what_is_in_a_package(far: FarEnd, here: Path) -> None:
    write(here, TREE)
    script = """
import pkgutil, stocked
result = [sorted((m.name, m.ispkg) for m in pkgutil.iter_modules(stocked.__path__, "stocked.")),
          sorted(m.name for m in pkgutil.walk_packages(stocked.__path__, "stocked."))]
"""

    result = far.run(script)

    assert result == [[("stocked.mod", False), ("stocked.sub", True)], ["stocked.mod", "stocked.sub"]]


def test_attributes_of_modules_are_those_they_have_here(far: FarEnd, here: Path) -> None:
    write(here, TREE)
    script = """
import stocked.sub, stocked.mod
result = [(m.__name__, m.__file__, m.__package__, getattr(m, "__path__", None), m.__spec__.name, m.__spec__.origin,
           m.__spec__.parent, m.__spec__.has_location) for m in (stocked, stocked.sub, stocked.mod)]
"""

    result = far.run(script)

    root = str(here / "stocked")
    file, sub, mod = f"{root}/__init__.py", f"{root}/sub/__init__.py", f"{root}/mod.py"
    assert result == [
        ("stocked", file, "stocked", [root], "stocked", file, "stocked", True),
        ("stocked.sub", sub, "stocked.sub", [f"{root}/sub"], "stocked.sub", sub, "stocked.sub", True),
        ("stocked.mod", mod, "stocked", None, "stocked.mod", mod, "stocked", True),
    ]


# ---- metadata


def metadata_for(folder: Path, name: str, version: str, **files: str) -> None:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    write(folder, {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nLong text.\n"})
    write(folder, {f"{info}/{file.replace('__', '.')}": text for file, text in files.items()})


def test_metadata_tells_versions_and_entry_points(far: FarEnd, here: Path) -> None:
    needs(far, 3, 8)
    write(here, {"plugged.py": "def main(): return 'plugged'\n"})
    metadata_for(
        here, "Plugged-In", "1.2.3", top_level__txt="plugged\n", entry_points__txt="[plugs]\none = plugged:main\n"
    )
    script = """
import importlib.metadata as m
points = m.entry_points()
points = points.select(group="plugs") if hasattr(points, "select") else points["plugs"]
result = [m.version("plugged-in"), m.metadata("Plugged_In")["Name"], [point.load()() for point in points],
          m.distribution("plugged-in").files]
try:
    m.version("no-such-distribution")
except m.PackageNotFoundError as exc:
    result.append(str(exc.args[0]))
"""

    result = far.run(script)

    assert result == ["1.2.3", "Plugged-In", ["plugged"], None, "no-such-distribution"]


def test_metadata_is_of_the_copy_that_counts(far: FarEnd, here: Path, there: Path) -> None:
    needs(far, 3, 8)
    for folder, version in ((here, "1.0"), (there, "2.0")):
        write(folder, {"pure_thing.py": "", "mixed_thing/__init__.py": "", "mixed_thing/x.so": ""})
        metadata_for(folder, "pure-thing", version, top_level__txt="pure_thing\n")
        metadata_for(folder, "mixed-thing", version, top_level__txt="mixed_thing\n")
    metadata_for(there, "only-there", "3.0")

    result = far.run(
        "import importlib.metadata as m; result = [m.version(n) for n in ('pure-thing', 'mixed-thing', 'only-there')]"
    )

    assert result == ["1.0", "2.0", "3.0"]
