"""A table on the terminal of where each host of a group has come to.

Not imported by ``import trickle``.  It needs rich: ``pip install 'trickle[rich]'``.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

from trickle._progress import HostProgress, HostState

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as _missing:
    raise ImportError("trickle.live_view needs the package rich: pip install 'trickle[rich]'") from _missing

__all__ = ["LiveView"]

# In the order in which hosts are shown: who is waited for comes first.
_STYLES: Final[dict[HostState, str]] = {
    "running": "bold",
    "sending code": "",
    "connecting": "yellow",
    "waiting": "dim",
    "failed": "red",
    "lost": "red",
    "not needed": "dim",
    "done": "green",
}
_ENDED: Final = ("failed", "lost", "not needed", "done")


class LiveView:
    """Shows the progress of a group's verbs, for the time of a ``with`` block.

    ``with LiveView() as view: await group.options(progress=view).call(fn)``

    One table has the counts and the hosts that are waited for, the longest first; what has ended comes last.

    Args:
      rows: how many hosts are shown at most.
      console: where, instead of on stdout.
    """

    def __init__(self, *, rows: int = 20, console: Console | None = None) -> None:
        self._rows = rows
        self._lock = threading.Lock()  # the table is drawn by a thread of rich's
        self._hosts: dict[str, tuple[HostState, float]] = {}  # and since when, by time.monotonic()
        self._counts: dict[HostState, int] = {}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, progress: HostProgress) -> None:
        """Take a host's progress."""
        with self._lock:
            self._hosts[progress.host] = progress.state, time.monotonic()
            self._counts = dict(progress.counts)

    def _table(self) -> Group:
        now = time.monotonic()
        order = list(_STYLES)
        with self._lock:
            hosts = sorted(self._hosts.items(), key=lambda item: (order.index(item[1][0]), item[1][1]))
            counts = dict(self._counts)
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, (state, since) in hosts[: self._rows]:
            how_long = "" if state in _ENDED else f"{now - since:.0f} s"
            table.add_row(Text(name), Text(state, style=_STYLES[state]), Text(how_long))
        if len(hosts) > self._rows:
            table.add_row(Text(f"and {len(hosts) - self._rows} more", style="dim"))
        summary = ", ".join(f"{counts[state]} {state}" for state in order if counts.get(state))
        return Group(Text(summary), table)
