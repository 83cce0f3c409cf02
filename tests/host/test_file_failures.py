"""What goes wrong in transfers: the old target is intact, nothing is left, and the error says what to do."""

import errno
import fcntl
import functools
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import trio

import trickle
from tests.hosts import local, process_ends, running_below
from tests.pythons import far_pythons
from tests.requirements import require
from tests.sshd import Sshd
from trickle._agent import file_source, file_target, file_writing, files

OPTIONS = {"mode": None, "preserve": True, "fsync": False, "resume": False}
HUGE = 2**40  # bytes of a file that is one hole: reading it takes longer than a test may
BIG = 4_000_000

Verb = Literal["put", "fetch"]


def transfer(host: trickle.Host, verb: Verb) -> Callable[..., Awaitable[trickle.TransferResult]]:
    """Either verb: from here to there, both on this machine."""
    return host.put if verb == "put" else host.fetch


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if ".trickle-" in path.name)


async def is_opened(path: Path) -> int:
    """The process that has the file open; returns as soon as there is one."""
    wanted = os.fspath(path)
    while True:
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(descriptor) == wanted:
                    return int(descriptor.parts[2])
            except OSError:
                pass  # gone meanwhile
        await trio.sleep(0.01)


# ---- what comes between


@pytest.mark.parametrize("what", ["a file", "a link", "a link to nothing"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_appears_at_the_target_meanwhile_is_replaced(what: str, resume: bool, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"new")
    (tmp_path / "other").write_bytes(b"other, and longer")
    there = tmp_path / "there"
    source = file_source.Source(os.fsencode(tmp_path / "here"))
    target = file_target.Target(os.fsencode(there), {**OPTIONS, "resume": resume})
    had = [answer for entries in source.listing() for answer in target.have(entries)]

    if what == "a file":
        there.write_bytes(b"old, and longer")
    else:
        there.symlink_to(tmp_path / ("other" if what == "a link" else "nothing"))
    for ops in source.contents(dict(enumerate(had))):
        target.write(ops)
    target.finish()

    assert not there.is_symlink() and there.read_bytes() == b"new"
    assert (tmp_path / "other").read_bytes() == b"other, and longer" and not (tmp_path / "nothing").exists()
    assert leftovers(tmp_path) == []


async def test_a_new_file_with_a_slash_behind_its_name_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"new")

    async with trickle.open_host(local("web1")) as host:
        for verb in ("put", "fetch"):
            with pytest.raises(NotADirectoryError):
                await transfer(host, verb)(tmp_path / "here", os.fspath(tmp_path / "there") + "/")  # type: ignore[arg-type]

    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


# ---- what was left by transfers that were killed


@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_what_a_killed_transfer_has_left_is_swept(verb: Verb, tmp_path: Path) -> None:
    for top in (tmp_path / "here", tmp_path / "there"):
        top.mkdir()
        (top / "file").write_text("contents")
    (tmp_path / "here" / "link").symlink_to("file")
    dead = [".file.trickle-0123456789ab", ".link.trickle-0123456789ab", ".file.trickle-part"]
    others = [".other.trickle-0123456789ab", ".other.trickle-part", ".file.trickle-notes", ".file.trickle-0123"]
    for name in [*dead, *others]:
        (tmp_path / "there" / name).write_text("left")
    (tmp_path / "there" / dead[1]).unlink()
    (tmp_path / "there" / dead[1]).symlink_to("nowhere")

    async with trickle.open_host(local()) as host:
        await transfer(host, verb)(tmp_path / "here", tmp_path / "there")

    assert leftovers(tmp_path / "there") == sorted(others)


@pytest.mark.parametrize("name", [".there.trickle-0123456789ab", ".there.trickle-part"])
async def test_what_a_living_transfer_writes_is_not_swept(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)

        async with trickle.open_host(local()) as host:
            await host.put(b"new", tmp_path / "there")

        assert leftovers(tmp_path) == [name]
    assert (tmp_path / "there").read_text() == "new"


def test_a_temporary_that_was_taken_for_dead_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    lock, taken = file_writing.lock, []

    def another_comes_between(fd: int) -> bool | None:
        if not taken:
            (name,) = leftovers(tmp_path)
            taken.append(name)
            file_writing.remove_dead(os.fsencode(tmp_path / name))
        return lock(fd)

    monkeypatch.setattr(file_writing, "lock", another_comes_between)
    target = file_target.Target(os.fsencode(tmp_path / "there"), OPTIONS)
    target.have([(b"", files.FILE, 3, 0o644, 0, b"", -1, -1)])
    target.write([(files.WHOLE, 0, hashlib.sha256(b"abc").digest(), b"abc")])

    assert taken and leftovers(tmp_path) == []
    assert (tmp_path / "there").read_text() == "abc"


async def test_two_transfers_at_once_do_not_mix(far: trickle.abc.Tunnel, shared: Path, tmp_path: Path) -> None:
    contents = [bytes([number]) * BIG for number in range(2)]
    for number, data in enumerate(contents):
        (tmp_path / str(number)).write_bytes(data)
    both = trio.Event()
    begun: set[int] = set()

    async def put(host: trickle.Host, number: int, resume: bool) -> None:
        def progress(done: int, of: int | None) -> None:
            begun.add(number)
            if len(begun) == 2:
                both.set()

        await host.put(tmp_path / str(number), shared / "there", resume=resume, progress=progress)

    async with trickle.open_host(far) as host:
        for resume in (False, True):
            begun.clear()
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(put, host, number, resume)
            assert (shared / "there").read_bytes() in contents
            assert leftovers(shared) == []


async def test_a_part_that_another_transfer_writes_is_left_to_it(tmp_path: Path) -> None:
    part = tmp_path / ".there.trickle-part"
    part.write_bytes(b"x" * 10)
    with part.open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)

        async with trickle.open_host(local()) as host:
            done = await host.put(b"new contents", tmp_path / "there", resume=True)

        assert part.read_bytes() == b"x" * 10
    assert (tmp_path / "there").read_bytes() == b"new contents"
    assert done.sent == len(b"new contents")


