"""Other libraries that run functions in other processes, each by the way that it documents as fast.

They do less in a call than trickle does: none can stop one that runs, and but for multiprocessing and trio-parallel
all run it in the process that reads the pipe.  rpyc has to be installed over there.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

import trio
import trio_parallel

from benchmarks._harness import NOT_INSTALLED
from benchmarks._peers import gateway


class Rival(NamedTuple):
    """One connection of another library's.

    Args:
      call: calls a function with one argument, and returns what it returns.
      call_many: calls it so many times before it waits for the first answer; none where that is not offered.
    """

    call: Callable[[Callable[[Any], Any], Any], Awaitable[Any]]
    call_many: Callable[[Callable[[Any], Any], Any, int], Awaitable[object]] | None = None


@contextlib.contextmanager
def execnet() -> Iterator[Rival]:
    """A channel on which the function's name and its argument are sent, and from which the answers are read."""
    with gateway(f"popen//python={sys.executable}") as process:
        channel = process.remote_exec(
            "import builtins\nfor name, value in channel: channel.send(getattr(builtins, name)(value))"
        )

        async def call(fn: Callable[[Any], Any], value: Any) -> Any:
            channel.send((fn.__name__, value))
            return channel.receive()

        async def call_many(fn: Callable[[Any], Any], value: Any, count: int) -> object:
            item = fn.__name__, value
            for _ in range(count):
                channel.send(item)
            return [channel.receive() for _ in range(count)]

        yield Rival(call, call_many)


@contextlib.contextmanager
def rpyc() -> Iterator[Rival]:
    """Its classic service over pipes; functions over there are looked up once."""
    import rpyc
    from rpyc.utils.factory import connect_subproc

    # What it leaves in sys.stdout is no file, of which Python would complain at a regular exit.
    server = (
        "import os, rpyc, rpyc.utils.factory as f\nf.connect_stdpipes(rpyc.ClassicService).serve_all()\nos._exit(0)"
    )
    connection = connect_subproc((sys.executable, "-c", server), service=rpyc.ClassicService)
    found: dict[str, Any] = {}
    asynchronous: dict[str, Any] = {}

    def there(fn: Callable[[Any], Any]) -> Any:
        name = fn.__name__
        if name not in found:
            found[name] = getattr(connection.builtins, name)
            asynchronous[name] = rpyc.async_(found[name])
        return found[name]

    async def call(fn: Callable[[Any], Any], value: Any) -> Any:
        return there(fn)(value)

    async def call_many(fn: Callable[[Any], Any], value: Any, count: int) -> object:
        there(fn)
        send = asynchronous[fn.__name__]
        return [answer.value for answer in [send(value) for _ in range(count)]]

    try:
        yield Rival(call, call_many)
    finally:
        connection.close()
        connection.proc.wait()


@contextlib.contextmanager
def mitogen() -> Iterator[Rival]:
    """``call`` and ``call_async`` of a local context."""
    import mitogen.core
    import mitogen.master

    logging.getLogger("mitogen").setLevel(logging.ERROR)
    broker = mitogen.master.Broker()
    router = mitogen.master.Router(broker)
    context = router.local(python_path=sys.executable)

    async def call(fn: Callable[[Any], Any], value: Any) -> Any:
        return context.call(fn, value)

    async def call_many(fn: Callable[[Any], Any], value: Any, count: int) -> object:
        receivers = [context.call_async(fn, value) for _ in range(count)]
        return [receiver.get().unpickle() for receiver in receivers]

    try:
        yield Rival(call, call_many)
    finally:
        context.shutdown(wait=True)
        broker.shutdown()
        broker.join()


@contextlib.contextmanager
def pool() -> Iterator[Rival]:
    """multiprocessing's Pool of one process."""
    processes = multiprocessing.get_context("spawn").Pool(1)

    async def call(fn: Callable[[Any], Any], value: Any) -> Any:
        return processes.apply(fn, (value,))

    async def call_many(fn: Callable[[Any], Any], value: Any, count: int) -> object:
        return [answer.get() for answer in [processes.apply_async(fn, (value,)) for _ in range(count)]]

    try:
        yield Rival(call, call_many)
    finally:
        processes.terminate()
        processes.join()


@contextlib.contextmanager
def parallel() -> Iterator[Rival]:
    """trio-parallel's worker process, from this same loop."""

    async def call(fn: Callable[[Any], Any], value: Any) -> Any:
        return await trio_parallel.run_sync(fn, value)

    async def call_many(fn: Callable[[Any], Any], value: Any, count: int) -> object:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(trio_parallel.run_sync, fn, value)
        return None

    yield Rival(call, call_many)


Rivals = Mapping[str, Rival | str]  # by name; in place of one that cannot be asked, the reason
RIVALS = {
    "execnet": execnet,
    "rpyc": rpyc,
    "mitogen": mitogen,
    "multiprocessing": pool,
    "trio-parallel": parallel,
}


def open_all(stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> Rivals:
    """All that are here; in place of one that is not, or that does not start, the reason."""
    opened: dict[str, Rival | str] = {}
    for name, rival in RIVALS.items():
        try:
            opened[name] = stack.enter_context(rival())
        except ImportError:
            opened[name] = NOT_INSTALLED
        except Exception as exc:  # whatever is wrong with it: the others are measured nevertheless
            opened[name] = f"failed: {type(exc).__name__}"
    return opened
