"""The frames of the wire, as types, and their bytes.  Who may say what, and when, is connection.py's job.

Every frame is one msgpack array of five: kind, id, two numbers and the payload.  All of them are written in one
fixed shape, so that the far end, which has no msgpack, reads and writes them with a single ``struct``.
"""

import operator
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Iterator, List, Optional, Type

VERSION = 1
CHUNK = 64 * 1024  # bytes of payload in one frame at the most: what a pipe holds, and what a control frame may wait for
LARGE = 4 * 1024  # bytes: a larger payload is not copied only to stand behind its header
NEVER = 0xFFFFFFFF  # as a number of milliseconds: no deadline

_ARRAY_OF_5, _UINT32, _BIN32 = 0x95, 0xCE, 0xC6
HEADER = struct.Struct(">BBBIBIBIBI")
_HEADED = struct.Struct(">HBIBIBIBI")  # the same, with the array and the kind in one
_TYPES, _WHERE_TYPES = bytes((_UINT32, _UINT32, _UINT32, _BIN32)), slice(2, 18, 5)
# Names of this module: looked up for every frame.
_pack, _unpack_from, _new, _HEADER_SIZE = _HEADED.pack, _HEADED.unpack_from, tuple.__new__, HEADER.size


class WireError(Exception):
    """What the peer sent breaks the rules of the wire."""


class Frame(tuple):  # type: ignore[type-arg]
    """The base of all frames: id, two numbers whose names depend on the kind, and the payload."""

    __slots__ = ()
    kind = 0
    head = 0  # the first two bytes: an array of five, and the kind
    fields = ("id", "_a", "_b", "payload")

    id: int
    payload: bytes

    def __new__(cls, id: int = 0, a: int = 0, b: int = 0, payload: bytes = b"") -> "Frame":
        return tuple.__new__(cls, (id, a, b, payload))

    def __init_subclass__(cls) -> None:
        for index, name in enumerate(cls.fields):
            setattr(cls, name, property(operator.itemgetter(index)))
        cls.head = _ARRAY_OF_5 << 8 | cls.kind
        KINDS[cls.kind] = _HEADS[cls.head] = cls

    def __repr__(self) -> str:
        shown = ["%s=%d" % (name, self[i]) for i, name in enumerate(self.fields[:3]) if name[0] != "_"]
        return "%s(%s)" % (type(self).__name__, ", ".join([*shown, "payload=<%d bytes>" % len(self[3])]))


KINDS: "Dict[int, Type[Frame]]" = {}
_HEADS: "Dict[int, Type[Frame]]" = {}  # by the first two bytes


class Hello(Frame):
    """The first frame each way: the wire's version; from the agent also what it is, as ``name=value`` lines."""

    __slots__ = ()
    kind = 1
    fields = ("id", "version", "_b", "payload")
    version: int


class Call(Frame):
    """Run what the payload holds.  The milliseconds left are counted when the frame is written."""

    __slots__ = ()
    kind = 2
    fields = ("id", "timeout_ms", "session", "payload")
    timeout_ms: int
    session: int


class Begin(Frame):
    """A call whose payload is too large for one frame: it follows in Data frames."""

    __slots__ = ()
    kind = 3
    fields = ("id", "timeout_ms", "session", "payload")
    timeout_ms: int
    session: int


class Data(Frame):
    """A part of a large payload, of the call's arguments or of its result."""

    __slots__ = ()
    kind = 4
    fields = ("id", "last", "_b", "payload")
    last: int


class Cancel(Frame):
    """End this call: ask, and after the grace period kill.  The payload is the reason, for people."""

    __slots__ = ()
    kind = 5
    fields = ("id", "grace_ms", "cause", "payload")
    grace_ms: int
    cause: int


class Renew(Frame):
    """The call's scope was given another deadline."""

    __slots__ = ()
    kind = 6
    fields = ("id", "timeout_ms", "_b", "payload")
    timeout_ms: int


class Session(Frame):
    """Pin a worker; the calls that name this id run there.  Cancel ends it."""

    __slots__ = ()
    kind = 7


