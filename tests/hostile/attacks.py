"""What a host that was taken over may try, by name; each runs in a process of its own: see liar.py.

An attack says what it goes for (`verb`), what the controller must raise for it (a class of trickle's, or nothing),
and a part of the message.
"""

import hashlib
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tests.hostile.liar import ABOUT, Liar
from tests.pickles import COSTLY, call, get, global_, pickled, text
from trickle._agent import files
from trickle._wire import frames
from trickle._wire.connection import cost
from trickle._wire.frames import CHUNK, NEVER, Ack, Credit, Data, End, Frame, Item, Note, Output, Ping, Record

MEBIBYTE = 2**20
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b\x00\u202e"


class Attack(NamedTuple):
    """One of them."""

    run: Callable[[Liar], object]
    verb: str
    raises: str  # empty: nothing is raised, and what comes back is harmless
    says: str


ATTACKS: dict[str, Attack] = {}


def add(name: str, run: Callable[[Liar], object], verb: str, raises: str, says: str = "") -> None:
    assert name not in ATTACKS, name
    ATTACKS[name] = Attack(run, verb, raises, says)


def attack(name: str, raises: str, says: str = "", verb: str = "call") -> Callable[[Callable[[Liar], object]], None]:
    """Enter a function; it has heard and said nothing yet."""
    return lambda run: add(name, run, verb, raises, says)


# ---- results


# What answers a call with this number.  One host tries all of them, one after the other: it is not closed for any.
Answer = Callable[[Liar, int], None]
ANSWERS: dict[str, Answer] = {}
ALL_ANSWERS = "all answers"


def add_answer(name: str, answer: Answer, raises: str, says: str = "") -> None:
    """Enter what answers a plain call."""
    ANSWERS[name] = answer
    add(name, alone(answer), "call", raises, says)


def alone(answer: Answer) -> Callable[[Liar], None]:
    def run(liar: Liar) -> None:
        liar.hello()
        answer(liar, liar.next_call())

    return run


def all_answers(liar: Liar) -> None:
    liar.hello()
    for answer in ANSWERS.values():
        answer(liar, liar.next_call())


def returns(payload: bytes, verdict: int = frames.RETURNED) -> Answer:
    return lambda liar, id: liar.end(id, verdict, payload)


def shell(liar: Liar) -> bytes:
    """Arguments for os.system that show whether it ran."""
    return text(f"touch {liar.directory}/ran") + b"\x85"


def runs(body: Callable[[bytes], bytes]) -> Answer:
    """A result that is to run a command here; *body* is given the pickled arguments of os.system."""
    return lambda liar, id: liar.end(id, payload=pickled(body(shell(liar))))


def old(opcode: bytes, module: str, name: str) -> bytes:
    return opcode + module.encode() + b"\n" + name.encode() + b"\n"


RUNS: Mapping[str, Callable[[bytes], bytes]] = {
    "os.system by REDUCE": lambda command: global_("os", "system") + command + b"R",
    "posix.system by REDUCE": lambda command: global_("posix", "system") + command + b"R",
    "os.system by GLOBAL": lambda command: old(b"c", "os", "system") + command + b"R",
    "os.system by INST": lambda command: b"(" + command[:-1] + old(b"i", "os", "system"),
    "os.system by OBJ": lambda command: b"(" + global_("os", "system") + command[:-1] + b"o",
    "os.system by NEWOBJ": lambda command: global_("os", "system") + command + b"\x81",
    "os.system by NEWOBJ_EX": lambda command: global_("os", "system") + command + b"}\x92",
    "os.system by a dotted name": lambda command: global_("pathlib", "os.system") + command + b"R",
    "os.system by a name out of the memo": lambda command: (
        text("os") + b"\x940" + text("system") + b"\x940" + get(0) + get(1) + b"\x93" + command + b"R"
    ),
    "eval by REDUCE": lambda command: global_("builtins", "eval") + text("__import__('os').getpid()") + b"\x85R",
    "getattr by REDUCE": lambda command: (
        global_("builtins", "getattr") + global_("builtins", "list") + text("__subclasses__") + b"\x86R"
    ),
    "subprocess.Popen by REDUCE": lambda command: global_("subprocess", "Popen") + command + b"R",
    "an import of something new": lambda command: global_("antigravity", "webbrowser"),
    "operator.attrgetter": lambda command: global_("operator", "attrgetter") + text("system") + b"\x85R",
    "functools.partial": lambda command: global_("functools", "partial") + global_("os", "system") + b"\x85R",
    "trickle.allow by REDUCE": lambda command: global_("trickle", "allow") + global_("os", "_wrap_close") + b"\x85R",
    "copyreg's extension registry": lambda command: b"\x82\x01" + command + b"R",
    "a long code of the extension registry": lambda command: b"\x84\x01\x00\x00\x00" + command + b"R",
    "a persistent id": lambda command: b"Pos.system\n",
    "a persistent id on the stack": lambda command: command + b"Q",
    "a constructor that is given a state": lambda command: (
        global_("uuid", "UUID") + b"}" + text("int") + b"K\x05s" + b"b"
    ),
    "a class that is given attributes": lambda command: (
        global_("collections", "OrderedDict") + b"}" + text("__reduce__") + b"Ns" + b"b"
    ),
    "slots that are given a state": lambda command: (
        call("uuid", "UUID", text("0" * 32) + b"\x85") + b"N}" + text("int") + b"K\x05s\x86b"
    ),
    "a __dict__ that is given a state": lambda command: (
        call("collections", "OrderedDict", b")") + b"}" + text("keys") + b"Ns" + b"b"
    ),
    "a factory that is a function": lambda command: (
        call("collections", "defaultdict", global_("os", "getpid") + b"\x85") + text("missing") + b"Ns"
    ),
    "a path that is opened": lambda command: global_("pathlib", "Path") + text("/etc/passwd") + b"\x85R",
    "what the rehearsal calls a text": lambda command: global_("", "text") + b")R",
}
for name, body in RUNS.items():
    add_answer(f"result: {name}", runs(body), "UnsafeResult")

