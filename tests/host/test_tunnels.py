"""Tunnels are pure data that build command lines; every login shell reads those alike."""

import ast
import dataclasses
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import trickle
from tests import fake_ssh, work
from tests.requirements import require
from trickle import _boot, _ssh_version, _tunnels
from trickle._check_tunnel import WORDS
from trickle.abc import join_words

TUNNELS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tunnels.md"
PYTHON_OF_IMAGE = "/usr/local/bin/python3"
SHELLS = ["sh", "dash", "bash", "zsh", "tcsh", "csh", "fish"]


def test_local_runs_the_command_itself() -> None:
    assert trickle.Local().wrap(["a", "b c"]) == ("a", "b c")


def test_ssh_hands_one_command_line_to_the_login_shell() -> None:
    words = trickle.SSH("web1", user="me", port=22, ssh_options=("-i", "key")).wrap(["echo", "a b", "it's"])

    assert words[0] == "ssh" and words[-2] == "web1"
    assert shlex.split(words[-1]) == ["echo", "a b", "it's"]
    assert words[words.index("-i") + 1] == "key"
    assert "-T" in words and "BatchMode=yes" in words and "ControlMaster=no" in words
    assert not any("StrictHostKeyChecking" in word for word in words)


def test_via_nests_command_lines() -> None:
    words = trickle.SSH("db1", via=trickle.SSH("bastion")).wrap(["echo", "a b"])

    assert words[-2] == "bastion"
    inner = shlex.split(words[-1])
    assert inner[0] == "ssh" and inner[-2] == "db1"
    assert shlex.split(inner[-1]) == ["echo", "a b"]


def test_command_puts_its_prefix_before_words_or_before_a_command_line() -> None:
    assert trickle.Command(["nsenter", "-a"], name="n").wrap(["echo", "a b"]) == ("nsenter", "-a", "echo", "a b")
    assert trickle.Command(["rsh", "h"], shell=True).wrap(["echo", "a b"]) == ("rsh", "h", "echo 'a b'")


def test_docker_has_the_words_of_its_options_before_the_image() -> None:
    image = "registry:5000/python@sha256:0123"
    tunnel = trickle.Docker("py", image=image, user="me", env={"A": "b c"}, run_options=("--network", "none"), rm=False)

    _, _, _, _, *words = tunnel.wrap(["python3", "-c", "x"])

    assert words[:2] == ["docker", image]
    assert words[-5:] == ["--entrypoint", "python3", image, "-c", "x"]
    assert words[-11:-5] == ["--user", "me", "--env", "A=b c", "--network", "none"]
    assert {"--interactive", "--init", "--log-driver=none"} < set(words)
    assert "--rm" not in words


def test_docker_exec_has_the_words_of_its_options_before_the_container() -> None:
    tunnel = trickle.DockerExec("web", engine="podman", user="0:0", env=[("A", "b c")])

    words = tunnel.wrap(["python3", "-c", "x"])

    assert words[:3] == ("podman", "exec", "--interactive")
    assert words[-8:] == ("--user", "0:0", "--env", "A=b c", "web", "python3", "-c", "x")


def test_containers_on_another_host_are_one_command_line_there() -> None:
    there = trickle.SSH("build1")

    for tunnel in (trickle.Docker("py", image="python"), trickle.DockerExec("web")):
        through = dataclasses.replace(tunnel, via=there)
        assert tuple(shlex.split(through.wrap(["python3"])[-1])) == tunnel.wrap(["python3"])
    fresh = trickle.Docker("py", image="python")
    assert tuple(shlex.split(dataclasses.replace(fresh, via=there).leftovers()[-1])) == fresh.leftovers()


def test_names_have_sensible_defaults() -> None:
    assert trickle.Local().name == "localhost"
    assert trickle.SSH("web1").name == "web1"
    assert trickle.SSH("web1", user="me").name == "me@web1"
    assert trickle.Command(["/usr/bin/kubectl", "exec"]).name == "kubectl"
    assert trickle.SSH("web1", name="front").name == "front"
    assert trickle.Docker("py", image="python").name == "py"
    assert trickle.DockerExec("web").name == "web"


def test_tunnels_are_frozen_hashable_data_that_can_be_pickled() -> None:
    tunnels = [trickle.Local(), trickle.SSH("a", via=trickle.SSH("b")), trickle.Command(["x", "y"])]
    tunnels += [trickle.Docker("py", image="python", env={"A": "b"}), trickle.DockerExec("web")]

    assert len({*tunnels, *tunnels}) == 5
    assert pickle.loads(pickle.dumps(tunnels)) == tunnels
    with pytest.raises(dataclasses.FrozenInstanceError):
        tunnels[0].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "make",
    [
        lambda: trickle.SSH("-oProxyCommand=evil"),
        lambda: trickle.SSH("a b"),
        lambda: trickle.SSH("a;b"),
        lambda: trickle.SSH(""),
        lambda: trickle.SSH("a", user="x y"),
        lambda: trickle.SSH("a", user="-x"),
        lambda: trickle.SSH("a", port=0),
        lambda: trickle.SSH("a", ssh_options="-v"),  # type: ignore[arg-type]
        lambda: trickle.SSH("a", ssh_options=("-o", "X=$HOME"), via=trickle.SSH("b")),
        lambda: trickle.SSH("a", python="/usr/bin/my python"),
        lambda: trickle.SSH("a", trust="some"),  # type: ignore[arg-type]
        lambda: trickle.Local("a\nb"),
        lambda: trickle.Local(via=trickle.SSH("b")),
        lambda: trickle.Command("kubectl exec"),
        lambda: trickle.Command([]),
        lambda: trickle.Docker("py", image="--privileged"),
        lambda: trickle.Docker("py", image="a;b"),
        lambda: trickle.Docker("py", image="python", engine="podman --remote"),
        lambda: trickle.Docker("py", image="python", run_options="--privileged"),  # type: ignore[arg-type]
        lambda: trickle.Docker("py", image="python", env={"A=B": "c"}),
        lambda: trickle.Docker("py", image="python", env={"A": 1}),  # type: ignore[dict-item]
        lambda: trickle.DockerExec("--help"),
        lambda: trickle.DockerExec("web", user="a b"),
    ],
)
def test_what_cannot_be_passed_on_safely_is_refused(make: object) -> None:
    with pytest.raises(ValueError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("word", ["a\\b", "a!b", "a\nb", "a\0b"])
def test_words_that_no_quoting_carries_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="login shell"):
        join_words(["echo", word])


