"""A network that parts: remote work dies within the lease, calls fail with HostLost, healing changes nothing."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import leftovers, work
from tests import sshd as sshd_module
from tests.hosts import file_appears, process_ends
from tests.requirements import require

LEASE = 3.0  # seconds
HERE, THERE = "192.0.2.1", "192.0.2.2"  # addresses for documentation, in namespaces of our own
PORT = 2222


class Network:
    """Two namespaces with a link between them, and an sshd in the second."""

    def __init__(self, tunnel: trickle.Command) -> None:
        self.tunnel = tunnel
        self.near, self.far = f"near{os.getpid()}", f"far{os.getpid()}"

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def nft(self, namespace: str, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", namespace, "nft", *words], check=True)

    def link_down(self) -> None:
        self.ip("-n", self.far, "link", "set", "v1", "down")

    def link_up(self) -> None:
        self.ip("-n", self.far, "link", "set", "v1", "up")

    def drop(self, *hooks: str) -> None:
        """Drop silently what goes through these hooks of the far end: input, output."""
        self.nft(self.far, "add", "table", "inet", "t")
        for hook in hooks:
            rule = f"{{ type filter hook {hook} priority 0; policy drop; }}"
            self.nft(self.far, "add", "chain", "inet", "t", hook, rule)

    def drop_both_ways(self) -> None:
        self.drop("input", "output")

    def drop_what_comes_from_there(self) -> None:
        self.drop("output")

    def drop_what_goes_there(self) -> None:
        self.drop("input")

    def heal(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.nft(self.far, "flush", "ruleset")
        self.link_up()


@pytest.fixture
def network(public_directory: Path, login_user: str, _sshd_directory: Path) -> Iterator[Network]:
    """A fresh pair of namespaces for each test."""
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("nft"):
        require("netns", "network namespaces need root, ip and nft")
    sshd_config, ssh_config = sshd_module.write_configs(
        _sshd_directory, "netns", user=login_user, way_in=f"  Port {PORT}", port=PORT
    )
    sshd_config.write_text(sshd_config.read_text().replace("127.0.0.1", THERE).replace("sshd.pid", "netns.pid"))
    ssh_config.write_text(ssh_config.read_text().replace("HostName 127.0.0.1", f"HostName {THERE}"))
    near, far = f"near{os.getpid()}", f"far{os.getpid()}"
    prefix = ["ip", "netns", "exec", near, "ssh", *trickle._tunnels.SSH_OPTIONS, "-F", str(ssh_config), "h0"]
    made = Network(trickle.Command(prefix, name="web1", shell=True))
    for namespace in (near, far):
        if subprocess.run(["ip", "netns", "add", namespace], capture_output=True).returncode:
            require("netns", "this machine lets us make no network namespaces")
    try:
        made.ip("link", "add", "v0", "netns", near, "type", "veth", "peer", "name", "v1", "netns", far)
        for namespace, device, address in ((near, "v0", HERE), (far, "v1", THERE)):
            made.ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            made.ip("-n", namespace, "link", "set", device, "up")
            made.ip("-n", namespace, "link", "set", "lo", "up")
        with _daemon(far, sshd_config):
            yield made
    finally:
        for namespace in (near, far):
            made.ip("netns", "delete", namespace)


@contextlib.contextmanager
def _daemon(namespace: str, sshd_config: Path) -> Iterator[None]:
    command = ["ip", "netns", "exec", namespace, sshd_module.sshd_binary(), "-D", "-e", "-f", str(sshd_config)]
    environment = {name: value for name, value in os.environ.items() if name != sshd_module.MARK}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if b"Server listening" in line:
                break
        with leftovers.daemon(process.pid):
            yield
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


FAULTS = [
    Network.link_down,
    Network.drop_both_ways,
    Network.drop_what_comes_from_there,
    Network.drop_what_goes_there,
]


@pytest.fixture
def shared(public_directory: Path) -> Path:
    """A directory that the user who logs in can write to as well."""
    path = public_directory / f"parted{time.monotonic_ns()}"
    path.mkdir()
    path.chmod(0o777)
    return path


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
                        await host.call(work.size_of, bytes(400_000_000))
                    else:
                        await host.call(work.give_bytes, 400_000_000)
                except trickle.HostLost as exc:
                    lost = exc
            raise lost
        network.heal()
