"""What open_host and options() set, as frozen data, checked once."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import trio

from trickle._async_support import is_async
from trickle._module_policy import ModulePolicy

if TYPE_CHECKING:
    from trickle._progress import HostProgress

GRACE_PERIOD = 5.0  # seconds: longer than a pause for garbage collection, shorter than a person's patience
VERDICT_SLACK = 5.0  # seconds past the grace period in which an agent that lives has answered
MAX_RESULT = 8 * 2**20  # bytes: what may be decoded on the event loop (40 ms per MiB at the worst)
MAX_PAYLOAD = 512 * 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class OutputLine:
    """One line that remote code printed.

    Args:
      host: the host's name.
      stream: ``"stdout"`` or ``"stderr"``.
      call: the number of the call that it belongs to, counted from 1 on each connection; None when no call ran.
      text: the line, without its end.  One of more than 32 KiB comes in parts of that, one behind the other.
    """

    host: str
    stream: str
    call: int | None
    text: str


UNSET: Any = ...  # what an option is when it is not given


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a method's arguments that were given."""
    return {name: value for name, value in arguments.items() if name != "self" and value is not UNSET}


_Method = TypeVar("_Method", bound=Callable[..., Any])


def with_defaults_of(*options: type[Any]) -> Callable[[_Method], _Method]:
    """Have the signature of a method show what options are that were never given."""
    defaults = {field.name: field.default for each in options for field in dataclasses.fields(each)}

    def decorate(method: _Method) -> _Method:
        signature = inspect.signature(method)
        shown = [
            parameter.replace(default=defaults[parameter.name]) if parameter.default is UNSET else parameter
            for parameter in signature.parameters.values()
        ]
        method.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return method

    return decorate


Sink: TypeAlias = "Callable[[OutputLine], object] | trio.MemorySendChannel[OutputLine]"


def is_number(value: object) -> bool:
    """Whether it can be a number of seconds."""
    return isinstance(value, int | float)


def is_count(value: object, least: int) -> bool:
    """Whether it is a whole number, of at least this."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_sink(sink: object) -> None:
    """Nothing, if output can go there.

    Raises:
      TypeError: it cannot.
    """
    if sink is None or isinstance(sink, trio.MemorySendChannel):
        return
    if not callable(sink) or is_async(sink):
        raise TypeError(
            f"output={sink!r}: it is a callable, and not async, that takes an OutputLine, or a trio.MemorySendChannel"
        )


@dataclasses.dataclass(frozen=True)
class OpenSettings:
    """How a host is opened: see open_host."""

    wait: bool = True
    connect_timeout: float = 30.0
    heartbeat: float = 10.0
    lease: float = 60.0
    workers: int = 16
    max_open: int = 256
    max_payload: int = MAX_PAYLOAD
    modules: ModulePolicy | None = None
    output: Sink | None = None
    connect_retries: int = 0
    sends_modules: bool = True

    def __post_init__(self) -> None:
        check_sink(self.output)
        if not isinstance(self.modules, ModulePolicy | None):
            raise TypeError(f"modules={self.modules!r}: it is a trickle.ModulePolicy, or None")
        if not isinstance(self.connect_retries, int) or self.connect_retries < 0:
            raise ValueError(f"connect_retries={self.connect_retries!r}: it is a whole number, 0 or more")
        for name in ("connect_timeout", "heartbeat", "lease"):
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: it is a number of seconds above 0")
        if self.heartbeat == math.inf:
            raise ValueError(
                "heartbeat=inf: without signs of life no lease can be kept; lease=math.inf is for debuggers"
            )
        if self.lease < 2 * self.heartbeat and self.lease != math.inf:
            raise ValueError(
                f"lease={self.lease} with heartbeat={self.heartbeat}: a lease of less than two heartbeats"
                " would end hosts that are well"
            )
        for name in ("workers", "max_open", "max_payload"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: it is a whole number above 0")
        if self.max_payload >= 2**32:
            raise ValueError(f"max_payload={self.max_payload}: it is less than 4 GiB")


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """How a host's verbs behave: see Host.options."""

    grace_period: float = GRACE_PERIOD
    trust: Literal["data", "full"] | None = None
    allow: tuple[type, ...] = ()
    max_result: int = MAX_RESULT
    env: Mapping[str, str | None] | None = dataclasses.field(default=None, repr=False)  # there may be secrets in it
    cwd: str | os.PathLike[str] | None = None
    reconnect: bool = False
    output: Sink | None = None
    reducers: tuple[Callable[[Any], Any], ...] = ()  # see Host.reducing

    def __post_init__(self) -> None:
        check_sink(self.output)
        if not is_number(self.grace_period) or not 0 <= self.grace_period < math.inf:
            raise ValueError(f"grace_period={self.grace_period!r}: it is a number of seconds, 0 or more")
        if self.trust not in (None, "data", "full"):
            raise ValueError(f'trust={self.trust!r}: it is "data" or "full"')
        classes = tuple(self.allow) if isinstance(self.allow, Iterable) else (self.allow,)
        if not isinstance(self.allow, Iterable) or not all(isinstance(each, type) for each in classes):
            raise TypeError(f"allow={self.allow!r}: it is a tuple of classes")
        object.__setattr__(self, "allow", classes)
        for fn in self.reducers:
            if not callable(fn) or is_async(fn):
                raise TypeError(f"reducing({fn!r}): it is a callable, and not async, that takes one result")
        if not is_count(self.max_result, 0):
            raise ValueError(f"max_result={self.max_result!r}: it is a whole number of bytes, 0 or more")
        if not isinstance(self.reconnect, bool):
            raise TypeError(f"reconnect={self.reconnect!r}: it is True or False")
        if not isinstance(self.cwd, str | os.PathLike | None):
            raise TypeError(f"cwd={self.cwd!r}: it is a path, as str or os.PathLike, or None")
        if not isinstance(self.env, Mapping | None):
            raise TypeError(f"env of type {type(self.env).__name__}: it is a mapping of names to texts, or None")
        for name, value in (self.env or {}).items():
            if (
                not isinstance(name, str)
                or not name
                or not isinstance(value, str | None)
                or "=" in name
                or "\0" in f"{name}{value}"
            ):
                raise ValueError(
                    f"env: {name!r} is not the name of an environment variable, or has not a text, or None"
                )

    def replace(self, **changes: Any) -> CallOptions:
        """These options, but for *changes*.

        Raises:
          TypeError: there is no such option.
        """
        return dataclasses.replace(self, **changes)

    def refuse_reducers(self, verb: str) -> None:
        """Nothing, if there are none.

        Raises:
          TypeError: there are, and *verb* has nothing for them.
        """
        if self.reducers:
            raise TypeError(f"{verb}: reducing() is for what calls return; use a view without it for the rest")

    def for_messages(self, most: int) -> CallOptions:
        """These options, where our own code speaks from over there: plain data of up to *most* bytes."""
        return self.replace(max_result=most, trust="data", allow=())

    @property
    def for_worker(self) -> dict[str, Any]:
        """What of it travels with the call."""
        travelling: dict[str, Any] = {}
        if self.env is not None:
            travelling["env"] = dict(self.env)
        if self.cwd is not None:
            travelling["cwd"] = os.fspath(self.cwd)
        return travelling


