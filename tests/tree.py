"""A tree of network namespaces: relays that the near end reaches, and behind each of them leaves that only it reaches.

Needs root.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trickle
from tests import sshd as sshd_module
from tests.network import PORT, daemon_in
from tests.requirements import require


class Tree:
    """One that runs.

    Attributes:
      relays: ways to them.
      leaves: the ways from each relay to what is behind it, in the same order.
      direct: the way from the near end to each leaf, which there is not.
    """

    def __init__(self, ssh_config: Path, near: str, relays: int, leaves: int) -> None:
        self._near = near
        self.relays = [self._from_near(f"r{r}", ssh_config) for r in range(relays)]
        options = ("-F", str(ssh_config))
        names = [[f"r{r}-{leaf}" for leaf in range(leaves)] for r in range(relays)]
        self.leaves = [[trickle.SSH(name, ssh_options=options) for name in group] for group in names]
        self.direct = [self._from_near(name, ssh_config) for group in names for name in group]

    def _from_near(self, name: str, ssh_config: Path) -> trickle.Command:
        words = ["ip", "netns", "exec", self._near, "ssh", *trickle._tunnels.SSH_OPTIONS, "-F", str(ssh_config), name]
        return trickle.Command(words, name=name, shell=True)

    def cut_off(self, relay: int) -> None:
        """Take the link to this relay down."""
        subprocess.run(["ip", "-n", self._near, "link", "set", f"r{relay}", "down"], check=True)


@contextlib.contextmanager
def tree_of(directory: Path, user: str, relays: int, leaves: int) -> Iterator[Tree]:
    """A tree with *relays*, and *leaves* behind each of them.

    Args:
      directory: of their keys; it is made.
      user: who logs in everywhere.
    """
    if os.getuid() != 0 or not shutil.which("ip"):
        require("netns", "network namespaces need root and ip")
    directory.mkdir()
    sshd_module.prepare(directory)
    owner = pwd.getpwnam(user)
    shutil.copy(directory / "id", directory / "relay_id")  # ssh wants a key that is its user's own
    os.chown(directory / "relay_id", owner.pw_uid, owner.pw_gid)
    prefix = f"t{os.getpid()}"
    near = f"{prefix}near"
    addresses: dict[str, str] = {}
    links: list[tuple[str, str, str, str]] = []  # the two ends of each, the name of its device at the first, a network
    for r in range(relays):
        addresses[f"r{r}"] = f"192.0.2.{4 * r + 2}"  # networks for documentation, in namespaces of our own
        links.append((near, f"{prefix}r{r}", f"r{r}", f"192.0.2.{4 * r}"))
        for leaf in range(leaves):
            addresses[f"r{r}-{leaf}"] = f"198.51.100.{4 * leaf + 2}"
            links.append((f"{prefix}r{r}", f"{prefix}r{r}-{leaf}", f"l{leaf}", f"198.51.100.{4 * leaf}"))
    sshd_config, ssh_config = sshd_module.write_configs(
        directory, "tree", user=user, way_in=f"  Port {PORT}", port=PORT
    )
    sshd_config.write_text(
        "\n".join(line for line in sshd_config.read_text().splitlines() if not line.startswith(("ListenA", "PidFile")))
        + "\nPidFile none\n"
    )
    general = ssh_config.read_text().replace("  HostName 127.0.0.1\n", "")
    general = general.replace(" ".join(sshd_module.ALIASES), "*")
    relay_key = f"Match host 198.51.100.*\n  IdentityFile {directory}/relay_id\n"
    hosts = "".join(f"Host {name}\n  HostName {address}\n" for name, address in addresses.items())
    ssh_config.write_text(hosts + relay_key + general)
    with contextlib.ExitStack() as stack:
        for namespace in (near, *(far for _, far, _, _ in links)):
            if subprocess.run(["ip", "netns", "add", namespace], capture_output=True).returncode:
                require("netns", "this machine lets us make no network namespaces")
            stack.callback(_ip, "netns", "delete", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        for one, other, device, network in links:
            first, _, last = network.rpartition(".")
            _ip("link", "add", device, "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
            for namespace, name, number in ((one, device, int(last) + 1), (other, "eth0", int(last) + 2)):
                _ip("-n", namespace, "addr", "add", f"{first}.{number}/30", "dev", name)
                _ip("-n", namespace, "link", "set", name, "up")
        for _, far, _, _ in links:
            stack.enter_context(daemon_in(far, sshd_config))
        yield Tree(ssh_config, near, relays, leaves)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
