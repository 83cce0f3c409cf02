"""Keep what was timed in loops in a file of pyperf's, for its ``stats``, ``check``, ``hist`` and ``compare_to``.

pyperf's own Runner gives each benchmark processes of its own, one benchmark after the other.  Here it is the harness
that measures, floor and candidates in turn: pyperf gets one run of each from each process, with what did not count as
its warm-ups, and what it finds out about the machine, but for its name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyperf

    from benchmarks._harness import Loops


def add_runs(path: Path, placement: str, loops: Mapping[str, Loops]) -> None:
    """Add what this process has measured; the file is made if need be."""
    import pyperf

    suite = pyperf.BenchmarkSuite([_benchmark(f"{name} ({placement})", each) for name, each in loops.items()])
    pyperf.add_runs(str(path), suite)


def _benchmark(name: str, loops: Loops) -> pyperf.Benchmark:
    import pyperf

    warm_ups, *turns = loops.turns
    values = [value for turn in turns for value in turn]
    clock = time.get_clock_info("thread_time")
    found = pyperf.Run(values).get_metadata()
    about = {key: value for key, value in found.items() if key != "hostname"}
    about |= {
        "name": name,
        "unit": "second",
        "loops": loops.count,
        "inner_loops": loops.inner,
        "timer": f"{clock.implementation}, resolution: {clock.resolution * 1e9:.0f} ns",
    }
    return pyperf.Benchmark(
        [pyperf.Run(values, [(loops.count, value) for value in warm_ups], about, collect_metadata=False)]
    )
