"""Measure several candidates in one run, in turn, and print one table.  What is measured is each question's own file.

A question is a module of this package with ``async def measure(bench: Bench) -> None``.  It runs in a process of its
own for each placement: pinned to one CPU, which takes the scheduler's choices out of the figures, and free, which is
how programs run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio

from benchmarks import _pyperf

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    *("connect", "round_trips", "boot_bytes", "code", "call", "payload", "cancel", "stopping", "abandoned"),
    *("framing", "connection", "instructions", "idle"),
    "many_ssh",
    "files",
    "flow",
    "fan_out",
    "reducing",
    "unpickling",
    "attacks",
)
PINNED, FREE = "pinned", "free"
HEADINGS = {PINNED: "pinned to one CPU", FREE: "free"}
NOT_INSTALLED = "not installed"
NOT_QUICK = "not with --quick"
MICRO = ("framing", "connection", "unpickling")  # what they time is Loops, which pyperf can be told
PROCESSES = 5  # that pyperf is told of: hashes and addresses differ from one to the next, and times with them
PATIENCE, QUICK_PATIENCE = 3600, 300  # seconds that a question may take: only ends one that hangs
# Rows that begin so are not of trickle.
PEERS = ("execnet", "rpyc", "mitogen", "multiprocessing", "trio-parallel", "asyncssh")
TOOLS = ("scp", "sftp", "rsync", "tar")
FORMATS = ("msg", "ormsgpack", "pickle", "JSON", "struct alone")
TICK = 0.001  # seconds
TOLERANCE = 1.2  # times a ratio to a floor that noise may make it

Measure = Callable[[int], Awaitable[list[float]]]  # how many samples -> the samples, in the unit's base


class Unit(NamedTuple):
    """How samples are shown."""

    name: str
    factor: float = 1.0  # shown = sample * factor
    digits: int = 1
    more_is_better: bool = False


MICROSECONDS = Unit("us", 1e6)
MILLISECONDS = Unit("ms", 1e3)
SECONDS = Unit("s", digits=2)
MEBIBYTES = Unit("MiB", 2**-20)
CALLS_PER_SECOND = Unit("calls/s", digits=0, more_is_better=True)
MEGABYTES_PER_SECOND = Unit("MB/s", 1e-6, digits=0, more_is_better=True)
ROUND_TRIPS = Unit("round trips", digits=2)
BYTES = Unit("bytes", digits=0)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is kept of one candidate's samples.

    Args:
      count: how many samples.
      median: of them, in the unit shown.
      p99: what 99 % of the samples are at least as good as; of fewer than 100 samples, the worst.
      cost: times the floor's: 2.0 takes twice as long, or moves half as much.
    """

    count: int
    median: float
    p99: float
    cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The answer to one question; a row without figures has the reason instead."""

    title: str
    unit: Unit
    floor: str | None
    rows: Mapping[str, Summary | str]


Answer = Mapping[str, Sequence[Table]]  # by placement


class Bench:
    """What a question measures with.

    Attributes:
      quick: whether a rough answer is enough.
      tables: the answers so far.
      loops: what was timed for them in loops, by table and row.
    """

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.tables: list[Table] = []
        self.loops: dict[str, Loops] = {}

    def pick(self, quick: int, full: int) -> int:
        """A size: for a rough answer or for a good one."""
        return quick if self.quick else full

    def with_care(self, measure: Measure | str) -> Measure | str:
        """*measure*, or what stands in its row in a rough answer."""
        return NOT_QUICK if self.quick else measure

    async def sample(
        self, candidates: Mapping[str, Measure | str], *, rounds: int, samples: int = 1, warm_up: bool = True
    ) -> dict[str, list[float] | str]:
        """Measure all in turn, A B C A B C ..., after one round that is not counted.

        Args:
          candidates: what to measure, or the reason why there is nothing to.
          rounds: how many turns each gets.
          samples: how many samples in each turn.
          warm_up: whether there is a round that is not counted.
        """
        taken: dict[str, list[float] | str] = {
            name: measure if isinstance(measure, str) else [] for name, measure in candidates.items()
        }
        for turn in range(rounds + warm_up):
            for name, measure in candidates.items():
                kept = taken[name]
                if isinstance(measure, str) or isinstance(kept, str):
                    continue
                new = await measure(samples)
                if turn or not warm_up:
                    kept += new
        return taken

    async def compare(
        self,
        title: str,
        candidates: Mapping[str, Measure | str],
        *,
        unit: Unit,
        floor: str | None = None,
        rounds: int,
        samples: int = 1,
        warm_up: bool = True,
    ) -> None:
        """Measure all in turn, and keep a table of it."""
        taken = await self.sample(candidates, rounds=rounds, samples=samples, warm_up=warm_up)
        self.record(title, taken, unit=unit, floor=floor)
        self.loops |= {f"{title}: {name}": each for name, each in candidates.items() if isinstance(each, Loops)}

    def record(
        self, title: str, taken: Mapping[str, Sequence[float] | str], *, unit: Unit, floor: str | None = None
    ) -> None:
        """Keep a table of what was measured or counted."""
        base = taken[floor] if floor is not None else ""
        floor_median = None if isinstance(base, str) else median(base)
        rows = {
            name: samples if isinstance(samples, str) else summarize(samples, unit, floor_median)
            for name, samples in taken.items()
        }
        self.tables.append(Table(title, unit, floor, rows))


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the middle two."""
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def summarize(samples: Sequence[float], unit: Unit, floor: float | None) -> Summary:
    """What is kept of *samples*; *floor* is the floor's median, before it was made fit for showing."""
    best_first = sorted(samples, reverse=unit.more_is_better)
    p99 = best_first[min(len(best_first) - 1, len(best_first) * 99 // 100)]
    middle = median(samples)
    cost = None
    if floor:
        cost = floor / middle if unit.more_is_better else middle / floor
    return Summary(len(samples), middle * unit.factor, p99 * unit.factor, cost)


async def longest_pause(act: Callable[[], Awaitable[object]]) -> float:
    """Seconds for which the event loop ran nothing else, at most, while *act* was awaited."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            try:
                await trio.sleep(TICK)
            finally:  # the loop may have stood until the very end
                longest = max(longest, time.perf_counter() - before - TICK)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await act()
        nursery.cancel_scope.cancel()
    return longest


def each(once: Callable[[], Awaitable[float]]) -> Measure:
    """A Measure that takes one sample at a time."""

    async def measure(samples: int) -> list[float]:
        return [await once() for _ in range(samples)]

    return measure


def blocking(once: Callable[[], float]) -> Measure:
    """The same for what blocks: nothing else runs in this process meanwhile."""

    async def measure(samples: int) -> list[float]:
        return [once() for _ in range(samples)]

    return measure


def timed(act: Callable[[], object]) -> Measure:
    """A Measure of how long *act* takes."""

    async def measure(samples: int) -> list[float]:
        taken = []
        for _ in range(samples):
            started = time.perf_counter()
            act()
            taken.append(time.perf_counter() - started)
        return taken

    return measure


def timed_async(act: Callable[[], Awaitable[object]]) -> Measure:
    """A Measure of how long awaiting *act* takes."""

    async def measure(samples: int) -> list[float]:
        taken = []
        for _ in range(samples):
            started = time.perf_counter()
            await act()
            taken.append(time.perf_counter() - started)
        return taken

    return measure


class Loops:
    """A Measure of the CPU time of what is short: a sample repeats it for as long as can be measured well.

    Args:
      act: what is repeated.
      seconds: what a sample takes at least.
      inner: how many things one *act* does; samples are the seconds that each of them takes.
      amount: where samples are rates, how much is in each of these things.

    Attributes:
      count: how many times a sample repeats *act*; 0 until it has been measured.
      turns: the seconds of every sample, turn by turn; the first turn does not count.
    """

    def __init__(
        self, act: Callable[[], object], seconds: float, *, inner: int = 1, amount: float | None = None
    ) -> None:
        self.inner = inner
        self.count = 0
        self.turns: list[list[float]] = []
        self._act = act
        self._seconds = seconds
        self._amount = amount

    async def __call__(self, samples: int) -> list[float]:
        if not self.count:
            self.count = 1
            while self._repeat() < self._seconds:
                self.count *= 2
        taken = [self._repeat() / self.count / self.inner for _ in range(samples)]
        self.turns.append(taken)
        return taken if self._amount is None else [self._amount / seconds for seconds in taken]

    def _repeat(self) -> float:
        act, times = self._act, range(self.count)
        started = time.thread_time()
        for _ in times:
            act()
        return time.thread_time() - started


# ---- processes: one for each question and placement


def placements_of(question: str, quick: bool = False) -> tuple[str, ...]:
    """Where a question is measured: both, unless it says that it makes no difference, or little for a rough answer."""
    module = importlib.import_module(f"benchmarks.{question}")
    wanted: tuple[str, ...] = getattr(module, "PLACEMENTS", (PINNED, FREE))
    if quick:
        wanted = getattr(module, "QUICK_PLACEMENTS", wanted)
    return wanted if hasattr(os, "sched_setaffinity") else tuple(p for p in wanted if p != PINNED)


def run_placed(question: str, placement: str, quick: bool, pyperf: Path | None = None) -> list[Table]:
    """Measure in a process of its own; for *pyperf* in several, the tables being those of the last.

    Raises:
      subprocess.SubprocessError: it failed, and has said why on stderr; or it hung.
    """
    words = [sys.executable, "-m", "benchmarks", question, "--placement", placement, *(["--quick"] if quick else [])]
    patience = QUICK_PATIENCE if quick else PATIENCE
    processes = 1
    if pyperf is not None and question in MICRO:
        words += ["--pyperf", str(pyperf.absolute())]
        processes = PROCESSES
    for _ in range(processes):
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=patience)
    return list(map(_table, json.loads(done.stdout)))


def measure_here(question: str, placement: str, quick: bool) -> Bench:
    """Measure in this process, and so in those that it starts."""
    if placement == PINNED:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before there are threads or other processes
    bench = Bench(quick)
    trio.run(importlib.import_module(f"benchmarks.{question}").measure, bench)
    return bench


# ---- the report


def as_text(by_placement: Mapping[str, Sequence[Table]]) -> str:
    """One question's tables, each with its placements side by side."""
    return "\n".join(_table_text(list(by_placement), tables) for tables in zip(*by_placement.values(), strict=True))


def _table_text(placements: Sequence[str], tables: Sequence[Table]) -> str:
    first = tables[0]
    counts = {row.count for table in tables for row in table.rows.values() if not isinstance(row, str)}
    sampled = max(counts, default=1) > 1
    columns = ["median", "p99"] if sampled else [first.unit.name]
    if first.floor is not None:
        columns.append("x floor")
    width = max(len(name) for name in first.rows) + len(" (floor)")
    block = 10 * len(columns)
    what = f"{first.unit.name}, of {'-'.join(str(n) for n in sorted({min(counts), max(counts)}))}" if sampled else ""
    lines = [f"{first.title}{f' ({what})' if what else ''}"]
    if len(placements) > 1:
        lines.append(" " * width + "".join(f"{HEADINGS[p]:>{block}}" for p in placements))
    lines.append(" " * width + "".join(f"{column:>10}" for _ in placements for column in columns))
    for name in first.rows:
        label = f"{name} (floor)" if name == first.floor else name
        cells = "".join(_cells(table.rows[name], table, len(columns), sampled) for table in tables)
        lines.append(f"{label:<{width}}{cells}")
    return "\n".join(lines) + "\n"


def as_markdown(by_placement: Mapping[str, Sequence[Table]]) -> str:
    """The same as tables of a Markdown page: the median, and in brackets how many times the floor's it is."""
    return "\n".join(_markdown_table(list(by_placement), tables) for tables in zip(*by_placement.values(), strict=True))


def _markdown_table(placements: Sequence[str], tables: Sequence[Table]) -> str:
    first = tables[0]
    lines = [f"| {first.title}, {first.unit.name} | {' | '.join(placements)} |", "|---" * (1 + len(placements)) + "|"]
    for name in first.rows:
        label = f"floor: {name}" if name == first.floor else name
        lines.append(f"| {label} | {' | '.join(_markdown_cell(table.rows[name], table) for table in tables)} |")
    return "\n".join(lines) + "\n"


def _markdown_cell(row: Summary | str, table: Table) -> str:
    if isinstance(row, str):
        return row
    ratio = f" ({row.cost:.2f})" if row.cost is not None and row.cost != 1 else ""
    return f"{row.median:,.{table.unit.digits}f}{ratio}"


def _cells(row: Summary | str, table: Table, columns: int, sampled: bool) -> str:
    if isinstance(row, str):
        return f"  {row:>{10 * columns - 2}}"
    numbers = [row.median, row.p99] if sampled else [row.median]
    cells = "".join(f"{number:>10,.{table.unit.digits}f}" for number in numbers)
    if table.floor is not None:
        cells += f"{row.cost:>10.2f}" if row.cost is not None else " " * 10
    return cells


def about_this_machine() -> dict[str, object]:
    """In general words: what the figures depend on, and nothing that names the machine."""
    return {
        "cpus": os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
        "machine": platform.machine(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def main(argv: Sequence[str] | None = None, *, question: str | None = None) -> None:
    """The command line; *question* is the one of a file that is run by itself."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks{f'.{question}' if question else ''}",
        description="What trickle costs, against floors and peers measured in the same run.",
    )
    if question is None:
        parser.add_argument("questions", nargs="*", metavar="NAME", help=f"one of {', '.join(QUESTIONS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="a rough answer (the default for all at once)")
    parser.add_argument("--full", action="store_true", help="a good answer (the default for one)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there as well")
    parser.add_argument("--markdown", action="store_true", help="tables for a Markdown page")
    parser.add_argument(
        "--compare",
        metavar="BASE",
        type=Path,
        help=f"what --json wrote before: fail on a ratio to a floor that is {TOLERANCE} times that, twice in a row",
    )
    parser.add_argument(
        "--pyperf",
        metavar="FILE",
        type=Path,
        help=f"write what {', '.join(MICRO)} time there as well, as pyperf's tools read it, from {PROCESSES} processes",
    )
    parser.add_argument("--placement", choices=(PINNED, FREE), help=argparse.SUPPRESS)  # how run_placed starts us
    options = parser.parse_args(argv)
    asked: list[str] = [question] if question is not None else options.questions
    names = asked or list(QUESTIONS)
    for name in names:
        if name not in QUESTIONS:
            parser.error(f"no question {name!r}; there are {', '.join(QUESTIONS)}")
    quick = options.quick or not (asked or options.full)

    if options.placement is not None:
        bench = measure_here(names[0], options.placement, quick)
        json.dump([_plain(table) for table in bench.tables], sys.stdout)
        if options.pyperf is not None:
            _pyperf.add_runs(options.pyperf, options.placement, bench.loops)
        return
    if options.pyperf is not None:
        if importlib.util.find_spec("pyperf") is None:
            parser.error("--pyperf: pyperf is not installed; the extra bench brings it")
        if options.pyperf.exists():
            parser.error(f"--pyperf: {options.pyperf} is there already, and would mix two measurements")
        if not set(names) & set(MICRO):
            parser.error(f"--pyperf: it is for {', '.join(MICRO)}, and none of them is asked")
    machine = about_this_machine()
    base = read_base(options.compare) if options.compare is not None else None
    if base is not None and not asked:
        names = [name for name in names if name in base]
    print(", ".join(f"{key} {value}" for key, value in machine.items()), "\n")
    answers: dict[str, Answer] = {}
    failed: list[str] = []
    for name in names:
        try:
            answers[name] = ask(name, quick, options.pyperf)
        except subprocess.SubprocessError as exc:
            failed.append(f"{name}: {exc}")
            continue
        except KeyboardInterrupt:  # what has been measured is kept
            failed.append(f"{name}: interrupted")
            base = None
            break
        print(as_markdown(answers[name]) if options.markdown else as_text(answers[name]), flush=True)
    if options.json is not None:
        plain = {
            name: {placement: [_plain(table) for table in tables] for placement, tables in answer.items()}
            for name, answer in answers.items()
        }
        options.json.write_text(json.dumps({"machine": machine, "quick": quick, "answers": plain}, indent=1) + "\n")
    if base is not None:
        failed += worse_twice(base, answers, lambda name: ask(name, quick))
    if failed:
        sys.exit("\n".join(failed))


def ask(question: str, quick: bool, pyperf: Path | None = None) -> Answer:
    """One question's tables, by placement; what *pyperf* is told goes to that file."""
    return {placement: run_placed(question, placement, quick, pyperf) for placement in placements_of(question, quick)}


# ---- the guard


def read_base(path: Path) -> dict[str, Answer]:
    """The answers of an earlier run, as ``--json`` wrote them."""
    answers = json.loads(path.read_text())["answers"]
    return {
        question: {placement: list(map(_table, tables)) for placement, tables in answer.items()}
        for question, answer in answers.items()
    }


def costs_of(answer: Answer) -> dict[tuple[str, str, str], float]:
    """The ratios to a floor in an answer, by placement, table and row: trickle's own rows alone."""
    return {
        (placement, table.title, name): row.cost
        for placement, tables in answer.items()
        for table in tables
        for name, row in table.rows.items()
        if not isinstance(row, str) and row.cost is not None and name != table.floor and is_ours(name)
    }


def is_ours(row: str) -> bool:
    """Whether a row is not that of a peer or an alternative, whose figures are not ours to guard."""
    return not row.startswith((*PEERS, *TOOLS, *FORMATS, "trio over pipes"))


def worse_than(base: Answer, now: Answer) -> dict[tuple[str, str, str], str]:
    """The ratios that have grown by more than TOLERANCE, with a line about each."""
    before = costs_of(base)
    return {
        key: f"{key[1]} ({HEADINGS[key[0]]}), {key[2]}: {cost:.2f} x floor, was {before[key]:.2f}"
        for key, cost in costs_of(now).items()
        if key in before and cost > before[key] * TOLERANCE
    }


def worse_twice(base: Mapping[str, Answer], now: Mapping[str, Answer], again: Callable[[str], Answer]) -> list[str]:
    """A line about each ratio that is worse than in *base*, and is so again when its question is asked once more."""
    lines = []
    for question, answer in now.items():
        first = worse_than(base[question], answer) if question in base else {}
        if first:
            print(f"{question}: worse, asked once more", flush=True)
            second = worse_than(base[question], again(question))
            lines += [line for key, line in second.items() if key in first]
    return lines


def _table(plain: Mapping[str, Any]) -> Table:
    rows = {name: row if isinstance(row, str) else Summary(**row) for name, row in plain["rows"].items()}
    return Table(plain["title"], Unit(**plain["unit"]), plain["floor"], rows)


def _plain(table: Table) -> dict[str, Any]:
    rows = {name: row if isinstance(row, str) else dataclasses.asdict(row) for name, row in table.rows.items()}
    return {"title": table.title, "unit": table.unit._asdict(), "floor": table.floor, "rows": rows}