@pytest.mark.parametrize("name", SHELLS)
async def test_every_login_shell_reads_the_command_line_alike(name: str) -> None:
    shell = shutil.which(name)
    if shell is None:
        require("shells", f"no {name} on this machine")
    inner = trickle.Command([shell, "-c"], name=name, shell=True)

    async with trickle.open_host(inner) as once:
        result = await once.call(work.add, 1, 2)
    async with trickle.open_host(trickle.Command([shell, "-c"], name=name, shell=True, via=inner)) as twice:
        again = await twice.call(work.add, 1, 2)

    assert (result, again) == (3, 3)


@pytest.mark.parametrize("name", SHELLS)
def test_every_login_shell_reads_all_words_as_they_are(name: str) -> None:
    shell = shutil.which(name)
    if shell is None:
        require("shells", f"no {name} on this machine")
    tell = [sys.executable, "-c", "import sys; print(sys.argv[1:])", *WORDS]

    once = subprocess.run([shell, "-c", join_words(tell)], capture_output=True, text=True)
    twice = subprocess.run([shell, "-c", join_words([shell, "-c", join_words(tell)])], capture_output=True, text=True)

    assert ast.literal_eval(once.stdout) == list(WORDS), once.stderr
    assert ast.literal_eval(twice.stdout) == list(WORDS), twice.stderr


async def test_ssh_through_another_tunnel_runs_over_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh.install(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    bastion = trickle.Command(["sh", "-c"], name="bastion", shell=True)

    async with trickle.open_host(trickle.SSH("db1", via=bastion)) as host:
        assert await host.call(work.add, 1, 2) == 3

    assert host.name == "db1"


def test_the_documented_command_lines_are_the_real_ones() -> None:
    page = TUNNELS_PAGE.read_text()
    python = "/usr/bin/python3"

    for tunnel in (
        trickle.Local(),
        trickle.SSH("web1", user="deploy", port=2222),
        trickle.Sudo(),
        trickle.Sudo(password="secret"),
        trickle.SSH("db1", via=trickle.SSH("bastion")),
    ):
        assert f"\n{shlex.join(tunnel.wrap(_boot.python_command(python)))}\n" in page
    container = trickle.DockerExec("web", user="nobody", python=PYTHON_OF_IMAGE)
    assert shlex.join(container.wrap(_boot.python_command(PYTHON_OF_IMAGE))) in page
    fresh = trickle.Docker("py", image="python:3.12-slim", user="1000", env={"LANG": "C.UTF-8"}, python=PYTHON_OF_IMAGE)
    assert shlex.join(fresh.wrap(_boot.python_command(PYTHON_OF_IMAGE))[3:]) in page
    assert shlex.join(fresh.leftovers()[3:]) in page
    assert shlex.join(dataclasses.replace(fresh, rm=False).leftovers()[4:]) in page
    for script in (_boot.FIND_PYTHON, _tunnels.RUN, _tunnels.LEFTOVERS):
        assert script.replace(" ", "") in page.replace("\n", "").replace(" ", "")


def test_options_that_an_old_ssh_does_not_know_are_left_out() -> None:
    words = trickle.SSH("web1").wrap(["true"])

    left = _ssh_version.leave_out(words, {"StdinNull", "ForkAfterAuthentication"})

    assert [word for word in words if word not in left] == ["StdinNull=no", "ForkAfterAuthentication=no"]
    assert left.count("-o") == words.count("-o") - 2


def test_an_old_ssh_on_a_bastion_is_told_to_ignore_what_it_does_not_know() -> None:
    inner = shlex.split(trickle.SSH("db1", via=trickle.SSH("bastion")).wrap(["true"])[-1])

    assert inner[:3] == ["ssh", "-o", "IgnoreUnknown=*"]  # it holds for what comes after it
    assert "IgnoreUnknown=*" not in trickle.SSH("bastion").wrap(["true"])


def test_a_tunnel_of_ones_own_is_a_frozen_dataclass() -> None:
    @dataclasses.dataclass(frozen=True)
    class Machine(trickle.abc.Tunnel):
        machine: str

        def default_name(self) -> str:
            return self.machine

        def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
            return ("machinectl", "shell", self.machine, *argv)

    machine = Machine("web", python="/usr/bin/python3")

    assert machine.name == "web"
    assert machine.wrap(["true"]) == ("machinectl", "shell", "web", "true")
