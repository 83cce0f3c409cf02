"""How long to wait before the next attempt."""

from __future__ import annotations

import random

FIRST_DELAY = 1.0  # seconds: an sshd that drops connections (MaxStartups) needs less than that for those it has
LONGEST_DELAY = 30.0  # seconds: a host that has just booted is not kept waiting for longer


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, 1 or more: twice as long for each, and a random part of that.

    All of it is random ("full jitter"), so that many who failed together do not come back together: see
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ for why.
    """
    return random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16)))
