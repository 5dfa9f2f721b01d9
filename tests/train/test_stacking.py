"""Runs that differ in their seed are trained together, and each has the numbers of a run alone, in float64."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from outer_steps import IMAGES, SINE
from torch import Tensor, nn

from hessian_tools import MLP, Conv4, Shot, TrainConfig, learners, meta_train
from hessian_tools.data import Episode
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import FolderInUseError
from hessian_tools.train import Checkpoint, diverged_at, loop, meta_train_runs, outer
from hessian_tools.train.replay import Replay
from hessian_tools.train.run import Run
from hessian_tools.train.task_chunks import TaskChunks

SEEDS = (3, 5, 7)


def double_mlp() -> nn.Module:
    return MLP((1, 6, 1), activation=nn.Tanh).double()


def double_conv4() -> nn.Module:
    """A small Conv4 with the batch normalisation of torch."""
    return Conv4(3, width=4).double()


LINES = replace(SINE, network=double_mlp, checkpoints=(0, 2, 4), validation_tasks=2, optimiser="sgd")
DRAWINGS = replace(LINES, tasks=IMAGES.tasks, learner=learners.maml(2, 0.05), network=double_conv4, batched=True)
SQUARED = Shot(distance="squared_error", weight=0.5)


def of_seeds(config: TrainConfig, seeds: Sequence[int] = SEEDS, folder: Path | None = None) -> list[TrainConfig]:
    """The configurations of several seeds, each with a folder of its own where a folder is given."""
    return [replace(config, seed=seed, folder=folder and folder / str(seed)) for seed in seeds]


def alone(configs: list[TrainConfig]) -> list[list[Checkpoint]]:
    """The checkpoints of each run, trained by itself."""
    return [list(meta_train(config)) for config in configs]


def together(configs: list[TrainConfig]) -> list[list[Checkpoint]]:
    """The checkpoints of each run, trained with the others."""
    return [list(run) for run in zip(*meta_train_runs(configs), strict=True)]


def assert_same(found: list[list[Checkpoint]], expected: list[list[Checkpoint]]) -> None:
    """Assert that the runs have the same checkpoints, up to rounding in float64."""
    for run, expected_run in zip(found, expected, strict=True):
        for a, b in zip(run, expected_run, strict=True):
            assert (a.meta_step, a.diverged) == (b.meta_step, b.diverged)
            assert a.theta.dtype == torch.float64
            assert (a.theta - b.theta).norm() <= 1e-11 * b.theta.norm()
            assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-9, nan_ok=True)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """For each outer step, in order: the meta-iteration that it starts from and the number of runs that take it."""
    taken = []

    def spy(config, loss, theta, meta_step, *, others=(), **options):
        taken.append((meta_step, 1 + len(others)))
        return outer.accumulate_gradient(config, loss, theta, meta_step, others=others, **options)

    monkeypatch.setattr(loop, "accumulate_gradient", spy)
    return taken


@pytest.mark.parametrize(
    "config",
    [
        replace(LINES, tasks_at_once=5),
        # Outer steps take tasks in turn on a CPU, and validation takes seven of twelve pairs of a run and a task.
        replace(DRAWINGS, batched=None, tasks_at_once=7, validation_tasks=4),
        replace(DRAWINGS, batched=None, tasks_at_once=7, transductive=False),
        replace(LINES, learner=learners.meta_sgd(3, 0.01), tasks_at_once=100),
        LINES,
        DRAWINGS,
    ],
    ids=["lines", "drawings", "not transductive", "meta-sgd", "lines in turn", "drawings in turn"],
)
def test_runs_are_validated_in_one_pass_with_the_numbers_of_each_run_alone(config, monkeypatch):
    expected = alone(of_seeds(config))
    passes, drawn = [], []
    scores = loop.query_scores

    def spy(learner, loss, thetas, episode, num_tasks, *, chunks, **options):
        def counted(*, index):
            drawn.append(index)
            return episode(index=index)

        sizes, run = [], chunks.run

        def sized(count, function):
            def of_chunk(chunk):
                sizes.append(len(chunk))
                return function(chunk)

            return run(count, of_chunk)

        with monkeypatch.context() as patched:
            patched.setattr(chunks, "run", sized)
            found = scores(learner, loss, thetas, counted, num_tasks, chunks=chunks, **options)
        passes.append((len(thetas), sizes))
        return found

    monkeypatch.setattr(loop, "query_scores", spy)
    assert_same(together(of_seeds(config)), expected)
    for run, alone_run in zip(together(of_seeds(config)), expected, strict=True):
        accuracies = [[c.validation_accuracy for c in each] for each in (run, alone_run)]
        assert accuracies[0] == pytest.approx(accuracies[1], nan_ok=True)
    assert [number for number, _ in passes] == [3] * 6  # three checkpoints, twice
    num_pairs, at_once = 3 * config.validation_tasks, config.tasks_at_once or 1
    for _, sizes in passes:
        assert sum(sizes) == num_pairs and max(sizes) <= at_once
    if at_once >= num_pairs:
        assert len(drawn) == 6 * config.validation_tasks  # each task is drawn once for all runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        LINES,
        replace(LINES, learner=learners.maml(3, 0.01, first_order=True), shot=SQUARED, optimiser="adam"),
        replace(LINES, shot=replace(SQUARED, schedule="linear", schedule_steps=3), penalty=CurvaturePenalty(0.3)),
        replace(LINES, learner=learners.meta_sgd(3, 0.01)),
        replace(LINES, learner=learners.reptile(3, 0.01, minibatches=2), learning_rate=0.5),
        DRAWINGS,
        replace(DRAWINGS, learner=learners.maml(2, 0.05, first_order=True)),
        replace(DRAWINGS, shot=Shot(weight=0.5)),
        replace(DRAWINGS, penalty=CurvaturePenalty(0.3)),
        replace(DRAWINGS, learner=learners.reptile(2, 0.05), learning_rate=0.5),
        replace(DRAWINGS, learner=learners.supervised(2, 0.05)),
        replace(DRAWINGS, shuffle_labels=True),
        # A chunk of four of the nine tasks holds tasks of two runs.
        replace(DRAWINGS, batched=None, tasks_at_once=4),
    ],
    ids=lambda config: f"{config.learner.name}-{config.tasks.kind}",
)
def test_runs_trained_together_have_the_checkpoints_of_each_run_alone(config, steps):
    expected = alone(of_seeds(config))
    steps.clear()
    assert_same(together(of_seeds(config)), expected)
    assert steps == [(meta_step, 3) for meta_step in range(4)]
    assert all(not torch.equal(run[-1].theta, run[0].theta) for run in expected)


def test_each_run_has_its_own_metrics_and_its_own_progress(tmp_path):
    expected, found = of_seeds(LINES, folder=tmp_path / "alone"), of_seeds(LINES, folder=tmp_path / "together")
    alone(expected)
    calls: list[list[int]] = [[] for _ in SEEDS]
    progress = [lambda meta_step, loss, seen=seen: seen.append(meta_step) for seen in calls]
    list(meta_train_runs(found, progress=progress))
    assert calls == [[1, 2, 3, 4]] * 3
    for a, b in zip(found, expected, strict=True):
        rows, expected_rows = (metrics.read(config.folder / metrics.NAME) for config in (a, b))
        assert [row["meta_step"] for row in rows] == [1, 2, 3, 4]
        for row, expected_row in zip(rows, expected_rows, strict=True):
            assert row.keys() == expected_row.keys()
            assert list(row.values()) == [v if v is None else pytest.approx(v, rel=1e-9) for v in expected_row.values()]
        manifests = [json.loads((config.folder / "manifest.json").read_text())["training"] for config in (a, b)]
        assert manifests[0] == manifests[1]
        # The newest state is that of the last checkpoint, and either call goes on from it.
        assert checkpoints.load(checkpoints.state_path(a.folder))["meta_step"] == 4


class Unlucky:
    """The tasks of LINES, of which those of one seed are infinite from the third outer step on."""

    kind, input_shape, outputs, digest = LINES.tasks.kind, LINES.tasks.input_shape, LINES.tasks.outputs, "unlucky"

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        episode = LINES.tasks.episode(seed=seed, split=split, index=index)
        if (seed, split) != (SEEDS[1], "train") or index < 2 * LINES.meta_batch:
            return episode
        x, y = episode.query
        return episode._replace(query=(x, y + torch.inf))


def test_a_run_that_diverges_drops_out_and_the_others_go_on(tmp_path, steps):
    config = replace(LINES, tasks=Unlucky(), checkpoints=(0, 1, 3, 5))
    expected = alone(of_seeds(config))
    steps.clear()
    runs = of_seeds(config, folder=tmp_path)
    found = together(runs)
    assert [[c.diverged for c in run] for run in expected] == [[False] * 4, [False, False, True], [False] * 4]
    assert found[1][2] is found[1][3]
    assert_same([found[0], found[1][:3], found[2]], expected)
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 2), (4, 2)]
    assert [diverged_at(run.folder) for run in runs] == [None, 3, None]
    rows = [metrics.read(run.folder / metrics.NAME) for run in runs]
    assert [len(each) for each in rows] == [5, 2, 5]
    # The same call again finds what is on disk, and the run diverges again.
    again = together(runs)
    assert_same([again[0], again[1][:3], again[2]], expected)


def test_all_runs_that_diverge_end_the_training():
    config = replace(LINES, learner=learners.maml(2, 1e200))
    lists = list(meta_train_runs(of_seeds(config)))
    assert [[c.diverged for c in each] for each in lists] == [[False] * 3, [True] * 3]


class Unreadable:
    """The tasks of LINES, of which one of one seed cannot be read."""

    kind, input_shape, outputs, digest = LINES.tasks.kind, LINES.tasks.input_shape, LINES.tasks.outputs, "unreadable"

    def __init__(self, split: str, index: int, seed: int = SEEDS[1]) -> None:
        self.broken = (seed, split, index)

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        if (seed, split, index) == self.broken:
            raise OSError(f"task {index} of {split} cannot be read")
        return LINES.tasks.episode(seed=seed, split=split, index=index)


@pytest.mark.parametrize("batched", [True, False], ids=["together", "in turn"])
def test_an_error_of_one_run_names_it_and_the_other_runs_are_resumed(tmp_path, batched, steps):
    config = replace(LINES, batched=batched, checkpoints=(0, 2, 4))
    expected = alone(of_seeds(config))
    broken = of_seeds(replace(config, tasks=Unreadable("train", 3 * LINES.meta_batch)), folder=tmp_path)
    with pytest.raises(OSError, match="task 9 of train cannot be read") as raised:
        together(broken)
    (note,) = raised.value.__notes__
    # In turn, the first seed has taken its steps already, and the last one has not begun with them.
    reached = [3, 3, 3] if batched else [4, 3, 2]
    assert note == (
        "It was raised by maml seed 5 at meta-iteration 4. The other runs were stopped; the same call resumes"
        f" seed 3 from meta-iteration {reached[0]}, seed 7 from meta-iteration {reached[2]}."
    )
    assert [checkpoints.load(checkpoints.state_path(run.folder))["meta_step"] for run in broken] == reached
    # The tasks can be read again. All three go on from there.
    mended = [replace(run, tasks=Unreadable("train", -1)) for run in broken]
    steps.clear()
    assert_same(together(mended), expected)
    assert sum(number for _, number in steps) == 3 * 4 - sum(reached)


@pytest.mark.parametrize("batched", [True, False], ids=["together", "in turn"])
def test_an_error_in_the_validation_of_one_run_names_it(tmp_path, monkeypatch, batched):
    runs = of_seeds(replace(LINES, batched=batched, checkpoints=(1, 3)), folder=tmp_path)
    validate = loop.query_scores

    def scores(learner, loss, thetas, *rest, **options):
        # Only the first network is used for all runs, so that a run is known by its parameters alone.
        # Runs that are trained together have the parameters of a run alone up to rounding.
        if any(torch.allclose(theta, unlucky) for theta in thetas):
            raise ArithmeticError
        return validate(learner, loss, thetas, *rest, **options)

    unlucky = alone([replace(runs[2], folder=None)])[0][-1].theta
    monkeypatch.setattr(loop, "query_scores", scores)
    with pytest.raises(ArithmeticError) as raised:
        together(runs)
    (note,) = raised.value.__notes__
    assert note == (
        "It was raised by maml seed 7 in its validation at meta-iteration 3. The other runs were stopped; the same call"
        " resumes seed 3 from meta-iteration 3, seed 5 from meta-iteration 3."
    )
    assert [checkpoints.checkpoint_path(run.folder, 1).exists() for run in runs] == [True] * 3


def test_an_error_that_does_not_come_again_names_the_run_that_was_computed_alone(monkeypatch):
    take, errors = loop.accumulate_gradient, [OSError("the disk was away")]

    def step(config, loss, theta, meta_step, **options):
        if (config.seed, meta_step) == (SEEDS[1], 2) and errors:
            raise errors.pop()
        return take(config, loss, theta, meta_step, **options)

    monkeypatch.setattr(loop, "accumulate_gradient", step)
    with pytest.raises(OSError, match="the disk was away") as raised:
        together(of_seeds(replace(LINES, batched=False)))
    assert raised.value.__notes__[0].startswith("It was raised by maml seed 5 at meta-iteration 3. The other runs")


def test_an_error_at_the_beginning_of_a_run_names_it(tmp_path):
    runs = of_seeds(replace(LINES, tasks=Unreadable("train", 0)), folder=tmp_path)
    with pytest.raises(OSError, match="task 0 of train") as raised:
        together(runs)
    assert raised.value.__notes__ == ["It was raised as maml seed 5 began; the other runs are as they were."]


def test_without_folders_an_error_says_that_nothing_is_resumed():
    with pytest.raises(OSError, match="task 9") as raised:
        together(of_seeds(replace(LINES, tasks=Unreadable("train", 3 * LINES.meta_batch))))
    assert raised.value.__notes__ == [
        "It was raised by maml seed 5 at meta-iteration 4. The other runs were stopped; they have no folder to be"
        " resumed from."
    ]


@pytest.mark.parametrize(
    ("error", "seeds"), [(torch.OutOfMemoryError("out of memory"), (5,)), (OSError("no disk"), SEEDS)]
)
def test_an_error_that_no_single_run_is_to_blame_for_names_none_and_all_runs_are_resumed(
    tmp_path, monkeypatch, error, seeds
):
    """Memory that is short for all runs together, and a cause that all runs share."""
    config = replace(LINES, checkpoints=(0, 4))
    expected, runs = alone(of_seeds(config)), of_seeds(config, folder=tmp_path)
    take = loop.accumulate_gradient

    def step(config, loss, theta, meta_step, *, others=(), **options):
        if meta_step == 2 and {config.seed, *(each.seed for each, _ in others)} & set(seeds):
            raise error
        return take(config, loss, theta, meta_step, others=others, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "accumulate_gradient", step)
        with pytest.raises(type(error)) as raised:
            together(runs)
    assert raised.value is error and not hasattr(error, "__notes__")
    assert [checkpoints.load(checkpoints.state_path(run.folder))["meta_step"] for run in runs] == [2, 2, 2]
    assert_same(together(runs), expected)


def test_an_error_of_a_single_run_has_no_note_and_the_run_is_resumed(tmp_path):
    config = replace(LINES, checkpoints=(0, 4))
    (run,) = of_seeds(replace(config, tasks=Unreadable("train", 3 * LINES.meta_batch)), [SEEDS[1]], tmp_path)
    with pytest.raises(OSError, match="task 9") as raised:
        alone([run])
    assert not hasattr(raised.value, "__notes__")
    assert checkpoints.load(checkpoints.state_path(run.folder))["meta_step"] == 3


def test_where_a_state_cannot_be_saved_the_error_of_the_run_is_raised(tmp_path, monkeypatch):
    runs = of_seeds(replace(LINES, tasks=Unreadable("train", 3 * LINES.meta_batch), checkpoints=(4,)), folder=tmp_path)
    save = checkpoints.save

    def without_room(path, *args, **facts):
        if facts["seed"] == SEEDS[0]:
            raise OSError("no space left")
        save(path, *args, **facts)

    monkeypatch.setattr(checkpoints, "save", without_room)
    with pytest.raises(OSError, match="task 9 of train cannot be read") as raised:
        together(runs)
    assert raised.value.__notes__ == [
        "The state of maml seed 3 could not be saved: no space left",
        "It was raised by maml seed 5 at meta-iteration 4. The other runs were stopped; the same call resumes"
        " seed 7 from meta-iteration 3.",
    ]
    assert [checkpoints.state_path(run.folder).exists() for run in runs] == [False, True, True]


class StoppedError(Exception):
    pass


def stop_at(step: int) -> loop.Progress:
    def progress(meta_step: int, _: float) -> None:
        if meta_step == step:
            raise StoppedError

    return progress


def test_runs_that_were_saved_at_different_steps_wait_for_each_other(tmp_path, steps):
    config = replace(LINES, save_every=1, checkpoints=(0, 2, 6))
    expected = alone(of_seeds(config))
    runs = of_seeds(config, folder=tmp_path)
    for run, step in zip(runs, (4, 1), strict=False):  # the third run has not begun
        with pytest.raises(StoppedError):
            list(meta_train(run, progress=stop_at(step)))
    steps.clear()
    found = list(meta_train_runs(runs[:2]))
    # The second run catches up, first to the checkpoint that the first run has and then to its saved state.
    assert steps == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert_same([list(run) for run in zip(*found, strict=True)], expected[:2])
    steps.clear()
    assert_same(together(runs), expected)
    assert steps == [(step, 1) for step in range(6)]
    for run in runs:
        assert [row["meta_step"] for row in metrics.read(run.folder / metrics.NAME)] == [1, 2, 3, 4, 5, 6]


def test_runs_that_are_interrupted_together_resume_together_or_alone(tmp_path):
    config = replace(LINES, save_every=1, optimiser="adam")
    expected = alone(of_seeds(config))
    runs = of_seeds(config, folder=tmp_path)
    with pytest.raises(StoppedError):
        list(meta_train_runs(runs, progress=[None, stop_at(3), None]))
    for run in runs:  # the locks were released
        saved = checkpoints.load(checkpoints.state_path(run.folder))["meta_step"]
        assert saved in (2, 3)
    assert_same([list(meta_train(runs[0])), *together(runs[1:])], expected)


def test_the_state_is_on_disk_before_the_checkpoint_that_it_belongs_to(tmp_path, monkeypatch):
    def stop(run: Run, checkpoint: Checkpoint) -> None:
        raise StoppedError

    monkeypatch.setattr(Run, "save_checkpoint", stop)
    with pytest.raises(StoppedError):
        list(meta_train(replace(LINES, checkpoints=(2,), folder=tmp_path)))
    assert checkpoints.load(checkpoints.state_path(tmp_path))["meta_step"] == 2


def test_a_folder_in_use_is_refused_and_the_locks_of_the_others_are_released(tmp_path):
    runs = of_seeds(LINES, folder=tmp_path)
    other = meta_train(runs[2])
    next(other)
    with pytest.raises(FolderInUseError):
        next(meta_train_runs(runs))
    other.close()
    assert_same(together(runs), alone(of_seeds(LINES)))


def test_a_checkpoint_that_was_removed_is_made_again(tmp_path):
    runs = of_seeds(LINES, folder=tmp_path)
    first = together(runs)
    path = checkpoints.checkpoint_path(runs[1].folder, 2)
    path.unlink()
    assert_same(together(runs), first)
    assert path.exists()


class RandomFeatures(nn.Module):
    """An MLP behind a layer that is drawn from the seed and never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(1, 4))
        self.net = MLP((4, 6, 1), activation=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x @ self.directions)


