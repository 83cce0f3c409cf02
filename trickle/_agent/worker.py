"""A worker: runs one call at a time in its main thread, and answers each with one End.

The broker forks it, hands it calls over a socket, and asks it to stop by a frame in the control pipe and SIGURG.
"""

import _signal  # type: ignore[import-not-found]  # signal itself brings enum
import _socket  # socket itself costs ten times as much to import
import _thread
import fcntl
import os
import select
import sys
import time

from trickle import remote
from trickle._agent import asynchronous, functions, importer, logs, options, results
from trickle._agent.importer import Importer
from trickle._agent.reaper import MARK, take_name
from trickle._wire import frames
from trickle._wire.connection import LARGEST_MESSAGE, LEAST_PAYLOAD
from trickle._wire.frames import (
    CHUNK,
    LARGE,
    Ask,
    Begin,
    Call,
    Cancel,
    Data,
    Decoder,
    End,
    Item,
    Modules,
    Record,
    Renew,
)
from trickle._wire.payload import split_options

try:
    import termios
except ImportError:
    termios = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple, Union

    Payload = Union[bytes, Optional[List[bytes]]]  # of a call: in whole, or in parts, as in Worker._parts

WAKE = _signal.SIGURG  # ignored by default, and used by next to nobody
WAKE_ALONE = (WAKE,)
STACK = _signal.SIGRTMIN + 5 if hasattr(_signal, "SIGRTMIN") else None  # "where are you?"
STACK_FD = 6
MOST_FRAMES = 100  # of a stack, as faulthandler has it
PIPE_HOLDS = 4096  # bytes, at the least
TAINTED = 1  # in End.detail: CallCancelled was raised in this worker, so that it must not be used again
PRINTED = 2  # in End.detail: something is in the pipes that stdout and stderr lead to
FLAGS = 8  # bits of End.detail; above them is what the controller is told
FIONREAD: "Optional[int]" = getattr(termios, "FIONREAD", None)
NOTHING = bytes(4)  # what FIONREAD says of an empty pipe
READ_SIZE = CHUNK + 1024  # a frame; a buffer of more than 128 KiB would be mapped and unmapped each time
DRAIN_LOOKS, DRAIN_PAUSE = 500, 0.0001  # how often, and seconds between: the broker reads what was printed at once
LONGEST_CHAIN = 20  # exceptions, each of which the one before it came from
LONGEST_POLL = 60000  # milliseconds: more than that is waited for in parts
FAILED = 70  # the exit status of a worker that cannot go on
LOCK_POLL = 0.05  # seconds between looks at the table for a thread that outlived its call


