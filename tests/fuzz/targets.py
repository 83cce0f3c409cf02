"""What a fuzzer runs: bytes go in as from a host, and what must hold of what becomes of them is asserted.

``python -m tests.fuzz`` mutates them by what code they reach; test_corpus.py replays what was kept of that.
"""

import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import pickle
import pickletools
import time
import traceback
import types
import uuid
import zoneinfo
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from trickle import _probing
from trickle._decoder import MsgpackDecoder
from trickle._exceptions import RemoteError, UnsafeResult
from trickle._handshake import KEPT_NOISE, Handshake
from trickle._number_keys import may_have_many
from trickle._pickle_scan import scan
from trickle._pickle_slices import Loader
from trickle._plain_data import FACTORIES, RECIPES, SINGLETONS
from trickle._remote_errors import MAX_TEXT, rebuild_exception
from trickle._unpickling import allowed_classes, loads
from trickle._wire import frames
from trickle._wire.armor import Unarmor
from trickle._wire.connection import AGENT, CONTROLLER, Connection
from trickle._wire.frames import CHUNK, Frame, Hello, Item, WireError
from trickle._wire.items import Inbox

NONCE = "0123456789abcdef"
MAX_PAYLOAD = 2**20
MOST_PIECES = 50  # more only make it slow
LONGEST = 5.0  # seconds that one input may take, of a few kB: this only catches what grows without bounds


class Pair(NamedTuple):
    """A class that the program allowed."""

    left: object
    right: object


class Colour(enum.Enum):
    """Another one."""

    RED = 1


class Box:
    """One with a state."""


ALLOWED = (Pair, Colour, Box)

# ---- the wire


def wire(data: bytes) -> None:
    """The first byte says whose end hears the rest, the second in pieces of what size."""
    if len(data) < 2:
        return
    role = AGENT if data[0] & 1 else CONTROLLER
    stream = frames.encode(Hello(0, frames.VERSION)) + data[2:] if data[0] & 2 else data[2:]
    whole = _heard(role, [stream])
    size = max(1 + data[1], len(stream) // MOST_PIECES)
    pieces = _heard(role, [stream[start : start + size] for start in range(0, len(stream), size)])
    assert whole.refused == pieces.refused
    if not whole.refused:
        assert whole.frames == pieces.frames
    if role == CONTROLLER:
        _hear_noise(stream, size)


class _Heard(NamedTuple):
    frames: list[tuple[object, ...]]
    refused: bool


def _heard(role: str, pieces: list[bytes]) -> _Heard:
    """What an end with three open calls makes of what comes."""
    decode = MsgpackDecoder().feed if role == CONTROLLER else frames.Decoder().feed
    unarmor = Unarmor()
    end = Connection(role, decode, MAX_PAYLOAD)
    if role == CONTROLLER:
        end.control(Hello(0, frames.VERSION))
        end.control(frames.Session(1))
        end.call(2, 0, b"small", 5.0)
        end.call(3, 1, bytes(5000), None)
        end.call(4, 4, b"flows", None)
        _hand_out(end)
    inboxes: dict[int, Inbox] = collections.defaultdict(Inbox)
    found = []
    try:
        for piece in pieces:
            for frame in end.receive_data(piece if role == CONTROLLER else unarmor.receive(piece), 1.0):
                found.append(_shown(frame))
                assert type(frame) in frames.KINDS.values() and len(frame.payload) <= CHUNK
                if isinstance(frame, Item):
                    end.used(frame.id, inboxes[frame.id].feed(frame))
                elif isinstance(frame, frames.Data):
                    end.used(frame.id, len(frame.payload))
                elif isinstance(frame, frames.Output):
                    end.delivered(frame)
            _hand_out(end)
    except WireError as exc:
        assert len(str(exc)) < 500
        return _Heard(found, True)
    return _Heard(found, False)


def _hand_out(end: Connection) -> None:
    while end.data_to_send(1.0):
        pass


def _shown(frame: Frame) -> tuple[object, ...]:
    return (type(frame).__name__, *frame[:3], bytes(frame.payload))


def _hear_noise(stream: bytes, size: int) -> None:
    """What comes before the agent's marker, on both pipes."""
    attempt = Handshake(None, NONCE)
    for start in range(0, len(stream), size):
        piece = stream[start : start + size]
        attempt.receive(piece)
        attempt.receive_stderr(piece)
    attempt.end_of_stderr()
    assert len(attempt.noise) <= KEPT_NOISE and len(attempt.stderr) <= KEPT_NOISE
    assert not attempt.refused and not attempt.prepared


# ---- results and errors

PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...), type(NotImplemented)),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, zoneinfo.ZoneInfo),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID),
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network),
    *(ipaddress.IPv4Interface, ipaddress.IPv6Interface),
)
SEQUENCES = (tuple, list, set, frozenset, collections.deque)
MAPPINGS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
# Those that CPython 3.11's pickler writes at protocols 4 and 5, less the ones that stand for classes by number, by
# name in text, or outside of the pickle.
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE"
    " BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
    " EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET MEMOIZE BINGET LONG_BINGET"
    " STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX BUILD POP POP_MARK"
)
OPCODES = frozenset(_OPCODES.split())


