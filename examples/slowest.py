"""Find each host's slowest request in a long log, in processes of this machine: the event loop never sees the log.

The hosts could search it themselves.  ``reducing`` is for when they are weak, or the code is not to leave this machine.
"""

import trio

import trickle

REQUESTS = 200_000


def read_log(requests: int) -> "list[tuple[int, str]]":
    """Runs over there, on any Python from 3.6 on."""
    return [(number * 7919 % 104729, f"/page/{number}") for number in range(requests)]


def slowest(log: list[tuple[int, str]]) -> tuple[int, str]:
    """Runs here, in another process: only what it returns comes back."""
    return max(log)


async def main() -> None:
    async with trickle.open_group([trickle.Local("amber"), trickle.Local("birch")]) as group:
        results = await group.options(timeout=60).reducing(slowest).call(read_log, REQUESTS)
    for name, (milliseconds, page) in results.unwrap().items():
        print(f"{name}: {page} took {milliseconds} ms, of {REQUESTS} requests")


if __name__ == "__main__":
    trio.run(main)