class Worker:
    """The state of this process: its link to the broker, and the call that it runs."""

    def __init__(self, link: "_socket.socket", control: int, configuration: "Dict[str, Any]", mark: str) -> None:
        self.link = link
        self.control = control
        self.mark = mark
        self.max_payload = configuration["max_payload"]
        self.pid = os.getpid()
        self.main_thread = _thread.get_ident()
        self.importer = Importer(self._fetch)
        self.bundles = 0  # how many have been received, in whole
        self._bundle: "List[bytes]" = []
        self._decoder = Decoder(views=LARGE)
        self._most = self.max_payload  # bytes that this call's answer may take
        self.detail = 0  # what the controller is told with its verdict: how a process ended
        self._running = False
        self._has_printed = False
        self._returned: "List[Call]" = []
        self._calls: "List[Tuple[int, int, Payload]]" = []
        self._parts: "Optional[List[bytes]]" = []  # None if there was no room for them
        self._begun: "Optional[Begin]" = None
        self._items: "Dict[int, List[Item]]" = {}  # that no channel has taken yet, by call
        self._link_poller = select.poll()
        self._link_poller.register(link, select.POLLIN)
        self._read_lock = _thread.allocate_lock()
        self._write_lock = _thread.allocate_lock()
        self._armed = 0  # the call into which CallCancelled may be raised
        self._busy = False  # the main thread is reading or writing a frame, which must not be torn
        self._cancel: "Optional[Cancel]" = None
        self._raised = False
        self._tainted = False
        self._importing = False
        self._stopper: "Optional[Callable[[], None]]" = None
        self._where: "Optional[Callable[[], List[Any]]]" = None  # what it stops is
        self._deadline: "Optional[float]" = None
        self._renewed: "Tuple[int, Optional[float]]" = (0, None)

    # ---- frames from the broker

    def serve(self) -> None:
        """Run calls until the broker closes the link."""
        while True:
            with self._read_lock:
                if not self._calls:
                    self._wait_for_frames()
                    if not self._receive():
                        return
            while self._calls:
                if self._has_printed:
                    self._wait_for_readers()
                self._running = True
                id, timeout_ms, payload = self._calls.pop(0)
                self._run(id, timeout_ms, payload)
                self._running = False

    def _wait_for_frames(self) -> None:
        """Return when something is in the link.  What a signal's handler raises meanwhile is no call's affair.

        Were it raised while a frame is taken from the link, that might be lost.
        """
        while True:
            try:
                self._link_poller.poll()
                return
            except SystemExit:
                raise
            except BaseException:
                complain("this was raised between two calls, and costs none:")
                self._has_printed = True

    def _wait_for_readers(self) -> None:
        """What the last call has printed is read before the next one begins, since it is taken for that one's."""
        for _ in range(DRAIN_LOOKS):
            if not _has_printed():
                break
            time.sleep(DRAIN_PAUSE)

    def _receive(self, timeout: "Optional[float]" = None) -> bool:
        """Wait for frames and keep what they bring; False at the end of the link.  The caller holds the read lock.

        In a call it may return without any, and only its waiting is interrupted by a cancel: half a frame must not be
        lost.
        """
        waits_here = not self._armed
        in_main_thread = _thread.get_ident() == self.main_thread
        if in_main_thread:
            self._busy = True
        try:
            try:
                data = self.link.recv(READ_SIZE, 0 if waits_here else _socket.MSG_DONTWAIT)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            except MemoryError:  # before anything was taken
                if not self._parts:
                    raise
                self._parts = data = None  # that is the call's own error, when the rest of them has come
            if data == b"":
                return False
            for frame in self._decoder.feed(data) if data else ():
                self._keep(frame)
        finally:
            if in_main_thread:
                self._busy = False
        if self._returned:
            returned, self._returned = self._returned, []
            self.send(*returned)
        if in_main_thread:
            self._raise_if_cancelled()
        if data is None:
            self._poll(timeout)
        return True

    def _poll(self, timeout: "Optional[float]") -> None:
        poller = select.poll()
        poller.register(self.link, select.POLLIN)
        poller.poll(None if timeout is None else min(int(timeout * 1000) + (timeout > 0), LONGEST_POLL))

    def _keep(self, frame: "frames.Frame") -> None:
        if isinstance(frame, Call) and (self._running or self._calls):
            self._returned.append(frame)  # it came to light on the way to something else: others may be free for it
        elif isinstance(frame, Call):
            self._calls.append((frame.id, frame.timeout_ms, frame.payload))
        elif isinstance(frame, Begin):
            self._begun, self._parts = frame, []
        elif isinstance(frame, Data):
            self._keep_part(frame)
        elif isinstance(frame, Item):
            self._items.setdefault(frame.id, []).append(frame)
        elif isinstance(frame, Cancel):
            self._begun, self._parts = None, []  # it was cancelled before it was here in whole
        elif isinstance(frame, Modules):
            self._bundle.append(frame.payload)
            if frame.last:
                self.add_bundle(b"".join(self._bundle))
                self._bundle = []

    def _keep_part(self, frame: Data) -> None:
        if self._begun is None or frame.id != self._begun.id:
            return
        if self._parts is not None:
            self._parts.append(frame.payload)
        if frame.last:
            self._calls.append((frame.id, self._begun.timeout_ms, self._parts))
            self._begun, self._parts = None, []

    def drop_parts(self) -> None:
        """Give up what has come of a call's arguments."""
        self._parts = []

    def add_bundle(self, bundle: bytes) -> None:
        """Keep a bundle of modules for the importer."""
        self.importer.add_bundle(bundle)
        self.bundles += 1

    def _fetch(self, name: str) -> None:
        """Ask for a module, and return when the importer has an answer for it."""
        if os.getpid() != self.pid:
            raise ImportError("%s: a forked process cannot ask the controller; import it before" % name, name=name)
        asked_at = -1
        while not self.importer.has_answer(name):
            if asked_at != self.bundles:
                asked_at = self.bundles
                self.send(Ask(0, asked_at, 0, name.encode("utf-8", "replace")))
            # The main thread of an idle worker holds the lock while it waits for the next call.
            if self._read_lock.acquire(True, LOCK_POLL):
                try:
                    if not self.importer.has_answer(name) and not self._receive():
                        raise OSError("the connection to the controller is gone")
                finally:
                    self._read_lock.release()

    def items_for(self, id: int) -> "List[Item]":
        """The Items that have come for a call."""
        return self._items.pop(id, [])

    def wait_for_items(self, id: int, deadline: "Optional[float]") -> None:
        """Return when there may be some.

        Raises:
          TimeoutError: none came until *deadline*.
        """
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self._read_lock.acquire(True, LOCK_POLL if left is None else min(left, LOCK_POLL)):
                try:
                    if id not in self._items and not self._receive(left):
                        raise OSError("the connection to the controller is gone")
                finally:
                    self._read_lock.release()
            if id in self._items:
                return
            if left == 0:
                raise TimeoutError("nothing came in time")

    # ---- frames to the broker

    def send(self, *to_send: "frames.Frame") -> None:
        """Write whole frames, from any thread; a cancel that comes meanwhile waits until they are out."""
        if os.getpid() != self.pid:
            return  # a fork: the link is not its own
        in_main_thread = _thread.get_ident() == self.main_thread
        if in_main_thread:
            self._busy = True
        try:
            with self._write_lock:
                for frame in to_send:
                    if len(frame.payload) <= LARGE:
                        self.link.sendall(frames.encode(frame))
                    else:
                        self._send_large(frame)
        finally:
            if in_main_thread:
                self._busy = False
        if in_main_thread:
            self._raise_if_cancelled()

    def _send_large(self, frame: "frames.Frame") -> None:
        pieces: "List[bytes]" = []
        size = frames.encode_to(pieces, frame)
        sent = self.link.sendmsg(pieces)
        if sent < size:  # where the link has no messages
            self.link.sendall(b"".join(pieces)[sent:])

    def send_record(self, level: int, data: bytes) -> None:
        """Pass a logging record on."""
        self.send(Record(0, max(0, level), 0, data))

    def _answer(self, id: int, verdict: int, pieces: "List[bytes]") -> None:
        *before, last = list(frames.chunks(pieces)) or [b""]
        parts: "List[frames.Frame]" = [Data(id, 0, 0, part) for part in before]
        self._has_printed = _has_printed()
        detail = (TAINTED if self._tainted else 0) | (PRINTED if self._has_printed else 0) | self.detail << FLAGS
        parts.append(End(id, verdict, detail, last))
        self.send(*parts)

    # ---- one call

    def _run(self, id: int, timeout_ms: int, payload: "Payload") -> None:
        self._raised = self._tainted = self._importing = False
        self._most = self.max_payload
        self.detail = 0
        if self._items:
            for old in [each for each in self._items if each < id]:
                del self._items[old]
        self._deadline = _deadline_after(timeout_ms)
        os.environ[MARK] = "%s.%d" % (self.mark, id)
        if _signal.getsignal(WAKE) is not on_wake:
            _signal.signal(WAKE, on_wake)
            self._read_control()  # a cancel may have come before this call was armed
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, WAKE_ALONE)
        try:
            verdict, answer = self._outcome(id, payload)
        except remote.CallCancelled:  # it came between the function's end and the disarming
            self._armed = 0
            verdict, answer = frames.CANCELLED, [b""]
        if os.getpid() != self.pid:
            os._exit(0)  # the function forked, and this is the child's copy of the call
        flush_output()
        size = sum(map(len, answer))
        if size > self._most:
            error = ValueError("the result takes %d bytes; max_payload allows %d" % (size, self._most))
            verdict, answer = frames.RAISED, [results.describe_exception(error)]
        self._answer(id, verdict, answer)

    def _outcome(self, id: int, payload: "Payload") -> "Tuple[int, List[bytes]]":
        try:
            self._armed = id
            self._raise_if_cancelled()  # by what came before it was armed
            answer = self._perform(payload if isinstance(payload, bytes) else _joined(payload))
            self._armed = 0
            return frames.RETURNED, answer
        except BaseException as exc:
            self._armed = 0
            self._most = max(self.max_payload, LEAST_PAYLOAD)  # an error is shortened where it is described
            if os.getpid() != self.pid:
                leave_fork(exc)
            if self._tainted and isinstance(exc, (remote.CallCancelled, KeyboardInterrupt)):
                return frames.CANCELLED, [b""]
            return frames.RAISED, [self._describe(exc)]

    def _describe(self, exc: BaseException) -> bytes:
        try:
            self._explain(exc)
            return results.describe_exception(exc)
        except BaseException as problem:  # of its own attributes' making
            kind = "%s.%s" % (type(exc).__module__, type(exc).__qualname__)
            stand_in = RuntimeError(
                "an error of class %s, which raised %r when it was looked at" % (kind, type(problem))
            )
            return results.describe_exception(stand_in)

    def _explain(self, exc: BaseException) -> None:
        """Say what the controller knows of a module that it did not send."""
        link: "Optional[BaseException]" = exc
        for _ in range(LONGEST_CHAIN):
            if isinstance(link, ImportError) and isinstance(link.name, str) and isinstance(link.msg, str):
                name = link.name
                if link.msg.startswith("cannot import name '"):
                    name += "." + link.msg.split("'")[1]
                reason = self.importer.why_missing(name)
                if reason and reason not in link.msg:
                    link.msg = "%s (on %s: %s)" % (link.msg, remote.host_name, reason)
            link = link and (link.__cause__ or link.__context__)
        if self._importing and isinstance(exc, Exception):
            note = "(raised while the call's code was imported, by Python %d.%d.%d)" % sys.version_info[:3]
            try:
                exc.__notes__ = [*getattr(exc, "__notes__", ()), note]
            except (AttributeError, TypeError):
                pass  # it has no room for one

    def _perform(self, payload: bytes) -> "List[bytes]":
        asked_for, call = split_options(payload)
        if not asked_for:
            return results.pickle_result(self._value_of(payload, call, None))
        with options.Surroundings(asked_for):
            return results.pickle_result(self._value_of(payload, call, asked_for.get("flow")))

    def _value_of(self, payload: bytes, start: int, mode: "Optional[str]") -> "Any":
        self._importing = True
        fn, args, kwargs = functions.loads_call(payload, start)
        self._importing = False
        if mode is None:
            value = fn(*args, **kwargs)
        else:
            from trickle._agent import channels

            if mode in ("put", "fetch"):
                self._most = max(self.max_payload, LARGEST_MESSAGE)  # names of files

            value = channels.run(self, self._armed, mode, fn, args, kwargs)
        if asynchronous.is_coroutine(value):
            value = asynchronous.run(value, self._set_stopper)
        return value

    def _set_stopper(self, stopper: "Optional[Callable[[], None]]", where: "Optional[Callable[[], List[Any]]]") -> None:
        """Have a cancel call *stopper*, from a signal handler, instead of raising."""
        self._stopper, self._where = stopper, where
        self._raise_if_cancelled()  # one that came while trio was started, which its handler does not know of

    # ---- being cancelled

    def _read_control(self) -> None:
        try:
            data = os.read(self.control, READ_SIZE)
        except OSError:
            return  # nothing there
        # Frames are written there in one piece each.  A decoder that remembers would be torn by a signal in here.
        for frame in Decoder().feed(data):
            # Kept whichever call is armed: it may be for one that has not been read from the link yet.
            if isinstance(frame, Cancel):
                self._cancel = frame
            elif isinstance(frame, Renew):
                self._renewed = (frame.id, _deadline_after(frame.timeout_ms))

    def call_whole(self, fn: "Callable[[], Any]") -> "Any":
        """Call something; a cancel that comes meanwhile waits until it has ended."""
        if self._busy or _thread.get_ident() != self.main_thread:
            return fn()
        self._busy = True
        try:
            value = fn()
        finally:
            self._busy = False
        self._raise_if_cancelled()
        return value

    def wake(self, frame: "Any") -> None:
        """SIGURG came: something is in the control pipe."""
        self._read_control()
        self._raise_if_cancelled(frame)

    def _raise_if_cancelled(self, frame: "Any" = None) -> None:
        if self._cancel is None or self._raised or self._busy or self._cancel.id != self._armed:
            return
        self._raised = self._tainted = True
        if self._cancel.cause == frames.BY_DEADLINE:
            self._tell_stack((self._where and self._where()) or _frames_from(frame or sys._getframe(1)))
        if self._stopper is not None:
            self._stopper()
            return
        handler = _signal.getsignal(_signal.SIGINT)
        if callable(handler) and handler is not _signal.default_int_handler:
            handler(_signal.SIGINT, frame)  # trio's, asyncio's or the program's own knows better how to stop it
        else:
            raise self._cancellation()

    def _tell_stack(self, stack: "List[Any]") -> None:
        """Why was it slow?  In faulthandler's words, which are only asked for when this does not come."""
        lines = ["at its deadline the call was here, innermost frame first:"]
        for frame in stack[:MOST_FRAMES]:
            code = frame.f_code
            lines.append('  File "%s", line %s in %s' % (code.co_filename, frame.f_lineno, code.co_name))
        text = "\n".join([*lines, ""]).encode("ascii", "backslashreplace")
        try:
            os.write(STACK_FD, text[:PIPE_HOLDS])
        except OSError:
            pass  # the function has closed it

    def _cancellation(self) -> remote.CallCancelled:
        reason = self._cancel.payload.decode("utf-8", "replace") if self._cancel is not None else ""
        return remote.CallCancelled(reason or None)

    def raise_again(self, interrupted: "Any") -> None:
        """CallCancelled was swallowed where Python ignores exceptions: raise it in the frame that goes on after that.

        By a trace function, since a signal might hit the next finaliser, and the next.
        """
        if not self._armed or self._cancel is None or _thread.get_ident() != self.main_thread:
            return

        def trace(frame: "Any", event: str, argument: "Any") -> "Any":
            if event == "call" and _is_in_hook(frame):
                return None  # the handler of a signal that was sent again: the hook would swallow what is raised there
            self._raised = False  # from here on a signal may do it as well
            # At a line's beginning 3.8 and 3.9 lose what is raised, if opcodes are traced too.
            if event == "opcode" or (event == "call" and frame.f_code.co_name != "__del__"):
                sys.settrace(None)
                self._raise_if_cancelled(frame)
            return None if event == "call" else trace

        interrupted.f_trace = trace
        interrupted.f_trace_opcodes = True
        sys.settrace(trace)

    # ---- trickle.remote

    def check_cancelled(self) -> None:
        if self._armed and self._cancel is not None and self._cancel.id == self._armed:
            self._tainted = True
            raise self._cancellation()

    def time_left(self) -> float:
        id, deadline = self._renewed
        if id != self._armed:
            deadline = self._deadline
        return float("inf") if deadline is None else deadline - time.monotonic()


