"""The broker's side of a worker: fork it, hand it frames, take what it says.  When to do so is broker.py's job."""

import _signal  # type: ignore[import-not-found]  # signal itself brings enum
import _socket  # socket itself costs ten times as much to import
import fcntl
import os
import sys
from collections import deque

from trickle._agent import reaper
from trickle._wire import frames
from trickle._wire.frames import CANCELLED, CHUNK, Call, Decoder, Modules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, List, Optional, Set, Tuple

    from trickle._agent.ladder import Task

LINUX = sys.platform.startswith("linux")
F_SETSIG = 10  # of fcntl(2), Linux; Python does not name it everywhere
SIGKILL = 9
READ_SIZE = CHUNK + 1024  # a frame; a buffer of more than 128 KiB would be mapped and unmapped each time
# A message for each frame: what a worker has not taken yet can be taken back, whole.
LINK_KIND = _socket.SOCK_SEQPACKET if LINUX else _socket.SOCK_STREAM
LINE = CHUNK // 2  # bytes: a longer line is cut
LOWEST_FREE = 7  # the worker's own descriptors are 0 to 6
LONGEST_STACK = 4000  # bytes: what fits a small frame


class Lines:
    """Cuts what comes out of one output pipe into blocks of whole lines."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self._rest = b""

    def feed(self, data: bytes) -> "List[bytes]":
        """Blocks of whole lines, none longer than a frame."""
        data = self._rest + data
        blocks = []
        while len(data) > LINE:
            cut = data.rfind(b"\n", 0, LINE) + 1 or _before_character(data, LINE)
            blocks.append(data[:cut])
            data = data[cut:]
        cut = data.rfind(b"\n") + 1
        if cut:
            blocks.append(data[:cut])
        self._rest = data[cut:]
        return blocks

    @property
    def has_rest(self) -> bool:
        """Whether there is something after the last newline."""
        return bool(self._rest)

    def flush(self) -> bytes:
        """What was written after the last newline."""
        rest, self._rest = self._rest, b""
        return rest


def _before_character(data: bytes, cut: int) -> int:
    """The place at *cut* or shortly before where a character of UTF-8 begins."""
    for start in range(cut, cut - 4, -1):
        if data[start] & 0xC0 != 0x80:
            return start
    return cut  # it is no UTF-8


class Worker:
    """One worker process, as the broker sees it."""

    def __init__(self, serial: int, agent: str) -> None:
        self.serial = serial
        self.mark = "%s.%d" % (agent, serial)
        self.pid = 0
        self.started = 0
        self.session = 0
        self.session_verdict, self.session_detail = CANCELLED, 0  # unless it dies
        self.task: "Optional[Task]" = None
        self.since = 0.0  # when that was begun, as far as is known
        self.ahead: "Deque[Task]" = deque()  # calls that it has been handed beside that
        self.others = 0  # how many frames it has been given that are no calls,
        self.others_given = 0  # how many of them before its task,
        self.others_taken = 0  # and how many it has certainly taken
        self.retired = False
        self.throttled = False
        self.watched = 0  # what the poller looks for at the link,
        self.outputs_watched = 0  # and at what it prints
        self.bundles = 0  # how many it has been given
        self.decoder = Decoder(views=frames.LARGE)
        self.outbox: "List[List[bytes]]" = []  # frames in pieces
        self.outputs: "Dict[int, Lines]" = {}
        self.has_rest = False  # whether it has written something that is no whole line yet
        self.theirs: "Optional[_socket.socket]" = None  # the worker's end of its link
        self._stack_text = b""

    def fork(self, configuration: "Dict[str, Any]", bundles: "List[bytes]") -> None:
        """Start the process.  In the child this never returns."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, LINK_KIND)
        opened: "List[int]" = []
        try:
            for _ in range(5):
                opened += os.pipe()
            self.pid = os.fork()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        # The life pipe's end tells the worker's group of our death.
        life_read, self.life, control_read, self.control, out_read, out_write = opened[:6]
        error_read, error_write, self.stack, stack_write = opened[6:]
        self.bundles = len(bundles)
        if not self.pid:
            try:
                link = _settle(theirs, control_read, life_read, out_write, error_write, stack_write)
                from trickle._agent import worker

                worker.main(link, 4, configuration, self.mark, bundles)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(70)
        if LINUX:
            self.theirs = theirs
        else:
            theirs.close()
        for fd in (life_read, control_read, out_write, error_write, stack_write):
            os.close(fd)
        self.started = reaper.start_time(self.pid)
        self.link = ours
        self.link.setblocking(False)
        self.outputs = {out_read: Lines(1), error_read: Lines(2)}
        for fd in (self.control, self.stack, out_read, error_read):
            os.set_blocking(fd, False)

    @property
    def claim(self) -> reaper.Claim:
        """How the processes that it started are known."""
        return reaper.Claim(self.mark, self.started)

    def descriptors(self) -> "List[int]":
        return [self.link.fileno(), *self.outputs]

    def close(self) -> None:
        """Forget the pipes of a worker that is gone."""
        self.link.close()
        if self.theirs is not None:
            self.theirs.close()
        for fd in [*self.outputs, self.control, self.life, self.stack]:
            os.close(fd)
        self.outputs = {}

    def give(self, *to_send: "frames.Frame") -> None:
        """Frames for the worker's link, as fast as it takes them."""
        was_full = bool(self.outbox)
        for frame in to_send:
            self.others += not isinstance(frame, Call)
            pieces: "List[bytes]" = []
            frames.encode_to(pieces, frame)
            self.outbox.append(pieces)
        if not was_full:
            self.flush()

    def give_ahead(self, call: Call) -> bool:
        """A call for when it has answered the one that it runs; False if there is no room for it."""
        try:
            self.link.send(frames.encode(call))
        except OSError:
            return False
        return True

    @property
    def can_be_given_ahead(self) -> bool:
        """Whether nothing but calls can be in its link, which can be taken back."""
        return self._holds_calls_alone and not self.outbox

    @property
    def _holds_calls_alone(self) -> bool:
        return self.theirs is not None and self.others_taken == self.others

    def take_back(self) -> "Set[int]":
        """The calls that it has not taken from its link, which are no longer there."""
        taken: "Set[int]" = set()
        # Where something else has been given behind them, they had been taken back before, as far as they were there.
        while self._holds_calls_alone:
            try:
                data = self.theirs.recv(READ_SIZE, _socket.MSG_DONTWAIT)  # type: ignore[union-attr]
            except OSError:
                break
            taken.update(frame.id for frame in Decoder().feed(data))
        return taken

    def give_bundles(self, bundles: "List[bytes]") -> None:
        """The bundles of modules that it has not been given yet."""
        for bundle in bundles[self.bundles :]:
            for start in range(0, len(bundle), CHUNK):
                part = bundle[start : start + CHUNK]
                self.give(Modules(0, int(start + CHUNK >= len(bundle)), 0, part))
        self.bundles = len(bundles)

    def flush(self) -> None:
        """Write what the link takes."""
        while self.outbox:
            try:
                sent = self.link.sendmsg(self.outbox[0])
            except BlockingIOError:
                return
            except OSError:
                self.outbox = []  # it is dying; its death is noticed elsewhere
                return
            if not LINUX and sent < sum(map(len, self.outbox[0])):  # its link has no messages
                self.outbox[0] = [b"".join(self.outbox[0])[sent:]]
            else:
                del self.outbox[0]

    def tell(self, frame: "frames.Frame", wake: int) -> None:
        """A frame for the worker while it runs a call: through the control pipe, with a signal to read it."""
        try:
            os.write(self.control, frames.encode(frame))
            os.kill(self.pid, wake)
        except OSError:
            pass  # it is dying; or it ignores a pipe full of such frames, and the next rung will do

    def read_stack(self) -> bytes:
        """As much as has come of the stack that a deadline found: the function's frames, the innermost first.

        Those of trickle's own in which it waits are above them, and those that called it are below.
        """
        try:
            self._stack_text += os.read(self.stack, READ_SIZE)
        except OSError:
            pass  # nothing new
        lines = self._stack_text[: self._stack_text.rfind(b"\n") + 1].splitlines()[1:]
        last = [
            number for number, line in enumerate(lines) if b'File "<trickle>/' in line and line.endswith(b" in serve")
        ]
        lines = lines[: last[0] if last else None]
        theirs = [number for number, line in enumerate(lines) if b'File "<trickle>/' not in line]
        if not theirs:
            return b"  (in no Python code: what was called is a function of C)" if last else b""
        lines = lines[theirs[0] :]
        ours = [number for number, line in enumerate(lines) if b'File "<trickle>/' in line]
        return b"\n".join(lines[: ours[0] if ours else None])[:LONGEST_STACK]

    def receive(self) -> "Optional[List[frames.Frame]]":
        """What has come over the link; None at its end."""
        try:
            data = self.link.recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        return self.decoder.feed(data)

    def read_output(self, fd: int) -> "Optional[List[bytes]]":
        """Blocks of whole lines that have come out of one output pipe; None at its end."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        lines = self.outputs[fd].feed(data)
        self.has_rest = any(each.has_rest for each in self.outputs.values())
        return lines


def _settle(link: "_socket.socket", control: int, life: int, out: int, error: int, stack: int) -> "_socket.socket":
    """Put the child's descriptors at 0 to 6, close all others, and lead a session that dies with the broker."""
    os.setsid()
    _signal.set_wakeup_fd(-1)
    for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_DFL)
    mine = (out, error, link.fileno(), control, life, stack)
    close_from(3, mine)  # first of all, since there may be none left to have
    # Out of each other's way: one of them may be where another goes.
    held = [fcntl.fcntl(fd, fcntl.F_DUPFD, LOWEST_FREE) for fd in mine]
    for target, fd in enumerate(held, 1):
        os.dup2(fd, target, target < 3)  # inheritable: what a call starts prints to 1 and 2
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0, True)
    link.detach()
    close_from(LOWEST_FREE)
    os.set_blocking(4, False)
    if LINUX:
        # When the broker dies, by whatever signal, the kernel kills this process group.
        fcntl.fcntl(5, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(5, F_SETSIG, SIGKILL)
        fcntl.fcntl(5, fcntl.F_SETFL, fcntl.fcntl(5, fcntl.F_GETFL) | os.O_ASYNC)
    if os.path.exists("/proc/self/oom_score_adj"):
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")  # rather this worker than the broker, which cleans up
        except OSError:
            pass
    return _socket.socket(_socket.AF_UNIX, LINK_KIND, 0, fileno=3)


def close_from(lowest: int, keep: "Tuple[int, ...]" = ()) -> None:
    """Close every descriptor from *lowest* up but for those to *keep*."""
    try:
        names = os.listdir("/proc/self/fd" if LINUX else "/dev/fd")
    except OSError:
        names = [str(fd) for fd in range(1024)]
    for fd in map(int, names):
        if fd >= lowest and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing itself


def raise_descriptor_limit() -> "Optional[Tuple[int, int]]":
    """Have as many descriptors as we may: each worker takes eight.  Returns what it was, for the workers."""
    try:
        import resource  # not in every Python
    except ImportError:
        return None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    except (OSError, ValueError):
        return None
    return limits
