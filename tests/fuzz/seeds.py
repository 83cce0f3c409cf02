"""Where a fuzzer starts: honest traffic, and the attacks that the tests know.  ``python -m tests.fuzz.seeds`` writes
them anew; what a run has found besides is beside them.
"""

import collections
import datetime
import decimal
import fractions
import hashlib
import ipaddress
import pathlib
import pickle
import uuid
from pathlib import Path

from tests.fuzz.targets import MAX_PAYLOAD, Box, Colour, Pair
from trickle._agent.results import describe_exception, dumps_result
from trickle._decoder import MsgpackDecoder
from trickle._wire import frames
from trickle._wire.armor import END_OF_ARMOR, armored
from trickle._wire.connection import AGENT, CONTROLLER, Connection

CORPUS = Path(__file__).parent / "corpus"
AS_AGENT, AS_CONTROLLER = b"\1", b"\0"  # who hears it
AS_RESULT, WITH_CLASSES, AS_ERROR = b"\0", b"\1", b"\2"


def honest_values() -> list[object]:
    """One of each that a result may hold."""
    box = Box()
    box.content = [1]  # type: ignore[attr-defined]
    loop: list[object] = []
    loop.append(loop)
    return [
        [None, True, 1, -1, 2**40, 2**100, 1.5, 1j, "text", "x" * 300, b"bytes", b"y" * 300, bytearray(b"z")],
        {"a": (1, 2), ("b", 3): {4, 5}, frozenset({6}): [{}]},
        [datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC), datetime.date(2020, 1, 1), datetime.time(1)],
        [datetime.timedelta(1), decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=1)],
        [pathlib.PurePosixPath("/a/b"), ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8")],
        [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1], 5)],
        [collections.defaultdict(list, {1: [2]}), range(1, 10, 2), slice(1, None), ..., NotImplemented],
        {(1, 2): datetime.date(2020, 1, 1), decimal.Decimal(1): ((1,), (2, (3,)))},
        [Pair(1, 2), Colour.RED, box],
        loop,
    ]


def errors() -> list[BaseException]:
    """Errors of all shapes."""
    found: list[BaseException] = [FileNotFoundError(2, "not there", "/x"), SyntaxError("x", ("f", 1, 2, "y"))]
    found.append(ExceptionGroup("several", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])]))
    try:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why") from KeyError(1)
    except UnicodeDecodeError as exc:
        exc.add_note("a note")
        found.append(exc)
    return found


def conversation(small: bytes = b"small", large: bytes = b"x" * 5000, flows: bytes = b"flows") -> tuple[bytes, bytes]:
    """What both ends say of everything they can.

    Args:
      small: the payload of a call.
      large: of one that is too large for one frame.
      flows: of one with things that flow.
    """
    controller = Connection(CONTROLLER, MsgpackDecoder().feed, MAX_PAYLOAD)
    agent = Connection(AGENT, frames.Decoder().feed, MAX_PAYLOAD)
    controller.control(frames.Hello(0, frames.VERSION))
    controller.control(frames.Session(1))
    controller.call(2, 0, small, 5.0)
    controller.call(3, 1, large, None)
    controller.call(4, 4, flows, None)
    controller.modules(b"bundle")
    controller.bulk(frames.Item(4, frames.LAST, 0, b"thing"))
    controller.control(frames.Renew(2, 1000))
    controller.control(frames.Cancel(1, 5000, 1, b"deadline"))
    to_agent = b"".join(controller.data_to_send(1.0))
    agent.control(frames.Hello(0, frames.VERSION, 0, b"hostname=web1"))
    agent.receive_data(to_agent, 1.0)
    agent.control(frames.Ask(0, 1, 0, b"module"))
    agent.control(frames.Note(0, 20, 0, b"a note"))
    agent.bulk(frames.Output(2, 1, 0, b"a line\n"))
    agent.bulk(frames.Record(2, 20, 0, b"logger\0message"))
    agent.bulk(frames.Item(4, frames.LAST, 0, b"thing"))
    agent.bulk(frames.Item(4, frames.EOF))
    agent.end(2, frames.RETURNED, 0, dumps_result([1]))
    agent.end(3, frames.RETURNED, 0, b"y" * 5000)
    agent.end(1, frames.CANCELLED)
    return to_agent, b"".join(agent.data_to_send(1.0))


def seeds() -> dict[str, list[bytes]]:
    """What goes in, by target."""
    values = [dumps_result(value) for value in honest_values()]
    plain = [pickle.dumps(value, 5) for value in honest_values()[:8]]
    to_agent, to_controller = conversation()
    return {
        "unpickling": [
            *(AS_RESULT + data for data in [*values, *plain]),
            *(WITH_CLASSES + data for data in values),
            *(AS_ERROR + describe_exception(exc) for exc in errors()),
            AS_RESULT + bytes.fromhex("80045d72000000202e"),  # nine bytes that were 8 GiB
        ],
        "wire": [
            AS_CONTROLLER + b"\xff" + to_controller,
            AS_CONTROLLER + b"\0" + to_controller[:400],
            AS_AGENT + b"\xff" + armored(to_agent[:200]) + armored(to_agent[200:]) + END_OF_ARMOR,
            AS_AGENT + b"\x10" + END_OF_ARMOR + to_agent,
        ],
    }


def write(corpus: Path) -> None:
    """Write the seeds below *corpus*."""
    for name, inputs in seeds().items():
        directory = corpus / name
        directory.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (directory / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    write(CORPUS)
