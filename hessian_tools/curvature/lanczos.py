"""Lanczos with full reorthogonalisation, for all points at once; each point stops on its own residuals.

    H q_m = beta_{m-1} q_{m-1} + alpha_m q_m + beta_m q_{m+1}

With T the tridiagonal matrix of the alphas and betas, T s = ritz s gives the pair (ritz, Q s),
whose residual |H Q s - ritz Q s| is beta_m |s_m|, known without a further product: that steers
the stop. The pairs are checked by true products in ``eigen``. (Lanczos 1950; Paige 1972.)
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from hessian_tools.curvature.interface import Operator
from hessian_tools.rng import stream

Which = Literal["LM", "LA", "SA", "BE"]

# A residual, or what is left of a new direction, below this many eps * |H| is rounding.
ROUNDING = 64
# Steer a little below what is asked, to leave room for the rounding of the true residual.
STEER = 0.9


@dataclass(frozen=True)
class Wanted:
    """Some eigenvalues of each point, and how well: residual <= max(rtol * |value|, ROUNDING * eps * |H|)."""

    which: Which
    k: int
    rtol: float

    def pick(self, values: Float[Tensor, "point value"]) -> Int[Tensor, "point k"]:
        """Positions of the wanted in each row: LM by falling magnitude; LA and BE by falling value; SA by rising."""
        if self.which == "LM":
            return values.abs().sort(dim=-1, descending=True, stable=True).indices[:, : self.k]
        falling = values.sort(dim=-1, descending=True, stable=True).indices
        if self.which == "SA":
            return falling.flip(-1)[:, : self.k]
        low = self.k // 2 if self.which == "BE" else 0
        return torch.cat([falling[:, : self.k - low], falling[:, falling.shape[-1] - low :]], dim=-1)

    def tolerance(
        self, values: Float[Tensor, "point value"], norm: Float[Tensor, " point"], dtype: torch.dtype
    ) -> Float[Tensor, "point value"]:
        """The residual allowed to each value; norm: |H| at each point."""
        return torch.maximum(self.rtol * values.abs(), ROUNDING * torch.finfo(dtype).eps * norm[:, None])


@dataclass(frozen=True)
class Ritz:
    """For each point: Ritz vectors as rows, the rows that serve each wish, |H|, and the products used."""

    points: Int[Tensor, " point"]
    vectors: Float[Tensor, "point pair param"]
    rows: tuple[Int[Tensor, "point _"], ...]
    norm: Float[Tensor, " point"]
    num_matvecs: Int[Tensor, " point"]


def lanczos(H: Operator, wishes: tuple[Wanted, ...], *, seed: int, max_steps: int) -> Ritz:
    """Ritz pairs for every wish at every point, from one run a point.

    All points start from one vector, drawn from ``stream(seed, "lanczos", 0)``. A point leaves the
    batch when all its wishes are met, when a number is not finite (its vectors are then NaN), or after
    ``max_steps`` products. Memory: one vector of length param per point and step.

    One start sees one copy of a multiple eigenvalue. Where its Krylov space is exhausted, a new random
    vector follows, and another, until an exhausted space has brought no wish a better value.
    """
    first = _random_vector(H, seed, 0)
    run = _start(H, (first / first.norm())[None], room=16, wanted=sum(wish.k for wish in wishes))
    most = min(max_steps, H.num_params)
    left: list[Ritz] = []
    while len(run.points):
        run = _advance(run, seed)
        broken = ~torch.isfinite(run.alphas[:, -1] + run.betas[:, -1])
        if broken.any():
            left.append(_unknown(run.keep(broken), wishes))
            run = run.keep(~broken)
        due = run.steps == most or run.steps % max(1, run.steps // 16) == 0
        if len(run.points) and (due or run.exhausted.any()):
            leaving, run = _finished(run, wishes)
            leaving |= run.steps == most
            if leaving.any():
                left.append(_ritz(run.keep(leaving), wishes))
                run = run.keep(~leaving)
    return _together(left)


@dataclass(frozen=True)
class _Run:
    """The points still running: basis vectors as rows (room for more behind), coefficients in float64 on the CPU.

    found: the wanted values when a Krylov space was last exhausted, NaN before that.
    """

    H: Operator
    points: Int[Tensor, " point"]
    basis: Float[Tensor, "point room param"]
    alphas: Float[Tensor, "point step"]
    betas: Float[Tensor, "point step"]
    found: Float[Tensor, "point wanted"]

    @property
    def exhausted(self) -> Bool[Tensor, " point"]:
        """Where the last step left the Krylov space."""
        return self.betas[:, -1] == 0

    @property
    def steps(self) -> int:
        return self.alphas.shape[-1]

    def keep(self, who: Bool[Tensor, " point"]) -> "_Run":
        """The run of some of the points; H is not touched when none is left."""
        where = who.nonzero()[:, 0]
        H = self.H if len(where) in (0, len(who)) else self.H.select(where)
        basis = self.basis if who.all() else self.basis[where.to(self.basis.device)]
        return _Run(H, self.points[where], basis, self.alphas[where], self.betas[where], self.found[where])


@dataclass(frozen=True)
class GaussRule:
    """Nodes, rising, their weights, and how far off an eigenvalue may be from a node: some eigenvalue is that near."""

    nodes: Float[Tensor, "*point node"]
    weights: Float[Tensor, "*point node"]
    residuals: Float[Tensor, "*point node"]


def gauss_quadrature(H: Operator, starts: Float[Tensor, "point param"], *, num_steps: int, seed: int) -> GaussRule:
    """Nodes, rising, and weights of the Gauss rule of each point's spectral measure as seen from its start z.

    sum_i weights[i] nodes[i]^j = z'H^j z / z'z for j = 0 .. 2 num_steps - 1 (Golub, Meurant 1994): the nodes
    are the eigenvalues of T, the weights the squared first components of its eigenvectors. The number of
    nodes is the smaller of num_steps and param; those past an exhausted Krylov space have weight zero.
    residuals: beta_m times the last components, as in ``lanczos``. float64 on the CPU; NaN at a point with a number
    that is not finite.
    """
    num_steps = min(num_steps, H.num_params)
    run = _start(H, starts / starts.norm(dim=-1, keepdim=True), room=num_steps)
    for _ in range(num_steps):
        run = _advance(run, seed)
    broken = ~torch.isfinite(run.alphas + run.betas).all(-1, keepdim=True)
    whole = replace(run, alphas=run.alphas.masked_fill(broken, 0.0), betas=run.betas.masked_fill(broken, 0.0))
    values, vectors = _decompose(whole)
    residuals = whole.betas[:, -1:] * vectors[:, -1].abs()
    return GaussRule(*(part.masked_fill(broken, torch.nan) for part in (values, vectors[:, 0] ** 2, residuals)))


def _start(H: Operator, first: Float[Tensor, "#point param"], *, room: int, wanted: int = 0) -> _Run:
    """No step done; first: unit vectors, one a point or one for all."""
    num_points, num_params = H.num_points or 1, H.num_params
    basis = torch.empty(num_points, min(room, num_params), num_params, dtype=H.dtype, device=H.device)
    basis[:, 0] = first
    nothing = torch.empty(num_points, 0, dtype=torch.float64)
    found = torch.full((num_points, wanted), torch.nan, dtype=torch.float64)
    return _Run(H, torch.arange(num_points), basis, nothing, nothing, found)


def _random_vector(H: Operator, seed: int, step: int) -> Float[Tensor, " param"]:
    drawn = torch.randn(H.num_params, generator=stream(seed, "lanczos", step), dtype=torch.float64)
    return drawn.to(H.device, H.dtype)


def _advance(run: _Run, seed: int) -> _Run:
    """One product a point: the next alpha, beta and basis row."""
    steps, num_params = run.steps + 1, run.H.num_params
    last, rows = run.basis[:, steps - 1], run.basis[:, :steps]
    w = run.H.products(last[..., None])[..., 0]
    alpha = (w * last).sum(-1)
    w = _orthogonal(w, rows)
    beta = w.norm(dim=-1)
    run = replace(run, alphas=_append(run.alphas, alpha), betas=_append(run.betas, beta))
    # What is left of a direction in an exhausted Krylov space is rounding: start again at random.
    scale = torch.cat([run.alphas.abs(), run.betas], dim=-1).amax(-1)
    spent = (run.betas[:, -1] <= ROUNDING * torch.finfo(run.H.dtype).eps * scale) | (steps == num_params)
    run.betas[spent, -1] = 0.0
    if steps == num_params:
        return run
    if spent.any():
        where = spent.to(w.device)
        fresh = _orthogonal(_random_vector(run.H, seed, steps).expand_as(w[where]), rows[where])
        w[where], beta[where] = fresh, fresh.norm(dim=-1)
    return replace(run, basis=_with_row(run.basis, steps, w / beta[:, None]))


def _orthogonal(
    w: Float[Tensor, "point param"], rows: Float[Tensor, "point row param"]
) -> Float[Tensor, "point param"]:
    """w less its part in the span of the rows; twice is enough (Parlett 1980).

    As row vector times matrix: as matrix times column torch's batched product is ten times slower.
    """
    w = w[:, None]
    for _ in range(2):
        w = w - (w @ rows.mT) @ rows
    return w[:, 0]


def _append(series: Float[Tensor, "point step"], new: Float[Tensor, " point"]) -> Float[Tensor, "point longer"]:
    return torch.cat([series, new.double().cpu()[:, None]], dim=-1)


def _with_row(basis: Tensor, at: int, row: Tensor) -> Tensor:
    if at == basis.shape[1]:
        room = basis.new_empty(basis.shape[0], min(at, basis.shape[2] - at), basis.shape[2])
        basis = torch.cat([basis, room], dim=1)
    basis[:, at] = row
    return basis


def _decompose(run: _Run) -> tuple[Float[Tensor, "point value"], Float[Tensor, "point step value"]]:
    """Eigenvalues, rising, and eigenvectors of each point's tridiagonal matrix."""
    off = run.betas[:, :-1]
    T = torch.diag_embed(run.alphas) + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    values, vectors = torch.linalg.eigh(T)
    return values, vectors


