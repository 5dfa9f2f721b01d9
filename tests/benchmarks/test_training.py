"""Tests of the benchmarks of meta-training: all contestants compute the same meta-gradient on the same tasks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.comparison import compare, error
from benchmarks.problem import TrainingProblem, sampled_entries
from benchmarks.race import Entry
from benchmarks.rows import ROWS
from benchmarks.training import libraries, ours
from benchmarks.workloads import load, save

pytestmark = pytest.mark.heavy

ROW = next(row for row in ROWS if row.workload == "M5")


@pytest.fixture(scope="module", params=["M5", "M6"])
def problem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainingProblem:
    """The first three tasks of a work load of regression, in second order (M5) and in first order (M6)."""
    path = save(request.param, tmp_path_factory.mktemp("loads"))
    return load(request.param, path).first(3).to("cpu", torch.float64)


def test_ours_and_the_plain_loop_find_the_same_meta_gradient(problem: TrainingProblem):
    result, true = (build(problem, "meta-gradient").run().values for build in (ours.build, libraries.plain))
    assert result is not None
    assert true is not None
    assert error(ROW, result.tolist(), true.tolist()) < 1e-13
    other = replace(problem, first_order=not problem.first_order)
    assert error(ROW, sampled_entries(libraries.plain_meta_gradient(other)).tolist(), true.tolist()) > 1e-4


def test_two_worker_processes_compute_the_same_bits_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = load("M7", save("M7", tmp_path)).first(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = ours.build(problem, "meta-gradient").run()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        job = ours.build(problem, "meta-gradient")
        shared = job.run()
    finally:
        torch.set_num_threads(threads)
    assert job.note == "2 worker processes"
    assert torch.equal(shared.values, alone.values)
    wall, processor = shared.seconds
    assert wall > 0
    assert processor > 0


def test_a_sample_of_the_entries_of_a_gradient_keeps_the_size_of_its_error():
    gradient, mistake = torch.randn(2, 50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true, wrong = sampled_entries(gradient), sampled_entries(gradient + 0.01 * mistake)
    assert 2048 < true.shape[1] <= 4096  # the number of entries that are sampled
    expected = 0.01 * float(mistake.norm() / gradient.norm())
    assert error(ROW, wrong.tolist(), true.tolist()) == pytest.approx(expected, rel=0.1)


def test_images_are_enlarged_to_the_size_that_the_network_takes(tmp_path: Path):
    problem = load("M3", save("M3", tmp_path))
    # The axes are task, example, channel, height and width.
    assert problem.support[0].shape == (2, 5, 3, 84, 84)
    assert problem.query[0].shape == (2, 75, 3, 84, 84)


def test_the_row_of_a_meta_gradient_has_no_number_of_products():
    sample = {"num_matvecs": 0, "seconds": 1.0, "cpu_seconds": 1.0}
    theirs = [Entry(rival.contestant, samples=[sample | {"seconds": 4.0}]) for rival in ROW.rivals]
    lines = compare(ROW, [Entry("ours", samples=[sample]), *theirs], 25)
    assert [(line.ratio, line.goal_reached, line.ours.matvecs) for line in lines] == [(4.0, "yes", None)] * 4
