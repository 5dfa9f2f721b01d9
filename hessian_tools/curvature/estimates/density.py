"""The spectral density at every point by stochastic Lanczos quadrature, with bands over the probes.

One probe z sees the spectrum through the measure sum_i (u_i'z)^2 / z'z delta(lambda - lambda_i), whose mean over
probes is the spectral density: each eigenvalue with weight 1/n. Lanczos from z gives that measure's Gauss rule, right
for every polynomial up to degree 2 num_matvecs - 1: isolated eigenvalues are nodes of their own, the rest share the
others. (Lin, Saad, Yang 2016; Ubaru, Chen, Saad 2017.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, log, pi, sqrt

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

from hessian_tools.curvature.eigen.small_eigh import eigvalsh, finite, set_nan, solvable
from hessian_tools.curvature.estimates.gauss_rules import GaussRule, gauss_rules
from hessian_tools.curvature.estimates.trace import checked, rademacher
from hessian_tools.curvature.html import density_html
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.progress import Count, Progress
from hessian_tools.rng import PathPart
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.validation import check_whole

# Grids have this many values, or more where a width needs it: GRID_PER_WIDTH values each, up to MOST_GRID.
GRID, GRID_PER_WIDTH, MOST_GRID = 512, 4, 2**14
# Grids reach this many widths beyond the outermost nodes: what is cut off is below 1e-6.
TAILS = 5
# The kernel falls to this share of its peak half-way to the next node, if nodes lay evenly: no gaps, little blur.
# exp(-(spacing / 2)^2 / (2 width^2)) = DIP gives width = spacing / (2 sqrt(2 ln(1 / DIP))), 0.75 spacings.
DIP = 0.8
# No width narrower than the spectrum's reach over this many is chosen unasked.
MOST_WIDTHS = 1000
# An isolated node has none within two widths, nearer than which two equal kernels merge into one peak; nodes within
# a tenth of a width are one place, and where the residual is below that the place is known.
APART, TOGETHER = 2.0, 0.1


@dataclass(frozen=True)
class Density:
    """The share of eigenvalues per unit of curvature, on a grid at each point; its integral is 1.

    nodes, weights: the Gauss rule of each probe; weights sum to 1. One row, with equal weights, where the
    eigenvalues themselves were computed. residuals: some eigenvalue lies that near to a node (to rounding); large in
    a bulk, tiny at outliers; see :attr:`isolated`. density: the mean over probes of the nodes smoothed by a normal
    kernel of standard deviation ``width``. band: (low, high), Student's t over probes at each grid point, to the
    stated confidence. It
    covers the chance of the probes, one grid point at a time; not the blur of the kernel (features narrower than
    width show as wide as it), nor what num_matvecs steps do not resolve, nor errors common to all points
    that share the probes. It is too narrow where few eigenvalues carry the density, as at an outlier: its weight
    is known to about sqrt(2 / probes) of itself, its place to far better. NaN at a point that is not finite.
    """

    nodes: Float[Tensor, "*point probe node"]
    weights: Float[Tensor, "*point probe node"]
    residuals: Float[Tensor, "*point probe node"]
    grid: Float[Tensor, "*point grid"]
    density: Float[Tensor, "*point grid"]
    band: tuple[Float[Tensor, "*point grid"], Float[Tensor, "*point grid"]]
    width: Float[Tensor, "*point"]
    num_matvecs: Int[Tensor, "*point"]
    num_params: int
    confidence: float

    def _repr_html_(self) -> str:
        return density_html(self.grid, self.density, self.band[1])

    @property
    def curves(self) -> Float[Tensor, "*point probe grid"]:
        """The smoothed density of each probe: aggregates over points that share probes take their errors from these."""
        return _smoothed(_normal, self.nodes, self.weights, self.grid, self.width) / self.width[..., None, None]

    @property
    def cumulative(self) -> Float[Tensor, "*point grid"]:
        """The share of eigenvalues up to each grid point, smoothed alike: 0 to 1."""
        shares = _smoothed(torch.special.ndtr, self.nodes, self.weights, self.grid, self.width)
        return shares.mean(-2)

    @property
    def isolated(self) -> Bool[Tensor, "*point probe node"]:
        """Nodes that are eigenvalues standing alone: known to a tenth of the width, no other node within two widths.

        Outliers, and clusters much narrower than the width, such as the zeros of a matrix of low rank.
        """
        width = self.width[..., None, None]
        seen = self.weights > torch.finfo(self.weights.dtype).eps
        known = seen & (self.residuals <= TOGETHER * width)
        return known & ~_has_neighbour(self.nodes, seen, width)


@full_precision
def spectral_density(
    H: Operator,
    *,
    num_probes: int = 8,
    num_matvecs: int = 64,
    grid: Float[Tensor, " grid"] | None = None,
    width: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Tensor | None = None,
    progress: Progress | None = None,
) -> Density:
    """The spectral density of H at every point, from num_probes Lanczos runs of num_matvecs products each.

    width: of the kernel; None: at each point 0.75 times the mean distance of those nodes of a probe that are not
    resolved eigenvalues, the finest that hides the nodes themselves in a bulk, whatever outliers there are; but no
    less than a thousandth, and no more than 1 / (num_matvecs - 1), of (largest - smallest node) times 0.75; the
    latter where all eigenvalues are resolved. grid: one for all points; None: each point's own, over all its nodes
    and five widths beyond, of 512 values, or of up to 16384 so that they lie no more than a quarter of a width
    apart. Where num_params <= num_matvecs the eigenvalues are computed instead, from num_params products: no error
    of probes, and a band of no width. seed, path, probes: as for :func:`trace`, whose samples over n are the means
    of these nodes. Memory: runs in flight are kept under the budget of ``memory``. progress(done, all) is called
    after each block of products; what it raises, or Ctrl-C, stops at once and leaves nothing changed.
    Raises ValueError for options out of range.

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 1.0], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> result = spectral_density(H, grid=torch.tensor([-3.0, 1.0, 4.0]), width=0.1)
    >>> (result.density * 0.1 * (2 * pi) ** 0.5).tolist()  # the peaks: shares 1/4, 2/4, 1/4
    [0.25, 0.5, 0.25]
    """
    _check_options(num_probes, num_matvecs, grid, width, confidence)
    if probes is None and H.num_params <= num_matvecs:
        rule, count = _eigenvalues(H, progress), H.num_params
    else:
        probes = rademacher(H.num_params, num_probes, seed=seed, path=path) if probes is None else checked(probes)
        H.announce(probes.shape[-1] * num_matvecs)
        rule = gauss_rules(H, probes, num_matvecs=num_matvecs, seed=seed, progress=progress)
        count = rule.nodes.shape[-1] * rule.nodes.shape[-2]
    nodes, weights = rule.nodes, rule.weights
    widths = _width(rule, num_matvecs) if width is None else torch.full_like(nodes[..., 0, 0], width)
    lines = _grid(nodes, widths) if grid is None else grid.to(nodes).expand(*nodes.shape[:-2], -1)
    curves = _smoothed(_normal, nodes, weights, lines, widths) / widths[..., None, None]
    band, used = _band(curves, confidence), torch.full_like(widths, count, dtype=torch.long)
    return Density(nodes, weights, rule.residuals, lines, curves.mean(-2), band, widths, used, H.num_params, confidence)


def _check_options(
    num_probes: int, num_matvecs: int, grid: Tensor | None, width: float | None, confidence: float
) -> None:
    check_whole(num_probes=num_probes, num_matvecs=num_matvecs)
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes}: a band needs 2 probes or more")
    if num_matvecs < 1:
        raise ValueError(f"num_matvecs={num_matvecs}: give the Lanczos steps of each probe, 1 or more")
    if grid is not None and not isinstance(grid, Tensor):
        raise ValueError(f"grid is a {type(grid).__name__}; give a tensor [grid], one for all points, or None")
    if grid is not None and (grid.ndim != 1 or len(grid) == 0):
        raise ValueError(f"grid has shape {tuple(grid.shape)}; give [grid], one for all points, or None")
    if width is not None and not 0 < width < inf:
        raise ValueError(f"width={width}: give the kernel's standard deviation, in units of curvature, above 0")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a share between 0 and 1, such as 0.95")


def _eigenvalues(H: Operator, progress: Progress | None) -> GaussRule:
    """All eigenvalues, as one rule of equal weights."""
    dense = H.to_dense()
    total = H.num_params * (H.num_points or 1)
    Count(total, progress).add(total)
    points, bad = finite((dense + dense.mT).reshape(-1, *dense.shape[-2:]))
    nodes = set_nan(eigvalsh(solvable(points) / 2), bad).to(dense).reshape(*dense.shape[:-2], 1, -1)
    weights = torch.full_like(nodes, 1 / H.num_params) + 0 * nodes  # NaN where they are
    return GaussRule(nodes, weights, 0 * nodes)


def _width(rule: GaussRule, num_matvecs: int) -> Float[Tensor, "*point"]:
    """From the spacing of the nodes that are not resolved eigenvalues, of all where all but a few are."""
    nodes = rule.nodes
    reach = nodes.amax((-2, -1)) - nodes.amin((-2, -1))
    whole = reach / max(1, num_matvecs - 1)
    bulk, bulk_reach = _spacing(nodes, ~_resolved(rule))
    spacing = torch.where(bulk_reach > 0, torch.minimum(bulk, whole).maximum(reach / MOST_WIDTHS), whole)
    # A single eigenvalue has no reach; any width shows it.
    size = nodes.abs().amax((-2, -1))
    single = 1e-3 * torch.where(size > 0, size, 1.0)
    return torch.where(reach > 1e-6 * size, spacing / (2 * sqrt(2 * log(1 / DIP))), single)


def _spacing(
    nodes: Float[Tensor, "*point probe node"], chosen: Bool[Tensor, "*point probe node"]
) -> tuple[Float[Tensor, "*point"], Float[Tensor, "*point"]]:
    """Mean distance of the chosen nodes of a probe, and how far those of all probes reach; 0 and less for too few."""
    low = nodes.masked_fill(~chosen, torch.inf).amin((-2, -1))
    high = nodes.masked_fill(~chosen, -torch.inf).amax((-2, -1))
    steps = chosen.sum(-1).to(nodes).mean(-1) - 1
    return (high - low) / steps, torch.where(steps > 1, high - low, torch.zeros_like(steps))


def _resolved(rule: GaussRule) -> Bool[Tensor, "*point probe node"]:
    """Nodes that are eigenvalues, to a tenth of the way to the next node; and those that no probe sees."""
    gap = rule.nodes.diff(dim=-1)
    none = torch.full_like(rule.nodes[..., :1], torch.inf)
    nearest = torch.minimum(torch.cat([none, gap], dim=-1), torch.cat([gap, none], dim=-1))
    return (rule.residuals <= TOGETHER * nearest) | (rule.weights <= torch.finfo(rule.nodes.dtype).eps)


def _grid(nodes: Float[Tensor, "*point probe node"], width: Float[Tensor, "*point"]) -> Float[Tensor, "*point grid"]:
    low, high = nodes.amin((-2, -1)) - TAILS * width, nodes.amax((-2, -1)) + TAILS * width
    needed = ceil(float(((high - low) / width).nan_to_num(nan=0.0).max()) * GRID_PER_WIDTH) + 1
    steps = torch.linspace(0, 1, min(max(GRID, needed), MOST_GRID), dtype=low.dtype, device=low.device)
    return low[..., None] + (high - low)[..., None] * steps


def _has_neighbour(
    nodes: Float[Tensor, "*point probe node"], seen: Bool[Tensor, "*point probe node"], width: Tensor
) -> Bool[Tensor, "*point probe node"]:
    """Which nodes have another of the same probe close by, but not in the same place; shift by shift, both ways."""
    near = torch.zeros_like(seen)
    for shift in range(1, nodes.shape[-1]):
        gap = nodes[..., shift:] - nodes[..., :-shift]
        close = (gap > TOGETHER * width) & (gap < APART * width)
        near[..., shift:] |= close & seen[..., :-shift]
        near[..., :-shift] |= close & seen[..., shift:]
    return near


def _smoothed(
    kernel: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor, grid: Tensor, width: Tensor
) -> Float[Tensor, "*point probe grid"]:
    """Each probe's nodes under the kernel; node by node, for [point, probe, node, grid] would not fit."""
    curves = torch.zeros(*nodes.shape[:-1], grid.shape[-1], dtype=nodes.dtype, device=nodes.device)
    width = width[..., None, None]
    for node, weight in zip(nodes.unbind(-1), weights.unbind(-1), strict=True):
        curves += weight[..., None] * kernel((grid[..., None, :] - node[..., None]) / width)
    return curves


def _normal(steps: Tensor) -> Tensor:
    return torch.exp(-(steps**2) / 2) / sqrt(2 * pi)


def _band(curves: Float[Tensor, "*point probe grid"], confidence: float) -> tuple[Tensor, Tensor]:
    """The mean less and plus Student's t times the standard error; a density is not negative."""
    count, mean = curves.shape[-2], curves.mean(-2)
    if count == 1:
        return mean, mean
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * curves.std(-2) / sqrt(count)
    return (mean - half).clamp(min=0.0), mean + half
