"""What the controller says before an agent has answered, in a form that is harmless wherever else it ends up.

Until then anything may read it: a shell behind a start-up file that has eaten our first lines, an interactive Python, a
router's command line, a terminal that acts on control characters.  To all of them it is one line without blanks, quotes
or control characters, whatever the calls' arguments are.  How the two ends take turns is _handshake.py's and
_agent/broker.py's job.
"""

import binascii

from trickle._wire.frames import WireError

END_OF_PART = b"."
END_OF_ARMOR = b"\n"


def armored(data: bytes) -> bytes:
    """One part: *data* in base64."""
    return binascii.b2a_base64(data, newline=False) + END_OF_PART


class Unarmor:
    """The stream as it was before: armored parts, an end, and from there on plain bytes."""

    def __init__(self) -> None:
        self._part = b""  # as far as it has come
        self._is_over = False

    def receive(self, data: bytes) -> bytes:
        """Take what has come; return what it says.

        Raises:
          WireError: it is not base64.
        """
        if self._is_over:
            return data
        line, end, plain = data.partition(END_OF_ARMOR)
        parts = (self._part + line).split(END_OF_PART)
        self._part = parts.pop()
        self._is_over = bool(end)
        if self._is_over and self._part:
            raise WireError("the armor ends in the middle of a part")
        try:
            return b"".join([binascii.a2b_base64(part) for part in parts]) + plain
        except binascii.Error as exc:
            raise WireError("a part of the armor is not base64: %s" % exc)
