"""The names, arguments and defaults that programs rely on: nothing here changes without a line in the changelog."""

import dataclasses
import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import get_overloads

import pytest
import trio

import trickle
import trickle.abc
import trickle.remote
import trickle.testing
from tests.work import add
from trickle._settings import CallOptions, GroupOptions

NAMES = """
    CallTimeout Command ConnectError Docker DockerExec Explanation Failure Group Host HostInfo HostLost HostProgress
    HostStatistics Local MapResult ModulePolicy NotNeeded OutputLine ProtocolError RemoteChannel RemoteError
    RemoteProcess Results SSH Session Sink Success Sudo TransferResult UnsafeResult Unsendable WorkerDied abc
    allow hosts open_group open_host remote
"""

OPEN = (
    "connect_timeout=30.0, heartbeat=10.0, lease=60.0, workers=16, max_open=256, max_payload=536870912, modules=None,"
    " output=None"
)
TRANSFER = "*, mode=None, preserve=True, fsync=False, resume=False, progress=None"
RUN = "*, stdin=b'', capture_stdout=False, capture_stderr=False, check=True, shell=False, cwd=None, env=None"
OPTIONS = (
    "*, grace_period=5.0, trust=None, allow=(), max_result=8388608, env=None, cwd=None, reconnect=False, output=None"
)
TUNNEL = "name=None, python=None, python_version=None, trust='data', via=None"

SIGNATURES = {
    trickle.open_host: f"(tunnel, *, wait=True, {OPEN})",
    trickle.open_group: f"(tunnels, *, connect_limit=32, connect_retries=0, {OPEN})",
    trickle.allow: "(*classes)",
    trickle.hosts: "(pattern)",
    trickle.Local: "(name='localhost', *, python=None, python_version=None, trust='data', via=None)",
    trickle.SSH: f"(host, *, {TUNNEL}, user=None, port=None, ssh_options=())",
    trickle.Sudo: f"(user='root', *, {TUNNEL}, password=None)",
    trickle.Command: f"(argv, *, {TUNNEL}, shell=False)",
    trickle.Docker: (
        "(name, *, python=None, python_version=None, trust='data', via=None, image, engine='docker', rm=True,"
        " user=None, run_options=(), env=())"
    ),
    trickle.DockerExec: f"(container, *, {TUNNEL}, engine='docker', user=None, env=())",
    trickle.abc.Tunnel.wrap: "(self, argv)",
    trickle.abc.Tunnel.answers: "(self, nonce)",
    trickle.Host.wait_connected: "(self)",
    trickle.Host.call: "(self, fn, /, *args, **kwargs)",
    trickle.Host.stream: "(self, fn, /, *args, **kwargs)",
    trickle.Host.open_channel: "(self, fn, /, *args, **kwargs)",
    trickle.Host.run_process: f"(self, command, {RUN})",
    trickle.Host.open_process: (
        "(self, command, *, stdin=None, stdout=None, stderr=None, shell=False, cwd=None, env=None)"
    ),
    trickle.Host.put: f"(self, local, remote, {TRANSFER})",
    trickle.Host.fetch: f"(self, remote, local, {TRANSFER}, max_size=None)",
    trickle.Host.session: "(self)",
    trickle.Host.reducing: "(self, fn)",
    trickle.Host.options: f"(self, {OPTIONS})",
    trickle.Host.open_host: f"(self, tunnel, *, wait=True, {OPEN})",
    trickle.Host.open_group: f"(self, tunnels, *, connect_limit=32, connect_retries=0, {OPEN})",
    trickle.Host.explain: "(self, fn, /, *args, **kwargs)",
    trickle.Host.statistics: "(self)",
    trickle.Host.aclose: "(self)",
    trickle.Group.call: "(self, fn, /, *args, **kwargs)",
    trickle.Group.as_completed: "(self, fn, /, *args, **kwargs)",
    trickle.Group.stream: "(self, fn, /, *args, **kwargs)",
    trickle.Group.map: "(self, fn, items)",
    trickle.Group.filter: "(self, predicate, /, *args, **kwargs)",
    trickle.Group.select: "(self, *patterns)",
    trickle.Group.reducing: "(self, fn)",
    trickle.Group.run_process: f"(self, command, {RUN})",
    trickle.Group.put: f"(self, local, remote, {TRANSFER})",
    trickle.Group.fetch: f"(self, remote, local, {TRANSFER}, max_size=None)",
    trickle.Group.wait_connected: "(self)",
    trickle.Group.statistics: "(self)",
    trickle.Group.options: (
        f"(self, {OPTIONS}, timeout=inf, limit=None, need=None, on_failure='continue',"
        " max_failures=None, repeatable=False, retries=0, hedge=None, progress=None)"
    ),
    trickle.Session.call: "(self, fn, /, *args, **kwargs)",
    trickle.Session.stream: "(self, fn, /, *args, **kwargs)",
    trickle.RemoteChannel.send: "(self, value)",
    trickle.RemoteChannel.receive: "(self)",
    trickle.RemoteChannel.send_eof: "(self)",
    trickle.RemoteChannel.aclose: "(self)",
    trickle.RemoteChannel.result: "(self)",
    trickle.RemoteProcess.wait: "(self)",
    trickle.RemoteProcess.send_signal: "(self, sig)",
    trickle.RemoteProcess.terminate: "(self)",
    trickle.RemoteProcess.kill: "(self)",
    trickle.Success: "(value)",
    trickle.Failure: "(error)",
    trickle.Results.successful: "(self)",
    trickle.Results.failures: "(self)",
    trickle.Results.raise_failures: "(self)",
    trickle.Results.unwrap: "(self)",
    trickle.remote.check_cancelled: "()",
    trickle.remote.time_left: "()",
    trickle.remote.Channel.send: "(self, value)",
    trickle.remote.Channel.receive: "(self, timeout=None)",
    trickle.remote.Channel.send_eof: "(self)",
    trickle.remote.Channel.close: "(self)",
    trickle.testing.open_memory_host: (
        "(*, faults=(), name='memory', wait=True, connect_timeout=30.0, heartbeat=10.0, lease=60.0, workers=16,"
        " max_open=256, max_payload=536870912, output=None)"
    ),
    trickle.testing.check_tunnel: "(make_tunnel)",
}

