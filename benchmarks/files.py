"""How fast do files go to a host, and come from it?

Measured, over a real ssh and sshd with a pipe between them: one large file; many of 4 KB; and a large one of which 1 %
has changed, in runs of random bytes.  Then a large file to and from a process of this machine.  Files are in memory
where there is such a file system, so that no disk is measured; each target is removed (or put back to what it was)
before each time.  The row "trickle, connecting too" opens the host as well, as scp, sftp, rsync and tar have to; the
row "trickle" is of a host that is open.  The other libraries connect too: execnet by its RSync, which only sends;
asyncssh, which is an ssh of its own in this process, with the same pipe to the same sshd, by its SFTP client and by
its scp; mitogen by its FileService, which serves here what goes there, and over there what comes back.  It knows no
trees: files are asked for one by one, and neither modes nor times are kept.

The floor is ``ssh host cat``, and ``cat`` for this machine.  It checks nothing: trickle has SHA-256 at both ends, rsync
a checksum of its own, all others none but ssh's.  With ``--quick`` files are smaller and fewer, and go once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import trickle
from benchmarks import _harness
from benchmarks._harness import FREE, MEGABYTES_PER_SECOND, NOT_INSTALLED, Bench, Measure, Unit, each
from benchmarks._peers import HAS_EXECNET, NO_SSHD, gateway, local, ssh_tunnel

if TYPE_CHECKING:
    import asyncssh
    import mitogen.core

HAS_ASYNCSSH, HAS_MITOGEN = (importlib.util.find_spec(name) is not None for name in ("asyncssh", "mitogen"))
PLACEMENTS = (FREE,)  # ssh and sshd are two processes in any case
MEMORY = Path("/dev/shm")
FILES_PER_SECOND = Unit("files/s", digits=0, more_is_better=True)
SECONDS = Unit("s", digits=2)
SMALL = 4096  # bytes
RUN = 64 * 1024  # bytes that have changed in one place


class Ground:
    """Where the files are, and the ways from one place to the other.

    Args:
      top: an empty directory.
      tunnel: the ssh.
      host: the same, open.
    """

    def __init__(self, top: Path, tunnel: trickle.SSH, host: trickle.Host) -> None:
        self.here = top / "here"
        self.there = top / "there"
        self.tunnel = tunnel
        self.host = host
        self.ssh = ["ssh", *tunnel.ssh_options, tunnel.host]
        self.remote = f"{tunnel.host}:{self.there}"

    def clear(self) -> None:
        """Nothing is there."""
        if self.there.is_dir():
            shutil.rmtree(self.there)
        self.there.unlink(missing_ok=True)

    # ---- trickle

    async def put(self) -> None:
        await self.host.put(self.here, self.there)

    async def fetch(self) -> None:
        await self.host.fetch(self.here, self.there)

    async def connect_and_put(self) -> None:
        async with trickle.open_host(self.tunnel, wait=False) as host:
            await host.put(self.here, self.there)

    async def connect_and_fetch(self) -> None:
        async with trickle.open_host(self.tunnel, wait=False) as host:
            await host.fetch(self.here, self.there)

    # ---- others

    def cat_there(self) -> None:
        with self.here.open("rb") as file:
            subprocess.run([*self.ssh, f"cat >{self.there}"], stdin=file, check=True)

    def cat_back(self) -> None:
        with self.there.open("wb") as file:
            subprocess.run([*self.ssh, f"cat {self.here}"], stdout=file, check=True)

    def tar_there(self) -> None:
        self._pipe(self._tar("-c"), [*self.ssh, f"tar -x -C {self.there.parent} --transform s/^here/there/"])

    def tar_back(self) -> None:
        extract = ["tar", "-x", "-C", str(self.there.parent), "--transform", "s/^here/there/"]
        self._pipe([*self.ssh, " ".join(self._tar("-c"))], extract)

    def _tar(self, what: str) -> list[str]:
        return ["tar", what, "-C", str(self.here.parent), "here"]

    def _pipe(self, first: list[str], second: list[str]) -> None:
        with subprocess.Popen(first, stdout=subprocess.PIPE) as source:
            subprocess.run(second, stdin=source.stdout, check=True)
        assert source.returncode == 0

    def scp_there(self) -> None:
        subprocess.run(["scp", "-qrp", *self.tunnel.ssh_options, self.here, self.remote], check=True)

    def scp_back(self) -> None:
        remote = f"{self.tunnel.host}:{self.here}"
        subprocess.run(["scp", "-qrp", *self.tunnel.ssh_options, remote, self.there], check=True)

    def sftp_there(self) -> None:
        self._sftp(f"put -p {self.here} {self.there}")

    def sftp_back(self) -> None:
        self._sftp(f"get -p {self.here} {self.there}")

    def _sftp(self, command: str) -> None:
        words = ["sftp", "-q", *self.tunnel.ssh_options, "-b", "-", self.tunnel.host]
        subprocess.run(words, input=command.encode(), stdout=subprocess.DEVNULL, check=True)

    def rsync_there(self) -> None:
        self._rsync(self.here, self.remote)

    def rsync_back(self) -> None:
        self._rsync(f"{self.tunnel.host}:{self.here}", self.there)

    def _rsync(self, source: object, target: object) -> None:
        slash = "/" if self.here.is_dir() else ""
        shell = " ".join(["ssh", *self.tunnel.ssh_options])
        subprocess.run(["rsync", "-a", "-e", shell, f"{source}{slash}", f"{target}{slash}"], check=True)

    def execnet_there(self) -> None:
        import execnet

        options = " ".join(self.tunnel.ssh_options)
        with gateway(f"ssh={options} {self.tunnel.host}//python={self.tunnel.python}") as there:
            sync = execnet.RSync(str(self.here), verbose=False)
            sync.add_target(there, str(self.there))
            sync.send()

    def asyncssh_sftp_there(self) -> None:
        asyncio.run(self._asyncssh_sftp("put"))

    def asyncssh_sftp_back(self) -> None:
        asyncio.run(self._asyncssh_sftp("get"))

    async def _asyncssh_sftp(self, verb: str) -> None:
        async with self._asyncssh() as connection, connection.start_sftp_client() as sftp:
            await getattr(sftp, verb)(str(self.here), str(self.there), preserve=True, recurse=True)

    def asyncssh_scp_there(self) -> None:
        asyncio.run(self._asyncssh_scp(back=False))

    def asyncssh_scp_back(self) -> None:
        asyncio.run(self._asyncssh_scp(back=True))

    async def _asyncssh_scp(self, back: bool) -> None:
        import asyncssh

        async with self._asyncssh() as connection:
            source = (connection, str(self.here)) if back else str(self.here)
            target = str(self.there) if back else (connection, str(self.there))
            await asyncssh.scp(source, target, preserve=True, recurse=True)

    def _asyncssh(self) -> contextlib.AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
        import asyncssh

        logging.getLogger("asyncio").setLevel(logging.ERROR)  # that the ProxyCommand's end was seen by another
        _, config = self.tunnel.ssh_options
        return asyncssh.connect(self.tunnel.host, config=[config])

    def mitogen_there(self) -> None:
        from benchmarks import _by_mitogen

        with self._mitogen() as (service, here, there):
            service.register_prefix(str(self.here))
            there.call(_by_mitogen.get_all, here, str(self.here), str(self.there), self._names())

    def mitogen_back(self) -> None:
        from benchmarks import _by_mitogen

        with self._mitogen() as (service, _, there):
            there.call_service(type(service), "register_prefix", path=str(self.here))
            _by_mitogen.get_all(there, str(self.here), str(self.there), self._names())

    def _names(self) -> list[str]:
        """The files of a tree; of one file, itself."""
        if self.here.is_file():
            return [""]
        return [str(path.relative_to(self.here)) for path in self.here.rglob("*") if path.is_file()]

    @contextlib.contextmanager
    def _mitogen(self) -> Iterator[tuple[mitogen.service.FileService, mitogen.core.Context, mitogen.core.Context]]:
        """A file service here, this end and a new other end."""
        import mitogen.master
        import mitogen.service

        logging.getLogger("mitogen").setLevel(logging.ERROR)
        broker = mitogen.master.Broker()
        router = mitogen.master.Router(broker)
        service = mitogen.service.FileService(router)
        pool = mitogen.service.Pool(router, services=[service])
        try:
            yield (
                service,
                router.myself(),
                router.ssh(
                    hostname=self.tunnel.host,
                    python_path=sys.executable,
                    ssh_args=list(self.tunnel.ssh_options),
                    check_host_keys="enforce",
                ),
            )
        finally:
            pool.stop()
            broker.shutdown()
            broker.join()


def timed(act: Callable[[], object], before: Callable[[], object], amount: float) -> Measure:
    """Of what blocks: *amount* for each second; with 0, the seconds.  In a thread: hosts want to be heard meanwhile."""
    return timed_async(lambda: trio.to_thread.run_sync(act), before, amount)


def timed_async(act: Callable[[], Awaitable[object]], before: Callable[[], object], amount: float) -> Measure:
    """The same of what is awaited."""

    async def once() -> float:
        before()
        started = time.perf_counter()
        await act()
        taken = time.perf_counter() - started
        return amount / taken if amount else taken

    return each(once)


def installed(name: str, measure: Measure) -> Measure | str:
    """*measure*, or the reason why there is none."""
    return measure if shutil.which(name) else NOT_INSTALLED


def write_random(path: Path, size: int) -> None:
    """Bytes that nothing makes smaller."""
    with path.open("wb") as file:
        for _ in range(0, size, 2**20):
            file.write(random.randbytes(min(size, 2**20)))
        file.truncate(size)


def change(path: Path, share: float) -> None:
    """Write over that share of a file, in runs here and there."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(max(1, int(size * share / RUN))):
            file.seek(random.randrange(size - RUN))
            file.write(random.randbytes(RUN))


