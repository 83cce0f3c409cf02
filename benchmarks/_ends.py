"""Both ends of a connection in one process, for connection.py and instructions.py."""

from __future__ import annotations

from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.connection import AGENT, CONTROLLER, Connection
from trickle._wire.frames import RETURNED, Call, Data, Decoder, End, Hello

ARGUMENTS, RESULT = bytes(64), bytes(32)
BULK = bytes(16 * 2**20)


class Ends:
    """A controller and an agent in memory, and a clock that stands still."""

    def __init__(self) -> None:
        self.controller = Connection(CONTROLLER, MsgpackDecoder().feed, 2**30)
        self.agent = Connection(AGENT, Decoder().feed, 2**30)
        self.id = 0
        hello = frames.encode(Hello(0, frames.VERSION))
        self.controller.receive_data(hello, 0.0)
        self.agent.receive_data(hello, 0.0)

    def call(self, count: int) -> None:
        """So many calls, all on their way at once, each answered by the agent as it arrives."""
        for _ in range(count):
            self.id += 1
            self.controller.call(self.id, 0, ARGUMENTS, None)
        ended = 0
        while ended < count:
            ended += self.turn()

    def turn(self) -> int:
        """What each end has to say goes to the other; how many calls have ended by it."""
        for frame in self.agent.receive_data(b"".join(self.controller.data_to_send(0.0)), 0.0):
            if type(frame) is Call:
                self.agent.end(frame.id, RETURNED, 0, RESULT)
        ended = 0
        for frame in self.controller.receive_data(b"".join(self.agent.data_to_send(0.0)), 0.0):
            if type(frame) is Data:
                self.controller.used(frame.id, len(frame.payload))
            elif type(frame) is End:
                ended += 1
        return ended

    def bulk(self, beside: int) -> None:
        """A large result, with small calls beside it until it is here."""
        self.id += 1
        large = self.id
        self.controller.call(large, 0, ARGUMENTS, None)
        (first,) = self.agent.receive_data(b"".join(self.controller.data_to_send(0.0)), 0.0)
        self.agent.end(first.id, RETURNED, 0, BULK)
        left = beside
        while self.controller.is_open(large):
            if left:
                left -= 1
                self.id += 1
                self.controller.call(self.id, 0, ARGUMENTS, None)
            self.turn()
        while self.controller.has_to_send or self.agent.has_to_send:
            self.turn()