class Credit(Frame):
    """The receiver has room for so many more bytes of this call."""

    __slots__ = ()
    kind = 8
    fields = ("id", "size", "_b", "payload")
    size: int


class Ack(Frame):
    """So many bytes of bulk have come out of the pipe."""

    __slots__ = ()
    kind = 9
    fields = ("id", "size", "_b", "payload")
    size: int


class Ping(Frame):
    """Still here."""

    __slots__ = ()
    kind = 10


class Modules(Frame):
    """A part of a bundle of modules; the number is 1 in the last part."""

    __slots__ = ()
    kind = 11
    fields = ("id", "last", "_b", "payload")
    last: int


class Ask(Frame):
    """A worker that has seen so many bundles needs the module that the payload names."""

    __slots__ = ()
    kind = 12
    fields = ("id", "bundles", "_b", "payload")
    bundles: int


class Output(Frame):
    """Whole lines that a call wrote to stream 1 or 2.

    With the id 0 they are no call's, or those of one that was cancelled, whose End does not wait for them.
    """

    __slots__ = ()
    kind = 13
    fields = ("id", "stream", "of", "payload")
    stream: int
    of: int


class Record(Frame):
    """A logging record of the call: its level, and the logger's name and the message with a NUL between them."""

    __slots__ = ()
    kind = 14
    fields = ("id", "level", "_b", "payload")
    level: int


class End(Frame):
    """How a call ended: a verdict, a number that explains it, and what is left of the result or error."""

    __slots__ = ()
    kind = 15
    fields = ("id", "verdict", "detail", "payload")
    verdict: int
    detail: int


class Close(Frame):
    """Finish: end every call by the ladder, then exit."""

    __slots__ = ()
    kind = 16
    fields = ("id", "grace_ms", "_b", "payload")
    grace_ms: int


class Note(Frame):
    """Something for the controller's log that the agent itself says, with a level as logging has them."""

    __slots__ = ()
    kind = 17
    fields = ("id", "level", "_b", "payload")
    level: int


class Item(Frame):
    """A part of one thing that flows between a call and its caller, either way; what it is say the flags."""

    __slots__ = ()
    kind = 18
    fields = ("id", "flags", "_b", "payload")
    flags: int


class Grace(Frame):
    """How long this call may clean up, should its own host end it: behind a call with a deadline, if not as usual."""

    __slots__ = ()
    kind = 19
    fields = ("id", "grace_ms", "_b", "payload")
    grace_ms: int


_HANDED_ON = (Data.head, Item.head)

# The flags of an Item.
LAST = 1  # this part completes a thing
EOF = 2  # nothing follows; without a thing
DEAF = 4  # nothing more is taken of what the other end sends; without a thing
ITEM_COST = 64  # bytes of credit that an Item takes beside its payload: what is empty does not come for nothing

# Verdicts, as End carries them.
RETURNED, RAISED, CANCELLED, KILLED, NEVER_STARTED, DIED, UNKILLABLE = range(1, 8)
VERDICTS = {
    RETURNED: "returned",
    RAISED: "raised",
    CANCELLED: "cancelled",
    KILLED: "killed",
    NEVER_STARTED: "never started",
    DIED: "died",
    UNKILLABLE: "unkillable",
}

# What a Cancel was for.
BY_CALLER, BY_DEADLINE = range(2)


def encode(frame: Frame) -> bytes:
    """The frame's bytes, a msgpack array of five.

    Raises:
      ValueError: the payload is larger than a CHUNK, which no reader takes.
    """
    id, a, b, payload = frame
    size = len(payload)
    if size > CHUNK:
        raise _too_large(frame)
    data: bytes = _pack(frame.head, _UINT32, id, _UINT32, a, _UINT32, b, _BIN32, size) + payload
    return data


def encode_to(out: "List[bytes]", frame: Frame) -> int:
    """Append the frame's bytes, a large payload as it is; return how many they are.

    Raises:
      ValueError: as `encode`.
    """
    id, a, b, payload = frame
    size = len(payload)
    if size <= LARGE:
        out.append(encode(frame))
    elif size <= CHUNK:
        out += (_pack(frame.head, _UINT32, id, _UINT32, a, _UINT32, b, _BIN32, size), payload)
    else:
        raise _too_large(frame)
    return _HEADER_SIZE + size


