"""The spectral density at every point by stochastic Lanczos quadrature, with a confidence band from several probes.

A probe z gives the spectral measure sum_i (u_i'z)^2 / z'z delta(lambda - lambda_i), where u_i are the eigenvectors. Its
mean over probes is the spectral density, in which each of n eigenvalues has weight 1/n. Lanczos from z gives the Gauss
rule of that measure, which is exact for every polynomial up to degree 2 num_matvecs - 1. An isolated eigenvalue is a
node of its own, and the other eigenvalues share the other nodes. There is one Lanczos run for each probe and point, and
as many runs are computed at once as fit in memory with their basis vectors.
(Golub, Meurant 1994; Lin, Saad, Yang 2016; Ubaru, Chen, Saad 2017.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log, pi, sqrt

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from hessian_tools.curvature.eigen.lanczos import gauss_quadrature
from hessian_tools.curvature.eigen.small_eigh import eigvalsh, finite, set_nan, solvable
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.estimates.trace import check_probes, rademacher
from hessian_tools.curvature.html import density_html
from hessian_tools.curvature.operators.composite import Derived
from hessian_tools.curvature.operators.operator import Operator, part_by_part
from hessian_tools.intervals import student_t
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.rng import PathPart

# A grid has GRID_SIZE values, or more where the kernel's width needs GRID_PER_WIDTH of them, up to MAX_GRID_SIZE.
GRID_SIZE, GRID_PER_WIDTH, MAX_GRID_SIZE = 512, 4, 2**14
# A grid reaches this many widths beyond the outermost nodes, so that less than 1e-6 of the density is cut off.
TAIL_WIDTHS = 5
# Half-way between evenly spaced nodes the kernel falls to this share of its peak, which leaves no gaps and little blur.
# exp(-(spacing / 2)^2 / (2 width^2)) = KERNEL_DIP gives width = spacing / (2 sqrt(2 ln(1 / KERNEL_DIP))), that is
# 0.75 spacings.
KERNEL_DIP = 0.8
# The default width is at least the length of the spectrum, from smallest to largest node, divided by MAX_WIDTHS and
# times the 0.75 above.
MAX_WIDTHS = 1000
# An isolated node has no other node within ISOLATION widths, because nearer than that two equal kernels merge into one
# peak. Nodes within SAME_PLACE widths count as one, and a node whose residual is below SAME_PLACE widths counts as an
# eigenvalue.
ISOLATION, SAME_PLACE = 2.0, 0.1


@dataclass(frozen=True)
class GaussRule:
    """Ascending nodes, their weights and residuals. An exact eigenvalue lies within the residual of each node."""

    nodes: Float[Tensor, "*point node"]
    weights: Float[Tensor, "*point node"]
    residuals: Float[Tensor, "*point node"]


def quadrature(
    H: Operator, probes: Num[Tensor, "*#point param probe"], *, num_matvecs: int, seed: int = 0
) -> tuple[Float[Tensor, "*point probe node"], Float[Tensor, "*point probe node"]]:
    """The ascending nodes and the weights of each probe's Gauss rule.

    The rule integrates powers of the eigenvalues exactly: sum_i weights[i] nodes[i]^j = z'H^j z / z'z for all j < 2 m,
    where m = min(num_matvecs, num_params) is the number of nodes.
    probes: [param, probe] for all points or [point, param, probe]; their lengths |z| do not matter. seed: of the random
    vectors that continue a run whose Krylov space is exhausted.
    Raises ValueError for probes of another shape.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> nodes, weights = quadrature(H, torch.ones(2, 1), num_matvecs=1)  # z'Hz / z'z
    >>> round(float(nodes), 6), round(float(weights), 6)
    (2.0, 1.0)
    """
    rule = gauss_rules(H, probes, num_matvecs=num_matvecs, seed=seed)
    return rule.nodes, rule.weights


def gauss_rules(
    H: Operator, probes: Tensor, *, num_matvecs: int, seed: int = 0, progress: Progress | None = None
) -> GaussRule:
    """The rules of :func:`quadrature` with their residuals, as tensors [*point, probe, node]."""
    num_points = H.num_points or 1
    if probes.ndim not in (2, 3) or probes.shape[-2] != H.num_params or probes.shape[:-2] not in ((), (num_points,)):
        raise ValueError(
            f"probes have shape {list(probes.shape)}; give [{H.num_params}, probe] or "
            f"[{num_points}, {H.num_params}, probe]"
        )
    steps = min(int(num_matvecs), H.num_params)
    counter = ProgressCounter(num_points * probes.shape[-1] * steps, progress)

    def part_rules(part: Operator, rows: slice) -> tuple[Tensor, ...]:
        """The rules at some of the points of H. rows: the positions of these points."""
        return _rules_in_blocks(part, probes if probes.ndim == 2 else probes[rows], steps, seed, counter)

    rules = part_by_part(H, part_rules)
    return GaussRule(*(tensor[0] for tensor in rules)) if H.num_points is None else GaussRule(*rules)


def _rules_in_blocks(
    H: Operator, probes: Tensor, steps: int, seed: int, counter: ProgressCounter
) -> tuple[Tensor, ...]:
    """Nodes, weights and residuals, from as many Lanczos runs at a time as fit in memory with their basis vectors."""
    run_bytes = steps * H.num_params * H.dtype.itemsize
    max_runs = max(1, memory_budget(H.device) // run_bytes)
    num_points, pieces = H.num_points or 1, []
    for points in torch.arange(num_points, device="cpu").split(max_runs):
        selected = H if len(points) == num_points else H.select(points)
        columns = probes if probes.ndim == 2 else probes[points.to(probes.device)]
        blocks = columns.split(max(1, max_runs // len(points)), dim=-1)
        rules = [_rules_of_one_run(selected, block.to(H.device, H.dtype), steps, seed, counter) for block in blocks]
        # The nodes, weights and residuals of all probes at these points.
        pieces.append([torch.cat(tensors, dim=-2) for tensors in zip(*rules, strict=True)])
    return tuple(torch.cat(tensors).to(H.device, H.dtype) for tensors in zip(*pieces, strict=True))


def _rules_of_one_run(H: Operator, probes: Tensor, steps: int, seed: int, counter: ProgressCounter) -> list[Tensor]:
    """Nodes, weights and residuals [point, probe, node] of all points and probes, from one batched Lanczos run."""
    num_points, num_probes = H.num_points or 1, probes.shape[-1]
    starts = probes.mT.expand(num_points, num_probes, -1).flatten(0, 1)
    tensors = gauss_quadrature(_ProbesAsPoints(H, num_probes, counter), starts, num_steps=steps, seed=seed)
    return [tensor.unflatten(0, (num_points, num_probes)) for tensor in tensors]


@dataclass(frozen=True)
class _ProbesAsPoints(Derived):
    """H with every pair (point, probe) as a separate point. Its products are block products of H."""

    H: Operator
    num_probes: int
    counter: ProgressCounter

    @property
    def source(self) -> Operator:
        """The operator from which ``Derived`` takes the size, the dtype and the device."""
        return self.H

    @property
    def num_points(self) -> int:
        return (self.H.num_points or 1) * self.num_probes

    def products(self, V: Float[Tensor, "run param column"]) -> Float[Tensor, "run param column"]:
        # Lanczos multiplies one column for each run, so the last axis has length one.
        columns = V[..., 0].unflatten(0, (-1, self.num_probes)).mT
        products = self.H.products(columns).mT.flatten(0, 1)[..., None]
        self.counter.add(self.num_points)
        return products

    def select(self, points: Int[Tensor, " chosen"]) -> Operator:
        raise NotImplementedError("the runs of one point stay together; select points of H instead")


@dataclass(frozen=True, repr=False)
class Density(Result):
    """The share of eigenvalues per unit of curvature on a grid at each point; its integral is 1.

    nodes, weights: the Gauss rule of each probe, whose weights sum to 1. If the eigenvalues themselves were computed,
    there is a single row with all of them and equal weights. residuals: at least one exact eigenvalue lies within this
    distance of the node, up to rounding. Residuals are large in the bulk of the spectrum and tiny at outliers; see
    :attr:`isolated`.
    grid, density: the density on the grid, which is the mean over probes of their weighted nodes, smoothed by a normal
    kernel of standard deviation ``width``.
    band: a confidence band (low, high) by Student's t over probes. The level ``confidence`` holds for each grid value,
    not for all of them at once.
    num_matvecs: products at each point. All results are NaN at a point that is not finite.

    The band covers the randomness of the probes. It does not cover the blur by the kernel (features narrower than the
    width look as wide as the width), structure that num_matvecs steps do not resolve, or errors common to all points
    that share the probes.
    The band is too narrow where few eigenvalues carry the density. The weight of a single outlier, for example, has a
    relative error of about sqrt(2 / number of probes), although its position is known far better.
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
        """The smoothed density of each probe, which gives the errors of aggregates over points that share probes."""
        return _smoothed(_normal, self.nodes, self.weights, self.grid, self.width) / self.width[..., None, None]

    @property
    def cumulative(self) -> Float[Tensor, "*point grid"]:
        """The share of eigenvalues below each grid point, from 0 to 1, smoothed by the same kernel."""
        shares = _smoothed(torch.special.ndtr, self.nodes, self.weights, self.grid, self.width)
        return shares.mean(-2)

    def shares(
        self, edges: Float[Tensor, " edge"]
    ) -> tuple[Float[Tensor, "*point cell"], Float[Tensor, "*point cell"]]:
        """The share of eigenvalues between each edge and the next, and its standard error over probes.

        edges: rising numbers, in units of curvature. The cells between them may be much wider than the kernel, so the
        bulk and distant outliers fit into one histogram. An outlier is counted in its cell, whereas the values
        of the density on a grid may miss its narrow peak. The error is 0 where the eigenvalues themselves were
        computed. Raises ValueError for fewer than two edges, or edges that do not rise.

        >>> from hessian_tools.curvature import hessian
        >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, 2.0, 1e6]))
        >>> share, stderr = spectral_density(H, width=0.1).shares(torch.tensor([0.0, 1.5, 1e3, 1e9]))
        >>> [round(float(value), 4) for value in share]
        [0.3333, 0.3333, 0.3333]
        """
        if edges.ndim != 1 or len(edges) < 2 or not (edges.diff() > 0).all():
            raise ValueError(f"edges have shape {tuple(edges.shape)}; give two or more rising numbers on one axis")
        at_edges = edges.to(self.nodes).expand(*self.nodes.shape[:-2], -1)
        shares = _smoothed(torch.special.ndtr, self.nodes, self.weights, at_edges, self.width).diff(dim=-1)
        return shares.mean(-2), _stderr(shares)

    @property
    def isolated(self) -> Bool[Tensor, "*point probe node"]:
        """True for nodes that lie within 0.1 widths of an eigenvalue and have no other node within two widths.

        Such nodes are outliers, or clusters much narrower than the width, such as the zeros of a matrix of low rank.
        """
        width = self.width[..., None, None]
        has_weight = self.weights > torch.finfo(self.weights.dtype).eps
        known = has_weight & (self.residuals <= SAME_PLACE * width)
        crowded = torch.zeros_like(has_weight)
        for shift in range(1, self.nodes.shape[-1]):  # all pairs of a probe's nodes whose ranks differ by shift
            gap = self.nodes[..., shift:] - self.nodes[..., :-shift]
            # Two nodes at the same place count as one, so they do not crowd each other.
            close = (gap > SAME_PLACE * width) & (gap < ISOLATION * width)
            crowded[..., shift:] |= close & has_weight[..., :-shift]
            crowded[..., :-shift] |= close & has_weight[..., shift:]
        return known & ~crowded


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
    probes: Num[Tensor, "*#point param probe"] | None = None,
    progress: Progress | None = None,
) -> Density:
    """The spectral density of H at every point, from num_probes Lanczos runs of num_matvecs products each.

    Where num_params <= num_matvecs the eigenvalues are computed instead, from num_params products. Then no probes are
    used, and the band has no width.

    width: standard deviation of the kernel in units of curvature. None chooses, at each point, the narrowest kernel
    under which single nodes of the bulk do not show as peaks: 0.75 times the mean spacing of the nodes of a probe.
    Nodes that are resolved eigenvalues do not count, so that outliers do not matter. With L = largest - smallest node,
    this width is at least 0.75 L / 1000 and at most 0.75 L / (num_matvecs - 1). It equals this maximum where all
    eigenvalues are resolved.
    grid: the curvatures at which the density is computed, for all points. None gives each point its own grid, which
    reaches five widths beyond its nodes. It has 512 values, or up to 16384 if neighbours would lie more than a quarter
    of a width apart.
    confidence: the level of the band.
    seed, path, probes: as for :func:`trace`. With the same probes, the weighted mean of a probe's nodes is its sample
    of the trace divided by num_params.
    progress: called with (done, total) products. As many Lanczos runs are computed at once as fit in memory.
    Raises ValueError for options out of range.

    >>> from hessian_tools.curvature import hessian
    >>> spectrum = torch.tensor([4.0, -3.0, 1.0, 1.0], dtype=torch.float64)
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4, dtype=torch.float64), spectrum)
    >>> result = spectral_density(H, grid=torch.tensor([-3.0, 1.0, 4.0]), width=0.1)
    >>> (result.density * 0.1 * (2 * pi) ** 0.5).tolist()  # the peaks: shares 1/4, 2/4, 1/4
    [0.25, 0.5, 0.25]
    """
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes}: a confidence band needs 2 probes or more")
    if probes is None and H.num_params <= num_matvecs:
        rule, count = _eigenvalues(H, progress), H.num_params
    else:
        probes = rademacher(H.num_params, num_probes, seed=seed, path=path) if probes is None else probes
        check_probes(probes)
        H.announce(probes.shape[-1] * num_matvecs)  # so that H takes the quickest engine for so many products
        rule = gauss_rules(H, probes, num_matvecs=num_matvecs, seed=seed, progress=progress)
        count = rule.nodes.shape[-1] * rule.nodes.shape[-2]
    nodes, weights = rule.nodes, rule.weights
    widths = _width(rule, num_matvecs) if width is None else torch.full_like(nodes[..., 0, 0], width)
    grids = _grid(nodes, widths) if grid is None else grid.to(nodes).expand(*nodes.shape[:-2], -1)
    curves = _smoothed(_normal, nodes, weights, grids, widths) / widths[..., None, None]
    num_curves, mean = curves.shape[-2], curves.mean(-2)  # one curve for each probe, or a single one of eigenvalues
    half_width = 0 * mean if num_curves == 1 else student_t(num_curves, confidence) * _stderr(curves)
    band = ((mean - half_width).clamp(min=0.0), mean + half_width)  # a density is not negative
    matvecs = torch.full_like(widths, count, dtype=torch.long)
    return Density(nodes, weights, rule.residuals, grids, mean, band, widths, matvecs, H.num_params, confidence)


