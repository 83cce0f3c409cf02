"""How long does a host that was taken over hold up the loop, and how much memory does it take?

Every attack of tests/hostile, by a program that speaks real frames over a real pipe.  Measured, while it goes on: the
processor time in which the loop gave no other task a turn, and by how much this process grew.  Of each class of attacks
the worst one counts; a table shows the median of that over the rounds.  What is promised is 100 ms and 40 ms for each
MiB that came, 64 MiB and 16 times what came; the results of the class "result" are of up to 9 MiB.  Not measured: how
long an attack is borne, which is for the lease and the caller's timeout to say.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any

import trickle
from benchmarks import _harness
from benchmarks._harness import FREE, MEBIBYTES, MILLISECONDS, NOT_INSTALLED, Bench
from trickle import _host_core, _link

PLACEMENTS = (FREE,)
PATIENCE = 0.5  # seconds that a host has for its verdict, and to end in


async def measure(bench: Bench) -> None:
    try:
        from tests.hostile import test_attacks
        from tests.hostile.attacks import ATTACKS
    except ImportError:  # they are tests: they need what the extra "test" brings
        for title, unit in (("longest pause of the loop", MILLISECONDS), ("memory", MEBIBYTES)):
            bench.record(f"attacks: {title}", {"all": NOT_INSTALLED}, unit=unit)
        return
    logging.getLogger("trickle").setLevel(logging.CRITICAL)
    _host_core.VERDICT_SLACK = _link.EXIT_PATIENCE = PATIENCE  # type: ignore[misc]
    pauses: dict[str, list[float] | str] = {}
    memory: dict[str, list[float] | str] = {}
    for turn in range(bench.pick(1, 5) + 1):
        worst: dict[str, tuple[float, float]] = {}
        for name in ATTACKS:
            if ATTACKS[name].verb == "call, short lease":
                continue  # it waits
            kind = name.partition(":")[0]
            stall, grown = await damage_of(test_attacks, name)
            before = worst.get(kind, (0.0, 0.0))
            worst[kind] = max(before[0], stall), max(before[1], grown)
        if turn:
            for kind, (stall, grown) in worst.items():
                for table, figure in ((pauses, stall), (memory, grown)):
                    kept = table.setdefault(kind, [])
                    assert isinstance(kept, list)
                    kept.append(figure)
    bench.record("attacks: longest pause of the loop", pauses, unit=MILLISECONDS)
    bench.record("attacks: memory", memory, unit=MEBIBYTES)


async def damage_of(test_attacks: Any, name: str) -> tuple[float, float]:
    """Seconds that the loop stood in one attack, and bytes that this process grew by."""
    with tempfile.TemporaryDirectory() as directory:
        tunnel = test_attacks.Taken(name="taken", attack=name, directory=Path(directory))
        settings = {"output": lambda line: None, **test_attacks.settings_for(name)}
        async with trickle.open_host(tunnel, wait=False, **settings) as host:
            if not name.startswith("hello"):
                await host.wait_connected()
            patient = host.options(grace_period=0.1)
            async with test_attacks.watched() as damage:
                with contextlib.suppress(Exception):
                    await test_attacks.VERBS[test_attacks.ATTACKS[name].verb](patient, Path(directory))
    return damage.stall, float(max(0, damage.memory))


if __name__ == "__main__":
    _harness.main(question="attacks")
