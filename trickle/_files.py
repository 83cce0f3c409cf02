"""Files and trees to and from a host.

What is read and written at either end, and how, is the business of the agent's files; this moves it, a message at a
time, and does not believe what a host says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import trio

from trickle._agent import file_source, file_target, files
from trickle._async_support import is_async
from trickle._channels import Flow, open_flow
from trickle._exceptions import UnsafeResult
from trickle._settings import CallOptions, is_count
from trickle._wire.connection import LARGEST_MESSAGE

if TYPE_CHECKING:
    from trickle._host_core import CallRecord, HostCore

T = TypeVar("T")

MOST_MODE = 0o177777  # with the type of a file, as stat has it

Progress: TypeAlias = "Callable[[int, int | None], object]"
Contents: TypeAlias = "bytes | bytearray | memoryview"
Local: TypeAlias = "str | os.PathLike[str] | os.PathLike[bytes] | bytes | BinaryIO | AsyncIterable[Contents]"
StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"


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
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode is not None:
            if not is_count(self.mode, 0) or self.mode > MOST_MODE:
                raise ValueError(f"mode={self.mode!r}: it is a number from 0 to 0o7777, such as 0o644, or None")
            object.__setattr__(self, "mode", stat.S_IMODE(self.mode))
        if self.max_size is not None and not is_count(self.max_size, 0):
            raise ValueError(f"max_size={self.max_size!r}: it is a number of bytes, or None")
        if self.progress is not None and (not callable(self.progress) or is_async(self.progress)):
            raise TypeError(
                f"progress={self.progress!r}: it is a callable, and not async, that takes two numbers of bytes"
            )

    @property
    def for_target(self) -> dict[str, Any]:
        """What the side that writes needs of it."""
        return {"mode": self.mode, "preserve": self.preserve, "fsync": self.fsync, "resume": self.resume}


def _refuse_nul(*paths: StrOrBytesPath) -> None:
    for path in paths:
        if b"\0" in os.fsencode(path):
            raise ValueError(f"{path!r}: there is no NUL in a path")


class _Stepper:
    """Runs what reads and writes files in a thread, one step at a time; a cancel ends a step between two blocks."""

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
    source: file_source.Source | None = None
    _refuse_nul(remote, *[local] if isinstance(local, str | os.PathLike) else [])
    check = trio.from_thread.check_cancelled
    if isinstance(local, str | os.PathLike):
        source = file_source.Source(os.fsencode(local), f" (here, for {core.name})", check)
    elif isinstance(local, bytes):
        source = file_source.Given(local, check)
    stepper = _Stepper()
    if source is not None:
        listing = source.listing()
        first = await stepper.run(next, listing)  # what is not here costs the host nothing
    arguments = (os.fsencode(remote), how.for_target)
    async with open_flow(core, "put", len, arguments, {}, options.for_messages(LARGEST_MESSAGE), record=record) as flow:
        flow.link.expect_bulk()
        if source is not None:
            await _give(flow, stepper, source, itertools.chain([first], listing), how)
        else:
            with trio.CancelScope() as giving:  # the next of it may never come, whatever becomes of the target
                flow.nursery.start_soon(_cancel_at_end, flow, giving)
                await _give_as_it_comes(flow, stepper, local, how)
        flow.send_eof()
        return _result(flow, await flow.result(), source.special if source is not None else [])


@trio.lowlevel.enable_ki_protection
async def _cancel_at_end(flow: Flow, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.Cancelled):  # the block is told of that itself
        await flow.call.finished.wait()
        scope.cancel()


async def _give(
    flow: Flow,
    stepper: _Stepper,
    source: file_source.Source,
    listing: Iterator[list[files.Entry]],
    how: TransferOptions,
) -> None:
    had: dict[int, bytes | None] = {}
    async with aclosing(stepper.each(listing)) as batches:
        async for entries in batches:
            await _send(flow, ("list", entries))
            had.update(enumerate(await _what_it_has(flow, len(entries)), len(had)))
    done = 0
    async with aclosing(stepper.each(source.contents(had))) as contents:
        async for ops in contents:
            await _send_ops(flow, ops)
            if how.progress is not None:
                done += _done_by(ops, source.entries)
                how.progress(done, source.total)


async def _give_as_it_comes(flow: Flow, stepper: _Stepper, local: Any, how: TransferOptions) -> None:
    content = file_source.Flowing()
    await _send(flow, ("list", [content.entry]))
    await _what_it_has(flow, 1)
    await _send_ops(flow, content.begin())
    done = 0
    async with aclosing(_chunks(local, stepper)) as chunks:
        async for data in chunks:
            await _send_ops(flow, content.add(data))
            if how.progress is not None:
                done += len(data)
                how.progress(done, None)
    await _send_ops(flow, content.end())


async def _what_it_has(flow: Flow, count: int) -> list[bytes | None]:
    """The target's answer to *count* entries; if it has none to give, what became of it."""
    try:
        answer, _ = await _receive(flow)
    except trio.EndOfChannel:
        await flow.result()
        raise
    if type(answer) is not list or len(answer) != count or {type(each) for each in answer} - {bytes, type(None)}:
        raise flow.protocol_error("in a transfer: an answer that no target of ours gives")
    return answer


