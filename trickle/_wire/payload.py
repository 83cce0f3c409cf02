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


def join_options(options: "Dict[str, Any]", call: bytes) -> bytes:
    """One payload of the options and the call."""
    if not options:
        return PLAIN + call
    pickled = pickle.dumps(options, 4)
    return WITH_OPTIONS + len(pickled).to_bytes(4, "big") + pickled + call


def split_options(payload: bytes) -> "Tuple[Dict[str, Any], bytes]":
    """The options and the call that ``join_options`` put together."""
    if payload[:1] == PLAIN:
        return {}, payload[1:]
    end = 5 + int.from_bytes(payload[1:5], "big")
    return pickle.loads(payload[5:end]), payload[end:]
