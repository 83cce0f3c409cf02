"""Who connects when, of the hosts of one group."""

from __future__ import annotations

import random

import trio

from trickle._settings import is_count

TURN_HELD = 5.0  # seconds: a host that has not answered by then, and perhaps never will, lets the next one begin
APART = 0.005  # seconds between the first hosts, on average: an sshd drops logins that come all at once


class Turns:
    """Lets so many hosts connect at once; those that could all begin at the same moment begin a little apart.

    Args:
      limit: how many at once.
      hosts: how many there are.

    Raises:
      ValueError: *limit* is not a whole number above 0.
    """

    def __init__(self, limit: int, hosts: int) -> None:
        if not is_count(limit, 1):
            raise ValueError(f"connect_limit={limit!r}: it is a whole number above 0")
        self._free = trio.Semaphore(limit)
        self._first = min(limit, hosts)
        self._spread = APART * (self._first - 1)

    async def take(self) -> None:
        """Wait for a turn."""
        await self._free.acquire()
        if self._first > 0:  # whoever comes later begins when another has ended, and so by itself
            self._first -= 1
            try:
                await trio.sleep(random.uniform(0, self._spread))
            except BaseException:
                self._free.release()
                raise

    def give_back(self) -> None:
        """Let the next one begin."""
        self._free.release()
