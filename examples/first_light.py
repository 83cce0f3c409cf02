"""Call a function on three hosts at once: one answers, one fails, one is too slow.

The "hosts" are processes of this machine, so that this runs anywhere; put names that ``ssh`` knows in their
place and nothing else changes.
"""

import platform
import time

import trio

import trickle
import trickle.remote

HOSTS = ("amber", "birch", "cedar")


def survey() -> str:
    """Runs over there."""
    if trickle.remote.host_name == "birch":
        raise RuntimeError("the disk is on fire")
    if trickle.remote.host_name == "cedar":
        time.sleep(3600)
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


async def main() -> None:
    async with trickle.open_group(trickle.Local(name=name) for name in HOSTS) as group:
        results = await group.options(timeout=5).call(survey)

    for name, result in results.items():
        match result:
            case trickle.Success(answer):
                print(f"{name}: {answer}")
            case trickle.Failure(trickle.CallTimeout() as error):
                print(f"{name}: timed out ({error.verdict})")
            case trickle.Failure(error):
                print(error)  # every message begins with the host's name


if __name__ == "__main__":
    trio.run(main)
