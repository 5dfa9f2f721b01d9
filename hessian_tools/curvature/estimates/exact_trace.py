"""Exact traces without probes, from the diagonal or, if the network has few outputs, from backward passes.

The route "diagonal" sums all diagonal entries. The route "outputs" takes one backward pass for each example and output,
and gives the trace of a Gauss-Newton matrix J'BJ. In this file J is the Jacobian of the network's outputs, and B the
Hessian of the criterion in the outputs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.gram import has_output_passes, num_outputs
from hessian_tools.curvature.eigen.small_eigh import eigh, finite, set_nan, solvable
from hessian_tools.curvature.engines.engine import Engine
from hessian_tools.curvature.engines.evaluate import evaluate, over_columns
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.curvature.objective.objective import Objective, slices
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, factors_at
from hessian_tools.curvature.operators.hessian import Hessian
from hessian_tools.curvature.operators.operator import Operator, part_by_part
from hessian_tools.loss import Batch
from hessian_tools.processes import Ranks
from hessian_tools.progress import Progress, ProgressCounter

ExactRoute = Literal["diagonal", "outputs"]


def exact_route(H: Operator, max_cost: int | None) -> ExactRoute | None:
    """The cheapest exact route; None if it costs more than ``max_cost`` products or backward passes at a point.

    max_cost: None for no limit.
    """
    if isinstance(H, GaussNewton | Hessian) and (outputs := _outputs_in_all(H)) is not None:
        cheap = outputs < H.num_params and (max_cost is None or outputs <= max_cost)
        # For a Hessian the route is right only if its trace is that of its Gauss-Newton part.
        if cheap and (
            isinstance(H, GaussNewton) or all(_on_each_process(H.objective.ranks, lambda: _is_multiaffine(H)))
        ):
            return "outputs"
    return "diagonal" if max_cost is None or H.num_params <= max_cost else None


def exact_trace(
    H: Operator, route: ExactRoute, *, block: int, progress: Progress | None = None
) -> tuple[Float[Tensor, "*point"], Int[Tensor, "*point"]]:
    """The trace by one of the routes of :func:`trace`, and its cost at a point in products or backward passes.

    By the route "outputs" it is tr J'BJ = sum_r b_r |J'u_r|^2 with the eigenpairs (b_r, u_r) of B, for any criterion,
    convex or not. This route needs memory for the backward passes that run at once, but never holds J.
    block: how many unit vectors are multiplied at once by the route "diagonal".
    """
    if route == "diagonal":
        value = _diagonal_sum(H, block, progress)
        return value, torch.full_like(value, H.num_params, dtype=torch.long)
    assert isinstance(H, GaussNewton | Hessian)
    groups = H.objective.by_group()  # the objectives of the groups of points whose batches have one shape
    counter = ProgressCounter(sum(sum(num_outputs(group)) * len(group.thetas) for group in groups), progress)

    def own() -> Tensor:
        """The traces over the batches of this process, and the numbers of backward passes: [2, point]."""
        if not any(any(group.weights) for group in groups):  # this process has no data
            return torch.zeros(2, len(H.objective.thetas), dtype=torch.float64, device=H.device)
        # First the traces of all groups, and then their numbers of backward passes.
        columns = zip(*(_group_trace(group, H.engine, counter) for group in groups), strict=True)
        return torch.stack([H.objective.join(column).double() for column in columns])

    both = H.objective.summed(own)  # over the processes
    value, passes = both[0].to(H.dtype), both[1].long()
    return (value[0], passes[0]) if H.num_points is None else (value, passes)


def _group_trace(objective: Objective, engine: Engine, counter: ProgressCounter) -> tuple[Tensor, Tensor]:
    """The trace at points whose batches have one shape, and the number of backward passes at each."""
    total, outputs = torch.zeros_like(objective.thetas[:, 0]), num_outputs(objective)
    at_once = engine.products_at_once(objective)
    for (weight, single_batch), passes in zip(objective.by_batch(), outputs, strict=True):
        # All backward passes of a point run together, so that fewer points fit in memory at once.
        for rows in torch.arange(len(total), device="cpu").split(max(1, at_once // max(1, passes))):
            total[rows] += weight * _traces(single_batch.select(rows), engine, at_once)
            counter.add(passes * len(rows))
    return total, torch.full_like(total, sum(outputs), dtype=torch.long)


def _traces(objective: Objective, engine: Engine, at_once: int) -> Float[Tensor, " point"]:
    """The traces of an objective with one batch; at_once: how many backward passes may run together."""
    loss, batching = objective.network, engine.batching

    def criterion_hessian(theta: Tensor, batch: Batch) -> Tensor:
        count, _, product = factors_at(loss, theta, batch)  # product: u -> B u
        return over_columns(product, torch.eye(count, dtype=theta.dtype, device=theta.device), batching=batching)

    def pulled_back_trace(theta: Tensor, batch: Batch, U: Tensor, b: Tensor) -> Tensor:
        pull = factors_at(loss, theta, batch)[1]  # u -> J'u

        def squared(u: Tensor) -> Tensor:
            return (pull(u) ** 2).sum()[None]  # a vector of one entry, because over_columns takes vectors

        pieces = [over_columns(squared, U[:, columns], batching=batching) for columns in slices(len(b), at_once)]
        return (b * torch.cat(pieces, dim=-1)[0]).sum()

    B = evaluate(objective, criterion_hessian, batching=batching)[0].detach()  # [0]: of the only batch
    # LAPACK refuses NaN, so B is zero at points that are not finite; their traces become NaN at the end.
    B, nonfinite = finite((B + B.mT) / 2)
    b, U = (part.to(B.dtype) for part in eigh(solvable(B)))
    return set_nan(evaluate(objective, pulled_back_trace, U, b, batching=batching)[0].detach(), nonfinite)


def _diagonal_sum(H: Operator, block: int, progress: Progress | None) -> Float[Tensor, "*point"]:
    """The sum of the diagonal entries, from products with unit vectors, ``block`` of them at a time."""
    H.announce(H.num_params)
    counter = ProgressCounter(H.num_params * len(H.parts()), progress)

    def part_trace(part: Operator, points: slice) -> tuple[Tensor]:
        """The traces at the points of one part of H, which is H at as many points as fit in memory together."""
        total = torch.zeros(part.shape[:-2], dtype=H.dtype, device=H.device)
        for columns in slices(H.num_params, block):
            rows = torch.arange(columns.start, columns.stop, device=H.device)
            E = torch.zeros(H.num_params, len(rows), dtype=H.dtype, device=H.device)
            E[rows, rows - columns.start] = 1
            total = total + (part @ E)[..., rows, rows - columns.start].sum(-1)
            counter.add(len(rows))
        return (total,)

    return part_by_part(H, part_trace)[0]


def _outputs_in_all(H: GaussNewton | Hessian) -> int | None:
    """How many numbers the network outputs at one point, over all processes; None if H has no route "outputs"."""

    def own() -> int:
        """The number of outputs on the batches of this process."""
        if not has_output_passes(H):
            return -1  # in place of None, because the processes exchange numbers
        weighted = [group for group in H.objective.by_group() if any(group.weights)]
        return max((sum(num_outputs(group)) for group in weighted), default=0)

    numbers = _on_each_process(H.objective.ranks, own)
    return None if min(numbers) < 0 else int(sum(numbers))


def _on_each_process(ranks: Ranks | None, function: Callable[[], float]) -> list[float]:
    """The number that the function gives on each process that shares the data; ranks: None if there is only this one.

    If it fails on one process, all processes raise an error, and none waits for the number of another.
    """
    if ranks is None:
        return [function()]
    return [row[0] for row in ranks.numbers([ranks.with_shared_errors(function)])]


def _is_multiaffine(H: GaussNewton | Hessian) -> bool:
    """True if it is certain that the Hessian has the same trace as its Gauss-Newton part, at all points and batches.

    The batches of a group's points have one shape, so the network runs the same operations at all of them, and one
    point stands for the group.
    """
    return all(
        is_multiaffine(group.network, group.thetas[0], batch)
        for group in H.objective.by_group()
        for batch in group.batches_at(0)
    )
