"""Two network namespaces with a link between them that can fail, and an sshd at its far end.  Needs root."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trickle
from tests import leftovers
from tests import sshd as sshd_module
from tests.requirements import require

HERE, THERE = "192.0.2.1", "192.0.2.2"  # addresses for documentation, in namespaces of our own
PORT = 2222
# A link that is up again has no route for a moment.
UNTIL_IT_ANSWERS = f"""
import socket, time
for _ in range(600):
    try:
        socket.create_connection(("{THERE}", {PORT}), timeout=10).close()
        break
    except OSError:
        time.sleep(0.1)
else:
    raise SystemExit("the link does not come up again")
"""


class Network:
    """A network of two.

    Attributes:
      tunnel: the way from the near end to an agent at the far end.
    """

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
        subprocess.run(["ip", "netns", "exec", self.near, sys.executable, "-c", UNTIL_IT_ANSWERS], check=True)


@contextlib.contextmanager
def network_of_two(directory: Path, user: str) -> Iterator[Network]:
    """A fresh pair of namespaces; the keys of `tests.sshd.prepare` are in *directory*."""
    if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("nft"):
        require("netns", "network namespaces need root, ip and nft")
    sshd_config, ssh_config = sshd_module.write_configs(
        directory, "netns", user=user, way_in=f"  Port {PORT}", port=PORT
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
        with daemon_in(far, sshd_config):
            yield made
    finally:
        for namespace in (near, far):
            made.ip("netns", "delete", namespace)


@contextlib.contextmanager
def daemon_in(namespace: str, sshd_config: Path) -> Iterator[None]:
    """An sshd in this namespace."""
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
