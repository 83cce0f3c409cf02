"""What the remote end runs in these benchmarks.  It says first that it has begun."""

import time

SECONDS = 3600


def sleep():  # type: ignore[no-untyped-def]
    """In a system call: Python sees a signal at once."""
    print("begun", flush=True)
    time.sleep(SECONDS)


def spin():  # type: ignore[no-untyped-def]
    """In Python code: Python sees a signal at the next step."""
    print("begun", flush=True)
    while True:
        pass


def hold():  # type: ignore[no-untyped-def]
    """In C code that holds the interpreter's lock: no Python code runs in this process any more."""
    print("begun", flush=True)
    sum(range(10**13))


if __name__ == "__main__":  # what cancel.py's floors start
    import sys

    {"sleep": sleep, "spin": spin, "hold": hold}[sys.argv[1]]()