def _too_large(frame: Frame) -> ValueError:
    kind, size = type(frame).__name__, len(frame.payload)
    return ValueError("%s with a payload of %d bytes; %d is the most" % (kind, size, CHUNK))


def chunks(pieces: "Iterable[bytes]") -> "Iterator[bytes]":
    """What *pieces* are together, in parts of a CHUNK but for the last; only what crosses a border is copied."""
    gathered: "List[bytes]" = []
    room = CHUNK
    for piece in pieces:
        start = 0
        while len(piece) - start >= room:
            gathered.append(memoryview(piece)[start : start + room])  # type: ignore[arg-type]
            yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
            start += room
            gathered, room = [], CHUNK
        if start < len(piece):
            gathered.append(memoryview(piece)[start:])  # type: ignore[arg-type]
            room -= len(piece) - start
    if gathered:
        yield b"".join(gathered)


def milliseconds(seconds: float) -> int:
    """Seconds as a number that fits a frame: never less than 0, and NEVER for what does not fit."""
    if seconds >= NEVER / 1000:
        return NEVER
    return int(seconds * 1000) if seconds > 0 else 0  # -inf is the deadline of a scope that is cancelled


class Decoder:
    """Cuts a stream of bytes into frames, in the one shape that ``encode`` writes.

    Of no more use once it has refused something.  That the numbers and the kind are in bounds follows from the shape.

    Args:
      views: payloads of Data and Items, which are to be handed on, are views of what was fed, if they are larger.
    """

    def __init__(self, views: int = CHUNK) -> None:
        self._rest: "Optional[bytes]" = b""  # the beginning of a frame; None: not for this decoder any more
        self._views = views

    def feed(self, data: bytes) -> "List[Frame]":
        """The frames that *data* completes."""
        rest = self._rest
        found: "List[Frame]" = []
        start = 0
        if rest is None:
            return self._feed_more(data)
        if len(rest) >= _HEADER_SIZE:  # which has been looked at
            start = _HEADER_SIZE + int.from_bytes(rest[_HEADER_SIZE - 4 : _HEADER_SIZE], "big") - len(rest)
            if start > len(data):
                self._rest = rest + data
                return found
            self._rest = b""
            found = self.feed(rest + data[:start])
        elif rest:
            data = rest + data
        end = len(data)
        last = end - _HEADER_SIZE
        while start <= last:
            head, id_type, id, a_type, a, b_type, b, payload_type, size = _unpack_from(data, start)
            if not (id_type == a_type == b_type == _UINT32 and payload_type == _BIN32 and head in _HEADS):
                return self._other_shape(found, data[start:])
            payload = start + _HEADER_SIZE
            stop = payload + size
            if size > CHUNK:
                self._rest = None
                raise WireError("a frame of %d bytes; %d is the most" % (size, CHUNK))
            if stop > end:
                break
            if size > self._views and head in _HANDED_ON:
                found.append(_new(_HEADS[head], (id, a, b, memoryview(data)[payload:stop])))
            else:
                found.append(_new(_HEADS[head], (id, a, b, data[payload:stop])))
            start = stop
        rest = data[start:]
        if rest and start > last and (rest[0] != _ARRAY_OF_5 or not _TYPES.startswith(rest[_WHERE_TYPES])):
            return self._other_shape(found, rest)
        self._rest = rest
        return found

    def _other_shape(self, found: "List[Frame]", data: bytes) -> "List[Frame]":
        """What *data*, which is in another shape, makes of a stream of which *found* has been read."""
        self._rest = None
        if data[0] == _ARRAY_OF_5 and _TYPES.startswith(data[_WHERE_TYPES]):
            raise WireError("a frame of unknown kind %d" % data[1])
        raise WireError("not a frame: %r" % data[:_HEADER_SIZE])

    def _feed_more(self, data: bytes) -> "List[Frame]":
        raise WireError("this stream was refused before")
