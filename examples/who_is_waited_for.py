"""Show where each host has come to while a call is under way.

With the package rich there is a table that stays up to date; without it, a line for each change.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import trio

import trickle
import trickle.remote


def work() -> None:
    """Runs over there."""
    time.sleep({"amber": 0.2, "birch": 0.6, "cedar": 1.0}[trickle.remote.host_name or "amber"])


@contextlib.contextmanager
def view() -> Iterator[Callable[[trickle.HostProgress], object]]:
    try:
        from trickle.live_view import LiveView
    except ImportError:
        yield lambda progress: print(f"{progress.host}: {progress.state}")
        return
    with LiveView() as live:
        yield live


async def main() -> None:
    async with trickle.open_group(trickle.Local(name) for name in ("amber", "birch", "cedar")) as group:
        with view() as progress:
            await group.options(progress=progress, timeout=60).call(work)


if __name__ == "__main__":
    trio.run(main)
