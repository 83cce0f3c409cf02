"""What travels with a call beside the function: its environment variables and its working directory."""

import os

try:
    import _pickle as pickle
except ImportError:  # PyPy
    import pickle  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

PLAIN = b"\0"  # the first byte of a payload: no options
WITH_OPTIONS = b"\1"  # four bytes of length and a pickled dict come before the call


def join(options: "Dict[str, Any]", call: bytes) -> bytes:
    """One payload of a call and what is not the default about it."""
    if not options:
        return PLAIN + call
    pickled = pickle.dumps(options, 4)
    return WITH_OPTIONS + len(pickled).to_bytes(4, "big") + pickled + call


def split(payload: bytes) -> "Tuple[Dict[str, Any], bytes]":
    """The options and the call that ``join`` put together."""
    if payload[:1] == PLAIN:
        return {}, payload[1:]
    end = 5 + int.from_bytes(payload[1:5], "big")
    return pickle.loads(payload[5:end]), payload[end:]


class Surroundings:
    """Sets the environment and the working directory for one call, and puts them back."""

    def __init__(self, options: "Dict[str, Any]") -> None:
        self.environment: "Dict[str, Optional[str]]" = options.get("env") or {}
        self.directory = options.get("cwd")

    def __enter__(self) -> None:
        self._former = {name: os.environ.get(name) for name in self.environment}
        self._former_directory = os.getcwd() if self.directory else None
        if self.directory:
            os.chdir(self.directory)
        _set(self.environment)

    def __exit__(self, *exc_info: "Any") -> None:
        _set(self._former)
        if self._former_directory:
            os.chdir(self._former_directory)


def _set(environment: "Dict[str, Optional[str]]") -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
