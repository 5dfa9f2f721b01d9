"""The direct engine: forward over reverse, batched over points and vectors by ``vmap``; nothing is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.engines.evaluate import Batching, over_columns, over_points
from hessian_tools.curvature.engines.memory import MemoryBudget
from hessian_tools.curvature.objective.indexing import at_points, own_memory, slices
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.loss import Batch


@dataclass(frozen=True)
class DirectProducts:
    """Products at the points of one group, computed from the start each time.

    product: ``(theta, batch, v) -> Av`` at one point. at_once: how many products may run together.
    """

    objective: Objective
    product: Callable[[Tensor, Batch, Tensor], Tensor]
    batching: Batching
    at_once: int
    memory: MemoryBudget

    nbytes: ClassVar[int] = 0

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, in as many pieces as the memory needs."""
        objective, at_once = self.objective, max(1, self.at_once >> self.memory.refusals)
        out = torch.empty_like(V, memory_format=torch.contiguous_format)
        # One loop in one function, because every function between H.mv and the loss is a frame more.
        for rows in slices(len(V), max(1, at_once // V.shape[-1])):
            thetas = own_memory(objective.thetas[rows])
            for columns in slices(V.shape[-1], at_once):
                # A single vector is not batched: vmap over one column costs as much as over several.
                one = columns.stop - columns.start == 1
                function, vectors = (
                    (self.product, V[rows, :, columns.start]) if one else (self._block, V[rows, :, columns])
                )
                total: Tensor | int = 0
                for weight, batch in zip(objective.weights, objective.batches, strict=True):
                    here = batch if objective.shared else at_points(batch, rows)
                    multiply = over_points(function, here, 1, shared=objective.shared, batching=self.batching)
                    total = total + weight * multiply(thetas, here, vectors).detach()
                out[rows, :, columns] = total[..., None] if one else total
        return out

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "DirectProducts":
        """The same at some of the points, where the objective is the one given."""
        return replace(self, objective=objective)

    def can_be_halved(self, V: Tensor) -> bool:
        """Whether fewer products than now could run together."""
        return min(self.at_once, V.shape[0] * V.shape[-1]) >> self.memory.refusals > 1

    def _block(self, theta: Tensor, batch: Batch, columns: Tensor) -> Tensor:
        return over_columns(partial(self.product, theta, batch), columns, batching=self.batching)
