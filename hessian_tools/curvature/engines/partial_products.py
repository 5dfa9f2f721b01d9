"""Products computed in parts, where the data of all points or of all batches does not fit in memory together.

A point is a parameter vector, and a probe is a vector that is multiplied by the matrix at a point. A group is the
points whose batches have the same shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.engines.compiled.compiled_products import CompiledProducts
from hessian_tools.curvature.engines.direct import DirectProducts
from hessian_tools.curvature.engines.double_backward import KeptPoints
from hessian_tools.curvature.engines.memory import MemoryBudget
from hessian_tools.curvature.objective.objective import Objective


@dataclass(frozen=True)
class PiecewiseProducts:
    """Products at more points than fit in memory at once, computed for one piece of the points after the other.

    The data that is kept for the products of a piece is freed before the next piece.

    make: builds, from the objective at the points of a piece, the object that computes the products of the piece.
    at_once: the number of points in a piece, which is halved for each time that the device has run out of memory.
    """

    objective: Objective
    make: "Callable[[Objective], Products]"
    at_once: int
    memory: MemoryBudget

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""

        def piece(rows: slice) -> Tensor:
            part = self.objective.select(torch.arange(rows.start, rows.stop, device="cpu"))
            return self.make(part).products(V[rows])

        return torch.cat(self.memory.in_pieces(len(V), piece, at_once=self.at_once))

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> None:
        """None, which makes the caller build the products anew: the selected points may fit in memory together."""
        return

    def can_be_halved(self, V: Tensor) -> bool:
        """Always False: the pieces have been halved already, down to a single point."""
        return False


@dataclass(frozen=True)
class BatchwiseProducts:
    """Products at all points, computed for one batch after the other and added up.

    The batches may be those of a loader, which is read once for each block of vectors. The data that is kept for the
    products of a batch is freed before the next batch.

    make: builds, from the objective of a single batch, the object that computes the products of the batch. at_once: how
    many products that object may run together. The object halves this number for each time that the device has run out
    of memory; here it only serves to tell whether it can be halved once more.
    """

    objective: Objective
    make: "Callable[[Objective], Products]"
    at_once: int
    memory: MemoryBudget

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""
        total = torch.zeros_like(V, memory_format=torch.contiguous_format)
        for weight, objective in self.objective.by_batch():
            total.add_(self.make(objective).products(V), alpha=weight)
        return total

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "BatchwiseProducts":
        """The products at some of the points. objective: the objective at these points."""
        return replace(self, objective=objective)

    def can_be_halved(self, V: Tensor) -> bool:
        """True if more than one product runs at a time, so that fewer could need less memory."""
        together = min(self.at_once, V.shape[0] * V.shape[-1]) >> self.memory.shortages
        return together > 1


# What an engine builds for one group of points. ``products(V)`` computes each point's matrix times its columns.
# ``select(points, objective)`` gives the object for some of the points, or None if it must be built anew for them;
# objective is the objective at these points.
# ``can_be_halved(V)`` is True if less memory would be needed with fewer points or products at once.
Products = DirectProducts | KeptPoints | CompiledProducts | PiecewiseProducts | BatchwiseProducts
