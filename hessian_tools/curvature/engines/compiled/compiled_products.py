"""The compiled engine: products of a trace, whose part without the vector is computed once a point and kept.

Small networks are taken many points at a time, stacked. Large ones are taken point by point, because for them a batch
of points gains nothing and its intermediate results leave the caches.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, log2

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.batched_graph import BatchedGraph, batched_graph
from hessian_tools.curvature.engines.compiled.memory_plan import Buffer
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.loss import Batch

# Bytes of the largest intermediate result up to which points, and probes of one point, are taken together. On the
# CPU what leaves the caches costs more than fewer, larger operations save (Conv4 of width 64 on 28x28, one result of
# 1 MB: 8.7 ms a product one by one, 7.8 four points at a time, 10.7 sixteen; MLP 1-40-40-1: 0.15, 0.018, 0.009).
POINTS_TOGETHER = {"cpu": 2**22, "cuda": 2**28}
PROBES_TOGETHER = {"cpu": 2**20, "cuda": 2**28}
MAX_PROBES_TOGETHER = 16
# How many batched graphs of one trace are kept, by numbers of points and probes.
MAX_GRAPHS = 64

# Memory lent to batched graphs, by the number of the buffer and its form.
Workspace = dict[tuple[int, Buffer], Tensor]


@dataclass(frozen=True)
class Traced:
    """A traced product in two halves: point(theta, *batch tensors) -> kept, and vector(v, *kept) -> product.

    All bytes are for one point and one vector. kept_bytes: of what is kept. work_bytes and point_bytes: of what is
    alive at the worst moment of the second and of the first half. largest: of the largest tensor in the second half.
    """

    point: Callable[..., tuple[Tensor, ...]]
    vector: Callable[..., Tensor]
    kept_bytes: int = 0
    work_bytes: int = 0
    point_bytes: int = 0
    largest: int = 0
    _graphs: "OrderedDict[tuple[int, int], BatchedGraph | None]" = field(default_factory=OrderedDict)

    @torch.no_grad()
    def at(
        self, thetas: Float[Tensor, "point param"], batch: Batch, *, shared: bool, budget: int | None = None
    ) -> "Stacked | PointByPoint":
        """Does the first half at every point. budget: bytes for what is kept and for the work; None for any number."""
        together = min(len(thetas), self._fitting(POINTS_TOGETHER, thetas.device, budget))
        probes = self.probes_together(thetas.device, budget)
        if together > 1:
            try:
                kept = self._first_halves(thetas, batch, shared, together)
                if self.graph(thetas[:together, :, None], tuple(t[:together] for t in kept)) is not None:
                    return Stacked(self, kept, together, torch.arange(len(thetas), device=thetas.device), probes)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # vmap refuses an operation; one by one it can be done
                pass
        leaves = tensors_of(batch)
        points = [self.point(t, *(leaf if shared else leaf[i] for leaf in leaves)) for i, t in enumerate(thetas)]
        return PointByPoint(self, tuple(points), probes)

    def probes_together(self, device: torch.device, budget: int | None) -> int:
        """How many columns go together, counted over all points that do."""
        return min(MAX_PROBES_TOGETHER, self._fitting(PROBES_TOGETHER, device, budget))

    def graph(self, V: Tensor, kept: tuple[Tensor, ...]) -> BatchedGraph | None:
        """The second half for V [point, param, probe] of these sizes; an axis of length one is left out.

        kept: of these points. None where vmap refuses an operation.
        """
        size = V.shape[0], V.shape[-1]
        if size not in self._graphs:
            self._graphs[size] = self._batched(_without_ones(V), kept, *size)
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def working_bytes(self, device: torch.device, budget: int | None) -> int:
        """The bytes of what is not kept, in either half, for as many points as go together."""
        return self._fitting(POINTS_TOGETHER, device, budget) * max(self.work_bytes, self.point_bytes)

    @torch.no_grad()
    def multiply(
        self, V: Float[Tensor, "point param probe"], kept: tuple[Tensor, ...], workspace: Workspace
    ) -> Float[Tensor, "point param probe"]:
        """The products of one block of points and vectors, of a size that there is a graph for."""
        graph = self.graph(V, kept)
        if graph is None:
            return torch.cat([self.multiply(v, kept, workspace) for v in V.split(1, dim=-1)], dim=-1)
        buffers = []
        for place in enumerate(graph.buffers):
            if place not in workspace:
                workspace[place] = place[1].empty()
            buffers.append(workspace[place])
        return graph.run(_without_ones(V), *kept, *buffers).reshape(V.shape)

    def _batched(self, V: Tensor, kept: tuple[Tensor, ...], points: int, probes: int) -> BatchedGraph | None:
        try:
            return batched_graph(self.vector, V, kept, points=points > 1, probes=probes > 1)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # vmap refuses an operation; one by one it can be done
            if points == probes == 1:
                raise
            return None

    def _first_halves(
        self, thetas: Tensor, batch: Batch, shared: bool, together: int
    ) -> tuple[Shaped[Tensor, "point ..."], ...]:  # masks and the positions of pooled maxima are kept, too
        """What is kept of all points, each tensor stacked over them."""
        leaves = tensors_of(batch)
        first_half = vmap(self.point, in_dims=(0, *(None if shared else 0 for _ in leaves)))
        pieces = []
        for start in range(0, len(thetas), together):
            rows = slice(start, start + together)
            pieces.append(list(first_half(thetas[rows], *(leaf if shared else leaf[rows] for leaf in leaves))))
        # Each tensor is let go of once it has been joined, so that not all of them are there twice.
        return tuple(torch.cat([piece.pop(0) for piece in pieces]) for _ in range(len(pieces[0])))

    def _fitting(self, limits: dict[str, int], device: torch.device, budget: int | None) -> int:
        """How many points or probes go together, by the bytes of the largest result and by the budget."""
        together = limits.get(device.type, limits["cpu"]) // max(1, self.largest)
        if budget is not None:
            # The work takes no more than half of the budget, or nothing could be kept beside it.
            together = min(together, budget // (2 * max(1, self.work_bytes, self.point_bytes)))
        return max(1, together)


@dataclass(frozen=True)
class CompiledProducts:
    """Products by traces: those of each batch of one objective, and the weights of the batches."""

    weights: tuple[float, ...]
    parts: "tuple[Stacked | PointByPoint, ...]"

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns."""
        product = self.weights[0] * self.parts[0].products(V)
        for weight, part in zip(self.weights[1:], self.parts[1:], strict=True):
            product = product + weight * part.products(V)
        return product

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "CompiledProducts":
        """The same at some of the points."""
        return CompiledProducts(self.weights, tuple(part.select(points) for part in self.parts))

    def can_be_halved(self, V: Tensor) -> bool:
        """Whether fewer points than now could be kept together."""
        return len(V) > 1


