"""Traces without probes: by the diagonal, or by the network's outputs where they are few."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.eigen.gram import num_outputs
from hessian_tools.curvature.eigen.small_eigh import eigh, finite, set_nan, solvable
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.curvature.objective.groups import RaggedObjective
from hessian_tools.curvature.objective.objective import Objective, slices
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, factors_at
from hessian_tools.curvature.operators.hessian import Hessian
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import part_by_part
from hessian_tools.curvature.progress import Count, Progress, silent
from hessian_tools.loss import Batch, Loss

ExactRoute = Literal["diagonal", "outputs"]


def exact_route(H: Operator, most: int | None) -> tuple[ExactRoute, int] | None:
    """The cheapest exact route and its cost at a point, in products or backward passes; None if above ``most``."""
    routes: list[tuple[ExactRoute, int]] = [("diagonal", H.num_params)]
    if isinstance(H, GaussNewton | Hessian) and isinstance(H.points.loss, Loss):
        outputs = max(num_outputs(group) for group in _groups(H.points))
        worth = outputs < H.num_params and (most is None or outputs <= most)
        if worth and (isinstance(H, GaussNewton) or all(_is_like_gauss_newton(group) for group in _groups(H.points))):
            routes.append(("outputs", outputs))
    route = min(routes, key=lambda r: r[1])
    return None if most is not None and route[1] > most else route


def exact_trace(
    H: Operator, route: ExactRoute, *, block: int, progress: Progress = silent
) -> tuple[Float[Tensor, "*point"], Int[Tensor, "*point"]]:
    """The trace by one of the routes, see :func:`trace`, and what it cost at a point, in products or passes."""
    if route == "diagonal":
        value = _diagonal_sum(H, block, progress)
        return value, torch.full_like(value, H.num_params, dtype=torch.long)
    assert isinstance(H, GaussNewton | Hessian)
    value, passes = gauss_newton_trace(H.points, progress)
    return (value[0], passes[0]) if H.num_points is None else (value, passes)


def gauss_newton_trace(
    points: Objective | RaggedObjective, progress: Progress = silent
) -> tuple[Float[Tensor, " point"], Int[Tensor, " point"]]:
    """tr J'BJ = sum_r b_r |J'u_r|^2 with B = sum_r b_r u_r u_r': one backward pass for each example and output.

    For any criterion, convex or not; memory for a chunk of backward passes, never for J. Also how many passes.
    """
    count = Count(sum(sum(_outputs_by_batch(group)) * len(group.thetas) for group in _groups(points)), progress)
    if isinstance(points, RaggedObjective):
        value, passes = points.each_group(lambda group, _: _group_trace(group, count))
        return value, passes
    return _group_trace(points, count)


def _group_trace(points: Objective, count: Count) -> tuple[Tensor, Tensor]:
    """At points whose batches have one shape."""
    total, rows = torch.zeros_like(points.thetas[:, 0]), _outputs_by_batch(points)
    for weight, batch, each in zip(points.weights, points.batches, rows, strict=True):
        one = replace(points, batches=(batch,), weights=(1.0,))
        for piece in slices(len(total), max(1, points.chunk // max(1, each))):
            total[piece] += weight * _traces(one, piece)
            count.add(each * (piece.stop - piece.start))
    return total, torch.full_like(total, sum(rows), dtype=torch.long)


def _outputs_by_batch(points: Objective) -> list[int]:
    batches = [replace(points, batches=(batch,), weights=(1.0,)) for batch in points.batches]
    return [num_outputs(one) for one in batches]


def _traces(points: Objective, rows: slice) -> Float[Tensor, " point"]:
    """At some points of one batch."""
    loss = _network(points)

    def curve(theta: Tensor, batch: Batch) -> Tensor:
        count, _, product = factors_at(loss, theta, batch)
        return points.over_columns(product, torch.eye(count, dtype=theta.dtype, device=theta.device))

    def quadratic(theta: Tensor, batch: Batch, U: Tensor, b: Tensor) -> Tensor:
        pull = factors_at(loss, theta, batch)[1]

        def squared(u: Tensor) -> Tensor:
            return (pull(u) ** 2).sum()[None]

        pieces = [points.over_columns(squared, U[:, columns]) for columns in slices(len(b), points.chunk)]
        return (b * torch.cat(pieces, dim=-1)[0]).sum()

    B = points.each(rows, curve)[0].detach()
    B, bad = finite((B + B.mT) / 2)
    b, U = (part.to(B.dtype) for part in eigh(solvable(B)))
    return set_nan(points.each(rows, quadratic, U, b)[0].detach(), bad)


def _diagonal_sum(H: Operator, block: int, progress: Progress) -> Float[Tensor, "*point"]:
    """Every diagonal entry, from products with unit vectors, some at a time."""
    count = Count(H.num_params * len(H.parts()), progress)

    def of_part(part: Operator, points: slice) -> tuple[Tensor]:
        total = torch.zeros(part.shape[:-2], dtype=H.dtype, device=H.device)
        for columns in slices(H.num_params, block):
            rows = torch.arange(columns.start, columns.stop, device=H.device)
            E = torch.zeros(H.num_params, len(rows), dtype=H.dtype, device=H.device)
            E[rows, rows - columns.start] = 1
            total = total + (part @ E)[..., rows, rows - columns.start].sum(-1)
            count.add(len(rows))
        return (total,)

    return part_by_part(H, of_part)[0]


def _is_like_gauss_newton(points: Objective) -> bool:
    """Whether the Hessian has the trace of its Gauss-Newton part, on every batch."""
    batches = [b if points.shared else _first(b) for b in points.batches]
    return all(is_multiaffine(_network(points), points.thetas[0], batch) for batch in batches)


def _groups(points: Objective | RaggedObjective) -> tuple[Objective, ...]:
    return points.groups if isinstance(points, RaggedObjective) else (points,)


def _first(batch: Batch) -> Batch:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[0], batch)


def _network(points: Objective) -> Loss:
    assert isinstance(points.loss, Loss)
    return points.loss
