"""What the tests of the first look at a loss share: data, a network, hand-written derivatives, a check of refusals.

The first look is the library's check, at the first use of a loss, for what would silently give a wrong curvature, such
as random numbers or a hand-written derivative without a second one (``hessian_tools.first_look``).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream


def randn(*shape: int, name: str = "x") -> Tensor:
    """Standard normal numbers from the stream that this name selects."""
    return torch.randn(*shape, generator=stream(0, "first look", name), dtype=torch.float64)


X, Y = randn(12, 4), torch.arange(12) % 3


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), seed=0).double()


class Exponential(torch.autograd.Function):
    """Saves its result as a constant: the gradient is right, and the Hessian lacks a term."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.result = x.exp()
        return ctx.result.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope * ctx.result


class Cube(torch.autograd.Function):
    """The third power, with both derivatives right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return slope * 3 * x**2


class CubeOnce(Cube):
    """The third power, marked as differentiable once, so that torch refuses a second derivative."""

    backward = staticmethod(once_differentiable(Cube.backward))


class StraightThrough(torch.autograd.Function):
    """The sign with the gradient of the identity, which is not the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return slope


def refused(model: nn.Module, criterion: Callable[..., Tensor], words: str, batch: Any = (X, Y)) -> None:
    """Assert that all four refuse the loss: the Hessian, the Gauss-Newton matrix, the gradient and the recorder.

    words: a pattern that the error's message must contain.
    """
    theta, layout = ht.flatten(model)
    for function in (ht.hessian, ht.gauss_newton, ht.gradient):
        with pytest.raises(HiddenStateError, match=words):
            function(ht.make_loss(model, criterion, layout), theta, batch)
    with pytest.raises(HiddenStateError, match=words):
        ht.Recorder(model, criterion, batch).trajectory()
