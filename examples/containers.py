"""Run a function under several versions of Python at once, each in a container of its own.

Usage: python containers.py [--engine ENGINE] [IMAGE...]

ENGINE is docker or podman.  An image that is not there is pulled.  One that cannot be had, or in which the function
fails, gets a row with the reason, and then the exit status is 1.
"""

import argparse
import platform
import sys

import trio

import trickle

IMAGES = ("python:3.9-slim", "python:3.12-slim")


def median_of_squares() -> "tuple[str, float]":
    """Runs over there: what is to be tried under each version."""
    import statistics

    return platform.python_version(), statistics.median(number**2 for number in range(10))


async def main(engine: str, images: list[str]) -> int:
    options = ("--network", "none")  # what is tried has no business on the network
    tunnels = [trickle.Docker(image, image=image, engine=engine, run_options=options) for image in images]
    async with trickle.open_group(tunnels) as group:
        results = await group.call(median_of_squares)

    for image, result in results.items():
        match result:
            case trickle.Success((version, median)):
                print(f"{image:<24} Python {version:<9} {median}")
            case trickle.Failure(error):
                reason, *_ = str(error).splitlines()
                print(f"{image:<24} {reason.removeprefix(f'{image}: ')}")
    return 1 if results.failures() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="docker")
    parser.add_argument("images", nargs="*", metavar="IMAGE", default=IMAGES)
    arguments = parser.parse_args()
    sys.exit(trio.run(main, arguments.engine, list(arguments.images)))