BOMBS: Mapping[str, bytes] = {
    "nine bytes for 8 GiB": bytes.fromhex("80045d72000000202e"),
    "a memo index in text": pickled(b"]p536870912\n"),
    "an integer in text": pickled(b"I" + b"9" * MEBIBYTE + b"\n"),
    "a long integer in text": pickled(b"L" + b"9" * MEBIBYTE + b"L\n"),
    "a float in text": pickled(b"F" + b"9" * MEBIBYTE + b"\n"),
    "LONG4 of 2 GiB": pickled(b"\x8b\xff\xff\xff\x7f"),
    "LONG4 of less than nothing": pickled(b"\x8b\xff\xff\xff\xff"),
    "a string in text with escapes": pickled(b"S'" + b"\\x00" * 1000 + b"'\n"),
    "unicode in text": pickled(b"V" + b"\\u0000" * 1000 + b"\n"),
    "BINBYTES8 of 8 EiB": pickled(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "BINUNICODE8 of 8 EiB": pickled(b"\x8d" + b"\xff" * 7 + b"\x7f"),
    "BYTEARRAY8 of 256 MiB": pickled(b"\x96" + struct.pack("<Q", 2**28)),
    "bytearray(1 << 28)": pickled(call("builtins", "bytearray", b"J\x00\x00\x00\x10\x85")),
    "bytes(1 << 28)": pickled(call("builtins", "bytes", b"J\x00\x00\x00\x10\x85")),
    "Fraction('1e3000000')": pickled(call("fractions", "Fraction", text("1e3000000") + b"\x85")),
    "Fraction of huge integers": pickled(
        call("fractions", "Fraction", (b"\x8b" + struct.pack("<I", 10**5) + b"\x7f" * 10**5) * 2 + b"\x86")
    ),
    "Decimal of a million digits": pickled(
        call("decimal", "Decimal", b"X" + struct.pack("<I", 10**6) + b"9" * 10**6 + b"\x85")
    ),
    "Decimal of a tuple": pickled(call("decimal", "Decimal", b"K\x00)K\x00\x87\x85")),
    "a range that is made a list": pickled(
        call("builtins", "list", call("builtins", "range", b"K\x00J\xff\xff\xff\x7fK\x01\x87") + b"\x85")
    ),
    "a time zone outside": pickled(call("zoneinfo", "ZoneInfo", text("../../../etc/passwd") + b"\x85")),
    "a frame of 16 EiB": pickled(b"\x95" + b"\xff" * 8 + b"N"),
    "a frame that hides opcodes": pickled(
        b"\x95" + struct.pack("<Q", 3) + b"\x8c\x40x" + call("os", "system", text("true") + b"\x85")
    ),
    "a buffer from outside": b"\x80\x05\x97.",
    "a read-only buffer from outside": b"\x80\x05\x97\x98.",
    "a stop in the middle": pickled(b"N.N"),
    "an empty stack": pickled(b"0" * 1000),
    "marks without end": pickled(b"(" * MEBIBYTE),
    "an old protocol": b"\x80\x02N.",
    "a protocol to come": b"\x80\x09N.",
    "no protocol": b"(lp0\n.",
    "nothing at all": b"",
    "noise": bytes(range(256)) * 64,
    "half of a pickle": pickle.dumps([{"a": 1}] * 100, 4)[:-20],
    "empty sets by the million": pickled(b"](" + b"\x8f" * 7 * MEBIBYTE + b"e"),
    **{name: pickled(body) for name, body in COSTLY.items()},
}
for name, payload in BOMBS.items():
    add_answer(f"result: {name}", returns(payload), "UnsafeResult")

HARMLESS: Mapping[str, bytes] = {
    "empty texts by the hundred thousand beside a tuple and a key": pickled(
        b"(](" + (b"\x8d" + bytes(8)) * 400_000 + b"eNN\x86}NNst"
    ),
    "a list in itself": pickled(b"]\x94h\x00a"),
    "a dictionary in itself": pickled(b"}\x94K\x01h\x00s"),
    "lists nested deeply": pickled(b"]" * 100_000 + b"a" * 99_999),
    "dates without end": pickled(
        global_("datetime", "date") + b"\x940](" + (get(0) + b"C\x04\x07\xe4\x01\x01\x85R") * 50_000 + b"e"
    ),
}
for name, payload in HARMLESS.items():
    add_answer(f"result: {name}", returns(payload), "")

WITH_CLASS: Mapping[str, bytes] = {  # the program has allowed tests.hostile.victims.Point
    "an allowed class that is called": call("tests.hostile.victims", "Point", b"K\x01K\x02\x86"),
    "an allowed class as a value": global_("tests.hostile.victims", "Point"),
    "an allowed class that is changed": global_("tests.hostile.victims", "Point") + b"}" + text("x") + b"K\x01sb",
    "an allowed class's instance that is called": global_("tests.hostile.victims", "Point") + b")\x81)R",
    "a method of an allowed class": global_("tests.hostile.victims", "Point.run") + b")R",
    "the module of an allowed class": global_("tests.hostile.victims", "os.getpid") + b")R",
    "another class of that module": global_("tests.hostile.victims", "Other") + b")\x81",
}
for name, body in WITH_CLASS.items():
    add(f"result: {name}", alone(returns(pickled(body))), "call, Point allowed", "UnsafeResult")


@attack("result: of another size than max_result allows", "UnsafeResult", "max_result")
def _(liar: Liar) -> None:
    liar.hello()
    liar.end(liar.next_call(), payload=pickled(b"](" + b"N" * 9 * MEBIBYTE + b"e"))


@attack("result: a whole result that only begins as bytes", "UnsafeResult", "max_result")
def _(liar: Liar) -> None:
    size = 9 * MEBIBYTE
    liar.hello()
    liar.end(liar.next_call(), payload=b"\x80\x04B" + struct.pack("<I", size) + bytes(size) + b"\x940N.")


# ---- errors


def raises(description: object) -> Answer:
    return returns(pickle.dumps(description, 4), frames.RAISED)


DESCRIPTION: Mapping[str, Any] = {
    "type": ("builtins", "ValueError"),
    "bases": [("builtins", "Exception")],
    "text": "said",
    "args": ("said",),
    "args_are_faithful": True,
    "members": {},
    "attributes": {},
    "notes": [],
    "traceback": "Traceback (most recent call last):\n",
    "own_traceback": "",
    "children": [],
}
ERRORS: Mapping[str, Mapping[str, Any]] = {
    "escapes in the type's name": {"type": ("m" + ESCAPES, "E" + ESCAPES)},
    "escapes in the text": {"text": ESCAPES, "args": (ESCAPES,)},
    "escapes in the traceback": {"traceback": f"Traceback\n{ESCAPES}\n"},
    "escapes in notes": {"notes": [ESCAPES]},
    "escapes in a syntax error": {
        "type": ("builtins", "SyntaxError"),
        "members": {"msg": ESCAPES, "filename": ESCAPES, "text": ESCAPES, "lineno": 1, "offset": 1},
    },
    "escapes in a file name": {
        "type": ("builtins", "FileNotFoundError"),
        "members": {"errno": 2, "strerror": ESCAPES, "filename": ESCAPES},
    },
    "trio.Cancelled": {"type": ("trio", "Cancelled")},
    "KeyboardInterrupt": {"type": ("builtins", "KeyboardInterrupt"), "bases": [("builtins", "BaseException")]},
    "SystemExit": {"type": ("builtins", "SystemExit"), "args": (0,), "bases": [("builtins", "BaseException")]},
    "StopIteration": {"type": ("builtins", "StopIteration")},
    "GeneratorExit": {"type": ("builtins", "GeneratorExit")},
    "HostLost": {"type": ("trickle", "HostLost")},
    "a class that is no exception": {"type": ("subprocess", "Popen"), "args": (("true",),)},
    "a dotted class": {"type": ("os", "path.os.error")},
    "a class that is not imported": {"type": ("antigravity", "Error")},
    "a class whose __init__ acts": {"type": ("tests.hostile.victims", "ActsInInit")},
    "a method among the attributes": {"attributes": {"with_traceback": 1, "add_note": 2, "args": 3, "host": 4}},
    "dunders among the attributes": {"attributes": {"__class__": 1, "__dict__": 2, "__traceback__": 3}},
    "a thousand bases": {"bases": [("m", f"B{number}") for number in range(1000)]},
    "huge texts": {"text": "x" * 200_000, "traceback": "y" * 200_000, "notes": ["z" * 100_000] * 3},
    "newlines without end": {"text": "\n" * 300_000},
    "a format string": {"text": "%s%s%n{0.__class__}", "args": ("%s{}",)},
}
for name, changes in ERRORS.items():
    add_answer(f"error: {name}", raises({**DESCRIPTION, **changes}), "RemoteError")

NO_ERRORS: Mapping[str, object] = {
    "a number": 5,
    "no fields": {},
    "a type of three": {**DESCRIPTION, "type": ("a", "b", "c")},
    "a type that is no text": {**DESCRIPTION, "type": (1, 2)},
    "a description as its own child": None,
    "children that are none": {**DESCRIPTION, "children": [1, 2]},
    "two thousand children": {**DESCRIPTION, "children": [DESCRIPTION] * 2000},
}


def own_child() -> dict[str, Any]:
    description = dict(DESCRIPTION)
    description["children"] = [description]
    return description


for name, something in NO_ERRORS.items():
    add_answer(f"error: {name}", raises(own_child() if something is None else something), "UnsafeResult")
add_answer("error: of 2 MiB", raises({**DESCRIPTION, "text": "x" * 2 * MEBIBYTE}), "UnsafeResult")


# ---- the wire: what comes instead of frames


def says(data: bytes) -> Callable[[Liar], None]:
    def run(liar: Liar) -> None:
        liar.hello()
        liar.next_call()
        liar.raw(data)

    return run


def msgpack(*parts: bytes) -> bytes:
    return b"".join(parts)


U32 = b"\xce" + struct.pack(">I", 1)
NO_FRAMES: Mapping[str, bytes] = {
    "text": b"hello, this is a line of text, and no frame of any kind\n" * 10,
    "the byte that msgpack never uses": b"\xc1" * 100,
    "a map": b"\x81\xa1a\x01" * 20,
    "a number": b"\x05" * 100,
    "an array of four": msgpack(b"\x94", b"\x0a", U32, U32, U32) * 5,
    "an array of six": msgpack(b"\x96", b"\x0a", U32, U32, U32, b"\xc4\x00", b"\xc4\x00") * 5,
    "an array of 2**32": b"\xdd\xff\xff\xff\xff" + b"\x01" * 100,
    "a payload of 4 GiB": msgpack(b"\x95", b"\x0a", U32, U32, U32, b"\xc6\xff\xff\xff\xff") + bytes(100),
    "a payload of a chunk and a byte": msgpack(b"\x95", b"\x04", U32, U32, U32, b"\xc6", struct.pack(">I", CHUNK + 1)),
    "a payload that is text": msgpack(b"\x95", b"\x0a", U32, U32, U32, b"\xa3abc"),
    "a negative number": msgpack(b"\x95", b"\x0a", b"\xff", U32, U32, b"\xc4\x00"),
    "a number of 64 bits": msgpack(b"\x95", b"\x0a", b"\xcf" + b"\xff" * 8, U32, U32, b"\xc4\x00"),
    "an extension type": msgpack(b"\x95", b"\x0a", b"\xc7\x01\x05\x00", U32, U32, b"\xc4\x00"),
    "arrays in arrays": b"\x95" * 300_000,
    "kind 0": msgpack(b"\x95", b"\x00", U32, U32, U32, b"\xc6\x00\x00\x00\x00"),
    "an unknown kind": msgpack(b"\x95", b"\x63", U32, U32, U32, b"\xc6\x00\x00\x00\x00"),
    "a kind that is text": msgpack(b"\x95", b"\xa1a", U32, U32, U32, b"\xc4\x00"),
}
for name, data in NO_FRAMES.items():
    add(f"wire: {name}", says(data), "call", "ProtocolError", "broke the rules of the wire")

# ---- the wire: frames that are not for an agent to say, or not now; call 1 is running


def tells(*said: Frame) -> Callable[[Liar], None]:
    def run(liar: Liar) -> None:
        liar.hello()
        liar.next_call()
        liar.say(*said)

    return run


OUT_OF_PLACE: Mapping[str, Iterable[Frame]] = {
    "a call to the controller": [frames.Call(5, NEVER, 0, b"x")],
    "a call with arguments to follow": [frames.Begin(5, NEVER)],
    "a session": [frames.Session(9)],
    "a cancel": [frames.Cancel(1)],
    "a renewed deadline": [frames.Renew(1, 1000)],
    "modules for the controller": [frames.Modules(0, 1, 0, b"x")],
    "a close": [frames.Close(0)],
    "hello twice": [frames.Hello(0, frames.VERSION, 0, b"x")],
    "a result of a call that was never made": [End(77, frames.RETURNED)],
    "a result of no call": [End(0, frames.RETURNED)],
    "a part for a call that was never made": [Data(77, 0, 0, b"x")],
    "output of a call that was never made": [Output(77, 1, 0, b"x\n")],
    "a record of a call that was never made": [Record(77, 20, 0, b"a\0b")],
    "credit for a call that was never made": [Credit(77, 5)],
    "a part of no call": [Data(0, 0, 0, b"x")],
    "a verdict that there is not": [End(1, 99)],
    "verdict 0": [End(1, 0)],
    "two ends of one call": [End(1, frames.RETURNED, 0, b"\x80\x04N."), End(1, frames.RETURNED)],
    "a part behind the end": [End(1, frames.RETURNED, 0, b"\x80\x04N."), Data(1, 0, 0, b"x")],
    "a thing in a call where nothing flows": [Item(1, frames.LAST, 0, b"x")],
    "an acknowledgement of what was never sent": [Ack(0, 10**6)],
    "an acknowledgement of a call": [Ack(1, 1)],
    "credit that was never used": [Credit(1, NEVER)],
    "credit of nothing": [Credit(1, 0)],
    "an acknowledgement of nothing": [Ack(0, 0)],
    "output of nothing": [Output(1, 1)],
    "a part of nothing": [Data(1)],
}
for name, said in OUT_OF_PLACE.items():
    add(f"wire: {name}", tells(*said), "call, then another", "ProtocolError", "broke the rules of the wire")

BAD_ITEMS: Mapping[str, Iterable[Frame]] = {
    "unknown flags": [Item(1, 99, 0, b"x")],
    "an end with something in it": [Item(1, frames.EOF, 0, b"x")],
    "an end in the middle of a thing": [Item(1, 0, 0, b"x"), Item(1, frames.EOF)],
    "a thing behind the last": [Item(1, frames.EOF), Item(1, frames.LAST, 0, b"\x80\x04N.")],
}
TOO_MANY_ITEMS: Mapping[str, Iterable[Frame]] = {
    "things beyond the credit": [Item(1, frames.LAST, 0, b"\x80\x04N." + bytes(CHUNK - 4))] * 6,
    "empty things beyond the credit": [Item(1, frames.LAST)] * 5000,
}
for name, said in BAD_ITEMS.items():
    add(f"flow: {name}", tells(*said), "stream", "ProtocolError", "broke the rules of the wire")
for name, said in TOO_MANY_ITEMS.items():
    add(f"flow: {name}", tells(*said), "stream, not read", "ProtocolError", "above the credit")


@attack("flow: a thing that is no data", "UnsafeResult", verb="stream")
def _(liar: Liar) -> None:
    liar.hello()
    liar.item(liar.next_call(), pickled(global_("os", "system") + shell(liar) + b"R"))


@attack("flow: the pipe of a process that there is not", "ProtocolError", verb="process")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    liar.item(id, pickle.dumps(("started", 5, b""), 4))
    liar.item(id, pickle.dumps(("data", 17, b"x"), 4))


@attack("flow: what no process says", "ProtocolError", verb="process")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    liar.item(id, pickle.dumps(["what", {"is": "this"}], 4))


# ---- the wire: hellos


def greets(**changes: str) -> Callable[[Liar], None]:
    return lambda liar: liar.hello(**changes)


HELLOS: Mapping[str, Callable[[Liar], object]] = {
    "another version of the wire": lambda liar: liar.hello(77),
    "no hello": lambda liar: (liar.marker(), liar.say(Ping())),
    "a hello of a call": lambda liar: (liar.marker(), liar.greet(id=1)),
    "a hello that says nothing": lambda liar: (liar.marker(), liar.say(frames.Hello(0, frames.VERSION))),
    "a hello that is noise": lambda liar: (
        liar.marker(),
        liar.say(frames.Hello(0, frames.VERSION, 0, os.urandom(CHUNK))),
    ),
    "a pid of 60,000 digits": greets(pid="9" * 60_000),
    "a version of 60,000 digits": greets(python_version="3.11." + "9" * 60_000),
    "a version of four numbers": greets(python_version="3.11.2.4"),
    "a result before the hello": lambda liar: (liar.marker(), liar.say(End(1, frames.RETURNED))),
}
for name, greet in HELLOS.items():
    add(f"hello: {name}", greet, "call, first", "ProtocolError", "broke the rules of the wire")


@attack("hello: escapes in all that it says", "", verb="info")
def _(liar: Liar) -> None:
    liar.hello(**{name: ESCAPES for name in ABOUT if name not in ("pid", "python_version", "lacks")})


@attack("hello: a name of 60,000 characters", "", verb="info")
def _(liar: Liar) -> None:
    liar.hello(hostname="x" * 60_000)


@attack("hello: a megabyte of noise before it", "ProtocolError", verb="connect")
def _(liar: Liar) -> None:
    liar.raw(b"noise\n" * 300_000)


@attack("hello: prompts without end", "ConnectError", verb="connect")
def _(liar: Liar) -> None:
    os.write(2, f"[trickle {liar.nonce}] password for root: ".encode() * 1000)
    os.close(1)


@attack("hello: escapes in its last words", "ConnectError", verb="connect")
def _(liar: Liar) -> None:
    os.write(2, ESCAPES.encode() * 100)
    os._exit(3)


# ---- floods

FLOODS: Mapping[str, Iterable[Frame]] = {
    "heartbeats": [Ping()],
    "notes": [Note(0, 20, 0, b"x")],
    "empty records": [Record(1, 20)],
    "empty output": [Output(0, 1)],
    "results of nobody's calls": [End(5, frames.RETURNED)],
}
for name, said in FLOODS.items():

    def run(liar: Liar, said: Iterable[Frame] = said) -> None:
        liar.hello()
        liar.next_call()
        while True:
            liar.flood(*said)

    add(f"flood: {name}", run, "call", "ProtocolError", "broke the rules of the wire")


@attack("flood: half a frame, for ever", "ProtocolError", "no whole frame", verb="call, short lease")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    liar.raw(frames.encode(Output(0, 1, 0, bytes(CHUNK)))[:100])
    while True:
        liar.raw(b"x")
        os.stat("/")
        import time

        time.sleep(0.05)


@attack("flood: heartbeats and nothing else", "HostLost", "no verdict", verb="call, cancelled")
def _(liar: Liar) -> None:
    import time

    liar.hello()
    while True:
        liar.say(Ping())
        time.sleep(0.05)


def chatters(*said: Frame, size: int) -> Callable[[Liar], None]:
    """What is allowed, and a lot of it; then an end."""

    def run(liar: Liar) -> None:
        liar.hello()
        id = liar.next_call()
        sent = 0
        some = b"".join(map(frames.encode, said)) * max(1, CHUNK // sum(len(frames.encode(each)) for each in said))
        room = Credit if isinstance(said[0], Output) else Ack
        weight = sum(map(cost, said)) * max(1, CHUNK // sum(len(frames.encode(each)) for each in said))
        unacked = 0
        while sent < size:
            liar.raw(some)
            sent += len(some)
            unacked += weight
            while unacked > 128 * 1024:
                unacked -= liar.next_frame(room).size
        liar.end(id)

    return run


CHATTER: Mapping[str, tuple[Frame, int]] = {
    "nothing but newlines": (Output(1, 1, 0, b"\n" * CHUNK), MEBIBYTE // 4),
    "lines of one character": (Output(1, 1, 0, b"x\n"), MEBIBYTE),
    "a line without an end": (Output(1, 1, 0, b"x" * CHUNK), 4 * MEBIBYTE),
    "records of one character": (Record(1, 20, 0, b"a\0b"), MEBIBYTE // 2),
    "records of newlines": (Record(1, 20, 0, b"a\0" + b"\n" * 60_000), 2 * MEBIBYTE),
    "records of a level that there is not": (Record(1, NEVER, 0, b"a\0" + b"x" * 1000), MEBIBYTE // 8),
    "escapes in lines": (Output(1, 2, 0, (ESCAPES + "\n").encode() * 1000), MEBIBYTE // 4),
    "bytes that are no text": (Output(1, 1, 0, b"\xff\xfe\x80" * 20_000), MEBIBYTE),
    "format strings in records": (Record(1, 40, 0, b"%s%d\0%s%s%s%(x)s {} %n"), MEBIBYTE // 8),
    "escapes in records": (Record(1, 40, 0, f"{ESCAPES}\0{ESCAPES}".encode() * 20), MEBIBYTE // 8),
    "streams that there are not": (Output(1, NEVER, 0, b"x\n" * 1000), MEBIBYTE // 8),
}
for name, (frame, size) in CHATTER.items():
    add(f"output: {name}", chatters(frame, size=size), "call", "")


@attack("output: escapes in notes", "", verb="call")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    liar.say(*[Note(0, NEVER, 0, f"{ESCAPES}\n%s".encode())] * 100)
    liar.end(id)


@attack("output: more than anybody takes", "ProtocolError", "output that nobody has taken", verb="call, deaf sink")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    while True:
        liar.flood(Output(0, 1, 0, b"x\n" * 1000))


@attack("output: more than its call may", "ProtocolError", "above the credit of call", verb="call, deaf sink")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    while True:
        liar.flood(Output(1, 1, 0, b"x\n" * 1000))


@attack("output: on stderr, without end", "", verb="call")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    for _ in range(32):
        os.write(2, (ESCAPES + "\n").encode() * 2000)
    liar.end(id)


# ---- modules


def described(kind: str, reason: str, content: bytes) -> str:
    """What an answer says, with the names in a list of files."""
    return f"files: {zlib.decompress(content).decode()}" if kind == "listing" else kind


QUESTIONS: Mapping[str, Iterable[str]] = {
    "../../etc/passwd": ["../../etc/passwd", "../../../../../../etc/passwd", "..", "."],
    "absolute names": ["/etc/passwd", "//etc/passwd", "file:///etc/passwd"],
    "files above a package": [
        "tests/../../../etc/passwd",
        "tests/hostile/../../../pyproject.toml",
        "tests//etc/passwd",
    ],
    "absolute files of a package": ["tests//etc/passwd", "tests/ /etc/passwd"],
    "a link out of a package": ["linked", "linked/", "linked/passwd", "linked/inner/passwd"],
    "__main__": ["__main__", "__main__/", "__main__/x.py", "__mp_main__"],
    "names with NUL and newlines": ["os\0/etc/passwd", "tests/\0", "tests\n/etc/passwd", ESCAPES],
    "data of a package that the policy keeps": ["secretive.data", "secretive.data/", "secretive.data/keys.txt"],
    "metadata above": ["@../../etc/passwd", "@/etc/passwd", "@" + "x" * 1000],
    "the standard library": ["os", "os/", "encodings/", "json/__init__.py"],
}
for name, keys in QUESTIONS.items():

    def run(liar: Liar, keys: Iterable[str] = keys) -> None:
        liar.hello()
        id = liar.next_call()
        found: dict[str, str] = {}
        for key in keys:
            liar.say(frames.Ask(0, 0, 0, key.encode("utf-8", "replace")))
            answer: dict[str, str] = {}
            while key not in answer:  # what the call needs comes too
                bundle = b""
                while True:
                    part = liar.next_frame(frames.Modules)
                    bundle += part.payload
                    if part.last:
                        break
                answer = {each[0]: described(*each[1:4]) for each in pickle.loads(bundle)}
            found.update(answer)
        liar.end(id, payload=pickle.dumps(found, 4))

    add(f"modules: {name}", run, "questions", "")


@attack("modules: 100,000 names", "ProtocolError", "modul")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    for number in range(100_000):
        liar.say(frames.Ask(0, 0, 0, b"no.such.module_%d" % number))


@attack("modules: a name of 60,000 characters", "ProtocolError", "modul")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    liar.say(frames.Ask(0, 0, 0, b"x" * 60_000))


@attack("modules: a dotted name of 1,000 characters", "ProtocolError", "characters")
def _(liar: Liar) -> None:
    liar.hello()
    liar.next_call()
    liar.say(frames.Ask(0, 0, 0, b"a." * 400 + b"b"))


# ---- files


def send_files(liar: Liar, id: int, what: str, value: list[Any], contents: Iterable[bytes] = ()) -> None:
    """Say something as a source says it."""
    if what == "write" and not contents:
        value, contents = files.take_contents(value)
    liar.item(id, b"".join(files.message(pickle.dumps((what, value), 4), list(contents))))


def ends_well(liar: Liar, id: int) -> None:
    liar.say(Item(id, frames.EOF))
    liar.end(id, payload=pickle.dumps({"special": []}, 4))


def entry(below: bytes, kind: str = files.FILE, size: int = 0, target: bytes = b"", mode: int = 0o644) -> Any:
    return (below, kind, size, mode, 10**18, target, 0, 0)


TOP = entry(b"", files.DIRECTORY, mode=0o755)


def lists(*entries: Any) -> Callable[[Liar], None]:
    """A tree that holds such entries."""

    def run(liar: Liar) -> None:
        liar.hello()
        id = liar.next_call()
        send_files(liar, id, "list", [TOP, *entries])
        liar.next_item()
        ends_well(liar, id)

    return run


LISTED: Mapping[str, tuple[Any, ...]] = {
    "..": (entry(b"..", files.DIRECTORY),),
    "a file above": (entry(b"../ran"),),
    "a file above, behind a directory": (entry(b"d", files.DIRECTORY), entry(b"d/../../ran")),
    "an absolute name": (entry(b"/tmp/ran"),),
    "an empty part of a name": (entry(b"d", files.DIRECTORY), entry(b"d//ran")),
    "a name with NUL": (entry(b"x\0y"),),
    "a name that is text": (entry("x"),),  # type: ignore[arg-type]
    "a directory behind a link": (entry(b"l", files.LINK, target=b"/tmp"), entry(b"l/ran", files.DIRECTORY)),
    "a file behind a link": (entry(b"l", files.LINK, target=b"/tmp"), entry(b"l/ran")),
    "a link, then a directory of its name": (
        entry(b"l", files.LINK, target=b"/tmp"),
        entry(b"l", files.DIRECTORY),
        entry(b"l/ran"),
    ),
    "a file in a directory that was not listed": (entry(b"d/ran"),),
    "a device": (entry(b"x", "device"),),
    "a FIFO": (entry(b"x", "fifo"),),
    "a hard link": (entry(b"x", "hard link", target=b"/etc/passwd"),),
    "what is neither": (entry(b"x", files.OTHER),),
    "a size below nothing": (entry(b"x", size=-5),),
    "a size that is text": (entry(b"x", size="5"),),  # type: ignore[arg-type]
    "a mode that is text": ((b"x", files.FILE, 0, "rwx", 0, b"", 0, 0),),
    "an entry of two": ((b"x", files.FILE),),
    "the top twice": (TOP,),
}
for name, listed in LISTED.items():
    add(f"fetch: {name}", lists(*listed), "fetch", "ProtocolError|OSError")


@attack("fetch: a link at the top", "ProtocolError", verb="fetch")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [entry(b"", files.LINK, target=b"/etc/passwd")])
    liar.next_item()
    ends_well(liar, id)


def writes(*ops: Any, size: int = 5) -> Callable[[Liar], None]:
    """One file, of which *ops* come."""

    def run(liar: Liar) -> None:
        liar.hello()
        id = liar.next_call()
        send_files(liar, id, "list", [TOP, entry(b"x", size=size)])
        liar.next_item()
        send_files(liar, id, "write", list(ops))
        ends_well(liar, id)

    return run


WRITTEN: Mapping[str, tuple[Any, ...]] = {
    "a wrong checksum": ((files.WHOLE, 1, b"\0" * 32, b"hello"),),
    "contents of nothing": ((files.DATA, b"hello"),),
    "contents of a directory": ((files.WHOLE, 0, b"\0" * 32, b"hello"),),
    "contents of what was not listed": ((files.WHOLE, 99, b"\0" * 32, b"hello"),),
    "an unknown operation": ((77, 1),),
    "a hole of less than nothing": ((files.OPEN, 1), (files.HOLE, -5)),
    "more bytes than it said": ((files.OPEN, 1), (files.DATA, bytes(300_000))),
    "a hole that is larger than it said": ((files.OPEN, 1), (files.HOLE, 10**7)),
    "what was never there is the same": ((files.UNCHANGED, 1),),
    "half of a file": ((files.OPEN, 1), (files.DATA, b"he")),
}
for name, ops in WRITTEN.items():
    add(f"fetch: {name}", writes(*ops), "fetch", "ProtocolError|OSError")


@attack("fetch: what no source says", "ProtocolError", verb="fetch")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "remove", [b"x"])


@attack("fetch: no message but a number", "ProtocolError", verb="fetch")
def _(liar: Liar) -> None:
    liar.hello()
    liar.item(liar.next_call(), pickle.dumps(5, 4))


@attack("fetch: contents without end", "OSError", "max_size", verb="fetch, bounded")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [entry(b"", size=-1)])
    liar.next_item()
    send_files(liar, id, "write", [(files.OPEN, 0)])
    while True:
        send_files(liar, id, "write", [(files.HOLE, 2**40)])


@attack("fetch: names without end", "OSError", "a list of files, beyond 16777216 bytes: ", verb="fetch, bounded")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [TOP])
    liar.next_item()
    for number in range(10**6):
        send_files(
            liar, id, "list", [entry(b"%d-%d" % (number, each), files.LINK, target=b"x/" * 2000) for each in range(100)]
        )
        liar.next_item()


@attack("fetch: a size beyond all bounds", "OSError", "max_size", verb="fetch, bounded")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [entry(b"", size=2**62)])
    liar.stay()


@attack("fetch: contents that are not there", "ProtocolError", verb="fetch")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [entry(b"", size=5)])
    liar.next_item()
    send_files(liar, id, "write", [(files.OPEN, 0), (files.DATA, 10**9)], [b"hello"])


@attack("fetch: a set-user-ID file", "", verb="fetch")
def _(liar: Liar) -> None:
    liar.hello()
    id = liar.next_call()
    send_files(liar, id, "list", [entry(b"", size=5, mode=0o6755)])
    liar.next_item()
    send_files(liar, id, "write", [(files.WHOLE, 0, hashlib.sha256(b"hello").digest(), b"hello")])
    ends_well(liar, id)