def _deadline_after(timeout_ms: int) -> "Optional[float]":
    return None if timeout_ms == frames.NEVER else time.monotonic() + timeout_ms / 1000.0


_this: "Optional[Worker]" = None


def on_wake(number: int, frame: "Any") -> None:
    """The handler of SIGURG.  The broker installs it too, so that no worker is ever without it."""
    if _this is not None and _this.pid == os.getpid():
        _this.wake(frame)


def leave_fork(exc: BaseException) -> None:
    """End a process that the function forked and that came back into trickle's code."""
    flush_output()
    os._exit(_status_of(exc) if isinstance(exc, SystemExit) else 1)


def _status_of(exc: SystemExit) -> int:
    return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1


def complain(what: str) -> None:
    """Say on stderr what has been raised, where that is no call's error."""
    import traceback

    try:
        print("trickle:", what, file=sys.__stderr__)
        traceback.print_exc(file=sys.__stderr__)
    except Exception:  # a function has closed it, or put something of its own there
        pass


def flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # the function closed it, or put something of its own there
            pass


def _has_printed() -> bool:
    """Whether something was written to stdout or stderr that the broker has not read yet."""
    if FIONREAD is None:
        return True
    try:
        return fcntl.ioctl(1, FIONREAD, NOTHING) != NOTHING or fcntl.ioctl(2, FIONREAD, NOTHING) != NOTHING
    except OSError:  # the function has closed it, or put something of its own there
        return True


