"""What products at some points share, by a trace: done once for each point, kept, and used for every vector.

Small networks are taken many points at a time, stacked; large ones point by point, for there a
batch of points gains nothing and its intermediate results leave the caches.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, log2

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.batched_graph import Program, flat_program
from hessian_tools.curvature.engines.compiled.memory_plan import Buffer
from hessian_tools.loss import Batch

# Bytes of the largest intermediate result up to which points, and probes of one point, are taken together. On the
# CPU what leaves the caches costs more than fewer, larger operations save (Conv4 of width 64 on 28x28, one result of
# 1 MB: 8.7 ms a product one by one, 7.8 four points at a time, 10.7 sixteen; MLP 1-40-40-1: 0.15, 0.018, 0.009).
POINTS_TOGETHER = {"cpu": 2**22, "cuda": 2**28}
PROBES_TOGETHER = {"cpu": 2**20, "cuda": 2**28}
MOST_PROBES = 16
MOST_PROGRAMS = 64

Workspace = dict[tuple[int, Buffer], Tensor]


@dataclass(frozen=True)
class Traced:
    """The two halves of a product: point(theta, *batch tensors) -> kept; vector(v, *kept) -> product.

    Bytes, each for one point and one vector: kept_bytes of what is kept; work_bytes alive at the worst moment of the
    second half, point_bytes of the first; largest: of the largest tensor of the second half.
    """

    point: Callable[..., tuple[Tensor, ...]]
    vector: Callable[..., Tensor]
    kept_bytes: int = 0
    work_bytes: int = 0
    point_bytes: int = 0
    largest: int = 0
    _programs: "OrderedDict[tuple[int, int], Program | None]" = field(default_factory=OrderedDict)

    @torch.no_grad()
    def at(
        self, thetas: Float[Tensor, "point param"], batch: Batch, *, shared: bool, budget: int | None = None
    ) -> "Stacked | PointByPoint":
        """The first half done at every point. budget: bytes for what is kept and what is at work; None: any number."""
        together = min(len(thetas), self._fitting(POINTS_TOGETHER, thetas.device, budget))
        if together > 1:
            try:
                tensors = _stacked(self, thetas, batch, shared, together)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that vmap refuses: one by one it can be done
                together = 1
            else:
                rows = torch.arange(len(thetas), device=thetas.device)
                stacked = Stacked(self, tensors, together, rows, budget)
                if self.program(thetas[:together, :, None], stacked.of(slice(0, together))) is not None:
                    return stacked
        batches = (_leaves(batch, None if shared else i) for i in range(len(thetas)))
        kept = tuple(self.point(t, *leaves) for t, leaves in zip(thetas, batches, strict=True))
        return PointByPoint(self, kept, budget)

    def probes_together(self, points: int, probes: int, device: torch.device, budget: int | None) -> int:
        """How many columns of each point go together."""
        return max(1, min(probes, min(MOST_PROBES, self._fitting(PROBES_TOGETHER, device, budget)) // points))

    def program(self, V: Tensor, kept: tuple[Tensor, ...]) -> Program | None:
        """For V [point, param, probe] and kept of these sizes; a size of one has no axis. None where vmap refuses."""
        size = V.shape[0], V.shape[-1]
        if size not in self._programs:
            self._programs[size] = self._written(_without_ones(V), kept, *size)
            while len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(size)
        return self._programs[size]

    def _written(self, V: Tensor, kept: tuple[Tensor, ...], points: int, probes: int) -> Program | None:
        try:
            return flat_program(self.vector, V, kept, points=points > 1, probes=probes > 1)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # an operation that cannot be batched: one by one it can
            if points == probes == 1:
                raise
            return None

    @torch.no_grad()
    def run(self, V: Tensor, kept: tuple[Tensor, ...], workspace: Workspace) -> Tensor:
        """Products of one block, V [point, param, probe], of a size there is a program for."""
        program = self.program(V, kept)
        if program is None:
            return torch.cat([self.run(v, kept, workspace) for v in V.split(1, dim=-1)], dim=-1)
        for place in enumerate(program.buffers):
            if place not in workspace:
                workspace[place] = place[1].empty()
        buffers = [workspace[place] for place in enumerate(program.buffers)]
        return program.run(_without_ones(V), *kept, *buffers).reshape(V.shape)

    def working_bytes(self, device: torch.device, budget: int | None) -> int:
        """Bytes of what is not kept, of either half, for as many points as go together."""
        return self._fitting(POINTS_TOGETHER, device, budget) * max(self.work_bytes, self.point_bytes)

    def _fitting(self, limits: dict[str, int], device: torch.device, budget: int | None) -> int:
        """How many together: what is at work takes no more than half the budget, or nothing could be kept beside it."""
        most = limits.get(device.type, limits["cpu"]) // max(1, self.largest)
        if budget is not None:
            most = min(most, budget // (2 * max(1, self.work_bytes, self.point_bytes)))
        return max(1, most)


@dataclass(frozen=True)
class PointByPoint:
    """kept: a tuple of tensors for each point."""

    traced: Traced
    kept: tuple[tuple[Tensor, ...], ...]
    budget: int | None = None
    workspace: Workspace = field(default_factory=dict)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns."""
        together = self.traced.probes_together(1, V.shape[-1], V.device, self.budget)
        return _blockwise(V, 1, together, lambda v, rows: self.traced.run(v, self.kept[rows.start], self.workspace))

    def select(self, points: Int[Tensor, " chosen"]) -> "PointByPoint":
        """The same at some of the points."""
        return replace(self, kept=tuple(self.kept[i] for i in points.tolist()))

    @property
    def nbytes(self) -> int:
        """Memory kept."""
        return _nbytes(self.kept)


