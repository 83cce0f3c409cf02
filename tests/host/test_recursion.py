"""trickle over there: hosts that are opened from hosts."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
from tests import far_names
from tests.hosts import local
from tests.pythons import far_pythons, python_id, version_of
from trickle._link import MAX_DEPTH

RELAY = """
import os, sys
import trickle
from trickle import Failure, HostLost, RemoteError, Success  # those of here, where they are used

TUNNEL = trickle.Local("inner", python=sys.executable)  # so is this

def where() -> int:
    return trickle.remote.host_name, os.getpid()

async def relay(python, function="where", *args):
    async with trickle.open_host(trickle.Local("inner", python=python)) as host:
        return where(), await host.call(globals()[function], *args)

async def relay_group(python, names):
    async with trickle.open_group([trickle.Local(name, python=python) for name in names]) as group:
        results = await group.call(where)
    return {name: value[0] for name, value in results.successful().items()}

async def fail(python):
    async with trickle.open_host(trickle.Command(["false"], name="nowhere", python=python)) as host:
        try:
            await host.call(where)
        except trickle.ConnectError:
            return "never"

async def by_name(python):
    found = []
    async with trickle.open_group([trickle.Local("inner", python=python)]) as group:
        for outcome in [*(await group.call(where)).values(), *(await group.call(missing)).values()]:
            match outcome:
                case Success((name, _)):
                    found.append(name)
                case Failure(RemoteError() as exc):
                    found.append(str(exc))
        try:
            await group["inner"].call(missing)
        except RemoteError:
            found.append("caught")
    return found

def missing():
    raise LookupError("nothing there")

async def time_left(python):
    async with trickle.open_host(trickle.Local("inner", python=python)) as host:
        return trickle.remote.time_left(), await host.call(trickle.remote.time_left)

async def deeper(python, depth):
    async with trickle.open_host(trickle.Local("d%d" % depth, python=python)) as host:
        return await host.call(deeper, python, depth + 1)
"""


@pytest.fixture
def relays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (tmp_path / "relays.py").write_text(RELAY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "relays", raising=False)
    import relays  # type: ignore[import-not-found]

    return relays


NEW = [python for python in far_pythons() if (version_of(python) or (0,)) >= (3, 11)]


@pytest.mark.parametrize("python", NEW, ids=python_id)
async def test_a_function_may_open_hosts_from_its_host(python: str, relays: object) -> None:
    async with trickle.open_host(trickle.Local("outer", python=python)) as host:
        outer, inner = await host.call(relays.relay, python)  # type: ignore[attr-defined]

    assert (outer[0], inner[0]) == ("outer", "inner")
    assert outer[1] != inner[1]


@pytest.mark.parametrize("python", far_pythons(), ids=python_id)
async def test_a_module_that_names_its_hosts_at_its_top_can_be_sent(python: str) -> None:
    async with trickle.open_host(trickle.Local("outer", python=python)) as host:
        assert await host.call(far_names.names) == (["web01", "web02", "db"], 3)
        assert await host.call(trickle.hosts, "a[8-10]") == ["a8", "a9", "a10"]


async def test_what_a_module_has_imported_by_name_is_the_real_thing_there(relays: object) -> None:
    async with trickle.open_host(local("outer")) as host:
        found = await host.call(relays.by_name, sys.executable)  # type: ignore[attr-defined]

    assert found == ["inner", "inner: LookupError: nothing there", "caught"]


async def test_a_function_may_open_a_group_from_its_host(relays: object) -> None:
    async with trickle.open_host(local("outer")) as host:
        answers = await host.call(relays.relay_group, sys.executable, ["a", "b"])  # type: ignore[attr-defined]

    assert answers == {"a": "a", "b": "b"}


async def test_calls_from_a_host_have_its_calls_deadline(relays: object) -> None:
    async with trickle.open_host(local("outer")) as host:
        with trio.fail_after(600):
            outer, inner = await host.call(relays.time_left, sys.executable)  # type: ignore[attr-defined]
        unlimited = await host.call(relays.time_left, sys.executable)  # type: ignore[attr-defined]

    assert 0 < inner < outer < 600
    assert unlimited == (math.inf, math.inf)


async def test_errors_of_inner_hosts_name_them(relays: object) -> None:
    async with trickle.open_host(local("outer")) as host:
        with pytest.raises(trickle.RemoteError, match=r"outer: trickle\.ConnectError: nowhere: "):
            await host.call(relays.fail, sys.executable)  # type: ignore[attr-defined]


async def test_a_function_that_opens_hosts_for_itself_comes_to_an_end(relays: object) -> None:
    async with trickle.open_host(local("outer")) as host:
        with pytest.raises(trickle.RemoteError) as caught:
            await host.call(relays.deeper, sys.executable, 1)  # type: ignore[attr-defined]

    path = " > ".join(["outer", *(f"d{depth}" for depth in range(1, MAX_DEPTH + 1))])
    assert f"too many hosts one behind the other ({path}); {MAX_DEPTH} is the most" in str(caught.value)


async def test_hosts_of_an_old_python_refuse_by_name(relays: object, tmp_path: Path) -> None:
    old = [python for python in far_pythons() if (version_of(python) or (0,)) < (3, 11)]
    if not old:
        pytest.skip("there is no older Python here")
    version = ".".join(map(str, version_of(old[0]) or ()))

    def use(path: str) -> object:
        import trickle as there

        try:
            return there.open_host(there.Local()).__aenter__()
        except RuntimeError as exc:
            return str(exc)

    async with trickle.open_host(trickle.Local("old", python=old[0])) as host:
        said = await host.call(use, "")

    assert said == f"trickle.open_host needs Python 3.11 or later on the host that uses it; old has {version}"


async def test_a_cancelled_relay_leaves_nothing_on_its_hosts(relays: object, tmp_path: Path) -> None:
    async def wait_inside(python: str, path: str) -> None:
        import pathlib

        import trickle as there

        async with there.open_host(there.Local("inner", python=python)) as host:
            pid = host.info.pid
            pathlib.Path(path + ".new").write_text(str(pid))
            pathlib.Path(path + ".new").rename(path)
            await trio.sleep_forever()

    from tests.hosts import file_appears, is_running

    path = tmp_path / "pid"
    async with trickle.open_host(local("outer")) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, wait_inside, sys.executable, str(path))
            pid = int(await file_appears(path))
            nursery.cancel_scope.cancel()

    assert not is_running(pid)


async def ask_through(tunnels: dict[str, Any], name: str) -> object:
    import trickle

    async with trickle.open_host(tunnels[name]) as host:
        return host.name, await host.call(abs, -3)


async def test_a_tunnel_goes_there_as_an_argument() -> None:
    tunnel = trickle.Local("deep", python=sys.executable)
    behind = trickle.Command(["env"], name="behind", python=sys.executable, via=tunnel)
    async with trickle.open_host(trickle.Local("web1", python=sys.executable)) as host:
        for name in ("deep", "behind"):
            assert await host.call(ask_through, {"deep": tunnel, "behind": behind}, name) == (name, 3)