def _joined(parts: "Optional[List[bytes]]") -> bytes:
    """The arguments of a call, in place of the parts that they came in."""
    try:
        if parts is not None:
            return b"".join(parts)
    except MemoryError:
        pass
    finally:
        if parts is not None:
            parts.clear()
    raise MemoryError("there is no room for the arguments")


def _open_streams() -> None:
    import io

    # What a host prints is read as UTF-8, whatever its locale says.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def _restore_descriptor_limit(limits: "Optional[Tuple[int, int]]") -> None:
    if limits is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _open_site() -> None:
    """Give this process the ``sys.path`` that a plain ``python3`` has here; the broker runs with -I -S."""
    import site

    extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        known = site.venv(set()) or set()
        site.ENABLE_USER_SITE = os.getuid() == os.geteuid()
        if site.ENABLE_USER_SITE:
            known = site.addusersitepackages(known) or known
        site.addsitepackages(known)
        site.setquit()
    except Exception as exc:  # a broken .pth file is not a reason to run nothing
        sys.stderr.write("trickle: site-packages of this host: %r\n" % (exc,))
    sys.path[0:0] = extra


def _show_stacks_on_request() -> None:
    """Have a signal write the main thread's stack, even while it holds the GIL.

    Only of code that is about to be killed: in the midst of a call or return in Python it may crash, and it leaves
    errno at 0, so that a lock that is taken may seem to be free.
    """
    if STACK is not None:
        import faulthandler

        faulthandler.register(STACK, file=STACK_FD, all_threads=False)


