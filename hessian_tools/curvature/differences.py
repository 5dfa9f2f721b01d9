"""Hessian-vector products from differences of the gradient: an independent witness, for float64 and smooth places.

For checks only: on networks with kinks difference quotients are off by 60-460 % in float32.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.points import Points

# Lengths of the steps tried, in units of |theta|: from where truncation shows to where rounding does.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# A product smaller than this times |g| / |theta| drowns in the rounding of the gradient.
VISIBLE = 1e-6


@dataclass(frozen=True)
class Quotients:
    """central: (g(theta + h v) - g(theta - h v)) / 2h, with the h of least disagreement.

    disagreement: of the quotients (g(theta + h v) - g(theta)) / h and (g(theta) - g(theta - h v)) / h there, or
    with the central one of the next larger h, if more. On a smooth loss it is h times a third derivative,
    plus rounding, and more than the error of the central one; at a kink it does not shrink with h.
    smallest_visible: the size of product that rounding hides.
    """

    central: Float[Tensor, "point param probe"]
    disagreement: Float[Tensor, "point probe"]
    smallest_visible: Float[Tensor, "point 1"]


def difference_quotients(points: Points, V: Float[Tensor, "param probe"]) -> Quotients:
    """Quotients of the gradient along each unit column of V at every point; 2 gradients a step and column."""
    at = points.gradients()
    length = points.thetas.norm(dim=-1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    columns = [_best(points, v, at, length) for v in V.T]
    central, disagreement = (torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True))
    return Quotients(central, disagreement, VISIBLE * at.norm(dim=-1, keepdim=True) / length)


def _best(points: Points, v: Tensor, at: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    best, least = torch.full_like(at, torch.nan), at.new_full((len(at),), torch.inf)
    last = best
    for step in STEPS:
        h = step * length
        ahead, behind = (replace(points, thetas=points.thetas + side * h * v).gradients() for side in (1, -1))
        central = (ahead - behind) / (2 * h)
        # Both sides may agree by chance where rounding makes stairs of the gradient; two steps then do not.
        doubt = torch.maximum(((ahead - 2 * at + behind) / h).norm(dim=-1), (central - last).norm(dim=-1))
        better = doubt < least
        best, least, last = torch.where(better[:, None], central, best), torch.where(better, doubt, least), central
    return best, least
