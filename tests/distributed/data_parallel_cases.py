"""Quantities that processes compute together, each beside the same quantity of one process with all data.

The processes of a group divide the batches among them. The functions below run in each process of a group, and
tests/distributed/test_data_parallel.py compares the two members of the pairs that they return.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from teams import message_of
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import hessian_tools as ht
from hessian_tools.curvature import jackknife
from hessian_tools.distributed import data_parallel

Pair = tuple[Any, Any]  # what the processes compute, and what one process computes
SIZES = (4, 7, 3, 6, 5)


@dataclass(frozen=True)
class Team:
    """The group of processes, as one of its processes sees it."""

    group: Any

    def own(self, items: Any) -> Any:
        """The items of this process. The items are dealt out to the processes in turn, like cards."""
        return items[dist.get_rank(self.group) :: dist.get_world_size(self.group)]

    def share(self, batches: list[Any]) -> Any:
        """The batches of this process, marked as its part of the batches of the whole group."""
        return data_parallel(self.own(batches), self.group)

    def order(self, count: int) -> list[int]:
        """The indices of ``count`` items: first those of the first process, then those of the second, and so on."""
        size = dist.get_world_size(self.group)
        return [i for rank in range(size) for i in range(rank, count, size)]


def problem(criterion: Any = F.cross_entropy, seed: int = 0) -> tuple[Any, Tensor, list[Any]]:
    """A small network's loss, its parameters, and five batches of different sizes; labels of -100 do not count."""
    model = ht.seeded(
        lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)), seed=0
    )
    theta, layout = ht.flatten(model.double())
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for size in SIZES:
        x = torch.randn(size, 3, generator=draw, dtype=torch.float64)
        y = torch.randint(0, 3, (size,), generator=draw)
        y[0] = -100
        batches.append((x, y))
    return ht.make_loss(model, criterion, layout), theta, batches


def products(team: Team) -> list[Pair]:
    """Products of matrices and of their combinations, by each route, and gradients."""
    loss, theta, batches = problem()
    V = torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = []
    for matrix in (ht.hessian, ht.gauss_newton):
        for options in ({"route": "direct"}, {"route": "kept"}, {"route": "kept", "max_memory": 1e4}):
            pairs.append(tuple(matrix(loss, theta, b, **options) @ V for b in (team.share(batches), batches)))
    same_shape = [(x[:3], y[:3]) for x, y in batches]
    pairs.append(tuple(ht.hessian(loss, theta, b, route="traced") @ V for b in (team.share(same_shape), same_shape)))
    H, G = (m(loss, theta, team.share(batches)) for m in (ht.hessian, ht.gauss_newton))
    H1, G1 = (m(loss, theta, batches) for m in (ht.hessian, ht.gauss_newton))
    pairs.append(((H - G).block("0").to_dense(), (H1 - G1).block("0").to_dense()))
    pairs.append((ht.gradient(loss, theta, team.share(batches)), ht.gradient(loss, theta, batches)))
    return pairs


def weights(team: Team) -> list[Pair]:
    """Hessians whose batches have weights in several ways, and other kinds of losses and data.

    In this order: a criterion that sums, the user's own weights, processes without any batch, a loader, several points,
    and a loss that is a plain function.
    """
    loss, theta, batches = problem()
    summed, _, _ = problem(lambda out, y: F.cross_entropy(out, y, reduction="sum"))
    dense = [ht.hessian(summed, theta, b).to_dense() for b in (team.share(batches), batches)]
    given = [1.0, 2.0, 0.5, 4.0, 3.0]
    own = ht.hessian(loss, theta, team.share(batches), weights=team.own(given)).to_dense()
    few = [ht.hessian(loss, theta, b).to_dense() for b in (team.share(batches[:1]), batches[:1])]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    y = y.clamp(min=0)
    rows = team.own(list(range(len(x))))
    loader = data_parallel(DataLoader(Subset(TensorDataset(x, y), rows), batch_size=4), team.group)
    read = [ht.hessian(loss, theta, b, max_memory=m).to_dense() for b, m in ((loader, 600), ((x, y), None))]
    thetas = torch.stack([theta, 2 * theta, -theta])
    many = [ht.hessian(loss, thetas, b, shared=True).to_dense() for b in (team.share(batches), batches)]
    inputs = [x for x, _ in batches]
    square = [ht.hessian(_fourth, theta[:3], b).to_dense() for b in (team.share(inputs), inputs)]
    one = ht.hessian(loss, theta, batches, weights=given).to_dense()
    return [tuple(dense), (own, one), tuple(few), tuple(read), tuple(many), tuple(square)]  # type: ignore[list-item]


def _fourth(theta: Tensor, x: Tensor) -> Tensor:
    """The mean fourth power of the outputs of a linear model."""
    return ((x @ theta) ** 4).mean()


