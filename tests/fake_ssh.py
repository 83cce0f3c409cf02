"""A stand-in for ``ssh`` that does what ssh and sshd do with words, for tests that need no real login.

It parses ssh's options, joins the words after the host with spaces, and hands them to a shell in a session of
its own, with a login's environment; stdin and stdout go through it, so that its death is an EOF over there.
Every host name leads to this machine, but for those under ``.invalid``, which nobody can look up.
"""

import getopt
import os
import pwd
import subprocess
import sys
from pathlib import Path

OPTIONS = "1246AB:b:CD:c:E:e:F:fGgI:i:J:KkL:l:Mm:NnO:o:P:p:Q:qR:S:sTtVvW:w:XxYy"
VERSION = "OpenSSH_9.2p1 fake, OpenSSL 3.0"
ACCEPT_ENV = ("TRICKLE_TEST_MARK", "DOCKER_HOST")
LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def main(argv: list[str]) -> int:
    host, options, words = parse(argv)
    if "-V" in options:
        print(VERSION, file=sys.stderr)
        return 0
    if host is None:
        print("usage: ssh [options] destination [command [argument ...]]", file=sys.stderr)
        return 255
    name = host.removeprefix("ssh://").rpartition("@")[2].partition(":")[0]
    if name.endswith(".invalid"):
        print(f"ssh: Could not resolve hostname {name}: Name or service not known", file=sys.stderr)
        return 255
    return run(" ".join(words))


def parse(argv: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """Take ``[options] host [options] [word...]`` apart, as ssh does: options may follow the host too."""
    options, rest = getopt.getopt(argv, OPTIONS)
    if not rest:
        return None, dict(options), []
    more, words = getopt.getopt(rest[1:], OPTIONS)
    return rest[0], dict(options + more), words


def run(command: str) -> int:
    """Be sshd: run *command* by the user's shell; return its status, 255 if a signal ended it."""
    from delay_pipe import start_lane  # beside this script

    user = pwd.getpwuid(os.getuid())
    environment = {"PATH": LOGIN_PATH, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    environment |= {"SHELL": "/bin/sh", "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 22"}
    environment |= {name: os.environ[name] for name in ACCEPT_ENV if name in os.environ}
    process = subprocess.Popen(
        ["/bin/sh", "-c", command] if command else ["/bin/sh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        cwd=user.pw_dir if os.access(user.pw_dir, os.X_OK) else "/",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    start_lane(0, process.stdin.fileno(), 0, process.stdin.close)
    start_lane(process.stdout.fileno(), 1, 0, lambda: os.close(1)).join()
    status = process.wait()
    return status if status >= 0 else 255


def install(directory: Path) -> None:
    """Put it into *directory* under the name ``ssh``; that directory then goes to the front of PATH."""
    script = directory / "ssh"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    script.chmod(0o755)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # at once: a lane may still wait for input