ASYNC = {
    *(getattr(trickle.Host, name) for name in ("wait_connected", "call", "run_process", "put", "fetch", "aclose")),
    *(getattr(trickle.Group, name) for name in ("call", "filter", "run_process", "put", "fetch", "wait_connected")),
    *(getattr(trickle.RemoteChannel, name) for name in ("send", "receive", "send_eof", "aclose", "result")),
    trickle.RemoteProcess.wait,
    trickle.Session.call,
    trickle.testing.check_tunnel,
}

FIELDS = {
    trickle.HostInfo: "hostname pid user python python_version implementation system machine",
    trickle.HostStatistics: (
        "state calls_running calls_waiting workers open verdicts bytes_sent bytes_received modules_sent"
        " seconds_since_heard"
    ),
    trickle.OutputLine: "host stream call text",
    trickle.TransferResult: "path size checksum sent skipped",
    trickle.Success: "value",
    trickle.Failure: "error",
    trickle.HostProgress: "host state since counts",
    trickle.ModulePolicy: "allow deny private",
    trickle.Explanation: (
        "host function bytes modules foreseen unforeseeable deferred extensions not_sent python_version newest_syntax"
    ),
}

# What an option is that was never given, in any view.
HOST_OPTIONS = {
    "grace_period": 5.0,
    "trust": None,
    "allow": (),
    "max_result": 8 * 2**20,
    "env": None,
    "cwd": None,
    "reconnect": False,
    "output": None,
}
GROUP_OPTIONS = {
    "timeout": math.inf,
    "limit": None,
    "need": None,
    "on_failure": "continue",
    "max_failures": None,
    "repeatable": False,
    "retries": 0,
    "hedge": None,
    "progress": None,
}

ERRORS: dict[type[Exception], tuple[type[Exception], str]] = {
    trickle.ConnectError: (Exception, "host reason stage exit_status stderr"),
    trickle.HostLost: (trio.BrokenResourceError, "host stderr"),
    trickle.ProtocolError: (trickle.HostLost, "host stderr"),
    trickle.WorkerDied: (trio.BrokenResourceError, "host exit_status signal"),
    trickle.NotNeeded: (Exception, "host"),
    trickle.CallTimeout: (trio.TooSlowError, "host verdict stage remote_stack"),
    trickle.Unsendable: (TypeError, "host path"),
    trickle.UnsafeResult: (Exception, "host"),
}

TUNNELS = (
    trickle.Local(),
    trickle.SSH("web1"),
    trickle.Docker("py", image="python:3.12"),
    trickle.DockerExec("py"),
    trickle.Sudo(),
    trickle.Command(("env",), name="web1"),
)


def test_these_names_and_no_others_are_public() -> None:
    assert sorted(trickle.__all__) == sorted(NAMES.split())


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_signature_is_what_it_was(function: Callable[..., object]) -> None:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]

    assert str(signature.replace(parameters=bare, return_annotation=signature.empty)) == SIGNATURES[function]
    assert inspect.iscoroutinefunction(function) == (function in ASYNC)


@pytest.mark.parametrize("cls", FIELDS, ids=lambda cls: cls.__name__)
def test_what_is_told_is_a_frozen_record(cls: type) -> None:
    assert dataclasses.is_dataclass(cls)
    assert " ".join(field.name for field in dataclasses.fields(cls)) == FIELDS[cls]
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_says_which_host_and_is_caught_by_its_kind(cls: type[Exception]) -> None:
    kind, attributes = ERRORS[cls]
    error = cls("what happened", host="web1")  # type: ignore[call-arg]

    assert issubclass(cls, kind)
    assert all(hasattr(error, name) for name in attributes.split())
    assert error.host == "web1"  # type: ignore[attr-defined]