async def test_a_part_that_is_complete_is_moved_to_its_place(tmp_path: Path) -> None:
    data = os.urandom(2 * files.BLOCK + 5)
    (tmp_path / ".there.trickle-part").write_bytes(data)

    async with trickle.open_host(local()) as host:
        done = await host.put(data, tmp_path / "there", resume=True)

    assert (tmp_path / "there").read_bytes() == data
    assert (done.sent, done.checksum) == (0, (await checksum_of(tmp_path / "there")))
    assert leftovers(tmp_path) == []


async def checksum_of(path: Path) -> str:
    done = await trio.run_process(["sha256sum", os.fspath(path)], capture_stdout=True)
    return done.stdout.decode().split()[0]


async def test_a_part_that_others_could_write_to_is_not_gone_on_with(tmp_path: Path) -> None:
    data = os.urandom(files.BLOCK + 5)
    (tmp_path / "trap").write_bytes(data)
    (tmp_path / ".there.trickle-part").hardlink_to(tmp_path / "trap")

    async with trickle.open_host(local()) as host:
        await host.put(data, tmp_path / "there", resume=True)

    assert (tmp_path / "there").read_bytes() == data
    assert not (tmp_path / "there").samefile(tmp_path / "trap")


async def test_names_that_are_too_long_for_more_beside_them_do_not_share_a_part(tmp_path: Path) -> None:
    names = ["x" * 250 + str(number) for number in range(2)]
    stems = {file_writing.stem(name.encode()) for name in names}
    assert len(stems) == 2 and all(len(stem) + 12 < 255 for stem in stems)

    async with trickle.open_host(local()) as host:
        for name in names:
            await host.put(name.encode(), tmp_path / name, resume=True)

    assert [(tmp_path / name).read_text() for name in names] == names


# ---- holes


