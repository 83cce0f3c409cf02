"""The same as tests/far_groups.py for hosts in memory, whose clock is this program's."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from tests.far_groups import fail_once, first_of_all, host_name, part_of, write


async def act(script: dict[str, tuple[str, Any]], item: object = None) -> object:
    what, about = part_of(script)
    if what == "raise":
        raise ValueError(about)
    if what == "hang":
        await hang(about, item)
    if what == "wait":
        while not Path(about).exists():
            await trio.sleep(0.01)
    if what == "once":
        fail_once(about)
    if what == "overlap":
        return await overlap(about)
    return item if item is not None else host_name()


async def give_some(script: dict[str, tuple[str, Any]], count: int) -> AsyncIterator[int]:
    what, about = part_of(script)
    for number in range(count):
        yield number
        if what == "hang":
            await hang(about, None)


async def hang(directory: str, item: object) -> None:
    path = str(Path(directory) / (str(host_name()) if item is None else f"{host_name()}-{item}"))
    write(path, str(os.getpid()))
    try:
        await trio.sleep_forever()
    finally:
        write(path + ".over", "over")


async def overlap(directory: str) -> int:
    path = Path(directory) / str(host_name())
    path.write_text("here")
    await trio.sleep(0.05)
    count = len(list(Path(directory).iterdir()))
    path.unlink()
    return count


async def act_when(script: dict[str, tuple[str, Any]], path: str) -> object:
    while part_of(script)[0] == "raise" and not Path(path).exists():
        await trio.sleep(0.01)
    return await act(script)


async def act_item(item: tuple[str, Any]) -> object:
    what, about = item
    if what == "hang" or (what == "hang the first" and first_of_all(about)):
        await hang(about, None)
    while what == "wait" and not Path(about).exists():
        await trio.sleep(0.01)
    return about


async def hang_item(item: tuple[str, int]) -> None:
    await hang(*item)


async def give_back(item: object) -> object:
    await trio.lowlevel.checkpoint()
    return item
