"""What every contestant is given, a work load at its points or with its tasks, and what a contestant gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools.data import Episode

# So many entries of a meta-gradient are kept and compared, at most.
GRADIENT_ENTRIES = 4096


class SquaredError(nn.Module):
    """The mean squared error, written out because nn.MSELoss has no forward-over-reverse derivative in torch."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean()


@dataclass(frozen=True)
class Problem:
    """Points to measure curvature at: thetas [point, param], x and y with a leading point axis, one network for all."""

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
        """The same problem at its first points."""
        return replace(self, thetas=self.thetas[:count], x=self.x[:count], y=self.y[:count])

    def to(self, device: str, dtype: torch.dtype) -> "Problem":
        thetas, x, y = (_moved(tensor, device, dtype) for tensor in (self.thetas, self.x, self.y))
        return replace(self, model=self.model.to(device, dtype), thetas=thetas, x=x, y=y)

    def at(self, point: int) -> tuple[nn.Module, Tensor, Tensor]:
        """For a peer that knows modules: the network (always the same object) at a point, and the point's x and y."""
        values = self.loss.layout.unflatten(self.thetas[point])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])
                parameter.grad = None
        return self.model, self.x[point], self.y[point]


@dataclass(frozen=True)
class TrainingProblem:
    """An outer step of MAML: support and query tensors with a leading task axis, the network, and its inner loop."""

    model: nn.Module
    criterion: nn.Module
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    steps: int
    step_size: float
    first_order: bool

    @property
    def episodes(self) -> list[Episode]:
        (sx, sy), (qx, qy) = self.support, self.query
        return [Episode((sx[i], sy[i]), (qx[i], qy[i])) for i in range(len(sx))]

    def first(self, count: int) -> "TrainingProblem":
        """The same problem with its first tasks."""
        (sx, sy), (qx, qy) = self.support, self.query
        return replace(self, support=(sx[:count], sy[:count]), query=(qx[:count], qy[:count]))

    def to(self, device: str, dtype: torch.dtype) -> "TrainingProblem":
        sx, sy, qx, qy = (_moved(tensor, device, dtype) for tensor in (*self.support, *self.query))
        return replace(self, model=self.model.to(device, dtype), support=(sx, sy), query=(qx, qy))


@dataclass(frozen=True)
class Answer:
    """The result of one run.

    num_matvecs: the products used at all points together. values [point, number]: eigenvalues, traces or entries of
    a meta-gradient; None for mere products. seconds: of one product by the wall clock and by the processor, where
    the run measures that itself (the floor). rates: whatever else the run measured.
    """

    num_matvecs: int
    values: Tensor | None = None
    stderr: Tensor | None = None
    seconds: tuple[float, float] | None = None
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A contestant that is ready: the function to be timed, and a note on how the contestant was set."""

    run: Callable[[], Answer]
    note: str = ""


def sampled(gradient: Tensor) -> Tensor:
    """Evenly spaced entries of a gradient [param], at most GRADIENT_ENTRIES and from every layer [1, entry]."""
    stride = -(-len(gradient) // GRADIENT_ENTRIES)
    return gradient[::stride][None].clone()


def _moved(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
