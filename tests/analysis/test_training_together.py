"""A study that trains the runs of a learner together, as on a GPU, has the runs of a study that trains them singly."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_study import SMALL_STUDY

from analysis import pipeline, training
from analysis.engines import sharing
from analysis.engines.place import Place
from analysis.study import Study
from analysis.times import cpu_seconds
from analysis.training import TrainUnit, is_trained, train_unit, units_of
from hessian_tools.inner.learners import Latent
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import read_json
from hessian_tools.train import TrainConfig, diverged_at, loop, outer

STUDY = SMALL_STUDY.replace("seeds: [0]", "seeds: [0, 1, 2]").replace("meta_batch: 1", "meta_batch: 2")
STUDY = STUDY.replace("checkpoints: [0, 2]", "checkpoints: [0, 2, 5]").replace(
    "{maml: {algorithm: maml}}",
    "{maml: {algorithm: maml}, later: {algorithm: maml, first_order: true, start: maml, seeds: [0, 2]},"
    " wild: {algorithm: maml, step_size: 1.e+30}}",
)
RUNS = [(learner, seed) for learner, seeds in {"maml": 3, "later": 3, "wild": 3}.items() for seed in range(seeds)]
RUNS.remove(("later", 1))


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The units that are trained, in words. Runs of a learner are trained together, as if the CPU were a GPU."""
    seen = []

    def spy(unit: TrainUnit, emit: Any) -> None:
        seen.append(str(unit))
        train_unit(unit, emit)

    monkeypatch.setattr(training, "train_unit", spy)
    monkeypatch.setattr(sharing, "trains_together", lambda study, learner: True)
    return seen


def trained(out: Path, *, done: list[tuple[int, int]] | None = None) -> Study:
    """Train the study; ``done`` gets every (done, total) that the stages report."""
    out.parent.mkdir(exist_ok=True)
    source = out.parent / "small.yaml"
    source.write_text(STUDY)
    study, plan = pipeline.prepare(source, out=out)
    report = None if done is None else lambda *numbers: done.append(numbers)
    with pipeline.session(study, place=Place(workers=0), progress=report) as (engine, reporter):
        return pipeline.start(study, engine, reporter, plan=plan)


def facts(study: Study, learner: str, seed: int) -> dict[str, Any]:
    """What the files of a run say, besides its numbers and the digests that cover them."""
    folder = study.run(learner, seed)
    return {
        "manifest": {part: value for part, value in read_json(folder / "manifest.json").items() if part == "config"},
        "files": sorted(path.name for path in (folder / checkpoints.FOLDER).iterdir()),
        "lines": [row["meta_step"] for row in metrics.read(folder / metrics.NAME)],
        "diverged": diverged_at(folder),
        "start": (folder / training.WARM_START).exists() and read_json(folder / training.WARM_START)["meta_step"],
    }


def assert_same_runs(found: Study, expected: Study) -> None:
    """Assert that both studies have the same runs, up to rounding in float32."""
    for run in RUNS:
        assert facts(found, *run) == facts(expected, *run)
        for name in facts(found, *run)["files"]:
            files = [study.run(*run) / checkpoints.FOLDER / name for study in (found, expected)]
            a, b = (checkpoints.load(file) for file in files)
            assert a.keys() == b.keys()
            assert torch.allclose(a["theta"], b["theta"], rtol=1e-4, atol=1e-5)
        assert is_trained(found, *run)


@pytest.mark.slow
def test_a_study_that_trains_runs_together_has_the_runs_of_one_that_does_not(tmp_path, units, monkeypatch):
    done: list[tuple[int, int]] = []
    together = trained(tmp_path / "together", done=done)
    assert units == ["training maml seeds 0, 1, 2", "training wild seeds 0, 1, 2", "training later seeds 0, 2"]
    # The runs of wild end at their first step, so that its 15 meta-iterations are never done.
    assert done[-1] == (3 * 5 + 2 * 5, 8 * 5)
    assert [number for number, _ in done] == sorted(number for number, _ in done)
    monkeypatch.setattr(sharing, "trains_together", lambda study, learner: False)
    units.clear()
    singly = trained(tmp_path / "singly")
    assert len(units) == 8
    assert_same_runs(together, singly)
    assert [diverged_at(together.run("wild", seed)) for seed in range(3)] == [1, 1, 1]
    for run in RUNS:  # each run has a part of the time of the process
        times, alone = (cpu_seconds(study.run(*run)).get("train", 0.0) for study in (together, singly))
        assert times <= 2 * alone + 1
        lines = (together.run(*run) / "times.jsonl").read_text().splitlines()
        assert len(lines) == (2 if run[0] == "wild" else 3)
    units.clear()
    trained(tmp_path / "together")
    assert not units  # all is done


