"""How long does a host that was taken over hold up the loop, and how much memory does it take?

Every attack of tests/hostile, by a program that speaks real frames over a real pipe.  Measured, while it goes on: the
processor time in which the loop gave no other task a turn, and by how much this process grew.  Of each class of attacks
the worst one counts; a table shows the median of that over the rounds.  What is promised is 100 ms and 40 ms for each
MiB that came, 64 MiB and 16 times what came; the results of the class "result" are of up to 9 MiB.  With ``--quick``
only every fourth is tried of those that are no answers to a call and so need a host each.  Not measured: how long an
attack is borne, which is for the lease and the caller's timeout to say.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
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
    except ImportError:  # they are tests: they need what the extra "test" brings
        for title, unit in (("longest pause of the loop", MILLISECONDS), ("memory", MEBIBYTES)):
            bench.record(f"attacks: {title}", {"all": NOT_INSTALLED}, unit=unit)
        return
    logging.getLogger("trickle").setLevel(logging.CRITICAL)
    _host_core.VERDICT_SLACK = _link.EXIT_PATIENCE = PATIENCE  # type: ignore[misc]
    pauses: dict[str, list[float] | str] = {}
    memory: dict[str, list[float] | str] = {}
    warm_up = not bench.quick
    for turn in range(bench.pick(1, 5) + warm_up):
        worst: dict[str, tuple[float, float]] = {}
        async for name, stall, grown in each_attack(test_attacks, bench.pick(4, 1)):
            kind = name.partition(":")[0]
            before = worst.get(kind, (0.0, 0.0))
            worst[kind] = max(before[0], stall), max(before[1], grown)
        if turn or not warm_up:
            for kind, (stall, grown) in worst.items():
                for table, figure in ((pauses, stall), (memory, grown)):
                    kept = table.setdefault(kind, [])
                    assert isinstance(kept, list)
                    kept.append(figure)
    bench.record("attacks: longest pause of the loop", pauses, unit=MILLISECONDS)
    bench.record("attacks: memory", memory, unit=MEBIBYTES)


async def each_attack(test_attacks: Any, step: int) -> AsyncIterator[tuple[str, float, float]]:
    """Names, seconds that the loop stood, and bytes that this process grew by.

    All answers to calls are one host's; of the attacks that need a host each, every so many-th is tried.
    """
    attacks = test_attacks.ATTACKS
    async with taken(test_attacks, test_attacks.ALL_ANSWERS, {}) as (host, directory):
        await host.wait_connected()
        for name in test_attacks.ANSWERS:
            yield name, *await damage_of(test_attacks, name, host, directory)
    alone = [name for name in attacks if name not in test_attacks.ANSWERS]
    for name in alone[::step]:
        if attacks[name].verb == "call, short lease":
            continue  # it waits
        async with taken(test_attacks, name, test_attacks.settings_for(name)) as (host, directory):
            if not name.startswith("hello"):
                await host.wait_connected()
            yield name, *await damage_of(test_attacks, name, host, directory)


@contextlib.asynccontextmanager
async def taken(test_attacks: Any, name: str, settings: Mapping[str, Any]) -> AsyncIterator[tuple[trickle.Host, Path]]:
    """A host that attacks, and a directory for it."""
    with tempfile.TemporaryDirectory() as directory:
        tunnel = test_attacks.Taken(name="taken", attack=name, directory=Path(directory))
        everything = {"output": lambda line: None, **settings}
        async with trickle.open_host(tunnel, wait=False, **everything) as host:
            yield host, Path(directory)


async def damage_of(test_attacks: Any, name: str, host: trickle.Host, directory: Path) -> tuple[float, float]:
    """Seconds that the loop stood in one attack, and bytes that this process grew by."""
    async with test_attacks.watched() as damage:
        with contextlib.suppress(Exception):
            await test_attacks.VERBS[test_attacks.ATTACKS[name].verb](host.options(grace_period=0.1), directory)
    return damage.stall, float(max(0, damage.memory))


if __name__ == "__main__":
    _harness.main(question="attacks")
