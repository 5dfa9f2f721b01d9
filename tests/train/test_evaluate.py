"""Tests of evaluation: its intervals, its two ways to treat the query set, and the choice of the best checkpoint."""

from dataclasses import replace
from functools import partial
from math import nan, sqrt

import pytest
import torch

from hessian_tools import MLP, Conv4, TrainConfig, adapt, learners
from hessian_tools.data import open_tasks
from hessian_tools.train import Checkpoint, Evaluation, best_checkpoint, evaluate, over_seeds, task_loss

TASKS = open_tasks("quickdraw", ways=3, shots=2, queries=4)
CONFIG = TrainConfig(learner=learners.maml(2, 0.05), tasks=TASKS, network=partial(Conv4, 3, width=4))


def evaluated(config: TrainConfig, *, transductive: bool) -> Evaluation:
    loss, theta = task_loss(config)
    return evaluate(
        config.learner, loss, theta, config.tasks, split="test", num_tasks=4, seed=1, transductive=transductive
    )


def test_without_transduction_each_query_is_normalised_with_the_support_set():
    evaluation = evaluated(CONFIG, transductive=False)
    loss, theta = task_loss(CONFIG)
    (x, y), (xq, yq) = TASKS.episode(seed=1, split="test", index=3)
    adapted = adapt(CONFIG.learner, loss, theta, (x, y))
    outputs = torch.stack([loss.outputs(adapted, torch.cat([x, example[None]]))[-1] for example in xq])
    assert torch.allclose(evaluation.losses[3], loss.criterion(outputs, yq), rtol=1e-4)
    assert torch.allclose(evaluation.accuracies[3], (outputs.argmax(-1) == yq).float().mean())
    transductive = evaluated(CONFIG, transductive=True)
    assert not torch.allclose(evaluation.losses, transductive.losses, rtol=1e-3)
    assert "not transductive: each query is one batch with the support set" in str(evaluation)
    assert " transductive: the query set is one batch" in str(transductive)


def test_without_batch_statistics_transduction_makes_no_difference():
    plain = replace(CONFIG, network=partial(Conv4, 3, width=4, normalisation="none"))
    a, b = evaluated(plain, transductive=True), evaluated(plain, transductive=False)
    assert torch.allclose(a.losses, b.losses, rtol=1e-5)
    torch.testing.assert_close(a.accuracies, b.accuracies)


def test_the_interval_is_that_of_the_mean_over_tasks():
    numbers = torch.tensor([0.2, 0.4, 0.4, 0.8])
    evaluation = Evaluation(numbers, numbers, split="test", seed=3, steps=5, transductive=True)
    mean, half_width = evaluation.accuracy
    assert mean == pytest.approx(0.45)
    squares = [(v - 0.45) ** 2 for v in (0.2, 0.4, 0.4, 0.8)]
    assert half_width == pytest.approx(1.96 * sqrt(sum(squares) / 3 / 4))
    text = "accuracy 45.00 +- 24.66 % (95 % over 4 test tasks of seed 3, 5 steps; transductive"
    assert str(evaluation).startswith(text)
    losses, accuracies = evaluation
    assert losses is accuracies is numbers
    single_task = Evaluation(numbers[:1], numbers[:1], split="test", seed=3, steps=5, transductive=True)
    assert single_task.accuracy[1] != single_task.accuracy[1]  # NaN: one task has no standard deviation


def test_evaluation_takes_the_evaluation_steps_of_the_learner():
    more = replace(CONFIG, learner=learners.maml(2, 0.05, evaluation_steps=4))
    assert evaluated(more, transductive=True).steps == 4
    expected = evaluated(replace(CONFIG, learner=learners.maml(4, 0.05)), transductive=True)
    assert torch.equal(evaluated(more, transductive=True).losses, expected.losses)


def test_the_text_for_regression_gives_the_loss():
    config = TrainConfig(learner=learners.maml(1, 0.01), tasks=open_tasks("sine-line"), network=partial(MLP, (1, 4, 1)))
    assert str(evaluated(config, transductive=True)).startswith("loss ")


def seed_evaluation(losses: list[float], accuracies: list[float]) -> Evaluation:
    return Evaluation(torch.tensor(losses), torch.tensor(accuracies), "test", 0, 3, True)


def test_the_interval_over_seeds_is_students_t_over_the_means_of_the_seeds():
    mean, half_width = over_seeds([seed_evaluation([9.0, 9.0], [0.4, 0.6]), seed_evaluation([9.0, 9.0], [0.5, 0.7])])
    assert mean == pytest.approx(0.55)
    # Student's t at one degree of freedom is 12.7062, and the standard error of the two means is 0.05.
    assert half_width == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert over_seeds([seed_evaluation([1.0, 2.0], [nan, nan]), seed_evaluation([3.0, 4.0], [nan, nan])])[
        0
    ] == pytest.approx(2.5)
    mean, half_width = over_seeds([seed_evaluation([9.0, 9.0], [0.4, 0.6])])
    assert mean == pytest.approx(0.5)
    assert half_width != half_width  # NaN: one seed has no standard error
    diverged = over_seeds([seed_evaluation([1.0, 1.0], [0.4, 0.6]), seed_evaluation([nan, nan], [nan, nan])])
    assert diverged[0] != diverged[0]
    with pytest.raises(ValueError, match="one for each seed"):
        over_seeds([])


def checkpoint(step: int, loss: float, accuracy: float) -> Checkpoint:
    return Checkpoint(step, torch.zeros(1), loss, accuracy, diverged=loss != loss)


def test_the_best_checkpoint_has_the_highest_accuracy_or_for_regression_the_lowest_loss():
    accurate = [checkpoint(0, 1.0, 0.4), checkpoint(1, 0.9, 0.6), checkpoint(3, 0.5, 0.6), checkpoint(9, nan, nan)]
    assert best_checkpoint(accurate).meta_step == 1  # the earlier of two equal ones
    assert best_checkpoint([checkpoint(0, 2.0, nan), checkpoint(5, 1.0, nan), checkpoint(9, nan, nan)]).meta_step == 5
    with pytest.raises(ValueError, match="none of 1 checkpoints was validated"):
        best_checkpoint([checkpoint(0, nan, nan)])
