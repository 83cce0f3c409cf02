"""Stop remote work that does not want to be stopped, and see that it is gone.

Usage: python stop_for_real.py [HOST]

HOST is a name for ``ssh``; without one, a process of this machine plays the host.  Three calls run into a timeout: one
that waits, one that started a child in a session of its own, and one that holds the interpreter's lock in C code.
"""

import sys
import time

import trio

import trickle


def wait() -> None:
    time.sleep(3600)


def start_a_child() -> None:
    import subprocess

    subprocess.Popen(["sleep", "86399"], start_new_session=True).wait()


def hold_the_lock() -> int:
    return sum(range(10**13))


def sleepers() -> int:
    """How many of those children this host runs."""
    import subprocess

    listed = subprocess.run(["ps", "-eo", "args"], stdout=subprocess.PIPE, universal_newlines=True)  # noqa: UP021 (text= is new in 3.7)
    return listed.stdout.splitlines().count("sleep 86399")


async def main(tunnel: trickle.abc.Tunnel | str) -> None:
    async with trickle.open_host(tunnel) as host:
        impatient = host.options(grace_period=0.5)
        for function in (wait, start_a_child, hold_the_lock):
            with trio.move_on_after(1):
                await impatient.call(function)
            print(f"{function.__name__:<14} {dict(host.statistics().verdicts)}")
        print(f"children left: {await host.call(sleepers)}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else trickle.Local())
