"""The benchmarks' own logic: what is kept of samples, what a guard fails on.  The figures are nobody's test."""

import contextlib
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import _harness, _pyperf, _rivals, connection, framing
from benchmarks._ends import Ends
from benchmarks._harness import FREE, MICROSECONDS, PINNED, QUESTIONS, Answer, Bench, Loops, Summary, Table
from trickle._wire.frames import Frame


def answer(cost: float, *, peer: float = 2.0, placement: str = PINNED) -> Answer:
    rows: dict[str, Summary | str] = {
        "floor": Summary(10, 100.0, 120.0, 1.0),
        "trickle": Summary(10, 100.0 * cost, 130.0 * cost, cost),
        "execnet": Summary(10, 100.0 * peer, 150.0, peer),
        "rpyc": "not installed",
    }
    return {placement: [Table("a question", MICROSECONDS, "floor", rows)]}


def test_a_ratio_that_got_worse_twice_fails() -> None:
    lines = _harness.worse_twice({"call": answer(3.0)}, {"call": answer(3.7)}, lambda name: answer(3.8))

    assert lines == ["a question (pinned to one CPU), trickle: 3.80 x floor, was 3.00"]


def test_a_ratio_that_got_worse_once_does_not() -> None:
    assert _harness.worse_twice({"call": answer(3.0)}, {"call": answer(3.7)}, lambda name: answer(3.5)) == []


def test_what_is_not_worse_is_not_asked_again() -> None:
    def again(name: str) -> Answer:
        raise AssertionError(name)

    assert _harness.worse_twice({"call": answer(3.0)}, {"call": answer(3.59, peer=9.0)}, again) == []
    assert _harness.worse_twice({}, {"call": answer(9.0)}, again) == []


def test_placements_are_compared_each_with_itself() -> None:
    assert _harness.worse_than(answer(3.0, placement=FREE), answer(9.0, placement=PINNED)) == {}


def test_the_guard_reads_what_a_run_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([answer(3.0), answer(3.1), answer(4.0), answer(4.0)])
    monkeypatch.setattr(_harness, "ask", lambda name, quick, pyperf=None: next(answers))
    base = tmp_path / "base.json"

    _harness.main(["call", "--json", str(base)])
    _harness.main(["call", "--compare", str(base)])
    with pytest.raises(SystemExit, match=r"trickle: 4.00 x floor, was 3.00"):
        _harness.main(["call", "--compare", str(base), "--markdown"])

    assert json.loads(base.read_text())["answers"]["call"]
    assert "| trickle | 400.0 (4.00) |" in capsys.readouterr().out


def test_one_question_that_fails_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(name: str, quick: bool, pyperf: Path | None) -> Answer:
        if name == "call":
            raise subprocess.CalledProcessError(1, "call")
        return answer(3.0)

    monkeypatch.setattr(_harness, "ask", ask)

    with pytest.raises(SystemExit, match="call: "):
        _harness.main(["call", "connect"])

    assert "a question" in capsys.readouterr().out


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str, quick: bool, pyperf: Path | None) -> Answer:
        if name == "connect":
            raise KeyboardInterrupt
        return answer(3.0)

    monkeypatch.setattr(_harness, "ask", ask)
    out = tmp_path / "out.json"

    with pytest.raises(SystemExit, match="connect: interrupted"):
        _harness.main(["call", "connect", "payload", "--json", str(out)])

    assert list(json.loads(out.read_text())["answers"]) == ["call"]


def test_a_peer_that_is_missing_or_broken_keeps_no_other_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def missing() -> Iterator[_rivals.Rival]:
        raise ModuleNotFoundError("execnet")
        yield

    @contextlib.contextmanager
    def broken() -> Iterator[_rivals.Rival]:
        raise EOFError
        yield

    monkeypatch.setattr(
        _rivals, "RIVALS", {"execnet": missing, "rpyc": broken, "trio-parallel": _rivals.RIVALS["trio-parallel"]}
    )
    with contextlib.ExitStack() as stack:
        rivals = _rivals.open_all(stack)

    assert rivals["execnet"] == "not installed"
    assert rivals["rpyc"] == "failed: EOFError"
    assert isinstance(rivals["trio-parallel"], _rivals.Rival)


def test_no_peer_s_figures_are_guarded() -> None:
    assert not any(map(_harness.is_ours, [*_rivals.RIVALS, "execnet: remote_exec"]))
    assert _harness.is_ours("trickle: host.call")


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_says_what_it_measures(name: str) -> None:
    placements = _harness.placements_of(name)
    module = __import__(f"benchmarks.{name}", fromlist=["measure"])

    assert placements
    assert callable(module.measure)
    assert len(module.__doc__ or "") > 200
    assert f"| {name}.py |" in (_harness.ROOT / "benchmarks" / "README.md").read_text()


