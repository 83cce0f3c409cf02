"""The controller's reader of frames: msgpack's C unpacker, with bounds.  What frames mean is _wire's job."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from trickle._wire.frames import CHUNK, WireError

READ_SIZE = 256 * 1024  # bytes read at once
_HEADER_ROOM = 64  # bytes: more than any header takes


class MsgpackDecoder:
    """Cuts a stream of bytes into raw frames; of no more use once it has refused something."""

    def __init__(self) -> None:
        # Nothing that an agent sends is larger than this, so a larger length is refused before it costs memory.
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            raw=True,
            max_buffer_size=READ_SIZE + CHUNK + _HEADER_ROOM,
            max_array_len=5,
            max_bin_len=CHUNK,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._broken = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
        """The frames (kind, id, a, b, payload) that *data* completes."""
        if self._broken:
            raise WireError("this stream was refused before")
        try:
            self._unpacker.feed(data)
            for item in self._unpacker:
                match item:
                    case (int(), int(), int(), int(), bytes()) if type(item) is tuple:
                        yield item
                    case _:
                        raise WireError(f"not a frame: {str(item)[:100]}")
        except WireError:
            self._broken = True
            raise
        except (msgpack.UnpackException, ValueError, msgpack.BufferFull) as exc:
            self._broken = True
            raise WireError(f"not msgpack within bounds: {type(exc).__name__}: {str(exc)[:100]}") from exc
