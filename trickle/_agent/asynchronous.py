"""Run an ``async def`` function under trio, over there.  trio itself comes from the controller if the host lacks it."""

import gc

from trickle import remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine, List, Optional

    SetStopper = Callable[[Optional[Callable[[], None]], Any], None]


def run(coroutine: "Coroutine[Any, Any, Any]", set_stopper: "SetStopper") -> "Any":
    """What the coroutine returns.  *set_stopper* is given what a signal handler may call to cancel it, and itself.

    Raises:
      CallCancelled: the cancellation, which is trio's own in there, went all the way through.
    """
    try:
        import trio
    except BaseException:
        coroutine.close()  # else Python complains that it was never awaited
        raise

    async def main() -> "Any":
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            set_stopper(lambda: _soon(token, scope), coroutine)
            return await coroutine
        raise remote.CallCancelled()

    try:
        return trio.run(main)
    finally:
        set_stopper(None, None)


def _soon(token: "Any", scope: "Any") -> None:
    try:
        token.run_sync_soon(scope.cancel)
    except RuntimeError:  # trio.RunFinishedError: it has just come to its end by itself
        pass


def frames_of(coroutine: "Any") -> "List[Any]":
    """The frames in which a coroutine waits, the innermost first; none if it does not wait, but runs."""
    found: "List[Any]" = []
    while coroutine is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(coroutine, kind + "_frame", None)
            if frame is not None:
                break
        else:
            # What waits for the next of an async generator does not say of which.
            coroutine = next((each for each in gc.get_referents(coroutine) if hasattr(each, "ag_frame")), None)
            continue
        if getattr(coroutine, kind + "_running"):
            return [] if kind != "ag" else found  # an async generator that waits is running
        found.insert(0, frame)
        coroutine = getattr(coroutine, "gi_yieldfrom" if kind == "gi" else kind + "_await")
    return found


def is_coroutine(value: "Any") -> bool:
    """Whether a call gave a coroutine, which has to be run."""
    return type(value) is type(_sample) or (hasattr(value, "__await__") and hasattr(value, "send"))


async def _async_function() -> None:
    pass


_sample = _async_function()
_sample.close()
