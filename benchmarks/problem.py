"""What the benchmark and a contestant exchange: the problem, the job that the contestant prepares, and its answer.

A contestant is this library or one of its peers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import hessian_tools as ht
from hessian_tools.data import Episode

# The largest number of entries of a meta-gradient that are returned and compared; a whole one may have millions.
GRADIENT_ENTRIES = 4096


class SquaredError(nn.Module):
    """The mean squared error. It is written out, because nn.MSELoss has no forward-over-reverse derivative in torch."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean()


@dataclass(frozen=True)
class Problem:
    """A problem in curvature: a network, the parameter vectors at which curvature is computed, and a batch for each.

    thetas [point, param]: the points. x, y: the batches, with a leading point axis.
    """

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
        """The problem on a device and in a dtype. It shares the model with this one, whose dtype changes as well."""
        thetas, x, y = (_moved(tensor, device, dtype) for tensor in (self.thetas, self.x, self.y))
        return replace(self, model=self.model.to(device, dtype), thetas=thetas, x=x, y=y)

    def at(self, point: int) -> tuple[nn.Module, Tensor, Tensor]:
        """For a peer that works on modules: the network with a point's parameters, and the point's x and y.

        The network is always the same object, whose parameters each call overwrites.
        """
        values = self.loss.layout.unflatten(self.thetas[point])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])
                parameter.grad = None
        return self.model, self.x[point], self.y[point]


@dataclass(frozen=True)
class TrainingProblem:
    """A problem in training: one outer step of MAML, with the network, the tasks and the settings of the inner loop.

    support, query: the pairs (x, y) of all tasks, with a leading task axis.
    """

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
        """The problem on a device and in a dtype. It shares the model with this one, whose dtype changes as well."""
        sx, sy, qx, qy = (_moved(tensor, device, dtype) for tensor in (*self.support, *self.query))
        return replace(self, model=self.model.to(device, dtype), support=(sx, sy), query=(qx, qy))


@dataclass(frozen=True)
class Answer:
    """The result of one run.

    num_matvecs: the number of products, summed over all points. values [point, number]: eigenvalues, traces or entries
    of a meta-gradient; None if only products were computed. stderr: the standard errors of traces. seconds: the time of
    one run, by the wall clock and by processor time, if the run measures it itself; the worker's timing is then
    ignored. rates: further measurements, by name.
    """

    num_matvecs: int
    values: Tensor | None = None
    stderr: Tensor | None = None
    seconds: tuple[float, float] | None = None
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A contestant that is ready to run: the function to be timed, and a note on the contestant's settings."""

    run: Callable[[], Answer]
    note: str = ""


def sampled_entries(gradient: Tensor) -> Tensor:
    """At most ``GRADIENT_ENTRIES`` evenly spaced entries of a gradient [param], as a tensor [1, entry]."""
    stride = -(-len(gradient) // GRADIENT_ENTRIES)  # rounded up
    return gradient[::stride][None].clone()


def _moved(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
