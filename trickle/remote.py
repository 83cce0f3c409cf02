"""What functions that run on a host may use: is this call still wanted, how long has it, where am I.

All of it is harmless on the controller, so that the same function can be called here.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Optional, Tuple

__all__ = ["CallCancelled", "Channel", "check_cancelled", "host_name", "time_left"]

#: The name of the host that this code runs on, as the controller calls it; None on the controller.
host_name: "Optional[str]" = None

_NEVER = float("inf")
_path: "Tuple[str, ...]" = ()  # the hosts that lead here, this one last; none on the controller


class CallCancelled(BaseException):
    """Raised in the main thread of a call that the controller no longer wants.

    Clean up and let it pass: after the grace period everything that the call started is killed.

    Attributes:
      reason: what the controller gave as the reason, or None.
    """

    def __init__(self, reason: "Optional[str]" = None) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "the controller cancelled this call"


class Channel:
    """The far end of what ``host.open_channel`` gives: the first argument of the function there.

    For one thread at a time in each direction.  Iterating gives what the caller sends, until it sends nothing more.
    It blocks: an async function has to use it by ``trio.to_thread.run_sync(..., abandon_on_cancel=True)``.
    """

    def send(self, value: "Any") -> None:
        """Send *value* to the caller; waits while it has no room.

        Raises:
          ValueError: after ``send_eof`` or ``close``.
          TypeError: it cannot be sent.
        """
        raise NotImplementedError

    def receive(self, timeout: "Optional[float]" = None) -> "Any":
        """Wait for what the caller sends next, and return it.

        Args:
          timeout: seconds to wait at the most.

        Raises:
          EOFError: the caller sends nothing more.
          TimeoutError: nothing came within *timeout*.
          ValueError: after ``close``.
        """
        raise NotImplementedError

    def __iter__(self) -> "Iterator[Any]":
        while True:
            try:
                value = self.receive()
            except EOFError:
                return
            yield value

    def send_eof(self) -> None:
        """Say that nothing more will be sent from here."""
        raise NotImplementedError

    def close(self) -> None:
        """Neither send nor receive any more: the caller's ``send`` then raises."""
        raise NotImplementedError


class _Here:
    """The controller, where no call can be cancelled from afar.  Over there the worker takes this place."""

    def check_cancelled(self) -> None:
        pass

    def time_left(self) -> float:
        return _NEVER


_runner = _Here()


def check_cancelled() -> None:
    """Raise CallCancelled if this call has been cancelled; cheap, for loops in threads of the call's own."""
    _runner.check_cancelled()


def time_left() -> float:
    """Seconds until this call's deadline, as far as this host knows it; ``math.inf`` if it has none."""
    return _runner.time_left()
