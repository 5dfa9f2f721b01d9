"""Exact traces, without probes: from the diagonal, or from the network's outputs where they are few."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.gram import num_outputs
from hessian_tools.curvature.eigen.small_eigh import eigh, finite, set_nan, solvable
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.curvature.objective.groups import RaggedObjective
from hessian_tools.curvature.objective.indexing import at_point
from hessian_tools.curvature.objective.objective import Objective, slices
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, factors_at
from hessian_tools.curvature.operators.hessian import Hessian
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import part_by_part
from hessian_tools.loss import Batch, Loss
from hessian_tools.progress import Progress, ProgressCounter

ExactRoute = Literal["diagonal", "outputs"]


def exact_route(H: Operator, max_cost: int | None) -> ExactRoute | None:
    """The cheapest exact route; None if it costs more products or backward passes at a point than ``max_cost``."""
    if isinstance(H, GaussNewton | Hessian) and isinstance(H.points.loss, Loss):
        groups = _groups(H.points)
        outputs = max(num_outputs(H.points.loss, group) for group in groups)
        cheap = outputs < H.num_params and (max_cost is None or outputs <= max_cost)
        if cheap and (isinstance(H, GaussNewton) or all(_has_trace_of_gauss_newton(group) for group in groups)):
            return "outputs"
    return "diagonal" if max_cost is None or H.num_params <= max_cost else None


def exact_trace(
    H: Operator, route: ExactRoute, *, block: int, progress: Progress | None = None
) -> tuple[Float[Tensor, "*point"], Int[Tensor, "*point"]]:
    """The trace by one of the routes of :func:`trace`, and its cost at a point in products or backward passes.

    block: how many unit vectors are multiplied at once.
    """
    if route == "diagonal":
        value = _diagonal_sum(H, block, progress)
        return value, torch.full_like(value, H.num_params, dtype=torch.long)
    assert isinstance(H, GaussNewton | Hessian)
    value, passes = gauss_newton_trace(H.points, progress)
    return (value[0], passes[0]) if H.num_points is None else (value, passes)


def gauss_newton_trace(
    points: Objective | RaggedObjective, progress: Progress | None = None
) -> tuple[Float[Tensor, " point"], Int[Tensor, " point"]]:
    """tr J'BJ = sum_r b_r |J'u_r|^2 with B = sum_r b_r u_r u_r', and the number of backward passes it took.

    It takes one backward pass for each example and output, for any criterion, convex or not. It needs memory for a
    chunk of backward passes, never for J.
    """
    counter = ProgressCounter(
        sum(sum(_outputs_by_batch(group)) * len(group.thetas) for group in _groups(points)), progress
    )
    if isinstance(points, RaggedObjective):
        value, passes = points.each_group(lambda group, _: _group_trace(group, counter))
        return value, passes
    return _group_trace(points, counter)


def _group_trace(points: Objective, counter: ProgressCounter) -> tuple[Tensor, Tensor]:
    """The trace at points whose batches have one shape, and the number of backward passes at each."""
    total, rows = torch.zeros_like(points.thetas[:, 0]), _outputs_by_batch(points)
    for weight, batch, each in zip(points.weights, points.batches, rows, strict=True):
        one = replace(points, batches=(batch,), weights=(1.0,))
        for piece in slices(len(total), max(1, points.chunk // max(1, each))):
            total[piece] += weight * _traces(one, piece)
            counter.add(each * (piece.stop - piece.start))
    return total, torch.full_like(total, sum(rows), dtype=torch.long)


def _outputs_by_batch(points: Objective) -> list[int]:
    batches = [replace(points, batches=(batch,), weights=(1.0,)) for batch in points.batches]
    return [num_outputs(_network(points), one) for one in batches]


def _traces(points: Objective, rows: slice) -> Float[Tensor, " point"]:
    """The traces at some of the points, whose objective has one batch."""
    loss = _network(points)

    def criterion_hessian(theta: Tensor, batch: Batch) -> Tensor:
        count, _, product = factors_at(loss, theta, batch)
        return points.over_columns(product, torch.eye(count, dtype=theta.dtype, device=theta.device))

    def pulled_back_trace(theta: Tensor, batch: Batch, U: Tensor, b: Tensor) -> Tensor:
        pull = factors_at(loss, theta, batch)[1]

        def squared(u: Tensor) -> Tensor:
            return (pull(u) ** 2).sum()[None]

        pieces = [points.over_columns(squared, U[:, columns]) for columns in slices(len(b), points.chunk)]
        return (b * torch.cat(pieces, dim=-1)[0]).sum()

    B = points.each(rows, criterion_hessian)[0].detach()
    B, nonfinite = finite((B + B.mT) / 2)
    b, U = (part.to(B.dtype) for part in eigh(solvable(B)))
    return set_nan(points.each(rows, pulled_back_trace, U, b)[0].detach(), nonfinite)


def _diagonal_sum(H: Operator, block: int, progress: Progress | None) -> Float[Tensor, "*point"]:
    """The sum of the diagonal entries, from products with unit vectors, ``block`` of them at a time."""
    counter = ProgressCounter(H.num_params * len(H.parts()), progress)

    def of_part(part: Operator, points: slice) -> tuple[Tensor]:
        total = torch.zeros(part.shape[:-2], dtype=H.dtype, device=H.device)
        for columns in slices(H.num_params, block):
            rows = torch.arange(columns.start, columns.stop, device=H.device)
            E = torch.zeros(H.num_params, len(rows), dtype=H.dtype, device=H.device)
            E[rows, rows - columns.start] = 1
            total = total + (part @ E)[..., rows, rows - columns.start].sum(-1)
            counter.add(len(rows))
        return (total,)

    return part_by_part(H, of_part)[0]


def _has_trace_of_gauss_newton(points: Objective) -> bool:
    """Whether the Hessian certainly has the trace of its Gauss-Newton part, on every batch."""
    batches = [b if points.shared else at_point(b, 0) for b in points.batches]
    return all(is_multiaffine(_network(points), points.thetas[0], batch) for batch in batches)


def _groups(points: Objective | RaggedObjective) -> tuple[Objective, ...]:
    return points.groups if isinstance(points, RaggedObjective) else (points,)


def _network(points: Objective) -> Loss:
    assert isinstance(points.loss, Loss)
    return points.loss
