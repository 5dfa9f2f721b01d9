"""A loss at one or many parameter vectors, each with its batch: evaluated in bounded pieces, by the route chosen.

Done directly, the two derivatives everything here is made of, the gradient and the Hessian-vector product,
are taken inside ``vmap``, point by point. The other order, ``jvp(vmap(grad(loss)))``, is silently wrong
by 1.4 % through training-mode ``F.batch_norm`` (torch 2.13), as is ``grad(vmap(loss))``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.choice import Route, worth_keeping, worth_tracing
from hessian_tools.curvature.engines.compiled.compiled_products import PointByPoint, Stacked, Traced
from hessian_tools.curvature.engines.compiled.trace_cache import traced_product
from hessian_tools.curvature.engines.double_backward import KeptGraphs, is_scripted, kept_graphs
from hessian_tools.curvature.engines.memory import (
    FORWARDS_PER_PRODUCT,
    KEPT_FORWARDS,
    MemoryBudget,
    largest_forward,
    products_at_once,
)
from hessian_tools.curvature.engines.torch_errors import NoForwardDerivative, NoOtherWay, advice, instead
from hessian_tools.curvature.objective.indexing import as_slice, at_point, map_tensors, own_memory, slices
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.torch_fixes.precision import full_precision

Batching = Literal["vmap", "loop"]
Weights = Literal["size"] | Sequence[float | int]

# A curvature matrix at one point: what it does to a vector, v -> Av, with all that does not depend on v done before.
LinearMap = Callable[[Any, Tensor, Batch], Callable[[Tensor], Tensor]]
Prepared = Stacked | PointByPoint | KeptGraphs

# Where it stands among the routes taken, the loss has no forward derivative.
REVERSE_ONLY = "reverse only"

# Vectors of every point that are reckoned with when points are taken together: what an eigenvalue run keeps.
VECTORS_OF_A_POINT = 48


def hessian_at(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> Callable[[Tensor], Tensor]:
    """v -> Hv at one point, forward over reverse."""
    return lambda v: jvp(lambda t: grad(loss)(t, batch), (theta,), (v,))[1]


@dataclass(frozen=True)
class Objective:
    """The objective ``sum_i weights[i] * loss(theta, batches[i])`` at every row of ``thetas``."""

    loss: LossFunction
    thetas: Float[Tensor, "point param"]
    batches: tuple[Batch, ...]
    weights: tuple[float, ...]
    shared: bool
    batching: Batching
    most: int | None
    route: Route = "direct"
    room: MemoryBudget = field(default_factory=MemoryBudget)

    def select(self, points: Int[Tensor, " chosen"]) -> "Objective":
        """The same objective at some of the points, in the order given; a view where they follow each other."""
        chosen = as_slice(points, len(self.thetas))
        rows = points.to(self.thetas.device) if chosen is None else chosen
        batches = self.batches if self.shared else tuple(map_tensors(lambda t: t[rows], b) for b in self.batches)
        fewer = replace(self, thetas=self.thetas[rows], batches=batches)
        fewer.__dict__["_routes"] = self._routes  # one for all: what parts have done, the whole reports
        fewer._traced.update(self._traced)
        if "forward" in self.__dict__:
            fewer.__dict__["forward"] = self.forward
        for name, parts in self._prepared.items():
            fewer._prepared[name] = tuple(part.select(points) for part in parts)
        return fewer

    @property
    def taken(self) -> str:
        """How products have been done so far: "direct", "kept" or "traced"."""
        return next(iter(self._routes.values()), "direct")

    @full_precision
    def at_once(self, matrix_at: LinearMap = hessian_at) -> int:
        """How many points results should be asked for together, within ``max_memory``."""
        vectors = VECTORS_OF_A_POINT * self.thetas.shape[1] * self.thetas.element_size()
        most = max(1, self.room.budget(self.thetas.device) // vectors)
        most = most if self.route == "direct" else min(most, self._fitting(self.route, matrix_at))
        return max(1, most >> self.room.refusals)

    @full_precision
    def gradients(self) -> Float[Tensor, "point param"]:
        """The gradient at every point."""

        def piece(rows: slice) -> Tensor:
            return self._weighted(rows, lambda theta, batch: grad(self.loss)(theta, batch))

        try:
            return self._in_pieces(piece, self.chunk)
        except (torch.OutOfMemoryError, NoOtherWay):
            raise
        except RuntimeError as refusal:
            if not self._may_be_kept(refusal):
                raise
            return instead(self._kept_gradients, refusal)

    def _kept_gradients(self) -> Tensor:
        def piece(rows: slice) -> Tensor:
            with advice():
                parts = self.select(torch.arange(rows.start, rows.stop, device="cpu"))._kept()
            terms = [w * torch.stack(part.gradients) for w, part in zip(self.weights, parts, strict=True)]
            return torch.stack(terms).sum(0).detach()

        return self._in_pieces(piece, 1)

    @full_precision
    def products(
        self, V: Float[Tensor, "point param probe"], matrix_at: LinearMap = hessian_at
    ) -> Float[Tensor, "point param probe"]:
        """The matrix (the Hessian) at every point times that point's columns, by the route of these points."""
        if V.numel() == 0:
            return torch.zeros_like(V)
        route = self._routes[matrix_at.__name__] = self._chosen(V, matrix_at)
        try:
            return self._by(route, V, matrix_at)
        except (torch.OutOfMemoryError, NoOtherWay):
            raise
        except RuntimeError as refusal:
            if self.route != "auto" or route == "kept" or matrix_at is not hessian_at or not self._may_be_kept(refusal):
                raise
            found = instead(lambda: self._by("kept", V, matrix_at), refusal)
        self._routes[REVERSE_ONLY] = self._routes[matrix_at.__name__] = "kept"
        return found

    def _may_be_kept(self, refusal: RuntimeError) -> bool:
        # A network has run plainly on the first point, so what torch refuses may be vmap's or forward mode's.
        return isinstance(refusal, NoForwardDerivative) or (isinstance(self.loss, Loss) and self.batching == "vmap")

    def _by(self, route: Route, V: Tensor, matrix_at: LinearMap) -> Tensor:
        if route == "direct":
            return self._in_pieces(lambda rows: self._directly(rows, V[rows], matrix_at), self.chunk, each=V.shape[-1])
        fitting = min(len(V), self._fitting(route, matrix_at))
        if len(V) <= fitting >> self.room.refusals:
            found = self.room.attempt(lambda rows: self._shared(V, matrix_at, route), slice(0, len(V)), most=len(V))
            if found is not None:
                return found
            self._prepared.pop(matrix_at.__name__, None)  # pieces make their own; this would lie beside each of them
        everything = torch.arange(len(V), device="cpu")
        return self._in_pieces(lambda rows: self.select(everything[rows])._shared(V[rows], matrix_at, route), fitting)

    def _in_pieces(self, function: Callable[[slice], Tensor], at_once: int, each: int = 1) -> Tensor:
        at_once = min(at_once, len(self.thetas) * each)
        return torch.cat(self.room.in_pieces(len(self.thetas), function, at_once=at_once, each=each))

    @cached_property
    def forward(self) -> int:
        """Bytes of one forward pass, of the largest batch."""
        return largest_forward(self.loss, self.thetas[0], self._first)

    @property
    def chunk(self) -> int:
        """How many products run at once: what was asked, else what fits in memory."""
        if self.most is not None:
            return self.most
        return products_at_once(self.forward, self.room.budget(self.thetas.device))

    @full_precision
    def each(self, rows: slice, function: Callable[..., Any], *rest: Tensor) -> list[Any]:
        """``function(theta, batch, *rest)`` at some points, stacked: one result for each of the batches."""
        thetas = own_memory(self.thetas[rows])
        pieces = [b if self.shared else map_tensors(lambda t: t[rows], b) for b in self.batches]
        with advice():
            return [self._each(function, thetas, b, *rest) for b in pieces]

    def over_columns(self, function: Callable[[Tensor], Tensor], columns: Float[Tensor, "_ column"]) -> Tensor:
        """The function of each column, as columns: at once or one by one, as the points are taken."""
        if self.batching == "loop":
            return torch.stack([function(v) for v in columns.mT], dim=-1)
        if columns.shape[-1] == 1:
            return function(columns[:, 0])[:, None]
        return vmap(function, in_dims=1)(columns).mT  # not out_dims=1: vmap fails there on a constant product

    @cached_property
    def _scripted(self) -> bool:
        return is_scripted(self.loss)

    @property
    def _first(self) -> list[Batch]:
        return [b if self.shared else at_point(b, 0) for b in self.batches]

    @cached_property
    def _routes(self) -> dict[str, Route]:
        """By matrix: the route last taken."""
        return {}

    @cached_property
    def _traced(self) -> dict[str, tuple[Traced, ...]]:
        """By matrix: its traces, for each batch."""
        return {}

    @cached_property
    def _prepared(self) -> dict[str, tuple[Prepared, ...]]:
        """By matrix: what its products at these points share, for each batch."""
        return {}

    def _chosen(self, V: Tensor, matrix_at: LinearMap) -> Route:
        if matrix_at is hessian_at and self.route != "kept" and self._scripted:
            if self.route != "auto":
                raise ValueError(f"route={self.route!r}: of a scripted network it may be wrong; pass route='kept'")
            return "kept"
        if self.route == "auto":
            return self._automatic(V, matrix_at)
        if self.route == "traced" and (self.batching == "loop" or not self._traces(matrix_at)):
            return "direct"
        return "direct" if self.route == "kept" and matrix_at is not hessian_at else self.route

    def _automatic(self, V: Tensor, matrix_at: LinearMap) -> Route:
        if REVERSE_ONLY in self._routes:
            return "kept"
        if not isinstance(self.loss, Loss) or self.batching == "loop" or self.most is not None:
            return "direct"
        taken = self._routes.get(matrix_at.__name__)
        pays = taken == "traced" or worth_tracing(self.loss, V.shape[0] * V.shape[-1], self.forward)
        if pays and self._traces(matrix_at):
            return "traced"
        kept = matrix_at is hessian_at and worth_keeping(len(V), self.forward, V.device)
        return "kept" if kept else "direct"

    def _traces(self, matrix_at: LinearMap) -> tuple[Traced, ...]:
        """The traces of the matrix for each batch; empty where it cannot be traced."""
        name = matrix_at.__name__
        if name not in self._traced:

            def product(theta: Tensor, batch: Batch, v: Tensor) -> Tensor:
                return matrix_at(self.loss, theta, batch)(v)

            theta = own_memory(self.thetas[0])
            found = [traced_product(product, name, self.loss, theta, batch) for batch in self._first]
            self._traced[name] = tuple(trace for trace in found if trace) if all(found) else ()
        return self._traced[name]

    def _fitting(self, route: Route, matrix_at: LinearMap) -> int:
        """For how many points what their products share may be kept; the device may have refused as many since."""
        if self.most is not None:
            return max(1, self.most * FORWARDS_PER_PRODUCT // (KEPT_FORWARDS * len(self.batches)))
        budget = self.room.budget(self.thetas.device)
        if route == "traced":
            traces = self._traces(matrix_at)
            working = max((trace.working_bytes(self.thetas.device, budget) for trace in traces), default=0)
            return max(1, (budget - working) // max(1, sum(trace.kept_bytes for trace in traces)))
        return max(1, budget // (KEPT_FORWARDS * len(self.batches) * max(1, self.forward)))

    def _shared(self, V: Tensor, matrix_at: LinearMap, route: Route) -> Tensor:
        """Products by what is kept at these points, made now if it is not there."""
        name = matrix_at.__name__
        parts = self._prepared.get(name)
        with advice():
            if parts is None or isinstance(parts[0], KeptGraphs) != (route == "kept"):
                parts = self._prepared[name] = self._made(matrix_at, route)
            terms = [w * part.products(V) for w, part in zip(self.weights, parts, strict=True)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def _made(self, matrix_at: LinearMap, route: Route) -> tuple[Prepared, ...]:
        if route == "kept":
            return self._kept()
        thetas, pairs = self.thetas.contiguous(), zip(self._traces(matrix_at), self.batches, strict=True)
        budget = self.room.budget(thetas.device) >> self.room.refusals
        return tuple(trace.at(thetas, batch, shared=self.shared, budget=budget) for trace, batch in pairs)

    def _kept(self) -> tuple[KeptGraphs, ...]:
        return tuple(kept_graphs(self.loss, self.thetas.contiguous(), b, shared=self.shared) for b in self.batches)

    def _directly(self, rows: slice, V: Tensor, matrix_at: LinearMap) -> Tensor:
        def block(theta: Tensor, batch: Batch, columns: Tensor) -> Tensor:
            return self.over_columns(matrix_at(self.loss, theta, batch), columns)

        most = max(1, self.chunk >> self.room.refusals)
        return torch.cat([self._weighted(rows, block, V[..., c]) for c in slices(V.shape[-1], most)], dim=-1)

    def _weighted(self, rows: slice, function: Callable[..., Tensor], *rest: Tensor) -> Tensor:
        terms = [w * term for w, term in zip(self.weights, self.each(rows, function, *rest), strict=True)]
        return torch.stack(terms).sum(0).detach() if len(terms) > 1 else terms[0].detach()

    def _each(self, function: Callable[..., Any], thetas: Tensor, batch: Batch, *rest: Tensor) -> Any:
        if self.batching == "vmap":
            dims = None if self.shared else map_tensors(lambda _: 0, batch, otherwise=None)
            return vmap(function, in_dims=(0, dims, *(0 for _ in rest)))(thetas, batch, *rest)
        batches = [batch if self.shared else at_point(batch, i) for i in range(len(thetas))]
        results = [function(t, b, *r) for t, b, *r in zip(thetas, batches, *rest, strict=True)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)
