"""What tunnels are made from: which fields are positional, their defaults, and what is refused, and when."""

import dataclasses
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import trio

import trickle
from tests import fake_ssh, work
from trickle.abc import Tunnel

PYTHON = sys.executable
COMMON = {"name": None, "python": None, "python_version": None, "trust": "data", "via": None}
FIELDS: dict[type[Tunnel], dict[str, Any]] = {
    trickle.Local: {"name": "localhost"},
    trickle.SSH: {"host": ..., "user": None, "port": None, "ssh_options": ()},
    trickle.Sudo: {"user": "root", "password": None},
    trickle.Command: {"argv": ..., "shell": False},
    trickle.Docker: {
        "name": ..., "image": ..., "engine": "docker", "rm": True, "user": None, "run_options": (), "env": ()
    },
    trickle.DockerExec: {"container": ..., "engine": "docker", "user": None, "env": ()},
}  # fmt: skip
LEAST: dict[type[Tunnel], Tunnel] = {
    trickle.Local: trickle.Local(),
    trickle.SSH: trickle.SSH("web1"),
    trickle.Sudo: trickle.Sudo(),
    trickle.Command: trickle.Command(["env"]),
    trickle.Docker: trickle.Docker("py", image="python:3.12"),
    trickle.DockerExec: trickle.DockerExec("db"),
}
KINDS = pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)


@KINDS
def test_the_first_field_is_positional_and_the_rest_are_keywords(kind: type[Tunnel]) -> None:
    parameters = inspect.signature(kind).parameters
    first, *others = FIELDS[kind]

    assert set(parameters) == {*COMMON, *FIELDS[kind]}
    positional = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == [first]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in others)


@KINDS
def test_fields_have_the_documented_defaults(kind: type[Tunnel]) -> None:
    expected = {**COMMON, **FIELDS[kind]}

    parameters = inspect.signature(kind).parameters

    found = {name: ... if each.default is each.empty else each.default for name, each in parameters.items()}
    assert found == expected


@KINDS
def test_every_tunnel_takes_what_all_tunnels_take(kind: type[Tunnel]) -> None:
    changes: dict[str, Any] = {"name": "n", "python": "/p", "python_version": (3, 6), "trust": "full"}
    if kind is not trickle.Local:
        changes["via"] = trickle.SSH("bastion")

    tunnel = dataclasses.replace(LEAST[kind], **changes)

    assert {name: getattr(tunnel, name) for name in changes} == changes


@KINDS
def test_a_subclass_of_each_may_add_fields(kind: type[Tunnel]) -> None:
    added = dataclasses.make_dataclass("Added", [("more", int, dataclasses.field(default=0, kw_only=True))],
                                       bases=(kind,), frozen=True)  # fmt: skip
    fields = {name: getattr(LEAST[kind], name) for name, default in FIELDS[kind].items() if default is ...}

    assert added(**fields, more=1) == added(**fields, more=1) != added(**fields)


def test_names_say_where_it_goes() -> None:
    assert trickle.Docker("py", image="python:3.12").name == "py"
    assert trickle.DockerExec("db").name == "db"
    assert trickle.Sudo().name == "sudo:localhost"
    assert trickle.Sudo(via=trickle.Local()).name == "sudo:localhost"
    assert trickle.Sudo("postgres").name == "sudo:postgres@localhost"
    assert trickle.Sudo(via=trickle.SSH("db1", user="me")).name == "sudo:me@db1"
    assert trickle.Sudo("postgres", via=trickle.SSH("db1")).name == "sudo:postgres@db1"
    assert trickle.Sudo(via=trickle.Sudo("postgres", via=trickle.SSH("db1"))).name == "sudo:sudo:postgres@db1"


def test_sequences_and_mappings_become_tuples() -> None:
    command = trickle.Command(["nsenter", PurePosixPath("/proc/1")])  # type: ignore[list-item]
    docker = trickle.Docker("py", image="i", run_options=["--network", "none"], env={"A": "1"})  # type: ignore[arg-type]

    assert command.argv == ("nsenter", "/proc/1")
    assert (docker.run_options, docker.env) == (("--network", "none"), (("A", "1"),))
    assert trickle.DockerExec("db", env=[("A", "1")]).env == (("A", "1"),)
    assert trickle.SSH("web1", ssh_options=["-v"]).ssh_options == ("-v",)  # type: ignore[arg-type]


