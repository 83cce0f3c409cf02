"""Check something everywhere, and do not go on with the rest once it is wrong somewhere.

The first failure stops the checks that still run; ``unwrap`` raises it, and ``except*`` catches it by its own class.
"""

import time

import trio

import trickle
import trickle.remote


def check() -> str:
    """Runs over there."""
    if trickle.remote.host_name == "birch":
        raise FileNotFoundError(2, "no such file", "/etc/service.conf")
    time.sleep(3600)  # a check that takes long
    return "well"


async def main() -> None:
    async with trickle.open_group(trickle.Local(name) for name in ("amber", "birch", "cedar")) as group:
        await group.wait_connected()
        results = await group.options(on_failure="cancel").call(check)

    print(repr(results))
    try:
        results.unwrap()
    except* FileNotFoundError as group_of_errors:
        for error in group_of_errors.exceptions:
            print(error)


if __name__ == "__main__":
    trio.run(main)
