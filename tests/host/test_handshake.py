"""What is said before the first frame, a byte at a time: prompts are answered once, and nothing else is believed."""

import base64
import re
import shlex
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trickle
from trickle import _boot, _handshake
from trickle._handshake import KEPT_NOISE, SKIPPED_NOISE, Handshake
from trickle._wire.frames import Item, WireError, encode

PASSWORD = "correct horse"
OTHER = "battery staple"


def of_sudo() -> tuple[Handshake, bytes, bytes]:
    """A handshake with one sudo on its way, what that asks, and what is said behind it."""
    tunnel = trickle.Sudo(password=PASSWORD)
    handshake = Handshake(tunnel)
    return handshake, prompt_of(tunnel, handshake), 2 * handshake.nonce.encode()


def prompt_of(tunnel: trickle.abc.Tunnel, handshake: Handshake) -> bytes:
    (prompt,) = tunnel.answers(handshake.nonce)
    return prompt.encode()


def in_bytes(data: bytes) -> Iterable[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def test_a_prompt_is_answered_when_all_of_it_has_come() -> None:
    handshake, prompt, _ = of_sudo()

    for byte in in_bytes(prompt):
        assert handshake.answers() == b""
        handshake.receive_stderr(byte)

    assert handshake.answers() == PASSWORD.encode() + b"\n"
    assert handshake.answers() == b""


def test_a_prompt_is_answered_wherever_it_was_cut() -> None:
    for cut in range(len(of_sudo()[1])):
        handshake, prompt, _ = of_sudo()

        handshake.receive_stderr(b"Welcome\n" + prompt[:cut])
        handshake.receive_stderr(prompt[cut:])

        assert handshake.answers() == PASSWORD.encode() + b"\n"
        assert handshake.stderr == b"Welcome\n"


@pytest.mark.parametrize("before", [b"A lecture.\r\n", b"A lecture without a line end ", b"x" * 3 * KEPT_NOISE])
def test_what_comes_before_a_prompt_does_not_hide_it(before: bytes) -> None:
    for cut in range(1, 100):
        handshake, prompt, _ = of_sudo()
        said = before + prompt

        handshake.receive_stderr(said[:-cut])
        handshake.receive_stderr(said[-cut:])

        assert handshake.answers() == PASSWORD.encode() + b"\n"
        assert prompt not in handshake.stderr


def test_a_prompt_that_comes_again_is_not_answered() -> None:
    handshake, prompt, _ = of_sudo()
    handshake.receive_stderr(prompt)
    assert handshake.answers() and not handshake.refused

    handshake.receive_stderr(b"Sorry, try again.\n" + prompt)

    assert handshake.refused
    assert handshake.answers() == b""
    assert handshake.stderr == b"Sorry, try again.\n"


def test_two_prompts_in_one_read_are_answered_once() -> None:
    handshake, prompt, _ = of_sudo()

    handshake.receive_stderr(prompt + prompt)

    assert handshake.refused
    assert handshake.answers() == PASSWORD.encode() + b"\n"


@pytest.mark.parametrize("form", ["+ {}\n", "{}\n", "debug1: Sending command: {}\r\n", "\r{}"])
def test_a_command_line_that_is_printed_gets_no_password(form: str) -> None:
    tunnel = trickle.Sudo(password=PASSWORD, via=trickle.SSH("web1"))
    handshake = Handshake(tunnel)
    words = handshake.command(tunnel.wrap(["python3"]))

    for text in (shlex.join(words), " ".join(words), words[-1]):
        for byte in in_bytes(form.format(text).encode()):
            handshake.receive_stderr(byte)
            handshake.receive(byte)

    assert handshake.answers() == b""
    assert not handshake.may_boot


def test_another_prompt_gets_no_password() -> None:
    handshake, prompt, _ = of_sudo()
    other = Handshake(trickle.Sudo(password=PASSWORD))

    for text in (b"[sudo] password for me: ", b"Password:", prompt_of(trickle.Sudo(password="x"), other), prompt[:-1]):
        handshake.receive_stderr(text + b"\n")

    assert handshake.answers() == b""


def test_a_finished_line_is_no_prompt() -> None:
    handshake, prompt, _ = of_sudo()

    handshake.receive_stderr(b"sudo is asked to print " + prompt + b" there\n")

    assert handshake.answers() == b""


def test_the_agent_is_sent_only_when_what_is_behind_the_prompt_has_spoken() -> None:
    handshake, prompt, ready = of_sudo()
    handshake.receive_stderr(prompt)
    handshake.answers()

    for byte in in_bytes(b"Last login: today\n" + ready):
        assert not handshake.may_boot
        handshake.receive(byte)

    assert handshake.may_boot
    assert handshake.stage == "waiting for the agent"


def test_a_sudo_that_does_not_ask_is_not_answered() -> None:
    handshake, _, ready = of_sudo()

    handshake.receive(ready + b"\n")

    assert handshake.may_boot
    assert handshake.answers() == b""


def test_each_sudo_on_the_way_has_a_prompt_and_a_password_of_its_own() -> None:
    first = trickle.Sudo(password=PASSWORD)
    second = trickle.Sudo(password=OTHER, via=first)
    handshake = Handshake(second)
    ready = 2 * handshake.nonce.encode() + b"\n"

    handshake.receive_stderr(prompt_of(first, handshake))
    assert handshake.answers() == PASSWORD.encode() + b"\n"
    handshake.receive(ready)
    assert not handshake.may_boot
    handshake.receive_stderr(prompt_of(second, handshake))
    assert handshake.answers() == OTHER.encode() + b"\n"
    handshake.receive(ready)

    assert handshake.may_boot
    assert not handshake.refused


def test_the_stage_says_what_is_waited_for() -> None:
    handshake, prompt, ready = of_sudo()
    stages = [handshake.stage]
    handshake.started()
    stages.append(handshake.stage)
    handshake.receive_stderr(prompt)
    stages.append(handshake.stage)
    handshake.receive(ready)
    stages.append(handshake.stage)

    assert stages == [
        "starting the tunnel",
        "waiting to be asked for a password",
        "waiting for the password to be taken",
        "waiting for the agent",
    ]


def test_what_comes_behind_the_marker_is_the_agents() -> None:
    handshake = Handshake(trickle.Local())
    marker = handshake.nonce[::-1].encode()
    received = b""

    for byte in in_bytes(b"Welcome!\n" + marker + b"frames"):
        received += handshake.receive(byte)

    assert received == b"frames"
    assert handshake.noise == b"Welcome!\n"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 80))))
