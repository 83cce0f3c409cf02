"""Run ``async def`` tests with trio, look after each test that touches real processes for what it left, and have
tests of what happens over there run over a local process and over a real ssh.

Fixtures are plain functions, also for async tests: what is opened with ``async with`` is opened in the test.
"""

import functools
import inspect
import io
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing

import trickle
from tests import containers, leftovers
from tests import sshd as sshd_module
from tests.hosts import local
from tests.sshd import Sshd
from trickle.testing import open_memory_host

HANG = 120.0  # seconds: a test that may take longer is marked ``takes``; turns a hang into a failure that says where
TESTS = Path(__file__).parent
AUDITED = (TESTS / "end_to_end", TESTS / "host")


def pytest_configure() -> None:
    """Let what tests start get a terminal's signals, also where a shell has us ignore them, in the background."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, _ignore),
        (signal.SIGHUP, _ignore),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)  # unlike SIG_IGN, programs that are started do not inherit it


def _ignore(number: int, frame: object) -> None:
    pass


def pytest_keyboard_interrupt() -> None:
    """After Ctrl-C, have one of several processes tidy up in peace: it is sent a SIGINT more when that takes 5 s."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        signal.signal(signal.SIGINT, _ignore)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run what is asked for in this process, unless that is whole directories: a few tests are over before others
    have started, and only here are they seen at work.  Those that take minutes have the machine to themselves."""
    options = config.option
    is_much = all(Path(argument).is_dir() for argument in config.args) and not (options.keyword or options.lf)
    is_watched = options.capture == "no" or options.trace
    return None if is_much and not is_watched and "not soak" in options.markexpr else 0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    clocks = [value for value in pyfuncitem.funcargs.values() if isinstance(value, trio.abc.Clock)]
    clock = clocks[0] if clocks else None
    hypothesis = getattr(function, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = run_with_trio(hypothesis.inner_test, clock)
        return None
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    takes = pyfuncitem.get_closest_marker("takes")
    run_with_trio(function, clock, takes.args[0] if takes is not None else HANG)(**arguments)
    return True


def run_with_trio(
    function: Callable[..., Awaitable[object]], clock: trio.abc.Clock | None, hang: float = HANG
) -> Callable[..., None]:
    """The same test as a plain function.  With a clock of the test's own, the guard counts by that clock:
    under ``autojump_clock`` it fires at once when every task waits for ever."""

    @functools.wraps(function)
    def test(**arguments: object) -> None:
        async def main() -> None:
            with trio.CancelScope() as scope:
                trio.lowlevel.spawn_system_task(stop_a_hang, scope, report, hang)  # ends with the run
                await function(**arguments)

        report = io.StringIO()
        trio.run(main, clock=clock, strict_exception_groups=True)
        if report.getvalue():
            pytest.fail(report.getvalue(), pytrace=False)

    return test


async def stop_a_hang(scope: trio.CancelScope, report: io.StringIO, hang: float) -> None:
    await trio.sleep(hang)
    print(f"the test was still running after {hang:g} s; its tasks waited here:", file=report)
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        print(f"- {task.name}", file=report)
        for frame, line in task.iter_await_frames():
            print(f"    {frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}", file=report)
        waiting.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    scope.cancel()


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """A clock that jumps when all tasks wait.  Not where a process is waited for: that looks idle."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _beside: leftovers.Beside
) -> Iterator[None]:
    """Fail a test (of the audited directories) that leaves a process, a descriptor or a temporary file."""
    _beside.begin()
    if not any(directory in request.path.parents for directory in AUDITED):
        yield
        _beside.end()
        return
    mark = uuid.uuid4().hex
    monkeypatch.setenv(leftovers.MARK, mark)
    audit = leftovers.Audit(mark)
    yield
    if left := [*audit.leftovers(), *_beside.end()]:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def _beside(tmp_path_factory: pytest.TempPathFactory) -> leftovers.Beside:
    """The tests that run now, in all the processes of this session."""
    directory = tmp_path_factory.getbasetemp()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return leftovers.Beside(directory.parent if worker else directory, worker or "only")


@pytest.fixture(scope="session")
def public_directory() -> Iterator[Path]:
    """A temporary directory that other users can enter, unlike pytest's; short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="far-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def _sshd_directory(public_directory: Path) -> Path:
    sshd_module.sshd_binary()
    directory = public_directory / "ssh"
    directory.mkdir()
    sshd_module.prepare(directory)
    return directory


@pytest.fixture(scope="session")
def login_user(public_directory: Path) -> Iterator[str]:
    """Who the tests log in as: a user with /bin/sh made for this session, or (not root) the current one."""
    with sshd_module.login_user(public_directory / "home") as name:
        yield name


@pytest.fixture(scope="session")
def piped_sshd(_sshd_directory: Path, login_user: str) -> Iterator[Sshd]:
    """A real sshd as ProxyCommand: each connection starts one of its own.  The cheapest."""
    with sshd_module.piped_sshd(_sshd_directory, login_user) as piped:
        yield piped


@pytest.fixture(params=["local", "ssh"])
def far(request: pytest.FixtureRequest) -> trickle.abc.Tunnel:
    """A host, ``web1``: a process of this Python, and what ``python3`` is for somebody who logs in by ssh."""
    return _far(request)


@pytest.fixture(params=["memory", "local", "ssh"])
def open_any(request: pytest.FixtureRequest) -> Callable[[], AbstractAsyncContextManager[trickle.Host]]:
    """Opens such a host, or one in memory."""
    return open_memory_host if request.param == "memory" else functools.partial(trickle.open_host, _far(request))


def _far(request: pytest.FixtureRequest) -> trickle.abc.Tunnel:
    if request.param == "local":
        return local("web1")
    sshd: Sshd = request.getfixturevalue("piped_sshd")
    return trickle.SSH(sshd.alias(), name="web1", ssh_options=sshd.ssh_options)


@pytest.fixture
def shared(public_directory: Path) -> Path:
    """A directory that the user who logs in can write to as well."""
    path = public_directory / f"shared{time.monotonic_ns()}"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture(scope="session")
def container_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system of containers.IMAGE."""
    path = tmp_path_factory.mktemp("image") / "image.tar"
    containers.make_image(path)
    return path


@pytest.fixture(scope="session")
def _dockerd(container_image: Path) -> Iterator[containers.Docker]:
    with containers.docker_engine(container_image) as engine:
        yield engine


@pytest.fixture(scope="session")
def _podman(container_image: Path) -> Iterator[containers.Podman]:
    with containers.podman_engine(container_image) as engine:
        yield engine


@pytest.fixture
def docker(_dockerd: containers.Docker, monkeypatch: pytest.MonkeyPatch) -> Iterator[containers.Docker]:
    """A docker engine of the tests' own, to which ``docker`` leads; a test may stop it."""
    _lead_to(_dockerd, monkeypatch)
    yield _dockerd
    _dockerd.start()


@pytest.fixture
def podman(_podman: containers.Podman, monkeypatch: pytest.MonkeyPatch) -> containers.Podman:
    """Podman with a place of its own."""
    _lead_to(_podman, monkeypatch)
    return _podman


def _lead_to(engine: containers.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.remove_all()  # what a test has left that failed for it
    for name in ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
