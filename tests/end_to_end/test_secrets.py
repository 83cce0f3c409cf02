"""What is nobody else's business: passwords, arguments, results and options(env=) are seen in none of the places where
others look, on neither machine: command lines, environments, the log, representations, errors, statistics.
"""

import base64
import contextlib
import dataclasses
import logging
import os
import pwd
import subprocess
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trickle
from tests import sshd as sshd_module
from tests import sudo as sudo_module
from tests import work
from tests.hosts import file_appears, local
from trickle._link import Link

PASSWORD, ARGUMENT, RESULT, VALUE = (f"canary-{word}-6f1e9a" for word in ("password", "argument", "result", "value"))
CANARIES = (PASSWORD, ARGUMENT, RESULT, VALUE)
TRICKLE = str(Path(trickle.__file__).parent)


def forms(canary: str) -> list[bytes]:
    """How it may stand somewhere: as it is, or in base64, at each of the three places where it may begin."""
    encoded = [base64.b64encode(b"x" * shift + canary.encode()) for shift in range(3)]
    return [canary.encode(), *(each[4:-4] for each in encoded)]


def found_in(text: str | bytes) -> set[str]:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return {canary for canary in CANARIES if any(form in data for form in forms(canary))}


def on_this_machine() -> set[str]:
    """What is to be seen of every process: its command line, and the environment that it was started with."""
    found: set[str] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    found |= found_in((process / file).read_bytes())
    return found


def shown_by(exc: BaseException) -> set[str]:
    """What an error shows: in its text, in its attributes, in its traceback; of passwords, in the locals of our frames.

    Arguments are locals of whoever calls, and so of ours as well.
    """
    found = found_in("".join(traceback.format_exception(exc)))
    found |= found_in(f"{exc!r} {exc!s} {exc.args!r} {vars(exc)!r}")
    waiting = [traceback.TracebackException.from_exception(exc, capture_locals=True)]
    while waiting:
        described = waiting.pop()
        waiting += [each for each in (described.__cause__, described.__context__) if each is not None]
        waiting += described.exceptions or []
        for frame in described.stack:
            if frame.filename.startswith(TRICKLE):
                found |= found_in(repr(frame.locals)) & {PASSWORD, VALUE}
    return found


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """All that is logged, by anybody."""
    caplog.set_level(logging.DEBUG)
    yield
    assert found_in("\n".join(record.getMessage() for record in caplog.records)) == set()
    assert found_in("\n".join(repr(vars(record)) for record in caplog.records)) == set()


