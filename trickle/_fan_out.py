"""Run one verb on each of many hosts, by a group's policy: who begins when, when it is enough, what is tried again.

What the verb is, is _group.py's job; spreading many items over the hosts is _spread.py's.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

import trio

from trickle._backoff import backoff
from trickle._exceptions import CallTimeout, ConnectError, HostLost, NotNeeded, RemoteError, WorkerDied
from trickle._host import Host
from trickle._host_core import CallRecord
from trickle._interrupts import add_notes_of, one_interrupt
from trickle._progress import Board
from trickle._results import Failure, Success
from trickle._settings import GroupOptions

T = TypeVar("T")
X = TypeVar("X")

Outcome: TypeAlias = "Success[T] | Failure"
Verb: TypeAlias = "Callable[[Host, CallRecord], Awaitable[T]]"  # what is done on one host; it fills in the record
Give: TypeAlias = "Callable[[X], Awaitable[object]]"

logger = logging.getLogger("trickle")


class Tally:
    """Counts outcomes, and says when they are enough.

    Args:
      policy: what is enough.
      total: how many outcomes there will be; None if nobody knows.

    Raises:
      ValueError: as ``GroupOptions.needed_of``.
    """

    def __init__(self, policy: GroupOptions, total: int | None) -> None:
        self._needed = policy.needed_of(total)
        self._tolerated = policy.tolerated
        self._successes = 0
        self._failures = 0

    def count(self, host: str, outcome: Outcome[object]) -> str | None:
        """Why no more outcomes are needed after this one; None if they are."""
        match outcome:
            case Success():
                self._successes += 1
                if self._successes == self._needed:
                    return f"{self._successes} had succeeded, and no more were needed"
            case Failure(error) if not isinstance(error, NotNeeded):
                self._failures += 1
                if self._failures == self._tolerated + 1:
                    allowed = f", and so more than {self._tolerated}" if self._tolerated else ""
                    return f"{host} had failed ({type(error).__name__}){allowed}"
        return None


class Attempt:
    """One verb on one host, in a scope of its own: it has a time limit, and can be stopped."""

    def __init__(self, host: Host, policy: GroupOptions, board: Board) -> None:
        self.host = host
        self.record: CallRecord = CallRecord()
        self._policy = policy
        self._board = board
        self._scope = trio.CancelScope()
        self._stopped: str | None = None  # why
        self._failed: Exception | None = None  # in an attempt before, while it waits for the next

    def stop(self, why: str) -> None:
        """It is not needed any more.  One whose time was up before has timed out all the same."""
        if self._stopped is None and not self._scope.cancel_called:
            self._stopped = why
            self._scope.cancel(reason=why)

    async def outcome(self, verb: Verb[T], retries: int = 0) -> Outcome[T]:
        """What came of it: only a cancellation from outside is raised."""
        try:
            with self._scope:
                return await self._try(verb, retries)
        except Exception as exc:
            if self._stopped is not None and self.record.stopped:  # else it had failed before it could be stopped
                return self._not_needed(exc)
            with contextlib.suppress(Exception):  # of a class that has a mind of its own
                if not hasattr(exc, "host"):  # it comes from this machine: a file, or a function that reduces
                    exc.host = self.host.name  # type: ignore[attr-defined]
            return Failure(exc)
        assert self._scope.cancelled_caught
        if self._stopped is None:
            return self._timed_out()
        return self._not_needed(None) if self._failed is None else Failure(self._failed)

    async def _try(self, verb: Verb[T], retries: int) -> Outcome[T]:
        core, options, name = self.host._core, self.host._options, self.host.name
        for attempt in itertools.count():
            record = self.record = CallRecord()
            record.limit = self._scope
            try:
                link = record.link = core.live_link(options.reconnect)
                if not link.begun.is_set():
                    self._board.set(name, "waiting")
                    with self._board.doing(name, "waiting for its turn to connect"):
                        await link.begun.wait()  # its time runs from then
                if self._scope.deadline == math.inf:
                    self._scope.deadline = trio.current_time() + self._policy.timeout
                self._board.begin(name, link, record)
                try:
                    return Success(await verb(self.host, record))
                finally:
                    self._board.leave(name, link, record)
            except Exception as exc:
                lost = core.error is not None and not options.reconnect
                if attempt >= retries or record.stopped or lost or not (may_differ(exc) or _is_of_command(exc)):
                    raise
                self._failed = exc
            logger.info("%s: it failed, and is tried again (%s)", name, _first_line(self._failed))
            if core.error is None:  # else it waits before it connects again
                self._board.set(name, "waiting")
                with self._board.doing(name, "waiting to be tried again"):
                    await trio.sleep(backoff(attempt + 1))
            self._failed = None
        raise AssertionError("counted to the end")

    def _not_needed(self, cause: Exception | None) -> Failure:
        error = not_needed(self.host.name, self._stopped or "", self.record)
        error.__cause__ = cause
        return Failure(error)

    def _timed_out(self) -> Failure:
        name, record, timeout = self.host.name, self.record, self._policy.timeout
        stage = record.stage if self._failed is None else "waiting to be tried again"
        error = CallTimeout(
            f"{name}: no result within {timeout:g} s ({stage}; verdict: {record.verdict})",
            host=name,
            verdict=record.verdict,
            stage=stage,
            remote_stack=record.call.remote_stack if record.call is not None else None,
        )
        error.__cause__ = self._failed
        return Failure(error)


class FanOut(Generic[T]):
    """One verb on every host of a group.

    Args:
      hosts: in the order in which they begin.
      verb: what is done on each.
      policy: the group's options.
      give: takes each host's outcome as it comes; the host's turn lasts until it has.

    Raises:
      ValueError: the policy needs more hosts than there are.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        verb: Verb[T],
        policy: GroupOptions,
        give: Give[tuple[str, Outcome[T]]],
    ) -> None:
        self._hosts = hosts
        self._verb = verb
        self._policy = policy
        self._give = give
        self._board = Board(hosts, policy.progress, has_turns=True)
        self._tally = Tally(policy, len(hosts))
        self._attempts: set[Attempt] = set()
        self._enough: str | None = None  # why

    async def run(self) -> None:
        """Return when every host has an outcome, and nothing of it runs any more."""
        limit = min(self._policy.limit or len(self._hosts), len(self._hosts))
        for name in self._hosts:
            self._board.set(name, "waiting")
        with self._board.ending():
            async with self._board.logged() as nursery:
                waiting = iter(self._hosts.values())
                for _ in range(limit):
                    nursery.start_soon(self._serve, waiting)

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, waiting: Iterator[Host]) -> None:
        """One turn at a time: the next host begins when the one before has ended."""
        for host in waiting:
            if self._enough is not None:
                outcome: Outcome[T] = Failure(not_needed(host.name, self._enough, None))
            else:
                outcome = await self._outcome(host)
            self._board.ended(host.name, outcome)
            enough = self._tally.count(host.name, outcome)
            if enough is not None and self._enough is None:
                self._stop(enough)
            await self._give((host.name, outcome))

    async def _outcome(self, host: Host) -> Outcome[T]:
        attempt = Attempt(host, self._policy, self._board)
        self._attempts.add(attempt)
        try:
            return await attempt.outcome(self._verb, self._policy.retries)
        finally:
            self._attempts.discard(attempt)

    def _stop(self, why: str) -> None:
        self._enough = why
        for attempt in self._attempts:
            attempt.stop(why)


