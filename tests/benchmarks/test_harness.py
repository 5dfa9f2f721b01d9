"""Tests of the benchmark harness: its arithmetic on invented samples, and one tiny run in real processes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.comparison import Figures, Line, compare, error_to_norm, worst_error
from benchmarks.peers.floor import all_points_as_one, floor_seconds, product_flop
from benchmarks.problem import Problem
from benchmarks.race import ALLOCATORS, Entry, environment, race
from benchmarks.reference import reference
from benchmarks.rows import ROWS, Rival, Row, chosen_rows
from benchmarks.run import kept_row, run
from benchmarks.settings import Clock, Settings
from benchmarks.tables import cells, print_tables
from benchmarks.workloads import WORKLOADS, load, save

pytestmark = pytest.mark.heavy

ROW = Row(workload="W2", quantity="top5", title="top-5", rivals=(Rival("peer", goal=5, stretch=7),), points=2, quick=1)


def entry(name: str, seconds: list[float], **more: Any) -> Entry:
    """An entry with one sample for each number of seconds.

    Processor time equals wall time in the first sample and grows ten times as fast, so that the two clocks differ.
    more: further fields of every sample.
    """
    samples = [{"num_matvecs": 40, "seconds": s, "cpu_seconds": 10 * s - 9 * seconds[0]} | more for s in seconds]
    return Entry(name, first={"seconds": 9.0, "cpu_seconds": 8.0}, samples=samples, error=1e-5)


def line(ours: Entry, theirs: Entry, row: Row = ROW, clock: Clock = "wall") -> Line:
    """The line of a table that compares two entries, measured at 2 points."""
    return compare(row, [ours, theirs], 2, clock)[0]


def test_the_ratio_is_that_of_medians_and_its_range_is_that_of_rounds():
    result = line(entry("ours", [1.0, 2.0, 9.0]), entry("peer", [12.0, 10.0, 9.0]))
    assert result.ours == Figures(seconds=2.0, first=9.0, error=1e-5, matvecs=20.0)
    assert (result.theirs.seconds, result.ratio) == (10.0, 5.0)
    assert (result.low, result.high) == (1.0, 12.0)
    assert result.goal_reached == "yes"


def test_ratios_can_be_made_of_processor_time():
    result = line(entry("ours", [1.0, 2.0, 3.0]), entry("peer", [22.0, 22.0, 22.0]), clock="cpu")
    assert (result.ours.seconds, result.theirs.seconds, result.ratio, result.ours.first) == (11.0, 22.0, 2.0, 8.0)
    assert line(entry("ours", [1.0, 2.0, 3.0]), entry("peer", [22.0, 22.0, 22.0])).cpu_ratio == 2.0


@pytest.mark.parametrize(("theirs", "reached"), [(4.9, "no"), (5.0, "yes"), (7.0, "stretch")])
def test_a_goal_is_reached_at_its_factor_and_above(theirs: float, reached: str):
    assert line(entry("ours", [1.0]), entry("peer", [theirs])).goal_reached == reached


def test_a_goal_is_missed_at_any_speed_if_the_error_is_too_large():
    ours = replace(entry("ours", [1.0]), error=1e-3)
    assert line(ours, entry("peer", [50.0])).goal_reached == "no (error)"
    assert line(replace(ours, error=None), entry("peer", [50.0])).goal_reached == "no (error)"


def test_the_ratio_is_inverted_if_the_goal_is_an_upper_limit():
    row = replace(ROW, quantity="products", rivals=(Rival("floor", 1.5),), at_most=True)
    ours, floor = entry("ours", [2.0], num_matvecs=10), entry("floor", [0.1], num_matvecs=1)
    assert line(ours, floor, row).ratio == pytest.approx(2.0)  # 2 s for 10 products, over 0.1 s for one
    assert line(ours, floor, row).goal_reached == "no"
    assert line(ours, floor, row).share is None
    rates = {"product_flop": 1e9, "matmul_flop_per_second": 2e10}
    assert line(ours, entry("floor", [0.1], num_matvecs=1, **rates), row).share == pytest.approx(0.25)


def test_the_line_of_an_absent_peer_gives_the_reason():
    result = line(entry("ours", [1.0]), Entry("peer", absent="not installed (peer)"))
    assert "not installed (peer)" in cells(result)
    assert result.goal_reached == "-"


def test_the_measures_of_error_at_known_values():
    assert worst_error([[-1.0, 2.0]], [[2.0, -1.0]]) == 0.0
    assert worst_error([[2.0, -1.0], [3.0, 1.1]], [[2.0, -1.0], [3.0, 1.0]]) == pytest.approx(0.1)
    assert error_to_norm([[0.0, 1.0, 4.0]], [[4.0, 1.2, 0.0]]) == pytest.approx(0.05)


def test_rows_are_chosen_by_work_load_and_quantity():
    assert {row.workload for row in chosen_rows(("W3",), quick=False)} == {"W3"}
    assert [row.workload for row in chosen_rows(("W2", "trace"), quick=False)] == ["W2"]
    assert all(row.workload != "W1" for row in chosen_rows((), quick=True))
    assert chosen_rows((), quick=False) == tuple(row for row in ROWS if not row.gpu)
    assert chosen_rows((), quick=False, device="cuda") == ROWS
    assert [row.workload for row in ROWS if row.gpu] == ["M8", "M9", "M10"]
    assert [row.points for row in chosen_rows(("M8",), quick=False)] == [64]  # by name, on a CPU too
    with pytest.raises(ValueError, match="W9"):
        chosen_rows(("W9",), quick=False)
    with pytest.raises(ValueError, match="W1"):
        chosen_rows(("W1",), quick=True)


def test_allocator_settings_are_the_same_for_all_and_never_inherited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not [name for name in environment(1, "default") if name.startswith("MALLOC_")]
    assert environment(3, "keep").items() >= ALLOCATORS["keep"].items()
    assert environment(3, "keep")["OMP_NUM_THREADS"] == "3"


def test_flop_of_a_product():
    """Two convolutions with 2 x 3 x 9 and 3 x 4 x 9 weights act on 7 images of 5 x 5 pixels.

    A product costs as much as 6 forward passes of the network, less 4 of its first convolution.
    """
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 4, 3, padding=1, bias=False))
    x = torch.zeros(1, 7, 2, 5, 5)
    thetas = torch.empty(1, 0)  # one point; neither its parameters nor the loss are used
    problem = Problem(
        name="W0",
        model=model,
        criterion=nn.MSELoss(),
        loss=None,  # type: ignore[arg-type]
        thetas=thetas,
        x=x,
        y=x,
    )
    first, second = 2 * 2 * 3 * 9 * 7 * 25, 2 * 3 * 4 * 9 * 7 * 25
    assert product_flop(problem) == 2 * first + 6 * second
    assert all(seconds > 0 for seconds in floor_seconds(problem))
    merged = all_points_as_one(problem)  # a GPU takes the images of all points as one batch
    assert product_flop(merged) == len(problem.thetas) * product_flop(problem)
    assert merged.x.shape == (1, problem.x.shape[0] * problem.x.shape[1], *problem.x.shape[2:])


def test_the_points_of_a_work_load_are_those_of_inner_loops(tmp_path: Any):
    problem, work = load("W3", save("W3", tmp_path)), WORKLOADS["W3"]
    assert problem.thetas.shape[0] == problem.x.shape[0] == problem.y.shape[0] == work.size
    first, second = problem.thetas[0], problem.thetas[1]
    slope = torch.func.grad(problem.loss)(first, (problem.x[0], problem.y[0]))
    torch.testing.assert_close(second, first - work.step_size * slope)
    torch.testing.assert_close(problem.thetas[work.steps], first)  # every task begins at the same point


def test_the_reference_agrees_with_the_dense_hessian(tmp_path: Any):
    problem = load("W3", save("W3", tmp_path)).first(1).to("cpu", torch.float64)
    top = reference(problem, "top5")
    assert top["converged"]
    assert top["residual"] < 1e-8
    assert top["disagreement"] < 1e-8
    H = torch.func.hessian(problem.loss)(problem.thetas[0], (problem.x[0], problem.y[0]))
    true = torch.linalg.eigvalsh(H)
    largest = true[true.abs().argsort(descending=True)[:5]]
    assert worst_error(top["values"], [largest.tolist()]) < 1e-10


def test_a_run_through_processes_with_peers_that_are_missing_or_fail(tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    rivals = (Rival("kept_graph", 1), Rival("nobody"), Rival("ours.dense"))
    row = Row("W3", "one point", "one point", rivals, points=1, quick=1, at_most=True)
    entries = race(
        row,
        save("W3", tmp_path),
        count=1,
        rounds=1,
        threads=1,
        device="cpu",
        allocator="default",
        before=None,
        say=print,
    )
    ours, kept, nobody, dense = entries
    assert ours.samples[0]["num_matvecs"] == kept.samples[0]["num_matvecs"] == 100
    assert ours.samples[0]["cpu_seconds"] > 0
    assert nobody.absent is not None and nobody.absent.startswith("not installed")
    assert dense.absent is not None and "KeyError" in dense.absent
    assert "kept_graph: first call" in capsys.readouterr().out
    assert [cells(line)[4] for line in compare(row, entries, 1)][1:] == [nobody.absent, dense.absent]


def test_another_checkout_is_a_contestant_with_its_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The other checkout answers with the file of its worker and the contestant that it was asked for."""
    package = tmp_path / "older" / "benchmarks"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    answer = {"seconds": 2.0, "cpu_seconds": 2.0, "num_matvecs": 100, "values": None, "stderr": None}
    (package / "answer.json").write_text(json.dumps(answer))
    (package / "worker.py").write_text(
        "import json, pathlib, sys\n"
        "print(json.dumps({'note': __file__ + ' ' + json.loads(sys.argv[2])['contestant']}), flush=True)\n"
        "for _ in sys.stdin:\n"
        "    print(pathlib.Path(__file__).with_name('answer.json').read_text(), flush=True)\n"
    )
    monkeypatch.chdir(tmp_path)  # the paths of the checkout and of the problem may be relative
    row = Row("W3", "one point", "one point", (), points=1, quick=1, at_most=True)
    monkeypatch.setattr("benchmarks.tables.ROWS", (row,))
    run((row,), Settings(quick=True, before=Path("older"), out=Path("out")))
    ours, before = json.loads(Path("out/benchmarks.json").read_text())["rows"][0]["contestants"]
    assert before["note"] == f"{package / 'worker.py'} ours"
    assert ours["note"] == 'route="traced"'
    printed = capsys.readouterr().out
    assert "before" in printed and "<= 1.05" in printed


def test_ours_may_be_slower_than_before_by_five_per_cent():
    row = replace(ROW, quantity="products", rivals=(), at_most=True).with_before
    before = entry("before", [1.0], num_matvecs=1)
    assert [line(entry("ours", [t], num_matvecs=1), before, row).goal_reached for t in (1.04, 1.06)] == ["yes", "no"]
    row = replace(ROW, rivals=()).with_before
    assert [line(entry("ours", [t]), entry("before", [1.0]), row).goal_reached for t in (1.04, 1.06)] == ["yes", "no"]


def test_the_table_can_be_printed_from_stored_rows(capsys: pytest.CaptureFixture[str]):
    row = next(row for row in ROWS if (row.workload, row.quantity) == ("W1", "top5"))
    entries = [entry("ours", [1.0]), *(entry(rival.contestant, [4.0]) for rival in row.rivals)]
    kept = json.loads(json.dumps(kept_row(row, 1, "default", entries, None)))
    print_tables([kept], "wall")
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in ("malloc default", "W1", "pyhessian", ">= 1.7", "yes", "1e-05"))
