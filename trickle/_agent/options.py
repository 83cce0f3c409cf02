"""Set what a call asks of its surroundings: environment variables and the working directory."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional


class Surroundings:
    """Sets the environment and the working directory for one call, and puts them back."""

    def __init__(self, options: "Dict[str, Any]") -> None:
        self.environment: "Dict[str, Optional[str]]" = options.get("env") or {}
        self.directory = options.get("cwd")

    def __enter__(self) -> None:
        self._former: "Dict[str, Optional[str]]" = {}
        self._former_directory = ""
        try:
            if self.directory:
                here = _here()
                os.chdir(as_words(self.directory))
                self._former_directory = here
            for name, value in self.environment.items():
                before = os.environ.get(name)
                _set(name, value)
                self._former[name] = before
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: "Any") -> None:
        for name, value in self._former.items():
            _set(name, value)
        if self._former_directory:
            try:
                os.chdir(self._former_directory)
            except OSError:  # gone, or not for this user: but the next call is not to be where this one was
                os.chdir("/")


def as_words(text: "Any") -> "Any":
    """*text* as this system takes it, which before Python 3.7 has no way to say more than ASCII in the C locale."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return _in_bytes(text)
    return text


def _in_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _set(name: str, value: "Optional[str]") -> None:
    if value is None:
        os.environ.pop(name, None)
        return
    try:
        os.environ[name] = value
    except UnicodeEncodeError:
        os.environb[_in_bytes(name)] = _in_bytes(value)