def _eigenvalues(H: Operator, progress: Progress | None) -> GaussRule:
    """All eigenvalues, as one Gauss rule of equal weights."""
    dense = H.to_dense()
    total = H.num_params * (H.num_points or 1)
    ProgressCounter(total, progress).add(total)
    # The symmetric part. Points that are not finite are zero for LAPACK, which refuses NaN, and become NaN afterwards.
    points, nonfinite = finite((dense + dense.mT).reshape(-1, *dense.shape[-2:]))
    nodes = set_nan(eigvalsh(solvable(points) / 2), nonfinite).to(dense).reshape(*dense.shape[:-2], 1, -1)
    weights = torch.full_like(nodes, 1 / H.num_params) + 0 * nodes  # NaN where the nodes are
    return GaussRule(nodes, weights, 0 * nodes)


def _width(rule: GaussRule, num_matvecs: int) -> Float[Tensor, "*point"]:
    """The default width, from the spacing of the nodes that are not resolved eigenvalues.

    If the probes have on average no more than two such nodes, the width comes instead from the length of the spectrum
    divided by the number of steps.
    """
    nodes, bulk = rule.nodes, ~_resolved(rule)
    length = nodes.amax((-2, -1)) - nodes.amin((-2, -1))
    even_spacing = length / max(1, num_matvecs - 1)
    highest = nodes.masked_fill(~bulk, -torch.inf).amax((-2, -1))
    lowest = nodes.masked_fill(~bulk, torch.inf).amin((-2, -1))
    bulk_length = highest - lowest
    gaps = bulk.sum(-1).to(nodes).mean(-1) - 1  # the number of gaps in a probe's bulk, on average
    bulk_spacing = torch.minimum(bulk_length / gaps, even_spacing).maximum(length / MAX_WIDTHS)
    spacing = torch.where((gaps > 1) & (bulk_length > 0), bulk_spacing, even_spacing)
    # A spectrum of a single eigenvalue has no length, and any small width shows it.
    largest = nodes.abs().amax((-2, -1))
    single = 1e-3 * torch.where(largest > 0, largest, 1.0)
    return torch.where(length > 1e-6 * largest, spacing / (2 * sqrt(2 * log(1 / KERNEL_DIP))), single)


