"""What tests run over there under trio, or in memory, where the log is this program's."""

import contextlib

import trio

import trickle.remote
from tests.far_async import start_and_sleep

log: list[str] = []


async def sleep_and_say(seconds: float, word: str = "awake") -> str:
    try:
        await trio.sleep(seconds)
    except trio.Cancelled:
        log.append("cancelled")
        raise
    log.append(word)
    return word


async def clean_up_for(seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        log.append("clean")


async def shield_for_ever(path: str) -> None:
    with trio.CancelScope(shield=True):
        await start_and_sleep(path)


async def swallow_everything(path: str) -> None:
    with contextlib.suppress(BaseException):
        await start_and_sleep(path)
    while True:
        with contextlib.suppress(BaseException):
            await trio.sleep(3600)


async def return_anyway() -> str:
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return "came anyway"


async def raise_otherwise() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise LookupError("while cleaning up")


async def count_down(seconds: float) -> float:
    await trio.sleep(seconds)
    return trickle.remote.time_left()


async def where() -> str | None:
    await trio.lowlevel.checkpoint()
    return trickle.remote.host_name


async def check_often() -> None:
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        trickle.remote.check_cancelled()


async def shield_for(seconds: float) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)


journal: list[tuple[int, str, float]] = []  # the key of a call, what happened in it, and when


async def behave(key: int, kind: str, seconds: float, ballast: bytes = b"") -> int:
    """Sleep, and end in one of several ways; the journal says in which, whatever the verdict is going to be."""
    journal.append((key, "began", trio.current_time()))
    how = "cancelled"
    try:
        await _behave(kind, seconds)
        how = "returned"
    except ValueError:
        how = "raised"
        raise
    finally:
        journal.append((key, how, trio.current_time()))
    return key


async def _behave(kind: str, seconds: float) -> None:
    if kind == "shields":
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        return
    try:
        await trio.sleep(seconds)
    except trio.Cancelled:
        if kind == "cleans up":
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)
        elif kind == "returns anyway":
            return
        elif kind == "raises otherwise":
            raise ValueError(kind) from None
        raise
    if kind == "raises":
        raise ValueError(kind)
