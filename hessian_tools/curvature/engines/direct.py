"""The direct engine: forward over reverse, batched over points and vectors by ``vmap``.

It keeps nothing between products.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.engines.evaluate import Batching, over_columns, over_points
from hessian_tools.curvature.engines.memory import MemoryBudget
from hessian_tools.curvature.objective.matrix import Matrix
from hessian_tools.curvature.objective.objective import Objective, at_points, own_memory, slices
from hessian_tools.loss import Batch


@dataclass(frozen=True)
class DirectProducts:
    """Products at the points of one group, computed from the start each time.

    multiply: for each batch, a function ``(thetas, batch, vectors) -> products`` at many points, with one vector
    [param] at each point. multiply_block: the same with a block of vectors [param, probe] at each point. at_once: how
    many products may run together; this number is halved for each time that the device has run out of memory.
    """

    objective: Objective
    multiply: tuple[Callable[..., Tensor], ...]
    multiply_block: tuple[Callable[..., Tensor], ...]
    at_once: int
    memory: MemoryBudget

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, in pieces of as many products as fit in memory."""
        objective = self.objective
        # Not above the number of products before it is halved, because half of a far larger limit would change nothing.
        at_once = max(1, min(self.at_once, V.shape[0] * V.shape[-1]) >> self.memory.shortages)
        (group,) = objective.groups
        batches = group.batches
        out = torch.empty_like(V, memory_format=torch.contiguous_format)
        blocks = ceil(V.shape[-1] / at_once)  # of columns; ``chunk`` makes them equally long, except for the last
        # All in one function, because each Python call between H.mv and the loss adds to the time of a small product.
        for rows in slices(len(V), max(1, at_once // V.shape[-1])):
            thetas = own_memory(objective.thetas[rows])
            same_batches = objective.shared or len(thetas) == len(V)
            batches_here = batches if same_batches else [at_points(b, rows) for b in batches]
            for columns, products in zip(V[rows].chunk(blocks, -1), out[rows].chunk(blocks, -1), strict=True):
                # A single vector is not batched: vmap over one column costs as much as over several.
                one = columns.shape[-1] == 1
                vectors, functions = (columns[..., 0], self.multiply) if one else (columns, self.multiply_block)
                total = torch.zeros_like(vectors)
                for weight, batch, function in zip(group.weights, batches_here, functions, strict=True):
                    total = total + weight * function(thetas, batch, vectors).detach()
                products.copy_(total[..., None] if one else total)
        return out

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "DirectProducts":
        """The products at some of the points. objective: the objective at these points."""
        return replace(self, objective=objective)

    def can_be_halved(self, V: Tensor) -> bool:
        """True if more than one product runs at a time, so that fewer could need less memory."""
        return min(self.at_once, V.shape[0] * V.shape[-1]) >> self.memory.shortages > 1


def direct_products(
    objective: Objective, matrix: Matrix, batching: Batching, at_once: int, memory: MemoryBudget
) -> DirectProducts:
    """The products of a matrix at the points of one group. at_once: how many may run together."""
    multiply = partial(matrix.product, objective.loss)

    def multiply_block(theta: Tensor, batch: Batch, columns: Tensor) -> Tensor:
        return over_columns(partial(multiply, theta, batch), columns, batching=batching)

    def at_all_points(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], ...]:
        return tuple(over_points(function, objective, b, num_rest=1, batching=batching) for b in objective.batches)

    return DirectProducts(objective, at_all_points(multiply), at_all_points(multiply_block), at_once, memory)