NO_WORD = ("", "a b", "-x", "$x", "a;b", "a\nb", 5, b"a")
NO_WORDS = ("a b", b"a", None, 5, (5,), ("a\0b",))
NO_ENVIRONMENT = ("A=b", ["A=b"], [("A",)], 5, {"": "x"}, {"A=B": "x"}, {"A": 5}, {"A": None}, {"A": "\0"})
REFUSED: list[tuple[Iterable[type[Tunnel]], str, Iterable[Any]]] = [
    (FIELDS, "name", ("", "a\nb", 5, "\x1b[2J")),
    (FIELDS, "python", NO_WORD),
    (FIELDS, "python_version", ("3.11", (3,), (3, 11, 2), (3.0, 11), [3, 11], (2, 7), (3, 5))),
    (FIELDS, "trust", ("some", None, True)),
    (FIELDS, "via", ("bastion", trickle.SSH)),
    ([trickle.SSH], "host", (*NO_WORD, None, "-oProxyCommand=x", "$(id)", "a'b", "a\\b", "a!b")),
    ([trickle.SSH], "port", (0, -1, 65536, "22", 22.0, True)),
    ([trickle.SSH], "ssh_options", NO_WORDS),
    ([trickle.SSH, trickle.Docker, trickle.DockerExec, trickle.Sudo], "user", NO_WORD),
    ([trickle.Sudo], "user", (None, "#0")),
    ([trickle.Sudo], "password", ("", "a\nb", "a\rb", "a\0b", 5, b"x", "\ud800")),
    ([trickle.Command], "argv", NO_WORDS),
    ([trickle.Docker], "image", (*NO_WORD, None)),
    ([trickle.Docker], "run_options", NO_WORDS),
    ([trickle.DockerExec], "container", (*NO_WORD, None)),
    ([trickle.Docker, trickle.DockerExec], "engine", (*NO_WORD, None)),
    ([trickle.Docker, trickle.DockerExec], "env", NO_ENVIRONMENT),
]


@pytest.mark.parametrize(("kinds", "field", "values"), REFUSED, ids=[field for _, field, _ in REFUSED])
def test_what_cannot_be_is_refused_when_it_is_made(
    kinds: Iterable[type[Tunnel]], field: str, values: Iterable[Any]
) -> None:
    for kind, value in itertools.product(kinds, values):
        with pytest.raises(ValueError, match=f"^{field}\\b"):
            raise AssertionError(f"this is taken: {dataclasses.replace(LEAST[kind], **{field: value})!r}")


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="reached through nothing"):
        trickle.Local(via=trickle.SSH("b"))
    with pytest.raises(ValueError, match="empty prefix"):
        trickle.Command([])
    with pytest.raises(ValueError, match="ssh_options word 'X=\\$HOME'"):
        trickle.SSH("a", ssh_options=("-o", "X=$HOME"), via=trickle.SSH("b"))


@pytest.mark.parametrize("secret", ["hunter2\n", "hunter2\ud800"])
def test_a_password_that_is_refused_is_not_shown(secret: str) -> None:
    with pytest.raises(ValueError) as caught:
        trickle.Sudo(password=secret)

    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


UNQUOTABLE = [
    trickle.Command(["a!b"], via=trickle.SSH("bastion")),
    trickle.Sudo(via=trickle.Command(["a\\b"], via=trickle.Sudo(via=trickle.SSH("bastion")))),
    trickle.Docker("py", image="i", env={"A": "b\nc"}, via=trickle.SSH("bastion")),
    trickle.DockerExec("py", env={"A": "\ud800"}),
]


