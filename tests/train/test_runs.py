"""Training runs of every learner are resumed to the bit, begin from the right parameters and record a divergence.

The two controls are also tested: the supervised one trains its body and a head of its own, the untrained one nothing.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from hessian_tools import MLP, Conv4, Shot, TrainConfig, learners, meta_train
from hessian_tools.data import open_tasks
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.train import ClassBatches, best_checkpoint, diverged_at, evaluate, task_loss

IMAGES = TrainConfig(
    learner=learners.maml(2, 0.05),
    tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
    network=partial(Conv4, 3, width=2),
    checkpoints=(0, 2, 5),
    meta_batch=2,
    validation_tasks=2,
    save_every=1,
    learning_rate=0.01,
)
SINE = replace(IMAGES, tasks=open_tasks("sine-line"), network=partial(MLP, (1, 5, 1)), learner=learners.maml(2, 0.01))
RUNS = {
    "meta-sgd": replace(IMAGES, learner=learners.meta_sgd(2, 0.05), shot=Shot(schedule="linear", schedule_steps=4)),
    "anil": replace(IMAGES, learner=learners.anil(1, 0.05), shot=Shot(1e-6, reference_steps=2)),
    "reptile": replace(IMAGES, learner=learners.reptile(2, 0.05, minibatches=2), optimiser="sgd", learning_rate=0.5),
    "supervised": replace(IMAGES, learner=learners.supervised(2, 0.05)),
    "leo": replace(
        IMAGES,
        learner=learners.leo(2, 0.5, latent=Latent(4, fine_tuning_steps=1, dropout=0.2)),
        shot=Shot(1e-3, distance="l2_parameters"),
    ),
    "shot-p": replace(IMAGES, shot=Shot(), pretraining=ShotPretraining(hidden=4)),
    "shuffled-labels": replace(IMAGES, shuffle_labels=True),
    "penalty": replace(IMAGES, learner=learners.maml(2, 0.05, first_order=True), penalty=CurvaturePenalty(-0.2)),
    "penalty-batched": replace(SINE, penalty=CurvaturePenalty(0.5)),
    # MAML on regression tasks: their network has no convolutions, so all tasks of an outer step are computed at once.
    "maml-batched": replace(SINE, shot=Shot(distance="squared_error", schedule="cosine", schedule_steps=4)),
}


class StoppedError(Exception):
    pass


def stop_at(step):
    def progress(meta_step, _):
        if meta_step == step:
            raise StoppedError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_and_resumed_equals_the_uninterrupted_run(tmp_path, name):
    expected = list(meta_train(RUNS[name]))
    config = replace(RUNS[name], folder=tmp_path)
    for step in (1, 4):
        with pytest.raises(StoppedError):
            list(meta_train(config, progress=stop_at(step)))
    resumed = list(meta_train(config))
    for a, b in zip(resumed, expected, strict=True):
        assert torch.equal(a.theta, b.theta)
        assert (a.validation_loss, a.diverged) == (b.validation_loss, b.diverged)
    assert not torch.equal(resumed[1].theta, resumed[2].theta)
    rows = metrics.read(tmp_path / metrics.NAME)
    assert [row["meta_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(0 <= row["output_variation"] <= 1 and row["collapsed"] is False for row in rows)
    assert all((row["relative_change"] is not None) == (config.penalty is not None) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("transductive", [True, False])
def test_checkpoints_are_evaluated_on_the_configured_validation_tasks(transductive):
    """Validation takes classes of val. With those of test, the best checkpoint would be chosen on test data."""
    config = replace(IMAGES, validation_tasks=3, validation_seed=8, transductive=transductive, checkpoints=(0, 1))
    loss = task_loss(config)[0]
    for checkpoint in meta_train(config):
        evaluations = {
            split: evaluate(
                config.learner, loss, checkpoint.theta, config.tasks,
                split=split, num_tasks=3, seed=8, transductive=transductive,
            )
            for split in ("train", "val", "test")
        }  # fmt: skip
        expected = evaluations["val"].losses.mean()
        assert checkpoint.validation_loss == float(expected)
        assert checkpoint.validation_accuracy == float(evaluations["val"].accuracies.mean())
        assert all(float(evaluations[split].losses.mean()) != float(expected) for split in ("train", "test"))


def test_learners_with_the_same_seed_begin_with_the_same_network():
    size = len(task_loss(IMAGES)[1])
    initial = [next(meta_train(config)).theta[:size] for name, config in RUNS.items() if not name.endswith("-batched")]
    assert all(torch.equal(theta, initial[0]) for theta in initial)


def test_training_does_not_change_the_untrained_control():
    first, *later = meta_train(replace(IMAGES, learner=learners.untrained(2, 0.05)))
    assert [c.meta_step for c in later] == [2, 5]
    assert all(torch.equal(c.theta, first.theta) for c in later)


def test_supervised_training_leaves_the_initial_head_of_new_tasks_as_it_is():
    first, *_, last = meta_train(RUNS["supervised"])
    loss, theta = task_loss(IMAGES)
    head, body = loss.layout.indices("head"), loss.layout.indices("body")
    assert torch.equal(last.theta[head], theta[head])
    assert not torch.equal(last.theta[body], theta[body])
    classes = ClassBatches(IMAGES.tasks).outputs
    assert classes == len(IMAGES.tasks.dataset.classes("train"))
    assert len(first.theta) == len(theta) + classes * (2 + 1)  # the class head has two features and a bias


def test_class_batches_are_images_of_the_class_their_label_names():
    source = ClassBatches(IMAGES.tasks)
    (x, y), (xq, yq) = source.episode(seed=0, split="train", index=0)
    assert (len(x), len(xq)) == (3, 6)  # three ways, with one shot and two queries
    data = IMAGES.tasks.dataset
    for image, label in zip(torch.cat([x, xq]), torch.cat([y, yq]), strict=True):
        members = torch.from_numpy(data.images[data.classes("train")[int(label)]].copy()).float() / data.scale
        assert (members == image).flatten(1).all(1).any()
    again = source.episode(seed=0, split="train", index=0)
    assert torch.equal(again.query[0], xq)
    assert not torch.equal(source.episode(seed=0, split="train", index=1).query[0], xq)
    assert source.digest != IMAGES.tasks.digest


@pytest.mark.slow
def test_supervised_training_learns_the_classes():
    tasks = open_tasks("quickdraw", ways=4, shots=1, queries=5)
    four_classes = replace(tasks.dataset, splits={"train": tasks.dataset.classes("train")[:4]})
    config = replace(
        RUNS["supervised"],
        tasks=replace(tasks, dataset=four_classes),
        network=partial(Conv4, 4, width=8),
        checkpoints=(0, 60),
        validation_tasks=0,
    )
    losses: list[float] = []
    list(meta_train(config, progress=lambda step, loss: losses.append(loss)))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.slow
def test_ordinary_training_begins_from_the_best_checkpoint_of_pretraining(tmp_path):
    pretrained = list(meta_train(replace(RUNS["shot-p"], folder=tmp_path)))
    best = best_checkpoint(pretrained[1:])
    path = checkpoints.checkpoint_path(tmp_path, best.meta_step)
    size = len(task_loss(IMAGES)[1])
    first, *_, last = meta_train(replace(IMAGES, start=path))
    assert torch.equal(first.theta, best.theta[:size])
    assert not torch.equal(last.theta, first.theta)
    # Learned step sizes are not taken from the checkpoint.
    learned = next(meta_train(replace(RUNS["meta-sgd"], start=path))).theta
    assert torch.equal(learned[size:], torch.full((size,), 0.05))
    with pytest.raises(ValueError, match="build the same one"):
        next(meta_train(replace(IMAGES, start=path, network=partial(Conv4, 3, width=8))))


@pytest.mark.parametrize("learner", [learners.reptile(2, 1e30), learners.meta_sgd(2, 1e30), learners.boil(2, 1e30)])
def test_divergence_of_any_learner_is_recorded_in_the_folder_of_its_run(tmp_path, learner):
    yielded = list(meta_train(replace(SINE, learner=learner, folder=tmp_path)))
    assert [c.diverged for c in yielded][-1]
    assert diverged_at(tmp_path) == 1
