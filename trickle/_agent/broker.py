"""The broker: moves frames between the controller and the workers, keeps deadlines and the lease, starts and ends.

It has one thread, never blocks and never runs the user's code.  One turn of its loop reads all that has arrived,
then acts on it, then writes what the pipe takes: so that a cancel behind a call stops it before it has begun.
"""

import _signal  # type: ignore[import-not-found]  # signal itself brings enum
import errno
import os
import select
import sys
import time
from collections import deque

from trickle._agent import pool
from trickle._agent.about import about_this_host
from trickle._agent.ladder import (
    ANSWER,
    ASKED,
    CANCEL,
    DEATH,
    ENDED,
    ENDING,
    GONE,
    GRACE_OVER,
    LOADED,
    LOADING,
    NO_WORKER,
    QUESTIONED,
    RUNNING,
    SURVIVED,
    TAINTED_ANSWER,
    TAKEN_BACK,
    TERM_OVER,
    TERMINATED,
    TOLD,
    WORKER_FREE,
    Task,
)
from trickle._agent.pipe import ControllerPipe
from trickle._agent.pool import Worker
from trickle._agent.reaper import (
    SIGKILL,
    SIGTERM,
    Reaper,
    Reaping,
    exit_status,
    is_stopped,
    kill_group,
    reap_orphans,
    signal_one,
)
from trickle._agent.timers import Timers
from trickle._wire import frames
from trickle._wire.connection import CREDIT
from trickle._wire.frames import (
    CANCELLED,
    DIED,
    Ask,
    Begin,
    Call,
    Cancel,
    Close,
    Credit,
    Data,
    End,
    Grace,
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

PATIENCE = 0.005  # seconds that a call waits for a worker to come free before a new one is forked
AHEAD = 8  # calls that a worker is handed beside the one that it runs, which has begun less than PATIENCE ago
MOST_AT_ONCE = 32  # frames of one worker: then it is the others' turn
BACKSTOP = 1.0  # seconds past its deadline that a call is left to the controller's own scope
STACK_LOOK = 0.005  # seconds between looks for a stack that was asked for
STACK_PATIENCE = 1.0  # seconds in which it has to come; a process that is stopped writes none
TERM_TO_KILL = 0.2  # seconds
OUTPUT_LIMIT = CREDIT  # bytes of one call that wait for the pipe: above, its worker is not read
WARNING, INFO = 30, 20  # as logging has them
TAINTED, PRINTED, FLAGS = 1, 2, 8  # in the detail of a worker's End; the last is how many bits they have
LONGEST_POLL = 60000.0  # milliseconds
WAKE_AGAIN = (0.01, 0.05, 0.2, 1.0)  # seconds between signals to a worker that was asked to stop
FORK_AGAIN = 0.1  # seconds after this machine had no descriptors or processes to give


class Broker:
    """The agent's one process that the controller talks to."""

    def __init__(self, configuration: "Dict[str, Any]") -> None:
        self.configuration = configuration
        self.pipe = ControllerPipe(configuration["max_payload"])
        self.connection = self.pipe.connection
        self.poller = select.poll()
        self.tasks: "Dict[int, Task]" = {}
        self.waiting: "Deque[Task]" = deque()
        self.sessions: "Dict[int, Optional[Worker]]" = {}
        self.session_queues: "Dict[int, Deque[Task]]" = {}
        self.workers: "List[Worker]" = []
        self.reaper = Reaper()
        self.by_fd: "Dict[int, Worker]" = {}
        self.bundles: "List[bytes]" = []
        self.serial = 0
        self.timers = Timers()
        self.closing = False
        self.close_grace = 0.0
        self.writing = False  # whether the poller watches stdout
        self.bundle: "List[bytes]" = []
        self.child_died = False
        self.stop_signal = 0
        self.fork_again_at = 0.0

    # ---- the loop

    def run(self, received: bytes) -> None:
        """Serve until the controller closes, falls silent or is gone."""
        self.pipe.greet(self.configuration["nonce"], about_this_host())
        self._watch_children()
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self.poller.register(0, select.POLLIN)
        self._beat()
        self._check_lease()
        for frame in self.pipe.decode(received):
            self.HANDLERS[type(frame)](self, frame)
        self._read_controller()
        while not self.pipe.ended:  # there is no grace then: see end_everything
            self._act()
            self._flush()
            if self._finished():
                return
            for fd, _ in self._poll():
                if fd == 0:
                    self._read_controller()
                elif fd == self.wake_fd:
                    self._drain_wake_pipe()
                elif fd in self.by_fd:
                    self._read_worker(self.by_fd[fd], fd)

    def _poll(self) -> "List[Tuple[int, int]]":
        """What is ready, after waiting for it no longer than the next timer allows."""
        due = self.timers.next  # the next beat, if nothing else
        if self.reaper.next_look is not None:
            due = min(due, self.reaper.next_look)
        if self.waiting and self._may_fork():
            due = min(due, self.waiting[0].arrived + PATIENCE)
        for worker in self.workers:
            if worker.ahead:
                due = min(due, worker.since + PATIENCE)
        timeout = min(LONGEST_POLL, max(0.0, due - time.monotonic()) * 1000)
        # Rounded up: a timer that is not due yet must not make the loop spin.
        return self.poller.poll(int(timeout) + (timeout > int(timeout)))

    def _finished(self) -> bool:
        busy = self.tasks or self.sessions or self.workers or self.reaper.reapings
        return self.closing and not busy and self.pipe.is_drained

    def _watch_children(self) -> None:
        self.wake_fd, wake_write = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(wake_write, False)
        _signal.set_wakeup_fd(wake_write)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        stops = (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT)
        for number in stops:
            _signal.signal(number, self._on_stop_signal)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGCHLD, *stops))  # whoever started us had them blocked
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

    def _beat(self) -> None:
        self.connection.control(Ping())
        self.timers.at(time.monotonic() + self.configuration["heartbeat"], self._beat)

    def _check_lease(self) -> None:
        lease = self.configuration["lease"]
        if lease == float("inf"):
            return
        silent = self.pipe.silence()
        if silent >= lease:
            self._read_controller()  # after a stall of our own: what has arrived is read before judging
            if self.pipe.ended or self.pipe.silence() >= lease:
                raise ControllerGone("nothing heard from the controller for %.1f s" % silent)
            silent = 0.0
        # Not in one go: the clock of the loop stands still while the machine sleeps.
        self.timers.at(time.monotonic() + min(5.0, max(0.01, lease - silent)), self._check_lease)

    # ---- from the controller

    def _read_controller(self) -> None:
        for frame in self.pipe.read():
            self.HANDLERS[type(frame)](self, frame)

    def _on_call(self, frame: "Any") -> None:
        task = Task(frame.id, frame.session, frame.timeout_ms, time.monotonic())
        self.tasks[task.id] = task
        task.parts.append(frame)
        if self.closing:
            self._step(task, CANCEL)
            return
        if task.deadline is not None:
            self._watch_deadline(task)
        if task.session:
            if task.session == task.id:  # a worker of its own, for this call alone
                self._on_session(frame)
            if task.session in self.session_queues:
                self.session_queues[task.session].append(task)
            else:  # its worker died a moment ago
                self._step(task, CANCEL)
        else:
            self.waiting.append(task)

    def _on_data(self, frame: Data) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return  # ended by what was read together with this
        if task.worker is None:
            task.parts.append(frame)
        else:
            self._load(task, task.worker, frame)

    def _on_item(self, frame: Item) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return  # ended by what was read together with this
        if task.worker is None:
            task.parts.append(frame)
        else:
            task.worker.give(frame)  # no more than its credit, which the worker itself gives
            self._watch(task.worker)

    def _on_cancel(self, frame: Cancel) -> None:
        task = self.tasks.get(frame.id)
        if task is None and frame.id in self.sessions:
            self._close_session(frame.id, frame.grace_ms / 1000.0)
        elif task is None:  # it is over, but its result or what it printed may still be on the way
            if self.connection.drop(frame.id):
                self._end_id(frame.id, CANCELLED)
            self.connection.disown_output(frame.id)
        else:
            self._cancel(task, frame)

    def _on_renew(self, frame: Renew) -> None:
        task = self.tasks.get(frame.id)
        if task is None:
            return
        if task.holder is not None:
            self._take_back(task.holder)  # it has been told the old deadline
        never = frame.timeout_ms == frames.NEVER
        task.deadline = None if never else time.monotonic() + frame.timeout_ms / 1000.0
        if not never:
            self._watch_deadline(task)
        if task.worker is not None:
            task.worker.tell(frame, _signal.SIGURG)

    def _on_grace(self, frame: Grace) -> None:
        task = self.tasks.get(frame.id)
        if task is not None:
            task.grace_ms = frame.grace_ms

    def _on_session(self, frame: "frames.Frame") -> None:
        self.sessions[frame.id] = None
        self.session_queues[frame.id] = deque()

    def _on_modules(self, frame: Modules) -> None:
        self.bundle.append(frame.payload)
        if frame.last:
            self.bundles.append(b"".join(self.bundle))
            self.bundle = []
            for worker in self.workers:
                self._give_bundles(worker)
                self._watch(worker)

    def _on_close(self, frame: Close) -> None:
        self.closing = True
        self.close_grace = frame.grace_ms / 1000.0
        for task in list(self.tasks.values()):
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
        Grace: _on_grace,
        Session: _on_session,
        Modules: _on_modules,
        Close: _on_close,
    }

    # ---- deadlines and the ladder

    def _watch_deadline(self, task: Task) -> None:
        deadline = task.deadline
        assert deadline is not None
        self.timers.at(deadline + BACKSTOP, lambda: self._deadline_passed(task, deadline), task)

    def _deadline_passed(self, task: Task, deadline: float) -> None:
        if task.deadline == deadline and task.is_wanted:
            grace_ms = task.grace_ms
            if grace_ms is None:
                grace_ms = int(self.configuration["grace_period"] * 1000)
            self._cancel(task, Cancel(task.id, grace_ms, frames.BY_DEADLINE, b"deadline"))

    def _cancel(self, task: Task, frame: Cancel) -> None:
        """Nobody wants this call any more.  What has not started never will; what runs is asked to stop."""
        if task.holder is not None:
            self._look_where(task, task.holder)
            if task.holder is not None:
                task.unwanted = frame
                return
        elif task.worker is not None:
            self._take_back(task.worker)  # this one too, if it has not begun
        task.torn = self.connection.drop(task.id) or task.torn
        self.connection.disown_output(task.id)
        worker = task.worker
        if task.state == LOADING and worker is not None:
            worker.give(Cancel(task.id))  # it holds a part of the payload
        if self._step(task, CANCEL) and worker is not None and task.state == ASKED:
            self._throttle(worker)
            task.by_deadline = frame.cause == frames.BY_DEADLINE
            worker.tell(frame, _signal.SIGURG)
            self._wake_again(task, worker, 0)
        if task.state == ASKED:  # perhaps for the second time: the shorter grace period counts
            self.timers.at(time.monotonic() + frame.grace_ms / 1000.0, lambda: self._step(task, GRACE_OVER), task)

    def _wake_again(self, task: Task, worker: Worker, times: int) -> None:
        """Signal once more, while the worker has not answered.

        A signal that comes between Python's last look for one and a system call that blocks is not seen before
        the call ends.  The handler has nothing to do when it has been seen.
        """
        if task.state == ASKED:
            if times:
                signal_one(worker.pid, _signal.SIGURG)
            pause = WAKE_AGAIN[min(times, len(WAKE_AGAIN) - 1)]
            self.timers.at(time.monotonic() + pause, lambda: self._wake_again(task, worker, times + 1), task)

    def _step(self, task: Task, event: str, own: int = 0, detail: int = 0, payload: bytes = b"") -> bool:
        """Tell the ladder of an event, and do what the state that it leads to asks for.  Arguments as `Task.step`'s."""
        before = task.state
        if not task.step(event, own, detail, payload):
            return False
        worker = task.worker
        if task.state == ENDED:
            self._end(task)
        elif worker is not None and task.state != before:
            if task.state == QUESTIONED:
                self._question(task, worker)
            elif task.state == TERMINATED:
                kill_group(worker.pid, SIGTERM)
                self.timers.at(time.monotonic() + TERM_TO_KILL, lambda: self._kill(task, worker), task)
            elif task.state == ENDING:
                self._retire(worker, 0.0 if event == TERM_OVER else TERM_TO_KILL)
        return True

    def _question(self, task: Task, worker: Worker) -> None:
        """Why was it slow?  Python code has said where its deadline found it; all other is asked by a signal."""
        from trickle._agent.worker import STACK

        if task.by_deadline and STACK is not None and not worker.read_stack():
            signal_one(worker.pid, STACK)
            self._await_stack(task, worker, time.monotonic() + STACK_PATIENCE)
        else:
            self._step(task, TOLD)

    def _await_stack(self, task: Task, worker: Worker, until: float) -> None:
        if task.state != QUESTIONED:
            return
        now = time.monotonic()
        if worker.read_stack() or now >= until:
            self._step(task, TOLD)
        else:
            self.timers.at(now + STACK_LOOK, lambda: self._await_stack(task, worker, until), task)

    def _kill(self, task: Task, worker: Worker) -> None:
        if task.state == TERMINATED:
            self._step(task, TERM_OVER, payload=worker.read_stack())

    def _end(self, task: Task) -> None:
        """Say how a call has ended."""
        del self.tasks[task.id]
        task.parts = []
        if task.worker is not None:
            task.worker.task = None
        assert task.verdict is not None
        self._end_id(task.id, task.verdict, task.detail, task.payload)
        if task.session == task.id:
            self.sessions.pop(task.id, None)
            self.session_queues.pop(task.id, None)
            if task.worker is not None and not task.worker.retired:
                self._dismiss(task.worker, self.configuration["grace_period"])

    # ---- sessions

    def _close_session(self, id: int, grace: float) -> None:
        worker = self.sessions.pop(id)
        for task in list(self.tasks.values()):
            if task.session == id:
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
        self.timers.run(now)
        if self.child_died:
            self.child_died = False
            self._look_for_deaths()
        if self.reaper.reapings:
            for reaping in self.reaper.look(now):
                self._bury(reaping)
        if self.session_queues:
            self._start_sessions()
        for worker in self.workers:
            if worker.ahead and now - worker.since >= PATIENCE:
                self._take_back(worker)
        if self.waiting:
            self._start_waiting(now)
        if self.closing:
            for worker in list(self.workers):
                if worker.task is None and not worker.session:
                    self._dismiss(worker, self.close_grace)

    def _start_waiting(self, now: float) -> None:
        while self.waiting:
            if self.waiting[0].has_ended:
                self.waiting.popleft()  # it ended while it waited
                continue
            idle = self._idle()
            if not idle:
                break
            self._assign(self.waiting.popleft(), idle[0])
        if self.waiting and self._may_fork():
            plain = [w for w in self.workers if not w.session]
            if not plain or now - self.waiting[0].arrived >= PATIENCE:
                worker = self._fork(self.waiting[0])
                if worker is not None:
                    self._assign(self.waiting.popleft(), worker)
        if self.waiting:
            self._give_ahead(now)

    def _idle(self) -> "List[Worker]":
        """The workers that any call may have: the first is given the next, so that the last is the one best spared."""
        return [worker for worker in self.workers if worker.task is None and not worker.session]

    def _give_ahead(self, now: float) -> None:
        """Hand calls to workers that run one which is perhaps a short one, so that they need not wait to be woken.

        In turn, so that each has as many.  What they have not begun is taken back when it is wanted elsewhere.
        """
        open_to_more = [worker for worker in self.workers if self._takes_more(worker, now)]
        while self.waiting and open_to_more:
            for worker in list(open_to_more):
                while self.waiting and self.waiting[0].has_ended:
                    self.waiting.popleft()
                call = self.waiting[0].parts[0] if self.waiting else None
                if not isinstance(call, Call):
                    return
                task = self.waiting[0]
                left = task.seconds_left_ms(now)
                if len(worker.ahead) >= AHEAD or not worker.give_ahead(Call(task.id, left, 0, call.payload)):
                    open_to_more.remove(worker)
                    continue
                worker.ahead.append(self.waiting.popleft())
                task.holder = worker
                self._watch_outputs(worker)

    def _takes_more(self, worker: Worker, now: float) -> bool:
        task = worker.task
        runs_a_short_one = task is not None and task.state == RUNNING and now - worker.since < PATIENCE
        return (
            runs_a_short_one
            and not (worker.session or worker.throttled)
            and worker.bundles == len(self.bundles)
            and worker.can_be_given_ahead
        )

    def _take_back(self, worker: Worker) -> None:
        """Take back what a worker was handed ahead; the call that it is meant to run too, if it has not begun that."""
        if not worker.ahead:
            return
        taken = worker.take_back()
        given = [task for task in (worker.task, *worker.ahead) if task is not None]
        back = [task for task in given if task.id in taken]
        kept = [task for task in given if task.id not in taken]
        for task in back:
            if task is worker.task:
                self._step(task, TAKEN_BACK)
                worker.task = task.worker = None
            task.holder = None
        self.waiting.extendleft(reversed(back))
        worker.ahead = deque(task for task in kept if task is not worker.task)
        if worker.task is None:
            self._go_on(worker)
        self._watch_outputs(worker)

    def _go_on(self, worker: Worker) -> None:
        """The next of what a worker was handed ahead is what it runs now."""
        if worker.ahead:
            task = worker.ahead.popleft()
            task.holder = None
            self._attach(task, worker)
            self._step(task, LOADED)
            if task.unwanted is not None:
                self._cancel(task, task.unwanted)
            self._watch_outputs(worker)

    def _look_where(self, task: Task, worker: Worker) -> None:
        """Find out whether a worker has begun a call that it was handed ahead: it has answered all before that."""
        self._take_back(worker)
        if task.holder is not None and not worker.retired:
            self._read_worker(worker, worker.link.fileno())

    def _attach(self, task: Task, worker: Worker) -> None:
        task.worker, worker.task = worker, task
        worker.since = time.monotonic()
        self._step(task, WORKER_FREE)

    def _may_fork(self) -> bool:
        if time.monotonic() < self.fork_again_at:
            return False
        limit: "int" = self.configuration["workers"]
        return len(self.workers) < limit or sum(not w.session for w in self.workers) < limit

    def _start_sessions(self) -> None:
        for id, queue in list(self.session_queues.items()):
            while queue and queue[0].has_ended:
                queue.popleft()
            worker = self.sessions[id]
            if worker is None:
                if not queue or time.monotonic() < self.fork_again_at:
                    continue
                worker = self._fork(queue[0])
                if worker is None:
                    continue
                self.sessions[id] = worker
                worker.session = id
            if queue and worker.task is None and not worker.retired:
                if queue[0].id == id:
                    del self.session_queues[id]
                self._assign(queue.popleft(), worker)

    def _fork(self, task: Task) -> "Optional[Worker]":
        """A new worker; None if there is no room for one now.  Then *task* fails, unless there will be."""
        self.serial += 1
        worker = Worker(self.serial, self.configuration["agent"])
        self._prepare_fork()
        try:
            worker.fork(self.configuration, self.bundles)
        except OSError as exc:
            self.fork_again_at = time.monotonic() + FORK_AGAIN
            self.timers.at(self.fork_again_at, lambda: None)
            if self._makes_room():
                return None
            self._note(WARNING, "cannot start another worker: %s" % exc)
            if task.session or not self.workers:
                from trickle._agent import results

                self._step(task, NO_WORKER, payload=results.describe_exception(exc))
            return None
        self.workers.append(worker)
        worker.watched = worker.outputs_watched = select.POLLIN
        for fd in worker.descriptors():
            self.by_fd[fd] = worker
            self.poller.register(fd, select.POLLIN)
        return worker

    def _makes_room(self) -> bool:
        """Whether a worker is about to leave; if none is, one that is idle is sent away."""
        idle = self._idle()
        if idle and not self.reaper.reapings:
            self._note(INFO, "worker %d, which was idle, makes room for another" % idle[-1].pid)
            self._dismiss(idle[-1], self.configuration["grace_period"])
        return bool(self.reaper.reapings)

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
        self._attach(task, worker)
        self._give_bundles(worker)
        left = task.seconds_left_ms(worker.since)
        first, *parts = task.parts
        worker.others_given = worker.others
        worker.give(type(first)(task.id, left, 0, first.payload))
        if isinstance(first, Call):
            self._step(task, LOADED)
        else:
            task.parts = []
        for part in parts:
            if isinstance(part, Item):
                worker.give(part)
            else:
                self._load(task, worker, part)
        self._watch(worker)

    def _give_bundles(self, worker: Worker) -> None:
        if worker.bundles < len(self.bundles):
            self._take_back(worker)  # so that nothing but calls has to be
            worker.give_bundles(self.bundles)

    def _load(self, task: Task, worker: Worker, part: "Any") -> None:
        """Give a worker a part of the arguments."""
        worker.give(part)
        # The worker's link is read at once while it waits for a call, so what is given is as good as taken.
        self.connection.used(task.id, len(part.payload))
        if part.last:
            self._step(task, LOADED)
        self._watch(worker)

    def _dismiss(self, worker: Worker, grace: float) -> None:
        """End a worker that runs no call: it sees the end of its link, and has the grace period to leave."""
        self._forget_fd(worker.link.fileno())
        worker.link.close()
        self._retire(worker, TERM_TO_KILL, grace)

    def _retire(self, worker: Worker, patience: float, grace: float = 0.0) -> None:
        """End a worker with all that it started: it has no more to do with calls than the verdict of its last."""
        now = time.monotonic()
        self._take_back(worker)
        worker.retired = True
        self.workers.remove(worker)
        self.reaper.end(worker, now, patience, now + grace)

    def _look_for_deaths(self) -> None:
        for worker in list(self.workers):
            status = exit_status(worker.pid)
            if status is None:
                # The next call would wait in it.  A session has no other, and one in a call may be a debugger's.
                if worker.task is None and not worker.session and is_stopped(worker.pid):
                    self._note(INFO, "worker %d was stopped between two calls, and is ended" % worker.pid)
                    self._retire(worker, TERM_TO_KILL)
                continue
            fd = worker.link.fileno()
            while fd in self.by_fd and self._read_worker(worker, fd):
                pass  # its last words may be an answer
            if worker in self.workers:
                self._on_death(worker, status)
        self.reaper.look_now()
        if os.getpid() == 1:
            ours = [*self.workers, *(reaping.worker for reaping in self.reaper.reapings)]
            reap_orphans({worker.pid for worker in ours})

    def _on_death(self, worker: Worker, status: int) -> None:
        worker.session_verdict, worker.session_detail = DIED, status
        self._drain(worker)
        self._take_back(worker)
        if worker.task is not None:
            self._step(worker.task, DEATH, detail=status, payload=worker.read_stack())
            return
        self._retire(worker, TERM_TO_KILL)
        if not worker.session and not self.closing:
            self._note(INFO, "worker %d ended between two calls" % worker.pid)

    def _bury(self, reaping: Reaping) -> None:
        """A worker is gone with all that it started: what waited for that is answered."""
        worker, task = reaping.worker, reaping.worker.task
        if reaping.survived:
            self._note(WARNING, "processes %r survived SIGKILL" % ([worker.pid, *reaping.known],))
        self._drain(worker)
        for fd in worker.descriptors():
            self._forget_fd(fd)
        worker.close()
        self.fork_again_at = 0.0  # there is room again for another
        if task is not None and reaping.survived:
            self._step(task, SURVIVED, payload=task.payload)
        elif task is not None:
            self._step(task, GONE)
        if worker.session:
            self._end_id(worker.session, worker.session_verdict, worker.session_detail)
            self.sessions.pop(worker.session, None)
            for queued in self.session_queues.pop(worker.session, ()):
                self._step(queued, CANCEL)

    def _forget_fd(self, fd: int) -> None:
        if self.by_fd.pop(fd, None) is not None:
            try:
                self.poller.unregister(fd)
            except KeyError:
                pass

    # ---- from the workers

    def _read_worker(self, worker: Worker, fd: int) -> bool:
        """Take what a worker says, or has written to *fd*; False if that was nothing."""
        if fd in worker.outputs:
            if worker.ahead:
                return False  # whose it is will be known when it has answered
            if not self._read_output(worker, fd):
                self._forget_fd(fd)
            self._throttle(worker)
            return True
        if worker.outbox:
            worker.flush()
        received: "Optional[List[frames.Frame]]" = []
        try:
            for _ in range(MOST_AT_ONCE):
                received = worker.receive()
                for frame in received or ():
                    self._from_worker(worker, frame)
                if not received or not (worker.ahead or isinstance(received[-1], (Data, Item))):
                    break
                if self.connection.pending(received[-1].id) > OUTPUT_LIMIT:
                    break
        except WireError as exc:  # the user's code has written to the worker's own descriptor
            self._note(WARNING, "worker %d is killed: %s" % (worker.pid, exc))
            signal_one(worker.pid, SIGKILL)
            received = None
        if received is None:
            if worker.theirs is not None:  # it is no end, but an empty message
                signal_one(worker.pid, SIGKILL)
            self._forget_fd(fd)
            return False  # how it died is learnt from its status
        if not worker.retired:
            self._watch(worker)
            self._throttle(worker)
        return bool(received)

    def _from_worker(self, worker: Worker, frame: "frames.Frame") -> None:
        task = worker.task
        if isinstance(frame, End) and task is not None and frame.id == task.id:
            self._on_end(worker, task, frame)
        elif isinstance(frame, Ask):
            if frame.bundles < len(self.bundles):
                worker.bundles = frame.bundles
                self._give_bundles(worker)  # perhaps it is in what others have asked for
            else:
                self.connection.control(frame)
        elif isinstance(frame, Record):
            self.connection.bulk(Record(self._label(worker), frame.level, 0, frame.payload))
        elif isinstance(frame, Call):
            self._on_return(worker, frame.id)
        elif task is None or frame.id != task.id:
            pass  # of a call that was ended without it
        elif isinstance(frame, Credit):
            self.connection.used(frame.id, frame.size)
        elif isinstance(frame, (Data, Item)):
            if task.is_wanted:
                self.connection.bulk(frame)
            else:
                task.torn = task.torn or isinstance(frame, Data)

    def _on_return(self, worker: Worker, id: int) -> None:
        """A worker has met a call that it was handed ahead in the midst of another, and gives it back."""
        for task in list(worker.ahead):
            if task.id == id:
                worker.ahead.remove(task)
                task.holder = None
                self.waiting.appendleft(task)
                if task.unwanted is not None:
                    self._step(task, CANCEL)
                self._watch_outputs(worker)

    def _on_end(self, worker: Worker, task: Task, frame: End) -> None:
        worker.others_taken = max(worker.others_taken, worker.others_given)
        if frame.detail & PRINTED:
            self._drain(worker)
        elif worker.has_rest:
            self._finish_lines(worker)
        verdict = CANCELLED if task.torn else frame.verdict
        payload = worker.read_stack() if verdict == CANCELLED else frame.payload
        answer, detail = TAINTED_ANSWER if frame.detail & TAINTED else ANSWER, frame.detail >> FLAGS
        if not self._step(task, answer, verdict, detail, payload):
            raise WireError("it answered a call that is %s" % task.state)
        if worker.task is None:
            self._go_on(worker)
        if worker.session and worker.session not in self.sessions and not worker.retired:
            self._dismiss(worker, self.configuration["grace_period"])

    # ---- output

    def _label(self, worker: Worker) -> int:
        """The call that what a worker writes belongs to; 0 between calls, and when nothing may hold its End up."""
        task = worker.task
        return task.id if task is not None and task.is_wanted else 0

    def _output(self, worker: Worker, stream: int, lines: bytes) -> Output:
        """What a worker writes, also when nobody wants its call any more."""
        id = self._label(worker)
        return Output(id, stream, 0 if id or worker.task is None else worker.task.id, lines)

    def _read_output(self, worker: Worker, fd: int) -> bool:
        """Pass on what one output pipe holds; False at its end."""
        blocks = worker.read_output(fd)
        task = worker.task
        if task is not None and not task.is_wanted and self.connection.pending(0) > OUTPUT_LIMIT:
            return blocks is not None  # nobody takes it, and its call has to come to its end
        for block in blocks or ():
            self.connection.bulk(self._output(worker, worker.outputs[fd].stream, block))
        return blocks is not None

    def _drain(self, worker: Worker) -> None:
        """Pass on all that a worker has written, also a line without an end."""
        for fd in worker.outputs:
            self._read_output(worker, fd)
        self._finish_lines(worker)

    def _finish_lines(self, worker: Worker) -> None:
        worker.has_rest = False
        for lines in worker.outputs.values():
            rest = lines.flush()
            if rest:
                self.connection.bulk(self._output(worker, lines.stream, rest))

    def _note(self, level: int, text: str) -> None:
        self.connection.control(Note(0, level, 0, text.encode("utf-8", "replace")))

    # ---- back-pressure

    def _watch(self, worker: Worker) -> None:
        """Have the poller look at a worker's link in the directions that matter now."""
        events = (0 if worker.throttled else select.POLLIN) | (select.POLLOUT if worker.outbox else 0)
        fd = worker.link.fileno()
        if events != worker.watched and fd in self.by_fd:
            worker.watched = events
            self.poller.modify(fd, events)

    def _throttle(self, worker: Worker) -> None:
        """Do not read a worker whose call has more waiting for the pipe than it may; its writes then block."""
        task = worker.task
        full = self.connection.pending(self._label(worker)) > OUTPUT_LIMIT and (task is None or task.is_wanted)
        if full == worker.throttled or worker.retired:
            return
        worker.throttled = full
        self._watch(worker)
        self._watch_outputs(worker)

    def _watch_outputs(self, worker: Worker) -> None:
        """The same for what it prints: with calls ahead that is left until it has said of which it is."""
        events = 0 if worker.throttled or worker.ahead else select.POLLIN
        if events != worker.outputs_watched:
            worker.outputs_watched = events
            for fd in worker.outputs:
                if fd in self.by_fd:
                    self.poller.modify(fd, events)

    # ---- to the controller

    def _flush(self) -> None:
        self.pipe.write()
        if self.pipe.full != self.writing:
            self.writing = self.pipe.full
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
        self.reaper.hurry(time.monotonic())
        while self.reaper.reapings:
            for reaping in self.reaper.look(time.monotonic()):
                self._bury(reaping)
            if self.reaper.next_look is not None:
                time.sleep(max(0.0, self.reaper.next_look - time.monotonic()))


class ControllerGone(Exception):
    """The lease has run out, or somebody here ends us."""


def main(stdin: "Any", configuration: "Dict[str, Any]") -> None:
    """Be the broker.  *stdin* may hold bytes that were read ahead with the boot code."""
    _signal.alarm(0)  # the boot line's own deadline
    configuration["descriptor_limits"] = pool.raise_descriptor_limit()
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