@pytest.mark.parametrize("tunnel", UNQUOTABLE, ids=lambda tunnel: tunnel.name)
async def test_what_cannot_be_nested_is_refused_by_open_host(tunnel: Tunnel) -> None:
    with pytest.raises(ValueError, match=r"cannot be passed|a tuple of words"):
        async with trickle.open_host(tunnel, wait=False):
            raise AssertionError


@pytest.mark.parametrize("tunnel", UNQUOTABLE, ids=lambda tunnel: tunnel.name)
async def test_what_cannot_be_nested_is_refused_by_open_group(tunnel: Tunnel) -> None:
    with pytest.raises(ValueError, match=r"cannot be passed|a tuple of words"):
        async with trickle.open_group([tunnel]):
            raise AssertionError


@dataclasses.dataclass(frozen=True)
class Careless(Tunnel):
    words: Any

    def __post_init__(self) -> None:
        if self.words is not None:
            super().__post_init__()

    def wrap(self, argv: object) -> Any:
        return self.words


@pytest.mark.parametrize("words", [None, ["env"], (), ("env", 5), ("a\0b",), "env"])
async def test_a_tunnel_of_ones_own_that_gives_no_words_is_refused_by_open_host(words: object) -> None:
    with pytest.raises(ValueError, match=r"a tuple of words|super\(\).__post_init__"):
        async with trickle.open_host(Careless(words)):
            raise AssertionError


async def test_what_is_neither_a_tunnel_nor_a_name_is_a_type_error() -> None:
    for wrong in (None, 5, trickle.Local, math.inf):
        with pytest.raises(TypeError, match="neither a tunnel nor a host name"):
            async with trickle.open_host(wrong):  # type: ignore[arg-type]
                raise AssertionError


# ---- what python_version= and trust= do, behind any kind of tunnel


def kinds(directory: Path) -> list[Tunnel]:
    """Tunnels of several kinds to this machine; ssh is a stand-in."""
    fake_ssh.install(directory)
    inner = trickle.Command(["env"], python=PYTHON, trust="full", python_version=(3, 6))
    return [
        trickle.Local(python=PYTHON),
        trickle.Command(["env"], python=PYTHON),
        trickle.SSH("web1", python=PYTHON),
        trickle.SSH("web1", python=PYTHON, via=inner),  # whose own trust= and python_version= are none of its business
    ]


async def test_trust_is_the_tunnels_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    for tunnel in kinds(tmp_path):
        async with trickle.open_host(tunnel) as host:
            with pytest.raises(trickle.UnsafeResult):
                await host.call(work.give_thing)
            assert isinstance(await host.options(trust="full").call(work.give_thing), work.Thing)
        async with trickle.open_host(dataclasses.replace(tunnel, trust="full")) as host:
            assert isinstance(await host.call(work.give_thing), work.Thing)
            with pytest.raises(trickle.UnsafeResult):
                await host.options(trust="data").call(work.give_thing)


def without_source() -> Callable[[int], int]:
    """A function of which there is only code, which goes to the same version of CPython alone."""
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def double(number):\n    return 2 * number", namespace)
    return namespace["double"]  # type: ignore[no-any-return]


async def test_a_known_version_lets_calls_leave_that_depend_on_it(tmp_path: Path) -> None:
    held = trickle.Command(["sh", "-c", f'while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exec "$@"', "held"],
                           python=PYTHON, name="held")  # fmt: skip
    known = dataclasses.replace(held, python_version=sys.version_info[:2])
    results = []

    async def call(host: trickle.Host) -> None:
        results.append(await host.call(without_source(), 4))

    async with (
        trickle.open_host(held, wait=False) as unknowing,
        trickle.open_host(known, wait=False) as knowing,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(call, unknowing)
        nursery.start_soon(call, knowing)
        while not knowing.statistics().calls_waiting:
            await trio.sleep(0.01)
        waiting = unknowing.statistics().calls_waiting
        (tmp_path / "go").touch()

    assert waiting == 0
    assert results == [8, 8]


async def test_a_version_that_is_not_so_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tunnel = trickle.Local("web1", python=PYTHON, python_version=(3, 6))

    async with trickle.open_host(tunnel) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert "web1: python_version=(3, 6) was given, and its Python is" in caplog.text
