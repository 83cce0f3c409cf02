"""What answers behind a real sshd is not the Python that was asked for: it is named, and obeys nothing that we send."""

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import sshd as sshd_module
from tests import work
from tests.requirements import require

PYTHON = "/usr/bin/python3"
SLOW = 60.0  # seconds: longer than any login takes; what is recognised at once never waits for it
SHORT = 8.0  # seconds: for what is recognised only at the end of its stdin

ROUTER = """#!{python} -u
# A command line as routers have it: it knows few commands, and goes on after those that it does not know.
import os
print("Welcome to the router")
while True:
    print("router>", end="")
    try:
        line = input()
    except EOFError:
        break
    if line.strip().startswith("touch "):
        os.system(line)
    else:
        print("% Unknown command or computer name, or unable to find computer address")
"""

MENU = """#!/bin/sh
while :; do
  echo '1) mail'; echo '2) news'; echo 'q) quit'; echo 'Your choice: '
  read -r choice || exit 0
  case $choice in
    1|2) echo nothing new;;
    q) exit 0;;
    touch*) eval "$choice";;
    *) echo "There is no $choice";;
  esac
done
"""


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a host runs in the place of what it was asked for.

    Args:
      script: a ForceCommand, for /bin/sh; the scripts above are in ``$there``.
      reason: what ConnectError.reason then is.
      obeys: whether it would run the commands of a shell, or the statements of a Python, if it got to see them.
      slow: whether it is recognised only when it has lost its stdin.
      terminal: whether there is one on the way.
    """

    script: str
    reason: str
    obeys: str | None = None
    slow: bool = False
    terminal: bool = False


NOT_PYTHON = "not a Python"
ECHO = "echo"
STDIN = "stdin"
TIMED_OUT = "timed out"

RUN = 'eval "exec $SSH_ORIGINAL_COMMAND"'  # what was asked for
READERS = {
    "a shell": Reader("exec /bin/sh", NOT_PYTHON, "shell"),
    "an interactive shell": Reader("exec /bin/sh -i", NOT_PYTHON, "shell"),
    "bash": Reader("exec bash", NOT_PYTHON, "shell"),
    "an interactive bash": Reader("exec bash -i", NOT_PYTHON, "shell"),
    "zsh": Reader("exec zsh", NOT_PYTHON, "shell"),
    "an interactive zsh": Reader("exec zsh -i", NOT_PYTHON, "shell"),
    "tcsh": Reader("exec tcsh", NOT_PYTHON, "shell"),
    "fish, which reads all before it begins": Reader("exec fish", NOT_PYTHON, "shell", slow=True),
    "a Python that reads a program": Reader(f"exec {PYTHON}", NOT_PYTHON, "Python"),
    "an interactive Python": Reader(f"exec {PYTHON} -i", NOT_PYTHON, "Python"),
    "a router": Reader('exec "$there/router"', NOT_PYTHON, "shell"),
    "a menu": Reader('exec "$there/menu"', ECHO, "shell"),
    "an echo": Reader("exec cat", ECHO),
    "nothing that answers": Reader("exec cat >/dev/null", TIMED_OUT, slow=True),
    "a shell on a terminal": Reader("exec sh", ECHO, "shell", terminal=True),
    "bash on a terminal": Reader("exec bash", ECHO, "shell", terminal=True),
    "fish on a terminal": Reader(
        "mkdir -pm 700 ~/run; export XDG_RUNTIME_DIR=$HOME/run; exec fish --no-config", ECHO, "shell", terminal=True
    ),
    "a slow shell on a terminal": Reader("sleep 1; exec sh", ECHO, "shell", terminal=True),
    "an interactive Python on a terminal": Reader(f"exec {PYTHON} -i", ECHO, "Python", terminal=True),
    "a router on a terminal": Reader('exec "$there/router"', ECHO, "shell", terminal=True),
    "a terminal on the way": Reader(RUN, ECHO, terminal=True),
    "a login that reads a line": Reader(f"read line; {RUN}", STDIN),
    "a login that reads three lines": Reader(f"read a; read b; read c; {RUN}", STDIN),
    "a login that reads a byte": Reader(f"head -c 1 >/dev/null; {RUN}", STDIN),
    "a login that reads some bytes": Reader(f"head -c 1000 >/dev/null; {RUN}", STDIN),
    "a login that reads all": Reader(f"cat >/dev/null; {RUN}", STDIN, slow=True),
    "a shell behind a login that reads a line": Reader("read line; exec bash", NOT_PYTHON, "shell"),
    "zsh behind a login that reads a line": Reader("read line; exec zsh", NOT_PYTHON, "shell"),
    "tcsh behind a login that reads two lines": Reader("read a; read b; exec tcsh", NOT_PYTHON, "shell"),
    "a shell behind a login that reads some bytes": Reader("head -c 50 >/dev/null; exec sh", NOT_PYTHON, "shell"),
    "an interactive Python behind a login that reads two lines": Reader(
        f"read a; read b; exec {PYTHON} -i", NOT_PYTHON, "Python"
    ),
    "an interactive Python behind a login that reads some bytes": Reader(
        f"head -c 1000 >/dev/null; exec {PYTHON} -i", NOT_PYTHON, "Python"
    ),
}
PROGRAMS = {"bash", "zsh", "tcsh", "fish"}


def bait(canary: Path) -> str:
    """Text whose lines are commands and statements that leave a file, however quotes before them were left open."""
    shell = f"touch {canary}"
    lines = [shell, f"!{shell}", f"import os; os.system('{shell}')", f"__import__('os').system('{shell}')"]
    text = "\n".join(lines)
    openings = [
        "",
        "'",
        '"',
        "`",
        ")",
        "}",
        "EOF\n",
        "\\\n",
        "'''\n",
        '"""\n',
        "\x03",
        "\x04",
        "\x15",
        "\r",
        "\r\n",
        "\0",
    ]
    return "\n" + "\n".join(f"{opening}\n{text}\n" for opening in openings)


