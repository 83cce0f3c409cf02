"""What a group call gives: one Success or Failure for each host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from trickle._exceptions import NotNeeded, RemoteError

WIDEST = 200  # characters of a value in a table

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class Success(Generic[T_co]):
    """What a host returned.

    Args:
      value: it.
    """

    value: T_co


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a host has no result.

    Args:
      error: what a call on that host alone would have raised, or CallTimeout, or NotNeeded.
    """

    error: Exception


class Results(Mapping[str, "Success[T] | Failure"], Generic[T]):
    """The results of a group call by host name, in the group's order.  Made for ``match``:

    ``for name, result in results.items(): match result: case Success(value): ...``
    """

    __slots__ = ("_by_name",)

    def __init__(self, by_name: Mapping[str, Success[T] | Failure]) -> None:
        self._by_name = dict(by_name)

    def __getitem__(self, name: str) -> Success[T] | Failure:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        failures = self.failures().values()
        stopped = sum(isinstance(error, NotNeeded) for error in failures)
        rest = f", {stopped} not needed" if stopped else ""
        return f"<trickle.Results: {len(self.successful())} successful, {len(failures) - stopped} failed{rest}>"

    def __str__(self) -> str:
        """A table: a line for each host."""
        width = max(map(len, self._by_name), default=0)
        return "\n".join(f"{name:<{width}}  {_in_words(name, result)}" for name, result in self._by_name.items())

    def successful(self) -> dict[str, T]:
        """The values of the hosts that returned one."""
        return {name: result.value for name, result in self._by_name.items() if isinstance(result, Success)}

    def failures(self) -> dict[str, Exception]:
        """The errors of the others, NotNeeded included."""
        return {name: result.error for name, result in self._by_name.items() if isinstance(result, Failure)}

    def raise_failures(self) -> None:
        """Raise one ExceptionGroup of what failed, if anything did.  Hosts that were not needed have not failed."""
        errors = [error for error in self.failures().values() if not isinstance(error, NotNeeded)]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(self)} hosts failed", errors)

    def unwrap(self) -> dict[str, T]:
        """The values, if no host failed; else raise what ``raise_failures`` raises."""
        self.raise_failures()
        return self.successful()


def _in_words(name: str, result: Success[T] | Failure) -> str:
    if isinstance(result, Success):
        return _shortened(repr(result.value))
    error = result.error
    text = next(iter(str(error).splitlines()), "").removeprefix(f"{name}: ")
    if isinstance(error, RemoteError):  # whose text begins with the class that was raised
        return _shortened(text)
    return _shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
