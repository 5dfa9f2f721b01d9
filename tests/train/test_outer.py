"""Tests of the outer step of meta-training, in float64.

Its gradient must be the same whether tasks are computed in turn or all at once. Also tested are Reptile's outer step,
the schedule of SHOT's weight, pre-training by SHOT, and the refusal of configurations that cannot be trained.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from outer_steps import IMAGES, SINE, mean_gradient
from torch import Tensor

from hessian_tools import MLP, Shot, TrainConfig, learners, meta_train
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.meta_loss import meta_loss
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.inner.pretraining import Augmentation, ShotPretraining
from hessian_tools.inner.steps import Momentum
from hessian_tools.train import task_loss
from hessian_tools.train.outer import accumulate_gradient, is_batched, training_episode
from hessian_tools.train.warm_start import first_parameters

SQUARED = Shot(distance="squared_error", weight=0.5)


@pytest.mark.parametrize(
    "config",
    [
        replace(SINE, shot=SQUARED),
        replace(SINE, learner=learners.maml(3, 0.01, first_order=True), shot=SQUARED),
        replace(SINE, learner=learners.anil(3, 0.01), shot=replace(SQUARED, detach_reference=False)),
        # One inner step is the target (None takes the learner's own number of steps), and two steps are the reference.
        replace(SINE, learner=learners.boil(1, 0.01), shot=replace(SQUARED, target_steps=None, reference_steps=2)),
        replace(SINE, learner=learners.meta_sgd(3, 0.01), shot=Shot(distance="l2_parameters")),
        replace(SINE, learner=learners.reptile(3, 0.01, minibatches=2)),
        replace(SINE, learner=learners.maml(3, 0.01, rule=Momentum())),
        replace(SINE, shot=SQUARED, penalty=CurvaturePenalty(0.3)),
        replace(SINE, learner=learners.boil(3, 0.01, first_order=True), penalty=CurvaturePenalty(-0.3)),
        replace(IMAGES, penalty=CurvaturePenalty(0.3)),
        # These have batch normalisation, for which vmap of the gradient is exact, but the gradient of vmap is not.
        replace(IMAGES, shot=Shot(weight=0.5)),
        replace(IMAGES, learner=learners.supervised(2, 0.05)),
        replace(IMAGES, shot=Shot(weight=0.5), pretraining=ShotPretraining()),
    ],
    ids=lambda c: f"{c.learner.name}-{c.tasks.kind}",
)
def test_all_tasks_at_once_give_the_gradient_of_tasks_in_turn(config):
    in_turn, at_once = (mean_gradient(replace(config, batched=batched)) for batched in (False, True))
    assert (at_once - in_turn).norm() < 1e-12 * in_turn.norm()


def test_tasks_are_computed_at_once_if_configured_or_by_default_where_this_is_faster():
    mlp, conv = SINE.network(), IMAGES.network()
    assert is_batched(SINE, mlp)
    assert not is_batched(IMAGES, conv)
    assert not is_batched(replace(SINE, meta_batch=1), mlp)
    assert is_batched(replace(IMAGES, batched=True), conv)
    assert not is_batched(replace(SINE, batched=False), mlp)


def test_reptile_by_plain_descent_moves_towards_the_mean_of_the_end_points():
    config = replace(SINE, learner=learners.reptile(3, 0.01), optimiser="sgd", learning_rate=0.25, checkpoints=(0, 1))
    before, after = meta_train(replace(config, validation_tasks=0))
    loss, theta = task_loss(config)
    ends = []
    for index in range(3):
        (x, y), (xq, yq) = config.tasks.episode(seed=0, split="train", index=index)
        point = theta
        for _ in range(3):
            u = point.clone().requires_grad_()
            batch = (torch.cat([x, xq]), torch.cat([y, yq]))
            point = point - 0.01 * torch.autograd.grad(loss(u, batch), u)[0]
        ends.append(point)
    assert torch.equal(before.theta, theta)
    assert torch.allclose(after.theta, theta + 0.25 * (sum(ends) / 3 - theta), rtol=1e-4, atol=1e-6)


def test_the_schedule_of_shot_follows_the_outer_loop():
    warming = replace(SINE, shot=Shot(2.0, distance="squared_error", schedule="linear", schedule_steps=10))
    loss, theta = task_loss(SINE)

    def gradient(config: TrainConfig, meta_step: int) -> Tensor:
        point = theta.double().requires_grad_()
        accumulate_gradient(config, loss, point, meta_step)
        return point.grad

    assert torch.allclose(gradient(warming, 0), gradient(replace(SINE, shot=None), 0), rtol=1e-12)
    half_weight = replace(SINE, shot=Shot(1.0, distance="squared_error"))
    assert torch.allclose(gradient(warming, 5), gradient(half_weight, 5), rtol=1e-12)
    assert not torch.allclose(gradient(warming, 5), gradient(half_weight, 6), rtol=1e-3)


def test_pretraining_uses_no_query_label_and_trains_only_a_trained_projector():
    config = replace(IMAGES, shot=Shot(weight=1.0), pretraining=ShotPretraining(augmentation=None, hidden=5))
    loss, theta = task_loss(config)

    def gradient(config: TrainConfig) -> Tensor:
        meta = first_parameters(config, loss, theta.double()).requires_grad_()
        accumulate_gradient(config, loss, meta, 0)
        return meta.grad

    class OtherLabels:
        kind, input_shape, outputs, digest = "classification", (1, 28, 28), 3, ""

        def episode(self, *, seed: int, split: str, index: int):
            episode = config.tasks.episode(seed=seed, split=split, index=index)
            return episode._replace(query=(episode.query[0], 2 - episode.query[1]))

    trained = gradient(config)
    assert len(trained) == len(theta) + 5 * 3 + 5 + 3 * 5 + 3  # the projector has linear layers 3 -> 5 and 5 -> 3
    for part in trained[len(theta) :].split([5 * 3, 5, 3 * 5, 3]):  # matrix and bias of the first and the second layer
        assert part.norm() > 0
    assert torch.equal(gradient(replace(config, tasks=OtherLabels())), trained)
    fixed = gradient(replace(config, pretraining=replace(config.pretraining, projector="fixed")))
    assert torch.equal(fixed[: len(theta)], trained[: len(theta)])
    assert not fixed[len(theta) :].any()
    absent = gradient(replace(config, pretraining=replace(config.pretraining, projector="absent")))
    assert len(absent) == len(theta)
    assert not torch.allclose(absent, trained[: len(theta)])


def test_pretraining_without_a_projector_descends_the_penalty_of_shot_alone():
    shot = Shot(weight=1.0)
    penalty = mean_gradient(replace(IMAGES, shot=shot, pretraining=ShotPretraining("absent", augmentation=None)))
    total, query = (mean_gradient(replace(IMAGES, shot=s)) for s in (shot, None))
    size = len(penalty) - IMAGES.meta_batch  # one number for each task follows the gradient
    assert torch.allclose(penalty[:size], (total - query)[:size], rtol=1e-9, atol=1e-12)


def test_augmentation_changes_each_image_by_its_own_draw():
    images = torch.zeros(6, 1, 8, 8)
    images[:, :, 2:4, 1:3] = 1.0
    g = torch.Generator().manual_seed(0)
    no_change = Augmentation(flip=False, shift=0.0, zoom=0.0, brightness=0.0)
    assert torch.allclose(no_change(images, g), images, atol=1e-5)
    mirrored = replace(no_change, flip=True)(images, g)
    is_unchanged = {bool(torch.allclose(m, i, atol=1e-5)) for m, i in zip(mirrored, images, strict=True)}
    assert is_unchanged == {True, False}
    assert all(
        torch.allclose(m, i, atol=1e-5) or torch.allclose(m, i.flip(-1), atol=1e-5)
        for m, i in zip(mirrored, images, strict=True)
    )
    brighter = replace(no_change, brightness=0.5)(images, g).amax((1, 2, 3))
    assert len(set(brighter.tolist())) == 6
    assert 0.5 <= brighter.min() <= brighter.max() <= 1.5
    moved = replace(no_change, shift=0.1)(images, g)
    assert not torch.allclose(moved, images)
    assert torch.allclose(moved.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-3)  # no pixel left the picture


def test_every_task_has_its_own_augmentation_and_its_own_noise():
    class OneTask:
        kind, input_shape, outputs, digest = "classification", (1, 28, 28), 3, ""

        def episode(self, *, seed: int, split: str, index: int):
            return IMAGES.tasks.episode(seed=0, split=split, index=0)

    def gradients(config: TrainConfig) -> list[Tensor]:
        config = replace(config, tasks=OneTask(), meta_batch=1)
        loss, theta = task_loss(config)
        gradients = []
        for meta_step in (0, 1):
            meta = first_parameters(config, loss, theta.double()).requires_grad_()
            accumulate_gradient(config, loss, meta, meta_step)
            gradients.append(meta.grad)
        return gradients

    first, second = gradients(IMAGES)
    assert torch.equal(first, second)
    for config in (
        replace(IMAGES, shot=Shot(), pretraining=ShotPretraining("absent")),
        replace(IMAGES, learner=learners.leo(2, 0.5, latent=Latent(4, fine_tuning_steps=1))),
    ):
        first, second = gradients(config)
        assert (first - second).norm() > 1e-3 * first.norm()


def test_shuffled_labels_are_permuted_within_the_support_set_and_within_the_query_set_of_each_task():
    config = replace(IMAGES, tasks=replace(IMAGES.tasks, shots=2, queries=4), shuffle_labels=True)
    given, orders = replace(config, shuffle_labels=False), []
    for index in range(30):
        shuffled, true = training_episode(config, index), training_episode(given, index)
        for (x, y), (x_true, y_true) in zip(shuffled, true, strict=True):
            assert torch.equal(x, x_true)
            assert torch.equal(y.bincount(minlength=3), y_true.bincount(minlength=3))
        assert torch.equal(shuffled.query[1], training_episode(config, index).query[1])
        orders.append(torch.cat([shuffled.support[1], shuffled.query[1]]))
    labels = torch.stack(orders)
    assert len(labels.unique(dim=0)) == 30  # every task is permuted in its own way
    true_labels = torch.cat([true.support[1], true.query[1]])
    agreement = (labels == true_labels).double().mean()
    assert abs(agreement - 1 / 3) < 4 * (1 / 3 * 2 / 3 / labels.numel()) ** 0.5  # what chance gives
    other_seed = training_episode(replace(config, seed=1), 0)
    assert not torch.equal(other_seed.query[1], orders[0][6:])


def test_a_learner_of_shuffled_labels_is_validated_with_the_true_ones():
    plain, shuffled = (
        list(meta_train(replace(IMAGES, shuffle_labels=shuffle, checkpoints=(0, 1), validation_tasks=3)))
        for shuffle in (False, True)
    )
    assert shuffled[0].validation_loss == plain[0].validation_loss
    assert not torch.equal(shuffled[1].theta, plain[1].theta)
    for learner in (learners.supervised(2, 0.05), learners.reptile(2, 0.05), learners.meta_sgd(2, 0.05)):
        config = replace(IMAGES, learner=learner, checkpoints=(0, 1), validation_tasks=0)
        ends = [list(meta_train(replace(config, shuffle_labels=s)))[1] for s in (False, True)]
        assert not torch.equal(ends[0].theta, ends[1].theta)
        assert not (ends[0].diverged or ends[1].diverged)


@pytest.mark.heavy
def test_the_weight_of_the_curvature_penalty_moves_the_curvature_on_held_out_tasks():
    config = replace(SINE, network=partial(MLP, (1, 20, 20, 1)), checkpoints=(0, 60), learning_rate=3e-3, meta_batch=8)
    loss, _ = task_loss(config)

    def mean_after_training(weight: float | None) -> float:
        penalty = None if weight is None else CurvaturePenalty(weight)
        theta = list(meta_train(replace(config, penalty=penalty, validation_tasks=0)))[-1].theta
        changes = []
        for index in range(20):
            episode = config.tasks.episode(seed=9, split="test", index=index)
            _, aux = meta_loss(config.learner, loss, theta, *episode, penalty=CurvaturePenalty())
            changes.append(aux.relative_change)
        return float(torch.stack(changes).mean())

    plain, without, less, more = (mean_after_training(weight) for weight in (None, 0.0, 30.0, -3.0))
    assert abs(without - plain) < 1e-3 * plain
    assert less < 0.5 * without
    assert more > 1.25 * without


def test_configurations_that_cannot_be_trained_are_refused(tmp_path):
    with pytest.raises(ValueError, match="optimiser='adamw' is not one of adam, sgd"):
        replace(SINE, optimiser="adamw")
    with pytest.raises(ValueError, match="needs classes to train on; SineLineTasks has none"):
        list(meta_train(replace(SINE, learner=learners.supervised(1, 0.1))))
    with pytest.raises(ValueError, match="needs outer='query' and a shot"):
        replace(IMAGES, pretraining=ShotPretraining())
    with pytest.raises(ValueError, match="augmentation changes images"):
        replace(SINE, shot=SQUARED, pretraining=ShotPretraining())
    with pytest.raises(ValueError, match="acts on outputs, but distance='l2_parameters' compares parameters"):
        replace(IMAGES, shot=Shot(distance="l2_parameters"), pretraining=ShotPretraining())
    with pytest.raises(ValueError, match="projector='mlp' is not one of"):
        ShotPretraining("mlp")
    latent = learners.leo(2, 0.5)
    with pytest.raises(ValueError, match="draws its noise task by task"):
        replace(IMAGES, learner=latent, batched=True)
    with pytest.raises(ValueError, match="a latent learner's inner loop moves codes; use pretraining=None"):
        replace(IMAGES, learner=latent, shot=Shot(), pretraining=ShotPretraining())
    with pytest.raises(ValueError, match="permutes the labels of classes, which regression does not have"):
        replace(SINE, shuffle_labels=True)
    with pytest.raises(ValueError, match="changes training, but untrained is not trained"):
        replace(IMAGES, learner=learners.untrained(2, 0.05), shuffle_labels=True)
    with pytest.raises(ValueError, match="pretraining descends no loss on query labels"):
        replace(IMAGES, shot=Shot(), pretraining=ShotPretraining(), shuffle_labels=True)
    with pytest.raises(ValueError, match="penalty is added to the query loss, but pretraining descends none"):
        replace(IMAGES, shot=Shot(), pretraining=ShotPretraining(), penalty=CurvaturePenalty())
    with pytest.raises(ValueError, match="which supervised does not descend in training"):
        replace(IMAGES, learner=learners.supervised(2, 0.05), penalty=CurvaturePenalty())
    with pytest.raises(ValueError, match="does not exist; give a checkpoint file"):
        list(meta_train(replace(SINE, start=tmp_path / "nothing.safetensors")))
    with pytest.raises(ValueError, match="compares class probabilities"):
        replace(SINE, shot=Shot(distance="js"))