def with_holes(path: Path, *data: tuple[int, bytes], size: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        for start, part in data:
            file.seek(start)
            file.write(part)
        file.truncate(size)


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("resume", [False, True])
async def test_holes_stay_holes_where_only_some_blocks_have_changed(resume: bool, tmp_path: Path) -> None:
    size = 40 * files.BLOCK
    parts = [(0, b"begin"), (10 * files.BLOCK + 5000, os.urandom(200_000)), (size - 10, b"the end")]
    with_holes(tmp_path / "here", *parts, size=size)
    if stored(tmp_path / "here") > 1_000_000:
        pytest.skip("this file system has no holes")

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there")
        before = stored(tmp_path / "there")
        with_holes(tmp_path / "here", (0, b"BEGIN"), size=size)
        with (tmp_path / "there").open("r+b") as file:
            file.seek(20 * files.BLOCK)
            file.write(b"not a hole")
        done = await host.put(tmp_path / "here", tmp_path / "there", resume=resume)

    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert stored(tmp_path / "there") <= before
    assert done.sent <= files.BLOCK


async def test_a_hole_over_what_has_come_before_is_zeros(tmp_path: Path) -> None:
    size = 10 * files.BLOCK
    with_holes(tmp_path / "here", (0, b"begin"), (size - 5, b"end.."), size=size)
    (tmp_path / ".there.trickle-part").write_bytes(os.urandom(size))

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there", resume=True)

    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


# ---- errors of the program's own


@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_an_error_of_progress_is_the_programs_own(verb: Verb, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(bytes(BIG))
    (tmp_path / "there").write_text("old")

    def fail(done: int, of: int | None) -> None:
        raise ValueError("of the program's own")

    async with trickle.open_host(local()) as host:
        with pytest.raises(ValueError, match="^of the program's own$"):
            await transfer(host, verb)(tmp_path / "here", tmp_path / "there", progress=fail)

        assert await host.call(len, "still here") == 10
    assert (tmp_path / "there").read_text() == "old"
    assert leftovers(tmp_path) == []


# ---- cancels


@pytest.mark.parametrize("verb", ["put", "fetch"])
@pytest.mark.parametrize("side", ["target", "source"])
async def test_a_cancel_does_not_wait_for_a_large_file_to_be_read(verb: Verb, side: str, tmp_path: Path) -> None:
    huge = tmp_path / ("there" if side == "target" else "here")
    (tmp_path / "here").write_bytes(bytes(files.BLOCK + 1))
    with_holes(huge, size=HUGE)

    async with trickle.open_host(local()) as host:
        await host.call(os.getpid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer(host, verb), tmp_path / "here", tmp_path / "there")
            await is_opened(huge)
            nursery.cancel_scope.cancel()

        assert host.statistics().calls_running == 0
        assert await host.call(len, "still here") == 10
    assert huge.stat().st_size == HUGE
    assert leftovers(tmp_path) == []


# ---- kill -9


@pytest.mark.parametrize("verb", ["put", "fetch"])
@pytest.mark.parametrize(("victim", "kind"), [("worker", "tree"), ("broker", "file")])
async def test_a_far_end_that_is_killed_in_a_transfer(
    verb: Verb, victim: str, kind: str, far: trickle.abc.Tunnel, shared: Path
) -> None:
    here, there = shared / "here", shared / "there"
    for top, data in ((here, os.urandom(BIG)), (there, os.urandom(BIG))):
        if kind == "tree":
            (top / "a").mkdir(parents=True)
            top.chmod(0o777)
            (top / "a").chmod(0o777)
        (top / "a" / "big" if kind == "tree" else top).write_bytes(data)
    old, new = ((top / "a" / "big" if kind == "tree" else top).read_bytes() for top in (there, here))
    big = there / "a" / "big" if kind == "tree" else there

    killed: list[int] = []
    async with trickle.open_host(far) as host:
        await host.wait_connected()

        def kill(done: int, of: int | None) -> None:
            if done > BIG // 4 and not killed:
                pid = host.info.pid
                killed.append(pid if victim == "broker" else min(running_below(pid)))
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(trickle.HostLost if victim == "broker" else trickle.WorkerDied, match="^web1: "):
            await transfer(host, verb)(here, there, preserve=False, progress=kill)
        assert big.read_bytes() == old

    async with trickle.open_host(far) as host:
        await transfer(host, verb)(here, there, preserve=False)
    assert big.read_bytes() == new
    assert leftovers(shared) == []


async def test_a_transfer_that_was_killed_is_resumed(far: trickle.abc.Tunnel, shared: Path, tmp_path: Path) -> None:
    data = os.urandom(16 * BIG)  # several times what is on its way at a time
    (tmp_path / "here").write_bytes(data)
    part = shared / ".there.trickle-part"
    killed: list[int] = []

    async with trickle.open_host(far) as host:
        await host.wait_connected()

        def kill(done: int, of: int | None) -> None:
            if not killed and part.exists() and part.stat().st_size > BIG:
                killed.extend([host.info.pid, *running_below(host.info.pid)])
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(trickle.HostLost):
            await host.put(tmp_path / "here", shared / "there", resume=True, progress=kill)
    for pid in killed:
        await process_ends(pid)  # it has the part locked
    assert leftovers(shared) == [part.name] and not (shared / "there").exists()

    async with trickle.open_host(far) as host:
        done = await host.put(tmp_path / "here", shared / "there", resume=True)
    assert (shared / "there").read_bytes() == data
    assert done.sent < len(data)
    assert leftovers(shared) == []


CONTROLLER = """
import sys, time, trio, trickle
verb, here, there, name, *ssh_options = sys.argv[1:]
tunnel = trickle.SSH(name, ssh_options=ssh_options) if ssh_options else trickle.Local(python=sys.executable)

def tell(done, of):
    print(done, flush=True)
    time.sleep(3600)

async def main():
    async with trickle.open_host(tunnel) as host:
        await (host.put if verb == "put" else host.fetch)(here, there, preserve=False, progress=tell)

trio.run(main)
"""


@pytest.mark.parametrize("verb", ["put", "fetch"])
@pytest.mark.parametrize("way", ["local", "ssh"])
async def test_a_controller_that_is_killed_in_a_transfer(
    verb: Verb, way: str, request: pytest.FixtureRequest, shared: Path
) -> None:
    sshd: Sshd | None = request.getfixturevalue("piped_sshd") if way == "ssh" else None
    here, there = shared / "here", shared / "there"
    here.write_bytes(os.urandom(BIG))
    there.write_text("old")
    words = [os.fspath(here), os.fspath(there), *([sshd.alias(), *sshd.ssh_options] if sshd else ["here"])]
    async with await trio.open_file(os.devnull) as nothing:
        with subprocess.Popen(
            [sys.executable, "-c", CONTROLLER, verb, *words], stdin=nothing.fileno(), stdout=subprocess.PIPE
        ) as controller:
            assert controller.stdout is not None
            assert await trio.to_thread.run_sync(controller.stdout.readline)
            controller.kill()
            controller.wait()

    assert there.read_text() == "old"
    async with trickle.open_host(local()) as host:
        await host.put(here, there)
    assert there.read_bytes() == here.read_bytes()
    assert leftovers(shared) == []


async def test_a_far_end_that_is_killed_while_it_compares(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(bytes(files.BLOCK + 1))
    with_holes(tmp_path / "there", size=HUGE)

    async with trickle.open_host(local()) as host:
        await host.call(os.getpid)

        async def kill() -> None:
            os.kill(await is_opened(tmp_path / "there"), signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(trickle.WorkerDied):
                await host.put(tmp_path / "here", tmp_path / "there")

    assert (tmp_path / "there").stat().st_size == HUGE
    assert leftovers(tmp_path) == []


# ---- what the system refuses


@pytest.fixture
def small_disk(shared: Path) -> Iterator[Path]:
    """A file system of one megabyte that everybody may write to."""
    path = shared / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", os.fspath(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        require("netns", f"no file system can be mounted here: {mounted.stderr}")
    yield path
    subprocess.run(["umount", os.fspath(path)], check=True)


@pytest.mark.parametrize("verb", ["put", "fetch"])
@pytest.mark.parametrize("kind", ["file", "tree"])
async def test_a_full_disk(verb: Verb, kind: str, far: trickle.abc.Tunnel, small_disk: Path, shared: Path) -> None:
    here, there = shared / "here", small_disk / "there"
    for top, data in ((here, bytes(2_000_000)), (there, b"old")):
        if kind == "tree":
            top.mkdir()
            top.chmod(0o777)
        (top / "file" if kind == "tree" else top).write_bytes(data)
    file = there / "file" if kind == "tree" else there

    async with trickle.open_host(far) as host:
        with pytest.raises(OSError, match="No space left on device, while it was written.*; make room there") as caught:
            await transfer(host, verb)(here, there, preserve=False)

        assert await host.call(len, "still here") == 10
    assert caught.value.errno == errno.ENOSPC
    assert str(file) in str(caught.value) and "web1" in str(caught.value)
    assert file.read_bytes() == b"old"
    assert leftovers(small_disk) == []


@pytest.fixture
def ordinary(piped_sshd: Sshd) -> trickle.SSH:
    """The way to an ordinary user, whom the files that a test makes do not belong to."""
    if os.getuid() != 0:
        pytest.skip("the one who logs in is the one who tests")
    return trickle.SSH(piped_sshd.alias(), name="web1", ssh_options=piped_sshd.ssh_options)


async def test_what_an_ordinary_user_may_not(ordinary: trickle.SSH, shared: Path, tmp_path: Path) -> None:
    (shared / "closed").mkdir(0o755)
    (shared / "closed" / "there").write_text("old")
    (shared / "secret").write_text("secret")
    (shared / "secret").chmod(0o600)

    async with trickle.open_host(ordinary) as host:
        with pytest.raises(PermissionError, match=r"^web1: .*while a file was made beside it; user \d+ may not") as put:
            await host.put(b"new", shared / "closed" / "there")
        with pytest.raises(PermissionError, match=r"^web1: .*while it was read; user \d+ may not.*Sudo") as fetched:
            await host.fetch(shared / "secret", tmp_path / "secret")

    for caught in (put, fetched):
        assert isinstance(caught.value, trickle.RemoteError)
    assert (shared / "closed" / "there").read_text() == "old"
    assert leftovers(shared) == []


async def test_a_tree_with_a_closed_directory_is_not_fetched(
    ordinary: trickle.SSH, shared: Path, tmp_path: Path
) -> None:
    (shared / "tree" / "closed").mkdir(parents=True)
    (shared / "tree" / "closed").chmod(0o700)
    (shared / "tree" / "file").write_text("x")

    async with trickle.open_host(ordinary) as host:
        with pytest.raises(PermissionError, match=r"^web1: .*while it was listed; user \d+ may not.*/tree/closed'\n"):
            await host.fetch(shared / "tree", tmp_path / "here")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("new", "mode", "stage"),
    [("new", None, "moved to its place"), ("old", 0o600, "given its mode, owner and time")],
    ids=["new contents", "a new mode"],
)
async def test_somebody_elses_file_in_a_sticky_directory_stays(
    new: str, mode: int | None, stage: str, ordinary: trickle.SSH, shared: Path
) -> None:
    (shared / "there").write_text("old")
    (shared / "there").chmod(0o644)
    shared.chmod(0o1777)

    async with trickle.open_host(ordinary) as host:
        with pytest.raises(PermissionError, match=rf"^web1: .*while it was {stage}; user \d+ may not.*/there'\n"):
            await host.put(new.encode(), shared / "there", mode=mode)

    assert (shared / "there").read_text() == "old"
    assert stat.S_IMODE((shared / "there").stat().st_mode) == 0o644
    assert leftovers(shared) == []


async def test_a_tree_is_not_put_into_a_directory_that_is_closed(
    ordinary: trickle.SSH, shared: Path, tmp_path: Path
) -> None:
    for top, text in ((shared / "there", "old"), (tmp_path / "here", "new")):
        (top / "closed").mkdir(parents=True)
        (top / "closed" / "file").write_text(text)
    (shared / "there").chmod(0o777)

    async with trickle.open_host(ordinary) as host:
        with pytest.raises(PermissionError, match=r"^web1: .*while a file was made beside it; .*/closed/file'\n"):
            await host.put(tmp_path / "here", shared / "there")

    assert (shared / "there" / "closed" / "file").read_text() == "old"
    assert leftovers(shared) == []


async def test_a_tree_is_not_put_where_no_directory_may_be_made(
    ordinary: trickle.SSH, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    shared.chmod(0o755)

    async with trickle.open_host(ordinary) as host:
        with pytest.raises(
            PermissionError, match=r"^web1: .*while this directory was made; user \d+ may not.*/there'\n"
        ):
            await host.put(tmp_path / "here", shared / "there")

    assert list(shared.iterdir()) == []


async def test_what_is_right_already_may_be_somebody_elses(piped_sshd: Sshd, shared: Path, tmp_path: Path) -> None:
    for top in (tmp_path / "here", shared / "there"):
        top.mkdir()
        (top / "file").write_text("same")
        (top / "link").symlink_to("file")
        for path in (top / "file", top / "link", top):
            os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)

    async with trickle.open_host(trickle.SSH(piped_sshd.alias(), ssh_options=piped_sshd.ssh_options)) as host:
        done = await host.put(tmp_path / "here", shared / "there")

    assert (done.sent, done.skipped) == (0, ("file",))


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket"])
@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_what_is_no_file_is_not_replaced(verb: Verb, kind: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (tmp_path / "here").write_text("new")
    if kind == "directory":
        there.mkdir()
    elif kind == "pipe":
        os.mkfifo(there)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(there))
    before = there.lstat().st_ino

    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(
            (IsADirectoryError, FileExistsError), match=f"a file is to go where a {kind}|pipe or socket"
        ):
            await transfer(host, verb)(tmp_path / "here", there)

    assert there.lstat().st_ino == before


# ---- sources that do not hold still


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put_fifo, "while it was read.*something else was put in its place"),
        (put_link, "while it was read.*one was put in its place"),
        (Path.unlink, "while it was read.*was removed meanwhile"),
        (lambda path: path.write_bytes(b"longer"), "was changed while it was read.*transfer it again"),
    ],
    ids=["pipe", "link", "gone", "changed"],
)
def test_what_is_put_in_the_place_of_a_listed_file_is_not_read(
    change: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"short")
    source = file_source.Source(os.fsencode(tmp_path), " (here, for web1)")
    list(source.listing())

    change(tmp_path / "file")

    with pytest.raises(OSError, match=expected) as caught:
        list(source.contents({}))
    assert str(tmp_path / "file") in str(caught.value) and "(here, for web1)" in str(caught.value)


