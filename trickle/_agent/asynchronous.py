"""Run an ``async def`` function under trio, over there.  trio itself comes from the controller if the host lacks it."""

import gc

from trickle import remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine, List, Optional

    SetStopper = Callable[[Optional[Callable[[], None]], Optional[Callable[[], List[Any]]]], None]


def run(coroutine: "Coroutine[Any, Any, Any]", set_stopper: "SetStopper") -> "Any":
    """What the coroutine returns.  *set_stopper* is given what a signal handler may call to cancel it, and to
    see where it waits.

    Raises:
      CallCancelled: the cancellation, which is trio's own in there, went all the way through.
    """
    try:
        import trio

        async def main() -> "Any":
            token = trio.lowlevel.current_trio_token()
            with trio.CancelScope() as scope:
                set_stopper(lambda: _soon(token, scope), lambda: _where(trio, coroutine))
                return await coroutine
            raise remote.CallCancelled()

        return trio.run(main)
    except BaseException:
        coroutine.close()  # else Python complains that it was never awaited, if that has not begun
        raise
    finally:
        set_stopper(None, None)


def _soon(token: "Any", scope: "Any") -> None:
    try:
        token.run_sync_soon(scope.cancel)
    except RuntimeError:  # trio.RunFinishedError: it has just come to its end by itself
        pass


def _where(trio: "Any", coroutine: "Any") -> "List[Any]":
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return frames_of(coroutine)
    return []  # a task of it runs, and so is on the stack


def frames_of(coroutine: "Any") -> "List[Any]":
    """The frames in which a coroutine waits, the innermost first; none if it does not wait, but runs."""
    found: "List[Any]" = []
    for _ in range(MOST_FRAMES):
        kind = _KINDS.get(type(coroutine).__name__)
        if kind is None or type(coroutine).__module__ != "builtins":
            break
        if not kind:  # what waits for these does not say for which
            behind = [each for each in gc.get_referents(coroutine) if _KINDS.get(type(each).__name__)]
            coroutine = behind[0] if behind else None
            continue
        frame = getattr(coroutine, kind + "_frame")
        if frame is None or (getattr(coroutine, kind + "_running") and kind != "ag"):
            return []  # an async generator that waits is running
        found.insert(0, frame)
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else kind + "_await")
    return found


MOST_FRAMES = 200
# By the names of their types: how their attributes begin.
_KINDS = {"coroutine": "cr", "generator": "gi", "async_generator": "ag"}
_KINDS.update(dict.fromkeys(("async_generator_asend", "async_generator_athrow", "coroutine_wrapper"), ""))


def is_coroutine(value: "Any") -> bool:
    """Whether a call gave a coroutine, which has to be run."""
    return type(value) is type(_sample) or (hasattr(value, "__await__") and hasattr(value, "send"))


async def _async_function() -> None:
    pass


_sample = _async_function()
_sample.close()