def ways(ground: Ground, back: bool, amount: float) -> dict[str, Measure | str]:
    """All that go there or back with one file or a tree."""
    ours, connecting = ground.put, ground.connect_and_put
    sftp, scp, rsync, tar = ground.sftp_there, ground.scp_there, ground.rsync_there, ground.tar_there
    asyncssh_sftp, asyncssh_scp, mitogen = ground.asyncssh_sftp_there, ground.asyncssh_scp_there, ground.mitogen_there
    if back:
        ours, connecting = ground.fetch, ground.connect_and_fetch
        sftp, scp, rsync, tar = ground.sftp_back, ground.scp_back, ground.rsync_back, ground.tar_back
        asyncssh_sftp, asyncssh_scp, mitogen = ground.asyncssh_sftp_back, ground.asyncssh_scp_back, ground.mitogen_back
    return {
        "tar over ssh": timed(tar, ground.clear, amount),
        "trickle": timed_async(ours, ground.clear, amount),
        "trickle, connecting too": timed_async(connecting, ground.clear, amount),
        "rsync": installed("rsync", timed(rsync, ground.clear, amount)),
        "sftp": installed("sftp", timed(sftp, ground.clear, amount)),
        "scp": installed("scp", timed(scp, ground.clear, amount)),
        "asyncssh, SFTP": timed(asyncssh_sftp, ground.clear, amount) if HAS_ASYNCSSH else NOT_INSTALLED,
        "asyncssh, scp": timed(asyncssh_scp, ground.clear, amount) if HAS_ASYNCSSH else NOT_INSTALLED,
        "mitogen": timed(mitogen, ground.clear, amount) if HAS_MITOGEN else NOT_INSTALLED,
    }