@pytest.mark.parametrize("verb", ["put", "fetch"])
@pytest.mark.parametrize("kind", ["gone", "changed"])
async def test_a_source_that_does_not_hold_still_is_told(
    verb: Verb, kind: str, far: trickle.abc.Tunnel, shared: Path
) -> None:
    here, there = shared / "here", shared / "there"
    for top in (here, there):
        top.mkdir()
        top.chmod(0o777)
    for number in range(3):
        (here / str(number)).write_bytes(bytes(BIG))
    (there / "2").write_text("old")

    def change(done: int, of: int | None) -> None:
        if kind == "gone":
            (here / "2").unlink(missing_ok=True)
        else:
            os.utime(here / "2", ns=(0, 0))

    async with trickle.open_host(far) as host:
        with pytest.raises(OSError, match="was removed meanwhile|was changed while it was read") as caught:
            await transfer(host, verb)(here, there, preserve=False, progress=change)

    assert isinstance(caught.value, trickle.RemoteError) == (verb == "fetch")
    assert str(here / "2") in str(caught.value) and "web1" in str(caught.value)
    assert (there / "2").read_text() == "old"
    assert leftovers(there) == []


# ---- modes, names, kinds


def test_the_umask_is_asked_for_without_being_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "Umask:" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not tell")
    mask = os.umask(0o027)
    monkeypatch.setattr(os, "umask", None)
    try:
        target = file_target.Target(os.fsencode(tmp_path / "there"), OPTIONS)
        target.have([(b"", files.FILE, 3, -1, -1, b"", -1, -1)])
        target.write([(files.WHOLE, 0, hashlib.sha256(b"abc").digest(), b"abc")])
    finally:
        monkeypatch.undo()
        os.umask(mask)

    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o640


