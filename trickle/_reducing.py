"""Read and reduce results in processes of this machine, where that holds up nobody.

Both sides of it: `Reducing` is this program's, `_reduce` is what such a process runs.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import trio

from trickle import _pickling, _unpickling
from trickle._agent import functions
from trickle._exceptions import WorkerDied
from trickle._settings import CallOptions

logger = logging.getLogger("trickle")

GRACE_PERIOD = 5.0  # seconds that an idle process has to end in


class Reducing:
    """The processes of one block: started when first needed, as many as there are CPUs, and ended with the block."""

    def __init__(self) -> None:
        self._context: Any = None
        self._stack = contextlib.AsyncExitStack()
        self._running: set[trio.CancelScope] = set()

    async def reduce(self, payload: bytes, options: CallOptions, *, host: str, full_trust: bool) -> Any:
        """What the reducers of *options* make of a result.  If this is cancelled, the process is killed.

        Raises:
          UnsafeResult: the result breaks the rules.
          WorkerDied: the process ended by itself.
          trio.ClosedResourceError: the block was left meanwhile.
          Exception: what a reducer raised.
        """
        import trio_parallel  # it brings multiprocessing: not for programs that do without

        if self._context is None:
            _keep_main_out_of_ours()
            context = trio_parallel.open_worker_context(grace_period=GRACE_PERIOD)
            self._context = await self._stack.enter_async_context(context)
        packed = pack_reducers(options, host)
        scope = trio.CancelScope()
        self._running.add(scope)
        marked = _ours.set(True)
        try:
            with scope:
                return await self._context.run_sync(_reduce, packed, payload, host, full_trust, kill_on_cancel=True)
        except trio_parallel.BrokenWorkerError as exc:
            status = exc.args[-1].exitcode
            how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
            raise WorkerDied(
                f"{host}: the process of this machine that reduced its result {how}",
                host=host,
                exit_status=status if status >= 0 else None,
                signal=-status if status < 0 else None,
            ) from None
        except Exception as exc:
            if not hasattr(exc, "host"):
                exc.add_note(f"raised on this machine, when the result of {host} was reduced")
            raise
        finally:
            _ours.reset(marked)
            self._running.discard(scope)
        raise trio.ClosedResourceError(f"{host}: closed while its result was reduced")

    async def aclose(self) -> None:
        """End all of them; what still runs is killed."""
        for scope in self._running:
            scope.cancel()
        try:
            await self._stack.aclose()
        except Exception as exc:  # one of them was killed while it was idle, which is nobody's concern
            logger.debug("the processes that reduced results: %s", exc)


def pack_reducers(options: CallOptions, host: str) -> bytes:
    """The reducers of *options*, and the classes that results may have, for a process of this machine.

    Raises:
      Unsendable: one of them can neither be imported nor had as source.
    """
    classes = tuple(_unpickling.allowed_classes(options.allow).values())
    outgoing = _pickling.dumps_call(
        _reduce,
        (options.reducers, classes),
        {},
        host=host,
        far_version=sys.version_info[:2],
        implementation=sys.implementation.name,
    )
    return outgoing.payload


# ---- in that process


def _reduce(packed: bytes, payload: bytes, host: str, full_trust: bool) -> Any:
    try:
        reducers: tuple[Callable[[Any], Any], ...]
        _, (reducers, classes), _ = functions.loads_call(packed)
        allowed = _unpickling.allowed_classes(classes)
        value = _unpickling.loads(payload, host=host, allowed=allowed, full_trust=full_trust)
        for reducer in reducers:
            value = reducer(value)
        return value
    except Exception as exc:
        if _survives_pickling(exc):
            raise
        raise RuntimeError(f"{type(exc).__name__}: {exc}") from None


def _survives_pickling(exc: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(exc))) is type(exc)
    except Exception:
        return False


# ---- the program's script

_ours: ContextVar[bool] = ContextVar("_ours", default=False)  # whether a process that is started now is one of these


def _keep_main_out_of_ours() -> None:
    """Have multiprocessing not import the program's script in our processes.

    It does so in all that it spawns, and a script without ``if __name__ == "__main__"`` would run again.  What is
    needed of the script comes with the reducers, as it does for a host.
    """
    from multiprocessing import spawn

    usual = spawn.get_preparation_data
    if hasattr(usual, "_keeps_main_out_of_ours"):
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        data = usual(name)
        if _ours.get():  # trio's threads have the context of who waits for them
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    get_preparation_data._keeps_main_out_of_ours = True  # type: ignore[attr-defined]
    spawn.get_preparation_data = get_preparation_data
