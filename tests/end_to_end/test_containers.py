"""Containers of real engines: calls, cancellation, every way in which a container, its client or its engine ends."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

import trickle
from tests import containers, torture, work
from tests.containers import IMAGE, Docker, Engine, Podman
from tests.gate import Gate, gate_on_port, gate_on_socket
from tests.hosts import file_appears, process_ends, running_below
from tests.requirements import require
from tests.sshd import Sshd

ENGINES = ("docker", "podman")
HERE = "/shared"  # where containers see the directory that they share with the tests
NOWHERE = "127.0.0.1:1"  # a registry that refuses all connections


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each container engine."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that containers see as `HERE`, and may write to."""
    tmp_path.chmod(0o777)
    return tmp_path


def fresh(engine: Engine, shared: Path | None = None, *run_options: str, **options: object) -> trickle.Docker:
    """A container of its own."""
    volume = ("--volume", f"{shared}:{HERE}") if shared is not None else ()
    options = {"image": IMAGE, "engine": engine.name, "run_options": (*volume, *run_options), **options}
    return trickle.Docker("py", **options)  # type: ignore[arg-type]


@pytest.fixture
def running(engine: Engine, shared: Path) -> Iterator[trickle.DockerExec]:
    """A container that runs already."""
    name = f"running{os.getpid()}"
    engine.run("run", "--detach", "--init", "--name", name, "--volume", f"{shared}:{HERE}", IMAGE, "sleep", "1000000")
    yield trickle.DockerExec(name, engine=engine.name)
    engine.remove(name)


@pytest.fixture(params=["fresh", "running"])
def container(request: pytest.FixtureRequest, engine: Engine, shared: Path) -> trickle.abc.Tunnel:
    """A fresh container, or one that runs already."""
    if request.param == "fresh":
        return fresh(engine, shared)
    found: trickle.DockerExec = request.getfixturevalue("running")
    return found


@contextlib.asynccontextmanager
async def call_under_way(host: trickle.Host, shared: Path) -> AsyncIterator[list[trickle.HostLost]]:
    """While a call runs there with children; collects the HostLost that it must end with."""
    lost: list[trickle.HostLost] = []

    async def call() -> None:
        try:
            await host.call(work.start_children, f"{HERE}/pids")
        except trickle.HostLost as exc:
            lost.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await file_appears(shared / "pids")
        yield lost
    assert len(lost) == 1


def kill_client(before: set[int]) -> None:
    """Kill the tunnel's process, which runs below us but did not before."""
    (client,) = running_below() - before
    os.kill(client, signal.SIGKILL)


