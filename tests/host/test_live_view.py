"""The table of who is waited for."""

import io
import subprocess
import sys

from rich.console import Console

from trickle import HostProgress
from trickle.live_view import LiveView
from trickle.testing import open_memory_group


def progress(host: str, state: str) -> HostProgress:
    return HostProgress(host, state, 0.0, {"running": 2, "done": 1})  # type: ignore[arg-type]


def shown(view: LiveView) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(view._table())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_who_is_waited_for_comes_first() -> None:
    view = LiveView(rows=3)
    for host, state in (("a", "done"), ("b", "running"), ("c", "connecting"), ("d", "running")):
        view(progress(host, state))

    lines = shown(view)

    assert lines[0] == "2 running, 1 done"
    assert [line.split()[0] for line in lines[1:]] == ["b", "d", "c", "and"]
    assert lines[1].split() == ["b", "running", "0", "s"]
    assert lines[4] == "and 1 more"


async def test_it_is_a_progress_callback() -> None:
    output = io.StringIO()

    with LiveView(console=Console(file=output)) as view:
        async with open_memory_group(["amber[1]", "birch"]) as group:
            await group.options(progress=view).call(abs, -1)

    assert "2 done" in output.getvalue()
    assert "amber[1]" in output.getvalue()  # no markup


def test_without_rich_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['rich.console'] = None; import trickle.live_view"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert "pip install 'trickle[rich]'" in done.stderr


def test_trickle_itself_does_not_import_it() -> None:
    script = "import sys, trickle; print(sorted({'rich', 'trio_parallel', 'multiprocessing'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("[]\n", "")
