"""The controller's reader of frames: also of those in other widths than ours.  What frames mean is _wire's job.

What our agents write is read as they read it, by one ``struct``; msgpack's C unpacker, with bounds, reads what else is
msgpack.  Its own checks are not enough, and those around it cost more than the ``struct`` does: hence this order.
"""

from __future__ import annotations

import msgpack

from trickle._wire.frames import CHUNK, KINDS, NEVER, Decoder, Frame, WireError

READ_SIZE = 256 * 1024  # bytes read at once
_LARGEST_FRAME = CHUNK + 64  # bytes: its header takes less than that, in whatever widths

_SHAPE = (int, int, int, int, bytes)


class MsgpackDecoder(Decoder):
    """Cuts a stream of bytes into frames; of no more use once it has refused something."""

    def __init__(self) -> None:
        super().__init__(views=CHUNK - 1)  # of whole chunks alone: a view keeps all that was read together
        self._others: _AnyWidths | None = None

    def _other_shape(self, found: list[Frame], data: bytes) -> list[Frame]:
        self._rest = None
        self._others = _AnyWidths()
        return found + self._feed_more(data)

    def _feed_more(self, data: bytes) -> list[Frame]:
        others, self._others = self._others, None  # unless this goes well
        if others is None:
            return super()._feed_more(data)
        found = others.feed(data)
        self._others = others
        return found


class _AnyWidths:
    """Reads frames in whatever widths msgpack has."""

    def __init__(self) -> None:
        # Nothing that an agent sends is larger than this, so a larger length is refused before it costs memory.
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            raw=True,
            max_buffer_size=READ_SIZE + _LARGEST_FRAME,
            max_array_len=5,
            max_bin_len=CHUNK,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._fed = 0  # bytes, and how many of them the last frame ended at
        self._read = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that *data* completes."""
        unpacker = self._unpacker
        found = []
        try:
            for start in range(0, len(data), READ_SIZE):
                part = data[start : start + READ_SIZE]
                unpacker.feed(part)
                self._fed += len(part)
                for item in unpacker:
                    found.append(_frame_of(item))
                    self._read = unpacker.tell()
                # Arrays within arrays stay within all the bounds above, and need never end.
                if self._fed - self._read > _LARGEST_FRAME:
                    raise WireError(f"not a frame: more than {_LARGEST_FRAME} bytes, and no end of it")
        except (msgpack.UnpackException, ValueError) as exc:
            raise WireError(f"not msgpack within bounds: {type(exc).__name__}: {str(exc)[:100]}") from exc
        return found


def _frame_of(item: object) -> Frame:
    if not isinstance(item, tuple) or tuple(map(type, item)) != _SHAPE:
        raise WireError(f"not a frame: {_described(item)}")
    kind, id, a, b, payload = item
    if kind not in KINDS:
        raise WireError(f"a frame of unknown kind {kind}")
    if not all(0 <= number <= NEVER for number in (id, a, b)):
        raise WireError("a frame with a number that is too large")
    return KINDS[kind](id, a, b, payload)


def _described(item: object) -> str:
    """What was sent instead.  Not its repr, which may take very long, or more stack than there is."""
    if isinstance(item, tuple):
        return f"an array of ({', '.join(type(part).__name__ for part in item)})"
    return f"{type(item).__name__} {str(item)[:100]}" if isinstance(item, int) else type(item).__name__