async def test_who_runs_a_fetched_file_gets_no_rights_by_that(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("#!/bin/sh\n")
    (tmp_path / "here").chmod(0o6755)

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there")
        await host.fetch(tmp_path / "there", tmp_path / "back")
        await host.fetch(tmp_path / "there", tmp_path / "given", mode=0o4755)

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("there", "back", "given")]
    assert modes == [0o6755, 0o755, 0o4755]


async def test_a_new_directory_is_never_more_open_than_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir(0o700)
    (tmp_path / "here" / "file").write_bytes(bytes(BIG))
    seen = set()

    def look(done: int, of: int | None) -> None:
        seen.add(stat.S_IMODE((tmp_path / "there").stat().st_mode))

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there", progress=look)

    assert seen == {0o700}


def test_names_of_temporary_links_may_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tails = iter([b"0123456789ab", b"0123456789ab", b"ba9876543210"])
    monkeypatch.setattr(file_writing, "random_tail", lambda: next(tails))
    (tmp_path / "link").symlink_to("old")
    target = file_target.Target(os.fsencode(tmp_path), OPTIONS)
    target.have([(b"", files.DIRECTORY, 0, 0o755, 0, b"", -1, -1)])
    target._leftovers = {os.fsencode(tmp_path): {}}
    (tmp_path / ".link.trickle-0123456789ab").write_text("another's")

    target.have([(b"link", files.LINK, 0, 0o777, 0, b"new", -1, -1)])

    assert os.readlink(tmp_path / "link") == "new"
    assert (tmp_path / ".link.trickle-0123456789ab").read_text() == "another's"


