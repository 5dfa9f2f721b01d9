"""The trace, squared Frobenius norm and diagonal, estimated from the same products, each with its standard error."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from hessian_tools.curvature.estimates.trace import (
    Estimate,
    check_probes,
    estimate_of,
    exact_estimate,
    over_probes,
    rademacher,
)
from hessian_tools.curvature.operators.operator import Operator, part_by_part
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.rng import PathPart


@dataclass(frozen=True, repr=False)
class Diagonal(Result):
    """An estimate of every diagonal entry with its standard error; ``converged`` is True where both are finite.

    Entries estimated from the same probes have correlated errors, so the error of a sum of entries does not follow
    from their standard errors.
    """

    value: Float[Tensor, "*point param"]
    stderr: Float[Tensor, "*point param"]
    converged: Bool[Tensor, "*point param"]
    num_matvecs: Int[Tensor, "*point"]


@dataclass(frozen=True, repr=False)
class Moments(Result):
    """tr H, |H|_F^2 = tr H^2 and diag H at every point, from the same products; each ``num_matvecs`` counts them all.

    frobenius_squared is not ``converged`` where squares underflow or overflow. In float32 this happens where entries of
    Hz are about 1e-19 or less, or 1e19 or more; use float64 there.
    """

    trace: Estimate
    frobenius_squared: Estimate
    diagonal: Diagonal

    def _repr_html_(self) -> str:
        parts = {"trace": self.trace, "squared Frobenius norm": self.frobenius_squared}
        return "".join(f"<div>Moments, {name}</div>{part._repr_html_()}" for name, part in parts.items())


def moments(
    H: Operator,
    *,
    num_probes: int = 64,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Num[Tensor, "*#point param probe"] | None = None,
    progress: Progress | None = None,
) -> Moments:
    """Trace, squared Frobenius norm and diagonal at every point: means over probes z of z'Hz, |Hz|^2 and z * Hz.

    With n Rademacher probes the squared stderr estimates 2 sum_{i != j} H_ij^2 / n for the trace (Hutchinson 1990),
    2 sum_{i != j} (H^2)_ij^2 / n for the norm, and sum_{j != i} H_ij^2 / n for entry i of the diagonal (Bekas,
    Kokiopoulou, Saad 2007). If num_params <= num_probes, all three are exact, with stderr 0, from num_params
    products. seed, path, probes, progress: as for :func:`trace`, which has the same samples if its method is "probes".
    Raises ValueError for fewer than two probes.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
    >>> result = moments(H, num_probes=8)
    >>> float(result.trace.value), float(result.frobenius_squared.value), result.diagonal.value.tolist()
    (3.0, 21.0, [1.0, -2.0, 4.0])
    """
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes}: a standard error needs 2 probes or more")
    if probes is None and H.num_params <= num_probes:
        return _exact(H, num_probes, progress)
    if probes is None:
        probes = rademacher(H.num_params, num_probes, seed=seed, path=path)
    check_probes(probes)
    H.announce(probes.shape[-1])  # so that H takes the quickest engine for this number of products
    counter = ProgressCounter(probes.shape[-1] * len(H.parts()), progress)

    def part_moments(part: Operator, rows: slice) -> tuple[Tensor, ...]:
        """The samples, and the diagonal with its error, at some of the points of H. rows: their positions."""
        diagonal = _RunningSpread()

        def of_block(Z: Tensor, HZ: Tensor) -> tuple[Tensor, Tensor]:
            """The samples of the trace and of the squared norm; those of the diagonal go into its running mean."""
            nonlocal diagonal
            products = Z * HZ
            diagonal = diagonal.joined(products)
            return products.sum(-2), _sum_of_squares(HZ, -2)

        traces, squares = zip(*over_probes(part, rows, H, probes, counter, of_block), strict=True)
        return torch.cat(traces, dim=-1), torch.cat(squares, dim=-1), diagonal.mean, diagonal.stderr

    traces, squares, mean, stderr = part_by_part(H, part_moments)
    trace = estimate_of(traces)
    return Moments(trace, _without_underflow(estimate_of(squares), H), _diagonal(mean, stderr, trace.num_matvecs))


def frobenius_squared(
    H: Operator,
    *,
    num_probes: int = 64,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Num[Tensor, "*#point param probe"] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """|H|_F^2, the sum of the squared eigenvalues, at every point; arguments as for :func:`moments`.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
    >>> float(frobenius_squared(H).value)
    21.0
    """
    return moments(H, num_probes=num_probes, seed=seed, path=path, probes=probes, progress=progress).frobenius_squared


def diagonal(
    H: Operator,
    *,
    num_probes: int = 64,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Num[Tensor, "*#point param probe"] | None = None,
    progress: Progress | None = None,
) -> Diagonal:
    """The diagonal at every point, with a standard error for each entry; arguments as for :func:`moments`.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
    >>> diagonal(H).value
    tensor([ 1., -2.,  4.])
    """
    return moments(H, num_probes=num_probes, seed=seed, path=path, probes=probes, progress=progress).diagonal


@dataclass(frozen=True)
class _RunningSpread:
    """Mean and spread of all samples so far, without keeping the samples (Chan, Golub, LeVeque 1983).

    deviations: the sum of squared deviations from the mean, in units of ``unit`` squared. unit: the largest absolute
    value of each entry in the first block of samples; without it the squares of small entries would vanish in float32.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    deviations: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    unit: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))

    def joined(self, samples: Float[Tensor, "*point param probe"]) -> "_RunningSpread":
        """The mean and spread of the samples so far together with these."""
        new, mean = samples.shape[-1], samples.mean(-1)
        unit = self.unit if self.count else samples.abs().amax(-1)
        unit = torch.where(unit == 0, 1.0, unit)
        count, shift = self.count + new, mean - self.mean.to(mean)
        deviations = self.deviations.to(mean) + (((samples - mean[..., None]) / unit[..., None]) ** 2).sum(-1)
        deviations = deviations + (shift / unit) ** 2 * (self.count * new / count)
        return _RunningSpread(count, self.mean.to(mean) + shift * (new / count), deviations, unit)

    @property
    def stderr(self) -> Tensor:
        """The standard error of the mean."""
        return self.unit * (self.deviations / ((self.count - 1) * self.count)).sqrt()


