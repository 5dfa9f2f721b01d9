"""Evaluates a function of one point at all points of an objective, together by ``vmap`` or one by one."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.torch_errors import explained
from hessian_tools.curvature.objective.objective import Objective, at_points, own_memory
from hessian_tools.loss import Batch
from hessian_tools.torch_fixes import convolutions
from hessian_tools.torch_fixes.precision import full_precision

# How points and vectors are computed: together by vmap, or one by one in a loop.
Batching = Literal["vmap", "loop"]


@full_precision
def evaluate(objective: Objective, function: Callable[..., Any], *rest: Tensor, batching: Batching) -> list[Any]:
    """``function(theta, batch, *rest)`` at every point, for an objective with a single group of points.

    Returns one result for each batch, in which the results of the points are stacked.
    rest: further tensors with a leading point axis.
    """
    return list(_results(objective, function, *rest, batching=batching))


@full_precision
def weighted_sum(
    objective: Objective, function: Callable[..., Tensor], *rest: Tensor, batching: Batching
) -> Float[Tensor, "point ..."]:
    """The weighted sum over the batches of the results of :func:`evaluate`. Each is added as soon as it is there."""
    total: Tensor | None = None
    results = _results(objective, function, *rest, batching=batching)
    for weight, result in zip(objective.weights, results, strict=True):
        term = weight * result.detach()
        total = term if total is None else total + term
    assert total is not None
    return total


def _results(objective: Objective, function: Callable[..., Any], *rest: Tensor, batching: Batching) -> Iterator[Any]:
    """The result for each batch, computed when it is asked for."""
    thetas = own_memory(objective.thetas)
    for batch in objective.batches:
        at_all_points = over_points(function, objective, batch, num_rest=len(rest), batching=batching)
        try:
            result = at_all_points(thetas, batch, *rest)
        except RuntimeError as error:
            raise_explained(error)
        yield result


def raise_explained(error: RuntimeError) -> NoReturn:
    """Raises the error that ``torch_errors`` gives for one of torch's, or torch's own if it is not known there."""
    better = explained(error)
    if better is error:
        raise error
    raise better from error


def over_points(
    function: Callable[..., Any], objective: Objective, batch: Batch, *, num_rest: int, batching: Batching
) -> Callable[..., Any]:
    """Turns a function of one point into one of many points, ``(thetas, batch, *rest)``, which stacks the results.

    objective: the new function will be called at the points of this objective, or at some of them. batch: one of its
    batches; the batches of the calls have the same form. num_rest: the number of tensors in rest.
    """
    shared = objective.shared
    if batching == "vmap":
        dims = None if shared else pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch)
        together = vmap(function, in_dims=(0, dims, *[0] * num_rest))
        # On a CPU convolutions are never replaced by matrix products. This is found out here, for any number of points
        # above one, so that not every product has to find it out.
        if not convolutions.pays(device=objective.thetas.device.type, points=2):
            return together

        def all_together(thetas: Tensor, *batch_and_rest: Any) -> Any:
            with convolutions.at_many_points(len(thetas), thetas.device):
                return together(thetas, *batch_and_rest)

        return all_together

    def one_by_one(thetas: Tensor, batch: Batch, *rest: Tensor) -> Any:
        batches = (batch if shared else at_points(batch, i) for i in range(len(thetas)))
        results = [function(*arguments) for arguments in zip(thetas, batches, *rest, strict=True)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)

    return one_by_one


def over_columns(
    function: Callable[[Tensor], Tensor], columns: Float[Tensor, "_ column"], *, batching: Batching
) -> Tensor:
    """The function applied to each column, with the results as columns. "vmap" computes them together."""
    if batching == "loop":
        return torch.stack([function(v) for v in columns.mT], dim=-1)
    if columns.shape[-1] == 1:
        return function(columns[:, 0])[:, None]
    return vmap(function, in_dims=1)(columns).mT  # out_dims=1 would fail for a constant result