def test_a_whole_conversation_is_understood_however_it_is_cut(cuts: list[tuple[bool, int]]) -> None:
    handshake, prompt, ready = of_sudo()
    stdout = b"noise\n" + ready + b"\nmore noise\n" + handshake.nonce[::-1].encode() + b"frames"
    stderr = b"a banner\n" + prompt + b"a warning\n"
    received, sent = b"", b""

    for on_stderr, size in [*cuts, (True, 1000), (False, 1000)]:
        if on_stderr:
            handshake.receive_stderr(stderr[:size])
            stderr = stderr[size:]
        else:
            received += handshake.receive(stdout[:size])
            stdout = stdout[size:]
        sent += handshake.answers()
    handshake.end_of_stderr()

    assert received == b"frames"
    # The agent may have spoken first: then there is nobody left to ask.
    assert sent in (PASSWORD.encode() + b"\n", b"")
    assert handshake.may_boot and handshake.marked and not handshake.refused


@pytest.mark.parametrize(
    ("said", "misread"),
    [
        (b"exit 86\r\nraise SystemExit(86)\r\n", "echo"),
        (b">>> exit 86\n>>> raise SystemExit(86)\n", "echo"),
        (b"router>exit 86\r\n% Unknown command or computer name\r\n", "router"),
        (b"% Invalid input detected at '^' marker.\r\n", "router"),
        (b"switch# % Unrecognized command\r\n", "router"),
    ],
)
def test_a_wrong_reader_is_recognised_by_what_it_says_on_stdout(said: bytes, misread: str) -> None:
    handshake = Handshake(trickle.Local())

    for byte in in_bytes(said):
        handshake.receive(byte)

    assert handshake.misread == misread


CODE = b"".join(_boot.boot_pieces({})).split(b"\n")[3]


@pytest.mark.parametrize(
    "said",
    [
        b"bash: line 1: `raise SystemExit(86)'\n",
        b"    exit 86\n         ^^\n",
        b"zsh: command not found: " + CODE + b"\n",
        b"sh: 1: " + CODE[5000:] + b": File name too long\n",
    ],
)
def test_a_wrong_reader_is_recognised_by_what_it_says_on_stderr(said: bytes) -> None:
    handshake = Handshake(trickle.Local())
    handshake.boot({})

    for byte in in_bytes(said):
        handshake.receive_stderr(byte)

    assert handshake.misread == "commands"
    assert len(handshake.stderr) < 100  # no error message shows what was sent


