"""``async def`` functions that tests run over there, under trio."""

import time
from collections.abc import Awaitable

import trio


async def sleep_and_say(seconds: float) -> str:
    await trio.sleep(seconds)
    return "slept"


def wait_for_a_slow_trio(path: str) -> Awaitable[None]:
    """What is returned never begins."""

    def run(function: object) -> None:
        _write(path, "starting")
        time.sleep(3600)

    trio.run = run  # type: ignore[assignment]
    return trio.sleep(0)


async def start_and_sleep(path: str) -> None:
    _write(path, "started")
    await trio.sleep_forever()


async def clean_up(path: str, seconds: float) -> None:
    _write(path + ".started", "started")
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        _write(path, "clean")


async def fail() -> None:
    await trio.sleep(0)
    raise LookupError("async")


async def two_tasks() -> list[int]:
    numbers: list[int] = []

    async def add(number: int) -> None:
        numbers.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, 1)
        nursery.start_soon(add, 2)
    return sorted(numbers)


async def size_of(data: bytes) -> int:
    await trio.lowlevel.checkpoint()
    return len(data)


async def give_bytes(count: int) -> bytes:
    await trio.lowlevel.checkpoint()
    return b"x" * count


async def import_by_name(name: str) -> str:
    import importlib

    await trio.lowlevel.checkpoint()
    return importlib.import_module(name).__name__


def _write(path: str, text: str) -> None:
    import os

    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


async def wait_deep_inside():
    await wait_inside()


async def wait_inside():
    await trio.sleep_forever()


async def spin_inside():
    await trio.sleep(0)
    while True:
        pass


async def fail_deep_inside():
    await fail()


async def yield_and_fail():
    yield 1
    await fail()
