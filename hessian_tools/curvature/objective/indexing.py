"""How points, their batches and the memory of both are cut into pieces."""

from math import ceil
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch


def at_points(batch: Batch, points: int | slice | Tensor) -> Batch:
    """The batch of one point, or the batches of some points, from batches with a leading point axis."""
    return pytree.tree_map_only(Tensor, itemgetter(points), batch)


def slices(total: int, most: int) -> list[slice]:
    """Consecutive pieces of ``total``, none longer than ``most``.

    Their lengths are nearly equal, because a short last piece would cost nearly as much as a full one.
    """
    size = ceil(total / ceil(total / most))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def own_memory(thetas: Tensor) -> Tensor:
    """The same numbers in memory that holds nothing else.

    A tangent takes as much memory as everything that its point is a view of (torch 2.13), and one theta expanded over
    points has no forward derivative at all.
    """
    alone = thetas.untyped_storage().nbytes() == thetas.numel() * thetas.element_size()
    return thetas if alone and thetas.is_contiguous() else thetas.clone(memory_format=torch.contiguous_format)


def checked_points(points: Tensor, total: int) -> Tensor:
    """The positions of some of ``total`` points. Raises ValueError for none, for positions outside and for masks."""
    if points.dtype == torch.bool or points.is_floating_point() or points.ndim != 1:
        raise ValueError(
            f"points are {list(points.shape)} {points.dtype}; give the places, [chosen] integers; "
            "of a mask: mask.nonzero()[:, 0]"
        )
    if len(points) == 0 or int(points.max()) >= total or int(points.min()) < -total:
        raise ValueError(f"points {points.tolist()[:8]} of {total}; give one or more, each from 0 to {total - 1}")
    return points


def index_of(points: Tensor, total: int, device: torch.device) -> slice | Tensor:
    """The index of some of ``total`` points: a slice where each follows the one before, by which nothing is copied."""
    first = int(points[0]) % total if len(points) else 0
    following = torch.arange(first, first + len(points), device=points.device)
    return slice(first, first + len(points)) if torch.equal(points % total, following) else points.to(device)