@pytest.fixture
def canary(public_directory: Path) -> Iterator[Path]:
    """A file that the user who logs in can make."""
    directory = public_directory / f"canary{time.monotonic_ns()}"
    directory.mkdir()
    directory.chmod(0o777)
    yield directory / "canary"


@pytest.fixture(scope="module")
def forced(_sshd_directory: Path, public_directory: Path, login_user: str) -> Callable[[Reader], trickle.SSH]:
    """A host that runs a script in the place of what it is asked for."""
    there = public_directory / "readers"
    there.mkdir(exist_ok=True)
    for name, text in (("router", ROUTER.format(python=PYTHON)), ("menu", MENU)):
        (there / name).write_text(text)
        (there / name).chmod(0o755)

    def make(reader: Reader) -> trickle.SSH:
        for program in PROGRAMS.intersection(reader.script.split()):
            if shutil.which(program) is None:
                require("shells", f"no {program} on this machine")
        name = f"forced{time.monotonic_ns()}"
        (there / name).write_text(f"#!/bin/sh\nthere={there}\n{reader.script}\n")
        (there / name).chmod(0o755)
        extra = f"ForceCommand {there / name}\n"
        with sshd_module.piped_sshd(_sshd_directory, login_user, name, extra) as sshd:
            terminal = ("-tt",) if reader.terminal else ()  # as a wrapper around ssh may say
            return trickle.SSH("h0", name="web1", ssh_options=(*terminal, *sshd.ssh_options))

    return make


@pytest.mark.parametrize("name", READERS)
async def test_a_wrong_reader_is_named_and_obeys_nothing(
    name: str, forced: Callable[[Reader], trickle.SSH], canary: Path
) -> None:
    reader = READERS[name]
    text = bait(canary)
    errors: list[trickle.ConnectError] = []

    async def call(host: trickle.Host, argument: object) -> None:
        with pytest.raises(trickle.ConnectError, match="^web1: ") as caught:
            await host.call(work.echo, argument, keyword=argument)
        errors.append(caught.value)

    tunnel = forced(reader)
    async with trickle.open_host(tunnel, wait=False, connect_timeout=SHORT if reader.slow else SLOW) as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, host, text.encode())
            while not host.statistics().bytes_sent:
                await trio.sleep(0.01)
            nursery.start_soon(call, host, text * 20)  # in a write of its own

    assert not canary.exists()
    assert {error.reason for error in errors} == {reader.reason}, errors[0]
    assert not [error for error in errors if str(canary) in f"{error}{error.stderr}"]


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.obeys])
def test_the_bait_is_one_that_this_reader_would_take(
    name: str, forced: Callable[[Reader], trickle.SSH], canary: Path
) -> None:
    reader = READERS[name]
    shell = f"touch {canary}"
    text = shell if reader.obeys == "shell" else f"import os; os.system('{shell}')"

    ssh = subprocess.Popen(
        ["ssh", *forced(reader).ssh_options, "h0", "true"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert ssh.stdin is not None
    ssh.stdin.write(b"\n" * 1100 + text.encode() + b"\n")  # what comes first is for the logins that read something
    ssh.stdin.flush()
    if not reader.terminal:
        ssh.stdin.close()  # fish begins then; a terminal would not be told
    deadline = time.monotonic() + 60
    while not canary.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    ssh.stdin.close()
    ssh.kill()
    ssh.wait()

    assert canary.exists()
