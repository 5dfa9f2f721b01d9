"""Points whose batches differ in size: taken in groups of one shape, and put back in order."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch, LossFunction, cast_like

if TYPE_CHECKING:
    from hessian_tools.curvature.objective.objective import Objective


@dataclass(frozen=True)
class Ragged:
    """One batch for each point, of any sizes; made by :func:`ragged`."""

    batches: tuple[Batch, ...]


def ragged(batches: Sequence[Batch]) -> Ragged:
    """Batches of different sizes, one for each point: ``hessian(loss, thetas, ragged([(x0, y0), (x1, y1), ...]))``.

    Points whose batches have the same shapes are taken together. Right for every network, batch statistics too,
    for no batch is filled up. (The other way is a mask in y that the criterion reads: one shape, so one group;
    right only where examples do not see each other, as they do in batch normalisation.)

    >>> from hessian_tools.curvature import hessian
    >>> thetas = torch.zeros(2, 1)
    >>> H = hessian(lambda theta, x: ((x * theta) ** 2).mean(), thetas, ragged([torch.ones(3), 2 * torch.ones(5)]))
    >>> H.to_dense().flatten()  # 2 mean(x^2)
    tensor([2., 8.])
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Sequence) or not batches:
        raise ValueError("ragged wants a list of batches, one for each point, such as ragged([(x0, y0), (x1, y1)])")
    return Ragged(tuple(batches))


@dataclass(frozen=True)
class RaggedObjective:
    """groups: points whose batches have one shape; where: the places of each group's points in the whole."""

    loss: LossFunction
    thetas: Float[Tensor, "point param"]
    groups: "tuple[Objective, ...]"
    where: tuple[Int[Tensor, "_"], ...]

    def at_once(self, *matrix_at: Any) -> int:
        """How many points results should be asked for together, within ``max_memory``."""
        return min(group.at_once(*matrix_at) for group in self.groups)

    @property
    def taken(self) -> str:
        """How products have been done so far."""
        return "/".join(dict.fromkeys(group.taken for group in self.groups))

    def gradients(self) -> Float[Tensor, "point param"]:
        """The gradient at every point."""
        return self._joined([group.gradients() for group in self.groups])

    def products(self, V: Float[Tensor, "point param probe"], *matrix_at: Any) -> Float[Tensor, "point param probe"]:
        """The matrix at every point times that point's columns."""
        if V.numel() == 0:
            return torch.zeros_like(V)
        pairs = zip(self.groups, self.where, strict=True)
        return self._joined([group.products(V[where], *matrix_at) for group, where in pairs])

    def select(self, points: Int[Tensor, " chosen"]) -> "RaggedObjective":
        """The same objective at some of the points, in the order given."""
        points = points.to(self.thetas.device)
        chosen = torch.arange(len(self.thetas), device=points.device)[points]
        groups, places = [], []
        for group, where in zip(self.groups, self.where, strict=True):
            matches = chosen[:, None] == where
            place, within = matches.nonzero().unbind(-1)
            if len(place):
                groups.append(group.select(within))
                places.append(place)
        return RaggedObjective(self.loss, self.thetas[chosen], tuple(groups), tuple(places))

    def each_group(self, function: "Callable[[Objective, Tensor], tuple[Tensor, ...]]") -> tuple[Tensor, ...]:
        """``function(points, where they are in the whole)`` of every group, put together in order."""
        found = [function(group, where) for group, where in zip(self.groups, self.where, strict=True)]
        return tuple(self._joined(list(parts)) for parts in zip(*found, strict=True))

    def _joined(self, parts: list[Tensor]) -> Tensor:
        whole = parts[0].new_empty(len(self.thetas), *parts[0].shape[1:])
        for where, part in zip(self.where, parts, strict=True):
            whole[where] = part
        return whole


def grouped(
    loss: LossFunction, thetas: Tensor, batches: list[Ragged], of_group: "Callable[[Tensor, list[Batch]], Objective]"
) -> RaggedObjective:
    """Points of equal shapes together; several batches a point are of one shape if each of them is."""
    at_point = list(zip(*(ragged.batches for ragged in batches), strict=True))
    members: dict[Hashable, list[int]] = {}
    for i, own in enumerate(at_point):
        members.setdefault(_shapes(own), []).append(i)
    where = tuple(torch.tensor(rows, device="cpu").to(thetas.device) for rows in members.values())
    groups = []
    for rows, members_here in zip(where, members.values(), strict=True):
        stacked = [_stacked([cast_like(at_point[i][b], thetas) for i in members_here]) for b in range(len(batches))]
        groups.append(of_group(thetas[rows], stacked))
    return RaggedObjective(loss, thetas, tuple(groups), where)


def _stacked(batches: list[Batch]) -> Batch:
    def joined(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return pytree.tree_map(joined, *batches)


def _shapes(batch: Batch) -> Hashable:
    leaves, spec = pytree.tree_flatten(batch)
    return str(spec), tuple(_form(x) if isinstance(x, Tensor) else repr(x) for x in leaves)


def _form(x: Tensor) -> Hashable:
    """Shape, and dtype where it is kept: stacked with whole numbers a mask would become places."""
    return tuple(x.shape), None if x.is_floating_point() else x.dtype
