"""The state of one connection: who may say what, what goes first, and how much may be under way.  No I/O, no clock.

Both ends use it.  What is to be sent goes out in this order: control frames, which never wait for room; calls and
results that fit a small frame; then bulk, one chunk of each call in turn, as far as the call's credit and the
connection's window allow.  Nothing overtakes the first frame of its own call, and a call's End overtakes nothing of it.
"""

from collections import OrderedDict, deque

from trickle._wire import frames
from trickle._wire.frames import (
    CHUNK,
    Ack,
    Begin,
    Call,
    Close,
    Credit,
    Data,
    End,
    Frame,
    Hello,
    Modules,
    Ping,
    Session,
    WireError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, Dict, Iterable, List, Optional, Tuple, Union


CONTROLLER, AGENT = "controller", "agent"

SMALL = 4 * 1024  # bytes: a call or result of no more than this is not bulk
CREDIT = 256 * 1024  # bytes of one call that its receiver takes before it has used any of them
# A call that has moved this much gets more credit, or one long way would take CREDIT bytes for each round trip; but no
# more than so many at once, which bounds what lies here for those who do not take it.
WIDEN_AFTER, WIDE_CREDIT, MOST_WIDE = 512 * 1024, 2 * 1024 * 1024, 4
GRANT, WIDE_GRANT = 64 * 1024, 512 * 1024  # bytes that are used up before the sender is told so
# Bytes of bulk that have come before the sender is told so.  With more, what fits the smallest window besides would be
# so little that the link seems to be idle, and the window would never grow.
ACK_AFTER = 64 * 1024
SMALLEST_WINDOW, LARGEST_WINDOW = 256 * 1024, 4 * 1024 * 1024  # bytes of bulk on the link at once
WINDOW_SECONDS = 0.1  # of what the link moves: more would only wait in a kernel or an ssh
BATCH = 256 * 1024  # bytes handed out at once: what a pipe takes in a few writes
# Bytes of one thing that are let in however small max_payload is, to which the sender of what users send holds it.
LEAST_PAYLOAD = 2**20  # the description of an error, and a message about a process, take less than that
LARGEST_MESSAGE = 64 * 2**20  # of a transfer: the hashes of a file's blocks, or the names of files, take less

# The life of a call, as both ends see it: (state, who speaks, frame) -> the state after it.  A frame that is not
# here breaks the rules.  "ended" is not kept: an id below the newest that is not open has ended.
IDLE, SENDING, RUNNING, ENDED = "idle", "sending", "running", "ended"
STATES = {
    (IDLE, CONTROLLER, frames.Call): RUNNING,
    (IDLE, CONTROLLER, frames.Begin): SENDING,
    (IDLE, CONTROLLER, frames.Session): RUNNING,
    (SENDING, CONTROLLER, frames.Data): SENDING,  # RUNNING after the last one
    (SENDING, CONTROLLER, frames.Cancel): SENDING,
    (SENDING, CONTROLLER, frames.Renew): SENDING,
    (SENDING, CONTROLLER, frames.Grace): SENDING,
    (SENDING, CONTROLLER, frames.Credit): SENDING,
    (RUNNING, CONTROLLER, frames.Cancel): RUNNING,
    (RUNNING, CONTROLLER, frames.Renew): RUNNING,
    (RUNNING, CONTROLLER, frames.Grace): RUNNING,
    (RUNNING, CONTROLLER, frames.Credit): RUNNING,
    (RUNNING, CONTROLLER, frames.Item): RUNNING,
    (SENDING, AGENT, frames.Credit): SENDING,
    (SENDING, AGENT, frames.Output): SENDING,  # of what an earlier call left running in the same worker
    (SENDING, AGENT, frames.Record): SENDING,
    (SENDING, AGENT, frames.End): ENDED,
    (RUNNING, AGENT, frames.Credit): RUNNING,  # crossed with the last part
    (RUNNING, AGENT, frames.Data): RUNNING,
    (RUNNING, AGENT, frames.Item): RUNNING,
    (RUNNING, AGENT, frames.Output): RUNNING,
    (RUNNING, AGENT, frames.Record): RUNNING,
    (RUNNING, AGENT, frames.Note): RUNNING,
    (RUNNING, AGENT, frames.End): ENDED,
    # These may still be under way when the agent ends the call.
    (ENDED, CONTROLLER, frames.Data): ENDED,
    (ENDED, CONTROLLER, frames.Item): ENDED,
    (ENDED, CONTROLLER, frames.Cancel): ENDED,
    (ENDED, CONTROLLER, frames.Renew): ENDED,
    (ENDED, CONTROLLER, frames.Grace): ENDED,
    (ENDED, CONTROLLER, frames.Credit): ENDED,
}
# Frames that belong to no call, with id 0.
LINK_FRAMES = {
    CONTROLLER: (frames.Ack, frames.Ping, frames.Modules, frames.Close),
    AGENT: (frames.Ack, frames.Ping, frames.Ask, frames.Output, frames.Record, frames.Note),
}
BULK = (frames.Data, frames.Item, frames.Output, frames.Record, frames.Modules)
FLOWING = (frames.Data, frames.Item)  # what a call is about
CREDITED = (*FLOWING, frames.Output)  # what its receiver must have room for
NOT_FOR_OTHERS = (Ack, Credit)  # dealt with in here


class _Body:
    """A large payload on its way, cut into frames as there is room."""

    def __init__(self, id: int, pieces: "List[bytes]", kind: "Callable[..., Frame]") -> None:
        self.id = id
        self.kind = kind
        self.left = sum(map(len, pieces))
        self._parts = frames.chunks(pieces)

    def take(self) -> Frame:
        part = next(self._parts)
        self.left -= len(part)
        return self.kind(self.id, 0 if self.left else 1, 0, part)


def _size(item: "Union[Frame, _Body]") -> int:
    return item.left if isinstance(item, _Body) else len(item.payload)


def _weight(item: "Union[Frame, _Body]") -> int:
    """Bytes that what waits to be sent counts for: a frame of next to nothing takes memory too."""
    return item.left if isinstance(item, _Body) else len(item.payload) + frames.ITEM_COST


def cost(frame: Frame) -> int:
    """Bytes of credit that a frame takes."""
    return len(frame.payload) + (frames.ITEM_COST if isinstance(frame, (frames.Item, frames.Output)) else 0)


class _Call:
    """What this end remembers of an open call."""

    __slots__ = (
        "behind",
        "credit",
        "ending",
        "most",
        "queue",
        "queued",
        "received",
        "ring",
        "room",
        "sent",
        "state",
        "taken",
        "used",
        "wide",
    )

    def __init__(self, state: str, most: int = 0) -> None:
        self.state = state
        self.most = most  # bytes that the peer may send of it at once
        self.behind: "Optional[List[Frame]]" = None  # while its first frame has not left: what waits for that
        self.ending = False  # its End is in the queue
        self.queue: "Deque[Union[Frame, _Body]]" = deque()
        self.queued = 0  # bytes in the queue
        self.credit = CREDIT
        self.sent = 0  # bytes that took credit
        self.ring = False  # whether it is in line for the next chunk
        self.room = CREDIT  # bytes that the peer may send
        self.used = 0  # bytes taken by the receiver that the sender has not been told of
        self.taken = 0  # bytes that its receiver has taken so far
        self.wide = False  # whether the peer may send WIDE_CREDIT bytes of it
        self.received = 0

    @property
    def most_credit(self) -> int:
        """What the peer may have given: more only of what has moved much."""
        return WIDE_CREDIT if self.sent >= WIDEN_AFTER else CREDIT

    def can_go_on(self) -> bool:
        """Whether the call's credit lets the next of its queue go, if that needs any."""
        if not self.queue:
            return False
        item = self.queue[0]
        if isinstance(item, _Body):
            return self.credit >= min(CHUNK, item.left)
        return not isinstance(item, CREDITED) or self.credit >= cost(item)


class Window:
    """How many bytes of bulk may be on the link: what it moves in 100 ms, within bounds."""

    def __init__(self) -> None:
        self.size = SMALLEST_WINDOW
        self.in_flight = 0
        self._since = 0.0
        self._acked = 0

    def sent(self, count: int, now: float) -> None:
        if self.in_flight < ACK_AFTER:
            # The receiver need not tell of so little: the link was idle, and that time does not count.
            self._since, self._acked = now, -self.in_flight
        self.in_flight += count

    def acked(self, count: int, now: float) -> None:
        if count > self.in_flight:
            raise WireError("acknowledged %d bytes of %d" % (count, self.in_flight))
        self.in_flight -= count
        self._acked += count
        elapsed = now - self._since
        if self._acked >= self.size and elapsed > 0:
            wanted = int(self._acked / elapsed * WINDOW_SECONDS)
            self.size = max(SMALLEST_WINDOW, min(LARGEST_WINDOW, wanted))
            self._since, self._acked = now, 0

    @property
    def room(self) -> int:
        return self.size - self.in_flight


class Connection:
    """One end of a connection: bytes in, frames out, and the other way round.

    Args:
      role: CONTROLLER or AGENT, which end this is.
      decode: cuts bytes into frames.
      max_payload: bytes; what the peer may send for one call.
    """

    def __init__(self, role: str, decode: "Callable[[bytes], Iterable[Frame]]", max_payload: int) -> None:
        self.role = role
        self.peer = AGENT if role == CONTROLLER else CONTROLLER
        self.max_payload = max_payload
        self.bytes_sent = 0
        self.bytes_received = 0
        self.window = Window()
        self._decode = decode
        self._calls: "Dict[int, _Call]" = {}
        self._newest = 0
        self._greeted = False
        self._failed = False
        self._control: "Deque[Frame]" = deque()
        self._small: "OrderedDict[int, Tuple[Frame, Optional[float]]]" = OrderedDict()  # by id
        self._owing: "List[int]" = []  # calls whose sender is to be told of what was used
        self._ring: "Deque[_Call]" = deque()
        self._wide = 0  # how many calls are
        self._link_bulk = _Call(RUNNING)  # of id 0: modules, and output that belongs to no call
        self._link_bulk.credit = 1 << 62
        self._unacked = 0
        self._undelivered = 0  # bytes of output that have come, and have not reached whom they are for
        self._withheld = 0  # bytes of it that are acknowledged only then

    # ---- receiving

    def receive_data(self, data: bytes, now: float) -> "List[Frame]":
        """The frames that *data* completes, each checked; credits and acknowledgements are dealt with here.

        Raises:
          WireError: the peer broke the rules.  This connection is of no more use.
        """
        if self._failed:
            raise WireError("the peer broke the rules before")
        self._failed = True  # unless this goes well
        self.bytes_received += len(data)
        found = []
        for frame in self._decode(data):
            if not self._greeted:
                self._check_hello(frame)
            elif not frame.id:
                self._receive_link_frame(frame, now)
            elif not self._receive_call_frame(frame):
                continue
            if type(frame) not in NOT_FOR_OTHERS:
                found.append(frame)
        self._failed = False
        return found

    def _check_hello(self, frame: Frame) -> None:
        if not isinstance(frame, Hello) or frame.id:
            raise WireError("the first frame is %r, not a hello" % (frame,))
        if frame.version != frames.VERSION:
            raise WireError("version %d of the wire; this end speaks %d" % (frame.version, frames.VERSION))
        self._greeted = True

    def _receive_link_frame(self, frame: Frame, now: float) -> None:
        if type(frame) not in LINK_FRAMES[self.peer]:
            raise WireError("%r is not for the %s to say" % (frame, self.peer))
        if isinstance(frame, Ack):
            if not frame.size:
                raise WireError("%r of nothing" % (frame,))
            self.window.acked(frame.size, now)
        else:
            self._count_bulk(frame)

    def _receive_call_frame(self, frame: Frame) -> bool:
        """Whether the frame means anything: one for a call that has ended meanwhile does not."""
        kind = type(frame)
        if kind in BULK:
            self._count_bulk(frame)
        state = self._move(frame, self.peer)
        if state == ENDED and kind is not End:
            return False
        if kind is Credit or kind in CREDITED:
            call = self._calls[frame.id]
            if isinstance(frame, Credit):
                call.credit += frame.size
                if not frame.size:
                    raise WireError("%r of nothing" % (frame,))
                if call.credit > call.most_credit:
                    raise WireError("%d bytes of credit for call %d that had none to give" % (frame.size, frame.id))
                self._line_up(call)
            else:
                call.received += len(frame.payload) if isinstance(frame, FLOWING) else 0
                call.room -= cost(frame)
                if call.received > call.most:
                    raise WireError("more than %d bytes for call %d" % (call.most, frame.id))
                if call.room < 0:
                    raise WireError("%d bytes above the credit of call %d" % (-call.room, frame.id))
                if isinstance(frame, frames.Item) and frame.flags:
                    call.received = 0  # each thing may be as large as the arguments or the result
        return True

    def _count_bulk(self, frame: Frame) -> None:
        if not frame.payload and isinstance(frame, BULK) and not isinstance(frame, frames.Item):
            raise WireError("%r of nothing" % (frame,))  # it takes nothing of any bound, and so need never end
        if isinstance(frame, frames.Output):
            self._undelivered += len(frame.payload)
            if self._undelivered > LARGEST_WINDOW:
                self._withheld += len(frame.payload)
                if self._withheld > LARGEST_WINDOW:
                    raise WireError("more than %d bytes of output that nobody has taken" % (2 * LARGEST_WINDOW))
                return
        if isinstance(frame, BULK):
            self._unacked += len(frame.payload)

    def delivered(self, frame: "frames.Output") -> None:
        """What was printed has reached whom it is for: its call may print more, and so may the host."""
        size = len(frame.payload)
        self._undelivered -= size
        told = min(size, self._withheld)
        self._withheld -= told
        self._unacked += told
        call = self._calls.get(frame.id)
        if call is not None:
            self._owe(frame.id, call, cost(frame))

    def _move(self, frame: Frame, speaker: str) -> str:
        """Take the frame's step in the life of its call, and return the state after it."""
        call = self._calls.get(frame.id)
        before = call.state if call is not None else IDLE if frame.id > self._newest else ENDED
        after = STATES.get((before, speaker, type(frame)))
        if after is None:
            raise WireError("%r is not for the %s to say of a call that is %s" % (frame, speaker, before))
        if before == IDLE:
            self._newest = frame.id
            self._calls[frame.id] = _Call(after, self.max_payload)
        elif after == ENDED:
            self._forget(frame.id)
        elif isinstance(frame, Data) and frame.last and before == SENDING:
            after = RUNNING
        if call is not None:
            call.state = after
        return after

    def _forget(self, id: int) -> None:
        call = self._calls.pop(id, None)
        if call is None:
            return
        self._wide -= call.wide
        if call.ring:
            call.queue.clear()  # data_to_send drops it from the line

    def expect_messages(self, id: int) -> None:
        """Let in the messages of this call, which is a transfer, whatever max_payload is."""
        self._calls[id].most = max(self.max_payload, LARGEST_MESSAGE)

    def used(self, id: int, count: int) -> None:
        """Tell the sender, with what goes out next or with what follows, that *count* bytes of this call were taken."""
        call = self._calls.get(id)
        if call is None:
            return
        call.taken += count
        if call.taken >= WIDEN_AFTER and not call.wide and self._wide < MOST_WIDE:
            call.wide = True
            self._wide += 1
            count += WIDE_CREDIT - CREDIT
        self._owe(id, call, count)

    def _owe(self, id: int, call: _Call, count: int) -> None:
        grant = WIDE_GRANT if call.wide else GRANT
        if call.used < grant <= call.used + count:
            self._owing.append(id)
        call.used += count

    # ---- sending

    def control(self, frame: Frame) -> None:
        """Send a frame that never waits for room.

        A Session and a Close keep their place among the calls, whose order has a meaning.
        """
        if isinstance(frame, Session):
            self._start(frame, None)
        elif frame.id:
            self._move(frame, self.role)
            call = self._calls.get(frame.id)
            if call is not None and call.behind is not None:
                call.behind.append(frame)
            else:
                self._control.append(frame)
        elif not isinstance(frame, Hello) and type(frame) not in LINK_FRAMES[self.role]:
            raise WireError("%r is not for the %s to say" % (frame, self.role))
        elif isinstance(frame, Close):
            self._small[0] = frame, None
        elif not (isinstance(frame, Ping) and self._control):  # any frame is a sign of life
            self._control.append(frame)

    def call(self, id: int, session: int, payload: "Union[bytes, List[bytes]]", deadline: "Optional[float]") -> None:
        """Send a call.  *deadline* is by the clock of data_to_send, which turns it into the time that is left.

        Args:
          payload: a large one may come in pieces, which need not be copied.
        """
        pieces = [payload] if isinstance(payload, bytes) else payload
        size = sum(map(len, pieces))
        if size > self.max_payload:
            raise ValueError("%d bytes of arguments; max_payload is %d" % (size, self.max_payload))
        if size <= SMALL:
            self._start(Call(id, 0, session, b"".join(pieces)), deadline)
        else:
            self._start(Begin(id, 0, session), deadline)
            self._enqueue(self._calls[id], _Body(id, pieces, Data))

    def _start(self, frame: Frame, deadline: "Optional[float]") -> None:
        self._move(frame, self.role)
        self._calls[frame.id].behind = []
        self._small[frame.id] = frame, deadline

    def end(self, id: int, verdict: int, detail: int = 0, payload: bytes = b"") -> None:
        """Send a call's terminal frame, behind what it has written."""
        call = self._not_ended(id)
        start = 0
        while len(payload) - start > SMALL:
            self._enqueue(call, Data(id, 0, 0, payload[start : start + CHUNK]))
            start += CHUNK
        frame = End(id, verdict, detail, payload[start:])
        if call.queue:
            call.ending = True
            self._enqueue(call, frame)
        else:
            self._move(frame, self.role)
            self._small[id] = frame, None

    def _not_ended(self, id: int) -> _Call:
        call = self._calls.get(id)
        if call is None or call.ending:
            raise WireError("call %d has ended: nothing more can be said of it" % id)
        return call

    def drop(self, id: int) -> bool:
        """Forget the part of this call's payload, and the items, that have not left yet; what it printed stays.

        Returns:
          Whether there was any payload.  If so, an End behind it is forgotten too: it would not be true.
        """
        call = self._calls.get(id)
        if call is None:
            return False
        torn = any(isinstance(item, (_Body, Data)) for item in call.queue)
        unwanted = (_Body, End, *FLOWING) if torn else FLOWING
        call.queue = deque(item for item in call.queue if not isinstance(item, unwanted))
        call.queued = sum(_weight(item) for item in call.queue)
        call.ending = call.ending and not torn
        self._line_up(call)  # what is left may go without credit
        return torn

    def disown_output(self, id: int) -> None:
        """Have what this call has printed go out as no call's, so that its End need not wait for that."""
        call = self._calls.get(id)
        if call is None:
            return
        output = [item for item in call.queue if isinstance(item, (frames.Output, frames.Record))]
        call.queue = deque(item for item in call.queue if not isinstance(item, (frames.Output, frames.Record)))
        call.queued = sum(_weight(item) for item in call.queue)
        for frame in output:
            of = id if isinstance(frame, frames.Output) else 0
            self._enqueue(self._link_bulk, type(frame)(0, frame[1], of, frame.payload))
        self._line_up(call)

    def bulk(self, frame: Frame) -> None:
        """Send Data, an Item, Output or a Record, behind what this call has sent before."""
        if not frame.id:
            if type(frame) not in LINK_FRAMES[self.role]:
                raise WireError("%r is not for the %s to say" % (frame, self.role))
            self._enqueue(self._link_bulk, frame)
            return
        call = self._not_ended(frame.id)
        state = RUNNING if isinstance(frame, frames.Item) else call.state  # it waits behind the arguments
        if (state, self.role, type(frame)) not in STATES:
            raise WireError("%r is not for the %s to say of a call that is %s" % (frame, self.role, call.state))
        self._enqueue(call, frame)

    def modules(self, bundle: bytes) -> None:
        """Send a bundle of modules."""
        self._enqueue(self._link_bulk, _Body(0, [bundle], Modules))

    def withdraw(self, id: int) -> bool:
        """Take back a call of which nothing has left yet; False if it is too late for that."""
        call = self._calls.get(id)
        if call is None or call.behind is None:
            return False
        del self._small[id]
        self._forget(id)
        return True

    def is_open(self, id: int) -> bool:
        """Whether this call has not ended, and its end is not in the queue."""
        call = self._calls.get(id)
        return call is not None and not call.ending

    @property
    def is_drained(self) -> bool:
        """Whether every call has ended and all that there was to say has been handed out."""
        to_say = self._control or self._small or self._link_bulk.queue or self._unacked >= ACK_AFTER
        return not (self._calls or to_say)

    @property
    def has_to_send(self) -> bool:
        """Whether something waits to be sent, if only for room."""
        return bool(self._control or self._small or self._ring or self._owing or self._unacked >= ACK_AFTER)

    def pending(self, id: int) -> int:
        """Bytes of this call (0: of no call) that wait to be sent."""
        call = self._calls.get(id) if id else self._link_bulk
        return call.queued if call is not None else 0

    def _enqueue(self, call: _Call, item: "Union[Frame, _Body]") -> None:
        call.queue.append(item)
        call.queued += _weight(item)
        self._line_up(call)

    def _line_up(self, call: _Call) -> None:
        if not call.ring and call.can_go_on():
            call.ring = True
            self._ring.append(call)

    def data_to_send(self, now: float) -> "List[bytes]":
        """The next bytes for the pipe, in pieces; empty when there is nothing that may go now."""
        if self._owing or self._unacked >= ACK_AFTER:
            self._settle_debts()
        out: "List[bytes]" = []
        size = sum([frames.encode_to(out, frame) for frame in self._control])
        self._control.clear()
        while self._small and size < BATCH:
            for frame in self._next_small(now):
                size += frames.encode_to(out, frame)
        limit = max(BATCH, size + 1)  # one chunk goes in any case: small frames without end must not keep bulk waiting
        while self._ring and size < limit:
            call = self._ring[0]
            if call.queue and min(CHUNK, _size(call.queue[0])) > self.window.room:
                break
            self._ring.popleft()
            call.ring = False
            for frame in self._next_bulk(call, now):
                size += frames.encode_to(out, frame)
            self._line_up(call)
        self.bytes_sent += size
        return out

    def _settle_debts(self) -> None:
        """Tell the peer of what was heard and used.  Counted until now: one that does not listen costs no memory."""
        if self._unacked >= ACK_AFTER:
            count = min(self._unacked, frames.NEVER)
            self._unacked -= count
            self._control.append(Ack(0, count))
        for id in self._owing:
            call = self._calls.get(id)
            if call is not None and call.used:  # it may have come into line twice
                self._control.append(Credit(id, call.used))
                call.room += call.used
                call.used = 0
        self._owing.clear()

    def _next_small(self, now: float) -> "List[Frame]":
        """A call or a result, with what waited for it to go first."""
        id, (frame, deadline) = self._small.popitem(last=False)
        if isinstance(frame, (Call, Begin)):
            left = frames.NEVER if deadline is None else frames.milliseconds(deadline - now)
            frame = type(frame)(id, left, frame.session, frame.payload)
        call = self._calls.get(id)
        if call is None or call.behind is None:
            return [frame]
        behind, call.behind = call.behind, None
        return [frame, *behind]

    def _next_bulk(self, call: _Call, now: float) -> "List[Frame]":
        """The next part of what this call has to send; its End goes with the last, and so never waits for room."""
        if not call.queue:
            return []  # it ended while it stood in line
        found = [self._next_of(call, now)]
        if call.ending and len(call.queue) == 1:
            found.append(self._next_of(call, now))
        return found

    def _next_of(self, call: _Call, now: float) -> Frame:
        item = call.queue[0]
        call.queued -= _weight(item)
        if isinstance(item, _Body):
            frame = item.take()
            call.queued += _weight(item)
            if not item.left:
                call.queue.popleft()
        else:
            frame = item
            call.queue.popleft()
        size = len(frame.payload)
        if isinstance(frame, End):
            self._move(frame, self.role)
        elif isinstance(frame, CREDITED):
            call.credit -= cost(frame)
            call.sent += cost(frame)
            if self.role == CONTROLLER:
                self._move(frame, self.role)
        if isinstance(frame, BULK):
            self.window.sent(size, now)
        return frame
