"""The far end's importer, in every Python that is found, against the controller's real answers."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from trickle._async_support import oldest_python
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


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_a_module_is_asked_for_when_it_is_imported(far: FarEnd, here: Path) -> None:
    write(here, {"forward_plain.py": "VALUE = 42\n"})

    result = far.run("import forward_plain as m; result = m.VALUE, m.__file__, m.__package__")

    assert result == (42, str(here / "forward_plain.py"), "")
    assert far.asked == ["forward_plain"]


def test_an_answer_brings_what_the_module_imports(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "forward_pkg/__init__.py": "from .api import answer\n",
            "forward_pkg/api.py": "import forward_other\nfrom . import deep\ndef answer(): return deep.VALUE",
            "forward_pkg/deep/__init__.py": "from .down import VALUE\n",
            "forward_pkg/deep/down.py": "VALUE = 'down'\n",
            "forward_other.py": "",
        },
    )

    result = far.run("import forward_pkg; result = forward_pkg.answer(), forward_pkg.deep.__package__")

    assert result == ("down", "forward_pkg.deep")
    assert far.asked == ["forward_pkg"]


def test_a_bundle_sent_beforehand_saves_all_questions(far: FarEnd, here: Path) -> None:
    write(
        here,
        {
            "bundled.py": "import json\nimport msvcrt_or_not\n"
            "try:\n    import bundled_speedups\nexcept ImportError: pass\n",
            "msvcrt_or_not.py": "try:\n    import msvcrt\nexcept ImportError:\n    msvcrt = None\n",
        },
    )

    far.send_modules(["bundled"])
    far.run("import bundled")

    assert far.asked == []


def test_namespace_packages_are_forwarded(far: FarEnd, here: Path) -> None:
    write(here, {"forward_space/inner/leaf.py": "VALUE = __name__\n"})

    result = far.run("from forward_space.inner import leaf; result = leaf.VALUE, list(leaf.__spec__.parent)")

    assert result[0] == "forward_space.inner.leaf"


def test_the_far_standard_library_wins(far: FarEnd, here: Path) -> None:
    write(here, {"colorsys.py": "raise AssertionError('from the controller')\n"})

    result = far.run("import colorsys; result = hasattr(colorsys, 'rgb_to_hsv')")

    assert result is True
    assert far.asked == []


def test_a_part_of_the_standard_library_that_is_missing_is_simply_not_found(far: FarEnd, there: Path) -> None:
    script = """
importer._library_path[:] = []
importer._in_library.clear()
sys.path[:] = [there]
sys.path_importer_cache.clear()
sys.modules.pop("queue", None)
try:
    import queue
except ModuleNotFoundError as exc:
    result = str(exc)
"""

    result = far.run(script, there=str(there))

    assert result == "No module named 'queue'"


def test_what_the_controller_lacks_comes_from_the_far_end(far: FarEnd, there: Path) -> None:
    write(there, {"only_there/__init__.py": "", "only_there/sub.py": "VALUE = 'far'\n"})

    result = far.run("import only_there.sub; result = only_there.sub.VALUE")

    assert result == "far"
    assert far.asked == ["only_there"]


def test_the_controllers_copy_wins_whole(far: FarEnd, here: Path, there: Path) -> None:
    write(here, {"both/__init__.py": "WHERE = 'here'\n"})
    write(there, {"both/__init__.py": "WHERE = 'there'\n", "both/only_there.py": ""})

    result = far.run("import both; result = both.WHERE")

    assert result == "here"
    with pytest.raises(RaisedThere, match=r"ModuleNotFoundError: No module named 'both\.only_there'"):
        far.run("import both.only_there")


def test_a_package_with_an_extension_module_is_the_far_ends(far: FarEnd, here: Path, there: Path) -> None:
    write(
        here,
        {"compiled/__init__.py": "WHERE = 'here'\n", "compiled/_speedups.abi3.so": "", "compiled/only_here.py": ""},
    )
    write(there, {"compiled/__init__.py": "WHERE = 'there'\n"})

    assert far.run("import compiled; result = compiled.WHERE") == "there"
    with pytest.raises(RaisedThere, match="No module named 'compiled.only_here'"):
        far.run("import compiled.only_here")
    assert far.asked == ["compiled"]


def test_a_policy_keeps_modules_here(python: str, here: Path) -> None:
    write(here, {"open_module.py": "", "secret_module.py": ""})
    server = ModuleServer(ModulePolicy(deny=("secret_*",)), ModuleLibrary())

    with far_end(python, server=server) as far:
        far.run("import open_module")

        with pytest.raises(RaisedThere, match="No module named 'secret_module'"):
            far.run("import secret_module")


def test_names_that_are_no_module_names_are_not_asked_for(far: FarEnd) -> None:
    script = """
