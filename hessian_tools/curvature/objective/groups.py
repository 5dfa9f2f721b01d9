"""Support sets of different sizes: a batch for each point, put into groups of one shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch


@dataclass(frozen=True)
class Ragged:
    """One batch for each point, of any sizes; made by :func:`ragged`."""

    batches: tuple[Batch, ...]


def ragged(batches: Sequence[Batch]) -> Ragged:
    """Batches of different sizes, one for each point: ``hessian(loss, thetas, ragged([(x0, y0), (x1, y1), ...]))``.

    Points whose batches have the same shapes are evaluated together. No batch is filled up, so the result is right for
    every network, also with batch statistics. (The other way is a mask in y that the criterion reads. Then all batches
    have one shape, but the result is right only where examples do not see each other, as they do in batch
    normalisation.)

    >>> from hessian_tools.curvature import hessian
    >>> thetas = torch.zeros(2, 1)
    >>> H = hessian(lambda theta, x: ((x * theta) ** 2).mean(), thetas, ragged([torch.ones(3), 2 * torch.ones(5)]))
    >>> H.to_dense().flatten()  # 2 mean(x^2)
    tensor([2., 8.])
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Sequence) or not batches:
        raise ValueError("ragged needs a list of batches, one for each point, such as ragged([(x0, y0), (x1, y1)])")
    return Ragged(tuple(batches))


def same_shapes(batches: Sequence[Sequence[Batch]]) -> list[list[int]]:
    """Lists of the points whose batches have the same shapes. ``batches[point]`` are the batches of one point."""
    members: dict[Hashable, list[int]] = {}
    for point, of_point in enumerate(batches):
        members.setdefault(_shapes(of_point), []).append(point)
    return list(members.values())


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of the same shapes as one, with a leading point axis; what is no tensor is taken from the first."""

    def stack(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return pytree.tree_map(stack, *batches)


def _shapes(batches: Sequence[Batch]) -> Hashable:
    leaves, spec = pytree.tree_flatten(list(batches))
    # The dtype matters where it is kept: stacked with integers, a boolean mask would become a list of indices.
    forms = [
        (tuple(x.shape), None if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else repr(x)
        for x in leaves
    ]
    return str(spec), tuple(forms)