class ZeroHead(RandomFeatures):
    """The same with a last layer that starts at zero, so that the outputs do not depend on the seed at first."""

    def __init__(self) -> None:
        super().__init__()
        *_, head = (module for module in self.modules() if isinstance(module, nn.Linear))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)


class RandomWidth(nn.Module):
    """An MLP whose width follows from the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP((1, 3 + int(10 * torch.rand(())), 1), activation=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    "config",
    [
        replace(LINES, network=lambda: RandomFeatures().double()),
        replace(LINES, network=lambda: ZeroHead().double()),
        replace(LINES, network=lambda: RandomWidth().double()),
        replace(LINES, batched=False),
        replace(DRAWINGS, batched=None),
        replace(DRAWINGS, learner=learners.leo(2, 0.05, latent=Latent(4)), batched=None, optimiser="adam"),
        replace(LINES, checkpointing=True),
    ],
    ids=["buffer", "zero head", "shapes", "in turn", "convolutions", "latent", "checkpointing"],
)
def test_runs_that_cannot_be_stacked_are_trained_in_turn_to_the_bit(config, steps):
    expected = alone(of_seeds(config))
    steps.clear()
    found = together(of_seeds(config))
    for run, expected_run in zip(found, expected, strict=True):
        assert all(torch.equal(a.theta, b.theta) for a, b in zip(run, expected_run, strict=True))
        assert [c.validation_loss for c in run] == pytest.approx([c.validation_loss for c in expected_run], nan_ok=True)
    assert all(number == 1 for _, number in steps)


@pytest.mark.slow
def test_runs_whose_steps_are_shared_by_processes_are_trained_in_turn(steps):
    config = replace(LINES, workers=2, meta_batch=2, checkpoints=(1,), validation_tasks=0)
    expected = alone(of_seeds(replace(config, workers=1, batched=False), seeds=(3, 5)))
    steps.clear()
    found = together(of_seeds(config, seeds=(3, 5)))
    assert [torch.equal(a[0].theta, b[0].theta) for a, b in zip(found, expected, strict=True)] == [True, True]
    assert not steps


def test_the_untrained_control_needs_no_steps(steps):
    found = together(of_seeds(replace(LINES, learner=learners.untrained(2, 0.01))))
    assert [[c.meta_step for c in run] for run in found] == [[0, 2, 4]] * 3
    assert all(torch.equal(run[0].theta, run[-1].theta) for run in found)
    assert not steps


def test_runs_that_start_from_checkpoints_of_their_own_seeds(tmp_path):
    sources = of_seeds(LINES, folder=tmp_path)
    together(sources)
    starts = [checkpoints.checkpoint_path(source.folder, 4) for source in sources]
    runs = [replace(run, start=start) for run, start in zip(of_seeds(LINES), starts, strict=True)]
    found = together(runs)
    assert_same(found, alone(runs))
    assert all(
        torch.equal(run[0].theta, checkpoints.load(start)["theta"]) for run, start in zip(found, starts, strict=True)
    )


@pytest.mark.slow
def test_a_stack_is_replayed_from_a_trace_of_its_own(monkeypatch):
    replays: list[Replay] = []
    trace_soon = partial(Replay, trace_after=1, checks_left=1)

    def early() -> Replay:
        replays.append(trace_soon())
        return replays[-1]

    config = replace(LINES, tasks=Unlucky(), checkpoints=(0, 6))
    expected = alone(of_seeds(config))
    monkeypatch.setattr(loop, "Replay", early)
    found = together(of_seeds(config))
    assert_same(found, expected)
    # Three runs take three steps, of which the last one is replayed, and the two that are left take three more.
    assert [(replay.direct_steps, replay.checks_left, replay.trace is not None) for replay in replays] == [
        (2, 0, True)
    ] * 2


def test_memory_is_measured_once_for_all_runs_and_a_shortage_is_remembered_for_all(monkeypatch):
    """What happens on a GPU: the chunks of tasks come from a budget."""
    expected = alone(of_seeds(DRAWINGS))
    made, sizes = [], []

    def budgeted(*options: object) -> TaskChunks:
        made.append(TaskChunks(budget=10**12))
        return made[-1]

    def short(config, loss, theta, meta_step, *, chunks, **options):
        run = chunks.run

        def counting(count, function):
            def of_size(chunk):
                sizes.append(len(chunk))
                if len(chunk) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory (planted)")
                return function(chunk)

            return run(count, of_size)

        with monkeypatch.context() as patched:
            patched.setattr(chunks, "run", counting)
            return outer.accumulate_gradient(config, loss, theta, meta_step, chunks=chunks, **options)

    monkeypatch.setattr(loop, "training_chunks", budgeted)
    monkeypatch.setattr(loop, "accumulate_gradient", short)
    assert_same(together(of_seeds(DRAWINGS)), expected)
    # One task is measured, the other eight do not fit, and from then on four are tried at once.
    assert sizes == [1, 8, 4, 4] + 3 * [3, 3, 3]
    assert [chunks.largest for chunks in made] == [4]  # all runs use the same


class ReadsANumber(nn.Module):
    """A network with an operation that vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = double_mlp()

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return out if out.detach().abs().max().item() < 1e9 else 0 * out