async def large_file(bench: Bench, ground: Ground) -> None:
    size = bench.pick(32, 256) * 10**6
    write_random(ground.here, size)
    for verb, floor in (("put", ground.cat_there), ("fetch", ground.cat_back)):
        candidates = {"ssh host cat": timed(floor, ground.clear, size), **ways(ground, verb == "fetch", size)}
        title, rounds = f"files: {verb} {size // 10**6} MB", bench.pick(1, 5)
        await bench.compare(
            title, candidates, unit=MEGABYTES_PER_SECOND, floor="ssh host cat", rounds=rounds, warm_up=not bench.quick
        )
    ground.clear()
    ground.here.unlink()


async def small_files(bench: Bench, ground: Ground) -> None:
    count = bench.pick(200, 2000)
    for number in range(count):
        path = ground.here / str(number % 20) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(SMALL))
    for verb in ("put", "fetch"):
        candidates = ways(ground, verb == "fetch", count)
        del candidates["sftp"]  # which makes no directories
        if verb == "put":
            execnet = timed(ground.execnet_there, ground.clear, count)
            candidates["execnet.RSync"] = execnet if HAS_EXECNET else NOT_INSTALLED
        title, rounds = f"files: {verb} {count} of 4 KB", bench.pick(1, 5)
        await bench.compare(
            title, candidates, unit=FILES_PER_SECOND, floor="tar over ssh", rounds=rounds, warm_up=not bench.quick
        )
    ground.clear()
    shutil.rmtree(ground.here)


