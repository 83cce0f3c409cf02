"""What hosts are sent of this program's code, and what they are not, whatever they ask."""

import logging
import pickle
import sys
import tracemalloc
import zlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import trio

import trickle
from tests import work
from tests.bytecode import write_with_bytecode
from tests.hosts import local
from tests.pythons import far_pythons, version_of
from tests.requirements import require
from trickle import _modules
from trickle._link import Link
from trickle._module_policy import ModulePolicy
from trickle._module_server import MAX_KEY, ModuleServer
from trickle._modules import LIBRARY, ModuleLibrary


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that this program imports from, and forgets afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def answered(server: ModuleServer, key: str) -> dict[str, tuple[str, str]]:
    """What the answer says of each name: its kind, and the content or the reason."""
    bundle = server.answer(key)
    return {
        name: (kind, zlib.decompress(source).decode("utf-8", "replace") if source else reason)
        for name, kind, reason, source, _ in pickle.loads(bundle or pickle.dumps([]))
        if not name.startswith("trickle.")
    }


# ---- policies


@pytest.mark.parametrize(
    ("policy", "permitted", "refused"),
    [
        (
            ModulePolicy(),
            ["a", "a.b", "a/x.txt"],
            ["a/.env", "a/b/.git/config", "a/server.key", "a/secrets.ini", "a.secrets"],
        ),
        (ModulePolicy(allow=("*", "a.secrets")), ["a.secrets"], ["b.secrets"]),
        (ModulePolicy(allow=("*", "a/server.key")), ["a/server.key"], ["a/other.key"]),
        (ModulePolicy(private=()), ["a.secrets", "a/.env"], []),
        (ModulePolicy(allow=("a",)), ["a", "a.b", "a/x.txt", "a/b/x.txt"], ["b", "b/x.txt", "ab"]),
        (ModulePolicy(allow=("a.b",)), ["a", "a.b", "a.b/x.txt", "a/b/x.txt"], ["a.c", "a/x.txt", "a/c/x.txt"]),
        (ModulePolicy(deny=("a.b",)), ["a", "a/x.txt", "a.c"], ["a.b", "a.b.c", "a.b/x.txt", "a/b/x.txt"]),
        (ModulePolicy(deny=("*.sql",)), ["a/x.txt"], ["a/x.sql", "a/b/y.sql"]),
    ],
)
def test_policies_speak_of_modules_and_files(policy: ModulePolicy, permitted: list[str], refused: list[str]) -> None:
    names = permitted + refused

    assert [name for name in names if policy.permits(name, installed=False)] == permitted


def test_what_looks_private_is_sent_of_installed_packages() -> None:
    assert ModulePolicy().permits("botocore.credentials", installed=True)
    assert not ModulePolicy().permits("mine.credentials", installed=False)


def test_a_policy_that_is_no_tuple_of_patterns_is_refused() -> None:
    with pytest.raises(TypeError, match="it is a tuple of patterns"):
        ModulePolicy(allow="mypackage")  # type: ignore[arg-type]


# ---- what a hostile agent may ask


def test_names_that_lead_elsewhere_get_nothing(here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(here, {"innocent/__init__.py": "", "innocent/data.txt": "data", "outside.txt": "outside"})
    (here / "innocent/link.txt").symlink_to(here / "outside.txt")
    (here / "innocent/root").symlink_to("/")
    server = ModuleServer(library=ModuleLibrary(), host="mallory")
    asked = [
        *("../../etc/passwd", "/etc/passwd", "..", ".", "innocent/../outside.txt", "innocent//etc/passwd"),
        *("innocent/link.txt", "innocent/root/etc/passwd", "innocent/./data.txt", "innocent/data.txt/", "\0", "a\nb"),
        *("innocent/\0", "innocent!/data.txt", "@../../etc", "@", "etc/passwd", "os/os.py", "json/"),
    ]

    with caplog.at_level(logging.WARNING, "trickle"):
        answers = {key: answered(server, key) for key in asked}

    for key in set(asked) - {"@", "json/"}:
        assert {kind for kind, _ in answers[key].values()} <= {"missing"}, key
    assert answers["json/"] == {"json/": ("listing", "")}
    assert all("root:" not in content for answer in answers.values() for _, content in answer.values())
    assert "mallory: asked for '../../etc/passwd', which no agent of ours does: refused" in caplog.text
    assert answered(server, "innocent/data.txt") == {"innocent/data.txt": ("data", "data")}


def test_the_main_script_is_not_sent_unless_something_imports_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here, {"the_script.py": "PASSWORD = 'x'\n", "imports_it.py": "import the_script\n"})
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(here / "the_script.py"), raising=False)
    server = ModuleServer(library=ModuleLibrary())

    assert answered(server, "the_script")["the_script"][0] == "missing"
    assert answered(server, "__main__") == {"__main__": ("missing", "")}
    server = ModuleServer(library=ModuleLibrary())
    assert answered(server, "imports_it")["the_script"] == ("module", "PASSWORD = 'x'\n")


def test_names_that_no_agent_of_ours_asks_for_are_an_error() -> None:
    server = ModuleServer(library=ModuleLibrary())

    for key in ("a" * 256, "a" * 256 + "/x", "a/" + "b" * MAX_KEY):
        with pytest.raises(ValueError, match="characters"):
            server.answer(key)


