"""Names of many hosts: which of them match patterns, and what they are as names of files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from trickle._agent.host_names import hosts


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Those of *names* that match one of *patterns*: names, patterns as in `hosts`, with ``*`` and ``?`` besides.

    Raises:
      KeyError: a pattern without ``*`` and ``?`` names a host that is not among them.
    """
    known = set(names)
    found: set[str] = set()
    for pattern in patterns:
        for each in [pattern] if pattern in known else hosts(pattern):
            if each in known:
                found.add(each)
            elif "*" in each or "?" in each:
                found.update(fnmatch.filter(known, each))
            else:
                raise KeyError(f"no host of this group is called {each!r}")
    return found


def as_file_name(name: str) -> str:
    """A host's name as that of one file in a directory: another one for each."""
    if name in (".", ".."):
        return name.replace(".", "%2E")
    return name.replace("%", "%25").replace("/", "%2F")
