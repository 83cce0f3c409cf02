"""Spread items over the hosts of a group: each host takes the next as it becomes free.

What becomes of one call is _fan_out.py's job.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Final, Generic, NamedTuple, TypeVar

import trio

from trickle._backoff import backoff
from trickle._exceptions import CallTimeout, ConnectError, HostLost, WorkerDied
from trickle._fan_out import Attempt, Give, Outcome, Tally, Verb, may_differ, not_needed
from trickle._host import Host
from trickle._host_core import CallRecord, again
from trickle._progress import Board
from trickle._results import Failure, Success
from trickle._settings import GroupOptions

A = TypeVar("A")
T = TypeVar("T")

logger = logging.getLogger("trickle")

MOST_LOST: Final = 3  # hosts that are lost under one item, before it is taken for the cause
MOST_FAILURES: Final = 5  # in a row to connect again, before a host takes no more part
END: Final = object()


class MapResult(NamedTuple, Generic[A, T]):
    """What came of one item of ``Group.map``.

    Args:
      index: the item's place among the items, counted from 0.
      item: itself.
      host: the name of the host that this outcome is of.
      result: the outcome.
    """

    index: int  # type: ignore[assignment]  # a tuple's method of that name is rarely missed
    item: A
    host: str
    result: Success[T] | Failure


class _Job(Generic[A]):
    """One item that was taken from the program's."""

    def __init__(self, index: int, item: A) -> None:
        self.index = index
        self.item = item
        self.running: set[Attempt] = set()
        self.failures = 0
        self.hosts_lost = 0
        self.decided = False
        self._changed = trio.Event()

    def tell(self) -> None:
        """An attempt at it has ended."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_ended(self, attempts: set[Attempt]) -> None:
        """Return when none of these runs any more."""
        while attempts & self.running:
            await self._changed.wait()


@trio.lowlevel.disable_ki_protection
def _next(iterator: Iterator[object]) -> object:
    """The program's next item, or END; it may be long in coming, and Ctrl-C is heard meanwhile."""
    return next(iterator, END)