async def test_bytes_that_are_there_already_are_not_sent_again(tmp_path: Path) -> None:
    data = bytearray(os.urandom(1_000_000))

    async with trickle.open_host(local()) as host:
        await host.put(bytes(data), tmp_path / "there")
        again = await host.put(bytes(data), tmp_path / "there")
        data[0] ^= 1
        changed = await host.put(bytes(data), tmp_path / "there")

    assert (again.sent, again.skipped) == (0, (".",))
    assert changed.sent == files.BLOCK
    assert (tmp_path / "there").read_bytes() == data


async def test_trees_may_be_deep_and_times_long_ago(tmp_path: Path) -> None:
    deep = functools.reduce(Path.joinpath, ["d"] * 1200, Path("here"))
    try:
        (tmp_path / "here").mkdir()
        directory = os.open(tmp_path / "here", os.O_RDONLY)
        for _ in deep.parts[1:]:
            os.mkdir("d", dir_fd=directory)
            inner = os.open("d", os.O_RDONLY, dir_fd=directory)
            os.close(directory)
            directory = inner
        os.close(directory)
        (tmp_path / "here" / "old").write_text("before 1970")
        os.utime(tmp_path / "here" / "old", ns=(-(10**18), -(10**18)))

        async with trickle.open_host(local()) as host:
            await host.put(tmp_path / "here", tmp_path / "there")

        assert (tmp_path / "there").joinpath(*deep.parts[1:]).is_dir()
        assert (tmp_path / "there" / "old").stat().st_mtime_ns == -(10**18)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "here", tmp_path / "there"], check=True)  # pytest cannot


