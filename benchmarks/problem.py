"""A work load at its points, as every contestant is given it, and what a contestant gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

import hessian_tools as ht


class SquaredError(nn.Module):
    """Written out, for nn.MSELoss has no forward-over-reverse derivative in torch."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean()


class OnePoint(NamedTuple):
    """One point for a peer that knows modules: the network holding its parameters, and its batch."""

    model: nn.Module
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Problem:
    """thetas [point, param], x and y with a leading point axis; one network and criterion for all points."""

    name: str
    model: nn.Module
    criterion: nn.Module
    loss: ht.Loss
    thetas: Tensor
    x: Tensor
    y: Tensor

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def device(self) -> torch.device:
        return self.thetas.device

    def first(self, count: int) -> "Problem":
        """The same at its first points."""
        return replace(self, thetas=self.thetas[:count], x=self.x[:count], y=self.y[:count])

    def to(self, device: str, dtype: torch.dtype) -> "Problem":
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        model = self.model.to(device, dtype)
        return replace(self, model=model, thetas=moved(self.thetas), x=moved(self.x), y=moved(self.y))

    def at(self, point: int) -> OnePoint:
        """The network with the parameters of a point; the one module is used for all points in turn."""
        values = self.loss.layout.unflatten(self.thetas[point])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])
                parameter.grad = None
        return OnePoint(self.model, self.x[point], self.y[point])


@dataclass(frozen=True)
class Answer:
    """What one run found.

    values: [point, number], eigenvalues or traces; empty for mere products. num_matvecs: products used, all
    points together. seconds: of one product by the wall and by the processor, where the run measures that itself
    (the floor). rates: what else it measured.
    """

    num_matvecs: int
    values: Tensor | None = None
    stderr: Tensor | None = None
    seconds: tuple[float, float] | None = None
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A contestant made ready: what is timed, and how it was set."""

    run: Callable[[], Answer]
    note: str = ""