class Spread(Generic[A, T]):
    """One call for each item, on whatever host is free.

    Args:
      hosts: those to use.
      verb: makes the verb for an item.
      items: taken one by one, as hosts come free.
      policy: the group's options, which here count items instead of hosts.
      give: takes each item's outcome as it comes; its host takes no other item until it has.

    Raises:
      ValueError: there are no hosts; or the policy needs more successes than there are items, or a share of items
        that nobody has counted.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        verb: Callable[[A], Verb[T]],
        items: Iterable[A] | AsyncIterable[A],
        policy: GroupOptions,
        give: Give[MapResult[A, T]],
    ) -> None:
        if not hosts:
            raise ValueError("this group has no hosts, so there is none to spread items over")
        self._hosts = hosts
        self._verb = verb
        self._items = items
        self._policy = policy
        self._give = give
        self._board = Board(hosts, policy.progress)
        self._tally = Tally(policy, len(items) if isinstance(items, Sized) else None)
        self._offer, self._jobs = trio.open_memory_channel[_Job[A]](0)
        self._turns = trio.Semaphore(policy.limit or len(hosts))
        self._hosts_left = len(hosts)
        self._open = 0  # items that were taken, and whose outcome has not been
        self._running: set[Attempt] = set()
        self._enough: str | None = None  # why
        self._feeding = trio.CancelScope()
        self._fed = False
        self._error: Exception | SystemExit | None = None  # of the program's items
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Return when every item has its outcome, and nothing of it runs any more.

        Raises:
          Exception: what iterating over the items raised, after the outcomes of those that came before.
        """
        with self._board.ending():
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._board.log_who_is_waited_for)
                self._nursery.start_soon(self._feed)
                for name in self._hosts:
                    self._nursery.start_soon(self._serve, name)
            self._board.end()
        if self._error is not None:
            raise self._error

    def _end_if_done(self) -> None:
        if self._fed and not self._open:
            self._nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _feed(self) -> None:
        """Offer the items to the hosts, each when the one before was taken."""
        try:
            with self._feeding:
                await self._offer_all()
        except (Exception, SystemExit) as exc:
            self._error = exc
        self._fed = True
        self._end_if_done()

    async def _offer_all(self) -> None:
        iterator: Any = aiter(self._items) if isinstance(self._items, AsyncIterable) else iter(self._items)
        index = 0
        try:
            while True:
                item: Any = await anext(iterator, END) if hasattr(iterator, "__anext__") else _next(iterator)
                if item is END:
                    return
                self._open += 1
                try:
                    await self._offer.send(_Job(index, item))
                except BaseException:
                    self._open -= 1
                    raise
                index += 1
        finally:
            if isinstance(iterator, AsyncGenerator):  # nobody else can: it was made for us
                await iterator.aclose()

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, name: str) -> None:
        """One host's part: an item at a time, as long as it can be reached."""
        host = self._hosts[name]
        core, options = host._core, host._options
        failures = 0
        while True:
            if core.link.info is None:
                self._board.set(name, "connecting")
            try:
                await core.wait_connected(core.live_link(options.reconnect))
            except Exception as exc:
                failures += 1
                if options.reconnect and isinstance(exc, ConnectError) and may_differ(exc) and failures < MOST_FAILURES:
                    continue  # after a pause that live_link sees to
                await self._leave(name, exc)
                return
            failures = 0
            self._board.set(name, "waiting")
            async with self._turns:
                await self._run(await self._jobs.receive(), host)

    async def _leave(self, name: str, error: Exception) -> None:
        """A host that cannot be reached takes no items.  The last one sees to it that none waits for ever."""
        self._board.set(name, "lost")
        self._hosts_left -= 1
        if self._hosts_left:
            return
        logger.warning("%s: it was the last host, and there are items left: they fail", name)
        async for job in self._jobs:
            if job.decided:
                continue  # while it waited to be given to another host as well
            copy = again(error) if isinstance(error, ConnectError | HostLost) else error
            await self._decide(job, name, Failure(copy))

    async def _run(self, job: _Job[A], host: Host) -> None:
        if job.decided:
            return  # while it waited to be given to another host as well
        if self._enough is not None:
            if not job.running:  # else that decides
                await self._decide(job, host.name, Failure(not_needed(host.name, self._enough, None)))
            return
        attempt = Attempt(host, self._policy, self._board)
        job.running.add(attempt)
        self._running.add(attempt)
        if self._policy.hedge is not None:
            self._nursery.start_soon(self._hedge, job, attempt, self._policy.hedge)
        try:
            outcome = await attempt.outcome(self._verb(job.item))
        finally:
            self._running.discard(attempt)
            job.running.discard(attempt)
            job.tell()
        if job.decided:
            return  # another host was faster
        if not self._is_open(job, outcome, attempt.record):
            await self._decide(job, host.name, outcome)
        elif not job.running:
            self._nursery.start_soon(self._offer_again, job)

    def _is_open(self, job: _Job[A], outcome: Outcome[T], record: CallRecord) -> bool:
        """Whether another attempt is to decide."""
        if isinstance(outcome, Success) or self._enough is not None:
            return False
        error = outcome.error
        lost = isinstance(error, ConnectError | HostLost | trio.ClosedResourceError)
        if lost and record.call is None:
            return True  # it was not sent
        if not self._policy.repeatable:
            return False
        if lost:
            job.hosts_lost += 1
            return job.hosts_lost < MOST_LOST or bool(job.running)
        may_end_otherwise = may_differ(error) or isinstance(error, CallTimeout)
        job.failures += 1
        if may_end_otherwise and job.failures <= self._policy.retries:
            return True
        # What the function raised is an answer, too.
        return bool(job.running) and isinstance(error, WorkerDied | CallTimeout)

    @trio.lowlevel.enable_ki_protection
    async def _offer_again(self, job: _Job[A]) -> None:
        if job.failures:
            pause = backoff(job.failures)
            logger.info("item %d failed, and is tried again in %.1f s", job.index, pause)
            await trio.sleep(pause)
        await self._offer.send(job)

    @trio.lowlevel.enable_ki_protection
    async def _hedge(self, job: _Job[A], attempt: Attempt, seconds: float) -> None:
        """Give an item that takes so long to another host as well."""
        with trio.move_on_after(seconds):
            await job.wait_ended({attempt})
            return
        if job.running == {attempt} and not job.decided:
            logger.info("%s: item %d takes long, and goes to another host as well", attempt.host.name, job.index)
            await self._offer.send(job)

    async def _decide(self, job: _Job[A], name: str, outcome: Outcome[T]) -> None:
        """This is what came of an item."""
        job.decided = True
        for other in job.running:
            other.stop(f"{name} was faster")
        enough = self._tally.count(name, outcome)
        if enough is not None and self._enough is None:
            self._stop(enough)
        # The losers are mostly gone in a moment.  One that is not must not make this item as slow as it is itself: it
        # is waited for at the end of all, and its host takes nothing else until then.
        with trio.move_on_after(self._policy.hedge or 0):
            await job.wait_ended(set(job.running))
        await self._give(MapResult(job.index, job.item, name, outcome))
        self._open -= 1
        self._end_if_done()

    def _stop(self, why: str) -> None:
        self._enough = why
        self._feeding.cancel()
        for attempt in self._running:
            attempt.stop(why)
