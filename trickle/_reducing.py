"""Read and reduce results in processes of this machine, where that holds up nobody.

Both sides of it: `Reducing` is this program's, `_reduce` is what such a process runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import trio

from trickle import _pickling, _unpickling
from trickle._agent import functions
from trickle._exceptions import UnsafeResult, WorkerDied
from trickle._pickle_budget import PATIENCE
from trickle._settings import CallOptions

GRACE_PERIOD = 5.0  # seconds that an idle process has to end in
F_SETSIG = 10  # of fcntl(2), Linux; Python does not name it everywhere


class Reducing:
    """The processes of one block: started when first needed, as many as there are CPUs, and ended with the block."""

    def __init__(self) -> None:
        self._closed = False
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
        import multiprocessing  # not for programs that do without

        import trio_parallel

        closed = trio.ClosedResourceError(f"{host}: closed while its result was reduced")
        if self._closed:
            raise closed
        packed = pack_reducers(options, host)
        scope = trio.CancelScope()
        self._running.add(scope)
        marked = _ours.set(True)
        error: Exception = closed
        try:
            if self._context is None:
                _keep_main_out_of_ours()
                context = trio_parallel.open_worker_context(init=_end_with_the_program, grace_period=GRACE_PERIOD)
                self._context = await self._stack.enter_async_context(context)
            with scope:
                went_well, pickled = await self._context.run_sync(
                    _reduce, packed, payload, host, full_trust, kill_on_cancel=True
                )
                value = pickle.loads(pickled)
                if went_well:
                    return value
                error = value
        except trio_parallel.BrokenWorkerError as exc:
            error = _died(host, exc.args[-1].exitcode)
        except OSError as exc:
            error = OSError(exc.errno, f"{host}: cannot start a process of this machine to reduce its result: {exc}")
        finally:
            _ours.reset(marked)
            self._running.discard(scope)
            # One that was dead as soon as it was killed has not been joined, and keeps its pipes until it is.
            multiprocessing.active_children()
        raise error

    async def aclose(self) -> None:
        """End all of them; what still runs is killed."""
        self._closed = True
        for scope in self._running:
            scope.cancel()
        if self._context is not None:
            self._context.statistics()  # forgets those that have died of their own
            self._context = None  # the pipes are closed with the last reference
        with contextlib.suppress(Exception):  # somebody has killed an idle one, which is nobody's concern
            await self._stack.aclose()


def _died(host: str, status: int) -> WorkerDied:
    what = f"{host}: the process of this machine that reduced its result"
    if status < 0:
        return WorkerDied(f"{what} was killed by signal {-status}", host=host, signal=-status)
    return WorkerDied(f"{what} exited with status {status}", host=host, exit_status=status)


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
        stays_here=True,
    )
    return outgoing.payload


# ---- in that process


def _reduce(packed: bytes, payload: bytes, host: str, full_trust: bool) -> tuple[bool, bytes]:
    """Whether it went well, and the pickled value or exception."""
    try:
        reducers: tuple[Callable[[Any], Any], ...]
        _, (reducers, classes), _ = functions.loads_call(packed)
        allowed = _unpickling.allowed_classes(classes)
        value = _unpickling.loads(payload, host=host, allowed=allowed, full_trust=full_trust, patience=PATIENCE)
        for reducer in reducers:
            value = reducer(value)
        return True, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except BaseException as exc:  # SystemExit too is only this result's end
        functions.show_sources()
        text = traceback.format_exc()
        error = exc if _survives_pickling(exc) else RuntimeError(f"{type(exc).__name__}: {exc}")
        if not isinstance(error, UnsafeResult):
            error.add_note(f"\nOn this machine, reducing the result of {host}:\n{text.rstrip()}")
        return False, pickle.dumps(error)


def _end_with_the_program() -> None:
    """Have the kernel kill this process when the program that started it is gone, whatever it computes then.

    Its end of a pipe of multiprocessing's, into which nothing is written any more, tells it so.
    """
    from multiprocessing import process

    parent = process.parent_process()
    if parent is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):  # a sandbox that does not know of it
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)


def _survives_pickling(exc: BaseException) -> bool:
    if not isinstance(exc, Exception):
        return False
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
