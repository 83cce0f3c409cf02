"""Deploy a directory to several hosts, one after the other, with a health check; what is not healthy is rolled back.

    python examples/deploy.py DIRECTORY RELEASE HOST...

HOST is a name for ``ssh``.  The directory goes to ``site/releases/RELEASE`` on all hosts at once, where only what has
changed since the last attempt is sent.  Then host by host the link ``site/current`` is moved to it, in one step, and
moved back if the host is not healthy with it; at the first such host all others are moved back too.

Without arguments directories of this machine play the hosts, and the second release is one that web3 does not like.
"""

import os
import sys
import tempfile
from pathlib import Path

import trio

import trickle
import trickle.remote

# ---- what runs over there


def prepare() -> None:
    """Make room for releases."""
    Path("site/releases").mkdir(parents=True, exist_ok=True)


def switch(release: str) -> str:
    """Move the link to a release ("": to none); return the one before it."""
    current, new = Path("site/current"), Path("site/.next")
    before = current.resolve().name if current.is_symlink() else ""
    if release:
        if new.is_symlink():
            new.unlink()  # somebody was interrupted here
        new.symlink_to(f"releases/{release}")
        new.replace(current)
    elif before:
        current.unlink()
    return before


def check_health() -> None:
    """Raise if this host does not do well.  A real one would ask its web server for a page."""
    page = Path("site/current/index.html").read_text()
    if "2" in page and trickle.remote.host_name == "web3":
        raise RuntimeError("the page is not what it should be")


def activate(release: str) -> str:
    """Switch to a release; return the one before it.  If that does not go well, or is cancelled, switch back."""
    before = switch(release)
    try:
        check_health()
    except BaseException:
        switch(before)
        raise
    return before


# ---- what runs here


async def deploy(group: trickle.Group, site: Path, release: str) -> bool:
    """Whether all hosts have the release now; if not, none has."""
    (await group.call(prepare)).raise_failures()
    (await group.put(site, f"site/releases/{release}")).raise_failures()

    before: dict[str, str] = {}
    async with group.options(limit=1, max_failures=0, timeout=60).as_completed(activate, release) as outcomes:
        async for name, outcome in outcomes:
            match outcome:
                case trickle.Success(previous):
                    print(f"{name}: {previous or 'nothing'} -> {release}")
                    before[name] = previous
                case trickle.Failure(trickle.NotNeeded()):
                    pass
                case trickle.Failure(error):
                    print(f"not healthy: {error}")
    if len(before) == len(group):
        return True
    for name, previous in before.items():
        await group[name].call(switch, previous)
        print(f"{name}: back to {previous or 'nothing'}")
    return False


def players(directory: Path) -> list[trickle.abc.Tunnel | str]:
    """Directories that play hosts: a command's working directory is what a login's home is."""
    tunnels: list[trickle.abc.Tunnel | str] = []
    for name in trickle.hosts("web[1-4]"):
        (directory / name).mkdir()
        tunnels.append(trickle.Command(["sh", "-c", 'cd "$0" && exec "$@"', str(directory / name)], name=name))
    return tunnels


async def play(directory: Path) -> None:
    """Two releases, of which the second is rolled back."""
    site = directory / "site"
    site.mkdir()
    async with trickle.open_group(players(directory)) as group:
        for release in ("1", "2"):
            (site / "index.html").write_text(f"<h1>Release {release}</h1>\n")
            print(f"release {release}:", "deployed" if await deploy(group, site, release) else "rolled back")
        for name, text in (await group.call(Path.read_text, Path("site/current/index.html"))).unwrap().items():
            print(f"{name} shows {text.strip()}")


async def main(site: str, release: str, hosts: list[str]) -> None:
    async with trickle.open_group(hosts) as group:
        sys.exit(not await deploy(group, Path(site), release))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
    else:
        with tempfile.TemporaryDirectory() as directory:
            trio.run(play, Path(os.path.realpath(directory)))
