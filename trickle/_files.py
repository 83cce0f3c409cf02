"""Files and trees to and from a host.

What is read and written at either end, and how, is _agent/files.py's business; this moves it, a message at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import trio

from trickle._agent import files
from trickle._channels import Flow, open_flow
from trickle._settings import CallOptions

if TYPE_CHECKING:
    from trickle._host import CallRecord, HostCore

T = TypeVar("T")

Progress: TypeAlias = "Callable[[int, int | None], object]"
Local: TypeAlias = "str | os.PathLike[str] | os.PathLike[bytes] | bytes | BinaryIO | AsyncIterable[bytes]"
StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
MAX_MESSAGE = 64 * 2**20  # bytes: the hashes of the blocks of a file of 500 GB


@dataclasses.dataclass(frozen=True)
class TransferResult:
    """What a transfer has done.

    Args:
      path: where the file or tree is now.
      size: bytes of all its files.
      checksum: the SHA-256 of the file, in hexadecimal digits; of a tree, that of what ``sha256sum`` prints for its
        files, sorted by path.
      sent: bytes of contents that had to be sent.
      skipped: paths, below the top, of files that were there already, and of what is neither file, directory nor
        link.
    """

    path: str
    size: int
    checksum: str
    sent: int
    skipped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TransferOptions:
    """How files are written: see Host.put."""

    mode: int | None = None
    preserve: bool = True
    fsync: bool = False
    resume: bool = False
    progress: Progress | None = None

    @property
    def for_target(self) -> dict[str, Any]:
        """What the side that writes needs of it."""
        return {"mode": self.mode, "preserve": self.preserve, "fsync": self.fsync, "resume": self.resume}


class _Stepper:
    """Runs what reads and writes files in a thread, one step at a time."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)  # not the program's own, which may be busy with other things

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    async def each(self, iterator: Iterator[list[T]]) -> AsyncGenerator[list[T], None]:
        while True:
            batch = await self.run(next, iterator, None)
            if batch is None:
                return
            if batch:
                yield batch


@trio.lowlevel.enable_ki_protection
async def put(
    core: HostCore,
    options: CallOptions,
    local: Local,
    remote: StrOrBytesPath,
    how: TransferOptions,
    record: CallRecord | None = None,
) -> TransferResult:
    """See Host.put."""
    arguments = ("put", os.fsencode(remote), how.for_target)
    async with open_flow(core, "files", len, arguments, {}, _for_transfers(options), record=record) as flow:
        flow.link.expect_bulk()
        stepper = _Stepper()
        special: list[bytes] = []
        if isinstance(local, str | os.PathLike):
            source = files.Source(os.fsencode(local))
            await _give(flow, stepper, source, how)
            special = source.special
        else:
            await _give_content(flow, stepper, local, how)
        flow.send_eof()
        return _result(await flow.result(), special)


async def _give(flow: Flow, stepper: _Stepper, source: files.Source, how: TransferOptions) -> None:
    had: dict[int, list[bytes] | None] = {}
    async with aclosing(stepper.each(source.listing())) as listing:
        async for entries in listing:
            await flow.send_plain(("list", entries))
            answer = await _received(flow)
            had.update(enumerate(answer, len(had)))
    done = 0
    async with aclosing(stepper.each(source.contents(had))) as contents:
        async for ops in contents:
            await flow.send_plain(("write", ops))
            done = _tell(how, done, source, ops)


async def _give_content(flow: Flow, stepper: _Stepper, local: Any, how: TransferOptions) -> None:
    size = len(local) if isinstance(local, bytes) else -1
    content = files.Content(size)
    await flow.send_plain(("list", [content.entry]))
    await _received(flow)
    await flow.send_plain(("write", content.begin()))
    done = 0
    async with aclosing(_chunks(local, stepper)) as chunks:
        async for data in chunks:
            await flow.send_plain(("write", content.add(data)))
            done += len(data)
            if how.progress is not None:
                how.progress(done, size if size >= 0 else None)
    await flow.send_plain(("write", content.end()))


async def _chunks(local: Any, stepper: _Stepper) -> AsyncGenerator[bytes, None]:
    """The contents, in pieces of up to a BATCH."""
    if isinstance(local, bytes):
        for start in range(0, len(local), files.BATCH):
            yield local[start : start + files.BATCH]
    elif hasattr(local, "__aiter__"):
        try:
            async for data in local:
                for start in range(0, len(data), files.BATCH):
                    yield bytes(data[start : start + files.BATCH])
        finally:
            if hasattr(local, "aclose"):  # nobody else can: it was made for us
                await local.aclose()
    elif hasattr(local, "read"):
        while data := await stepper.run(local.read, files.BATCH):
            if not isinstance(data, bytes):
                raise TypeError(f"{local!r} gives {type(data).__name__}: open it in binary mode")
            yield data
    else:
        raise TypeError(
            f"{local!r} cannot be put: give a path, bytes, a file that is open in binary mode, or an async iterable"
            " of bytes"
        )


@trio.lowlevel.enable_ki_protection
async def fetch(
    core: HostCore,
    options: CallOptions,
    remote: StrOrBytesPath,
    local: StrOrBytesPath,
    how: TransferOptions,
    record: CallRecord | None = None,
) -> TransferResult:
    """See Host.fetch."""
    arguments: tuple[str, bytes, dict[str, Any]] = ("fetch", os.fsencode(remote), {})
    target = files.Target(os.fsencode(local), how.for_target)
    try:
        async with open_flow(core, "files", len, arguments, {}, _for_transfers(options), record=record) as flow:
            flow.link.expect_bulk()
            stepper = _Stepper()
            done = 0
            try:
                while (message := await _message(flow)) is not None:
                    what, value = message
                    if what == "list":
                        await flow.send_plain(await stepper.run(target.have, value))
                    else:
                        await stepper.run(target.write, value)
                        done = _tell(how, done, target, value)
                ended = await flow.result()
                return _result(await stepper.run(target.finish), ended["special"])
            except (ValueError, KeyError, IndexError, TypeError) as exc:
                raise flow.protocol_error(f"in a transfer: {exc}") from exc
    finally:
        target.abandon()


async def _message(flow: Flow) -> Any:
    """What the source says next; None at the end."""
    try:
        return await flow.receive()
    except trio.EndOfChannel:
        return None


async def _received(flow: Flow) -> Any:
    """The target's answer; if it has none to give, what became of it."""
    try:
        return await flow.receive()
    except trio.EndOfChannel:
        await flow.result()
        raise


def _tell(how: TransferOptions, done: int, of: files.Source | files.Target, ops: list[files.Op]) -> int:
    for op in ops:
        if op[0] in (files.DATA, files.WHOLE):
            done += len(op[-1])
        elif op[0] in (files.SAME, files.HOLE):
            done += op[1]
        elif op[0] == files.UNCHANGED:
            done += of.entries[op[1]][2]
    if how.progress is not None:
        how.progress(done, sum(entry[2] for entry in of.entries if entry[1] == files.FILE))
    return done


def _for_transfers(options: CallOptions) -> CallOptions:
    return options.replace(max_result=MAX_MESSAGE, trust="data", allow=())


def _result(about: dict[str, Any], special: list[bytes]) -> TransferResult:
    return TransferResult(
        path=os.fsdecode(about["path"]),
        size=about["size"],
        checksum=about["checksum"],
        sent=about["sent"],
        skipped=tuple(os.fsdecode(path) or "." for path in [*about["skipped"], *special]),
    )
