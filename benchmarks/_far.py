"""What the remote end runs in these benchmarks.  It says first that it has begun."""

import subprocess
import time

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


if __name__ == "__main__":  # what cancel.py's floors start
    import sys

    {"sleep": sleep, "spin": spin, "hold": hold}[sys.argv[1]]()
