"""Say what a test needs of this machine, and whether going without is allowed here.

A contributor's machine may lack an sshd or docker: the tests that need them are skipped, with the reason.
Where everything was installed on purpose, ``TRICKLE_REQUIRE`` names the kinds that must be there
(``ssh,docker,sudo,pythons,python27,minimal,netns,cgroup``), and a skip of one of those becomes a failure.
"""

import os
from typing import NoReturn

import pytest


def required_kinds() -> frozenset[str]:
    """The kinds of thing that must not be missing on this machine."""
    return frozenset(kind for kind in os.environ.get("TRICKLE_REQUIRE", "").split(",") if kind)


def require(kind: str, reason: str) -> NoReturn:
    """Skip this test because *kind* is missing; fail it where *kind* is required.

    Call it when the thing has been looked for and not found::

        if shutil.which("docker") is None:
            require("docker", "no docker client on this machine")
    """
    __tracebackhide__ = True
    if kind in required_kinds():
        pytest.fail(f"{kind} is required here (TRICKLE_REQUIRE), but: {reason}", pytrace=False)
    pytest.skip(reason)