def may_differ(exc: Exception) -> bool:
    """Whether another attempt may end otherwise than in this error."""
    if isinstance(exc, ConnectError):
        return exc._is_passing
    return isinstance(exc, RemoteError | WorkerDied | HostLost)


def _is_of_command(exc: Exception) -> bool:
    """Whether a command has failed over there: one of this machine, in a function that reduces, has no host yet."""
    return isinstance(exc, subprocess.CalledProcessError) and hasattr(exc, "host")


def not_needed(host: str, why: str, record: CallRecord | None) -> NotNeeded:
    """The error of a host that was stopped by its group."""
    verdict = record.verdict if record is not None else "never started"
    return NotNeeded(f"{host}: not needed: {why} (verdict: {verdict})", host=host)


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).splitlines()), type(exc).__name__)


# ---- outcomes as they come


@contextlib.asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def channel_of(
    prepare: Callable[[Give[X]], Callable[[], Awaitable[None]]],
) -> AsyncIterator[trio.abc.ReceiveChannel[X]]:
    """A channel of what *prepare*'s function gives, for the time of a block: leaving it cancels that.

    Nothing piles up in the channel: who gives, waits until it is taken.
    """
    send, receive = trio.open_memory_channel[X](0)
    wanted = trio.CancelScope()
    raised: BaseException | None = None  # by the body; kept aside, so that it is raised as itself when all is over
    failed: Exception | SystemExit | None = None  # what produced

    async def give(item: X) -> None:
        try:
            await send.send(item)
        except trio.BrokenResourceError:  # the body has closed its end
            wanted.cancel()
            await trio.lowlevel.checkpoint_if_cancelled()

    @trio.lowlevel.enable_ki_protection
    async def run() -> None:
        nonlocal failed
        with wanted, send:
            try:
                await produce()
            except (Exception, SystemExit) as exc:
                failed = exc

    produce = prepare(give)
    try:
        with one_interrupt():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                try:
                    with receive:
                        yield receive
                except BaseException as exc:
                    raised = exc
                wanted.cancel(reason="the block was left")
    except trio.Cancelled as exc:  # of a scope around all this: what the body raised on its way out goes first
        if raised is None:
            raise
        add_notes_of(exc, raised)
    if raised is None:
        raised = failed
    if raised is not None:
        raise raised
