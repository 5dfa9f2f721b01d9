"""Lanczos with full reorthogonalisation and thick restart, at all points together, each stopped by its residuals.

A run stops on the residuals that the recurrence gives; ``rayleigh_ritz`` then checks the pairs by true products.
(Lanczos 1950; Paige 1972; Wu, Simon 2000.)
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Limits, RitzState, StoppingRule
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.saved_runs import SavedRun
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, rounding
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.rng import PathPart, stream

# A run stops at this fraction of the tolerance, because rounding makes the true residual larger than that of the
# recurrence.
TOLERANCE_MARGIN = 0.9
# The first unwanted Ritz value will not become a wanted one if its residual is below this fraction of its distance from
# the wanted values.
GAP_FRACTION = 0.1


def lanczos(
    H: Operator,
    selections: tuple[Selection, ...],
    limits: Limits,
    *,
    start: Float[Tensor, "point param"] | None = None,
    done: Callable[[int], None] = lambda count: None,
    saved: SavedRun | None = None,
) -> RitzPairs:
    """The Ritz pairs that the selections want at every point, from one run at each point; see :func:`lanczos_run`.

    saved: the files to which the run is saved at each restart, and from which it goes on.
    """
    run = lanczos_run(H, selections, limits, start=start, done=done)
    if saved is not None:
        saved.resume(run)
        run.restarted = saved.save
    return run.run()


def lanczos_run(
    H: Operator,
    selections: tuple[Selection, ...],
    limits: Limits,
    *,
    start: Float[Tensor, "point param"] | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> BatchedLanczos:
    """A Lanczos run for the Ritz pairs that the selections want at every point.

    All points start from one vector, drawn from ``stream(seed, "lanczos", 0)``, unless start gives one for each. A
    point finishes when the pairs of all selections have converged, when a number is not finite, or after
    ``limits.max_steps`` products. When the basis has ``limits.max_basis`` vectors, the run restarts from the best Ritz
    pairs. done: called, whenever points have finished, with their number.

    From one start vector, only one copy of a multiple eigenvalue can be found. When its Krylov space is exhausted, the
    run goes on from a new random vector, and so on, until the Krylov space of such a vector brings no better value for
    any selection.
    """
    num_points, seed, shards = H.num_points or 1, limits.seed, H.shards
    first = random_vector(H, seed, 0)[None] if start is None else start
    basis = KrylovBasis(
        _unit(first) if shards is None else first / shards.lengths(first)[:, None].to(first),
        first.new_empty(num_points, 0, first.shape[-1]),
        max_size=limits.max_basis,
        fresh=lambda step: random_vector(H, seed, step + 1),
        shards=shards,
    )
    whole_space = limits.max_basis >= basis.num_params  # the basis is then complete after num_params steps
    max_steps = min(limits.max_steps, basis.num_params) if whole_space else limits.max_steps
    rule = _ConvergedPairs(selections, num_points, H.dtype)
    return BatchedLanczos(H, basis, rule, selections, np.full(num_points, max_steps), done)


class _ConvergedPairs(StoppingRule):
    """A point finishes once the wanted pairs have converged and no other value is about to become a wanted one.

    After a breakdown the residuals are zero and say nothing about further copies. Such a point finishes at the next
    breakdown that leaves the wanted values as they were.
    """

    def __init__(self, selections: tuple[Selection, ...], num_points: int, dtype: torch.dtype) -> None:
        self.selections, self.rounding = selections, rounding(dtype)
        wanted = sum(selection.k for selection in selections)
        # The wanted values at the last breakdown of each point; NaN where there was none.
        self.memory = torch.full((num_points, wanted), torch.nan, dtype=torch.float64, device="cpu")

    def excess(self, state: RitzState) -> Float[Tensor, " chosen"]:
        """The largest ratio of a residual to its allowed size."""
        floor = self.rounding * state.norm
        picks = [selection.pick(state.values) for selection in self.selections]
        wanted, before = state.values.gather(-1, torch.cat(picks, dim=-1)), self.memory[state.points]
        # A comparison with NaN is False, so the first breakdown of a point does not finish it.
        unchanged = ((wanted - before).abs() <= floor[:, None]).all(-1)
        self.memory[state.points] = torch.where(state.breakdown[:, None], wanted, before)
        after_breakdown = torch.where(state.breakdown & unchanged, 0.0, torch.inf)
        ratios = [
            self._ratio(state, floor, selection, pick)
            for selection, pick in zip(self.selections, picks, strict=True)
            if selection.k
        ]
        excess = torch.where(state.had_breakdown, after_breakdown, torch.stack(ratios).amax(0))
        return excess.masked_fill(state.exhausted, 0.0)

    def _ratio(
        self, state: RitzState, floor: Float[Tensor, " chosen"], selection: Selection, pick: Int[Tensor, "chosen k"]
    ) -> Float[Tensor, " chosen"]:
        """The largest ratio of a residual to its allowed size.

        A wanted value is allowed its tolerance. The first unwanted value at either end is allowed GAP_FRACTION of its
        distance from the wanted ones.

        A new eigenvalue first appears as a Ritz value at one end of the unwanted ones, and moves outwards as it
        converges. Without the second condition, the fifth of five values was a wrong eigenvalue at 2 to 6 % of the
        points of few-shot tasks with a network of four convolutions. It was smaller than the right one by up to 3 %,
        although its residual met the tolerance.
        """
        allowed = TOLERANCE_MARGIN * selection.tolerance(state.values, floor)
        ratio = (state.residuals / allowed).gather(-1, pick).amax(-1)
        if state.values.shape[-1] == selection.k:
            return ratio
        gap = GAP_FRACTION * selection.distance(state.values, pick)
        unwanted = state.values.scatter(-1, pick, torch.nan)
        # The positions of the largest and of the smallest unwanted value.
        ends = torch.stack(
            [unwanted.nan_to_num(nan=-torch.inf).argmax(-1), unwanted.nan_to_num(nan=torch.inf).argmin(-1)], dim=-1
        )
        at_ends = (state.residuals / torch.maximum(allowed, gap)).gather(-1, ends)
        return torch.maximum(ratio, at_ends.amax(-1))

    def results(self, state: RitzState) -> Bool[Tensor, "chosen value"]:
        """True for the wanted pairs."""
        picks = torch.cat([selection.pick(state.values) for selection in self.selections], dim=-1)
        return torch.zeros_like(state.values, dtype=torch.bool).scatter_(-1, picks, True)

    def complete(self, state: RitzState) -> Bool[Tensor, " chosen"]:
        """True where the point finished after a breakdown that brought no new wanted value."""
        return state.had_breakdown


def _unit(rows: Float[Tensor, "point param"]) -> Float[Tensor, "point param"]:
    """The rows divided by their lengths."""
    return rows / vector_norm(rows, keepdim=True)


def random_vector(H: Operator, seed: int, *path: PathPart) -> Float[Tensor, " param"]:
    """Standard normal numbers, drawn on the CPU in float64 so that they do not depend on the device.

    seed, path: name the random stream, see ``rng.stream``.
    """
    generator = stream(seed, "lanczos", *path)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")

    drawn = normal(H.num_params) if H.shards is None else H.shards.own_numbers(normal, H.dtype)
    return drawn.to(H.device, H.dtype)


def gauss_quadrature(
    H: Operator, starts: Float[Tensor, "point param"], *, num_steps: int, seed: int
) -> tuple[Float[Tensor, "point node"], Float[Tensor, "point node"], Float[Tensor, "point node"]]:
    """Nodes (ascending), weights and residuals of the Gauss rule of each point's spectral measure for a start vector z.

    The rule has sum_i weights[i] nodes[i]^j = z'H^j z / z'z for j = 0 .. 2 num_steps - 1 (Golub, Meurant 1994). The
    nodes are the eigenvalues of T (see ``krylov``), and the weights are the squared first components of its
    eigenvectors. The number of nodes is the smaller of num_steps and param; nodes that come after an exhausted Krylov
    space have weight zero. residuals: beta_m times the last components of the eigenvectors of T. All are float64 on the
    CPU, and NaN at a point where a number was not finite.
    """
    num_steps = min(num_steps, H.num_params)
    basis = KrylovBasis(
        _unit(starts),
        starts.new_empty(len(starts), 0, H.num_params),
        max_size=num_steps,
        fresh=lambda step: random_vector(H, seed, step + 1),
    )
    step, had_breakdown = 0, False
    while basis.size < num_steps:
        # A breakdown discards the later steps of a block, and after one another may follow at each step. From then on
        # single steps are taken.
        count = 1 if had_breakdown else basis.block
        basis.take_steps(lambda: H.products(basis.next[..., None])[..., 0], count, step)
        step, had_breakdown = step + count, had_breakdown or bool(basis.breakdown.any())
    values, residuals, vectors = basis.pairs(np.arange(len(starts)))
    bad = values.isnan()
    return values, (vectors[:, 0] ** 2).masked_fill(bad, torch.nan), residuals.masked_fill(bad, torch.nan)
