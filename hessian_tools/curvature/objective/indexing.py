"""Pieces of points, of their batches and of their memory."""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch


def map_tensors(function: Callable[[Tensor], Any], batch: Batch, **otherwise: Any) -> Batch:
    """The function of every tensor of a batch; ``otherwise`` in place of what is none, if given."""

    def apply(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else otherwise.get("otherwise", leaf)

    return pytree.tree_map(apply, batch)


def at_point(batch: Batch, point: int) -> Batch:
    """One point's batch."""
    return map_tensors(lambda leaf: leaf[point], batch)


def slices(total: int, most: int) -> list[slice]:
    """Pieces of nearly equal length, none longer than ``most``: a short last piece would cost nearly a whole one."""
    size = ceil(total / ceil(total / most))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def own_memory(thetas: Tensor) -> Tensor:
    """In memory of their own: a tangent takes as much as all that its point is a view of (torch 2.13).

    One theta expanded over points has no forward derivative at all.
    """
    whole = thetas.untyped_storage().nbytes() == thetas.numel() * thetas.element_size()
    return thetas if whole and thetas.is_contiguous() else thetas.clone(memory_format=torch.contiguous_format)


def checked_points(points: Tensor, total: int) -> Tensor:
    """The places of some of ``total`` points. ValueError for none, for places outside and for masks."""
    if points.dtype == torch.bool or points.is_floating_point() or points.ndim != 1:
        raise ValueError(
            f"points are {list(points.shape)} {points.dtype}; give the places, [chosen] integers; "
            "of a mask: mask.nonzero()[:, 0]"
        )
    if len(points) == 0 or int(points.max()) >= total or int(points.min()) < -total:
        raise ValueError(f"points {points.tolist()[:8]} of {total}; give one or more, each from 0 to {total - 1}")
    return points


def as_slice(points: Tensor, total: int) -> slice | None:
    """The slice of ``total`` points that these are, where each follows the one before."""
    first = int(points[0]) % total if len(points) else 0
    following = torch.arange(first, first + len(points), device=points.device)
    return slice(first, first + len(points)) if torch.equal(points % total, following) else None