def _frames_from(frame: "Any") -> "List[Any]":
    """The innermost frames of a stack."""
    found: "List[Any]" = []
    while frame is not None and len(found) < MOST_FRAMES:
        found.append(frame)
        frame = frame.f_back
    return found


def _on_unraisable(unraisable: "Any") -> None:
    if _this is not None and isinstance(unraisable.exc_value, remote.CallCancelled):
        _this.raise_again(sys._getframe(1))
    else:
        sys.__unraisablehook__(unraisable)  # type: ignore[attr-defined, unused-ignore]


def _is_in_hook(frame: "Any") -> bool:
    """Whether *frame* was called, by however many others, by the hook above."""
    while frame is not None and frame.f_code is not _on_unraisable.__code__:
        frame = frame.f_back
    return frame is not None


def main(
    link: "_socket.socket", control: int, configuration: "Dict[str, Any]", mark: str, bundles: "List[bytes]"
) -> None:
    """Be a worker until the broker closes the link."""
    global _this
    _restore_descriptor_limit(configuration.get("descriptor_limits"))
    _open_streams()
    sys.argv = [""]
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    take_name(mark)
    _this = worker = Worker(link, control, configuration, mark)
    remote.host_name = configuration["name"]
    remote._path = tuple(configuration.get("path", (remote.host_name,)))
    remote._runner = worker  # type: ignore[assignment]
    importer.call_whole = worker.call_whole
    sys.unraisablehook = _on_unraisable  # type: ignore[attr-defined, unused-ignore]  # new in 3.8
    logs.install(worker.send_record)
    _show_stacks_on_request()
    library_path = list(sys.path)  # with -I -S there is nothing else on it
    _open_site()  # its .pth files import this host's own modules
    worker.importer.install(library_path)
    for bundle in bundles:
        worker.add_bundle(bundle)
    status = FAILED
    try:
        worker.serve()
        status = 0
    except SystemExit as exc:  # of a signal's handler, between two calls
        status = _status_of(exc)
    except BaseException:
        worker.drop_parts()  # there may be no memory left
        complain("this worker cannot go on:")
    finally:
        if os.getpid() == worker.pid:
            leave(status)


def leave(status: int) -> None:
    """Run what was registered with atexit, and go.  Threads that are still running go with us."""
    atexit = sys.modules.get("atexit")
    if atexit is not None:
        try:
            atexit._run_exitfuncs()
        except BaseException:
            pass  # it has been printed
    flush_output()
    os._exit(status)
