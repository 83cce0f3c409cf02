"""What the remote end runs in these benchmarks.  It says first that it has begun."""

import datetime
import subprocess
import time
from collections.abc import Iterator

SECONDS = 3600


def sleep() -> None:
    """In a system call: Python sees a signal at once."""
    print("begun", flush=True)
    time.sleep(SECONDS)


def sleep_beside_a_child() -> None:
    """The same, with a child that has left the group and the session."""
    subprocess.Popen(["sleep", str(SECONDS)], start_new_session=True)
    sleep()


def spin() -> None:
    """In Python code: Python sees a signal at the next step."""
    print("begun", flush=True)
    while True:
        pass


def hold() -> None:
    """In C code that holds the interpreter's lock: no Python code runs in this process any more."""
    print("begun", flush=True)
    sum(range(10**13))


def print_much(size: int) -> None:
    """So many bytes, in lines of 100."""
    lines = ("x" * 99 + "\n") * 100
    for _ in range(size // len(lines)):
        print(lines, end="")


def chunks(count: int, size: int) -> Iterator[bytes]:
    """So many, of so many bytes."""
    for _ in range(count):
        yield bytes(size)


def records(count: int) -> "list[dict[str, object]]":
    """So many, of mixed kinds of data."""
    day = datetime.datetime(2024, 1, 1)
    return [
        {
            "id": number,
            "name": f"host{number}.example.com",
            "at": day + datetime.timedelta(minutes=number),
            "load": [number / 7, number / 11, number / 13],
            "tags": ("web", "eu", str(number % 10)),
            "up": bool(number % 3),
            "disks": {f"/dev/sda{disk}": number * disk for disk in range(4)},
            "digest": bytes([number % 256]) * 16,
            "note": None,
        }
        for number in range(count)
    ]


if __name__ == "__main__":  # what cancel.py's floors start
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a script starts in its background ignores it
    {"sleep": sleep, "spin": spin, "hold": hold}[sys.argv[1]]()
