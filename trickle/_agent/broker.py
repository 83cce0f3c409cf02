"""The broker: moves frames between the controller and the workers, keeps deadlines and the lease, starts and ends.

It has one thread, never blocks and never runs the user's code.  One turn of its loop reads all that has arrived,
then acts on it, then writes what the pipe takes: so that a cancel behind a call stops it before it has begun.
"""

import _signal  # type: ignore[import-not-found]  # signal itself brings enum
import errno
import heapq
import os
import select
import sys
import time
from collections import deque

from trickle._agent import reaper
from trickle._agent.pool import Worker
from trickle._wire import frames
from trickle._wire.armor import Unarmor
from trickle._wire.connection import AGENT, CREDIT, Connection
from trickle._wire.frames import (
    CANCELLED,
    DIED,
    KILLED,
    NEVER_STARTED,
    RAISED,
    UNKILLABLE,
    Ask,
    Begin,
    Call,
    Cancel,
    Close,
    Credit,
    Data,
    End,
    Hello,
    Item,
    Modules,
    Note,
    Output,
    Ping,
    Record,
    Renew,
    Session,
    WireError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

READ_SIZE = 256 * 1024
PATIENCE = 0.005  # seconds that a call waits for a worker to come free before a new one is forked
BACKSTOP = 1.0  # seconds past its deadline that a call is left to the controller's own scope
TERM_TO_KILL = 0.2  # seconds
STACK_LOOK = 0.005  # seconds between looks for a stack that was asked for
STACK_PATIENCE = 1.0  # seconds in which it has to come; a process that is stopped writes none
UNKILLABLE_AFTER = 2.0  # seconds in which SIGKILL did not end a process
RETRY_KILL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # seconds between looks at what is left
OUTPUT_LIMIT = CREDIT  # bytes of one call that wait for the pipe: above, its worker is not read
WARNING, INFO, DEBUG = 30, 20, 10  # as logging has them
TAINTED = 1
LONGEST_POLL = 60000.0  # milliseconds
WAKE_AGAIN = (0.01, 0.05, 0.2, 1.0)  # seconds between signals to a worker that was asked to stop
FORK_AGAIN = 0.1  # seconds after this machine had no descriptors or processes to give
CLOCK_BOOTTIME = 7  # Linux's clock that goes on while the machine sleeps; Python 3.6 does not name it


def _lease_clock() -> float:
    try:
        return time.clock_gettime(CLOCK_BOOTTIME) if sys.platform.startswith("linux") else time.monotonic()
    except (OSError, AttributeError):
        return time.monotonic()


class Task:
    """One call that the controller has asked for and that has not ended."""

    def __init__(self, id: int, session: int, timeout_ms: int, now: float) -> None:
        self.id = id
        self.session = session
        self.deadline = None if timeout_ms == frames.NEVER else now + timeout_ms / 1000.0
        self.arrived = now
        self.worker: "Optional[Worker]" = None
        self.begun = False  # its payload comes in parts
        self.whole = False  # all of its payload has been given to the worker, or is here
        self.parts: "List[bytes]" = []
        self.cancelled = False
        self.torn = False  # parts of its result were dropped
        self.killed = False
        self.by_deadline = False

    def seconds_left_ms(self, now: float) -> int:
        return frames.NEVER if self.deadline is None else frames.milliseconds(self.deadline - now)


class Reaping:
    """A worker that is being ended with all it started, and the End that waits for it.

    Args:
      kill_at: until then, what is left of the worker's group has had SIGTERM and may go by itself.
    """

    def __init__(self, worker: Worker, now: float, kill_at: float) -> None:
        self.worker = worker
        self.kill_at = kill_at
        self.give_up = max(now, kill_at) + UNKILLABLE_AFTER
        self.terminated = False
        self.look = now
        self.looks = 0
        self.known: "Dict[int, int]" = {}  # pid -> start time
        self.end: "Optional[Tuple[int, int, int, bytes]]" = None


class Broker:
    """The agent's one process that the controller talks to."""

    def __init__(self, configuration: "Dict[str, Any]") -> None:
        self.configuration = configuration
        self.connection = Connection(AGENT, frames.Decoder().feed, configuration["max_payload"])
        self.unarmor = Unarmor()
        self.poller = select.poll()
        self.tasks: "Dict[int, Task]" = {}
        self.waiting: "Deque[Task]" = deque()
        self.sessions: "Dict[int, Optional[Worker]]" = {}
        self.session_queues: "Dict[int, Deque[Task]]" = {}
        self.workers: "List[Worker]" = []
        self.reapings: "List[Reaping]" = []
        self.by_fd: "Dict[int, Worker]" = {}
        self.bundles: "List[bytes]" = []
        self.serial = 0
        self.timers: "List[Tuple[float, int, Callable[[], None], Optional[Task]]]" = []
        self.timer_serial = 0
        self.closing = False
        self.close_grace = 0.0
        self.outgoing: "List[memoryview]" = []
        self.writing = False  # whether the poller watches stdout
        self.bundle: "List[bytes]" = []
        self.child_died = False
        self.stop_signal = 0
        self.fork_again_at = 0.0

    # ---- the loop

    def run(self, received: bytes) -> None:
        """Serve until the controller closes, falls silent or is gone."""
        self._greet()
        self._watch_children()
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self.poller.register(0, select.POLLIN)
        self.heard = _lease_clock()
        self._beat()
        self._check_lease()
        if received:
            self._receive(received)
            if not self._read_controller():
                return
        while True:
            self._act()
            self._flush()
            if self._finished():
                return
            for fd, _ in self._poll():
                if fd == 0:
                    if not self._read_controller():
                        return  # at its end there is no grace: see end_everything
                elif fd == self.wake_fd:
                    self._drain_wake_pipe()
                elif fd in self.by_fd:
                    self._read_worker(self.by_fd[fd], fd)

    def _poll(self) -> "List[Tuple[int, int]]":
        """What is ready, after waiting for it no longer than the next timer allows."""
        now = time.monotonic()
        due = [self.timers[0][0]] if self.timers else []
        due += [reaping.look for reaping in self.reapings]
        if self.waiting and self._may_fork():
            due.append(self.waiting[0].arrived + PATIENCE)
        if not due:
            return self._poll_for(None)
        return self._poll_for(max(0.0, min(due) - now) * 1000)

    def _poll_for(self, timeout: "Optional[float]") -> "List[Tuple[int, int]]":
        if timeout is None or timeout > LONGEST_POLL:
            timeout = LONGEST_POLL
        # Rounded up: a timer that is not due yet must not make the loop spin.
        return self.poller.poll(int(timeout) + (timeout > int(timeout)))

    def _finished(self) -> bool:
        busy = self.tasks or self.sessions or self.workers or self.reapings or self.outgoing
        return self.closing and not busy and self.connection.is_drained

    def _greet(self) -> None:
        about = _about_this_host()
        self.connection.control(Hello(0, frames.VERSION, 0, about))
        # Computed, so that it occurs in nothing that was sent here: an echo is not taken for it.
        marker = self.configuration["nonce"][::-1].encode()
        self.outgoing.append(memoryview(marker + b"".join(self.connection.data_to_send(0.0))))

    def _watch_children(self) -> None:
        self.wake_fd, wake_write = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(wake_write, False)
        _signal.set_wakeup_fd(wake_write)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        for number in (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT):
            _signal.signal(number, self._on_stop_signal)
        self.poller.register(self.wake_fd, select.POLLIN)

    def _on_stop_signal(self, number: int, frame: "Any") -> None:
        self.stop_signal = number

    def _drain_wake_pipe(self) -> None:
        try:
            os.read(self.wake_fd, 4096)
        except OSError:
            pass
        if self.stop_signal:
            raise ControllerGone("ended by signal %d" % self.stop_signal)
        self.child_died = True

    # ---- timers

    def _at(self, when: float, what: "Callable[[], None]", task: "Optional[Task]" = None) -> None:
        self.timer_serial += 1
        heapq.heappush(self.timers, (when, self.timer_serial, what, task))
        if len(self.timers) > 4 * len(self.tasks) + 100:  # most are of calls that have ended
            self.timers = [timer for timer in self.timers if timer[3] is None or timer[3].id in self.tasks]
            heapq.heapify(self.timers)

    def _run_timers(self, now: float) -> None:
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2]()

    def _beat(self) -> None:
        self.connection.control(Ping())
        self._at(time.monotonic() + self.configuration["heartbeat"], self._beat)

    def _check_lease(self) -> None:
        lease = self.configuration["lease"]
        if lease == float("inf"):
            return
        silent = _lease_clock() - self.heard
        if silent >= lease:
            # After a stall of our own: read what has arrived before judging.
            if not self._read_controller() or _lease_clock() - self.heard >= lease:
                raise ControllerGone("nothing heard from the controller for %.1f s" % silent)
            silent = 0.0
        # Not in one go: the clock of the loop stands still while the machine sleeps.
        self._at(time.monotonic() + min(5.0, max(0.01, lease - silent)), self._check_lease)

    # ---- from the controller

    def _read_controller(self) -> bool:
        """Read all that has arrived; False at the end of it."""
        while True:
            try:
                data = os.read(0, READ_SIZE)
            except BlockingIOError:
                return True
            except OSError as exc:
                if exc.errno == errno.EINTR:
                    continue
                return False
            if not data:
                return False
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        self.heard = _lease_clock()
        now = time.monotonic()
        for frame in self.connection.receive_data(self.unarmor.receive(data), now):
            self.HANDLERS[type(frame)](self, frame)

    def _on_call(self, frame: "Any") -> None:
        task = Task(frame.id, frame.session, frame.timeout_ms, time.monotonic())
        self.tasks[frame.id] = task
        if isinstance(frame, Begin):
            task.begun = True
        else:
            task.whole = True
            task.parts.append(frame.payload)
        if self.closing:
            self._end(task, NEVER_STARTED)
            return
        if task.deadline is not None:
            self._watch_deadline(task)
        if task.session:
            if task.session == task.id:  # a worker of its own, for this call alone
                self.sessions[task.id] = None
                self.session_queues[task.id] = deque()
            if task.session in self.session_queues:
                self.session_queues[task.session].append(task)
            else:  # its worker died a moment ago
                self._end(task, NEVER_STARTED)
        else:
            self.waiting.append(task)

    def _on_data(self, frame: Data) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return  # ended by what was read together with this
        if frame.last:
            task.whole = True
        if task.worker is not None:
            task.worker.give(frame)
            self._watch(task.worker)
            self._used(task, frame)
        else:
            task.parts.append(frame)  # type: ignore[arg-type]

    def _on_item(self, frame: Item) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return  # ended by what was read together with this
        if task.worker is not None:
            task.worker.give(frame)  # no more than its credit, which the worker itself gives
            self._watch(task.worker)
        else:
            task.parts.append(frame)  # type: ignore[arg-type]

    def _used(self, task: Task, frame: Data) -> None:
        # The worker's link is read at once while it waits for a call, so what is given is as good as taken.
        self.connection.used(task.id, len(frame.payload))

    def _on_cancel(self, frame: Cancel) -> None:
        task = self.tasks.get(frame.id)
        if task is None and frame.id in self.sessions:
            self._close_session(frame.id, frame.grace_ms / 1000.0)
        elif task is None:  # it is over, but its result or what it printed may still be on the way
            if self.connection.drop(frame.id):
                self._end_id(frame.id, CANCELLED)
            self.connection.disown_output(frame.id)
        elif not task.cancelled:
            self._cancel(task, frame)

    def _on_renew(self, frame: Renew) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return
        never = frame.timeout_ms == frames.NEVER
        task.deadline = None if never else time.monotonic() + frame.timeout_ms / 1000.0
        if not never:
            self._watch_deadline(task)
        if task.worker is not None and task.whole:
            task.worker.tell(frame, _signal.SIGURG)

    def _on_session(self, frame: Session) -> None:
        self.sessions[frame.id] = None
        self.session_queues[frame.id] = deque()

    def _on_modules(self, frame: Modules) -> None:
        self.bundle.append(frame.payload)
        if frame.last:
            self.bundles.append(b"".join(self.bundle))
            self.bundle = []
            for worker in self.workers:
                if not worker.retired:
                    worker.give_bundles(self.bundles)
                    self._watch(worker)

    def _on_close(self, frame: Close) -> None:
        self.closing = True
        self.close_grace = frame.grace_ms / 1000.0
        for task in list(self.tasks.values()):
            if task.cancelled:
                self._at(time.monotonic() + self.close_grace, self._terminator(task), task)
            else:
                self._cancel(task, Cancel(task.id, frame.grace_ms, frames.BY_CALLER, b"the host was closed"))
        for id in list(self.sessions):
            if id not in self.tasks:
                self._close_session(id, self.close_grace)

    def _nothing(self, frame: "Any") -> None:
        """A ping has done its work by arriving; so has the hello."""

    HANDLERS: "Dict[Any, Callable[..., None]]" = {  # noqa: RUF012 (a table)
        Hello: _nothing,
        Ping: _nothing,
        Call: _on_call,
        Begin: _on_call,
        Data: _on_data,
        Item: _on_item,
        Cancel: _on_cancel,
        Renew: _on_renew,
        Session: _on_session,
        Modules: _on_modules,
        Close: _on_close,
    }

    # ---- deadlines and the ladder

    def _watch_deadline(self, task: Task) -> None:
        deadline = task.deadline
        assert deadline is not None
        self._at(deadline + BACKSTOP, lambda: self._deadline_passed(task, deadline), task)

    def _deadline_passed(self, task: Task, deadline: float) -> None:
        if task.deadline == deadline and self.tasks.get(task.id) is task and not task.cancelled:
            grace_ms = int(self.configuration["grace_period"] * 1000)
            self._cancel(task, Cancel(task.id, grace_ms, frames.BY_DEADLINE, b"deadline"))

    def _cancel(self, task: Task, frame: Cancel) -> None:
        """First rung: ask.  What has not started never will."""
        task.cancelled = True
        task.torn = self.connection.drop(task.id)
        self.connection.disown_output(task.id)
        worker = task.worker
        if worker is None or not task.whole:
            if worker is not None:
                worker.give(Cancel(task.id))  # it holds a part of the payload
                self._release(worker)
            self._end(task, NEVER_STARTED)
            return
        self._throttle(worker)
        task.by_deadline = frame.cause == frames.BY_DEADLINE
        worker.tell(frame, _signal.SIGURG)
        self._wake_again(task, 0)
        self._at(time.monotonic() + frame.grace_ms / 1000.0, self._terminator(task), task)

    def _wake_again(self, task: Task, times: int) -> None:
        """Signal once more, while the worker has not answered.

        A signal that comes between Python's last look for one and a system call that blocks is not seen before
        the call ends.  The handler has nothing to do when it has been seen.
        """
        worker = self._worker_at(task)
        if worker is not None:
            if times:
                reaper.signal_one(worker.pid, _signal.SIGURG)
            pause = WAKE_AGAIN[min(times, len(WAKE_AGAIN) - 1)]
            self._at(time.monotonic() + pause, lambda: self._wake_again(task, times + 1), task)

    def _terminator(self, task: Task) -> "Callable[[], None]":
        return lambda: self._give_up(task)

    def _worker_at(self, task: Task) -> "Optional[Worker]":
        """The worker that has a call in hand, and is not being ended."""
        worker = task.worker
        return worker if self.tasks.get(task.id) is task and worker is not None and not worker.retired else None

    def _give_up(self, task: Task) -> None:
        """The grace period is over.  What did not even say where its deadline found it, as all Python code does,
        is asked by a signal first: why was it slow?"""
        from trickle._agent.worker import STACK

        worker = self._worker_at(task)
        if worker is None or task.killed:
            return
        task.killed = True
        if task.by_deadline and STACK is not None and not worker.read_stack():
            reaper.signal_one(worker.pid, STACK)
            self._await_stack(task, time.monotonic() + STACK_PATIENCE)
        else:
            self._terminate(task)

    def _await_stack(self, task: Task, until: float) -> None:
        worker, now = self._worker_at(task), time.monotonic()
        if worker is None:
            return
        if worker.read_stack() or now >= until:
            self._terminate(task)
        else:
            self._at(now + STACK_LOOK, lambda: self._await_stack(task, until), task)

    def _terminate(self, task: Task) -> None:
        """Second rung: SIGTERM to the worker's group."""
        worker = self._worker_at(task)
        if worker is not None:
            reaper.kill_group(worker.pid, _signal.SIGTERM)
            self._at(time.monotonic() + TERM_TO_KILL, lambda: self._kill(task), task)

    def _kill(self, task: Task) -> None:
        """Last rung: SIGKILL to everything."""
        worker = self._worker_at(task)
        if worker is not None:
            self._retire(worker, 0.0).end = (task.id, KILLED, 0, worker.read_stack())

    # ---- sessions

    def _close_session(self, id: int, grace: float) -> None:
        worker = self.sessions.pop(id)
        if worker is not None:
            worker.session_verdict = CANCELLED
        for task in list(self.tasks.values()):
            if task.session == id and not task.cancelled:
                self._cancel(task, Cancel(task.id, int(grace * 1000), frames.BY_CALLER, b"the session was closed"))
        self.session_queues.pop(id, None)
        if worker is None:
            self._end_id(id, CANCELLED)
        elif worker.task is None and not worker.retired:
            self._dismiss(worker, grace)

    def _end_id(self, id: int, verdict: int, detail: int = 0, payload: bytes = b"") -> None:
        if self.connection.is_open(id):
            self.connection.end(id, verdict, detail, payload)

    # ---- workers

    def _act(self) -> None:
        now = time.monotonic()
        self._run_timers(now)
        if self.child_died:
            self.child_died = False
            self._look_for_deaths()
        self._start_sessions()
        self._start_waiting(now)
        if self.closing:
            for worker in list(self.workers):
                if worker.task is None and not worker.retired and not worker.session:
                    self._dismiss(worker, self.close_grace)
        if self.reapings:
            self._reap(now)

    def _start_waiting(self, now: float) -> None:
        while self.waiting:
            if self.waiting[0].id not in self.tasks:
                self.waiting.popleft()  # it ended while it waited
                continue
            idle = [w for w in self.workers if w.task is None and not w.retired and not w.session]
            if not idle:
                break
            self._assign(self.waiting.popleft(), idle[0])
        if self.waiting and self._may_fork():
            plain = [w for w in self.workers if not w.session and not w.retired]
            if not plain or now - self.waiting[0].arrived >= PATIENCE:
                worker = self._fork(self.waiting[0])
                if worker is not None:
                    self._assign(self.waiting.popleft(), worker)

    def _may_fork(self) -> bool:
        if time.monotonic() < self.fork_again_at:
            return False
        limit: "int" = self.configuration["workers"]
        return sum(not w.session for w in self.workers) < limit

    def _start_sessions(self) -> None:
        for id, queue in list(self.session_queues.items()):
            while queue and queue[0].id not in self.tasks:
                queue.popleft()
            worker = self.sessions[id]
            if worker is None:
                if not queue or time.monotonic() < self.fork_again_at:
                    continue
                worker = self.sessions[id] = self._fork(queue[0])
                if worker is None:
                    continue
                worker.session = id
            if queue and worker.task is None and not worker.retired:
                if queue[0].id == id:
                    del self.session_queues[id]
                self._assign(queue.popleft(), worker)

    def _fork(self, task: Task) -> "Optional[Worker]":
        """A new worker; None if there is no room for one now.  Then *task* fails, unless others will be free."""
        self.serial += 1
        worker = Worker(self.serial, self.configuration["agent"])
        self._prepare_fork()
        try:
            worker.fork(self.configuration, self.bundles)
        except OSError as exc:
            self.fork_again_at = time.monotonic() + FORK_AGAIN
            self._at(self.fork_again_at, lambda: None)
            self._note(WARNING, "cannot start another worker: %s" % exc)
            if task.session or not self.workers:
                from trickle._agent import results

                self._end_task(task.id, RAISED, 0, results.describe_exception(exc))
            return None
        self.workers.append(worker)
        for fd in worker.descriptors():
            self.by_fd[fd] = worker
            self.poller.register(fd, select.POLLIN)
        return worker

    def _prepare_fork(self) -> None:
        """Once: what every worker needs is imported here, and shared."""
        if self.serial == 1:
            import gc

            from trickle._agent import worker

            _signal.signal(_signal.SIGURG, worker.on_wake)
            if worker.STACK is not None:
                _signal.signal(worker.STACK, _signal.SIG_IGN)  # until the worker has its handler
            if hasattr(gc, "freeze"):  # 3.7
                gc.collect()
                gc.freeze()

    def _assign(self, task: Task, worker: Worker) -> None:
        task.worker, worker.task = worker, task
        worker.give_bundles(self.bundles)
        left = task.seconds_left_ms(time.monotonic())
        if task.begun:
            worker.give(Begin(task.id, left))
            for part in task.parts:
                worker.give(part)  # type: ignore[arg-type]
                if isinstance(part, Data):
                    self._used(task, part)
        else:
            worker.give(Call(task.id, left, 0, task.parts[0]), *task.parts[1:])  # type: ignore[arg-type]
        task.parts = []
        self._watch(worker)

    def _release(self, worker: Worker) -> None:
        worker.task = None

    def _dismiss(self, worker: Worker, grace: float) -> None:
        """End a worker that runs no call: it sees the end of its link, and has the grace period to leave."""
        worker.retired = True
        fd = worker.link.fileno()
        self.poller.unregister(fd)
        del self.by_fd[fd]
        worker.link.close()
        self._at(time.monotonic() + grace, lambda: self._retire_dismissed(worker))

    def _retire_dismissed(self, worker: Worker) -> None:
        if worker in self.workers:
            self._retire(worker)

    def _retire(self, worker: Worker, patience: float = TERM_TO_KILL) -> Reaping:
        """End a worker with all that it started: SIGTERM to what is left, and after *patience* seconds SIGKILL."""
        worker.retired = True
        if worker not in self.workers:
            return next(reaping for reaping in self.reapings if reaping.worker is worker)
        self.workers.remove(worker)
        now = time.monotonic()
        reaping = Reaping(worker, now, now + patience)
        self.reapings.append(reaping)
        return reaping

    def _look_for_deaths(self) -> None:
        for worker in list(self.workers):
            status = exit_status(worker.pid)
            if status is None:
                # The next call would wait in it.  A session has no other, and one in a call may be a debugger's.
                if worker.task is None and not worker.session and not worker.retired and is_stopped(worker.pid):
                    self._note(INFO, "worker %d was stopped between two calls, and is ended" % worker.pid)
                    self._retire(worker)
                continue
            fd = worker.link.fileno()
            if fd >= 0 and fd in self.by_fd:
                self._read_worker(worker, fd)  # its last words may be an answer
            if worker in self.workers:
                self._on_death(worker, status)
        for reaping in self.reapings:
            reaping.look = 0.0
        if os.getpid() == 1:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """In a container without an init, what has lost its parent falls to us."""
        ours = {worker.pid for worker in self.workers} | {reaping.worker.pid for reaping in self.reapings}
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except OSError:
                return
            if info is None or info.si_pid in ours:
                return
            os.waitpid(info.si_pid, os.WNOHANG)

    def _on_death(self, worker: Worker, status: int) -> None:
        task = worker.task
        reaping = self._retire(worker)
        if task is not None and task.id in self.tasks:
            detail = status & 0xFFFF  # exit status, or 256 + the signal's number
            reaping.end = (task.id, KILLED if task.killed else DIED, detail, worker.read_stack())
        elif not worker.session and not self.closing:
            self._note(INFO, "worker %d ended between two calls" % worker.pid)
        if worker.session in self.sessions:
            self._lose_session(worker.session)

    def _lose_session(self, id: int) -> None:
        """A session's worker is gone, and its state with it."""
        del self.sessions[id]
        for task in self.session_queues.pop(id, ()):
            if task.id in self.tasks:
                self._end(task, NEVER_STARTED)

    def _reap(self, now: float) -> None:
        """End what is left of the workers that are being ended; a call ends when none of it is."""
        due = [reaping for reaping in self.reapings if reaping.look <= now]
        if not due:
            return
        # Looked at before the worker is killed: its death would hide whose children its children are.
        left = reaper.remnants(
            {reaping.worker.pid: reaping.worker.claim for reaping in due},
            {reaping.worker.pid: reaping.known for reaping in due},
        )
        for reaping in due:
            reaping.known = left[reaping.worker.pid]
            if self._is_gone(reaping, now):
                self._bury(reaping)
            else:
                wait = RETRY_KILL[min(reaping.looks, len(RETRY_KILL) - 1)]
                reaping.look, reaping.looks = now + wait, reaping.looks + 1

    def _is_gone(self, reaping: Reaping, now: float) -> bool:
        """Whether nothing is left of a worker; if something is, take the next step against it."""
        pid = reaping.worker.pid
        if reaping.known and now < reaping.kill_at:
            if not reaping.terminated:
                reaping.terminated = True
                reaper.kill_group(pid, _signal.SIGTERM)  # sudo hands it on to what we could not kill
                for left in reaping.known:  # what has left the group
                    reaper.signal_one(left, _signal.SIGTERM)
            return False
        reaper.kill_group(pid, reaper.SIGKILL)
        remaining = reaper.kill(reaping.known)
        if not remaining and exit_status(pid) is not None:
            # One that had not answered may have started something since it was looked at.
            return reaping.looks > 0 or reaping.end is None or reaping.end[1] != KILLED
        if now < reaping.give_up:
            return False
        self._note(WARNING, "processes %r survived SIGKILL" % ([pid, *reaping.known],))
        if reaping.end is not None:
            reaping.end = (reaping.end[0], UNKILLABLE, 0, reaping.end[3])
        return True

    def _bury(self, reaping: Reaping) -> None:
        worker = reaping.worker
        try:
            os.waitpid(worker.pid, os.WNOHANG)
        except OSError:
            pass
        if worker.link.fileno() >= 0:
            self._forget_fd(worker.link.fileno())
        for fd in worker.outputs:
            self._read_output(worker, fd)
            self._forget_fd(fd)
        self._flush_lines(worker)
        worker.close()
        self.reapings.remove(reaping)
        if reaping.end is not None:
            self._end_task(*reaping.end)
        if worker.session:
            self._end_id(worker.session, worker.session_verdict)

    def _forget_fd(self, fd: int) -> None:
        if self.by_fd.pop(fd, None) is not None:
            try:
                self.poller.unregister(fd)
            except KeyError:
                pass

    # ---- from the workers

    def _read_worker(self, worker: Worker, fd: int) -> None:
        if fd in worker.outputs:
            if not self._read_output(worker, fd):
                self._forget_fd(fd)
            self._throttle(worker)
            return
        worker.flush()
        try:
            received = worker.receive()
        except WireError as exc:  # the user's code has written to the worker's own descriptor
            self._note(WARNING, "worker %d is killed: %s" % (worker.pid, exc))
            reaper.signal_one(worker.pid, reaper.SIGKILL)
            received = None
        if received is None:
            self._forget_fd(fd)
            return  # how it died is learnt from its status
        for frame in received:
            self._from_worker(worker, frame)
        if not worker.retired:
            self._watch(worker)
            self._throttle(worker)

    def _from_worker(self, worker: Worker, frame: "frames.Frame") -> None:
        task = worker.task
        if isinstance(frame, Ask):
            if frame.bundles < len(self.bundles):
                worker.bundles = frame.bundles
                worker.give_bundles(self.bundles)  # perhaps it is in what others have asked for
            else:
                self.connection.control(frame)
        elif isinstance(frame, Record):
            self._queue_output(worker, Record(self._label(worker), frame.level, 0, frame.payload))
        elif task is None or frame.id != task.id:
            pass  # of a call that was ended without it
        elif isinstance(frame, Credit):
            self.connection.used(frame.id, frame.size)
        elif isinstance(frame, (Data, Item)):
            if task.cancelled:
                task.torn = task.torn or isinstance(frame, Data)
            else:
                self.connection.bulk(frame)
        elif isinstance(frame, End):
            self._on_end(worker, task, frame)

    def _on_end(self, worker: Worker, task: Task, frame: End) -> None:
        for fd in worker.outputs:
            self._read_output(worker, fd)
        self._flush_lines(worker)
        verdict, payload = frame.verdict, frame.payload
        if task.torn:
            verdict = CANCELLED
        if verdict == CANCELLED:
            payload = worker.read_stack()
        if frame.detail & TAINTED or task.killed or worker.retired:
            self._retire(worker).end = (task.id, verdict, 0, payload)
            if worker.session in self.sessions:
                self._lose_session(worker.session)
            return
        self._release(worker)
        self._end_task(task.id, verdict, 0, payload)
        if worker.session and worker.session not in self.sessions and not worker.retired:
            self._dismiss(worker, self.configuration["grace_period"])

    def _end(self, task: Task, verdict: int) -> None:
        self._end_task(task.id, verdict, 0, b"")

    def _end_task(self, id: int, verdict: int, detail: int, payload: bytes) -> None:
        task = self.tasks.pop(id, None)
        if task is not None:
            task.parts = []
            self._end_id(id, verdict, detail, payload)
            if task.session == id:
                self.sessions.pop(id, None)
                self.session_queues.pop(id, None)
                if task.worker is not None and task.worker.task is None and not task.worker.retired:
                    self._dismiss(task.worker, self.configuration["grace_period"])

    # ---- output

    def _label(self, worker: Worker) -> int:
        """The call that what a worker writes belongs to; 0 between calls, and when nothing may hold its End up."""
        task = worker.task
        return task.id if task is not None and not task.cancelled and self.connection.is_open(task.id) else 0

    def _read_output(self, worker: Worker, fd: int) -> bool:
        """Pass on what one output pipe holds; False at its end."""
        blocks = worker.read_output(fd)
        task = worker.task
        if task is not None and task.cancelled and self.connection.pending(0) > OUTPUT_LIMIT:
            return blocks is not None  # nobody takes it, and its call has to come to its end
        for block in blocks or ():
            self._queue_output(worker, Output(self._label(worker), worker.outputs[fd].stream, 0, block))
        return blocks is not None

    def _flush_lines(self, worker: Worker) -> None:
        for lines in worker.outputs.values():
            rest = lines.flush()
            if rest:
                self._queue_output(worker, Output(self._label(worker), lines.stream, 0, rest))

    def _queue_output(self, worker: Worker, frame: "frames.Frame") -> None:
        self.connection.bulk(frame)

    def _note(self, level: int, text: str) -> None:
        self.connection.control(Note(0, level, 0, text.encode("utf-8", "replace")))

    # ---- back-pressure

    def _watch(self, worker: Worker) -> None:
        """Have the poller look at a worker's link in the directions that matter now."""
        fd = worker.link.fileno()
        if fd in self.by_fd:
            events = 0 if worker.throttled else select.POLLIN
            self.poller.modify(fd, events | (select.POLLOUT if worker.outbox else 0))

    def _throttle(self, worker: Worker) -> None:
        """Do not read a worker whose call has more waiting for the pipe than it may; its writes then block."""
        task = worker.task
        full = self.connection.pending(self._label(worker)) > OUTPUT_LIMIT and not (task and task.cancelled)
        if full == worker.throttled or worker.retired:
            return
        worker.throttled = full
        self._watch(worker)
        for fd in worker.outputs:
            if fd in self.by_fd:
                self.poller.modify(fd, 0 if full else select.POLLIN)

    # ---- to the controller

    def _flush(self) -> None:
        now = time.monotonic()
        while True:
            if not self.outgoing:
                data = self.connection.data_to_send(now)
                if not data:
                    break
                self.outgoing.append(memoryview(b"".join(data)))
            try:
                sent = os.write(1, self.outgoing[0])
            except BlockingIOError:
                break
            if sent < len(self.outgoing[0]):
                self.outgoing[0] = self.outgoing[0][sent:]
            else:
                del self.outgoing[0]
        if bool(self.outgoing) != self.writing:
            self.writing = bool(self.outgoing)
            if self.writing:
                self.poller.register(1, select.POLLOUT)
            else:
                self.poller.unregister(1)
        for worker in self.workers:
            if worker.throttled:
                self._throttle(worker)

    # ---- the end

    def end_everything(self) -> None:
        """SIGKILL to every worker and all that they started, and wait until it is gone."""
        for worker in list(self.workers):
            self._retire(worker, 0.0)
        for reaping in self.reapings:
            reaping.kill_at = 0.0
            reaping.give_up = time.monotonic() + UNKILLABLE_AFTER
        while self.reapings:
            self._reap(time.monotonic())
            if self.reapings:
                time.sleep(max(0.0, min(reaping.look for reaping in self.reapings) - time.monotonic()))


