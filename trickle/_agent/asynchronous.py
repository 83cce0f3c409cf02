"""Run an ``async def`` function under trio, over there.  trio itself comes from the controller if the host lacks it."""

from trickle import remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine, Optional

    SetStopper = Callable[[Optional[Callable[[], None]]], None]


def run(coroutine: "Coroutine[Any, Any, Any]", set_stopper: "SetStopper") -> "Any":
    """What the coroutine returns.  *set_stopper* is given what a signal handler may call to cancel it.

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
            set_stopper(lambda: _soon(token, scope))
            return await coroutine
        raise remote.CallCancelled()

    try:
        return trio.run(main)
    finally:
        set_stopper(None)


def _soon(token: "Any", scope: "Any") -> None:
    try:
        token.run_sync_soon(scope.cancel)
    except RuntimeError:  # trio.RunFinishedError: it has just come to its end by itself
        pass


def is_coroutine(value: "Any") -> bool:
    """Whether a call gave a coroutine, which has to be run."""
    return type(value) is type(_sample) or (hasattr(value, "__await__") and hasattr(value, "send"))


async def _async_function() -> None:
    pass


_sample = _async_function()
_sample.close()
