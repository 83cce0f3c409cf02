"""The contract that every tunnel keeps, and the check that says what is broken of it.

trickle.testing publishes it.  What goes on at the far end is asked of the far end, through calls; to start a tunnel's
process and to end it is _tunnel_process.py's job, as ever.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import pickle
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import trio
import trio.testing

from trickle._boot import python_command
from trickle._cleanup import remove_leftovers
from trickle._exceptions import ConnectError, HostLost
from trickle._handshake import Handshake, chain, starts_new_session
from trickle._host import Host
from trickle._host_core import open_core
from trickle._settings import CallOptions, OpenSettings, OutputLine
from trickle._tunnel_process import StartTunnel, TunnelProcess, end_process, start_tunnel
from trickle._tunnels import Local
from trickle._wire.frames import WireError
from trickle.abc import NONCE, Tunnel

PATIENCE = 30.0  # seconds in which something must go on: less than an agent lives that was left alone
LOOK_AGAIN = 0.05  # seconds
MOST_STEPS = 10  # of connecting, at which it is cancelled

logger = logging.getLogger("trickle")


async def check_tunnel(make_tunnel: Callable[[], Tunnel]) -> None:
    """Nothing, if the tunnel keeps all of the contract: for those that you write yourself, in your tests.

    It connects about fifteen times, which takes as many seconds with most tunnels; what makes no progress for 30 s is
    broken.  The host must be there, and have a Python and what ``wrap`` needs.

    - The tunnel is data: frozen, hashable, equal to another one made alike, picklable; it has a name, ``wrap`` is
      pure, ``via=`` composes or is refused with ValueError, and no secret is in its repr or its command.
    - The words of a command arrive as they are: empty ones, and those with spaces, quotes, ``$`` or ``*``; but not
      those with backslashes, ``!`` or line ends, which are never sent.
    - stdin and stdout carry all bytes in both directions at once, and each at once; nothing else is on stdout once the
      command has begun.  stderr arrives, apart from that.
    - The end of stdin reaches the command.  Its exit status is the tunnel's, which ends when the command does.
    - Two connections work beside each other.  A cancelled call stops, with what it has started.
    - Nothing is left at either end when a connection is closed, when the tunnel's process is killed, and when
      connecting is cancelled at any step.  What is found left is named, and ended.  (Where neither a second connection
      nor the place that the tunnel starts from can see the far end's processes, there is a warning in the log.)
    - After all that the host can be reached again.

    Args:
      make_tunnel: makes the tunnel, alike each time that it is called.

    Raises:
      AssertionError: it says what is broken, and what to try.
      RuntimeError: this trio runs by a mock clock, which does not wait for processes.
    """
    if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
        raise RuntimeError("check_tunnel() takes real time: it cannot be run by a MockClock")
    tunnel = _check_data(make_tunnel)
    await _check_words(tunnel)
    await _check_end_of_stdin(tunnel)
    await _check_bytes(tunnel)
    await _check_connections(tunnel)


def _broken(tunnel: Tunnel, what: str, advice: str) -> AssertionError:
    return AssertionError(f"{tunnel.name}: {what}; {advice}")


# ---- the tunnel as data


def _check_data(make_tunnel: Callable[[], Tunnel]) -> Tunnel:
    tunnel, alike = make_tunnel(), make_tunnel()
    if not isinstance(tunnel, Tunnel):
        raise AssertionError(f"make_tunnel() gave {tunnel!r}, which is no tunnel; derive its class from abc.Tunnel")
    if not isinstance(tunnel.name, str) or not tunnel.name or not tunnel.name.isprintable():
        raise _broken(tunnel, f"its name is {tunnel.name!r}", "its __post_init__ is to call super().__post_init__()")
    _check_frozen(tunnel)
    try:
        alike_in_hash = hash(tunnel) == hash(alike)
    except TypeError as exc:
        raise _broken(tunnel, f"it cannot be hashed ({exc})", "have tuples in its fields, not lists or dicts") from exc
    if tunnel != alike or not alike_in_hash:
        raise _broken(
            tunnel,
            f"two that were made alike are not equal ({tunnel!r} and {alike!r})",
            "leave == and hash() to @dataclass(frozen=True), and make no field anew for each",
        )
    try:
        copy = pickle.loads(pickle.dumps(tunnel))
    except Exception as exc:
        advice = "define its class at the top level of a module, and have plain data in its fields"
        raise _broken(tunnel, f"it cannot be pickled ({exc})", advice) from exc
    if copy != tunnel:
        raise _broken(tunnel, "pickled and read back it is another one", "leave pickling to @dataclass")
    _check_wrap(tunnel, alike)
    _check_secrets(tunnel)
    _check_via(tunnel)
    return tunnel


def _check_frozen(tunnel: Tunnel) -> None:
    fields = {field.name for field in dataclasses.fields(tunnel)}
    if stray := sorted(vars(tunnel).keys() - fields):
        advice = "decorate its class with @dataclass(frozen=True), and declare them there"
        raise _broken(tunnel, f"it has attributes that are no fields ({', '.join(stray)})", advice)
    for name in sorted(fields):
        with contextlib.suppress(AttributeError):  # FrozenInstanceError is one
            setattr(tunnel, name, getattr(tunnel, name))
            raise _broken(tunnel, f"it can be changed ({name} was)", "decorate its class with @dataclass(frozen=True)")


def _check_wrap(tunnel: Tunnel, alike: Tunnel) -> None:
    argv = ("echo", "two words", "")
    given = list(argv)
    try:
        results = [tunnel.wrap(given), tunnel.wrap(argv), alike.wrap(list(argv))]
    except Exception as exc:
        raise _broken(tunnel, f"wrap({argv}) raised {exc!r}", "it takes any words, as a list or a tuple") from exc
    words = results[0]
    if not isinstance(words, tuple) or not words or not all(isinstance(word, str) for word in words):
        raise _broken(tunnel, f"wrap() gave {words!r}", "it returns a tuple of words, each a str")
    if any(result != words for result in results) or tunnel.leftovers() != alike.leftovers():
        advice = "build the words of the fields alone; what must be new for each connection is abc.NONCE"
        raise _broken(tunnel, "wrap() or leftovers() gave other words the second time", advice)
    if given != list(argv) or tunnel != alike:
        raise _broken(tunnel, "wrap() has changed its argument or the tunnel", "have it build new words, and no more")


def _check_secrets(tunnel: Tunnel) -> None:
    nonce = secrets.token_hex(16)
    shown = [word.replace(NONCE, nonce) for word in (*tunnel.wrap(["true"]), *(tunnel.leftovers() or ()))]
    for each in chain(tunnel):
        for prompt, secret in each.answers(nonce).items():
            for place, text in (("repr", repr(tunnel)), ("name", str(tunnel.name)), ("command", "\n".join(shown))):
                if secret in text:
                    advice = "give its field repr=False, and let it be asked for: see abc.Tunnel.answers"
                    raise _broken(tunnel, f"there is a secret in its {place}", advice)
            if any(prompt in word for word in shown):
                advice = "have the command put it together, so that what just prints the command is not answered"
                raise _broken(tunnel, f"the prompt {prompt!r} stands in its command", advice)


@dataclasses.dataclass(frozen=True)
class _Prefix(Tunnel):
    """Stands for any other tunnel."""

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return ("prefix", *argv)


def _check_via(tunnel: Tunnel) -> None:
    try:
        alone = dataclasses.replace(tunnel, via=None)
        behind = dataclasses.replace(tunnel, via=_Prefix())
    except ValueError:
        return  # it is reached through nothing, or not through this one
    pairs = [(alone.wrap(["true"]), behind.wrap(["true"])), (alone.leftovers() or (), behind.leftovers() or ())]
    for words, through in pairs:
        if words and through[:1] != ("prefix",):  # the rest may differ: what ssh is told, say
            what = f"via= does not compose: what runs through 'prefix' is {through!r}"
            raise _broken(tunnel, what, "give the words to self.through(words)")


# ---- commands without an agent

# Said first, so that a banner before it, and an echo of the command, are not taken for it: see Handshake.
BEGIN = f'import os,sys;o=sys.stdout.buffer;o.write("{NONCE}"[::-1].encode());o.flush();'


class _Command:
    """A command that is run through a tunnel.

    Attributes:
      begun: whether it has said so.
      output: what came on stdout after that.
      stderr: the last of what came there.
      status: the exit status of the tunnel's process; None if that had to be ended.
    """

    def __init__(self, tunnel: Tunnel) -> None:
        self.begun = False
        self.output = bytearray()
        self.stderr = ""
        self.status: int | None = None
        self._tunnel = tunnel
        self._attempt = Handshake(tunnel)
        self._scope = trio.CancelScope()
        self._came = trio.Event()
        self._stderr_ended = trio.Event()

    async def run(self, argv: Sequence[str], says: Sequence[tuple[bytes, int]] = (), *, then_eof: bool = True) -> None:
        """Run *argv*, until it ends or makes no progress any more.

        Args:
          argv: the words.
          says: what to send to it, and how much output to wait for after each.
          then_eof: whether stdin is closed at the end of that.
        """
        words = self._attempt.command(self._tunnel.wrap(argv))
        try:
            process = await start_tunnel(words, new_session=starts_new_session(self._tunnel))
        except OSError as exc:
            raise _broken(self._tunnel, f"cannot run {words[0]!r} ({exc})", "is it installed on this machine?") from exc
        try:
            with self._scope:
                self._progress()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._talk, process, says, then_eof)
                    nursery.start_soon(self._listen_to_stderr, process)
                    await self._listen(process)
                    status = await process.wait()
                    with trio.move_on_after(1):  # unless something still holds it, such as a ControlMaster
                        await self._stderr_ended.wait()
                    self.status = status
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # each step of it is bounded
                await end_process(process, 1)
                await trio.aclose_forcefully(process.stdout)
                await trio.aclose_forcefully(process.stderr)
                if self._attempt.prepared:
                    await remove_leftovers(self._tunnel, self._attempt.nonce, start_tunnel)
        self.begun = self._attempt.marked
        self.stderr = self._attempt.stderr.decode("utf-8", "replace")
        if self._attempt.refused:
            raise _broken(self._tunnel, "it asks twice for a secret", "check the secret: the first answer was wrong")
        if self.status == 0 and not self._attempt.may_boot:
            advice = "with answers(), wrap() runs announced(argv) behind what asks"
            raise _broken(self._tunnel, "it does not say when nobody asks for a secret any more", advice)

    @property
    def end(self) -> str:
        """How it ended, in words."""
        how = f"it ended with status {self.status}" if self.status is not None else "it did not end"
        said = " / ".join(self.stderr.strip().splitlines()[-3:])
        return f"{how}, and said on stderr: {said}" if said else how

    async def _talk(self, process: TunnelProcess, says: Sequence[tuple[bytes, int]], then_eof: bool) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # it has ended: the one who listens sees that too
            while not self._attempt.may_boot:
                if answers := self._attempt.answers():
                    await process.stdin.send_all(answers)
                else:
                    await self._something()
            for data, replies in says:
                for start in range(0, len(data), CHUNK):
                    await process.stdin.send_all(data[start : start + CHUNK])
                    self._progress()
                while len(self.output) < replies:
                    await self._something()
            if then_eof:
                await process.stdin.aclose()

    async def _listen(self, process: TunnelProcess) -> None:
        with contextlib.suppress(trio.BrokenResourceError, WireError):  # more noise than a banner: it has not begun
            async for data in process.stdout:
                self.output += self._attempt.receive(bytes(data))
                self._progress()
                if len(self.output) > MOST_OUTPUT:
                    return

    async def _listen_to_stderr(self, process: TunnelProcess) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in process.stderr:
                was_preparing = self._attempt.preparing
                self._attempt.receive_stderr(bytes(data))
                self._came.set()
                if self._attempt.refused:
                    self._scope.cancel()
                elif self._attempt.preparing != was_preparing:
                    self._progress()
        self._attempt.end_of_stderr()
        self._stderr_ended.set()

    async def _something(self) -> None:
        self._came = trio.Event()
        await self._came.wait()

    def _progress(self) -> None:
        self._came.set()
        self._scope.deadline = math.inf if self._attempt.preparing else trio.current_time() + PATIENCE


CHUNK = 64 * 1024  # bytes
MOST_OUTPUT = 16 * 2**20  # bytes: more than any command here writes

# Words that shells, and careless tunnels, make something else of.
WORDS = (
    *("", "plain", "two words", " ", "'", '"', "it's", 'a "b" c', "$HOME", "${HOME}", "`id`", "$(id)", "*", "?"),
    *("{a,b}", "~", "~root", "#", "a#b", ";", "&", "&&", "|", "<", ">", "(", ")", "^", "%", "%self", "=", "=sh", "a=b"),
    *("[a-z]", "-n", "--", "--help", "@", "+", ",", ":", "", "the last"),
)  # fmt: skip
# What they were, and whether stdin and stdout are terminals; then something on stderr, and something behind it.
TELL_WORDS = (
    'o.write(b"%d%d " % tuple(map(os.isatty,(0,1))));o.write(".".join(os.fsencode(w).hex() for w in sys.argv[1:])'
    '.encode());o.flush();os.write(2,b"on stderr: %d" % (6*7));o.write(b" the end");o.flush();sys.exit(7)'
)
ON_STDERR = b"on stderr: 42"


async def _check_words(tunnel: Tunnel) -> None:
    plain = _Command(tunnel)
    await plain.run((tunnel.python, "-V") if tunnel.python is not None else ("sh", "-c", "true"))
    if plain.status != 0:
        advice = f"see what comes of {' '.join(tunnel.wrap(('...',)))!r}"
        raise _broken(tunnel, f"a plain command does not run through it: {plain.end}", advice)
    told = _Command(tunnel)
    await told.run(python_command(tunnel.python, BEGIN + TELL_WORDS, WORDS), then_eof=False)
    _check_what_was_told(tunnel, told)
    if told.status is None:
        advice = "see what still waits for the end of stdin, which was open, or keeps stdout open"
        raise _broken(tunnel, "it does not end when its command has ended", advice)
    if told.status != 7:
        advice = "hand on what the command ended with (a shell does, when the command is its last, or with exec)"
        raise _broken(tunnel, f"the exit status of its command is lost: it was 7, and became {told.status}", advice)
    if ON_STDERR not in told.stderr.encode():
        advice = "connect stderr too, apart from stdout: it says why a connection fails"
        raise _broken(tunnel, "what its command says on stderr does not arrive", advice)


def _check_what_was_told(tunnel: Tunnel, told: _Command) -> None:
    quoting = "pass each word on as it is; where the far side has a shell read them, as join_words(argv)"
    if not told.begun and (not told.status or ON_STDERR in told.stderr.encode()):
        raise _broken(tunnel, f"nothing comes from stdout: {told.end}", "connect stdin, stdout and stderr")
    if not told.begun:
        what = "a plain command runs through it, but none with words that are empty or need quotes"
        raise _broken(tunnel, f"{what}: {told.end}", quoting)
    if bytes(told.output[:2]) in (b"01", b"10", b"11"):
        raise _broken(tunnel, "stdin or stdout is a terminal over there", "leave out what asks for one, such as -t")
    if ON_STDERR in told.output:
        raise _broken(tunnel, "stderr is mixed into stdout", "leave out what joins them: 2>&1, or a terminal (-t)")
    said = re.fullmatch(rb"00 ([0-9a-f.]*) the end", told.output)
    if said is None:
        what = f"something else is on stdout with what its command writes: {bytes(told.output[-100:])!r}"
        raise _broken(tunnel, what, "have the tunnel itself say nothing there, once its command has begun")
    words = [bytes.fromhex(word).decode("utf-8", "replace") for word in said[1].decode().split(".")]
    for sent, came in itertools.zip_longest(WORDS, words):
        if sent != came:
            what = f"the words of a command are changed: {len(words)} of {len(WORDS)} came, the first that differs is"
            raise _broken(tunnel, f"{what} {came!r}, and was {sent!r}", quoting)


async def _check_end_of_stdin(tunnel: Tunnel) -> None:
    code = 'o.write(2*os.read(0,1));o.flush();o.write(b"%d" % len(sys.stdin.buffer.read()))'
    command = _Command(tunnel)
    await command.run(python_command(tunnel.python, BEGIN + code), [(b"x", 2), (b"yz", 0)])
    if command.output == b"xx2" and command.status == 0:
        return
    if not command.output:
        advice = "find what holds it back until there are more, or takes it (a start-up file that reads?)"
        raise _broken(tunnel, f"a single byte on stdin is not answered on stdout: {command.end}", advice)
    if command.output == b"xx":
        advice = "find what holds the other end of the command's stdin, or replaces it: it has to close it"
        raise _broken(tunnel, f"the end of stdin does not reach the command: {command.end}", advice)
    raise _broken(
        tunnel,
        f"b'xx2' was to come from stdout, and {bytes(command.output)!r} came: {command.end}",
        "stdin and stdout are to carry bytes as they are",
    )


BLOCKS = 16000  # of 272 bytes: 4.2 MiB, more than what pipes and ssh swallow
# All bytes, and what ends sessions at terminals (ssh's ~., docker's ^P^Q, ^D); numbers tell what is lost or doubled.
PATTERN = f'b"".join(bytes(range(256))+bytes((13,10,126,46,13,10,4,3))+b"%07d;" % i for i in range({BLOCKS}))'
COMPARE = (
    f"p={PATTERN};o.write(p);o.flush();g=sys.stdin.buffer.read();n=min(len(g),len(p));"
    "d=n if g[:n]==p[:n] else next(i for i in range(n) if g[i]-p[i]);"
    'o.write(("%d %d %s" % (len(g),d,g[d:d+16].hex())).encode())'
)


async def _check_bytes(tunnel: Tunnel) -> None:
    block = bytes(range(256)) + b"\r\n~.\r\n\x04\x03"
    pattern = b"".join(block + b"%07d;" % number for number in range(BLOCKS))
    command = _Command(tunnel)
    await command.run(python_command(tunnel.python, BEGIN + COMPARE), [(pattern, 0)])
    came, told = bytes(command.output[: len(pattern)]), bytes(command.output[len(pattern) :])
    clean = "stdin and stdout are to carry bytes as they are: no terminal (-t), no filter, nothing said in between"
    if came != pattern[: len(came)]:
        at = next(at for at, (one, other) in enumerate(zip(pattern, came, strict=False)) if one != other)
        what = f"from byte {at} on, {came[at : at + 16]!r} came instead of {pattern[at : at + 16]!r}"
        raise _broken(tunnel, f"stdout is not what its command wrote: {what}", clean)
    if command.status is None or len(came) < len(pattern):
        what = f"after {len(came)} bytes of {len(pattern)} nothing came any more, with as many on their way there"
        advice = "find what stops reading in one direction while it cannot write in the other"
        raise _broken(tunnel, f"{what}: {command.end}", advice)
    said = re.fullmatch(rb"(\d+) (\d+) ([0-9a-f]*)", told)
    if said is None:
        raise _broken(tunnel, f"something else is on stdout behind what its command wrote: {told[-100:]!r}", clean)
    count, at, there = int(said[1]), int(said[2]), bytes.fromhex(said[3].decode())
    if (count, at) != (len(pattern), len(pattern)):
        what = f"stdin is not what was sent: {count} bytes of {len(pattern)} came"
        raise _broken(tunnel, f"{what}; from byte {at} on, {there!r} came instead of {pattern[at : at + 16]!r}", clean)


# ---- connections


def _far_functions() -> tuple[Callable[[str], list[tuple[int, str]]], Callable[[str], None]]:
    """What runs over there.  It is defined in here so that it goes there by value: over there, trickle is another."""

    def processes(word: str) -> "list[tuple[int, str]]":
        """Number and command line of each process that has *word* in it; zombies have none."""
        import os
        import subprocess

        found = []
        if os.path.isdir("/proc/self"):  # noqa: PTH112
            for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
                try:
                    with open("/proc/%s/cmdline" % name, "rb") as file:  # noqa: PTH123, UP031
                        found.append((int(name), file.read().replace(b"\0", b" ").decode("utf-8", "replace")))
                except OSError:
                    pass  # gone meanwhile
        else:
            for line in subprocess.check_output(["ps", "-axww", "-o", "pid=,args="]).decode().splitlines():
                pid, _, command = line.strip().partition(" ")
                found.append((int(pid), command))
        return [(pid, command) for pid, command in found if word in command]

    def linger(word: str) -> None:
        """Start a process that is found by *word*, say so, and stay."""
        import subprocess
        import sys
        import time

        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", word])
        print("started", flush=True)
        time.sleep(3600)

    return processes, linger


PROCESSES, LINGER = _far_functions()


@dataclasses.dataclass(frozen=True)
class _Marked(Tunnel):
    """Adds a word to a command, by which its processes are found."""

    word: str

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        return self.through((*argv, self.word))


def _new_word() -> str:
    return f"trickle-check-{secrets.token_hex(8)}"


@contextlib.asynccontextmanager
async def _open(
    tunnel: Tunnel,
    word: str,
    start: StartTunnel = start_tunnel,
    *,
    problem: str = "commands run through it, but no agent answers",
    advice: str = "see what is different for a process that stays",
) -> AsyncIterator[Host]:
    marked = _Marked(word, name=tunnel.name, python=tunnel.python, via=tunnel)
    settings = OpenSettings(connect_timeout=PATIENCE, lease=4 * PATIENCE)
    async with open_core(marked, settings, start) as core:
        host = Host(core, CallOptions())
        try:
            await host.wait_connected()
        except ConnectError as exc:
            raise _broken(tunnel, f"{problem}: {exc}", advice) from exc
        yield host


@contextlib.contextmanager
def _expecting(tunnel: Tunnel, what: str, advice: str) -> Iterator[None]:
    """The block is to go well, and to take no longer than PATIENCE."""
    try:
        with trio.fail_after(PATIENCE):
            yield
    except (HostLost, trio.TooSlowError) as exc:
        raise _broken(tunnel, f"{what} ({exc!r})", advice) from exc


class _Lookers:
    """Hosts that are asked what runs there: the one that is looked at, and the one that its tunnel starts from."""

    def __init__(self, tunnel: Tunnel, *hosts: Host) -> None:
        self._tunnel = tunnel
        self._hosts = hosts

    async def find(self, word: str) -> list[tuple[Host, int, str]]:
        """Host, number and command line of each process that has *word* in its command line."""
        found = []
        for host in self._hosts:
            with _expecting(self._tunnel, "a connection is lost when another one ends", "have each stand by itself"):
                found += [(host, pid, line) for pid, line in await host.call(PROCESSES, word)]
        return found

    async def expect_nothing(self, word: str, when: str) -> None:
        """Wait until no process has *word* in its command line.

        Raises:
          AssertionError: one still has; all that have are killed.
        """
        with trio.move_on_after(PATIENCE):
            while True:
                if not await self.find(word):
                    return
                await trio.sleep(LOOK_AGAIN)
        found = await self.find(word)
        if not found:
            return
        for host, pid, _ in found:
            with contextlib.suppress(OSError):
                await host.call(os.kill, pid, int(signal.SIGKILL))
        what = f"{when}, this was still running: " + " / ".join(line[-200:] for _, _, line in found)
        advice = (
            "see what keeps the end of stdin from it, or the end of its own tunnel: nohup, setsid, a pipe held open"
        )
        raise _broken(self._tunnel, what, advice)


async def _check_connections(tunnel: Tunnel) -> None:
    origin = tunnel.via if tunnel.via is not None else Local(python=sys.executable)
    async with _open(origin, _new_word()) as near, _open(tunnel, _new_word()) as beside:
        lookers = _Lookers(tunnel, near, beside)
        await _check_one_beside_another(tunnel, lookers, beside)
        await _check_killed(tunnel, lookers)
        await _check_cancelled_connecting(tunnel, lookers)
    last = "after all that no agent answers any more"
    async with _open(tunnel, _new_word(), problem=last, advice="see what earlier connections have left or changed"):
        pass


async def _check_one_beside_another(tunnel: Tunnel, lookers: _Lookers, beside: Host) -> None:
    word, child = _new_word(), _new_word()
    second = "beside another connection no agent answers"
    async with _open(tunnel, word, problem=second, advice="have each stand by itself: they share nothing") as host:
        version = host.info.python_version[:2]
        if tunnel.python_version not in (None, version):
            raise _broken(tunnel, f"python_version={tunnel.python_version} is not so", f"it is {version}")
        with _expecting(tunnel, "two connections do not work beside each other", "have each stand by itself"):
            for each in (beside, host, beside):
                await each.call(max, 1, 2)
        problem = _expecting(tunnel, "a call cannot be cancelled", "see whether it is ended, or just its tunnel")
        with problem, trio.CancelScope() as scope:
            await host.options(output=lambda line: scope.cancel()).call(LINGER, child)
        itself = _Lookers(tunnel, host)
        await itself.expect_nothing(child, "after a call was cancelled")
        agent = next((line for _, pid, line in await itself.find(word) if pid == host.info.pid), None)
        if not any(line == agent for _, _, line in await lookers.find(word)):
            what = "its processes over there cannot be seen from outside: whether any is left is not checked"
            logger.warning("%s: %s", tunnel.name, what)
    await lookers.expect_nothing(word, "after a connection was closed")


async def _check_killed(tunnel: Tunnel, lookers: _Lookers) -> None:
    word, child = _new_word(), _new_word()
    processes: list[TunnelProcess] = []

    async def start(argv: Sequence[str], *, new_session: bool) -> TunnelProcess:
        processes.append(await start_tunnel(argv, new_session=new_session))
        return processes[-1]

    async with _open(tunnel, word, start) as host:
        with trio.CancelScope() as scope, contextlib.suppress(HostLost):

            def kill(line: OutputLine) -> None:
                host._core.link.closing = True  # no warning in the log: it is meant to be lost
                processes[-1].send_signal(signal.SIGKILL)
                scope.cancel()  # where it may not be killed (sudo), the connection just ends

            await host.options(output=kill).call(LINGER, child)
    for each in (child, word):
        await lookers.expect_nothing(each, "after the tunnel's process was killed")


class _Tapped:
    """A tunnel's process, and what is called whenever one of its pipes has moved something."""

    def __init__(self, process: TunnelProcess, step: Callable[[], None]) -> None:
        self._process = process
        self.stdin: trio.abc.SendStream = _TappedStdin(process.stdin, step)
        self.stdout: trio.abc.ReceiveStream = _TappedStdout(process.stdout, step)
        self.stderr: trio.abc.ReceiveStream = process.stderr

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


class _TappedStdin(trio.abc.SendStream):
    def __init__(self, stream: trio.abc.SendStream, step: Callable[[], None]) -> None:
        self._stream, self._step = stream, step

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)
        self._step()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _TappedStdout(trio.abc.ReceiveStream):
    def __init__(self, stream: trio.abc.ReceiveStream, step: Callable[[], None]) -> None:
        self._stream, self._step = stream, step

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._step()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _check_cancelled_connecting(tunnel: Tunnel, lookers: _Lookers) -> None:
    for step in range(1, MOST_STEPS + 1):
        word = _new_word()
        connected = await _cancel_at(step, tunnel, word)
        await lookers.expect_nothing(word, f"after connecting was cancelled at step {step}")
        if connected:
            return


async def _cancel_at(last: int, tunnel: Tunnel, word: str) -> bool:
    """Whether it is connected before this step: the tunnel's start is one, and whatever is sent or received."""
    connected = False
    steps = itertools.count(1)
    scope = trio.CancelScope()

    def step() -> None:
        if next(steps) == last:
            scope.cancel()

    async def start(argv: Sequence[str], *, new_session: bool) -> TunnelProcess:
        process = await start_tunnel(argv, new_session=new_session)
        step()
        return _Tapped(process, step)

    with scope:
        async with _open(tunnel, word, start):
            connected = True
    return connected
