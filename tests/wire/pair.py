"""Two ends of a wire in memory, and strategies for frames.  What to assert is the tests' job."""

from collections.abc import Callable, Iterable

import msgpack
from hypothesis import settings
from hypothesis import strategies as st

from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.connection import AGENT, CONTROLLER, Connection
from trickle._wire.frames import CHUNK, KINDS, Frame, Hello

MAX_PAYLOAD = 4 * 2**20
NUMBERS = st.integers(0, 0xFFFFFFFF)
# Large payloads are built, not drawn: what is in them does not matter, and drawing them takes long.
PAYLOADS = st.binary(max_size=100) | st.builds(
    lambda size, fill: bytes([fill]) * size, st.integers(0, CHUNK), st.integers(0, 255)
)
FRAMES = st.builds(
    lambda kind, id, a, b, payload: KINDS[kind](id, a, b, payload),
    st.sampled_from(sorted(KINDS)),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    PAYLOADS,
)

deterministic = settings(derandomize=True, deadline=None, max_examples=60, database=None)

DECODERS: dict[str, Callable[[], MsgpackDecoder | frames.Decoder]] = {
    "controller": MsgpackDecoder,
    "agent": frames.Decoder,
}


def shown(frame: Frame) -> tuple[object, ...]:
    """A frame with its kind: frames are tuples, and those of two kinds may be equal."""
    return (type(frame).__name__, *frame[:3], bytes(frame.payload))


def frames_in(data: bytes) -> list[Frame]:
    """The frames that these bytes are, read by msgpack itself."""
    unpacker = msgpack.Unpacker(raw=True, max_buffer_size=2**28)
    unpacker.feed(data)
    return [KINDS[kind](*rest) for kind, *rest in unpacker]


def cuts(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """*data* in pieces of these sizes, and the rest."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


def said(connection: Connection, now: float = 0.0) -> list[Frame]:
    """What this end says when it is asked for bytes once."""
    return frames_in(b"".join(connection.data_to_send(now)))


def all_said(connection: Connection, now: float = 0.0) -> list[Frame]:
    """What this end says until it has no more to say for now."""
    found = []
    while more := said(connection, now):
        found += more
    return found


def hear(connection: Connection, *heard: Frame, now: float = 0.0) -> list[Frame]:
    """Have this end receive frames, and return what it makes of them."""
    return connection.receive_data(b"".join(map(frames.encode, heard)), now)


def greeted(role: str, max_payload: int = MAX_PAYLOAD) -> Connection:
    """One end, of which the other has said hello."""
    decode = MsgpackDecoder().feed if role == CONTROLLER else frames.Decoder().feed
    connection = Connection(role, decode, max_payload)
    hear(connection, Hello(0, frames.VERSION))
    return connection


class Pair:
    """A controller and an agent, and the bytes between them that have left and not arrived."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.now = 0.0
        self.controller = greeted(CONTROLLER, max_payload)
        self.agent = greeted(AGENT, max_payload)
        self._under_way = {CONTROLLER: bytearray(), AGENT: bytearray()}

    def hand_out(self, speaker: str) -> list[Frame]:
        """Put the next bytes of one end on the wire."""
        end = self.controller if speaker == CONTROLLER else self.agent
        data = b"".join(end.data_to_send(self.now))
        self._under_way[speaker] += data
        return frames_in(data)

    def carry(self, speaker: str, size: int | None = None) -> list[Frame]:
        """Bring bytes that one end has said, all or so many, to the other, and return what that makes of them."""
        wire = self._under_way[speaker]
        data = bytes(wire[:size])
        del wire[: len(data)]
        end = self.agent if speaker == CONTROLLER else self.controller
        return end.receive_data(data, self.now)

    def to_agent(self) -> list[Frame]:
        """Hand out what the controller may say now, and bring it over."""
        self.hand_out(CONTROLLER)
        return self.carry(CONTROLLER)

    def to_controller(self) -> list[Frame]:
        """Hand out what the agent may say now, and bring it over."""
        self.hand_out(AGENT)
        return self.carry(AGENT)

    def settle(self, *, use: bool = True) -> tuple[list[Frame], list[Frame]]:
        """Carry on until both ends are silent; return what the agent got, and what the controller got.

        Args:
          use: take all that comes at once, so that credit is given for it.
        """
        at_agent: list[Frame] = []
        at_controller: list[Frame] = []
        while True:
            said_by_controller, said_by_agent = self.hand_out(CONTROLLER), self.hand_out(AGENT)
            for end, speaker, got in (
                (self.agent, CONTROLLER, at_agent),
                (self.controller, AGENT, at_controller),
            ):
                heard = self.carry(speaker)
                got += heard
                for frame in heard:
                    if use and isinstance(frame, frames.Data):
                        end.used(frame.id, len(frame.payload))
            if not said_by_controller and not said_by_agent:
                return at_agent, at_controller
