"""Files to and from a host: whole or not at all, as they were, and no more of them sent than has to be."""

import hashlib
import io
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

import trickle
import trickle._files
from tests import flows, work
from tests.hosts import local
from trickle._agent import file_source, file_target, files

SIZES = [0, 1, files.BLOCK - 1, files.BLOCK, files.BLOCK + 1, files.BATCH, files.BATCH + 1, 3_000_000]


def leftovers(directory: Path) -> list[str]:
    """What a transfer has made beside its targets."""
    return [path.name for path in directory.rglob("*") if ".trickle-" in path.name]


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_goes_there_and_comes_back(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "here").write_bytes(data)

    async with trickle.open_host(local()) as host:
        put = await host.put(tmp_path / "here", tmp_path / "there")
        fetched = await host.fetch(tmp_path / "there", tmp_path / "back")

    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == data
    expected = trickle.TransferResult(str(tmp_path / "there"), size, sum_of(data), size, ())
    assert put == expected
    assert fetched.checksum == sum_of(data)
    assert leftovers(tmp_path) == []


async def test_it_works_over_ssh_as_well(far: trickle.abc.Tunnel, shared: Path, tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "here").write_bytes(data)

    async with trickle.open_host(far) as host:
        await host.put(tmp_path / "here", shared / "there", mode=0o644)
        await host.fetch(shared / "there", tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == data
    assert leftovers(shared) == []


async def test_contents_may_come_from_anywhere(tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    async def texts() -> AsyncIterator[str]:
        yield "text"

    async with trickle.open_host(local()) as host:
        for name, contents, expected in (
            ("bytes", b"some bytes", b"some bytes"),
            ("file", io.BytesIO(b"a file"), b"a file"),
            ("parts", parts(), b"012"),
        ):
            done = await host.put(contents, tmp_path / name)
            assert (tmp_path / name).read_bytes() == expected
            assert (done.checksum, done.size) == (sum_of(expected), len(expected))
        with pytest.raises(TypeError, match="binary mode"):
            await host.put(io.StringIO("text"), tmp_path / "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="gives str: .* bytes"):
            await host.put(texts(), tmp_path / "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot be put"):
            await host.put(42, tmp_path / "number")  # type: ignore[arg-type]

    assert leftovers(tmp_path) == []
    assert not (tmp_path / "text").exists()


async def test_a_file_that_is_there_already_is_not_sent_again(tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "here").write_bytes(data)

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there")
        before = (tmp_path / "there").stat()
        again = await host.put(tmp_path / "here", tmp_path / "there")
        fetched = await host.fetch(tmp_path / "there", tmp_path / "here")

    assert (again.sent, again.skipped, again.checksum) == (0, (".",), sum_of(data))
    assert (fetched.sent, fetched.skipped) == (0, (".",))
    assert (tmp_path / "there").stat().st_ino == before.st_ino


@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_of_a_large_file_only_what_has_changed_is_sent(verb: str, tmp_path: Path) -> None:
    data = bytearray(os.urandom(40 * files.BLOCK + 17))
    (tmp_path / "here").write_bytes(data)

    async with trickle.open_host(local()) as host:
        transfer = getattr(host, verb)
        await transfer(tmp_path / "here", tmp_path / "there")
        data[5 * files.BLOCK] ^= 1
        data += b"and a new end"
        (tmp_path / "here").write_bytes(data)
        again = await transfer(tmp_path / "here", tmp_path / "there")

    assert (tmp_path / "there").read_bytes() == data
    assert again.sent == files.BLOCK + 17 + len(b"and a new end")


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize(
    ("had", "expected"),
    [
        (range(10), [(files.UNCHANGED, 7)]),
        (range(9), [(files.OPEN, 7), (files.SAME, 9 * files.BLOCK), files.DATA, files.COMMIT]),
        (range(11), [(files.OPEN, 7), (files.SAME, 10 * files.BLOCK), files.COMMIT]),
        ([*range(4), 0, *range(5, 10)], [(files.OPEN, 7), (files.SAME, 4 * files.BLOCK), files.DATA, files.SAME]),
        ([9, *range(1, 10)], [(files.OPEN, 7), files.DATA, files.SAME, files.SAME]),
    ],
    ids=["the same", "has grown", "has shrunk", "differs in the middle", "differs at the beginning"],
)
def test_what_is_compared_is_read_once(had: list[int], expected: list[object]) -> None:
    blocks = [os.urandom(files.BLOCK) for _ in range(11)]
    data = b"".join(blocks[:10])
    hashes = b"".join(files.block_hash(blocks[number]) for number in had)
    file = Counting(data)

    ops = list(file_source.read_file(file, 7, len(data), [], hashes, lambda: None))

    found = [op if isinstance(meant, tuple) else op[0] for op, meant in zip(ops, expected, strict=False)]
    assert found == expected
    assert ops[-1] in ((files.UNCHANGED, 7), (files.COMMIT, hashlib.sha256(data).digest()))
    assert file.count == len(data)


def test_a_target_is_told_of_what_is_the_same_while_the_rest_is_compared(tmp_path: Path) -> None:
    block = os.urandom(files.BLOCK)
    (tmp_path / "file").write_bytes(b"other" + block[5:] + 255 * block)
    source = file_source.Source(os.fsencode(tmp_path / "file"), check=lambda: None)
    assert len(list(source.listing())) == 1

    messages = list(source.contents({0: 256 * files.block_hash(block)}))

    assert len(messages) > 3
    assert sum(op[1] for ops in messages for op in ops if op[0] == files.SAME) == 255 * files.BLOCK


async def test_what_is_synced_is_all_that_the_names_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def listen(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", listen)
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_text("x")
    async with trickle.open_host(local()) as host:
        await host.fetch(tmp_path / "tree", tmp_path / "new", fsync=True)
        assert {".", "new", "new/below"} <= set(synced)

        synced.clear()
        await host.fetch(tmp_path / "tree", tmp_path / "new", fsync=True)  # all of it is there already
        assert sorted(synced) == [".", "new", "new/below", "new/below/file"]

        synced.clear()
        await host.fetch(tmp_path / "tree" / "below" / "file", tmp_path / "new" / "below" / "file", fsync=True)
        assert sorted(synced) == ["new/below", "new/below/file"]

        synced.clear()
        await host.fetch(tmp_path / "tree", tmp_path / "new")
        assert synced == []


async def test_a_list_of_files_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trickle._files, "LARGEST_MESSAGE", 140_000)  # else 64 MiB
    for number in range(1000):
        (tmp_path / "tree" / f"{number:0100}").mkdir(parents=True)

    async with trickle.open_host(local(), max_payload=150_000) as host:
        with pytest.raises(trickle.UnsafeResult, match="takes more than 150000 bytes here; fetch parts"):
            await host.fetch(tmp_path / "tree", tmp_path / "back")
        assert await host.call(work.add, 1, 2) == 3


async def test_transfers_need_no_large_max_payload(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(300):
        (tmp_path / "tree" / f"{number:0100}").write_text("x")
    (tmp_path / "tree" / "large").write_bytes(os.urandom(2_000_000))

    async with trickle.open_host(local(), max_payload=3000) as host:
        for _ in range(2):  # the second time all names are in the result
            put = await host.put(tmp_path / "tree", tmp_path / "there")
            fetched = await host.fetch(tmp_path / "there", tmp_path / "back")
        ran = await host.run_process(["wc", "-c"], stdin=bytes(1_000_000), capture_stdout=True)

    assert len(put.skipped) == len(fetched.skipped) == 301
    assert ran.stdout == b"1000000\n"


async def test_modes_and_times_are_kept_or_given(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    (tmp_path / "here").chmod(0o640)
    os.utime(tmp_path / "here", ns=(10**18, 10**18 + 7))

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "kept")
        await host.put(tmp_path / "here", tmp_path / "given", mode=0o755)
        await host.put(tmp_path / "here", tmp_path / "new", preserve=False)
        await host.fetch(tmp_path / "kept", tmp_path / "fetched", fsync=True)

    kept, fetched = (tmp_path / "kept").stat(), (tmp_path / "fetched").stat()
    assert (stat.S_IMODE(kept.st_mode), kept.st_mtime_ns) == (0o640, 10**18 + 7)
    assert (stat.S_IMODE(fetched.st_mode), fetched.st_mtime_ns) == (0o640, 10**18 + 7)
    assert stat.S_IMODE((tmp_path / "given").stat().st_mode) == 0o755
    assert (tmp_path / "new").stat().st_mtime_ns != 10**18 + 7


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_owners_are_kept_as_root(verb: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    os.chown(tmp_path / "here", 12345, 54321)

    async with trickle.open_host(local()) as host:
        await getattr(host, verb)(tmp_path / "here", tmp_path / "there")

    found = (tmp_path / "there").stat()
    assert (found.st_uid, found.st_gid) == (12345, 54321)


def make_tree(top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "empty").mkdir()
    (top / "a" / "file").write_text("in a")
    (top / "a" / "b" / "large").write_bytes(os.urandom(500_000))
    (top / "nothing").touch()
    (top / "link").symlink_to("a/file")
    (top / "broken").symlink_to("/nowhere/at/all")
    (top / "to a directory").symlink_to("a")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe not utf-8")).write_text("odd")
    (top / "a\nb").write_text("a newline")
    os.utime(top / "a", ns=(10**18, 10**18))
    (top / "a" / "empty").chmod(0o700)


def seen(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, directories, names in os.walk(top):
        for name in directories + names:
            path = Path(directory, name)
            below = str(path.relative_to(top))
            status = path.lstat()
            contents = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            times = 0 if path.is_symlink() and not path.exists() else status.st_mtime_ns
            found[below] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), times, contents)
    return found


async def test_a_tree_goes_there_and_comes_back_as_it_was(tmp_path: Path) -> None:
    make_tree(tmp_path / "here")
    os.mkfifo(tmp_path / "here" / "fifo")

    async with trickle.open_host(local()) as host:
        put = await host.put(tmp_path / "here", tmp_path / "there")
        fetched = await host.fetch(tmp_path / "there", tmp_path / "back")
        again = await host.put(tmp_path / "here", tmp_path / "there")

    expected = seen(tmp_path / "here")
    del expected["fifo"]
    assert seen(tmp_path / "there") == seen(tmp_path / "back") == expected
    assert (put.skipped, fetched.skipped) == (("fifo",), ())
    assert put.checksum == fetched.checksum == again.checksum
    assert again.sent == 0
    assert leftovers(tmp_path) == []


async def test_many_small_files_go_at_once(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for number in range(3000):
        (tmp_path / "here" / str(number)).write_bytes(b"%d" % number)

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there")

    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == {
        str(number): b"%d" % number for number in range(3000)
    }


@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_holes_stay_holes(verb: str, tmp_path: Path) -> None:
    with (tmp_path / "here").open("wb") as file:
        file.seek(50_000_000)
        file.write(b"in the middle")
        file.truncate(100_000_000)
    if (tmp_path / "here").stat().st_blocks * 512 > 1_000_000:
        pytest.skip("this file system has no holes")

    async with trickle.open_host(local()) as host:
        done = await getattr(host, verb)(tmp_path / "here", tmp_path / "there")

    assert (tmp_path / "there").stat().st_size == 100_000_000
    assert (tmp_path / "there").stat().st_blocks * 512 < 1_000_000
    assert done.sent < 1_000_000
    assert done.checksum == hashlib.sha256((tmp_path / "here").read_bytes()).hexdigest()


async def test_progress_is_told(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(bytes(1_000_000))
    told: list[tuple[int, int | None]] = []

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "here", tmp_path / "there", progress=lambda done, of: told.append((done, of)))

    assert told[-1] == (1_000_000, 1_000_000)
    assert told == sorted(told)


@pytest.mark.parametrize("wrong", [1, trio.sleep, "print"])
async def test_a_progress_that_is_none_is_refused_and_costs_nothing(wrong: Any, tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(TypeError, match="progress="):
            await host.put(b"x", tmp_path / "there", progress=wrong)
        with pytest.raises(TypeError, match="progress="):
            await host.fetch(__file__, tmp_path / "there", progress=wrong)

        assert host.statistics().verdicts == {}
    assert list(tmp_path.iterdir()) == []


# ---- what goes wrong


async def test_what_is_not_here_costs_the_host_nothing(tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(FileNotFoundError):
            await host.put(tmp_path / "missing", tmp_path / "there")
        with pytest.raises(OSError, match="neither a file nor a directory"):
            await host.put("/dev/null", tmp_path / "there")

        assert host.statistics().verdicts == {}


async def test_errors_say_which_side_and_what(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("new")
    (tmp_path / "directory").mkdir()

    async with trickle.open_host(local("web1")) as host:
        with pytest.raises(FileNotFoundError) as here:
            await host.put(tmp_path / "missing", tmp_path / "there")
        assert not isinstance(here.value, trickle.RemoteError)
        for remote, expected in (
            (tmp_path / "missing" / "there", FileNotFoundError),
            (tmp_path / "directory", IsADirectoryError),
            (tmp_path / "here" / "there", NotADirectoryError),
        ):
            with pytest.raises(expected, match="^web1: ") as there:
                await host.put(tmp_path / "here", remote)
            assert isinstance(there.value, trickle.RemoteError)
        with pytest.raises(FileNotFoundError, match="^web1: "):
            await host.fetch(tmp_path / "missing", tmp_path / "there")
        with pytest.raises(OSError, match="neither a file nor a directory"):
            await host.put("/dev/null", tmp_path / "there")

        assert await host.call(os.getpid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "here"]


async def test_a_cancelled_transfer_leaves_the_old_target_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)
            await trio.lowlevel.checkpoint()

    async with trickle.open_host(local()) as host:
        with trio.move_on_after(0.5) as scope:
            await host.put(endless(), tmp_path / "there")
        assert scope.cancelled_caught

    assert (tmp_path / "there").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


async def test_a_killed_far_end_leaves_the_old_target_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")

    async with trickle.open_host(local()) as host:

        async def endless() -> AsyncIterator[bytes]:
            for number in range(1000):
                if number == 100:
                    os.kill(host.info.pid, signal.SIGKILL)
                yield bytes(100_000)

        with pytest.raises(trickle.HostLost):
            await host.put(endless(), tmp_path / "there")

    assert (tmp_path / "there").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


async def test_an_error_while_reading_here_leaves_nothing_there(tmp_path: Path) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    async with trickle.open_host(local()) as host:
        with pytest.raises(ZeroDivisionError):
            await host.put(failing(), tmp_path / "there")

    assert list(tmp_path.iterdir()) == []


async def test_a_source_that_gives_nothing_does_not_hide_what_has_become_of_the_target(tmp_path: Path) -> None:
    closed = []

    async def quiet() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await trio.sleep_forever()
        finally:
            closed.append(True)

    async with trickle.open_host(local("web1")) as host, trio.open_nursery() as nursery:
        with pytest.raises(FileNotFoundError, match="^web1: "):
            await host.put(quiet(), tmp_path / "missing" / "there")
        nursery.start_soon(_kill_when_it_is_called, host)
        with pytest.raises(trickle.HostLost):
            await host.put(quiet(), tmp_path / "there")

    assert closed  # once, or twice: the first may have been refused before it began
    assert not (tmp_path / "there").exists()


async def test_an_error_of_the_source_goes_before_the_cancellation_that_it_met(tmp_path: Path) -> None:
    begun = trio.Event()

    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("of the source")

    async with trickle.open_host(local()) as host:
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.put, failing(), tmp_path / "there")
                await begun.wait()
                nursery.cancel_scope.cancel()

    assert caught.group_contains(LookupError, match="of the source")
    assert not (tmp_path / "there").exists()


async def _kill_when_it_is_called(host: trickle.Host) -> None:
    while not host.statistics().calls_running:
        await trio.sleep(0.01)
    os.kill(host.info.pid, signal.SIGKILL)


async def test_a_mode_may_be_that_of_another_file(tmp_path: Path) -> None:
    mode = Path(sys.executable).stat().st_mode

    async with trickle.open_host(local()) as host:
        await host.put(b"x", tmp_path / "there", mode=mode)

    assert (tmp_path / "there").stat().st_mode == mode


@pytest.mark.parametrize("mode", [-1, 2**17, 2**40, "0644", True])
async def test_a_mode_that_is_none_is_refused_and_costs_nothing(mode: int, tmp_path: Path) -> None:
    async with trickle.open_host(local()) as host:
        with pytest.raises(ValueError, match="mode="):
            await host.put(b"x", tmp_path / "there", mode=mode)
        with pytest.raises(ValueError, match="mode="):
            await host.fetch(__file__, tmp_path / "there", mode=mode)
        with pytest.raises(ValueError, match="NUL"):
            await host.fetch(__file__, "a\0b")
        with pytest.raises(ValueError, match="NUL"):
            await host.fetch(__file__, b"a\0b")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="NUL"):
            await host.put(b"x", "a\0b")
        assert await host.call(work.add, 1, 2) == 3

    assert list(tmp_path.iterdir()) == []


async def test_times_of_a_clock_that_was_wrong_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    os.utime(tmp_path / "tree" / "file", ns=(10_413_792_000 * 10**9, 10_413_792_000 * 10**9))  # in the year 2300
    kept = (tmp_path / "tree" / "file").stat().st_mtime_ns

    async with trickle.open_host(local()) as host:
        await host.put(tmp_path / "tree", tmp_path / "there")
        await host.fetch(tmp_path / "there", tmp_path / "back")

    assert (tmp_path / "back" / "file").stat().st_mtime_ns == kept


async def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = file_source.Source(os.fsencode(tmp_path / "here"))
    (tmp_path / "here").write_bytes(bytes(files.BATCH * 3))
    list(source.listing())

    contents = source.contents({0: None})
    next(contents)
    with (tmp_path / "here").open("ab") as file:
        file.write(b"more")

    with pytest.raises(OSError, match="changed while it was read"):
        list(contents)


@pytest.mark.parametrize("verb", ["put", "fetch"])
async def test_an_interrupted_transfer_is_resumed(verb: str, tmp_path: Path) -> None:
    data = os.urandom(60 * files.BLOCK)
    (tmp_path / "here").write_bytes(data)

    async with trickle.open_host(local()) as host:
        transfer = getattr(host, verb)
        with trio.CancelScope() as scope:

            def stop_half_way(done: int, of: int | None) -> None:
                if done > len(data) // 2:
                    scope.cancel()

            await transfer(tmp_path / "here", tmp_path / "there", resume=True, progress=stop_half_way)
        assert scope.cancelled_caught
        assert leftovers(tmp_path) == [".there.trickle-part"]
        assert not (tmp_path / "there").exists()

        done = await transfer(tmp_path / "here", tmp_path / "there", resume=True)

    assert (tmp_path / "there").read_bytes() == data
    assert done.sent < len(data)
    assert leftovers(tmp_path) == []


async def test_a_part_that_nobody_resumes_is_removed_by_the_next_transfer(tmp_path: Path) -> None:
    (tmp_path / ".there.trickle-part").write_text("left by somebody")

    async with trickle.open_host(local()) as host:
        await host.put(b"new", tmp_path / "there")

    assert [path.name for path in tmp_path.iterdir()] == ["there"]


async def test_a_file_system_without_nameless_files_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    target = file_target.Target(os.fsencode(tmp_path / "there"), _OPTIONS)
    target.have([(b"", files.FILE, 3, 0o644, 0, b"", -1, -1)])
    target.write([(files.OPEN, 0), (files.DATA, b"abc")])
    assert len(leftovers(tmp_path)) == 1

    target.write([(files.COMMIT, hashlib.sha256(b"abc").digest())])

    assert (tmp_path / "there").read_text() == "abc"
    target.have([])
    assert leftovers(tmp_path) == []


_OPTIONS = {"mode": None, "preserve": True, "fsync": False, "resume": False}
FILE_ENTRY = (b"", files.FILE, 3, 0o644, 0, b"", -1, -1)


@pytest.mark.parametrize(
    "entry",
    [
        (b"../outside", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"/etc/passwd", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"a/../../outside", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"not listed/file", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"link/file", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"nul\0", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"device", "device", 1, 0o644, 0, b"", -1, -1),
        (b"negative", files.FILE, -5, 0o644, 0, b"", -1, -1),
        (b"", files.FILE, 1, 0o644, 0, b"", -1, -1),
        (b"a//b", files.FILE, 1, 0o644, 0, b"", -1, -1),
    ],
    ids=lambda entry: repr(entry[0]),
)
def test_nothing_is_written_outside_of_the_target(entry: tuple[object, ...], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "top").mkdir()
    target = file_target.Target(os.fsencode(tmp_path / "top"), _OPTIONS)
    target.have([(b"", files.DIRECTORY, 0, 0o755, 0, b"", -1, -1)])
    target.have([(b"link", files.LINK, 0, 0o777, 0, os.fsencode(outside), -1, -1)])

    with pytest.raises(ValueError, match="no source of ours|not listed"):
        target.have([entry])  # type: ignore[list-item]

    assert list(outside.iterdir()) == []


def test_a_directory_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "outside")
    target = file_target.Target(os.fsencode(tmp_path / "top"), _OPTIONS)
    target.have([(b"", files.DIRECTORY, 0, 0o755, 0, b"", -1, -1)])

    with pytest.raises(NotADirectoryError):
        target.have([(b"link", files.DIRECTORY, 0, 0o755, 0, b"", -1, -1)])


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ([(files.DATA, b"x")], ValueError),
        ([(files.OPEN, 5)], IndexError),
        ([(99, 0)], ValueError),
        ([(files.OPEN, 0), (files.COMMIT, bytes(32))], OSError),
        ([(files.OPEN, 0), (files.DATA, bytes(1_000_000))], OSError),
        ([(files.OPEN, 0), (files.OPEN, 0)], ValueError),
        ([(files.WHOLE, 0, bytes(32), b"abc")], OSError),
        ([(files.WHOLE, 0, None, b"abc")], ValueError),
        ([(files.OPEN, 0), (files.SAME, 4)], OSError),
        ([(files.OPEN, 0), (files.SAME, -3)], ValueError),
        ([(files.OPEN, 0), (files.HOLE, -3)], ValueError),
        ([(files.OPEN, 0), (files.HOLE, 2**40)], OSError),
    ],
)
def test_contents_that_no_source_sends_are_refused(
    ops: list[tuple[object, ...]], error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "there").write_text("old")
    target = file_target.Target(os.fsencode(tmp_path / "there"), _OPTIONS)
    target.have([FILE_ENTRY])

    with pytest.raises(error):
        target.write(ops)
    target.abandon()

    assert (tmp_path / "there").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("message", [b"", b"\0\0\0\0", b"\0\0\0\5abc", b"\xff\xff\xff\xff" + bytes(100)])
def test_messages_that_no_side_sends_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        files.split_message(message)


@pytest.mark.parametrize(
    "ops", [[], [(files.DATA, 4)], [(files.DATA, 2)], [(files.DATA, 4), (files.DATA, -1)], [(files.DATA, -3)]]
)
def test_contents_that_do_not_fit_their_message_are_refused(ops: list[tuple[object, ...]]) -> None:
    with pytest.raises(ValueError):
        files.put_contents(ops, memoryview(b"abc"))


def test_contents_come_out_of_a_message_as_they_went_in() -> None:
    ops = [(files.OPEN, 0), (files.DATA, b"abc"), (files.HOLE, 5), (files.WHOLE, 1, bytes(32), b""), (files.SAME, 1)]
    head, contents = files.take_contents(ops)

    split, rest = files.split_message(b"".join(files.message(b"head", contents)))

    assert split == b"head"
    assert files.put_contents(head, rest) == ops


# ---- groups


async def test_each_host_of_a_group_has_a_file_of_its_own_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    names = ["a/b", "a_b", "a%2Fb", "..", "plain"]
    (tmp_path / "here").mkdir()

    async with trickle.open_group([local(name) for name in names]) as group:
        fetched = (await group.fetch(tmp_path / "there", f"{tmp_path}/here/{{host}}")).unwrap()

    assert sorted(os.listdir(tmp_path / "here")) == ["%2E%2E", "a%252Fb", "a%2Fb", "a_b", "plain"]
    assert fetched["a/b"].path == f"{tmp_path}/here/a%2Fb"


async def test_groups_have_the_same_verbs(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("for all")
    unreachable = trickle.Command(["false"], name="c")

    async with trickle.open_group([local("a"), local("b"), unreachable]) as group:
        await group[:1].put(tmp_path / "here", tmp_path / "there")
        fetched = await group.fetch(tmp_path / "there", tmp_path / "from {host}")
        ran = await group.run_process(["cat", str(tmp_path / "there")], capture_stdout=True)
        with pytest.raises(ValueError, match=r"\{host\}"):
            await group.fetch(tmp_path / "there", tmp_path / "same")

        streamed: dict[str, list[object]] = {"a": [], "b": [], "c": []}
        async with group.stream(flows.count_and_fail, 3) as things:
            async for name, thing in things:
                streamed[name].append(thing)

    assert list(fetched.successful()) == ["a", "b"]
    assert (tmp_path / "from a").read_text() == (tmp_path / "from b").read_text() == "for all"
    assert {name: done.stdout for name, done in ran.successful().items()} == {"a": b"for all", "b": b"for all"}
    for name in ("a", "b"):
        *values, failure = streamed[name]
        assert values == [trickle.Success(0), trickle.Success(1), trickle.Success(2)]
        assert isinstance(failure, trickle.Failure) and isinstance(failure.error, ValueError)
    (failure,) = streamed["c"]
    assert isinstance(failure, trickle.Failure) and isinstance(failure.error, trickle.ConnectError)


async def test_a_groups_timeout_is_for_processes_too() -> None:
    async with trickle.open_group([local("a"), local("b")]) as group:
        await group.call(os.getpid)
        results = await group.options(timeout=1.0).run_process(["sleep", "3600"])

    assert {type(error) for error in results.failures().values()} == {trickle.CallTimeout}


async def test_leaving_a_groups_stream_closes_the_generators(tmp_path: Path) -> None:
    async with trickle.open_group([local("a"), local("b")]) as group:
        async with group.stream(flows.count, 10**9) as numbers:
            await numbers.receive()

        assert all(host.statistics().calls_running == 0 for host in group.values())
