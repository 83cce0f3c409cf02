"""The controller's reader of frames: msgpack's C unpacker, with bounds.  What frames mean is _wire's job."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from trickle._wire.frames import CHUNK, WireError

READ_SIZE = 256 * 1024  # bytes read at once
_LARGEST_FRAME = CHUNK + 64  # bytes: its header takes less than that, in whatever widths

_SHAPE = (int, int, int, int, bytes)


class MsgpackDecoder:
    """Cuts a stream of bytes into raw frames; of no more use once it has refused something."""

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
        self._failed = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
        """The frames (kind, id, a, b, payload) that *data* completes."""
        if self._failed:
            raise WireError("this stream was refused before")
        unpacker = self._unpacker
        try:
            for start in range(0, len(data), READ_SIZE):
                part = data[start : start + READ_SIZE]
                unpacker.feed(part)
                self._fed += len(part)
                for item in unpacker:
                    if type(item) is not tuple or tuple(map(type, item)) != _SHAPE:
                        raise WireError(f"not a frame: {_described(item)}")
                    self._read = unpacker.tell()
                    yield item
                # Arrays within arrays stay within all the bounds above, and need never end.
                if self._fed - self._read > _LARGEST_FRAME:
                    raise WireError(f"not a frame: more than {_LARGEST_FRAME} bytes, and no end of it")
        except WireError:
            self._failed = True
            raise
        except (msgpack.UnpackException, ValueError) as exc:
            self._failed = True
            raise WireError(f"not msgpack within bounds: {type(exc).__name__}: {str(exc)[:100]}") from exc


def _described(item: object) -> str:
    """What was sent instead.  Not its repr, which may take very long, or more stack than there is."""
    if isinstance(item, tuple):
        return f"an array of ({', '.join(type(part).__name__ for part in item)})"
    return f"{type(item).__name__} {str(item)[:100]}" if isinstance(item, int) else type(item).__name__
