"""A host that was taken over runs nothing here, reads nothing, stalls nothing, and touches no other host's calls."""

import builtins
import contextlib
import dataclasses
import logging
import stat
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from tests.hostile import victims
from tests.hostile.attacks import ALL_ANSWERS, ANSWERS, ATTACKS
from tests.hostile.victims import Point, double
from tests.hostile.watch import LENIENCE, MEMORY, MEMORY_PER_BYTE, STALL, STALL_PER_MIB, watched
from trickle import _host_core, _link
from trickle.abc import Tunnel
from trickle.testing import open_memory_host

LIAR = Path(__file__).with_name("liar.py")
CONTROL = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken(Tunnel):
    """A host that was taken over."""

    attack: str
    directory: Path

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return (sys.executable, "-I", "-S", str(LIAR), self.attack, str(self.directory))


class Neighbour:
    """Another host of this program, that works on."""

    def __init__(self) -> None:
        self.calls = 0
        self.wrong = 0

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with open_memory_host() as host, trio.open_nursery() as nursery:
            await host.call(double, 1)
            nursery.start_soon(self._work, host)
            yield
            before = self.calls
            while self.calls < before + 3:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    async def _work(self, host: trickle.Host) -> None:
        while True:
            self.wrong += await host.call(double, self.calls) != 2 * self.calls
            self.calls += 1
            await trio.sleep(0.002)


def data_of_the_secretive() -> str:
    import importlib.resources

    return (importlib.resources.files("secretive.data") / "keys.txt").read_text()


# ---- what attacks go for


async def call(host: trickle.Host, directory: Path) -> object:
    with trio.fail_after(60):
        return await host.call(double, 2)


async def call_with_a_class(host: trickle.Host, directory: Path) -> object:
    return await host.options(allow=(Point,)).call(double, 2)


async def call_twice(host: trickle.Host, directory: Path) -> object:
    with contextlib.suppress(trickle.UnsafeResult):
        await host.call(double, 2)
    return await host.call(double, 2)


async def stream(host: trickle.Host, directory: Path) -> object:
    async with host.stream(range, 3) as numbers:
        return [number async for number in numbers]


async def slow_stream(host: trickle.Host, directory: Path) -> object:
    async with host.stream(range, 3) as numbers:
        while host.statistics().state == "connected":
            await trio.sleep(0.01)
        while True:
            with contextlib.suppress(trickle.UnsafeResult):
                await numbers.receive()


async def process(host: trickle.Host, directory: Path) -> object:
    return await host.run_process(["true"], capture_stdout=True)


async def info(host: trickle.Host, directory: Path) -> object:
    return dataclasses.astuple(await host.wait_connected())


async def cancelled(host: trickle.Host, directory: Path) -> object:
    """What becomes of a call while another one is cancelled, and gets no verdict."""
    await host.wait_connected()
    lost: list[BaseException] = []

    async def call_with_patience() -> None:
        try:
            await host.call(double, 2)
        except trickle.HostLost as exc:
            lost.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_with_patience)
        with trio.move_on_after(0.1):
            await host.call(double, 2)
    raise lost[0]


async def fetch(host: trickle.Host, directory: Path) -> object:
    return await host.fetch("/data", directory / "fetched")


async def fetch_a_bounded_amount(host: trickle.Host, directory: Path) -> object:
    return await host.fetch("/data", directory / "fetched", max_size=10**6)


VERBS: dict[str, Callable[[trickle.Host, Path], Awaitable[object]]] = {
    "call": call,
    "call, first": call,
    "call, Point allowed": call_with_a_class,
    "call, then another": call_twice,
    "call, short lease": call,
    "call, cancelled": cancelled,
    "call, deaf sink": call,
    "questions": call,
    "connect": info,
    "info": info,
    "stream": stream,
    "stream, not read": slow_stream,
    "process": process,
    "fetch": fetch,
    "fetch, bounded": fetch_a_bounded_amount,
}