@dataclasses.dataclass(frozen=True)
class GroupOptions:
    """How a group's verbs behave, beside what its hosts' options say: see Group.options."""

    timeout: float = math.inf
    limit: int | None = None
    need: int | float | None = None
    on_failure: Literal["continue", "cancel"] = "continue"
    max_failures: int | None = None
    repeatable: bool = False
    retries: int = 0
    hedge: float | None = None
    progress: Callable[[HostProgress], object] | None = None

    def __post_init__(self) -> None:
        if not is_number(self.timeout) or not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout!r}: it is a number of seconds above 0")
        if self.limit is not None and not is_count(self.limit, 1):
            raise ValueError(f"limit={self.limit!r}: it is a whole number of hosts above 0, or None")
        is_share = isinstance(self.need, float) and 0 < self.need <= 1
        if self.need is not None and not is_share and not is_count(self.need, 1):
            raise ValueError(f"need={self.need!r}: it is a whole number above 0, a share above 0.0 up to 1.0, or None")
        if self.on_failure not in ("continue", "cancel"):
            raise ValueError(f'on_failure={self.on_failure!r}: it is "continue" or "cancel"')
        if self.max_failures is not None and not is_count(self.max_failures, 0):
            raise ValueError(f"max_failures={self.max_failures!r}: it is a whole number, 0 or more, or None")
        if not is_count(self.retries, 0):
            raise ValueError(f"retries={self.retries!r}: it is a whole number, 0 or more")
        if self.hedge is not None and (not is_number(self.hedge) or not self.hedge > 0):
            raise ValueError(f"hedge={self.hedge!r}: it is a number of seconds above 0, or None")
        if self.progress is not None and (not callable(self.progress) or is_async(self.progress)):
            raise TypeError(f"progress={self.progress!r}: it is a callable, and not async, that takes a HostProgress")
        for name in ("retries", "hedge"):
            if getattr(self, name) and not self.repeatable:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: only calls that are safe to repeat may run twice;"
                    " if these are, say repeatable=True"
                )

    @property
    def tolerated(self) -> float:
        """How many failures do not stop the others."""
        if self.max_failures is not None:
            return self.max_failures
        return 0 if self.on_failure == "cancel" else math.inf

    def needed_of(self, total: int | None) -> float:
        """How many successes are enough, of so many; ``math.inf`` if none are.

        Raises:
          ValueError: that many can never come; or it is a share, of nobody knows how many (None).
        """
        if self.need is None:
            return math.inf
        if isinstance(self.need, int):
            if total is not None and self.need > total:
                raise ValueError(f"need={self.need!r}: there are only {total} that can succeed")
            return self.need
        if total is None:
            raise ValueError(f"need={self.need!r}: a share of what has no len(); give a whole number")
        return max(1, math.ceil(self.need * total - 1e-9))  # 0.07 * 100 is a little above 7