async def containers_go(engine: Engine, before: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Return when the engine has no other containers than before."""
    while engine.containers() - before:
        await trio.sleep(0.05)


async def error_of(tunnel: trickle.abc.Tunnel, **options: float) -> trickle.ConnectError:
    with pytest.raises(trickle.ConnectError) as caught:
        async with trickle.open_host(tunnel, **options):  # type: ignore[arg-type]
            pass
    assert str(caught.value).startswith(f"{tunnel.name}: ")
    return caught.value


# ---- calls


async def test_calls_errors_and_output_come_back(container: trickle.abc.Tunnel, engine: Engine) -> None:
    before = engine.containers()
    lines: list[trickle.OutputLine] = []
    payload = bytes(range(256)) * 4096

    async with trickle.open_host(container, output=lines.append) as host:
        result = await host.call(work.echo, payload, key=[1])
        with pytest.raises(KeyError) as caught:
            await host.call(work.fail, "KeyError", "missing")
        await host.call(work.write_at_every_level, "hello")

    assert result == ((payload,), {"key": [1]})
    assert isinstance(caught.value, trickle.RemoteError) and caught.value.host == container.name
    assert sorted(line.text for line in lines) == ["hello child", "hello grandchild", "hello print", "hello write"]
    assert engine.containers() == before


async def test_work_is_gone_when_its_scope_exits(container: trickle.abc.Tunnel, shared: Path) -> None:
    functions = (torture.sleep, torture.busy_loop, torture.child_in_a_new_session, torture.gil_held_in_c)

    async with trickle.open_host(container) as host:
        for function in functions:
            async with trio.open_nursery() as nursery:
                path = f"{function.__name__}.pids"
                nursery.start_soon(host.options(grace_period=0.5).call, function, f"{HERE}/{path}")
                pids = [int(pid) for pid in (await file_appears(shared / path)).split()]
                nursery.cancel_scope.cancel()

            assert await host.call(work.still_running, pids) == []
        verdicts = host.statistics().verdicts

    assert verdicts == {"cancelled": 3, "killed": 1, "returned": 4}


async def test_a_fresh_container_is_as_its_options_say(engine: Engine) -> None:
    tunnel = fresh(
        engine,
        None,
        *("--hostname", "box", "--read-only"),
        user="1000:1000",
        env={"COLOUR": "light blue"},
        python="/usr/bin/python3",
    )

    async with trickle.open_host(tunnel) as host:
        assert (host.info.hostname, host.info.user, host.info.python) == ("box", "user", "/usr/bin/python3")
        assert await host.call(os.getenv, "COLOUR") == "light blue"
        with pytest.raises(OSError, match="Read-only file system"):
            await host.call(os.mkdir, "/made")


async def test_a_running_container_is_entered_as_its_options_say(running: trickle.DockerExec) -> None:
    tunnel = trickle.DockerExec(running.container, engine=running.engine, user="4242", env=[("COLOUR", "light blue")])

    async with trickle.open_host(tunnel) as host:
        assert host.info.user == "4242"  # nobody of that name
        assert await host.call(os.getenv, "COLOUR") == "light blue"


async def test_a_container_that_is_to_be_kept_is_there_afterwards(engine: Engine) -> None:
    async with trickle.open_host(fresh(engine, rm=False)) as host:
        await host.call(work.add, 1, 2)
        (kept,) = engine.containers()

    state, label = engine.run(
        "inspect", "--format", '{{.State.Status}} {{index .Config.Labels "trickle"}}', kept
    ).split()
    engine.remove(kept)
    assert state == "exited"
    assert re.fullmatch("[0-9a-f]{32}", label)


async def test_a_container_that_is_to_be_kept_is_stopped_when_its_client_is_killed(engine: Engine) -> None:
    before = running_below()

    async with trickle.open_host(fresh(engine, rm=False)) as host:
        (kept,) = engine.containers()
        engine.run("pause", kept)  # so that it does not end by itself
        kill_client(before)
        with pytest.raises(trickle.HostLost):
            await host.call(work.add, 1, 2)

    state = engine.run("inspect", "--format", "{{.State.Status}}", kept)
    engine.remove(kept)
    assert state == "exited"


async def test_what_an_image_is_set_up_for_makes_no_difference(engine: Engine) -> None:
    settings = ('ENTRYPOINT ["/bin/false"]', 'CMD ["nothing"]', "USER 1000", "WORKDIR /tmp", "VOLUME /data")
    original = engine.run("create", IMAGE, "true")
    engine.run("commit", *(f"--change={setting}" for setting in settings), original, "trickle-test:set-up")
    engine.remove(original)
    before = running_below()
    try:
        async with trickle.open_host(fresh(engine, image="trickle-test:set-up")) as host:
            assert await host.call(os.getcwd) == "/tmp"
            assert host.info.user == "user"
            engine.run("pause", *engine.containers())  # so that it is not the engine that removes it
            kill_client(before)
    finally:
        engine.run("rmi", "trickle-test:set-up")

    assert engine.run("volume", "ls", "--quiet") == ""


async def test_a_container_without_a_shell_needs_the_path_of_its_python(engine: Engine) -> None:
    without_path = {"PATH": "/nowhere"}  # sh is looked for in vain

    async with trickle.open_host(fresh(engine, env=without_path, python="/usr/bin/python3")) as host:
        assert await host.call(work.add, 1, 2) == 3
    error = await error_of(fresh(engine, env=without_path))

    assert error.reason == "no Python"
    assert engine.containers() == set()


@pytest.mark.parametrize("client", ["/usr/bin/docker", "/usr/local/bin/docker"])
async def test_each_docker_client_of_this_machine_does(client: str, docker: Docker) -> None:
    if not Path(client).exists():
        pytest.skip(f"no {client} on this machine")

    async with trickle.open_host(trickle.Docker("py", engine=client, image=IMAGE)) as host:
        assert await host.call(work.add, 1, 2) == 3


def test_podman_is_told_of_no_keys_that_would_leave_the_container(podman: Podman) -> None:
    words = fresh(podman).wrap(["cat"])

    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdin is not None and client.stdout is not None
        for byte in (b"\x10", b"\x11"):  # ctrl-p, ctrl-q, each read by itself
            client.stdin.write(byte)
            client.stdin.flush()
            assert client.stdout.read(1) == byte
        client.stdin.close()


async def test_results_do_not_go_into_the_engines_log(engine: Engine) -> None:
    canary = "canary-" * 5000

    async with trickle.open_host(fresh(engine)) as host:
        assert await host.call(str, f"{canary}\n") == f"{canary}\n"

        found = subprocess.run(["grep", "-rl", canary[:100], str(engine.directory)], capture_output=True, text=True)

    assert (found.stdout, found.returncode) == ("", 1)


async def test_an_engine_without_an_init_program_is_named_and_can_do_without(podman: Podman) -> None:
    configuration = podman.directory / "containers.conf"
    original = configuration.read_text()
    configuration.write_text(re.sub("init_path = .*", 'init_path = "/nowhere/init"', original))
    try:
        error = await error_of(fresh(podman))
        async with trickle.open_host(fresh(podman, None, "--init=false")) as host:
            assert await host.call(work.add, 1, 2) == 3
    finally:
        configuration.write_text(original)

    assert error.reason == "no init"
    assert "--init=false" in str(error)


# ---- what happens to containers


async def test_a_paused_container_is_lost_within_the_lease_and_removed(engine: Engine, shared: Path) -> None:
    async with trickle.open_host(fresh(engine, shared), heartbeat=0.5, lease=3) as host:
        async with call_under_way(host, shared) as lost:
            (id,) = engine.containers()
            engine.run("pause", id)

    assert "nothing was heard from it for 3 s" in str(lost[0])
    assert engine.containers() == set()


async def test_a_paused_container_of_the_users_is_lost_and_its_work_ends_when_it_wakes(
    engine: Engine, running: trickle.DockerExec, shared: Path
) -> None:
    async with trickle.open_host(running, heartbeat=0.5, lease=3) as host:
        async with call_under_way(host, shared):
            engine.run("pause", running.container)
    error = await error_of(running)
    engine.run("unpause", running.container)
    pids = [int(pid) for pid in (shared / "pids").read_text().split()]

    assert error.reason == "container not running"
    async with trickle.open_host(running) as host:
        while await host.call(work.still_running, pids):
            await trio.sleep(0.05)


async def test_a_container_that_is_removed_in_mid_call_is_a_lost_host(
    container: trickle.abc.Tunnel, engine: Engine, shared: Path
) -> None:
    async with trickle.open_host(container) as host:
        async with call_under_way(host, shared) as lost:
            (id,) = engine.containers()
            engine.remove(id)

    assert lost[0].host == container.name
    assert engine.containers() == set()


async def test_a_running_container_that_is_gone_is_named(running: trickle.DockerExec, engine: Engine) -> None:
    engine.remove(running.container)

    error = await error_of(running)

    assert error.reason == "no such container"


async def test_a_stopped_container_is_named(running: trickle.DockerExec, engine: Engine) -> None:
    engine.run("kill", running.container)

    error = await error_of(running)

    assert error.reason == "container not running"


async def test_a_call_that_takes_too_much_memory_costs_its_worker_alone(engine: Engine, shared: Path) -> None:
    limit = ("--memory", "64m", "--memory-swap", "64m")

    async with trickle.open_host(fresh(engine, shared, *limit)) as host:
        with pytest.raises(trickle.WorkerDied) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_remove_when_there, shared / "pid")
                try:
                    await host.call(work.fill_memory, f"{HERE}/pid")
                except trickle.WorkerDied as exc:
                    died = exc
            raise died

        assert caught.value.signal == signal.SIGKILL
        assert await host.call(work.add, 1, 2) == 3


async def _remove_when_there(path: Path) -> None:
    await file_appears(path)
    path.unlink()


async def test_a_container_that_the_kernel_kills_for_memory_is_a_lost_host(engine: Engine, shared: Path) -> None:
    limit = ("--memory", "64m", "--memory-swap", "64m")

    async with trickle.open_host(fresh(engine, shared, *limit)) as host:
        with pytest.raises(trickle.HostLost):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_let_others_die_first, shared / "pid", engine)
                try:
                    await host.call(work.fill_memory, f"{HERE}/pid")
                except trickle.HostLost as exc:
                    lost = exc
            raise lost

    assert engine.containers() == set()


async def _let_others_die_first(path: Path, engine: Engine) -> None:
    """Have the kernel choose anything but the worker."""
    pid = await file_appears(path)
    (id,) = engine.containers()
    for process in _processes_of(id):
        is_worker = re.search(rf"^NSpid:.*\t{pid}$", (process / "status").read_text(), re.MULTILINE)
        (process / "oom_score_adj").write_text("0" if is_worker else "1000")
    path.unlink()


def _processes_of(container: str) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if container in (process / "cgroup").read_text():
                yield process


HOARDER = """#!/usr/bin/python3
import os, sys
hoard = b"x" * 2**27
os.execv("/usr/bin/python3", ["python3"] + sys.argv[1:])
"""


async def test_a_container_that_never_has_enough_memory_is_named(
    engine: Engine, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    hoarder = shared / "python"  # what a Python itself takes depends on what others share with it
    hoarder.write_text(HOARDER)
    hoarder.chmod(0o755)

    error = await error_of(
        fresh(engine, shared, "--memory", "32m", "--memory-swap", "32m", python=f"{HERE}/{hoarder.name}")
    )

    assert error.reason in ("killed", "out of memory"), str(error)
    assert engine.containers() == set()
    assert list(here.iterdir()) == []  # where podman's conmon would note it


# ---- clients, controllers and engines that die

STAGES = {
    "before the engine hears of it": (rb"/_ping", False),
    "before the container is created": (rb"POST \S*/containers/create", False),
    "when the container was created": (rb"POST \S*/containers/create", True),
    "before the container is attached to": (rb"POST \S*/attach", False),
    "before the container is started": (rb"POST \S*/start", False),
    "when the container was started": (rb"POST \S*/start", True),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_docker_client_that_is_killed_while_it_connects_leaves_nothing(
    stage: str, docker: Docker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker.run("tag", IMAGE, f"{NOWHERE}/image")  # without a look at the registry that outlives the client
    pattern, answer = STAGES[stage]
    before = running_below()
    errors = []

    async def connect() -> None:
        errors.append(await error_of(fresh(docker, image=f"{NOWHERE}/image")))

    async with gate_to(docker, monkeypatch, tmp_path) as gate, trio.open_nursery() as nursery:
        gate.hold(pattern, answer=answer)
        nursery.start_soon(connect)
        await gate.reached.wait()
        kill_below(before, "docker")

    assert errors[0].reason in ("killed", "no such image")
    assert docker.containers() == set()


@contextlib.asynccontextmanager
async def gate_to(docker: Docker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Gate]:
    """Have clients of the engine go through a gate."""
    path = docker.directory / f"{tmp_path.name}.sock"
    async with gate_on_socket(path, docker.socket) as gate:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield gate
    path.unlink()


def kill_below(before: set[int], name: str) -> None:
    """Kill the programs of this name among the tunnel's processes, which run below us but did not before."""
    for pid in _and_below(running_below() - before):
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            os.kill(pid, signal.SIGKILL)


def _and_below(pids: set[int]) -> set[int]:
    return pids | {each for pid in pids for each in _and_below(running_below(pid))}


@pytest.mark.parametrize("way_in", ["sh", "python"])
async def test_a_client_that_is_killed_while_the_container_boots_leaves_nothing(
    way_in: str, engine: Engine, shared: Path
) -> None:
    slow = shared / "python"
    slow.write_text(f"#!/bin/sh\necho >{HERE}/booting\nexec /usr/bin/sleep 1000000\n")
    slow.chmod(0o755)
    options = {"python": f"{HERE}/python"} if way_in == "python" else {"env": {"PATH": HERE}}
    (shared / "sh").symlink_to("python")
    before = running_below()
    errors = []

    async def connect() -> None:
        errors.append(await error_of(fresh(engine, shared, **options)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await file_appears(shared / "booting")
        kill_client(before)

    assert (errors[0].reason, errors[0].exit_status) == ("killed", -signal.SIGKILL)
    assert engine.containers() == set()


async def test_a_client_that_is_killed_in_mid_call_is_a_lost_host_and_nothing_is_left(
    container: trickle.abc.Tunnel, engine: Engine, shared: Path
) -> None:
    before = running_below()
    others = engine.containers()

    async with trickle.open_host(container) as host:
        async with call_under_way(host, shared) as lost:
            kill_client(before)

    assert "the connection ended" in str(lost[0])
    assert engine.containers() == others
    if others:
        pids = [int(pid) for pid in (shared / "pids").read_text().split()]
        async with trickle.open_host(container) as host:
            while await host.call(work.still_running, pids):
                await trio.sleep(0.05)


@pytest.mark.parametrize("rm", [True, False])
async def test_a_client_that_is_killed_at_any_moment_leaves_nothing(rm: bool, engine: Engine) -> None:
    for step in range(12):
        before = running_below()
        tunnel = fresh(engine, rm=rm)

        with contextlib.suppress(trickle.ConnectError):
            async with trickle.open_host(tunnel, wait=False) as host, trio.open_nursery() as nursery:
                nursery.start_soon(_wait_to_be_lost, host)
                while not running_below() - before:
                    await trio.sleep(0)
                await trio.sleep(step / 20)  # wherever that may be
                for pid in _and_below(running_below() - before):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        left = engine.containers()
        assert left == engine.listed()  # podman may have more than that in its files
        assert not left or not rm
        assert not engine.listed("status=running")
        engine.remove_all()
        while engine.monitors():  # which end when what they look after has
            await trio.sleep(0.05)


async def _wait_to_be_lost(host: trickle.Host) -> None:
    with contextlib.suppress(trickle.ConnectError, trickle.HostLost):
        await host.call(time.sleep, 3600)


async def test_connecting_that_is_cancelled_at_any_moment_leaves_nothing(engine: Engine) -> None:
    for tenth in range(6):
        with trio.move_on_after(tenth / 10):
            async with trickle.open_host(fresh(engine)):
                pass

        assert engine.containers() == set()


CONTROLLER = """
import sys, trickle, trio
from tests import work

async def main():
    engine, image, volume = sys.argv[1:4]
    tunnel = trickle.Docker("py", image=image, engine=engine, run_options=("--volume", volume))
    async with trickle.open_host(tunnel) as host:
        await host.call(work.start_children, "/shared/pids")

trio.run(main)
"""


@contextlib.contextmanager
def controller(
    engine: Engine, shared: Path, *prefix: str, image: str = IMAGE, **pipes: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own that calls something in a fresh container."""
    script = shared / "controller.py"
    script.write_text(CONTROLLER)
    words = [*prefix, sys.executable, str(script), engine.name, image, f"{shared}:{HERE}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


async def test_a_controller_that_is_killed_takes_the_container_along(engine: Engine, shared: Path) -> None:
    with controller(engine, shared) as process:
        await file_appears(shared / "pids")
        process.kill()

        await containers_go(engine)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_controller_that_is_killed_while_it_connects_leaves_nothing(
    stage: str, docker: Docker, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    docker.run("tag", IMAGE, f"{NOWHERE}/image")
    pattern, answer = STAGES[stage]

    async with gate_to(docker, monkeypatch, shared) as gate:
        gate.hold(pattern, answer=answer)
        with controller(docker, shared, image=f"{NOWHERE}/image") as process:
            await gate.reached.wait()
            tunnel = _and_below(running_below(process.pid))
            process.kill()
            process.wait()
            gate.open()
            for pid in tunnel:
                await process_ends(pid)

    await containers_go(docker)


async def test_ctrl_c_ends_the_container_and_is_one_keyboard_interrupt(engine: Engine, shared: Path) -> None:
    master, slave = os.openpty()
    with controller(engine, shared, "setsid", "--ctty", stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        await file_appears(shared / "pids")
        os.write(master, b"\x03")  # the terminal makes it a SIGINT to the whole foreground group
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        left = engine.containers()
        said = await trio.to_thread.run_sync(_read_all, master, abandon_on_cancel=True)
    os.close(master)

    assert left == set()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1


def _read_all(fd: int) -> str:
    said = b""
    with contextlib.suppress(OSError):  # EIO, at the end of a terminal
        while data := os.read(fd, 65536):
            said += data
    return said.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_engine_that_ends_in_mid_call_is_a_lost_host_and_the_work_ends(
    number: signal.Signals, docker: Docker, shared: Path
) -> None:
    async with trickle.open_host(fresh(docker, shared), heartbeat=0.5, lease=3) as host:
        (id,) = docker.containers()
        processes = {int(each.name) for each in _processes_of(id)}
        async with call_under_way(host, shared) as lost:
            await trio.to_thread.run_sync(docker.stop, number)
        for pid in processes:
            await process_ends(pid)
    error = await error_of(fresh(docker))

    assert lost[0].host == "py"
    assert error.reason == "engine not running"
    docker.start()
    await containers_go(docker)  # the engine removes it when it is back


# ---- through other tunnels


def with_environment(engine: Engine, via: trickle.abc.Tunnel) -> trickle.Command:
    """Where the engine's client finds it, for a machine whose login does not know."""
    return trickle.Command(
        ("env", *(f"{name}={value}" for name, value in engine.environment.items())), name="env", via=via
    )


async def test_containers_on_an_ssh_host(docker: Docker, piped_sshd: Sshd, login_user: str, shared: Path) -> None:
    shutil.chown(docker.socket, login_user)
    there = with_environment(docker, trickle.SSH(piped_sshd.alias(), ssh_options=piped_sshd.ssh_options))
    name = f"over-there{os.getpid()}"
    docker.run("run", "--detach", "--init", "--name", name, IMAGE, "sleep", "1000000")
    kept = docker.containers()

    async with trickle.open_group([fresh(docker, shared, via=there), trickle.DockerExec(name, via=there)]) as group:
        results = await group.call(work.echo, "hello")
        before = running_below()
    docker.remove(name)

    assert results.unwrap() == {"py": (("hello",), {}), name: (("hello",), {})}
    assert kept > docker.containers() == set()
    assert before


async def test_an_ssh_that_is_killed_in_mid_call_leaves_no_container_over_there(
    docker: Docker, piped_sshd: Sshd, login_user: str, shared: Path
) -> None:
    shutil.chown(docker.socket, login_user)
    there = with_environment(docker, trickle.SSH(piped_sshd.alias(), ssh_options=piped_sshd.ssh_options))
    before = running_below()

    async with trickle.open_host(fresh(docker, shared, via=there)) as host:
        async with call_under_way(host, shared):
            docker.run("pause", *docker.containers())  # so that it cannot end by itself
            kill_client(before)

    assert docker.containers() == set()


async def test_containers_behind_sudo(engine: Engine) -> None:
    if shutil.which("sudo") is None:
        require("sudo", "no sudo on this machine")
    there = with_environment(engine, trickle.Sudo())

    async with trickle.open_host(fresh(engine, via=there)) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert engine.containers() == set()


# ---- images that have to be pulled


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, _dockerd: Docker) -> Iterator[int]:
    """The port of a registry on loopback that has an ``image``."""
    with containers.registry(tmp_path_factory.mktemp("registry")) as port:
        name = f"127.0.0.1:{port}/image"
        original = _dockerd.run("create", IMAGE, "true")
        _dockerd.run("commit", "--change=LABEL pulled=yes", original, name)  # no image that is there already
        _dockerd.remove(original)
        _dockerd.run("push", name)
        _dockerd.run("rmi", name)
        yield port


@contextlib.asynccontextmanager
async def image_elsewhere(engine: Engine, registry: int) -> AsyncIterator[tuple[Gate, str]]:
    """A gate to the registry, and the name of the image that is to be pulled through it."""
    async with gate_on_port(registry) as (gate, port):
        if isinstance(engine, Podman):
            engine.trust_registry(port)
        name = f"127.0.0.1:{port}/image"
        yield gate, name
        if engine.has_image(name):
            engine.run("rmi", name)


class JumpingClock(trio.abc.Clock):
    """The real time, and what the test adds to it."""

    def __init__(self) -> None:
        self.added = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.monotonic() + self.added

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


@pytest.fixture
def clock() -> JumpingClock:
    """One that the test can put forward."""
    return JumpingClock()


async def test_a_pull_may_take_longer_than_connecting(engine: Engine, registry: int, clock: JumpingClock) -> None:
    results = []

    async def call(host: trickle.Host) -> None:
        results.append(await host.call(work.add, 1, 2))

    async with image_elsewhere(engine, registry) as (gate, image), trio.open_nursery() as nursery:
        gate.hold(rb"/blobs/")
        async with trickle.open_host(fresh(engine, image=image), wait=False, connect_timeout=60) as host:
            nursery.start_soon(call, host)
            await gate.reached.wait()
            clock.added += 100
            await trio.testing.wait_all_tasks_blocked()
            assert host.statistics().state == "connecting"
            gate.open()
            await host.wait_connected()
            while not results:
                await trio.sleep(0.01)

    assert results == [3]


async def test_a_pull_that_is_cancelled_leaves_nothing(engine: Engine, registry: int) -> None:
    async with image_elsewhere(engine, registry) as (gate, image):
        gate.hold(rb"/blobs/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(error_of, fresh(engine, image=image))
            await gate.reached.wait()
            nursery.cancel_scope.cancel()
        gate.open()

        assert not engine.has_image(image)
    assert engine.containers() == set()


@pytest.mark.parametrize("victim", ["client", "its shell"])
async def test_a_client_that_is_killed_during_a_pull_leaves_nothing(victim: str, engine: Engine, registry: int) -> None:
    before = running_below()
    errors = []

    async def connect(tunnel: trickle.Docker) -> None:
        errors.append(await error_of(tunnel))

    async with image_elsewhere(engine, registry) as (gate, image):
        gate.hold(rb"/blobs/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, fresh(engine, image=image))
            await gate.reached.wait()
            tunnel = _and_below(running_below() - before)
            if victim == "client":
                kill_below(before, engine.name)
            else:
                kill_client(before)
        for pid in tunnel:
            await process_ends(pid)
        gate.open()

        assert not engine.has_image(image)
    assert errors[0].reason == ("no such image" if victim == "client" else "killed")
    assert engine.containers() == set()


async def test_a_controller_that_is_killed_during_a_pull_takes_the_pull_along(
    engine: Engine, registry: int, shared: Path
) -> None:
    async with image_elsewhere(engine, registry) as (gate, image):
        gate.hold(rb"/blobs/")
        with controller(engine, shared, image=image) as process:
            await gate.reached.wait()
            tunnel = _and_below(running_below(process.pid))
            process.kill()
            for pid in tunnel:
                await process_ends(pid)
        gate.open()

        assert not engine.has_image(image)
    assert engine.containers() == set()


async def test_an_image_that_no_registry_has_is_named(engine: Engine, registry: int) -> None:
    async with image_elsewhere(engine, registry) as (_, image):
        error = await error_of(fresh(engine, image=f"{image}:nothing"))

    assert error.reason == "no such image"
    assert "unknown" in error.stderr


async def test_a_registry_that_does_not_answer_is_named(engine: Engine) -> None:
    error = await error_of(fresh(engine, image=f"{NOWHERE}/nothing"))

    assert error.reason == "no such image"
    assert "refused" in str(error)
