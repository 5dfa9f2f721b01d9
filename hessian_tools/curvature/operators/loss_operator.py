"""The base class of the curvature matrices of a loss, which has one matrix for each point of an objective."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.engines.choice import ENGINES
from hessian_tools.curvature.engines.engine import Engine, JoinedProducts, PreparedProducts
from hessian_tools.curvature.objective.objective import Objective, checked_points
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.failures import says_enough, why_loss_fails
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Loss
from hessian_tools.processes import Ranks
from hessian_tools.torch_fixes.precision import full_precision

# What ``.route`` says for each engine; these words are older than the engines' names.
ROUTES = {"direct": "direct", "double_backward": "kept", "compiled": "traced"}


@dataclass(frozen=True, repr=False)
class LossOperator(Operator):
    """A curvature matrix of a loss; a subclass says which one.

    prepared: computes the products, and holds the data that is kept between products. single: True if thetas was one
    point without a point axis; False if it was [point, param].
    """

    prepared: PreparedProducts | JoinedProducts
    single: bool

    @property
    def objective(self) -> Objective:
        """The loss, the points and their batches."""
        return self.prepared.objective

    @property
    def engine(self) -> Engine:
        """The options by which the products are computed."""
        return self.prepared.engine

    @property
    def route(self) -> str:
        """The engine of the last product: "direct", "kept" or "traced".

        Groups of ragged batches may have different engines, which are then joined by a slash: "kept/direct".
        """
        return "/".join(ROUTES[name] for name in self.prepared.engines) or "direct"

    @property
    def num_params(self) -> int:
        """The length of theta."""
        return self.prepared.objective.thetas.shape[-1]

    @property
    def num_points(self) -> int | None:
        """The number of points; None for a single point without a point axis."""
        return None if self.single else len(self.prepared.objective.thetas)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of theta."""
        return self.prepared.objective.thetas.dtype

    @property
    def device(self) -> torch.device:
        """The device of theta."""
        return self.prepared.objective.thetas.device

    @property
    def layout(self) -> ParamLayout | None:
        """The names of theta's entries; None for a loss that is a plain function."""
        loss = self.objective.loss
        return loss.layout if isinstance(loss, Loss) else None

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share the data."""
        return self.objective.ranks

    @property
    def at_once(self) -> int:
        """The number of points for which results should be requested together, so that they fit into ``max_memory``."""
        return self.prepared.points_at_once()

    @full_precision
    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, exact to rounding; summed over the processes that share the data."""
        ranks = self.prepared.objective.ranks
        if ranks is not None:
            return ranks.product(lambda: self._own_products(V), V)
        try:  # not by _own_products, because one more Python call shows in the time of a tiny network's product
            return self.prepared.products(V)
        except Exception as error:
            self._explain(error)
            raise

    def _own_products(self, V: Tensor) -> Tensor:
        """The products with the part of the matrix that comes from the batches of this process."""
        if not any(any(group.weights) for group in self.objective.groups):  # this process has no batches
            return torch.zeros_like(V, memory_format=torch.contiguous_format)
        try:
            return self.prepared.products(V)
        except Exception as error:
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """Raises ValueError with the reason if the loss fails on its first batch and the error does not say why."""
        if not says_enough(error):
            part = self.objective.by_group()[0]
            why = why_loss_fails(part.loss, part.thetas, part.batches_at(0)[0], name="batch", own_batch=False)
            if why is not None:
                raise ValueError(why) from error

    def announce(self, num_products: int) -> None:
        """Announces that so many products of each point will follow; the engine is chosen for this number."""
        self.prepared.announce(num_products)

    def select(self, points: Int[Tensor, " chosen"]) -> "LossOperator":
        """The operator at some of its points."""
        if self.single:
            super().select(points)  # raises
        return replace(self, prepared=self.prepared.select(checked_points(points, len(self.objective.thetas))))

    def _details(self) -> list[str]:
        """The engine that was asked for and those that were taken, for ``repr``."""
        asked = ENGINES.get(self.engine.route, self.engine.route)
        inductor = ["by Inductor"] if self.engine.compile else []
        return ["engine " + " -> ".join(dict.fromkeys([asked, *self.prepared.engines])), *inductor]
