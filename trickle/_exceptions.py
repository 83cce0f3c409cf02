"""The errors of trickle, named by whose fault they are.

Who raises one also writes its message: a complete sentence that begins with the host's name.
Building a `RemoteError` from what a host sent is _remote_errors.py's job.
"""

from __future__ import annotations

import trio


class ConnectError(Exception):
    """The agent on a host never answered.

    Attributes:
      reason: a word for what went wrong, such as ``"authentication"``, or ``"unknown"``.
      stage: how far connecting had come.
      exit_status: the tunnel's, or None where it was still running.
      stderr: the last that the tunnel said.
    """

    _is_passing: bool = False  # whether the cause may go away by itself

    def __init__(
        self,
        message: str,
        *,
        host: str = "",
        reason: str = "unknown",
        stage: str = "",
        exit_status: int | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(message)
        self.host = host
        self.reason = reason
        self.stage = stage
        self.exit_status = exit_status
        self.stderr = stderr


class HostLost(trio.BrokenResourceError):
    """The connection to a host died.  What was running there may have run, in part or whole."""

    def __init__(self, message: str, *, host: str = "", stderr: str = "") -> None:
        super().__init__(message)
        self.host = host
        self.stderr = stderr


class ProtocolError(HostLost):
    """A host sent what trickle's wire format does not allow, and was closed for it."""


class WorkerDied(trio.BrokenResourceError):
    """The process that a call ran in ended before the call did."""

    def __init__(
        self, message: str, *, host: str = "", exit_status: int | None = None, signal: int | None = None
    ) -> None:
        super().__init__(message)
        self.host = host
        self.exit_status = exit_status
        self.signal = signal


class NotNeeded(Exception):
    """The group stopped this host's call itself, having got what it was asked for."""

    def __init__(self, message: str, *, host: str = "") -> None:
        super().__init__(message)
        self.host = host


class CallTimeout(trio.TooSlowError):
    """A deadline passed that no scope of the caller's stands for: a group's ``timeout=``, a relay's.

    Attributes:
      verdict: how the call ended over there.
      stage: what the host was doing when time was up.
      remote_stack: the Python stack that the call was in, where it is known; None of a command or a transfer.
    """

    def __init__(
        self,
        message: str,
        *,
        host: str = "",
        verdict: str = "",
        stage: str = "",
        remote_stack: str | None = None,
    ) -> None:
        super().__init__(message)
        self.host = host
        self.verdict = verdict
        self.stage = stage
        self.remote_stack = remote_stack


class Unsendable(TypeError):
    """A function or an argument cannot be sent to a host.

    Attributes:
      path: where in what was to be sent the culprit sits.
    """

    def __init__(self, message: str, *, host: str = "", path: str = "") -> None:
        super().__init__(message)
        self.host = host
        self.path = path


class UnsafeResult(Exception):
    """A host's answer was refused: it asked for more than plain data, or for too much."""

    def __init__(self, message: str, *, host: str = "") -> None:
        super().__init__(message)
        self.host = host


class RemoteError(Exception):
    """A function raised, over there.

    Where it is safe this is also an instance of the class that was raised: ``except FileNotFoundError``
    catches what ``except RemoteError`` does.

    Attributes:
      host: where it was raised.
      type_name: what was raised, as ``"module.Class"``.
      remote_traceback: the traceback over there, with source lines; also shown with this one.
    """

    # No __init__: it would come before those of the builtins that this is combined with.
    host: str = ""
    type_name: str = ""
    remote_traceback: str = ""
    _text: str = ""  # str() of the original

    def __str__(self) -> str:
        if not self.type_name:
            return super().__str__()
        name = self.type_name.removeprefix("builtins.")
        return f"{self.host}: {name}: {self._text}" if self._text else f"{self.host}: {name}"
