"""A tunnel's command that carries bytes between its own pipes and those of the command behind it, with one fault.

Usage: python faulty_relay.py FAULT DIRECTORY COMMAND [WORD...]

Processes that a fault leaves behind write their number into a file of DIRECTORY, for the test to end them.
"""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

STAY = "import os, sys, time; os.read(int(sys.argv[1]), 1) or time.sleep(3600)"  # stays, unless it is told to go


class Relay:
    def __init__(self, fault: str, directory: str, argv: list[str]) -> None:
        self.fault = fault
        self.directory = Path(directory)
        # What is left behind is not of this process's group, which is killed with it.
        self.child = self.start(
            argv, own_session=fault.startswith("holds its pipes"), stdin=PIPE, stdout=PIPE, bufsize=0
        )
        assert self.child.stdin is not None and self.child.stdout is not None
        self.stdin, self.stdout = self.child.stdin, self.child.stdout
        self.chunks = 0  # that went to stdout
        self.go: int | None = None  # what the helper reads from has its other end here
        if fault.startswith("leaves a helper"):
            self.start_helper(argv[-1])
        if fault.startswith("holds its pipes"):
            self.start_helper("", self.stdin.fileno(), self.stdout.fileno())

    def start(self, argv: list[str], *, own_session: bool, **options: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(argv, start_new_session=own_session, **options)
        if own_session:
            (self.directory / str(process.pid)).touch()
        return process

    def start_helper(self, word: str, *held: int) -> None:
        """Start what stays when this process ends without telling it to go."""
        reader, self.go = os.pipe()
        argv = [sys.executable, "-c", STAY, str(reader), word]
        self.start(argv, own_session=True, pass_fds=[reader, *held], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        os.close(reader)

    def dismiss_helper(self) -> None:
        go, self.go = self.go, None
        if go is not None:
            os.write(go, b"x")

    def run(self) -> int:
        if self.fault == "one direction at a time":
            self.carry_one_direction_at_a_time()
        else:
            threading.Thread(target=self.carry_down, daemon=True).start()
            self.carry_up()
        status = self.child.wait()
        if self.fault == "leaves a helper when it is killed" or status in (0, 7):
            self.dismiss_helper()
        return status if status >= 0 else 128 - status

    def carry_down(self) -> None:
        """From stdin to the command."""
        with contextlib.suppress(OSError):  # it has ended
            while data := os.read(0, 65536):
                write(self.stdin.fileno(), data.replace(b"\x04", b"") if self.fault == "eats from stdin" else data)
        if self.fault == "loses the end of stdin":
            time.sleep(3600)
        if self.fault == "holds its pipes open after it was killed":
            self.dismiss_helper()
        self.stdin.close()

    def carry_up(self) -> None:
        """From the command to stdout."""
        held = b""
        while data := os.read(self.stdout.fileno(), 65536):
            self.chunks += 1
            if self.fault == "leaves a helper when connecting is cancelled":
                self.dismiss_helper()
            if self.fault == "holds small messages back":
                held += data
                if len(held) < 4096:
                    continue
                data, held = held, b""
            write(1, self.spoilt(data))
        write(1, held)

    def spoilt(self, data: bytes) -> bytes:
        if self.fault == "eats from stdout":
            return data.replace(b"\0", b"")
        if self.fault == "translates line ends":
            return data.replace(b"\n", b"\r\n")
        if self.fault == "talks in the middle" and self.chunks == 3:
            return b"[still there]" + data
        return data

    def carry_one_direction_at_a_time(self) -> None:
        """As long as there is something in one direction, nothing is looked at in the other."""
        targets = {0: self.stdin.fileno(), self.stdout.fileno(): 1}
        while self.stdout.fileno() in targets:
            source = min(select.select(list(targets), [], [])[0])
            if data := os.read(source, 65536):
                write(targets[source], data)
            else:
                os.close(targets.pop(source))


def write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


if __name__ == "__main__":
    status = Relay(sys.argv[1], sys.argv[2], sys.argv[3:]).run()
    os._exit(status)  # at once: a thread still waits for stdin