def solvers(team: Team) -> list[Pair]:
    """Numbers that the main solver and the main estimator compute from products."""
    loss, theta, batches = problem()
    results = []
    for b in (team.share(batches), batches):
        H, G = ht.hessian(loss, theta, b), ht.gauss_newton(loss, theta, b)
        traces = [ht.trace(H, num_probes=4), ht.trace(G), ht.trace(G, num_probes=80)]
        pairs = ht.top_eigenpairs(H, k=3, method="lanczos", rtol=1e-9)
        by_outputs = torch.tensor([trace.method == "outputs" for trace in traces])
        results.append([pairs.values, pairs.num_matvecs, *[trace.value for trace in traces], by_outputs])
    return list(zip(*results, strict=True))


def others(team: Team) -> list[Pair]:
    """Every other quantity that is computed from an operator."""
    loss, theta, batches = problem()
    results = []
    for b in (team.share(batches), batches):
        H, G = ht.hessian(loss, theta, b), ht.gauss_newton(loss, theta, b)
        P = ht.preconditioned(H, torch.linspace(1, 2, len(theta), dtype=torch.float64))
        expansion = ht.third_derivative(loss, theta, b, torch.ones_like(theta))
        results.append(
            [
                ht.extremal_eigenpairs(G, magnitude=2, rtol=1e-9).largest.values,
                ht.top_eigenpairs(P, k=2).values,
                ht.spectrum(H).values,
                ht.spectrum(G).values,
                ht.trace(H, method="exact").value,
                ht.frobenius_squared(H).value,
                ht.diagonal(H, num_probes=6).value,
                ht.spectral_density(H, num_probes=3, num_matvecs=8).density,
                ht.by_module(H, num_probes=8).trace,
                ht.gradient_curvature(H).rho,
                ht.loss_along(H, torch.eye(len(theta), dtype=torch.float64)[:, :2], steps=[-1.0, 0.0, 1.0]).loss,
                expansion.third,
                expansion.error < 1e-8,
                torch.tensor([finding.passed for finding in ht.check_operator(H).findings]),
            ]
        )
    return list(zip(*results, strict=True))


def jackknives(team: Team) -> list[Pair]:
    """The results of the jackknife over batches, whose samples are in the order of the processes."""
    loss, theta, batches = problem()
    batches, pairs = batches[:4], []
    for options in ({}, {"method": "leave_one_out"}, {"quantity": "trace", "num_probes": 4}):
        both = [jackknife(ht.gauss_newton(loss, theta, b), **options) for b in (team.share(batches), batches)]
        order = torch.tensor(team.order(len(batches)))
        pairs += [(both[0].value, both[1].value), (both[0].stderr, both[1].stderr), (both[0].bias, both[1].bias)]
        pairs.append((both[0].samples, both[1].samples[..., order]))
    return pairs


def refusals(team: Team) -> list[str]:
    """What each process says where the processes do not fit together, or where one of them fails."""
    loss, theta, batches = problem()
    rank = dist.get_rank(team.group)
    H = ht.hessian(loss, theta, team.share(batches))

    def bad_on_one(t: Tensor, x: Tensor) -> Tensor:
        if rank == 1 and torch.is_grad_enabled():
            raise ArithmeticError("out of luck")
        return ((x @ t) ** 4).mean()

    mixed = F.mse_loss if rank else lambda out, y: F.mse_loss(out, y, reduction="sum")
    normalised = torch.nn.BatchNorm1d(batches[0][0].shape[1]).double().eval()
    normalised.running_mean.fill_(rank)  # type: ignore[operator, union-attr]
    frozen = loss.layout.names[0]
    with torch.no_grad():
        dict(loss.model.named_parameters())[frozen].add_(rank)
    targets = [(x, torch.zeros(len(x), 3, dtype=torch.float64)) for x, _ in batches]
    calls = [
        lambda: H @ torch.full((len(theta),), float(rank), dtype=torch.float64),
        lambda: ht.hessian(loss, theta + rank, team.share(batches)),
        lambda: ht.hessian(bad_on_one, theta[:3], data_parallel(batches[0][0], team.group)).to_dense(),
        lambda: ht.hessian(loss, theta, data_parallel([], team.group)),
        lambda: ht.hessian(loss, theta, data_parallel((batches[0][0][:, : 3 - rank], batches[0][1]), team.group)),
        lambda: ht.hessian(problem(mixed)[0], theta, team.share(targets)),
        lambda: ht.gauss_newton_spectrum(loss, theta, team.share(batches)),
        lambda: ht.Recorder(loss.model, F.cross_entropy, team.share(batches)),
        lambda: ht.hessian(loss, theta, team.share(batches), weights=[0.0] * len(team.own(batches))),
        lambda: ht.hessian_of(normalised, F.mse_loss, team.share(targets)),
        lambda: ht.hessian_of(loss.model, F.cross_entropy, team.share(batches), where=lambda name: name != frozen),
    ]
    return [message_of(call) for call in calls]