def test_a_network_that_vmap_refuses_is_trained_in_turn():
    config = replace(LINES, network=ReadsANumber)
    for run, expected in zip(together(of_seeds(config)), alone(of_seeds(config)), strict=True):
        assert all(torch.equal(a.theta, b.theta) for a, b in zip(run, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"meta_batch": 4}, "run 1 has meta_batch=4 and run 0 has 3"),
        ({"learner": learners.maml(2, 0.01)}, "run 1 has learner="),
        ({"shot": SQUARED}, "run 1 has shot=Shot"),
        ({"tasks": Unlucky()}, "run 1 has tasks='unlucky'"),
        ({"checkpoints": (0, 2)}, r"run 1 has checkpoints=\(0, 2\)"),
        ({"tasks_at_once": 2}, "run 1 has tasks_at_once=2"),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path, changes, said):
    first, second = of_seeds(LINES, seeds=(0, 1), folder=tmp_path)
    with pytest.raises(ValueError, match=f"differ only in seed, folder and start, but {said}"):
        next(meta_train_runs([first, replace(second, **changes)]))
    assert not list(tmp_path.iterdir())  # nothing was written


def test_runs_that_have_the_same_folder_are_refused(tmp_path):
    runs = [replace(run, folder=tmp_path / "run") for run in of_seeds(LINES)]
    with pytest.raises(ValueError, match="runs 0 and 1 have the same folder .*run; give each run its own"):
        next(meta_train_runs(runs))
    assert not list(tmp_path.iterdir())  # nothing was written


def test_no_run_at_all_is_refused():
    with pytest.raises(ValueError, match="no configuration given; pass one for each run"):
        next(meta_train_runs([]))


def test_progress_without_a_function_for_each_run_is_refused():
    with pytest.raises(ValueError, match="progress holds 1 functions for 3 runs; give one for each run"):
        next(meta_train_runs(of_seeds(LINES), progress=[None]))
