"""What the tests of the first look at a loss share: a network, a batch, and a check of every door."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "first look", name), dtype=torch.float64)


X, Y = randn(12, 4), torch.arange(12) % 3


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), seed=0).double()


def refused(model: nn.Module, criterion: Callable[..., Tensor], words: str, batch: Any = (X, Y)) -> None:
    """Every door is closed: Hessian, Gauss-Newton, gradient and recorder."""
    theta, layout = ht.flatten(model)
    for door in (ht.hessian, ht.gauss_newton, ht.gradient):
        with pytest.raises(HiddenStateError, match=words):
            door(ht.make_loss(model, criterion, layout), theta, batch)
    with pytest.raises(HiddenStateError, match=words):
        ht.Recorder(model, criterion, batch).trajectory()