def test_what_was_raised_over_there_has_its_own_error() -> None:
    assert issubclass(trickle.RemoteError, Exception)
    assert {"host", "type_name", "remote_traceback"} <= {
        *dir(trickle.RemoteError),
        *trickle.RemoteError.__annotations__,
    }


@pytest.mark.parametrize("tunnel", TUNNELS, ids=lambda tunnel: type(tunnel).__name__)
def test_a_tunnel_is_frozen_and_hashable(tunnel: trickle.abc.Tunnel) -> None:
    assert isinstance(tunnel, trickle.abc.Tunnel)
    assert hash(tunnel) == hash(dataclasses.replace(tunnel))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tunnel.name = "other"  # type: ignore[misc]
    assert isinstance(tunnel.wrap(("python3", "-c", "pass")), tuple)


@pytest.mark.parametrize(
    ("kept_in", "defaults"), [(CallOptions, HOST_OPTIONS), (GroupOptions, GROUP_OPTIONS)], ids=["host", "group"]
)
def test_an_option_that_was_never_given_is_this(kept_in: type, defaults: dict[str, object]) -> None:
    kept = kept_in()

    assert {name: getattr(kept, name) for name in defaults} == defaults
    on_hosts = inspect.signature(trickle.Host.options).parameters.keys() - {"self"}
    on_groups = inspect.signature(trickle.Group.options).parameters.keys() - {"self"}
    assert on_hosts == HOST_OPTIONS.keys()
    assert on_groups == HOST_OPTIONS.keys() | GROUP_OPTIONS.keys()


@pytest.mark.parametrize("cls", [trickle.Host, trickle.Group], ids=lambda cls: cls.__name__)
def test_calls_of_async_functions_and_of_plain_ones_have_types_of_their_own(cls: type) -> None:
    overloads = get_overloads(cls.call)  # type: ignore[attr-defined]

    assert len(overloads) == 2
    assert "Awaitable" in str(inspect.signature(overloads[0]).parameters["fn"].annotation)  # it would match the other


@pytest.mark.parametrize("tunnel", TUNNELS[1:], ids=lambda tunnel: type(tunnel).__name__)
def test_any_tunnel_but_the_one_to_here_may_go_through_another(tunnel: trickle.abc.Tunnel) -> None:
    assert dataclasses.replace(tunnel, via=trickle.SSH("bastion")).via == trickle.SSH("bastion")
    with pytest.raises(ValueError, match="through nothing"):
        trickle.Local(via=tunnel)


async def test_what_is_held_has_these_attributes() -> None:
    async with trickle.open_host(trickle.Local("web1", python=sys.executable)) as host:
        assert (host.name, host.tunnel, host.info) == ("web1", host.tunnel, await host.wait_connected())
        async with host.session() as session:
            assert (session.name, await session.call(add, 1, 2)) == ("web1", 3)
        async with host.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert (process.args, process.returncode, process.stderr) == (["cat"], None, None)
            assert process.pid > 0
            assert isinstance(process.stdin, trio.abc.SendStream)
            assert isinstance(process.stdout, trio.abc.ReceiveStream)
            await process.stdin.aclose()
            assert await process.wait() == process.returncode == 0
        assert isinstance(host.explain(add, 1), trickle.Explanation)
        assert isinstance(host.statistics(), trickle.HostStatistics)


async def test_what_a_host_says_of_itself_is_not_known_at_once() -> None:
    async with trickle.open_host(trickle.Local(python=sys.executable), wait=False) as host:
        with pytest.raises(RuntimeError, match="has not answered yet"):
            host.info  # noqa: B018


def test_channels_are_those_of_trio() -> None:
    assert issubclass(trickle.RemoteChannel, trio.abc.SendChannel)
    assert issubclass(trickle.RemoteChannel, trio.abc.ReceiveChannel)


def test_results_and_groups_are_mappings() -> None:
    assert issubclass(trickle.Group, Mapping)
    assert issubclass(trickle.Results, Mapping)
    assert trickle.MapResult._fields == ("index", "item", "host", "result")
    assert isinstance(inspect.getattr_static(trickle.Group, "unreachable"), property)


def test_what_is_for_code_over_there_is_harmless_here() -> None:
    trickle.remote.check_cancelled()

    assert trickle.remote.time_left() == math.inf
    assert trickle.remote.host_name is None
    assert issubclass(trickle.remote.CallCancelled, BaseException)
    assert not issubclass(trickle.remote.CallCancelled, Exception)
    assert trickle.remote.CallCancelled().reason is None