@pytest.fixture
def sudo(public_directory: Path, login_user: str) -> Iterator[trickle.Sudo]:
    """A way to be root for the user of the tests, by a password."""
    sudo_module.need_sudo()
    uid = pwd.getpwnam(login_user).pw_uid
    via = trickle.Command(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"])
    with sshd_module.password(login_user, PASSWORD), sudo_module.rules(f"{login_user} ALL=(ALL) ALL"):
        yield trickle.Sudo(password=PASSWORD, via=via, name="web1")


async def test_nothing_is_seen_of_a_host_while_it_connects_and_runs(sudo: trickle.Sudo, public_directory: Path) -> None:
    """The far end is held before its password is asked for, after that was given, and in the middle of a call."""
    gates = [public_directory / f"gate{number}" for number in range(3)]
    waits = [f"touch {gate}; while [ -e {gate} ]; do sleep 0.02; done" for gate in gates]
    before = trickle.Command(["sh", "-c", f'{waits[0]}; exec "$@"', "sh"], via=sudo.via)
    python = public_directory / "python"
    python.write_text(f'#!/bin/sh\n{waits[1]}\nexec /usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    public_directory.chmod(0o777)
    tunnel = dataclasses.replace(sudo, via=before, python=str(python))
    seen: list[set[str]] = []
    shown: list[object] = [tunnel]

    async def look() -> None:
        for gate in gates:
            await file_appears(gate)
            seen.append(await trio.to_thread.run_sync(on_this_machine))
            shown.append(host.statistics())
            gate.unlink()

    try:
        async with trickle.open_host(tunnel, wait=False) as host, trio.open_nursery() as nursery:
            nursery.start_soon(look)
            view = host.options(env={"TOKEN": VALUE})
            result = await view.call(work.keep_to_oneself, "", ARGUMENT, path=str(gates[2]))
            async with view.session() as session:
                await session.call(work.echo, ARGUMENT, key=ARGUMENT)
                shown += [host, view, session, host.info, host.statistics(), vars(host), vars(session), view._options]
            assert await view.call(work.environment, "TOKEN") == VALUE
    finally:
        public_directory.chmod(0o755)
        python.unlink()

    assert result == RESULT
    assert seen == [set(), set(), set()]
    assert found_in(repr(shown)) == set()


KINDS = (trickle.RemoteError, trickle.WorkerDied, trickle.Unsendable, trickle.UnsafeResult)


async def test_errors_of_calls_do_not_show_what_was_sent_or_returned(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    async with trickle.open_group([local("web1")]) as group:
        host = group["web1"].options(env={"TOKEN": VALUE}, grace_period=0.1)
        for words in [
            (work.keep_to_oneself, "raise", ARGUMENT),
            (work.keep_to_oneself, "a thing", ARGUMENT),
            (work.exit_at_once, 3),
            (len, (ARGUMENT, threading.Lock())),
        ]:
            with pytest.raises(KINDS) as caught:
                await host.call(*words)  # type: ignore[arg-type]
            errors.append(caught.value)
        results = await group.call(work.keep_to_oneself, "raise", ARGUMENT)
        errors += results.failures().values()
        assert found_in(f"{results!r} {results!s} {results['web1']!r} {group!r} {group.statistics()!r}") == set()
        path = str(tmp_path / "started")
        results = await group.options(timeout=2).call(work.keep_to_oneself, "", ARGUMENT, path)
        errors += results.failures().values()
        with pytest.raises(trio.TooSlowError) as too_slow:
            with trio.fail_after(2):
                await host.call(work.keep_to_oneself, "", ARGUMENT, path)
        errors.append(too_slow.value)
        with pytest.raises(trickle.HostLost) as lost:
            await host.call(work.keep_to_oneself, "end the broker", ARGUMENT)
        errors.append(lost.value)
        with pytest.raises(trickle.HostLost) as lost:
            await host.call(work.keep_to_oneself, "raise", ARGUMENT)
        errors.append(lost.value)

    assert {type(error).__name__ for error in errors} == {
        *("RemoteLookupError", "UnsafeResult", "WorkerDied", "Unsendable", "CallTimeout", "TooSlowError", "HostLost")
    }
    for error in errors:
        assert shown_by(error) == set(), error


async def test_errors_of_connecting_do_not_show_what_was_sent(sudo: trickle.Sudo) -> None:
    """Not even where a terminal or a program sends all of it back, or says what it does not understand."""
    wrong = dataclasses.replace(sudo, user="nosuchuser")
    echo = trickle.Command(["sh", "-c", "exec cat"], name="web1")
    on_stderr = trickle.Command(["sh", "-c", "cat >&2"], name="web1")
    lines = trickle.Command(["sh", "-c", 'while read -r line; do echo "no: $line" >&2; done'], name="web1")
    words = trickle.Command(["sh", "-c", "head -c 1000000 >/dev/null; echo nothing >&2; exit 1"], name="web1")

    for tunnel in (wrong, echo, on_stderr, lines, words):
        async with trickle.open_host(tunnel, wait=False, connect_timeout=5) as host:
            with pytest.raises(trickle.ConnectError) as caught:
                await host.options(env={"TOKEN": VALUE}).call(work.echo, ARGUMENT, key=ARGUMENT)
            assert shown_by(caught.value) == set(), caught.value
            assert found_in(repr(host.statistics())) == set()


async def test_a_host_that_is_lost_while_a_call_is_packed_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    send_modules_for = Link.send_modules_for

    async def send_late(link: Link, names: frozenset[str]) -> None:
        await link.answered.wait()  # it never is, but lost
        await send_modules_for(link, names)

    monkeypatch.setattr(Link, "send_modules_for", send_late)
    async with trickle.open_host(trickle.Command(["false"], name="web1"), wait=False) as host:
        with pytest.raises(trickle.ConnectError) as caught:
            await host.options(env={"TOKEN": VALUE}).call(work.echo, ARGUMENT)
        assert shown_by(caught.value) == set(), caught.value


async def test_options_that_are_refused_are_not_shown() -> None:
    errors = []

    with pytest.raises(ValueError, match="password") as caught:
        trickle.Sudo(password=f"{PASSWORD}\n")
    errors.append(caught.value)
    async with trickle.open_host(local(), wait=False) as host:
        with pytest.raises(ValueError, match="env: 'TOKEN'") as caught:
            host.options(env={"TOKEN": f"{VALUE}\0"})
        errors.append(caught.value)

    for error in errors:
        assert found_in("".join(traceback.format_exception(error))) == set()


def test_a_canary_is_found_where_it_is() -> None:
    child = subprocess.Popen(["sleep", "3600"], env={**os.environ, "TOKEN": VALUE})
    try:
        assert on_this_machine() == {VALUE}
    finally:
        child.kill()
        child.wait()
    assert found_in(base64.b64encode(f"some text, {ARGUMENT} and more".encode())) == {ARGUMENT}
    assert shown_by(trickle.HostLost("x", stderr=RESULT)) == {RESULT}