import importlib
for name in ("no-such", "a" * 300, "trickle.nothing"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
result = importer.find_spec("sitecustomize")
"""

    result = far.run(script)

    assert result is None
    assert far.asked == []


def test_tracebacks_show_the_lines_of_forwarded_modules(far: FarEnd, here: Path) -> None:
    write(here, {"forward_failing.py": "def fail():\n    return 1 / 0  # the culprit\n"})

    far.run("import forward_failing")
    (here / "forward_failing.py").unlink()
    with pytest.raises(RaisedThere) as caught:
        far.run("forward_failing = sys.modules['forward_failing']; forward_failing.fail()")

    assert "return 1 / 0  # the culprit" in caught.value.traceback
    assert f'File "{here / "forward_failing.py"}", line 2, in fail' in caught.value.traceback


def test_tracebacks_never_show_another_file_of_the_same_name(far: FarEnd, here: Path) -> None:
    write(here, {"forward_shadowed.py": "def fail():\n    return 1 / 0  # sent\n"})

    far.send_modules(["forward_shadowed"])
    (here / "forward_shadowed.py").write_text("def fail():\n    return 2 / 0  # not sent\n")
    with pytest.raises(RaisedThere) as caught:
        far.run("import forward_shadowed; forward_shadowed.fail()")

    assert "# sent" in caught.value.traceback
    assert "# not sent" not in caught.value.traceback


def test_tracebacks_have_no_frames_of_the_loader(far: FarEnd, here: Path) -> None:
    write(here, {"forward_broken.py": "raise ValueError('at import')\n"})

    with pytest.raises(RaisedThere) as caught:
        far.run("import forward_broken")

    assert caught.value.type_name == "ValueError"
    frames = [line.split('"')[1] for line in caught.value.traceback.splitlines() if line.startswith("  File")]
    assert frames[-2:] == ["<test>", str(here / "forward_broken.py")]


def test_inspect_finds_forwarded_source(far: FarEnd, here: Path) -> None:
    write(here, {"forward_inspected.py": "\n\ndef f():\n    return 'inspected'\n"})

    far.send_modules(["forward_inspected"])
    (here / "forward_inspected.py").unlink()
    result = far.run("import inspect, forward_inspected as m; result = inspect.getsource(m.f)")

    assert result == "def f():\n    return 'inspected'\n"


def test_code_too_new_is_a_syntax_error_that_names_the_python(far: FarEnd, here: Path) -> None:
    write(here, {"forward_newer.py": "this is no Python of any version\n"})

    with pytest.raises(RaisedThere) as caught:
        far.run("import forward_newer")

    version = ".".join(map(str, far.version))
    assert caught.value.type_name == "SyntaxError"
    assert f"this host has Python {version}" in caught.value.message


def test_eight_threads_may_import_at_once(far: FarEnd, here: Path) -> None:
    names = [f"threaded_{number}" for number in range(8)]
    circle = dict(zip(names, [*names[1:], names[0]], strict=True))
    write(
        here,
        {
            f"{name}.py": f"def value():\n    import {following}\n    return {following}.__name__\n"
            for name, following in circle.items()
        },
    )
    script = """
import importlib
results, barrier = {}, threading.Barrier(len(names))
def work(name):
    barrier.wait()
    results[name] = importlib.import_module(name).value(), importlib.import_module("threaded_0").__name__
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
result = results
"""

    result = far.run(script, names=names)

    assert result == {name: (following, "threaded_0") for name, following in circle.items()}


def test_an_exception_while_waiting_leaves_the_importer_usable(far: FarEnd, here: Path) -> None:
    write(here, {"forward_interrupted.py": "VALUE = 1\n"})
    script = """
class Stop(BaseException):
    pass
def interrupted(name):
    raise Stop
fetch, importer._fetch = importer._fetch, interrupted
try:
    import forward_interrupted
except Stop:
    pass
importer._fetch = fetch
import forward_interrupted
result = forward_interrupted.VALUE
"""

    assert far.run(script) == 1


def test_a_lost_link_is_an_os_error(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far.server, "answer", lambda name: None)

    with pytest.raises(RaisedThere, match="OSError: the link is gone"):
        far.run("import anything_at_all")


def test_trio_runs_from_forwarded_source_where_it_can_and_else_says_what_it_lacks(far: FarEnd) -> None:
    script = "import trio\nasync def f():\n    await trio.sleep(0)\n    return 7\nresult = trio.run(f)"

    far.send_modules(["trio"])
    if far.version >= (3, 11) or (far.version >= oldest_python() and find_spec("exceptiongroup")):
        assert far.run(script) == 7
    elif far.version >= oldest_python():
        with pytest.raises(RaisedThere, match="ModuleNotFoundError: No module named 'exceptiongroup'"):
            far.run(script)
    else:
        with pytest.raises(RaisedThere):  # whatever its code stumbles over: it says that it does not support this one
            far.run(script)

    assert far.asked == []
