"""Be root on many hosts: ask for sudo's password once, here, and see which accounts there can log in with a password.

Usage: python sudo.py [HOST...]

HOST is a name for ``ssh``; with none, it is this machine.  Where there is no terminal to ask on, no password is used,
which is enough for root and where a NOPASSWD rule says so.  A host that does not let us in gets a line with the reason,
and then the exit status is 1.
"""

import getpass
import sys
from pathlib import Path

import trio

import trickle


def accounts_with_a_password() -> "list[str]":
    """Runs over there, as root: others may not read that file."""
    lines = Path("/etc/shadow").read_text().splitlines()
    fields = [line.split(":") for line in lines]
    return sorted(name for name, password, *_ in fields if password.startswith("$"))


async def main(hosts: list[str], password: str | None) -> int:
    ways = [trickle.SSH(host) for host in hosts] or [trickle.Local()]
    async with trickle.open_group(trickle.Sudo(via=way, password=password) for way in ways) as group:
        results = await group.options(timeout=60).call(accounts_with_a_password)

    for name, result in results.items():
        match result:
            case trickle.Success(accounts):
                print(f"{name}: {', '.join(accounts) or 'nobody'}")
            case trickle.Failure(error):
                print(str(error).splitlines()[0])  # every message begins with the host's name
    return 1 if results.failures() else 0


if __name__ == "__main__":
    asked = getpass.getpass("sudo password (none if it is not asked for): ") if sys.stdin.isatty() else ""
    sys.exit(trio.run(main, sys.argv[1:], asked or None))
