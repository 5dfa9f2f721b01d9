"""Tests of training: a resumed run equals the undisturbed one, divergence is recorded, and mistakes are named."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from hessian_tools import Conv4, Shot, TrainConfig, learners, meta_loss, meta_train
from hessian_tools.data import open_tasks
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.nets import MLP
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import DamagedFileError, FolderInUseError, read_json
from hessian_tools.runs.manifest import ForeignRunError, record_ownership
from hessian_tools.train import diverged_at, evaluate, logarithmic_schedule, loop, task_loss
from hessian_tools.train.outer import accumulate_gradient

IMAGES = TrainConfig(
    learner=learners.maml(2, 0.1),
    tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
    network=partial(Conv4, 3, width=4),
    shot=Shot(),
    checkpoints=(0, 3, 7),
    meta_batch=2,
    validation_tasks=3,
    save_every=2,
)


class StoppedError(Exception):
    pass


def stop_at(step):
    """A progress function that interrupts training after a meta-iteration."""

    def progress(meta_step, _):
        if meta_step == step:
            raise StoppedError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_a_run_stopped_anywhere_and_resumed_equals_the_undisturbed_run(tmp_path, step):
    expected = list(meta_train(IMAGES))
    config = replace(IMAGES, folder=tmp_path)
    with pytest.raises(StoppedError):
        list(meta_train(config, progress=stop_at(step)))
    resumed = list(meta_train(config))
    assert [c.meta_step for c in resumed] == [0, 3, 7]
    for a, b in zip(resumed, expected, strict=True):
        assert torch.equal(a.theta, b.theta)
        assert (a.validation_loss, a.validation_accuracy) == (b.validation_loss, b.validation_accuracy)
    assert not torch.equal(resumed[0].theta, resumed[1].theta)
    assert [row["meta_step"] for row in metrics.read(tmp_path / metrics.NAME)] == list(range(1, 8))


def test_a_complete_run_is_read_and_not_trained_again(tmp_path):
    config = replace(IMAGES, folder=tmp_path)
    first = list(meta_train(config))
    steps = []
    again = list(meta_train(config, progress=lambda step, _: steps.append(step)))
    assert steps == []
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(first, again, strict=True))


def test_a_half_written_line_of_metrics_is_ignored(tmp_path):
    path = tmp_path / metrics.NAME
    metrics.append(path, {"meta_step": 1, "query_loss": 2.0}, run=None)
    with path.open("a") as file:
        file.write('{"meta_step": 2, "que')
    assert metrics.read(path) == [{"meta_step": 1, "query_loss": 2.0}]


def test_metrics_of_a_run_with_another_seed_are_noticed(tmp_path):
    for seed in (0, 1):
        list(meta_train(replace(IMAGES, checkpoints=(0, 1), seed=seed, folder=tmp_path / str(seed))))
    (tmp_path / "0" / metrics.NAME).write_bytes((tmp_path / "1" / metrics.NAME).read_bytes())
    with pytest.raises(DamagedFileError, match="is that of another run"):
        metrics.read(tmp_path / "0" / metrics.NAME)


def test_a_run_whose_metrics_lack_a_later_column_is_resumed(tmp_path):
    config = replace(IMAGES, folder=tmp_path, checkpoints=(0, 1))
    list(meta_train(config))
    (row,) = metrics.read(tmp_path / metrics.NAME)
    (tmp_path / metrics.NAME).unlink()
    metrics.append(tmp_path / metrics.NAME, {k: v for k, v in row.items() if k != "relative_change"}, run=None)
    *_, further = meta_train(replace(config, checkpoints=(0, 1, 2)))
    assert further.meta_step == 2
    assert ["relative_change" in row for row in metrics.read(tmp_path / metrics.NAME)] == [False, True]


@pytest.mark.slow
def test_a_removed_checkpoint_is_made_again_with_the_same_numbers(tmp_path):
    config = replace(IMAGES, folder=tmp_path)
    first = list(meta_train(config))
    rows = metrics.read(tmp_path / metrics.NAME)
    for step in (0, 3):
        checkpoints.checkpoint_path(tmp_path, step).unlink()
    again = list(meta_train(config))
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(first, again, strict=True))
    assert checkpoints.checkpoint_path(tmp_path, 3).exists()
    assert metrics.read(tmp_path / metrics.NAME) == rows


@pytest.mark.slow
def test_learners_of_one_seed_start_from_the_same_parameters(tmp_path):
    plain = list(meta_train(replace(IMAGES, shot=None)))
    shot = list(meta_train(IMAGES))
    other = list(meta_train(replace(IMAGES, seed=1)))
    assert torch.equal(plain[0].theta, shot[0].theta)
    assert not torch.equal(plain[-1].theta, shot[-1].theta)
    assert not torch.equal(plain[0].theta, other[0].theta)


def test_an_outer_step_is_the_mean_gradient_over_the_seeds_own_tasks(monkeypatch):
    # Steps of plain gradient descent show the scale of the gradient, which those of Adam do not.
    class PlainDescent(torch.optim.Adam):
        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p -= self.param_groups[0]["lr"] * p.grad

    monkeypatch.setattr(torch.optim, "Adam", PlainDescent)
    config = replace(IMAGES, seed=5, checkpoints=(0, 2), validation_tasks=0, learning_rate=0.05)
    start, trained = meta_train(config)
    loss, theta = task_loss(config)
    assert torch.equal(theta, start.theta)
    for tasks in ((0, 1), (2, 3)):  # no task is seen twice
        point = theta.clone().requires_grad_()
        values = []
        for index in tasks:
            episode = config.tasks.episode(seed=5, split="train", index=index)
            values.append(meta_loss(config.learner, loss, point, *episode, shot=config.shot)[0])
        theta = theta - 0.05 * torch.autograd.grad(torch.stack(values).mean(), point)[0]
    assert torch.allclose(trained.theta, theta, rtol=1e-4, atol=1e-6)
    assert (trained.theta - start.theta).norm() > 1e-2


def test_a_run_that_diverges_is_recorded_and_stops(tmp_path):
    config = replace(IMAGES, learner=learners.maml(2, 1e30), folder=tmp_path)
    yielded = list(meta_train(config))
    assert [c.diverged for c in yielded] == [False, True]
    assert diverged_at(tmp_path) == 1
    assert not checkpoints.checkpoint_path(tmp_path, 3).exists()
    assert diverged_at(tmp_path / "elsewhere") is None


def test_an_infinite_loss_counts_as_divergence_even_if_the_gradient_is_finite(tmp_path, monkeypatch):
    def overflowing(config, loss, theta, meta_step, **options):
        results = accumulate_gradient(config, loss, theta, meta_step, **options)
        theta.grad = torch.zeros_like(theta)
        return [aux._replace(query_loss=torch.tensor(torch.inf)) for aux in results]

    monkeypatch.setattr(loop, "accumulate_gradient", overflowing)
    assert [c.diverged for c in meta_train(replace(IMAGES, folder=tmp_path))] == [False, True]
    assert diverged_at(tmp_path) == 1


@pytest.mark.slow
def test_training_learns_the_regression_tasks():
    config = TrainConfig(
        learner=learners.maml(1, 0.01),
        tasks=open_tasks("sine-line"),
        network=partial(MLP, (1, 40, 40, 1)),
        checkpoints=(0, 150),
        learning_rate=3e-3,
        validation_tasks=40,
    )
    before, after = meta_train(config)
    assert after.validation_loss < 0.8 * before.validation_loss
    assert after.validation_accuracy != after.validation_accuracy  # NaN, because regression has no accuracy


def test_evaluation_is_transductive_adaptation_on_held_out_tasks():
    loss, theta = task_loss(IMAGES)
    losses, accuracies = evaluate(IMAGES.learner, loss, theta, IMAGES.tasks, split="test", num_tasks=3, seed=4)
    support, query = IMAGES.tasks.episode(seed=4, split="test", index=2)
    point = theta
    for _ in range(2):
        u = point.clone().requires_grad_()
        point = point - 0.1 * torch.autograd.grad(loss(u, support), u)[0]
    assert torch.allclose(losses[2], loss(point, query), rtol=1e-4)
    assert 0 <= accuracies.min() <= accuracies.max() <= 1


def test_a_folder_of_another_run_is_refused(tmp_path):
    record_ownership(tmp_path, "config", {"seed": 0, "width": 4}, facts={"device": "cpu"})
    written = (tmp_path / "manifest.json").read_bytes()
    record_ownership(tmp_path, "config", {"seed": 0, "width": 4}, facts={"device": "cuda"})
    assert (tmp_path / "manifest.json").read_bytes() == written
    with pytest.raises(ForeignRunError, match="its width is 4, but this run's is 8;\nchoose another folder"):
        record_ownership(tmp_path, "config", {"seed": 0, "width": 8})
    with pytest.raises(ForeignRunError, match="its width is 4, but this run's is None"):
        record_ownership(tmp_path, "config", {"seed": 0})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        record_ownership(tmp_path, "config", {"seed": 0})


def test_one_manifest_holds_the_study_and_the_training_of_a_run(tmp_path):
    record_ownership(tmp_path, "config", {"width": 4}, facts={"device": "cpu"})
    record_ownership(tmp_path, "training", {"seed": "0", "network": {"weight": (2, 3)}})
    record_ownership(tmp_path, "training", {"seed": "0", "network": {"weight": (2, 3)}})
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest == {
        "config": {"width": 4},
        "device": "cpu",
        "training": {"seed": "0", "network": {"weight": [2, 3]}},
    }
    record_ownership(tmp_path / "alone", "training", {"seed": "0"})
    # This run was begun without a study.
    with pytest.raises(ForeignRunError, match="its width is None, but this run's is 4"):
        record_ownership(tmp_path / "alone", "config", {"width": 4})


def test_a_run_begun_by_version_0_1_resumes_itself_and_no_other(tmp_path):
    begun = replace(IMAGES, folder=tmp_path, checkpoints=(0, 1))
    list(meta_train(begun))
    training = json.loads((tmp_path / "manifest.json").read_text())["training"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "training.json").write_text(json.dumps(training))  # version 0.1 kept it in this file
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ForeignRunError, match="holds another run: its seed is 0, but this run's is 7"):
        list(meta_train(replace(begun, seed=7)))
    *_, further = meta_train(replace(begun, checkpoints=(0, 1, 2)))
    assert further.meta_step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_setting_of_later_versions_is_no_part_of_a_run_that_does_not_use_it():
    layout = task_loss(IMAGES)[0].layout
    used = {"shuffle_labels": True, "penalty": CurvaturePenalty(0.0), "reduced_precision": True}
    plain = IMAGES.identity(layout)
    assert not set(used) & set(plain)
    assert set(replace(IMAGES, **used).identity(layout)) == set(plain) | set(used)


# For each setting, a change that makes the run another run.
CHANGES = {
    "learner": {"learner": learners.boil(2, 0.1)},
    "seed": {"seed": 7},
    "shot": {"shot": None},
    "network": {"network": partial(Conv4, 3, width=3)},
    "tasks": {"tasks": open_tasks("quickdraw", ways=3, shots=2, queries=2)},
    "learning_rate": {"learning_rate": 0.5},
    "optimiser": {"optimiser": "sgd"},
    "validation_tasks": {"validation_tasks": 1},
    "shuffle_labels": {"shuffle_labels": True},
    "penalty": {"penalty": CurvaturePenalty()},
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", CHANGES)
def test_a_run_resumes_itself_and_no_other(tmp_path, setting):
    begun = replace(IMAGES, folder=tmp_path, checkpoints=(0, 1))
    list(meta_train(begun))
    with pytest.raises(ForeignRunError, match=f"holds another run: its {setting} is "):
        list(meta_train(replace(begun, **CHANGES[setting])))
    *_, further = meta_train(replace(begun, checkpoints=(0, 1, 2), save_every=1))
    assert further.meta_step == 2


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (partial(MLP, (784, 2)), r"MLP makes shape \(3, 2\) of 3 examples; the tasks need \(3, 3\)"),
        (partial(MLP, (10, 3)), r"MLP cannot take examples of shape \(1, 28, 28\): "),
    ],
)
def test_a_network_that_does_not_fit_the_tasks_is_refused(network, said):
    with pytest.raises(ValueError, match=said):
        next(meta_train(replace(IMAGES, network=network)))
    checkpoint = next(meta_train(replace(IMAGES, network=partial(MLP, (784, 4)))))
    assert checkpoint.validation_loss > 0  # more outputs than classes are allowed


def test_mistakes_in_a_configuration_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="validation_tasks=-1"):
        replace(IMAGES, validation_tasks=-1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' is not available"):
            next(meta_train(replace(IMAGES, device="cuda")))
    with pytest.raises(ValueError, match=r"checkpoints=\[3, 0\] must be rising"):
        replace(IMAGES, checkpoints=(3, 0))
    with pytest.raises(ValueError, match="meta_batch=0"):
        replace(IMAGES, meta_batch=0)
    with pytest.raises(ValueError, match="cannot be the reference"):
        replace(IMAGES, learner=learners.maml(1, 0.1))
    with pytest.raises(ValueError, match="compares class probabilities, which regression does not have"):
        replace(IMAGES, tasks=open_tasks("sine-line"))
    list(meta_train(replace(IMAGES, folder=tmp_path)))
    checkpoints.checkpoint_path(tmp_path, 0).write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        list(meta_train(replace(IMAGES, folder=tmp_path)))


def test_the_logarithmic_schedule_begins_with_zero():
    assert logarithmic_schedule(30) == (0, 1, 3, 10, 30)
    assert logarithmic_schedule(500)[-2:] == (300, 500)


def test_stored_metrics_are_numbers_or_null(tmp_path):
    list(meta_train(replace(IMAGES, folder=tmp_path, shot=None)))
    rows = [json.loads(line) for line in (tmp_path / metrics.NAME).read_text().splitlines()]
    assert all(row["shot_distance"] is None for row in rows)
    assert all(isinstance(row["query_loss"], float) for row in rows)


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    first = meta_train(replace(IMAGES, folder=tmp_path))
    next(first)
    with pytest.raises(FolderInUseError, match="another process is at work in .*; wait until it ends"):
        next(meta_train(replace(IMAGES, folder=tmp_path)))
    first.close()
    assert next(meta_train(replace(IMAGES, folder=tmp_path))).meta_step == 0
