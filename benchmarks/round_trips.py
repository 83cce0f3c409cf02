"""How many times does a connection wait for the other end until it has the first result?

Measured: the time to the first result through a pipe whose round trip takes 400 ms, minus the time through one of
200 ms, divided by the difference.  (Not against a pipe without delay: what is on its way while the far Python starts
does not wait for it, and would count for less than it is.)  1 is the least there can be.  A tunnel's own handshake
comes on top (ssh's is about eight round trips).  Not measured: bandwidth, which the pipe does not limit, and lost
packets.

The function called is a builtin, or one of a package of three modules that only this end has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import trickle
from benchmarks import _harness
from benchmarks._harness import FREE, ROUND_TRIPS, Bench, Measure, blocking, each, median
from benchmarks._own_package import own_function
from benchmarks._peers import DELAY_PIPE, gateway, if_execnet

PLACEMENTS = (FREE,)  # it is the waiting that is measured
NEAR, FAR = 100, 200  # ms one way: more than a Python takes to start
MORE = 2 * (FAR - NEAR) / 1000  # seconds in each round trip


async def first_result(one_way: int, fn: Callable[[], object], *, wait: bool) -> float:
    tunnel = trickle.Command((sys.executable, str(DELAY_PIPE), str(one_way), "--"), name="far", python=sys.executable)
    started = time.perf_counter()
    async with trickle.open_host(tunnel, wait=wait) as host:
        await host.call(fn)
        return time.perf_counter() - started


def execnet_first_result(one_way: int) -> float:
    spec = f"popen//python={sys.executable} {DELAY_PIPE} {one_way} -- {sys.executable}"
    started = time.perf_counter()
    with gateway(spec) as opened:
        channel = opened.remote_exec("channel.send(abs(channel.receive()))")
        channel.send(-1)
        channel.receive()
        return time.perf_counter() - started


async def measure(bench: Bench) -> None:
    with own_function() as own:

        def by_trickle(fn: Callable[[], object], wait: bool) -> Callable[[int], Measure]:
            return lambda one_way: each(lambda: first_result(one_way, fn, wait=wait))

        ways: dict[str, Callable[[int], Measure | str]] = {
            "trickle: builtin": by_trickle(int, True),
            "trickle: builtin, wait=False": by_trickle(int, False),
            "trickle: own package": by_trickle(own, True),
            "trickle: own package, wait=False": by_trickle(own, False),
            "execnet: builtin": lambda one_way: if_execnet(blocking(lambda: execnet_first_result(one_way))),
            "execnet: own package": lambda one_way: "sends no imports",
        }
        candidates = {f"{name}/{one_way}": way(one_way) for name, way in ways.items() for one_way in (NEAR, FAR)}
        taken = await bench.sample(candidates, rounds=bench.pick(2, 8), warm_up=not bench.quick)

    def round_trips(name: str) -> list[float] | str:
        near, far = taken[f"{name}/{NEAR}"], taken[f"{name}/{FAR}"]
        if isinstance(near, str) or isinstance(far, str):
            return str(near)
        return [(median(far) - median(near)) / MORE]

    bench.record("round_trips: until the first result", {name: round_trips(name) for name in ways}, unit=ROUND_TRIPS)


if __name__ == "__main__":
    _harness.main(question="round_trips")