def test_what_hosts_ask_in_vain_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "MAX_REFUSALS", 200)
    library = ModuleLibrary()
    for host in range(5):
        server = ModuleServer(library=library)
        for number in range(100):
            server.answer(f"nowhere_{host}_{number}")

    assert len(library._refusals) + len(library._specs) + len(library._closures) <= 210


async def test_a_host_that_asks_for_too_much_is_closed_and_no_other(here: Path) -> None:
    async with trickle.open_group([local("mallory"), local("alice")]) as group:
        with pytest.raises(trickle.ProtocolError, match="mallory: .*module"):
            await group["mallory"].call(work.ask_for_modules, 100_000)
        assert await group["alice"].call(abs, -1) == 1


async def test_what_was_served_to_whom_is_logged(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        here, {"logged.py": "def f(): return 1\n", "secrets_of_mine/__init__.py": "", "secrets_of_mine/secrets.py": ""}
    )
    import logged  # type: ignore[import-not-found]

    with caplog.at_level(logging.DEBUG, "trickle"):
        async with trickle.open_host(local("web1")) as host:
            await host.call(logged.f)
            with pytest.raises(ModuleNotFoundError, match="looks private"):
                await host.call(work.import_by_name, "secrets_of_mine.secrets")

    messages = [record.getMessage() for record in caplog.records]
    assert any(m.startswith("web1: sent ") and m.endswith(" bytes, for a call: logged") for m in messages)
    assert any(m.startswith("web1: secrets_of_mine.secrets is not sent: it looks private") for m in messages)


# ---- one round trip


async def test_ones_own_package_leaves_with_the_call_and_nothing_is_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        here, {"three/__init__.py": "", "three/entry.py": "from three.middle import twice\ndef f(): return twice(21)\n"}
    )
    write(here, {"three/middle.py": "from . import leaf\ndef twice(n): return leaf.add(n, n)\n"})
    write(
        here,
        {"three/leaf.py": "try:\n    from ._quick import add\nexcept ImportError:\n    def add(a, b): return a + b\n"},
    )
    from three import entry  # type: ignore[import-not-found]

    asked: list[bytes] = []
    monkeypatch.setattr(Link, "_take_question", lambda link, name: asked.append(name))
    async with trickle.open_host(local(), wait=False) as host:
        assert await host.call(entry.f) == 42

    assert asked == []


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("tunnel", "how"),
    [
        (trickle.Local(python=sys.executable), "code"),
        (trickle.Command(("env",), name="web1", python=sys.executable), "source"),
    ],
    ids=["local", "elsewhere"],
)
async def test_a_host_on_this_machine_gets_compiled_what_is_compiled(
    here: Path, tunnel: trickle.abc.Tunnel, how: str, wait: bool
) -> None:
    write_with_bytecode(here / "compiled_here.py", "HOW = 'source'\n", "HOW = 'code'\n")

    async with trickle.open_host(tunnel, wait=wait) as host:
        assert await host.call(work.value_in, "compiled_here", "HOW") == how


async def test_a_host_on_this_machine_whose_python_is_another_gets_source(here: Path) -> None:
    write_with_bytecode(here / "compiled_here.py", "HOW = 'source'\n", "HOW = 'code'\n")
    others = [python for python in far_pythons() if (version_of(python) or ())[:2] != sys.version_info[:2]]
    if not others:
        require("pythons", "there is no other Python")

    async with trickle.open_host(trickle.Local(python=others[0])) as host:
        assert await host.call(work.value_in, "compiled_here", "HOW") == "source"


async def test_a_missing_extension_module_is_named_with_its_host(here: Path) -> None:
    write(
        here, {"hungry/__init__.py": "from . import _core\ndef f(): pass\n", f"hungry/_core{EXTENSION_SUFFIXES[0]}": ""}
    )

    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(ImportError) as caught:
            await host.call(work.import_by_name, "hungry")

    file = f"_core{EXTENSION_SUFFIXES[0]}"
    assert f"(on web1: hungry._core is an extension module ({file}), which cannot be sent)" in str(caught.value)


# ---- many hosts


async def test_two_hundred_hosts_cost_one_packing(here: Path) -> None:
    write(here, {f"packed_{n}.py": f"import packed_{n + 1}\nX = {'x' * 500!r}\n" for n in range(100)})
    write(here, {"packed_100.py": ""})
    library = ModuleLibrary()
    servers = [ModuleServer(library=library, host=f"web{n}") for n in range(200)]
    bundles: list[bytes | None] = []

    async def serve(server: ModuleServer) -> None:
        bundles.append(await trio.to_thread.run_sync(server.bundle_for, ["packed_0"]))

    tracemalloc.start()
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(serve, server)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert library.times_packed == 1
    assert len({id(bundle) for bundle in bundles}) == 1
    (bundle,) = set(bundles)
    assert bundle is not None
    assert peak < 20 * len(bundle) + 200 * 64 * 1024  # not a copy for each


async def test_a_group_packs_once_what_all_its_hosts_need(here: Path) -> None:
    write(here, {"for_all.py": "import for_all_too\ndef f(): return for_all_too.X\n", "for_all_too.py": "X = 5\n"})
    import for_all  # type: ignore[import-not-found]

    before = LIBRARY.times_packed
    async with trickle.open_group([local(f"web{n}") for n in range(5)]) as group:
        results = await group.call(for_all.f)

    assert results.unwrap() == {f"web{n}": 5 for n in range(5)}
    assert LIBRARY.times_packed == before + 1
