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