def unpickling(data: bytes) -> None:
    """The first byte says what the rest is taken for: a result, one with classes of the program's, or an error."""
    if not data:
        return
    kind, body = data[0] % 3, data[1:]
    started = time.thread_time()
    if kind == 2:
        _read_error(body)
    else:
        _read_result(body, ALLOWED if kind else ())
    assert time.thread_time() - started < LONGEST


def _read_result(body: bytes, classes: tuple[type, ...]) -> None:
    try:
        value = loads(body, host="web1", allowed=allowed_classes(classes))
    except UnsafeResult as exc:
        _check_refusal(exc)
        return
    check_plain(value, classes)
    _check_opcodes(body, classes)
    _check_probing(body, value, classes)


def _check_refusal(exc: UnsafeResult) -> None:
    message = str(exc)
    assert message.startswith("web1: ") and message.isprintable() and len(message) < 2000


def check_plain(value: object, classes: tuple[type, ...] = ()) -> None:
    """Nothing is in *value* but plain data, and instances of *classes*."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item: Any = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        cls = type(item)
        if cls in SEQUENCES:
            waiting += item
        elif cls in MAPPINGS:
            waiting += item
            waiting += item.values()
            if cls is collections.defaultdict:
                assert item.default_factory is None or item.default_factory in FACTORIES.values()
        elif cls is slice:
            waiting += (item.start, item.stop, item.step)
        elif cls in classes:
            waiting += getattr(item, "__dict__", {}).values() if cls is not Colour else ()
            waiting += item if isinstance(item, tuple) else ()
        else:
            assert cls in PLAIN, cls


def _check_opcodes(body: bytes, classes: tuple[type, ...]) -> None:
    """What was read holds no opcode but the harmless, and names no class but those of the table."""
    names = {*RECIPES, *SINGLETONS, *(("builtins", name) for name in FACTORIES), *allowed_classes(classes)}
    may_be = {text for name in names for text in name}
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(body):
        assert opcode.name in OPCODES, opcode.name
        if isinstance(argument, str):
            texts.append(argument)
        elif opcode.name == "STACK_GLOBAL":
            assert may_be.intersection(texts)


def _check_probing(body: bytes, value: object, classes: tuple[type, ...]) -> None:
    """What was read would pass, as a pickler writes it, what only large results must; the body does no harm there."""
    few, _probing.FEW = _probing.FEW, 0  # type: ignore[misc]
    try:
        with contextlib.suppress(Exception):
            _probe(body, classes)
        try:
            honest = pickle.dumps(value, 5)
        except Exception:  # it is nested too deeply, or shows what it cannot write
            return
        _probe(honest, classes)
    finally:
        _probing.FEW = few  # type: ignore[misc]


def _probe(data: bytes, classes: tuple[type, ...]) -> None:
    runs = _the_end_of(scan(data)).runs
    _the_end_of(may_have_many(data, runs))
    _the_end_of(_probing.probe(data, runs, allowed_classes(classes), 1, Loader(None, in_turns=False)))


def _the_end_of(slices: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return done.value


def _read_error(body: bytes) -> None:
    try:
        error = rebuild_exception(body, host="web1")
    except UnsafeResult as exc:
        _check_refusal(exc)
        return
    assert isinstance(error, RemoteError) and error.host == "web1"
    assert not isinstance(error, StopIteration | StopAsyncIteration)
    shown = "".join(traceback.format_exception(error))
    assert not set(shown) & CONTROL_CHARACTERS
    assert len(shown) < 100 * MAX_TEXT
    for attribute in vars(error).values():
        assert not isinstance(attribute, types.FunctionType | type)


CONTROL_CHARACTERS = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}

TARGETS: dict[str, Callable[[bytes], None]] = {"unpickling": unpickling, "wire": wire}
