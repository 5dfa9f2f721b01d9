"""Lanczos with full reorthogonalisation and thick restart, for all points at once; each stops on its own residuals.

The residuals of the recurrence steer the stop; the pairs are checked by true products in ``eigen``.
(Lanczos 1950; Paige 1972; Wu, Simon 2000.)
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Ritz, RitzState, StoppingRule
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.selection import ROUNDING, Selection
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.rng import PathPart, stream

# Steer a little below what is asked, to leave room for the rounding of the true residual.
STEER = 0.9
# A pair next to the wanted counts as not among them when its residual is this share of the way there.
CLEARANCE = 0.1


def lanczos(
    H: Operator,
    wishes: tuple[Selection, ...],
    *,
    seed: int,
    max_steps: int,
    max_basis: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[Ritz]:
    """Ritz pairs for every wish at every point, from one run a point, in the order of the points.

    All points start from one vector, drawn from ``stream(seed, "lanczos", 0)``. A point leaves when all its
    wishes are met, when a number is not finite (its pairs are then NaN), or after ``max_steps`` products.
    max_basis: vectors held for each point; when there are so many, the run restarts from the best Ritz pairs.

    One start sees one copy of a multiple eigenvalue. Where its Krylov space is exhausted, a new random vector
    follows, and another, until an exhausted space has brought no wish a better value.
    """
    num_points, num_params = H.num_points or 1, H.num_params
    first = random_vector(H, seed, 0)
    nothing = torch.empty(num_points, 0, num_params, dtype=H.dtype, device=H.device)
    basis = KrylovBasis(
        (first / first.norm())[None], nothing, room=max_basis, fresh=lambda step: random_vector(H, seed, step + 1)
    )
    most = np.full(num_points, min(max_steps, num_params) if max_basis >= num_params else max_steps)
    return BatchedLanczos(H, basis, _Wishes(wishes, num_points, H.dtype), wishes, most).to_the_end(done)


class _Wishes(StoppingRule):
    """All wishes met by the recurrence's residuals; once a space is exhausted: exhausted again and nothing new."""

    def __init__(self, wishes: tuple[Selection, ...], num_points: int, dtype: torch.dtype) -> None:
        self.wishes, self.dtype = wishes, dtype
        # The wanted values when a space was last exhausted.
        self.found = torch.full(
            (num_points, sum(wish.k for wish in wishes)), torch.nan, dtype=torch.float64, device="cpu"
        )

    def missed(self, look: RitzState) -> Float[Tensor, " chosen"]:
        picks = [wish.pick(look.values) for wish in self.wishes]
        ratios = [self._unmet(look, wish, pick) for wish, pick in zip(self.wishes, picks, strict=True) if pick.numel()]
        wanted = look.values.gather(-1, torch.cat(picks, dim=-1))
        new = (wanted - self.found[look.points]).abs() > rounding(self.dtype) * look.norm[:, None]
        settled = look.spent & ~new.any(-1) & ~self.found[look.points].isnan().any(-1)
        self.found[look.points] = torch.where(look.spent[:, None], wanted, self.found[look.points])
        missed = torch.where(look.has_been, torch.where(settled, 0.0, torch.inf), torch.stack(ratios).amax(0))
        return missed.masked_fill(look.whole, 0.0)

    def _unmet(self, look: RitzState, wish: Selection, pick: Int[Tensor, "chosen k"]) -> Float[Tensor, " chosen"]:
        """Residuals over what is allowed: of the wanted their tolerance, and of the first not wanted at either end a
        share of its distance to them.

        New eigenvalues show there, on their way outwards. Without the second, at 2 to 6 % of the points of
        Conv4 tasks the fifth of five was another one, smaller by up to 3 %, with a residual as small as asked.
        """
        allowed = STEER * wish.tolerance(look.values, look.norm, self.dtype)
        ratios = look.residuals / allowed
        unmet = ratios.gather(-1, pick).amax(-1)
        if look.values.shape[-1] == wish.k:
            return unmet
        distance = CLEARANCE * wish.distance(look.values, pick)
        ratios = look.residuals / torch.maximum(allowed, distance)
        rest = look.values.scatter(-1, pick, torch.nan)
        top, bottom = rest.nan_to_num(nan=-torch.inf).argmax(-1), rest.nan_to_num(nan=torch.inf).argmin(-1)
        ends = torch.stack([top, bottom], dim=-1)
        return torch.maximum(unmet, ratios.gather(-1, ends).amax(-1))

    def taken(self, look: RitzState, row: int) -> Int[Tensor, " pair"]:
        return torch.cat([wish.pick(look.values[row]) for wish in self.wishes]).unique()

    def complete(self, look: RitzState, row: int) -> bool:
        return bool(look.has_been[row])


def rounding(dtype: torch.dtype) -> float:
    """What is rounding, as a share of |H|."""
    return ROUNDING * torch.finfo(dtype).eps


def random_vector(H: Operator, seed: int, *path: PathPart) -> Float[Tensor, " param"]:
    """Standard normal numbers of a named use."""
    drawn = torch.randn(H.num_params, generator=stream(seed, "lanczos", *path), dtype=torch.float64, device="cpu")
    return drawn.to(H.device, H.dtype)


def gauss_quadrature(
    H: Operator, starts: Float[Tensor, "point param"], *, num_steps: int, seed: int
) -> tuple[Float[Tensor, "point node"], Float[Tensor, "point node"], Float[Tensor, "point node"]]:
    """Nodes, rising, weights and residuals of the Gauss rule of each point's spectral measure as seen from its start z.

    sum_i weights[i] nodes[i]^j = z'H^j z / z'z for j = 0 .. 2 num_steps - 1 (Golub, Meurant 1994): the nodes
    are the eigenvalues of T, the weights the squared first components of its eigenvectors. The number of
    nodes is the smaller of num_steps and param; those past an exhausted Krylov space have weight zero.
    residuals: beta_m times the last components, as in ``lanczos``. float64 on the CPU; NaN at a point with a number
    that is not finite.
    """
    num_steps = min(num_steps, H.num_params)
    nothing = starts.new_empty(len(starts), 0, H.num_params)
    first = starts / starts.norm(dim=-1, keepdim=True)
    basis = KrylovBasis(first, nothing, room=num_steps, fresh=lambda step: random_vector(H, seed, step + 1))
    for step in range(num_steps):
        basis.advance(H.products(basis.next[..., None])[..., 0], step)
    values, residuals, vectors = basis.pairs(np.arange(len(starts)))
    bad = values.isnan()
    return values, (vectors[:, 0] ** 2).masked_fill(bad, torch.nan), residuals.masked_fill(bad, torch.nan)
