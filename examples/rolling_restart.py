"""Restart a service, two hosts at a time, and stop when more than one has failed.

Usage: python rolling_restart.py [HOST...]

HOST is a name for ``ssh``; with none, six processes of this machine play the hosts.  What is done on each stands in
``restart``: here it only looks as if.
"""

import sys

import trio

import trickle
import trickle.remote


def restart() -> str:
    """Runs over there."""
    if trickle.remote.host_name in ("web2", "web3"):
        raise RuntimeError("the service does not come up")
    return "restarted"


async def main(hosts: list[str]) -> None:
    local = [trickle.Local(name) for name in trickle.hosts("web[1-6]")]
    async with trickle.open_group(hosts or local) as group:
        rolling = group.options(limit=2, max_failures=1, timeout=60)
        async with rolling.as_completed(restart) as outcomes:
            async for name, outcome in outcomes:
                match outcome:
                    case trickle.Success(text):
                        print(f"{name}: {text}")
                    case trickle.Failure(trickle.NotNeeded()):
                        print(f"{name}: not touched, or stopped")
                    case trickle.Failure(error):
                        print(error)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
