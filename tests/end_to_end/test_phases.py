"""A call can be cancelled in each phase of its life, whatever leads to its host and whatever kind of function it is.

The phases of plain functions over a local process and over ssh are in tests/host/test_cancellation.py.
"""

import dataclasses
import pwd
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import far_async, sudo, work
from tests.hosts import file_appears, local
from tests.sshd import Sshd
from trickle._module_server import ModuleServer
from trickle._wire.connection import CREDIT
from trickle.abc import Tunnel

LARGE = 100_000_000  # bytes: far more than is ever on its way


@dataclasses.dataclass(frozen=True)
class Functions:
    """The same three functions, of one kind."""

    size_of: Callable[[bytes], object]
    give_bytes: Callable[[int], object]
    import_by_name: Callable[[str], object]


PLAIN = Functions(work.size_of, work.give_bytes, work.import_by_name)
ASYNC = Functions(far_async.size_of, far_async.give_bytes, far_async.import_by_name)
WAYS = {
    "async, local": ASYNC,
    "async, ssh": ASYNC,
    "sudo, local": PLAIN,
    "sudo, ssh": PLAIN,
}
Way = tuple[Tunnel, Functions]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, login_user: str, piped_sshd: Sshd) -> Iterator[Way]:
    """A host, and the functions to call there."""
    through_sudo, over_ssh = "sudo" in request.param, "ssh" in request.param
    tunnel: Tunnel = local()
    if over_ssh:
        tunnel = trickle.SSH("h0", ssh_options=piped_sshd.ssh_options)
    if not through_sudo:
        yield tunnel, WAYS[request.param]
        return
    sudo.need_sudo()
    if not over_ssh:
        home = f"HOME={pwd.getpwnam(login_user).pw_dir}"
        tunnel = trickle.Command(["setpriv", "--reuid", login_user, "--clear-groups", "env", home], name="user")
    with sudo.rules(f"{login_user} ALL=(ALL:ALL) NOPASSWD: ALL"):
        yield trickle.Sudo(via=tunnel), WAYS[request.param]


async def test_while_it_waits_for_a_worker(way: Way, shared: Path) -> None:
    tunnel, functions = way
    async with trickle.open_host(tunnel, workers=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.call, work.say_and_run, str(shared / "first"))
        await file_appears(shared / "first")
        async with trio.open_nursery() as waiting:
            waiting.start_soon(host.call, functions.size_of, b"")
            while not host.statistics().calls_waiting:
                await trio.lowlevel.checkpoint()
            async with host.session() as session:
                await session.call(work.pid)  # it was sent behind the other: the agent has both
            waiting.cancel_scope.cancel()
        verdicts = dict(host.statistics().verdicts)
        nursery.cancel_scope.cancel()

    assert verdicts == {"returned": 1, "never started": 1}


async def test_while_it_waits_for_credit(way: Way, shared: Path) -> None:
    tunnel, functions = way
    async with trickle.open_host(tunnel, workers=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.call, work.say_and_run, str(shared / "first"))
        await file_appears(shared / "first")
        async with trio.open_nursery() as waiting:
            waiting.start_soon(host.call, functions.size_of, bytes(LARGE))
            while not host._core.link.calls:
                await trio.lowlevel.checkpoint()
            sent = host.statistics().bytes_sent
            while host.statistics().bytes_sent < sent + CREDIT:
                await trio.lowlevel.checkpoint()
            waiting.cancel_scope.cancel()
        verdicts = dict(host.statistics().verdicts)
        nursery.cancel_scope.cancel()

    assert verdicts == {"never started": 1}


async def test_while_its_arguments_are_sent(way: Way) -> None:
    tunnel, functions = way
    async with trickle.open_host(tunnel) as host:
        assert await host.call(functions.size_of, b"12") == 2
        sent = host.statistics().bytes_sent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, functions.size_of, bytes(LARGE))
            while host.statistics().bytes_sent < sent + 4 * CREDIT:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "never started": 1}
        assert await host.call(functions.size_of, bytes(1_000_000)) == 1_000_000


async def test_while_it_waits_for_a_module(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel, functions = way
    asked, go_on = threading.Event(), threading.Event()
    answer_at_once = ModuleServer.answer

    def answer(self: ModuleServer, name: str) -> bytes | None:
        if name == "tests.torture":
            asked.set()
            go_on.wait(60)
        return answer_at_once(self, name)

    monkeypatch.setattr(ModuleServer, "answer", answer)
    # An import is not trio's to cancel: under trio it holds up everything, until it is killed.
    verdict, grace_period = ("killed", 0.5) if functions is ASYNC else ("cancelled", 60.0)
    async with trickle.open_host(tunnel) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.options(grace_period=grace_period).call, functions.import_by_name, "tests.torture")
            while not asked.is_set():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        go_on.set()
        assert host.statistics().verdicts == {verdict: 1}
        assert await host.call(functions.import_by_name, "tests.torture") == "tests.torture"


async def test_while_its_result_is_on_the_way(way: Way) -> None:
    tunnel, functions = way
    async with trickle.open_host(tunnel) as host:
        assert await host.call(functions.size_of, b"12") == 2
        received = host.statistics().bytes_received
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, functions.give_bytes, LARGE)
            while host.statistics().bytes_received < received + 4 * CREDIT:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert host.statistics().verdicts == {"returned": 1, "cancelled": 1}
        assert await host.call(functions.size_of, bytes(1_000_000)) == 1_000_000
