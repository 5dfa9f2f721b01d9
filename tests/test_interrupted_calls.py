"""Tests that a cell of a notebook can be interrupted anywhere: model, operator and run stay as they were, and work."""

import copy
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools.data import SineLineTasks
from hessian_tools.train import TrainConfig, meta_train


class Interruptible(nn.Module):
    """A small classifier that raises KeyboardInterrupt in the forward pass whose number is ``at``, counted from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 3))
        self.passes, self.at = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt
        return self.layers(x)


BATCH = (torch.randn(12, 4, generator=ht.stream(0, "x")), torch.arange(12) % 3)


def facts(model: nn.Module) -> dict[str, object]:
    """All of a model that a call may not change."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "modes": [module.training for module in model.modules()],
        "gradients": [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
    }


def assert_unchanged(model: nn.Module, before: dict[str, object]) -> None:
    torch.testing.assert_close(facts(model), before, rtol=0, atol=0)
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert model(BATCH[0]).requires_grad


@pytest.mark.parametrize("route", ["direct", "double_backward", "compiled"])
def test_an_interrupted_eigenvalue_run_leaves_the_operator_and_the_model_usable(route: str) -> None:
    model = ht.seeded(Interruptible, seed=0)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, nn.functional.cross_entropy, layout)
    before = facts(model)
    expected = ht.top_eigenpairs(ht.hessian(loss, theta, BATCH, route=route), k=2)
    passes = model.passes
    H = ht.hessian(loss, theta, BATCH, route=route)
    H.mv(torch.ones_like(theta))
    model.passes, model.at = 0, 0
    ht.top_eigenpairs(H, k=2)
    first, stopped = model.passes, 0
    for at in dict.fromkeys((1, 2, max(1, first // 2), max(1, first))):  # within an operator that was used before
        model.passes, model.at = 0, at
        try:
            ht.top_eigenpairs(H, k=2)
        except KeyboardInterrupt:
            stopped += 1
        model.at = 0
        assert_unchanged(model, before)
        again = ht.top_eigenpairs(H, k=2)
        assert torch.equal(again.values, expected.values) and torch.equal(again.residuals, expected.residuals)
    for at in range(1, passes + 1, max(1, passes // 4)):  # within a fresh operator, and while it is prepared
        H = ht.hessian(loss, theta, BATCH, route=route)
        model.passes, model.at = 0, at
        try:
            ht.top_eigenpairs(H, k=2)
        except KeyboardInterrupt:
            stopped += 1
        model.at = 0
        assert_unchanged(model, before)
        assert torch.equal(ht.top_eigenpairs(H, k=2).values, expected.values)
    assert stopped or route == "compiled"


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_record_leaves_the_model_usable(steps: int) -> None:
    model = ht.seeded(Interruptible, seed=0)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, nn.functional.cross_entropy, layout)
    before = facts(model)
    record = partial(ht.record, ht.learners.maml(steps, 0.1), loss, theta, BATCH, BATCH)
    model.passes = 0
    expected = record()
    passes = model.passes
    assert passes > steps
    for at in range(1, passes + 1):
        model.passes, model.at = 0, at
        with suppress(KeyboardInterrupt):
            record()
        model.at = 0
        assert_unchanged(model, before)
        assert torch.equal(record().query_loss, expected.query_loss)


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_interrupted_training_can_be_called_again_and_gives_the_same_numbers(on_disk: bool, tmp_path: Path) -> None:
    config = TrainConfig(
        learner=ht.learners.maml(1, 0.01),
        tasks=SineLineTasks(),
        network=partial(ht.MLP, [1, 8, 1]),
        checkpoints=(0, 2, 6),
        validation_tasks=2,
    )
    *_, expected = meta_train(config)
    config = replace(config, folder=tmp_path / "run" if on_disk else None)

    def interrupt(meta_step: int, query_loss: float) -> None:
        if meta_step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(meta_train(config, progress=interrupt))
    *_, again = meta_train(config)
    assert torch.equal(again.theta, expected.theta) and again.validation_loss == expected.validation_loss
