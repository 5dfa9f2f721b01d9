"""The trace by random probes, with an error bar that is one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from hessian_tools.curvature.html import estimate_html
from hessian_tools.curvature.interface import Operator
from hessian_tools.rng import PathPart, stream

# Products held at once: the probes of a block, not all of them.
BLOCK = 16


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes and its standard error.

    samples: one per probe, of which value is the mean; the error of any sum or difference over points
    that share probes must be computed from them, since their errors are correlated. converged: value and
    stderr are finite and meet atol or rtol if those were given; where False, raise max_probes.
    """

    value: Float[Tensor, "*point"]
    stderr: Float[Tensor, "*point"]
    samples: Float[Tensor, "*point probe"]
    converged: Bool[Tensor, "*point"]
    num_matvecs: Int[Tensor, "*point"]

    def _repr_html_(self) -> str:
        return estimate_html(self.value, self.stderr, self.samples.shape[-1])


def rademacher(
    num_params: int, num_probes: int, *, seed: int = 0, path: Sequence[PathPart] = ()
) -> Int8[Tensor, "param probe"]:
    """Columns of independent fair signs, int8, on the CPU.

    Column i is drawn from ``stream(seed, "rademacher", *path, i)``, however many there are. Give
    ``path`` the task: probes may be shared along a task's inner steps, checkpoints and learners
    (differences get sharp), never across tasks.

    >>> bool((rademacher(5, 3) == rademacher(5, 8)[:, :3]).all())
    True
    """
    columns = [_signs(num_params, seed, (*path, probe)) for probe in range(num_probes)]
    return torch.stack(columns, dim=-1) if columns else torch.empty(num_params, 0, dtype=torch.int8)


def trace(
    H: Operator,
    *,
    num_probes: int = 64,
    atol: float | None = None,
    rtol: float | None = None,
    max_probes: int = 1024,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Tensor | None = None,
) -> Estimate:
    """The trace of H at every point: the mean of z'Hz over Rademacher probes z (Girard 1989, Hutchinson 1990).

    stderr is the sample standard deviation over sqrt(number of probes); its square estimates
    2 sum_{i != j} H_ij^2 / n. By default a fixed number of probes, the honest choice: with atol or
    rtol, rounds of num_probes are added until stderr <= max(atol, rtol |value|) at every point or
    max_probes is reached, and the error bars then cover less often than they say, for the stop
    prefers samples that happen to agree. All points share the probes drawn, unless ``probes`` are given:
    [param, probe] for all or [point, param, probe], of independent entries of mean 0 and variance 1;
    num_probes, atol, rtol and seed are then not used. Raises ValueError for fewer than two probes.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
    >>> estimate = trace(H, num_probes=4)  # a diagonal matrix has no variance
    >>> float(estimate.value), float(estimate.stderr)
    (3.0, 0.0)
    """
    if probes is not None:
        return estimate_of(_samples(H, probes))
    if num_probes < 2:
        raise ValueError(f"num_probes={num_probes}: an error bar needs 2 probes or more")
    most = num_probes if atol is None and rtol is None else max(num_probes, max_probes)
    estimate = estimate_of(_samples(H, rademacher(H.num_params, num_probes, seed=seed, path=path)), atol, rtol)
    while not estimate.converged.all() and (done := estimate.samples.shape[-1]) < most:
        more = rademacher(H.num_params, min(done + num_probes, most), seed=seed, path=path)[:, done:]
        estimate = estimate_of(torch.cat([estimate.samples, _samples(H, more)], dim=-1), atol, rtol)
    return estimate


def _signs(num_params: int, seed: int, path: Sequence[PathPart]) -> Int8[Tensor, " param"]:
    generator = stream(seed, "rademacher", *path)
    return torch.randint(0, 2, (num_params,), generator=generator, dtype=torch.int8) * 2 - 1


def checked(probes: Tensor) -> Tensor:
    """The probes; ValueError for fewer than two, of which there is no error bar."""
    if probes.ndim < 2 or probes.shape[-1] < 2:
        raise ValueError(f"probes have shape {tuple(probes.shape)}; give [param, probe] with 2 probes or more")
    return probes


def probe_products(H: Operator, probes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Z and HZ, a block of probes at a time."""
    for block in checked(probes).split(BLOCK, dim=-1):
        Z = block.to(H.device, H.dtype)
        yield Z, H @ Z


def _samples(H: Operator, probes: Tensor) -> Float[Tensor, "*point probe"]:
    """z'Hz for every probe."""
    return torch.cat([(Z * HZ).sum(-2) for Z, HZ in probe_products(H, probes)], dim=-1)


def estimate_of(
    samples: Float[Tensor, "*point probe"], atol: float | None = None, rtol: float | None = None
) -> Estimate:
    """The mean over probes, its standard error, and whether that meets the tolerances."""
    count = samples.shape[-1]
    value, stderr = samples.mean(-1), samples.std(-1) / count**0.5
    converged = torch.isfinite(value) & torch.isfinite(stderr)
    if atol is not None or rtol is not None:
        converged &= stderr <= torch.clamp((rtol or 0.0) * value.abs(), min=atol or 0.0)
    return Estimate(value, stderr, samples, converged, torch.full_like(value, count, dtype=torch.long))
