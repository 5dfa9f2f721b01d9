"""The problems: quadratic losses whose Hessian has a chosen ("planted") spectrum, and small networks.

For the networks, the reference is the dense Hessian in float64. It is made by torch's plain reverse-over-reverse
differentiation, of all data at once, and shares no code with the library.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.problem import SquaredError
from benchmarks.references.spectra import DTYPE, LARGER, SPECTRA


@dataclass(frozen=True)
class Reference:
    """A loss and its exact Hessian.

    model, criterion, batch: what a tool is given, in float32. whole: the data of all batches as one pair (x, y).
    planted: the spectrum in closed form, or None where it is computed from the dense Hessian.
    """

    name: str
    model: nn.Module
    criterion: nn.Module
    batch: Any
    whole: tuple[Tensor, Tensor]
    planted: Tensor | None = None

    @cached_property
    def eigenvalues(self) -> Tensor:
        """All eigenvalues in float64, the largest magnitude first."""
        values = torch.linalg.eigvalsh(self.dense()) if self.planted is None else self.planted
        return values[values.abs().argsort(descending=True)]

    def dense(self) -> Tensor:
        """The Hessian [param, param] in float64."""
        model, criterion = deepcopy(self.model).double(), deepcopy(self.criterion).double()
        x, y = (part.double() if part.is_floating_point() else part for part in self.whole)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(criterion(model(x), y), parameters, create_graph=True)
        rows = []
        for entry in torch.cat([g.reshape(-1) for g in gradients]):
            parts = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if part is None else part).reshape(-1)
                        for part, p in zip(parts, parameters, strict=True)
                    ]
                )
            )
        return torch.stack(rows)


class Weighted(nn.Module):
    """Half the mean of y times the squared output."""

    reduction = "mean"

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (y * outputs**2).mean() / 2


def planted(name: str, spectrum: Tensor) -> Reference:
    """A linear model whose loss has the Hessian Q diag(spectrum) Q': the n examples are the columns of Q."""
    n = len(spectrum)
    Q = torch.linalg.qr(torch.randn(n, n, generator=ht.stream(0, "references", name), dtype=DTYPE)).Q
    model = ht.seeded(lambda: nn.Linear(n, 1, bias=False), seed=0)
    # The targets are the weights of the squares in ``Weighted``; the factor n cancels the mean over the n examples.
    batch = (Q.T.contiguous().float(), (n * spectrum)[:, None].float())
    return Reference(f"planted {name}", model, Weighted(), batch, batch, spectrum)


def _network(
    name: str,
    layers: Callable[[], nn.Module],
    criterion: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    parts: list[int] | None = None,
    prepare: Callable[[nn.Module], Any] = lambda model: None,
) -> Reference:
    """The problem of a network on the data x and y.

    parts: the sizes of the batches into which the data are divided; None for one batch. prepare: a function that
    changes the model before the problem is made, such as by switching it to eval mode.
    """
    model = ht.seeded(layers, seed=1)
    prepare(model)
    batch = (x, y) if parts is None else list(zip(x.split(parts), y.split(parts), strict=True))
    return Reference(name, model, criterion, batch, (x, y))


def references() -> list[Reference]:
    """All problems, in the order of the table."""
    numbers = ht.stream(0, "references", "data")
    x, images = torch.randn(24, 6, generator=numbers), torch.randn(12, 1, 8, 8, generator=numbers)
    labels, image_labels = torch.arange(24) % 4, torch.arange(12) % 3
    targets = torch.randn(24, 4, generator=numbers)
    some_ignored = torch.where(torch.arange(24) % 3 == 0, -100, labels)  # -100 is what CrossEntropyLoss ignores
    some_ignored[16:] = labels[16:]  # so that the last of three batches has more labels that count

    def mlp(*between: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(nn.Linear(6, 10), *(make() for make in between), nn.Linear(10, 4))

    def convolutional(**options: Any) -> Callable[[], nn.Module]:
        def layers() -> nn.Module:
            first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, **options), nn.Tanh(), nn.AvgPool2d(2))
            return nn.Sequential(first, nn.Flatten(), nn.Linear(36, 3))  # 36: four channels of 3 x 3 positions

        return layers

    def with_statistics(model: nn.Module) -> None:
        """Give BatchNorm running statistics that are not those of the batch, and switch to eval mode."""
        with torch.no_grad():
            model(3 * images + 1)
        model.eval()

    entropy = nn.CrossEntropyLoss
    return [
        *(planted(name, spectrum) for name, spectrum in (SPECTRA | LARGER).items()),
        _network("tanh network, squared error", mlp(nn.Tanh), SquaredError(), x, targets),
        _network("ReLU network, cross-entropy", mlp(nn.ReLU), entropy(), x, labels),
        _network("LayerNorm and GELU", mlp(lambda: nn.LayerNorm(10), nn.GELU), entropy(), x, labels),
        _network(
            "BatchNorm, batch statistics", convolutional(track_running_stats=False), entropy(), images, image_labels
        ),
        _network("BatchNorm, eval mode", convolutional(), entropy(), images, image_labels, prepare=with_statistics),
        _network(
            "dropout, eval mode", mlp(nn.Tanh, nn.Dropout), entropy(), x, labels, prepare=lambda model: model.eval()
        ),
        _network("sum over examples", mlp(nn.Tanh), entropy(reduction="sum"), x, labels),
        _network("three unequal batches", mlp(nn.Tanh), entropy(), x, labels, parts=[12, 8, 4]),
        _network("three batches, ignored labels", mlp(nn.Tanh), entropy(), x, some_ignored, parts=[8, 8, 8]),
    ]