@dataclass(frozen=True)
class PointByPoint:
    """What the first half left at each point, a tuple of tensors for each, and products point by point.

    probes: how many columns are multiplied at once.
    """

    traced: Traced
    kept: tuple[tuple[Tensor, ...], ...]
    probes: int = 1
    workspace: Workspace = field(default_factory=dict)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns."""
        probes = min(V.shape[-1], self.probes)
        out = torch.empty_like(V, memory_format=torch.contiguous_format)
        for point, kept in enumerate(self.kept):
            for columns in _blocks(V.shape[-1], probes):
                block = V[point : point + 1, :, columns]
                out[point : point + 1, :, columns] = self.traced.multiply(block, kept, self.workspace)
        return out

    def select(self, points: Int[Tensor, " chosen"]) -> "PointByPoint":
        """The same at some of the points."""
        return replace(self, kept=tuple(self.kept[i] for i in points.tolist()))


@dataclass(frozen=True)
class Stacked:
    """What the first half left, each tensor with a leading point axis, and products of many points together.

    together: how many points are multiplied at once. rows: which of the points in the tensors are still wanted. probes:
    how many columns are multiplied at once, counted over these points.
    """

    traced: Traced
    tensors: tuple[Tensor, ...]
    together: int
    rows: Int[Tensor, " point"]
    probes: int = 1
    workspace: Workspace = field(default_factory=dict)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns; columns go together only where points are few."""
        size = len(self.tensors[0])
        all_wanted = len(self.rows) == size
        if not all_wanted:  # the vectors of the others are zero: another size would cost another graph
            V = V.new_zeros(size, *V.shape[1:]).index_copy_(0, self.rows, V)
        probes = max(1, min(V.shape[-1], self.probes // self.together))
        if V.shape[::2] == (self.together, probes):  # one block, of which nothing needs to be copied
            kept = self.tensors if size > 1 else tuple(t[0] for t in self.tensors)
            product = self.traced.multiply(V, kept, self.workspace)
        else:
            product = torch.empty_like(V, memory_format=torch.contiguous_format)
            for rows in _blocks(size, self.together):
                kept = tuple(t[rows] if self.together > 1 else t[rows.start] for t in self.tensors)
                for columns in _blocks(V.shape[-1], probes):
                    product[rows, :, columns] = self.traced.multiply(V[rows, :, columns], kept, self.workspace)
        return product if all_wanted else product[self.rows]

    def select(self, points: Int[Tensor, " chosen"]) -> "Stacked":
        """The same at some of the points; what the others need is let go of once they are half of all.

        Points leave one by one, and copying all that is kept each time would cost as much as the products saved.
        """
        rows = self.rows[points.to(self.rows.device)]
        # Only in their first order and once each can points stay where they are.
        if 2 * len(rows) > len(self.tensors[0]) and bool((rows[1:] > rows[:-1]).all()):
            return replace(self, rows=rows)
        filled = torch.cat([rows, rows[-1:].expand(_round_size(len(rows)) - len(rows))])
        tensors = tuple(t[filled] for t in self.tensors)
        rows = torch.arange(len(rows), device=rows.device)
        return Stacked(self.traced, tensors, min(self.together, len(filled)), rows, self.probes)


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in the order in which a trace takes them."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _without_ones(V: Tensor) -> Tensor:
    V = V[0] if V.shape[0] == 1 else V
    return (V[..., 0] if V.shape[-1] == 1 else V).contiguous()


def _blocks(total: int, size: int) -> list[slice]:
    """Pieces of exactly one size, the last overlapping the one before: every other size would cost another graph."""
    return [slice(min(start, total - size), min(start, total - size) + size) for start in range(0, total, size)]


def _round_size(count: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20, ...: few sizes, at most a quarter more."""
    step = 2 ** max(0, ceil(log2(count)) - 3)
    return ceil(count / step) * step