class StoppedError(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_study_goes_on_together_or_singly(tmp_path, units, monkeypatch):
    expected = trained(tmp_path / "expected")
    take = loop.accumulate_gradient

    def stopped_after(num_steps: int, *, together: bool) -> None:
        steps = iter(range(num_steps))

        def step(*args: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise StoppedError
            return take(*args, **options)

        with monkeypatch.context() as patched, pytest.raises(StoppedError):
            patched.setattr(loop, "accumulate_gradient", step)
            patched.setattr(sharing, "trains_together", lambda study, learner: together)
            trained(tmp_path / "stopped")

    stopped_after(3, together=True)
    stopped_after(3, together=False)  # seed 0 is trained to its end, and seed 1 takes one step
    units.clear()
    done: list[tuple[int, int]] = []
    shares: list[tuple[str, float]] = []

    def watch(run: Path, part: str) -> Callable[[float], None]:
        return lambda share: shares.append((run.name, share))

    monkeypatch.setattr(training, "stopwatch", watch)
    resumed = trained(tmp_path / "stopped", done=done)
    assert units[0] == "training maml seeds 1, 2"
    assert_same_runs(resumed, expected)
    assert done[:2] == [(2, 7 * 5), (4, 7 * 5)]  # the checkpoints that are on disk
    assert done[-1] == (2 * 5 + 2 * 5, 7 * 5)
    # The time is shared in proportion to the steps: none up to meta-iteration 2, then one of seed 1 and two of seed 2.
    maml = [("maml-seed1", 1 / 2), ("maml-seed2", 1 / 2)]
    assert shares[:6] == [*maml, *maml, ("maml-seed1", 1 / 3), ("maml-seed2", 2 / 3)]


def test_the_units_of_a_gpu_have_many_seeds_and_there_are_enough_for_the_workers_that_were_asked_for():
    runs = [("maml", seed) for seed in range(5)] + [("shot", seed) for seed in range(3)]
    learners = {name: SimpleNamespace(learner=SimpleNamespace(latent=None)) for name in ("maml", "shot")}
    config = SimpleNamespace(train=SimpleNamespace(meta_batch=4))
    small = SimpleNamespace(layout=SimpleNamespace(numel=100_000))
    card = SimpleNamespace(device="cuda:1", learners=learners, config=config, problem=small)
    leo = SimpleNamespace(learner=SimpleNamespace(latent=Latent(4)))
    one_task = SimpleNamespace(train=SimpleNamespace(meta_batch=1))
    large = SimpleNamespace(layout=SimpleNamespace(numel=60_000_000))
    huge = SimpleNamespace(layout=SimpleNamespace(numel=200_000_000))

    def seeds_of(min_units: int | None, **changes: Any) -> list[tuple[int, ...]]:
        return [unit.seeds for unit in units_of(SimpleNamespace(**(vars(card) | changes)), runs, min_units)]

    one_each = [(seed,) for _, seed in runs]
    assert seeds_of(2, device="cpu") == seeds_of(None) == seeds_of(2, config=one_task) == one_each
    # By default ``min_units`` is 1: a unit for each learner.
    assert seeds_of(1) == seeds_of(0) == seeds_of(2) == [(0, 1, 2, 3, 4), (0, 1, 2)]
    assert seeds_of(3) == [(0, 2, 4), (1, 3), (0, 1, 2)]
    assert seeds_of(3, learners=learners | {"shot": leo}) == [(0, 1, 2, 3, 4), (0,), (1,), (2,)]
    # Two runs of so many parameters may be held between outer steps, and not three.
    assert seeds_of(1, problem=large) == [(0, 3), (1, 4), (2,), (0, 2), (1,)]
    assert seeds_of(1, problem=huge) == one_each  # not even one fits, but one at a time is tried
    for min_units in range(1, 12):
        units = units_of(card, runs, min_units)
        assert len(units) >= min(min_units, 8)
        assert sorted((unit.learner, seed) for unit in units for seed in unit.seeds) == runs
        sizes = [len(unit.seeds) for unit in units if unit.learner == "maml"]
        assert max(sizes) - min(sizes) <= 1
    assert units_of(card, [], 3) == []


def test_an_error_of_one_run_of_a_unit_names_it_and_the_same_command_goes_on(tmp_path, units, monkeypatch):
    draw = outer.training_episode

    def unreadable(config: TrainConfig, index: int) -> Any:
        if (config.learner.name, config.seed, index) == ("maml", 1, 6):
            raise OSError("the task cannot be read")
        return draw(config, index)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="the task cannot be read") as error:
        patched.setattr(outer, "training_episode", unreadable)
        trained(tmp_path / "study")
    assert units == ["training maml seeds 0, 1, 2"]
    assert error.value.__notes__ == [
        "It was raised by maml seed 1 at meta-iteration 4. The other runs were stopped; the same call resumes seed 0"
        " from meta-iteration 3, seed 2 from meta-iteration 3."
    ]
    done: list[tuple[int, int]] = []
    study = trained(tmp_path / "study", done=done)
    assert all(is_trained(study, *run) for run in RUNS)
    rows = [metrics.read(study.run("maml", seed) / metrics.NAME) for seed in range(3)]
    assert [[row["meta_step"] for row in each] for each in rows] == [[1, 2, 3, 4, 5]] * 3
