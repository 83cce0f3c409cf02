"""The payload of a call: the pickled function and arguments, and what is not the default about running them."""

try:
    import _pickle as pickle  # pickle itself brings re
except ImportError:  # PyPy
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

PLAIN = b"\0"  # the first byte: no options
WITH_OPTIONS = b"\1"  # four bytes of length and a pickled dict come before the call


def pack_options(options: "Dict[str, Any]") -> bytes:
    """What comes before the call in a payload."""
    if not options:
        return PLAIN
    pickled = pickle.dumps(options, 4)
    return WITH_OPTIONS + len(pickled).to_bytes(4, "big") + pickled


def split_options(payload: bytes) -> "Tuple[Dict[str, Any], int]":
    """The options of a payload, and where its call begins."""
    if payload[:1] == PLAIN:
        return {}, 1
    end = 5 + int.from_bytes(payload[1:5], "big")
    return pickle.loads(payload[5:end]), end
