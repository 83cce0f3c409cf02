"""Run a command with its stdin and stdout delayed, so that round trips can be counted.

Usage: ``python delay_pipe.py ONE_WAY_MS -- COMMAND [WORD...]``.  Bandwidth is not limited, stderr is not
delayed, and the exit status is the command's.  As a tunnel::

    trickle.Command((sys.executable, "tests/delay_pipe.py", "50", "--"))
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable

CHUNK = 1 << 16


def main(argv: list[str]) -> int:
    if len(argv) < 3 or argv[1] != "--":
        print(__doc__, file=sys.stderr)
        return 2
    delay = float(argv[0]) / 1000
    process = subprocess.Popen(argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    start_lane(0, process.stdin.fileno(), delay, process.stdin.close)
    outgoing = start_lane(process.stdout.fileno(), 1, delay, lambda: os.close(1))
    outgoing.join()
    return process.wait()


def start_lane(source: int, target: int, delay: float, close: Callable[[], object]) -> threading.Thread:
    """Copy *source* to *target*, each chunk *delay* seconds late, then close; return the writing thread."""
    late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                data = os.read(source, CHUNK)
            except OSError:
                data = b""
            late.put((time.monotonic() + delay, data))
            if not data:
                return

    def write() -> None:
        with contextlib.suppress(OSError):  # nobody reads any more: then nobody writes any more either
            while True:
                due, data = late.get()
                time.sleep(max(0, due - time.monotonic()))
                if not data:
                    break
                while data:
                    data = data[os.write(target, data) :]
        with contextlib.suppress(OSError):
            close()

    threading.Thread(target=read, daemon=True).start()
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    return writer


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status if status >= 0 else 128 - status)  # at once: a lane may still wait for input