def test_the_rest_of_what_a_wrong_reader_says_is_kept_and_takes_little_memory() -> None:
    handshake = Handshake(trickle.Local())
    handshake.receive(b"% Unknown ")

    for _ in range(2 * SKIPPED_NOISE // 65536):
        assert handshake.receive(bytes(65536)) == b""
    assert handshake.receive(b"command\n" + handshake.nonce[::-1].encode()) == b""

    assert handshake.noise.endswith(handshake.nonce[::-1].encode())
    assert len(handshake._noise) <= KEPT_NOISE
    assert not handshake.marked


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 20_000])
@pytest.mark.parametrize("secret", [b"hunter2", b"secret " * 10, b"secret " * 5000])
@pytest.mark.parametrize("behind", [0, KEPT_NOISE - 100, KEPT_NOISE - 40])
def test_what_is_sent_back_is_not_shown_however_it_is_cut(secret: bytes, size: int, behind: int) -> None:
    handshake = Handshake(trickle.Local())
    said = b"".join(handshake.boot({})) + handshake.outgoing(encode(Item(1, 0, 0, secret)))
    said = _handshake.GUARD_WORDS[-1] + said + b"\n" + b"-" * behind

    for start in range(0, len(said), size):
        handshake.receive(said[start : start + size])

    assert handshake.misread == "echo"
    shown = re.findall(rb"[A-Za-z0-9+/=]{12,}", handshake.noise)
    coded = base64.b64encode(encode(Item(1, 0, 0, secret)))
    assert not [each for each in shown if each in coded]


@pytest.mark.parametrize(
    "said", [b">>> Authorized use only <<<\n", b"The disk is 99 % full\n", b"exit 8", b"exit 861", b"/x" * 100]
)
def test_a_banner_is_not_taken_for_a_wrong_reader(said: bytes) -> None:
    handshake = Handshake(trickle.Local())
    handshake.boot({})

    handshake.receive(said)
    handshake.receive_stderr(said + b"\n")

    assert handshake.misread == ""


def test_nothing_that_could_be_obeyed_is_sent_before_the_agent_has_spoken() -> None:
    handshake = Handshake(trickle.Local())

    before = handshake.outgoing(b"\nrm -rf /\n") + handshake.outgoing(b"")
    handshake.receive(handshake.nonce[::-1].encode())
    after = [handshake.outgoing(b"\nrm -rf /\n"), handshake.outgoing(b"\n")]

    assert b"rm" not in before and b"\n" not in before
    assert after == [b"\n\nrm -rf /\n", b"\n"]


@pytest.mark.parametrize("line", [b"x" * 1000, b"x" * 1000 + b"\n", b"\n", b"trickle%" * 100, b"\0\xff\r"])
def test_what_a_hostile_host_says_takes_little_memory(line: bytes) -> None:
    handshake, prompt, _ = of_sudo()

    for _ in range(200 * KEPT_NOISE // 1000):
        handshake.receive_stderr(line + prompt[:-1])

    assert len(handshake.stderr) <= KEPT_NOISE
    assert len(handshake._line) <= KEPT_NOISE
    handshake.end_of_stderr()
    assert len(handshake.stderr) <= KEPT_NOISE
    assert handshake.answers() == b""


def test_a_host_that_prints_its_prompt_without_end_gets_one_answer() -> None:
    handshake, prompt, _ = of_sudo()

    for _ in range(1000):
        handshake.receive_stderr(prompt * 100)

    assert handshake.answers() == PASSWORD.encode() + b"\n"
    assert handshake.refused


def test_noise_on_stdout_has_a_bound() -> None:
    handshake = Handshake(trickle.Local())

    with pytest.raises(WireError):
        for _ in range(2 * SKIPPED_NOISE // 65536):
            handshake.receive(bytes(65536))


def test_prompts_are_not_longer_than_the_longest_sign() -> None:
    tunnel: trickle.abc.Tunnel = trickle.Sudo(password=PASSWORD)
    for _ in range(20):
        tunnel = trickle.Sudo(password=PASSWORD, via=tunnel)

    assert len(prompt_of(tunnel, Handshake(tunnel))) < _handshake.LONGEST_SIGN