async def changed_file(bench: Bench, ground: Ground) -> None:
    size = bench.pick(100, 1000) * 10**6
    write_random(ground.here, size)
    old = ground.here.with_name("old")
    shutil.copy(ground.here, old)
    change(ground.here, 0.01)

    def as_it_was() -> None:
        shutil.copy(old, ground.there)

    title = f"files: {size // 10**6} MB of which 1 % has changed"
    candidates: Mapping[str, Measure | str] = {
        "ssh host cat, all of it": timed(ground.cat_there, as_it_was, 0),
        "trickle, put": timed_async(ground.put, as_it_was, 0),
        "trickle, fetch": timed_async(ground.fetch, as_it_was, 0),
        "rsync, put": installed("rsync", timed(ground.rsync_there, as_it_was, 0)),
        "rsync, fetch": installed("rsync", timed(ground.rsync_back, as_it_was, 0)),
    }
    await bench.compare(
        title,
        candidates,
        unit=SECONDS,
        floor="ssh host cat, all of it",
        rounds=bench.pick(1, 3),
        warm_up=not bench.quick,
    )
    ground.clear()
    ground.here.unlink()
    old.unlink()


async def on_this_machine(bench: Bench, ground: Ground) -> None:
    size = bench.pick(32, 256) * 10**6
    write_random(ground.here, size)
    async with trickle.open_host(local()) as host:
        candidates: Mapping[str, Measure | str] = {
            "cat": timed(lambda: subprocess.run(f"cat {ground.here} >{ground.there}", shell=True), ground.clear, size),
            "trickle, put": timed_async(lambda: host.put(ground.here, ground.there), ground.clear, size),
            "trickle, fetch": timed_async(lambda: host.fetch(ground.here, ground.there), ground.clear, size),
        }
        title = f"files: {size // 10**6} MB on this machine"
        await bench.compare(title, candidates, unit=MEGABYTES_PER_SECOND, floor="cat", rounds=bench.pick(2, 5))


async def measure(bench: Bench) -> None:
    for name in ("asyncssh", "execnet", "mitogen.master", "mitogen.service"):  # before it counts
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        directory = MEMORY if os.access(MEMORY, os.W_OK) else None
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="files-")))
        tunnel = stack.enter_context(ssh_tunnel(extra="Subsystem sftp internal-sftp"))
        if tunnel is None:
            bench.record("files", {"trickle": NO_SSHD}, unit=MEGABYTES_PER_SECOND)
            return
        async with trickle.open_host(tunnel) as host:
            ground = Ground(top, tunnel, host)
            for question in (large_file, small_files, changed_file, on_this_machine):
                await question(bench, ground)


if __name__ == "__main__":
    _harness.main(question="files")
