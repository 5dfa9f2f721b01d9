"""The objective whose curvature is measured: a loss, points (parameter vectors), and the batches at each point."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from operator import itemgetter
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.batches import cast_like
from hessian_tools.curvature.objective.loader_batches import LoaderBatches
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.processes import Ranks

Weights = Literal["size"] | Sequence[float | int]


@dataclass(frozen=True)
class Group:
    """Points of an objective whose batches have the same shapes and can therefore be stacked.

    positions: where these points stand among all points of the objective. The tensor lies on the CPU, because it only
        serves as an index, and reading it from a GPU would wait for the work queued there.
    batches: one or more batches; the objective is a weighted sum of the loss over them. Every tensor has a leading
        point axis, unless all points share the batches. They may be ``LoaderBatches``, which are read from a loader at
        every pass over them.
    weights: the weight of each batch in that sum. Over all processes that share the data, the weights sum to one; for a
        criterion that sums over examples, every weight is one.
    """

    positions: Int[Tensor, " member"]
    batches: Sequence[Batch]
    weights: tuple[float, ...]

    def cast(self, like: Tensor) -> "Group":
        """The same group with its batches in the dtype and on the device of a tensor."""
        batches = self.batches.cast(like) if isinstance(self.batches, LoaderBatches) else cast_like(self.batches, like)
        return replace(self, batches=batches)


@dataclass(frozen=True)
class Objective:
    """The function ``sum_i weights[i] * loss(theta, batches[i])`` at every row theta of ``thetas``.

    Points whose batches differ in shape lie in different groups. Most objectives have a single group, which holds all
    points in order.

    shared: True if the batches have no point axis and serve every point; False if every point has its own.
    ranks: the processes that share the data, of which this one holds the batches here; None for a single process.
    """

    loss: LossFunction
    thetas: Float[Tensor, "point param"]
    groups: tuple[Group, ...]
    shared: bool
    ranks: Ranks | None = None

    @property
    def network(self) -> Loss:
        """The loss, for an objective whose loss is that of a network."""
        assert isinstance(self.loss, Loss)
        return self.loss

    @property
    def batches(self) -> Sequence[Batch]:
        """The batches of an objective that has a single group."""
        (group,) = self.groups
        return group.batches

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the batches of an objective that has a single group."""
        (group,) = self.groups
        return group.weights

    def batches_at(self, point: int) -> Sequence[Batch]:
        """The batches of one point, without a point axis; for an objective that has a single group."""
        return self.batches if self.shared else [at_points(batch, point) for batch in self.batches]

    @property
    def all_weights(self) -> tuple[float, ...]:
        """The weights of the batches of all processes, one process after the other; for a single group.

        A process without batches, which holds one of weight 0 in their place, is left out.
        """
        if self.ranks is None:
            return self.weights
        return tuple(weight for weights in self.ranks.gather(self.weights) if any(weights) for weight in weights)

    def by_batch_of_all_processes(self) -> "Iterator[Objective]":
        """The objective of each batch alone, in the order of ``all_weights``; for a single group.

        All processes take part in each product. For a batch of another process, this process therefore uses its own
        first batch with weight 0, which adds nothing to the sum over the processes.
        """
        (group,) = self.groups
        if self.ranks is None:
            yield from (objective for _, objective in self.by_batch())
            return
        # count: the number of batches of a process. It is 0 for one that holds only a stand-in of weight 0.
        for rank, count in enumerate(self.ranks.gather(len(group.weights) if any(group.weights) else 0)):
            own = [self.batches[0]] * count if rank != self.ranks.rank else self.batches
            weight = float(rank == self.ranks.rank)
            for _, batch in zip(range(count), own, strict=False):  # leaves out a stand-in, whose count is 0
                yield self.of_batch(batch, weight)

    def by_batch(self) -> "Iterator[tuple[float, Objective]]":
        """The weight of each batch, and the objective of this batch alone; for an objective that has a single group."""
        for weight, batch in zip(self.weights, self.batches, strict=True):
            yield weight, self.of_batch(batch)

    def of_batch(self, batch: Batch, weight: float = 1.0) -> "Objective":
        """The objective of a single batch at the same points; for an objective that has a single group."""
        (group,) = self.groups
        return replace(self, groups=(replace(group, batches=(batch,), weights=(weight,)),))

    def summed(self, function: Callable[[], Tensor]) -> Tensor:
        """``function()``, which is linear in the loss, summed over the processes that share the data.

        If it fails on one process, an error is raised on all of them.
        """
        ranks = self.ranks
        return function() if ranks is None else ranks.sum(ranks.with_shared_errors(function))

    def select(self, points: Int[Tensor, " chosen"]) -> "Objective":
        """The same objective at the points of these positions, in the order given.

        Where the positions are consecutive, the tensors are views and nothing is copied.
        """
        points = points.cpu()
        groups = []
        for group, (members, positions) in zip(self.groups, self.locate(points), strict=True):
            if len(members):
                rows = index_of(members, len(group.positions), self.thetas.device)
                batches = group.batches if self.shared else [at_points(b, rows) for b in group.batches]
                groups.append(replace(group, positions=positions, batches=batches))
        thetas = self.thetas[index_of(points, len(self.thetas), self.thetas.device)]
        return replace(self, thetas=thetas, groups=tuple(groups))

    def locate(self, points: Int[Tensor, " chosen"]) -> list[tuple[Tensor, Tensor]]:
        """For each group, which of its members are among ``points``, and the positions of these in ``points``."""
        all_points = torch.arange(len(self.thetas), device="cpu")
        points = all_points[points]  # negative positions become positions counted from the start
        located = []
        for group in self.groups:
            # For each point of the objective, its position among the members of this group; -1 if it is none of them.
            member_at = torch.full_like(all_points, -1)
            member_at[group.positions] = all_points[: len(group.positions)]
            members = member_at[points]
            positions = (members >= 0).nonzero()[:, 0]
            located.append((members[positions], positions))
        return located

    def by_group(self) -> "list[Objective]":
        """An objective for each group, at the points of that group alone."""
        if len(self.groups) == 1:
            return [self]
        objectives = []
        for group in self.groups:
            alone = replace(group, positions=torch.arange(len(group.positions), device="cpu"))
            objectives.append(replace(self, thetas=self.thetas[group.positions], groups=(alone,)))
        return objectives

    def join(self, results: Sequence[Tensor]) -> Tensor:
        """The results of the groups, each with a leading point axis, put together in the order of the points."""
        if len(self.groups) == 1:
            return results[0]
        joined = results[0].new_empty(len(self.thetas), *results[0].shape[1:])
        for group, result in zip(self.groups, results, strict=True):
            joined[group.positions] = result
        return joined