async def test_the_oldest_python_does_as_well(tmp_path: Path) -> None:
    (tmp_path / "here" / "a").mkdir(parents=True)
    with_holes(tmp_path / "here" / "a" / "file", (5 * files.BLOCK, os.urandom(files.BLOCK)), size=9 * files.BLOCK)
    (tmp_path / "here" / "link").symlink_to("a")

    async with trickle.open_host(trickle.Local(python=far_pythons()[0])) as host:
        put = await host.put(tmp_path / "here", tmp_path / "there", resume=True, fsync=True)
        with_holes(tmp_path / "here" / "a" / "file", (0, b"changed"), size=9 * files.BLOCK)
        changed = await host.put(tmp_path / "here", tmp_path / "there")
        fetched = await host.fetch(tmp_path / "there", tmp_path / "back")
        with pytest.raises(IsADirectoryError, match="name the file itself"):
            await host.put(b"x", tmp_path / "there")

    assert (tmp_path / "back" / "a" / "file").read_bytes() == (tmp_path / "here" / "a" / "file").read_bytes()
    assert os.readlink(tmp_path / "back" / "link") == "a"
    assert put.checksum != changed.checksum == fetched.checksum
    assert changed.sent <= files.BLOCK


async def test_errors_of_odd_names_can_be_told(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/missing/\xff\n"

    async with trickle.open_host(local("web1")) as host:
        for transfer_of in (host.put(b"x", odd), host.fetch(odd, tmp_path / "back")):
            with pytest.raises(FileNotFoundError, match="^web1: ") as caught:
                await transfer_of
            str(caught.value).encode()  # whatever the name, it can be printed