def _exact(H: Operator, num_probes: int, progress: Progress | None) -> Moments:
    """The exact trace, squared norm and diagonal, from the dense matrix."""
    n = H.num_params
    dense = H.to_dense()
    ProgressCounter(n, progress).add(n)
    entries = dense.diagonal(dim1=-2, dim2=-1).clone()
    sums = (entries.sum(-1), _sum_of_squares(dense, (-2, -1)))
    trace, squares = (exact_estimate(value, num_probes, num_matvecs=n, method="diagonal") for value in sums)
    squares = _without_underflow(replace(squares, method="dense"), H)
    return Moments(trace, squares, _diagonal(entries, entries * 0, trace.num_matvecs))


def _sum_of_squares(values: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The sum of squares, or the smallest positive number where all squares have underflowed to 0.

    :func:`_without_underflow` recognises this number as a sum whose terms have vanished.
    """
    squares = (values**2).sum(dims)
    smallest = torch.finfo(values.dtype).tiny * torch.finfo(values.dtype).eps
    return torch.where((squares == 0) & (values != 0).any(dims), smallest, squares)


def _without_underflow(squares: Estimate, H: Operator) -> Estimate:
    """The estimate, with converged False where squares may have fallen below the dtype's smallest number."""
    small = (squares.samples > 0) & (squares.samples < H.num_params * torch.finfo(H.dtype).tiny)
    return replace(squares, converged=squares.converged & ~small.any(-1))


def _diagonal(value: Tensor, stderr: Tensor, num_matvecs: Tensor) -> Diagonal:
    """The result, with ``converged`` from the other fields."""
    return Diagonal(value, stderr, torch.isfinite(value) & torch.isfinite(stderr), num_matvecs)