def at_points(batch: Batch, points: int | slice | Tensor) -> Batch:
    """The batch of one point, or the batches of some points, from batches with a leading point axis."""
    return pytree.tree_map_only(Tensor, itemgetter(points), batch)


def slices(total: int, max_length: int) -> list[slice]:
    """Consecutive slices that cover ``range(total)``, none longer than ``max_length``.

    Their lengths are nearly equal, because a short last slice would cost nearly as much as a full one.
    """
    if 0 < total <= max_length:
        return [slice(0, total)]
    size = ceil(total / ceil(total / max_length))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def own_memory(thetas: Tensor) -> Tensor:
    """The same numbers in a storage that holds nothing else; copied only if the storage of ``thetas`` holds more.

    In forward mode torch 2.13 allocates a tangent as large as the whole storage of the tensor at which it
    differentiates, even if that tensor is a small view of the storage. A theta that ``Tensor.expand`` repeats over
    points has no forward derivative at all.
    """
    owns_storage = thetas.untyped_storage().nbytes() == thetas.numel() * thetas.element_size()
    return thetas if owns_storage and thetas.is_contiguous() else thetas.clone(memory_format=torch.contiguous_format)


def checked_points(points: Tensor, total: int) -> Tensor:
    """The given positions of points, out of ``total``.

    Raises ValueError if there are no positions, if one lies outside of the points, and for a boolean mask.
    """
    if points.dtype == torch.bool or points.is_floating_point() or points.ndim != 1:
        raise ValueError(
            f"points has shape {list(points.shape)} and dtype {points.dtype}; give a tensor of integers with one axis, "
            "the positions of the points; for a boolean mask these are mask.nonzero()[:, 0]"
        )
    if len(points) == 0 or int(points.max()) >= total or int(points.min()) < -total:
        raise ValueError(
            f"points are {points.tolist()[:8]}, but there are {total}; give one or more, each from 0 to {total - 1}"
        )
    return points


def index_of(points: Tensor, total: int, device: torch.device) -> slice | Tensor:
    """An index for the points at these positions, out of ``total``.

    It is a slice where the positions are consecutive, because indexing by a slice copies nothing.
    """
    first = int(points[0]) % total if len(points) else 0
    consecutive = torch.arange(first, first + len(points), device=points.device)
    if torch.equal(points % total, consecutive):
        return slice(first, first + len(points))
    return points.to(device, non_blocking=True)
