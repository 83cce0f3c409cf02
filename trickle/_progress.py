"""Tell where each host of a group has come to in a verb: to a callback, and in the log when it takes long.

How it is shown to people is live_view.py's job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import trio

from trickle._exceptions import ConnectError, HostLost, NotNeeded
from trickle._host_core import CallRecord
from trickle._link import Link
from trickle._results import Failure, Success

logger = logging.getLogger("trickle")

LONG = 10.0  # seconds after which the log says who is waited for; then after twice as long, and so on
MOST_NAMED = 10  # hosts in one such line

HostState: TypeAlias = Literal[
    "waiting", "connecting", "sending code", "running", "done", "failed", "lost", "not needed"
]


@dataclasses.dataclass(frozen=True)
class HostProgress:
    """Where one host of a group has come to in a verb, for ``options(progress=)``.

    Args:
      host: its name.
      state: ``"waiting"`` (for its turn, for an item, or to be tried again), ``"connecting"``, ``"sending code"`` (and
        arguments), ``"running"``, ``"done"``, ``"failed"``, ``"lost"`` (the connection, or it never came about) or
        ``"not needed"``.
      since: when it came to this state, by ``trio.current_time()``.
      counts: how many hosts of this verb are in each state, this one included; they add up to all.
    """

    host: str
    state: HostState
    since: float
    counts: Mapping[HostState, int]


class Board:
    """The states of all hosts in one verb.

    Args:
      hosts: their names.
      tell: what to call with each change; None if nobody wants to know.
      has_turns: whether a host that does nothing is one whose turn has not come, and so is waited for too.
    """

    def __init__(
        self, hosts: Iterable[str], tell: Callable[[HostProgress], object] | None = None, *, has_turns: bool = False
    ) -> None:
        self._tell = tell
        self._has_turns = has_turns
        self._states: dict[str, HostState] = dict.fromkeys(hosts, "waiting")
        self._counts: Counter[HostState] = Counter(self._states.values())
        self._told: set[str] = set()  # the hosts of which something has been told
        self._under_way: dict[str, tuple[Callable[[], str], float]] = {}  # what each does, and since when

    def set(self, host: str, state: HostState) -> None:
        """Note that a host has come to a state."""
        before = self._states[host]
        if before == state and host in self._told:
            return
        self._told.add(host)
        self._states[host] = state
        self._counts[before] -= 1
        self._counts[state] += 1
        if self._tell is not None:
            counts = {each: count for each, count in self._counts.items() if count}
            try:
                self._tell(HostProgress(host, state, trio.current_time(), MappingProxyType(counts)))
            except BaseException:  # not ours to be stopped by, whatever it is
                logger.exception("%s: the progress callback failed", host)

    def begin(self, host: str, link: Link, record: CallRecord) -> None:
        """Follow a call, until ``leave``."""
        self._under_way[host] = lambda: record.stage, trio.current_time()
        if self._tell is not None:

            def look() -> None:
                self.set(host, record.state)

            look()
            link.watchers[record] = look

    def leave(self, host: str, link: Link, record: CallRecord) -> None:
        """Do not follow it any more."""
        link.watchers.pop(record, None)
        del self._under_way[host]

    @contextlib.contextmanager
    def doing(self, host: str, what: str) -> Iterator[None]:
        """For the time of the block that is what is waited for."""
        self._under_way[host] = lambda: what, trio.current_time()
        try:
            yield
        finally:
            del self._under_way[host]

    def ended(self, host: str, result: Success[object] | Failure) -> None:
        """Note how a host's part has ended."""
        match result:
            case Success():
                self.set(host, "done")
            case Failure(NotNeeded()):
                self.set(host, "not needed")
            case Failure(HostLost() | ConnectError()):
                self.set(host, "lost")
            case _:
                self.set(host, "failed")

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """When the block is left early, who has not ended is not needed any more."""
        try:
            yield
        except BaseException:
            for host, state in self._states.items():
                if state not in ("done", "failed", "lost"):
                    self.set(host, "not needed")
            raise

    def end(self) -> None:
        """Nothing is left to do: whoever has not been lost is done."""
        for host, state in self._states.items():
            if state != "lost":
                self.set(host, "done")

    async def log_who_is_waited_for(self) -> None:
        """Say so in the log, now and then, until this is cancelled."""
        pause = LONG
        while True:
            await trio.sleep(pause)
            pause *= 2
            if self._under_way and logger.isEnabledFor(logging.INFO):
                logger.info("%s", self._who_is_waited_for())

    @contextlib.asynccontextmanager
    async def logged(self) -> AsyncIterator[trio.Nursery]:
        """A nursery; as long as its tasks run, the log says now and then who is waited for."""
        async with trio.open_nursery() as log:
            log.start_soon(self.log_who_is_waited_for)
            async with trio.open_nursery() as nursery:
                yield nursery
            log.cancel_scope.cancel()

    def _who_is_waited_for(self) -> str:
        now = trio.current_time()
        named = [
            f"{host} ({stage()}, {now - since:.0f} s)"
            for host, (stage, since) in list(self._under_way.items())[:MOST_NAMED]
        ]
        if len(self._under_way) > MOST_NAMED:
            named.append(f"and {len(self._under_way) - MOST_NAMED} more")
        idle = sum(state == "waiting" and host not in self._under_way for host, state in self._states.items())
        in_line = idle if self._has_turns else 0
        if in_line:
            named.append(f"and {in_line} whose turn has not come")
        return f"waiting for {len(self._under_way) + in_line} of {len(self._states)} hosts: {', '.join(named)}"