async def _chunks(local: Any, stepper: _Stepper) -> AsyncGenerator[bytes, None]:
    """The contents, in pieces of up to a BATCH."""
    if hasattr(local, "__aiter__"):
        try:
            async for data in local:
                if not isinstance(data, bytes | bytearray | memoryview):
                    raise TypeError(f"{local!r} gives {type(data).__name__}: it is to give bytes")
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
    _refuse_nul(local, remote)
    arguments: tuple[bytes, dict[str, Any]] = (os.fsencode(remote), {})
    where = f" (here, from {core.name})"
    rules = {**how.for_target, "set_id": False, "max_size": how.max_size}  # a host has no say in who may do what here
    target = file_target.Target(os.fsencode(local), rules, where, trio.from_thread.check_cancelled)
    try:
        async with open_flow(
            core, "fetch", len, arguments, {}, options.for_messages(LARGEST_MESSAGE), record=record
        ) as flow:
            flow.link.expect_bulk()
            stepper = _Stepper()
            done = 0
            while (message := await _message(flow)) is not None:
                what, value = message
                if what == "list":
                    await _send(flow, await _obey(flow, stepper, target.have, value))
                    most = max(core.settings.max_payload, LARGEST_MESSAGE)
                    if target.listed > most:
                        raise UnsafeResult(
                            f"{core.name}: a list of {len(target.entries)} files and more, which takes more than"
                            f" {most} bytes here; fetch parts of that tree, or raise max_payload in open_host",
                            host=core.name,
                        )
                    continue
                await _obey(flow, stepper, target.write, value)
                if how.progress is not None:
                    done += _done_by(value, target.entries)
                    how.progress(done, target.total)
            ended = await flow.result()
            about = await _obey(flow, stepper, target.finish)
            special = ended.get("special") if isinstance(ended, dict) else None
            return _result(flow, about, special)
    finally:
        target.abandon()


async def _message(flow: Flow) -> tuple[str, list[Any]] | None:
    """What the source says next; None at the end."""
    try:
        message, contents = await _receive(flow)
    except trio.EndOfChannel:
        return None
    match message:
        case "list", list() as value:
            return "list", value
        case "write", list() as value:
            with _protocol_errors(flow):
                return "write", files.put_contents(value, contents)
    raise flow.protocol_error("in a transfer: what no source of ours says")


async def _send(flow: Flow, value: object, contents: Sequence[bytes] = ()) -> None:
    await flow.send_payload(*files.message(pickle.dumps(value, 4), list(contents)))


async def _send_ops(flow: Flow, ops: list[files.Op]) -> None:
    ops, contents = files.take_contents(ops)
    await _send(flow, ("write", ops), contents)


async def _receive(flow: Flow) -> tuple[Any, memoryview]:
    """What the other side says, by the rules for results, and the contents that it speaks of."""
    payload = await flow.receive_payload()
    with _protocol_errors(flow):
        head, contents = files.split_message(payload)
    return await flow.core.read_result(head, flow.options), contents


@contextlib.contextmanager
def _protocol_errors(flow: Flow) -> Iterator[None]:
    """What makes no sense is not from one of ours."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError) as exc:
        raise flow.protocol_error(f"in a transfer: {exc}") from exc


async def _obey(flow: Flow, stepper: _Stepper, fn: Callable[..., T], *args: object) -> T:
    """Do what the source says."""
    with _protocol_errors(flow):
        return await stepper.run(fn, *args)


def _done_by(ops: list[files.Op], entries: list[files.Entry]) -> int:
    """Bytes of files that are in place, or on their way there, after these."""
    done = 0
    for op in ops:
        if op[0] in (files.DATA, files.WHOLE):
            done += len(op[-1])
        elif op[0] in (files.SAME, files.HOLE):
            done += op[1]
        elif op[0] == files.UNCHANGED:
            done += entries[op[1]][2]
    return done


def _result(flow: Flow, about: Any, special: Any) -> TransferResult:
    match about, special:
        case (
            {
                "path": bytes() as path,
                "size": int() as size,
                "checksum": str() as checksum,
                "sent": int() as sent,
                "skipped": list() as skipped,
            },
            list() as special,
        ) if all(isinstance(below, bytes) for below in [*skipped, *special]):
            names = tuple(os.fsdecode(below) or "." for below in [*skipped, *special])
            return TransferResult(os.fsdecode(path), size, checksum, sent, names)
    raise flow.protocol_error("in a transfer: a result that no target of ours gives")
