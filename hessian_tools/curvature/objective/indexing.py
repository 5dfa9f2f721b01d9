"""Indexing of points and of their batches: the batches of some points, consecutive slices, and checked positions."""

from math import ceil
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch


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