def settings_for(name: str) -> dict[str, Any]:
    verb = ATTACKS[name].verb if name in ATTACKS else ""
    if verb == "call, short lease":
        return {"lease": 0.4, "heartbeat": 0.2}
    if verb == "questions":
        return {"modules": trickle.ModulePolicy(deny=("secretive",))}
    if verb == "call, deaf sink":
        send, _ = trio.open_memory_channel[trickle.OutputLine](0)
        return {"output": send}
    return {}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Nothing is to appear in it."""
    return tmp_path


@pytest.fixture(autouse=True)
def settings_of_the_victims(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(_host_core, "VERDICT_SLACK", 0.5)  # seconds that a host has for its verdict, and to end in
    monkeypatch.setattr(_link, "EXIT_PATIENCE", 0.5)
    monkeypatch.setattr(victims, "ran", [])
    caplog.set_level(logging.INFO)


@contextlib.asynccontextmanager
async def taken(
    name: str, directory: Path, open_host: Callable[..., Any] = trickle.open_host
) -> AsyncIterator[trickle.Host]:
    """A host that does this, beside one that is well."""
    neighbour = Neighbour()
    async with neighbour.working():
        tunnel = Taken(name="taken", attack=name, directory=directory)
        async with open_host(tunnel, wait=False, **settings_for(name)) as host:
            if not name.startswith("hello"):
                await host.wait_connected()
            yield host.options(grace_period=0.1)
    assert neighbour.calls >= 3 and not neighbour.wrong


async def attacked(name: str, host: trickle.Host, directory: Path) -> object:
    """What came of one attack, a value or an error, which has done no damage that it must not."""
    before = set(sys.modules)
    sent_before = host.statistics().bytes_received
    async with watched() as damage:
        try:
            result = await VERBS[ATTACKS[name].verb](host, directory)
        except Exception as exc:
            result = exc
    sent = host.statistics().bytes_received - sent_before
    assert damage.stall < LENIENCE * (STALL + STALL_PER_MIB * sent / 2**20), (name, damage.stall)
    assert damage.memory < MEMORY + MEMORY_PER_BYTE * sent, (name, damage.memory)
    if ATTACKS[name].verb.startswith("fetch"):
        check_fetched(directory)
    else:
        assert [event for event in damage.suspect if str(LIAR) not in event] == []  # its own tunnel starts there
        assert list(directory.iterdir()) == []
    assert victims.ran == []
    assert not {"antigravity", "webbrowser", "secretive"} & (set(sys.modules) - before)
    check_answer(name, result)
    return result


@pytest.fixture
def nothing_steers_a_terminal(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither what is printed nor what is logged."""
    yield
    shown = capsys.readouterr()
    assert not CONTROL & set(shown.out + shown.err)
    for record in caplog.get_records("call"):
        assert not CONTROL & set(record.getMessage())


@pytest.mark.usefixtures("nothing_steers_a_terminal")
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ANSWERS])
async def test_an_attack(name: str, directory: Path) -> None:
    async with taken(name, directory) as host:
        await attacked(name, host, directory)


@pytest.mark.usefixtures("nothing_steers_a_terminal")
async def test_a_relay_that_answers_for_its_leaf_gets_no_more_than_that(directory: Path) -> None:
    async with trickle.open_host(trickle.Local(name="relay")) as relay:
        assert await relay.call(data_of_the_secretive) == "secret"  # the relay's own policy keeps nothing
        for name in ATTACKS:
            if name.startswith("modules:"):
                async with taken(name, directory, relay.open_host) as host:
                    await attacked(name, host, directory)
        assert await relay.call(double, 2) == 4


@pytest.mark.usefixtures("nothing_steers_a_terminal")
async def test_all_answers_one_after_the_other(directory: Path) -> None:
    async with taken(ALL_ANSWERS, directory) as host:
        for name in ANSWERS:
            await attacked(name, host, directory)


def test_there_are_attacks_of_each_kind() -> None:
    kinds = Counter(name.partition(":")[0] for name in ATTACKS)

    assert sum(kinds.values()) >= 200
    assert set(kinds) >= {"result", "error", "wire", "flow", "hello", "flood", "output", "modules", "fetch"}


@pytest.fixture(autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with links out of it, and one that the policy keeps here."""
    root = tmp_path_factory.mktemp("packages")
    for package in ("linked", "secretive", "secretive/data"):
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
    (root / "linked/passwd").symlink_to("/etc/passwd")
    (root / "linked/inner").symlink_to("/etc")
    (root / "secretive/data/keys.txt").write_text("secret")
    monkeypatch.syspath_prepend(root)


def check_fetched(directory: Path) -> None:
    """Nothing is beside what was fetched, nor leads out of it but links that are just that."""
    assert {path.name for path in directory.iterdir()} <= {"fetched"}
    assert not (directory / "fetched").is_symlink()
    assert not Path("/tmp/ran").exists()
    for path in (directory / "fetched", *directory.glob("fetched/**/*")):
        if path.exists() and not path.is_symlink():
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            assert not mode & (stat.S_ISUID | stat.S_ISGID)


def check_answer(name: str, result: object) -> None:
    attack = ATTACKS[name]
    if not attack.raises:
        assert not isinstance(result, BaseException), result
        if attack.verb == "questions":
            assert isinstance(result, dict)
            result.pop("trickle._agent.resources", None)  # what makes something of such answers over there
            assert set(result.values()) <= {"missing", "package", "files: ", "files: __init__.py"}, result
        return
    errors = tuple(getattr(trickle, error, None) or getattr(builtins, error) for error in attack.raises.split("|"))
    assert isinstance(result, errors), (name, result)
    message = str(result)
    assert "taken" in message or isinstance(result, OSError)
    assert not CONTROL & set(message)
    assert len(message) < 100_000
    assert attack.says in message