def _finished(run: _Run, wishes: tuple[Wanted, ...]) -> tuple[Bool[Tensor, " point"], _Run]:
    """Where every wish is met by the recurrence's residuals; once exhausted, where exhaustion brought nothing new."""
    met = torch.ones(len(run.points), dtype=torch.bool)
    if run.steps < max(wish.k for wish in wishes):
        return ~met, run
    values, vectors = _decompose(run)
    residuals, norm = run.betas[:, -1:] * vectors[:, -1].abs(), values.abs().amax(-1)
    picks = [wish.pick(values) for wish in wishes]
    for wish, pick in zip(wishes, picks, strict=True):
        met &= (residuals <= STEER * wish.tolerance(values, norm, run.H.dtype)).gather(-1, pick).all(-1)
    wanted = values.gather(-1, torch.cat(picks, dim=-1))
    settled = ((wanted - run.found).abs() <= ROUNDING * torch.finfo(run.H.dtype).eps * norm[:, None]).all(-1)
    run = replace(run, found=torch.where(run.exhausted[:, None], wanted, run.found))
    return torch.where((run.betas == 0).any(-1), run.exhausted & settled, met), run


def _ritz(run: _Run, wishes: tuple[Wanted, ...]) -> Ritz:
    """The wanted pairs of each point, each once though several wishes may share it."""
    values, vectors = _decompose(run)
    picks = [wish.pick(values) for wish in wishes]
    wanted = torch.zeros_like(values, dtype=torch.bool).scatter(-1, torch.cat(picks, dim=-1), True)
    # Points may want different numbers of pairs; the shorter are filled up with their next ones.
    columns = wanted.sort(dim=-1, descending=True, stable=True).indices[:, : int(wanted.sum(-1).max())]
    place = wanted.cumsum(-1) - 1
    chosen = vectors.gather(-1, columns[:, None].expand(-1, run.steps, -1)).to(run.basis)
    count = torch.full_like(run.points, run.steps)
    rows = tuple(place.gather(-1, pick) for pick in picks)
    return Ritz(run.points, chosen.mT @ run.basis[:, : run.steps], rows, values.abs().amax(-1), count)


def _unknown(run: _Run, wishes: tuple[Wanted, ...]) -> Ritz:
    """For points where a product was not finite."""
    nan = run.basis.new_full((len(run.points), 1, run.H.num_params), torch.nan)
    rows = tuple(torch.zeros(len(run.points), wish.k, dtype=torch.long) for wish in wishes)
    norm = torch.full((len(run.points),), torch.nan, dtype=torch.float64)
    return Ritz(run.points, nan, rows, norm, torch.full_like(run.points, run.steps))


def _together(left: list[Ritz]) -> Ritz:
    """All points in their first order; absent pairs are zero vectors, which no wish refers to."""
    order = torch.cat([r.points for r in left]).argsort()
    pairs = max(r.vectors.shape[1] for r in left)
    vectors = torch.cat([pad(r.vectors, (0, 0, 0, pairs - r.vectors.shape[1])) for r in left])
    rows = tuple(torch.cat(parts)[order] for parts in zip(*(r.rows for r in left), strict=True))
    norm, count = torch.cat([r.norm for r in left])[order], torch.cat([r.num_matvecs for r in left])[order]
    return Ritz(torch.arange(len(order)), vectors[order.to(vectors.device)], rows, norm, count)
