"""Hosts that only relays reach, in networks of their own: one call to all of them, and a relay that is cut off."""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import trickle
from tests import work
from tests.hosts import file_appears, process_ends
from tests.tree import Tree, tree_of

LEASE = 3.0  # seconds
PATIENCE = {"heartbeat": 0.5, "lease": LEASE}


async def check_tree(tree: Tree, shared: Path, note: Callable[[str], None]) -> None:
    async with trickle.open_group(tree.direct) as group:
        await group.wait_connected()
        reasons = {name: error.reason for name, error in group.unreachable.items()}  # type: ignore[union-attr]
        assert reasons == {tunnel.name: "unreachable" for leaves in tree.leaves for tunnel in leaves}

    async with contextlib.AsyncExitStack() as stack:
        note("the direct ways found closed")
        relays = await stack.enter_async_context(trickle.open_group(tree.relays, **PATIENCE))
        groups = [
            await stack.enter_async_context(relay.open_group(leaves, **PATIENCE))
            for relay, leaves in zip(relays.values(), tree.leaves, strict=True)
        ]
        everybody = groups[0]
        for group in groups[1:]:
            everybody |= group
        assert set((await everybody.call(work.add, 1, 2)).unwrap().values()) == {3}
        note("connected, and the first call to all answered")
        assert len((await everybody.call(work.add, 1, 2)).unwrap()) == sum(map(len, tree.leaves))
        note("the second call answered")

        lost: dict[str, trickle.HostLost] = {}

        async def work_until_lost(name: str, host: trickle.Host) -> None:
            try:
                await host.call(work.start_children, str(shared / name))
            except trickle.HostLost as exc:
                lost[name] = exc

        async with trio.open_nursery() as nursery:
            for name, host in groups[-1].items():
                nursery.start_soon(work_until_lost, name, host)
            for name in groups[-1]:
                await file_appears(shared / name)
            agents = [host.info.pid for host in (list(relays.values())[-1], *groups[-1].values())]
            tree.cut_off(len(tree.relays) - 1)
            note("work on ten of them begun, and their relay cut off")
        note("all calls beneath it have failed")

        assert set(lost) == set(groups[-1])
        for name, error in lost.items():
            assert error.host == name and str(error).startswith(f"{name}: ")
        children = itertools.chain(*((shared / name).read_text().split() for name in lost))
        for pid in (*agents, *map(int, children)):
            await process_ends(pid)
        note("all processes beneath it are gone")
        results = await everybody.call(work.add, 1, 2)
        assert set(results.failures()) == set(groups[-1])
        assert len(results.successful()) == sum(map(len, tree.leaves[:-1]))
    note("left")


async def test_a_relay_that_is_cut_off_takes_what_is_beneath_it_and_nothing_else(
    public_directory: Path, login_user: str, shared: Path
) -> None:
    with tree_of(public_directory / "tree", login_user, relays=2, leaves=2) as tree:
        await check_tree(tree, shared, lambda _: None)


@pytest.mark.soak
@pytest.mark.takes(600)
async def test_thirty_hosts_behind_three_relays(public_directory: Path, login_user: str, shared: Path) -> None:
    last = trio.current_time()

    def note(what: str) -> None:
        nonlocal last
        now = trio.current_time()
        print(f"{what}: {now - last:.2f} s")
        last = now

    with tree_of(public_directory / "tree30", login_user, relays=3, leaves=10) as tree:
        await check_tree(tree, shared, note)
