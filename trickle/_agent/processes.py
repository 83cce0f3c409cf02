"""Run a command here, and pass on what flows through its pipes: the far end of trickle/_processes.py.

Each pipe has a credit of its own, so that one whose reader does not read holds no other up.
"""

import errno
import os
import select
import subprocess
import threading

from trickle._agent.options import as_words
from trickle._agent.reaper import MARK
from trickle._wire.frames import CHUNK
from trickle._wire.items import PIPE_CREDIT, STDERR, STDIN, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence, Union

    from trickle._agent.channels import Channel

TAIL = 2048  # bytes of stderr that an error shows


def serve(channel: "Channel", command: "Union[str, Sequence[str]]", options: "Dict[str, Any]") -> None:
    """Run *command* and serve it until it has ended and its pipes with it."""
    process = Process(channel, options.pop("keep_tail") and options["stderr"] is None)
    try:
        process.start(command, options)
        process.run()
    except BaseException:
        process.end()
        raise


class Process:
    """The process, its pipes, and what is to go through them."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, channel: "Channel", keep_tail: bool) -> None:
        self.channel = channel
        self.keep_tail = keep_tail
        self.tail = b""
        self.poller = select.poll()
        self.pipes: "Dict[int, Any]" = {}  # by our number
        self.credit = {STDOUT: PIPE_CREDIT, STDERR: PIPE_CREDIT}
        self.to_write: "List[memoryview]" = []
        self.close_stdin = False

    def start(self, command: "Union[str, Sequence[str]]", options: "Dict[str, Any]") -> None:
        """Start it, with what subprocess.Popen takes."""
        if options["env"] is not None:
            options["env"] = {as_words(name): as_words(value) for name, value in options["env"].items()}
            options["env"][MARK] = os.environ[MARK]
        if options["cwd"] is not None:
            options["cwd"] = as_words(options["cwd"])
        command = [as_words(word) for word in command] if isinstance(command, list) else as_words(command)
        if self.keep_tail:
            options["stderr"] = subprocess.PIPE
        self.process = subprocess.Popen(command, **options)
        for number, pipe in enumerate((self.process.stdin, self.process.stdout, self.process.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self.pipes[number] = pipe
        self.ended_fd, self.ended_write = os.pipe()
        threading.Thread(target=self._wait_for_end, daemon=True).start()
        self.channel.say(("started", self.process.pid, b""))

    def run(self) -> None:
        """Serve until there is nothing more to do."""
        self.poller.register(self.channel.fileno(), select.POLLIN)
        self.poller.register(self.ended_fd, select.POLLIN)
        while self.process.returncode is None or self.pipes:
            self._watch()
            self._turn(dict(self.poller.poll()))

    def end(self) -> None:
        """Ask it to end, and wait until it has: after the grace period it is killed, and we are."""
        process = getattr(self, "process", None)
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            process.wait()
        self.channel.tell_exit(process.returncode)

    def _wait_for_end(self) -> None:
        try:
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own
        except AttributeError:  # macOS before Python 3.13
            self.process.wait()
        except OSError:
            pass
        os.write(self.ended_write, b"x")

    def _watch(self) -> None:
        """Have the poller look at those pipes for which there is room, or something to write."""
        for number, pipe in self.pipes.items():
            if number == STDIN:
                events = select.POLLOUT if self.to_write else 0  # whether its reader has gone is told in any case
            else:
                events = select.POLLIN if self.credit[number] > 0 else 0
            if events or number == STDIN:
                self.poller.register(pipe.fileno(), events)
            else:
                self._forget(pipe)

    def _forget(self, pipe: "Any") -> None:
        try:
            self.poller.unregister(pipe.fileno())
        except KeyError:
            pass

    def _turn(self, ready: "Dict[int, int]") -> None:
        for number, pipe in list(self.pipes.items()):
            events = ready.get(pipe.fileno(), 0)
            if number == STDIN and events & ~select.POLLOUT:
                self._break_stdin()
            elif number == STDIN and events:
                self._write()
            elif events:
                self._read(number)
        if self.channel.fileno() in ready:
            self._take_orders()
        if self.ended_fd in ready:
            self._end()

    def _end(self) -> None:
        self.process.wait()
        self.poller.unregister(self.ended_fd)
        os.close(self.ended_fd)
        os.close(self.ended_write)
        while self.keep_tail and STDERR in self.pipes and self._read(STDERR):
            pass  # what it has said itself; a child of its own may hold the pipe and say more
        self.channel.say(("exit", self.process.returncode, self.tail))

    def _take_orders(self) -> None:
        while True:
            try:
                order, number, value = self.channel.receive(0)
            except TimeoutError:
                return
            if order == "data":
                self.to_write.append(memoryview(value))
                self._write()
            elif order == "close" and number == STDIN:
                self.close_stdin = True
                self._write()
            elif order == "close":
                self._close(number)
            elif order == "more":
                self.credit[number] += value
            elif order == "signal" and self.process.returncode is None:
                self._signal(value)

    def _signal(self, number: int) -> None:
        try:
            self.process.send_signal(number)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # this system has no such signal
                raise

    def _write(self) -> None:
        """Give the process what its stdin takes."""
        written = 0
        while self.to_write and STDIN in self.pipes:
            try:
                count = os.write(self.pipes[STDIN].fileno(), self.to_write[0])
            except BlockingIOError:
                break
            except OSError:
                self._break_stdin()
                break
            written += count
            self.to_write[0] = self.to_write[0][count:]
            if not self.to_write[0]:
                del self.to_write[0]
        if self.close_stdin and not self.to_write:
            self._close(STDIN)
        if written:
            self.channel.say(("more", STDIN, written))

    def _break_stdin(self) -> None:
        self._close(STDIN)
        self.to_write = []
        self.channel.say(("broken", STDIN, b""))

    def _read(self, number: int) -> bool:
        """Pass on what one pipe holds; False at its end, or if it holds nothing now."""
        try:
            data = os.read(self.pipes[number].fileno(), min(CHUNK, self.credit[number]))
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(number)
        if number == STDERR and self.keep_tail:
            self.tail = (self.tail + data)[-TAIL:]
            while data:
                data = data[os.write(2, data) :]
        else:
            self.credit[number] -= len(data)
            self.channel.say(("data", number, data))
        return number in self.pipes

    def _close(self, number: int) -> None:
        pipe = self.pipes.pop(number, None)
        if pipe is not None:
            self._forget(pipe)
            try:
                pipe.close()
            except OSError:
                pass
