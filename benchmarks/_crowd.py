"""One candidate with many hosts, in a process of its own: it connects, calls and leaves, and says what that took.

``fan_out.py`` starts it, as ``python -m benchmarks._crowd CANDIDATE COUNT CALLS [SSH_CONFIG]``, and reads JSON from it.
Every call asks each host for the number of its process, and returns when all have answered.  Each candidate connects in
the way that is quickest for it: in threads where connecting blocks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._peers import ECHO, PYTHON

THREADS = 32  # that connect at once, as trickle's connect_limit
PAGE = resource.getpagesize()
# Two processes for each host, as whoever is to end any call needs them: one reads the pipe, the other answers.
PAIR = """
import os, select, socket
one, other = socket.socketpair()
if os.fork() == 0:
    one.close()
    while True:
        data = other.recv(65536)
        if not data: os._exit(0)
        other.send(b'%d' % os.getpid())
other.close()
os.write(1, b'%d' % os.getpid())
poller = select.poll()
poller.register(0, select.POLLIN)
poller.register(one, select.POLLIN)
while True:
    for fd, _ in poller.poll():
        if fd != 0:
            os.write(1, one.recv(65536))
            continue
        data = os.read(0, 65536)
        if not data: os._exit(0)
        one.send(data)
"""


class Phases:
    """What the parts of one run took: times in seconds, memory in bytes."""

    def __init__(self, count: int, calls: int) -> None:
        self.count = count
        self.calls = calls
        self.figures: dict[str, Any] = {"call": []}
        self._memory = own_memory()
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def done(self, name: str) -> None:
        """The part of this name has ended, and the next begins."""
        now, cpu = time.perf_counter(), time.process_time()
        self.figures[name] = now - self._started
        self.figures[f"{name}, CPU of the controller"] = (cpu - self._cpu) / self.count
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def time_calls(self, call: Callable[[], Sequence[object]]) -> None:
        """Time the calls that are counted, behind the first."""
        for _ in range(self.calls):
            started = time.perf_counter()
            answers = call()
            self.figures["call"].append(time.perf_counter() - started)
            assert len(set(answers)) == self.count
        self.end_of_calls()

    def end_of_calls(self) -> None:
        """All calls have been timed, and all hosts are still there."""
        cpu = time.process_time()
        self.figures["call, CPU of the controller"] = (cpu - self._cpu) / self.count / max(1, self.calls)
        self.figures["memory of the controller"] = (own_memory() - self._memory) / self.count
        self.figures["memory of the agent"] = memory_of_agents() / self.count
        self._started, self._cpu = time.perf_counter(), time.process_time()


def own_memory() -> int:
    """Bytes that this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def memory_of_agents() -> int:
    """Bytes of the Pythons below this process, what they share counted once (PSS)."""
    total = 0
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def in_threads(connect: Callable[[int], Any], count: int) -> list[Any]:
    """What *connect* returns for each number."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(connect, range(count)))


def far_command(ssh_config: str | None, number: int, words: Sequence[str]) -> list[str]:
    """The command that runs *words* on a host, for candidates that know of no ssh themselves."""
    if ssh_config is None:
        return list(words)
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return ["ssh", "-F", ssh_config, alias(number), quoted]


def alias(number: int) -> str:
    """A name that the ssh_config knows."""
    return f"h{number % 20}"


# ---- the candidates


def floor(phases: Phases, ssh_config: str | None) -> None:
    """Bare Pythons that write back what they read."""
    processes = [
        subprocess.Popen(
            far_command(ssh_config, number, (*PYTHON, "-c", f"import os; os.write(1, b'%d\\n' % os.getpid())\n{ECHO}")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        for number in range(phases.count)
    ]
    pids = [process.stdout.readline() for process in processes]  # type: ignore[union-attr]
    phases.done("connect")

    def call() -> list[bytes]:
        for process, pid in zip(processes, pids, strict=True):
            process.stdin.write(pid)  # type: ignore[union-attr]
        return [process.stdout.readline() for process in processes]  # type: ignore[union-attr]

    call()
    phases.done("first call")
    phases.time_calls(call)
    for process in processes:
        process.stdin.close()  # type: ignore[union-attr]
    for process in processes:
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    phases.done("leave")


def bare_trio(phases: Phases, ssh_config: str | None) -> None:
    """trio with a process, two tasks and a call's third for each host, and bare Pythons; no frame, no function."""
    import trio

    words = (*PYTHON, "-c", PAIR)

    async def main() -> None:
        limiter = trio.CapacityLimiter(THREADS)
        processes: list[trio.Process] = []
        answers = [b""] * phases.count
        answered = [trio.Event() for _ in range(phases.count)]

        async def connect(number: int) -> None:
            async with limiter:
                process = await trio.lowlevel.open_process(
                    far_command(ssh_config, number, words),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                await process.stdout.receive_some()  # type: ignore[union-attr]
            processes.append(process)

        async def read(number: int, stream: trio.abc.ReceiveStream) -> None:
            while data := await stream.receive_some():
                answers[number] = bytes(data)
                answered[number].set()

        async def ask(number: int) -> None:
            answered[number] = trio.Event()
            await processes[number].stdin.send_all(b"x" * 64)  # type: ignore[union-attr]
            await answered[number].wait()

        async def call() -> list[bytes]:
            async with trio.open_nursery() as nursery:
                for number in range(phases.count):
                    nursery.start_soon(ask, number)
            return answers

        async with trio.open_nursery() as nursery:
            for number in range(phases.count):
                nursery.start_soon(connect, number)
        async with trio.open_nursery() as nursery:
            for number, process in enumerate(processes):
                nursery.start_soon(read, number, process.stdout)
                nursery.start_soon(read, number, process.stderr)
            phases.done("connect")
            await call()
            phases.done("first call")
            for _ in range(phases.calls):
                started = time.perf_counter()
                pids = await call()
                phases.figures["call"].append(time.perf_counter() - started)
                assert len(set(pids)) == phases.count
            phases.end_of_calls()
            for process in processes:
                await process.stdin.aclose()  # type: ignore[union-attr]
                await process.wait()
        phases.done("leave")

    trio.run(main)


def trickle_group(phases: Phases, ssh_config: str | None) -> None:
    """trickle: group.call(os.getpid)."""
    import trio

    import trickle

    def tunnel(number: int) -> trickle.abc.Tunnel:
        if ssh_config is None:
            return trickle.Local(f"n{number}", python=sys.executable)
        return trickle.SSH(alias(number), name=f"n{number}", ssh_options=("-F", ssh_config), python=sys.executable)

    async def main() -> None:
        async with trickle.open_group(map(tunnel, range(phases.count))) as group:
            await group.wait_connected()
            phases.done("connect")
            (await group.call(os.getpid)).unwrap()
            phases.done("first call")
            for _ in range(phases.calls):
                started = time.perf_counter()
                answers = (await group.call(os.getpid)).unwrap()
                phases.figures["call"].append(time.perf_counter() - started)
                assert len(set(answers.values())) == phases.count
            phases.end_of_calls()
        phases.done("leave")

    trio.run(main)


def execnet(phases: Phases, ssh_config: str | None) -> None:
    """execnet: a channel to each is open, and gives its process's number for each item that it gets."""
    import execnet

    group = execnet.Group()
    source = "import os\nfor item in channel: channel.send(os.getpid())"

    def connect(number: int) -> Any:
        way = f"ssh={alias(number)}//ssh_config={ssh_config}" if ssh_config else "popen"
        return group.makegateway(f"{way}//python={sys.executable}//id=n{number}").remote_exec(source)

    channels = in_threads(connect, phases.count)
    phases.done("connect")

    def call() -> list[int]:
        for channel in channels:
            channel.send(None)
        return [channel.receive() for channel in channels]

    call()
    phases.done("first call")
    phases.time_calls(call)
    group.terminate(timeout=10)
    phases.done("leave")


def rpyc(phases: Phases, ssh_config: str | None) -> None:
    """rpyc: an asynchronous call of os.getpid on each, of its classic service; it has to be installed there."""
    import rpyc
    from rpyc.utils.factory import connect_subproc

    # What it leaves in sys.stdout is no file, of which Python would complain at a regular exit.
    server = (
        "import os, rpyc, rpyc.utils.factory as f\nf.connect_stdpipes(rpyc.ClassicService).serve_all()\nos._exit(0)"
    )
    words = (sys.executable, "-c", server)
    connections = in_threads(
        lambda number: connect_subproc(far_command(ssh_config, number, words), service=rpyc.ClassicService),
        phases.count,
    )
    functions = [rpyc.async_(connection.modules.os.getpid) for connection in connections]
    phases.done("connect")

    def call() -> list[int]:
        return [answer.value for answer in [function() for function in functions]]

    call()
    phases.done("first call")
    phases.time_calls(call)
    for connection in connections:
        connection.close()
    for connection in connections:
        connection.proc.wait()
    phases.done("leave")


def mitogen(phases: Phases, ssh_config: str | None) -> None:
    """mitogen: call_async(os.getpid) on each context."""
    import logging

    import mitogen.core
    import mitogen.master

    logging.getLogger("mitogen").setLevel(logging.ERROR)
    broker = mitogen.master.Broker()
    router = mitogen.master.Router(broker)

    def connect(number: int) -> Any:
        if ssh_config is None:
            return router.local(python_path=sys.executable, name=f"n{number}")
        return router.ssh(
            hostname=alias(number),
            name=f"n{number}",
            python_path=sys.executable,
            ssh_args=["-F", ssh_config],
            check_host_keys="enforce",
        )

    contexts = in_threads(connect, phases.count)
    phases.done("connect")

    def call() -> list[int]:
        return [receiver.get().unpickle() for receiver in [context.call_async(os.getpid) for context in contexts]]

    call()
    phases.done("first call")
    phases.time_calls(call)
    for context in contexts:
        context.shutdown(wait=False)
    broker.shutdown()
    broker.join()
    while any(is_python(pid) for pid in descendants(os.getpid())):
        time.sleep(0.01)
    phases.done("leave")


def is_python(pid: int) -> bool:
    """Whether it is one that lives."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


CANDIDATES = {
    "floor": floor,
    "bare trio": bare_trio,
    "trickle": trickle_group,
    "execnet": execnet,
    "rpyc": rpyc,
    "mitogen": mitogen,
}


def main(candidate: str, count: str, calls: str, ssh_config: str | None = None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # trickle does so itself
    importable = {"floor": "os", "bare trio": "trio"}.get(candidate, candidate)
    __import__(importable)  # before it counts
    phases = Phases(int(count), int(calls))
    CANDIDATES[candidate](phases, ssh_config)
    print(json.dumps(phases.figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