def test_every_way_to_write_a_frame_reads_what_it_wrote() -> None:
    for name, way in framing.ways().items():
        for frame in framing.SIZES.values():
            if isinstance(way, str):
                continue
            item = framing.item_of(name, frame)
            for _ in range(2):
                found = way.read(way.write(item) * 3)
                assert [list(each) for each in found] == [list(item)] * 3
                assert isinstance(item, Frame) == name.startswith("trickle")


def test_the_core_in_memory_answers_each_call_and_ends() -> None:
    ends = Ends()

    ends.call(connection.AT_ONCE)
    ends.bulk(beside=20)

    assert ends.controller.is_drained
    assert ends.id == connection.AT_ONCE + 21


async def test_candidates_are_measured_in_turn_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def candidate(name: str, value: float) -> _harness.Measure:
        async def measure(samples: int) -> list[float]:
            order.append(name)
            return [value] * samples

        return measure

    bench = Bench(quick=True)
    await bench.compare(
        "a question",
        {"floor": candidate("floor", 1e-6), "ours": candidate("ours", 3e-6), "peer": "not installed"},
        unit=MICROSECONDS,
        floor="floor",
        rounds=2,
        samples=5,
    )

    (table,) = bench.tables
    assert order == ["floor", "ours"] * 3
    ours = table.rows["ours"]
    assert isinstance(ours, Summary)
    assert ours.count == 10
    assert math.isclose(ours.median, 3.0)
    assert ours.cost is not None and math.isclose(ours.cost, 3.0)
    assert table.rows["peer"] == "not installed"


async def test_the_first_round_counts_where_nothing_is_warmed_up() -> None:
    values = iter([1.0, 2.0])

    async def measure(samples: int) -> list[float]:
        return [next(values)]

    taken = await Bench(quick=True).sample({"ours": measure}, rounds=2, warm_up=False)

    assert taken == {"ours": [1.0, 2.0]}


def test_a_rough_answer_may_leave_out_rows_and_placements() -> None:
    async def measure(samples: int) -> list[float]:
        raise AssertionError

    assert Bench(quick=True).with_care(measure) == "not with --quick"
    assert Bench(quick=False).with_care(measure) is measure
    assert _harness.placements_of("stopping", quick=True) == (FREE,)
    assert FREE in _harness.placements_of("stopping")


class Clock:
    """Of something that takes a millisecond each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(_harness.time, "thread_time", lambda: self.now)

    def act(self) -> None:
        self.now += 0.001


async def test_what_is_short_is_repeated_until_it_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    act = Clock(monkeypatch).act
    seconds, rate = Loops(act, 0.01, inner=10), Loops(act, 0.01, inner=10, amount=5)

    assert await seconds(2) == pytest.approx([1e-4, 1e-4])
    assert await rate(1) == pytest.approx([5e4])
    assert seconds.count == rate.count == 16


async def test_pyperf_reads_what_was_timed_in_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")
    path, act = tmp_path / "runs.json", Clock(monkeypatch).act

    for _ in range(2):  # as if by two processes
        bench = Bench(quick=True)
        candidates = {"floor": Loops(act, 0.01), "ours": Loops(act, 0.01, inner=4, amount=7), "peer": "not installed"}
        await bench.compare("a question", candidates, unit=MICROSECONDS, rounds=3)
        _pyperf.add_runs(path, PINNED, bench.loops)

    suite = pyperf.BenchmarkSuite.load(str(path))
    ours = suite.get_benchmark("a question: ours (pinned)")
    assert suite.get_benchmark_names() == ["a question: floor (pinned)", "a question: ours (pinned)"]
    assert [(len(run.warmups), len(run.values)) for run in ours.get_runs()] == [(1, 3)] * 2
    assert ours.get_values() == pytest.approx([0.00025] * 6)
    assert (ours.get_loops(), ours.get_inner_loops()) == (16, 4)
    assert os.uname().nodename not in path.read_text().replace(os.uname().sysname, "")


def test_pyperf_s_file_is_of_one_measurement_of_what_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyperf")
    monkeypatch.setattr(_harness, "ask", lambda name, quick, pyperf: answer(3.0))
    path = tmp_path / "runs.json"

    with pytest.raises(SystemExit):
        _harness.main(["call", "--pyperf", str(path)])
    path.touch()
    with pytest.raises(SystemExit):
        _harness.main(["framing", "--pyperf", str(path)])

    said = capsys.readouterr().err
    assert "none of them is asked" in said
    assert "is there already" in said


def test_the_machine_is_described_without_its_name() -> None:
    assert os.uname().nodename not in json.dumps(_harness.about_this_machine()).replace(os.uname().sysname, "")