class ControllerGone(Exception):
    """The lease has run out, or somebody here ends us."""


def exit_status(pid: int) -> "Optional[int]":
    """How a child ended, which stays to be reaped: its status, or 256 + a signal's number; None if it has not."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except AttributeError:  # macOS before Python 3.13 has no waitid: reap it now
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if not reaped:
            return None
        return 256 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    except OSError:
        return 0  # reaped already
    if info is None or not info.si_pid:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else 256 + info.si_status


def is_stopped(pid: int) -> bool:
    """Whether a child was stopped by a signal, and not continued; False where that cannot be known."""
    try:
        info = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, OSError):
        return False
    return info is not None and bool(info.si_pid)


def _has_module(name: str) -> bool:
    return any(finder.find_spec(name, None) is not None for finder in sys.meta_path)


def _about_this_host() -> bytes:
    uname = os.uname()
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # a container's user need not have a name
        user = str(os.getuid())
    about = {
        "hostname": uname.nodename,
        "pid": str(os.getpid()),
        "user": user,
        "python": sys.executable or "",
        "python_version": "%d.%d.%d" % sys.version_info[:3],
        "implementation": sys.implementation.name,
        "system": uname.sysname,
        "machine": uname.machine,
        "lacks": " ".join(name for name in ("contextvars", "queue", "ssl") if not _has_module(name)),
    }
    return "\n".join("%s=%s" % item for item in about.items()).encode("utf-8", "surrogateescape")


def _raise_descriptor_limit() -> "Optional[Tuple[int, int]]":
    """Have as many descriptors as we may: each worker takes seven.  Returns what it was, for the workers."""
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


def main(stdin: "Any", configuration: "Dict[str, Any]") -> None:
    """Be the broker.  *stdin* may hold bytes that were read ahead with the boot code."""
    _signal.alarm(0)  # the boot line's own deadline
    configuration["descriptor_limits"] = _raise_descriptor_limit()
    broker = Broker(configuration)
    os.set_blocking(0, False)
    received = stdin.peek() or b""
    stdin.detach()
    try:
        broker.run(received)
        status = 0
    except (ControllerGone, WireError) as exc:
        sys.stderr.write("trickle agent: %s\n" % exc)
        status = 70
    except OSError as exc:
        if exc.errno != errno.EPIPE:
            raise
        status = 0  # the controller is gone, as at the end of stdin
    finally:
        broker.end_everything()
    sys.stderr.flush()
    os._exit(status)
