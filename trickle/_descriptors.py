"""See to it that this process may have as many descriptors open as its hosts need."""

from __future__ import annotations

import errno
import logging
import resource
from pathlib import Path

PER_HOST = 4  # three pipes, and one to wait for the end of the tunnel's process
SPARE = 256  # for what the program does besides, and for the other ends of pipes while processes start

logger = logging.getLogger("trickle")


def make_room_for(hosts: int) -> None:
    """Raise this process's limit on open descriptors to what it may be, if so many more hosts need that.

    Raises:
      OSError: even that is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _open_now() + PER_HOST * hosts + SPARE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    limit = needed if hard == resource.RLIM_INFINITY else hard  # macOS says infinity, and means less
    try:
        if needed > limit:
            raise ValueError
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError) as exc:
        raise OSError(
            errno.EMFILE,
            f"{hosts} hosts need {needed} descriptors, with what is open already, and this process may not have more"
            f" than {hard if needed > limit else soft}: raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd),"
            " or have fewer hosts at once",
        ) from exc
    logger.debug("the limit on open descriptors is now %d instead of %d", limit, soft)


def _open_now() -> int:
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(list(Path(directory).iterdir()))
        except OSError as exc:
            if exc.errno == errno.EMFILE:  # not even for this
                return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0