@dataclass(frozen=True)
class Stacked:
    """tensors: what is kept, each with a leading point axis; rows: the points still wanted."""

    traced: Traced
    tensors: tuple[Tensor, ...]
    together: int
    rows: Int[Tensor, " point"]
    budget: int | None = None
    workspace: Workspace = field(default_factory=dict)

    def of(self, rows: slice) -> tuple[Tensor, ...]:
        """What is kept of some points; without a point axis for one."""
        return tuple(t[rows] if rows.stop - rows.start > 1 else t[rows.start] for t in self.tensors)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns; columns go together only where points are few."""
        size = len(self.tensors[0])
        if len(self.rows) == size:
            return self._all(V)
        whole = V.new_zeros(size, *V.shape[1:])
        whole[self.rows] = V
        return self._all(whole)[self.rows]

    def select(self, points: Int[Tensor, " chosen"]) -> "Stacked":
        """The same at some of the points; what the others need is let go once they are half of all.

        Points leave one by one, and copying all that is kept each time would cost as much as the products saved.
        """
        rows = self.rows[points.to(self.rows.device)]
        # Only in their first order and once each can points stay where they are.
        if 2 * len(rows) > len(self.tensors[0]) and bool((rows[1:] > rows[:-1]).all()):
            return replace(self, rows=rows)
        filled = torch.cat([rows, rows[-1:].expand(_round_size(len(rows)) - len(rows))])
        tensors = tuple(t[filled] for t in self.tensors)
        rows = torch.arange(len(rows), device=rows.device)
        return Stacked(self.traced, tensors, min(self.together, len(filled)), rows, self.budget)

    @property
    def nbytes(self) -> int:
        """Memory kept."""
        return _nbytes(self.tensors)

    def _all(self, V: Tensor) -> Tensor:
        columns = self.traced.probes_together(self.together, V.shape[-1], V.device, self.budget)
        return _blockwise(V, self.together, columns, lambda v, rows: self.traced.run(v, self.of(rows), self.workspace))


def _blockwise(V: Tensor, points: int, probes: int, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    if V.shape[::2] == (points, probes):
        return function(V, slice(0, points))
    product = torch.empty_like(V, memory_format=torch.contiguous_format)
    for rows in _blocks(len(V), points):
        for columns in _blocks(V.shape[-1], probes):
            product[rows, :, columns] = function(V[rows, :, columns], rows)
    return product


def _stacked(traced: Traced, thetas: Tensor, batch: Batch, shared: bool, together: int) -> tuple[Tensor, ...]:
    leaves = _leaves(batch, None)
    dims = (0, *(None if shared else 0 for _ in leaves))
    pieces = []
    for start in range(0, len(thetas), together):
        rows = slice(start, start + together)
        here = [leaf if shared else leaf[rows] for leaf in leaves]
        pieces.append(list(vmap(traced.point, in_dims=dims)(thetas[rows], *here)))
    count = len(pieces[0])
    return tuple(torch.cat([piece.pop(0) for piece in pieces]) for _ in range(count))


def _leaves(batch: Batch, point: int | None) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    return leaves if point is None else [leaf[point] for leaf in leaves]


def _without_ones(V: Tensor) -> Tensor:
    V = V[0] if V.shape[0] == 1 else V
    return (V[..., 0] if V.shape[-1] == 1 else V).contiguous()


def _blocks(total: int, size: int) -> list[slice]:
    """Pieces of exactly one size, the last overlapping the one before: every size costs a program."""
    return [slice(min(start, total - size), min(start, total - size) + size) for start in range(0, total, size)]


def _round_size(count: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20, ...: few sizes, at most a quarter more."""
    step = 2 ** max(0, ceil(log2(count)) - 3)
    return ceil(count / step) * step


def _nbytes(tree: object) -> int:
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(tree))
