"""A network that parts: remote work dies within the lease, calls fail with HostLost, healing changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import work
from tests.hosts import file_appears, process_ends
from tests.network import Network, network_of_two

LEASE = 3.0  # seconds
LARGE = 40_000_000  # bytes: far more than is ever on its way, and packed in far less than a lease


@pytest.fixture
def network(login_user: str, _sshd_directory: Path) -> Iterator[Network]:
    """A fresh pair of namespaces for each test."""
    with network_of_two(_sshd_directory, login_user) as made:
        yield made


FAULTS = [
    Network.link_down,
    Network.drop_both_ways,
    Network.drop_what_comes_from_there,
    Network.drop_what_goes_there,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_partition_during_a_call_ends_the_work_there_and_the_call_here(
    fault: Callable[[Network], None], network: Network, shared: Path
) -> None:
    async with trickle.open_host(network.tunnel, heartbeat=0.5, lease=LEASE) as host:
        with pytest.raises(trickle.HostLost, match="web1: ") as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_when_started, shared / "pids", lambda: fault(network))
                try:
                    await host.call(work.start_children, str(shared / "pids"))
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
        for pid in (shared / "pids").read_text().split():
            await process_ends(int(pid))
        network.heal()

        with pytest.raises(trickle.HostLost, match="reconnect=True"):
            await host.call(work.add, 1)
        assert await host.options(reconnect=True).call(work.add, 1, 2) == 3
    assert caught.value.host == "web1"


async def _when_started(path: Path, act: Callable[[], None]) -> None:
    await file_appears(path)
    act()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("direction", ["argument", "result"])
async def test_a_partition_during_a_large_payload_fails_the_call(
    direction: str, fault: Callable[[Network], None], network: Network
) -> None:
    async with trickle.open_host(network.tunnel, heartbeat=0.5, lease=LEASE) as host:
        await host.call(work.pid)

        async def part() -> None:
            while host.statistics().bytes_sent + host.statistics().bytes_received < 3_000_000:
                await trio.sleep(0)
            fault(network)

        with pytest.raises(trickle.HostLost):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(part)
                try:
                    if direction == "argument":
                        await host.call(work.size_of, bytes(LARGE))
                    else:
                        await host.call(work.give_bytes, LARGE)
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
        network.heal()