def _resolved(rule: GaussRule) -> Bool[Tensor, "*point probe node"]:
    """True for nodes that do not count as bulk.

    Their residual is below a tenth of the distance to the nearest other node, or their weight is no more than rounding.
    """
    gap = rule.nodes.diff(dim=-1)
    no_gap = torch.full_like(rule.nodes[..., :1], torch.inf)
    nearest = torch.minimum(torch.cat([no_gap, gap], dim=-1), torch.cat([gap, no_gap], dim=-1))
    return (rule.residuals <= SAME_PLACE * nearest) | (rule.weights <= torch.finfo(rule.nodes.dtype).eps)


def _grid(nodes: Float[Tensor, "*point probe node"], width: Float[Tensor, "*point"]) -> Float[Tensor, "*point grid"]:
    """A grid for each point; all have the same number of values."""
    low, high = nodes.amin((-2, -1)) - TAIL_WIDTHS * width, nodes.amax((-2, -1)) + TAIL_WIDTHS * width
    # At points that are not finite, low and high are NaN; they need no grid of their own.
    needed = ceil(float(((high - low) / width).nan_to_num(nan=0.0).max()) * GRID_PER_WIDTH) + 1
    steps = torch.linspace(0, 1, min(max(GRID_SIZE, needed), MAX_GRID_SIZE), dtype=low.dtype, device=low.device)
    return low[..., None] + (high - low)[..., None] * steps


def _smoothed(
    kernel: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor, grid: Tensor, width: Tensor
) -> Float[Tensor, "*point probe grid"]:
    """The sum over each probe's nodes of weight times kernel((grid - node) / width)."""
    curves = torch.zeros(*nodes.shape[:-1], grid.shape[-1], dtype=nodes.dtype, device=nodes.device)
    width = width[..., None, None]
    # One node at a time, because a tensor [point, probe, node, grid] would not fit in memory.
    for node, weight in zip(nodes.unbind(-1), weights.unbind(-1), strict=True):
        curves += weight[..., None] * kernel((grid[..., None, :] - node[..., None]) / width)
    return curves


def _stderr(curves: Float[Tensor, "*point probe grid"]) -> Float[Tensor, "*point grid"]:
    """The standard error of the mean over probes; 0 for the one curve of exact eigenvalues."""
    num_curves = curves.shape[-2]
    return 0 * curves[..., 0, :] if num_curves == 1 else curves.std(-2) / sqrt(num_curves)


def _normal(steps: Tensor) -> Tensor:
    """The density of the standard normal distribution."""
    return torch.exp(-(steps**2) / 2) / sqrt(2 * pi)
