"""Call something that fails now and then, and try again where that is safe."""

import tempfile
from pathlib import Path

import trio

import trickle


def unsteady(path: str) -> str:
    """Runs over there, and fails the first two times."""
    with Path(path).open("a") as file:
        file.write("x")
        attempt = file.tell()
    if attempt < 3:
        raise ConnectionResetError(f"attempt {attempt}")
    return f"worked at attempt {attempt}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "attempts"))
        async with trickle.open_group([trickle.Local("amber")]) as group:
            once = await group.call(unsteady, path)
            print(once)
            more = await group.options(repeatable=True, retries=5, timeout=60).call(unsteady, path)
            print(more)


if __name__ == "__main__":
    trio.run(main)
