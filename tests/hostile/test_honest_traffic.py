"""Honest traffic in which bytes were changed on the way: each end reads it, or refuses it, and nothing else."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import (
    AS_AGENT,
    AS_CONTROLLER,
    AS_ERROR,
    AS_RESULT,
    WITH_CLASSES,
    conversation,
    errors,
    honest_values,
)
from tests.fuzz.targets import unpickling, wire
from tests.pythons import OLDEST, far_pythons, python_id
from trickle._agent.results import describe_exception, dumps_result
from trickle._boot import boot_pieces, python_command
from trickle._pickling import dumps_call
from trickle._wire import frames
from trickle._wire.armor import END_OF_ARMOR, armored
from trickle._wire.payload import pack_options

TO_AGENT, TO_CONTROLLER = conversation()
RESULTS = [dumps_result(value) for value in honest_values()]
ERRORS = [describe_exception(exc) for exc in errors()]

thousands = settings(max_examples=700, deadline=None, derandomize=True, database=None)


@st.composite
def changed(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of these, with some bytes replaced, removed, doubled or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 16))
        kind = draw(st.sampled_from(("replace", "insert", "remove", "double", "cut", "number")))
        if kind == "replace":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "remove":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + 4 * size]
        elif kind == "cut":
            del data[at:]
        else:
            data[at : at + 4] = draw(
                st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\0\0", b"\x7f\xff\xff\xff"))
            )
    return bytes(data)


@thousands
@given(changed([TO_CONTROLLER]), st.integers(0, 255))
def test_the_controller_reads_or_refuses_what_an_agent_says(said: bytes, size: int) -> None:
    wire(AS_CONTROLLER + bytes([size]) + said)


@thousands
@given(changed([END_OF_ARMOR + TO_AGENT, armored(TO_AGENT) + END_OF_ARMOR]), st.integers(0, 255))
def test_the_agent_reads_or_refuses_what_a_controller_says(said: bytes, size: int) -> None:
    wire(AS_AGENT + bytes([size]) + said)


@thousands
@given(changed(RESULTS), st.sampled_from((AS_RESULT, WITH_CLASSES)))
def test_changed_results_are_data_or_refused(data: bytes, kind: bytes) -> None:
    unpickling(kind + data)


@thousands
@given(changed(ERRORS))
def test_changed_errors_are_harmless_or_refused(data: bytes) -> None:
    unpickling(AS_ERROR + data)


# ---- a real agent

CONFIGURATION = {
    "name": "web1",
    "path": ["web1"],
    "agent": "0" * 12,
    "heartbeat": 10.0,
    "lease": 60.0,
    "workers": 2,
    "max_payload": 2**20,
    "grace_period": 0.1,
    "nonce": "0123456789abcdef" * 2,
}
HELLO = frames.encode(frames.Hello(0, frames.VERSION))
CLOSE = frames.encode(frames.Close(0, 0))
BAD: dict[str, bytes] = {
    "nothing": b"",
    "noise": bytes(range(256)) * 100,
    "text": b"hello\nthis is no frame\n" * 100,
    "half a hello": HELLO[:10],
    "no hello": END_OF_ARMOR + CLOSE,
    "another version": END_OF_ARMOR + frames.encode(frames.Hello(0, 99)),
    "half of the armor": armored(HELLO)[:-3],
    "armor that is none": b"!!!!." + END_OF_ARMOR,
    "a frame of 4 GiB": END_OF_ARMOR + HELLO + b"\x95\x02\xce\0\0\0\1\xce\0\0\0\0\xce\0\0\0\0\xc6\xff\xff\xff\xff",
    "a frame of an unknown kind": END_OF_ARMOR + HELLO + b"\x95\x63" + HELLO[2:],
    "a result for the agent": END_OF_ARMOR + HELLO + frames.encode(frames.End(1, 1)),
    "a call that is cut off": END_OF_ARMOR + HELLO + frames.encode(frames.Call(1, frames.NEVER, 0, b"\0" * 100))[:60],
    "arguments that never end": END_OF_ARMOR + HELLO + frames.encode(frames.Begin(1, frames.NEVER)),
    "two calls of one number": END_OF_ARMOR + HELLO + frames.encode(frames.Call(1, frames.NEVER, 0, b"\0N.")) * 2,
    "a call that is no pickle": END_OF_ARMOR + HELLO + frames.encode(frames.Call(1, frames.NEVER, 0, b"\0garbage")),
    "options that are none": END_OF_ARMOR
    + HELLO
    + frames.encode(frames.Call(1, frames.NEVER, 0, b"\1\xff\xff\xff\xff")),
    "modules that are none": END_OF_ARMOR + HELLO + frames.encode(frames.Modules(0, 1, 0, b"garbage")),
}


def take_little_memory() -> None:
    """A changed pickle may ask for any amount: over there they are read as they are."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))


def ended(python: str, data: bytes) -> tuple[int, bytes]:
    """How an agent ends that is sent this behind its boot code, and then nothing more."""
    process = subprocess.Popen(
        python_command(python),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=take_little_memory,
    )
    try:
        _, complained = process.communicate(b"".join(boot_pieces(CONFIGURATION)) + data, timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, complained


def check_end_of(python: str, data: bytes) -> None:
    """An agent that is sent this ends cleanly."""
    status, complained = ended(python, data)

    assert status in (0, 70), complained  # the controller is gone, or has broken the rules
    assert (status == 70) == (b"trickle agent: " in complained)
    assert b"Traceback" not in complained, complained


def oldest_and_newest() -> list[str]:
    pythons = far_pythons()
    return [pythons[0], pythons[-1]] if len(pythons) > 1 else [sys.executable]


@pytest.mark.parametrize("python", oldest_and_newest(), ids=python_id)
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_garbage_and_cuts_from_the_controller_end_the_agent_cleanly(python: str, data: bytes) -> None:
    check_end_of(python, data)


def payload_of(function: Callable[..., object], *args: object) -> bytes:
    call = dumps_call(function, args, {}, host="web1", far_version=OLDEST)
    return pack_options({"grace_period": 0.1}) + call.payload


REAL, _ = conversation(payload_of(abs, -1), payload_of(len, bytes(20_000)), payload_of(list, (1, 2)))
real_agents = pytest.mark.parametrize("python", oldest_and_newest(), ids=python_id)


changed_traffic = given(said=changed([END_OF_ARMOR + REAL, armored(REAL) + END_OF_ARMOR]))


@real_agents
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@changed_traffic
def test_a_real_agent_meets_changed_traffic(python: str, said: bytes) -> None:
    check_end_of(python, said)


@pytest.mark.soak
@pytest.mark.takes(3600)
@real_agents
@settings(max_examples=3000, deadline=None, derandomize=True, database=None)
@changed_traffic
def test_a_real_agent_meets_changed_traffic_for_long(python: str, said: bytes) -> None:
    check_end_of(python, said)
