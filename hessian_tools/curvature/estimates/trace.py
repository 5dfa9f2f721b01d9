"""The trace of an operator, exact where that is cheap, and otherwise from random probes with its standard error."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Int8, Num
from torch import Tensor

from hessian_tools.curvature.engines.memory import vectors_at_once
from hessian_tools.curvature.estimates.exact_trace import exact_route, exact_trace
from hessian_tools.curvature.html import estimate_html
from hessian_tools.curvature.operators.operator import Operator, part_by_part
from hessian_tools.deprecation import warn_deprecated
from hessian_tools.intervals import student_t
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.rng import PathPart, stream

Method = Literal["auto", "probes", "exact"]
T = TypeVar("T")

# The most probes that are multiplied together. The products of all probes at once would not fit in memory.
BLOCK = 16


@dataclass(frozen=True, repr=False)
class Estimate(Result):
    """A mean over random probes with its standard error, or an exact number, whose standard error is 0.

    samples: one number for each probe, of which value is the mean. Points that share probes have correlated errors,
    so the error of a sum or difference over points must be computed from the samples, never from stderr. All samples of
    an exact number are equal to it.
    converged: True where value and stderr are finite and, if atol or rtol was given, stderr is small enough. Where it
    is False, raise max_probes.
    num_matvecs: products, or backward passes, at each point.
    method: "probes"; or how the exact number was computed, "diagonal" (from every diagonal entry) or "outputs" (from
    one backward pass for each example and output). Exact means up to rounding.
    """

    value: Float[Tensor, "*point"]
    stderr: Float[Tensor, "*point"]
    samples: Float[Tensor, "*point probe"]
    converged: Bool[Tensor, "*point"]
    num_matvecs: Int[Tensor, "*point"]
    method: str = "probes"

    def interval(
        self, *, confidence: float = 0.95, level: float | None = None
    ) -> tuple[Float[Tensor, "*point"], Float[Tensor, "*point"]]:
        """The confidence interval value -+ t stderr, by Student's t with (number of probes - 1) degrees of freedom.

        At 95 %, t is 2.13 for 16 probes and 3.18 for 4 probes. With the 1.96 of the normal distribution the interval
        would cover the trace in only 93 and 86 % of cases. The interval covers the trace at its nominal rate where z'Hz
        is about normal: 94.8 to 95.3 % of 4 000 trials with 4, 16 and 64 probes on a Conv4's Hessian, before and after
        the inner loop. Where a few eigenvalues outweigh all others, z'Hz is skewed: on a matrix of 24 eigenvalues with
        three outliers the interval covered 92, 93 and 94 %. It covers less where atol or rtol chose the number of
        probes, see :func:`trace`. For an exact number both ends are that number.
        Raises ValueError unless 0 < confidence < 1.
        level: the old name of confidence.

        >>> count = torch.tensor(4)
        >>> estimate = Estimate(torch.tensor(1.0), torch.tensor(1.0), torch.zeros(4), torch.tensor(True), count)
        >>> [round(float(end), 2) for end in estimate.interval()]
        [-2.18, 4.18]
        """
        if level is not None:
            warn_deprecated("Estimate.interval(level=)", "interval(confidence=)", stacklevel=2)
            confidence = level
        half_width = student_t(self.samples.shape[-1], confidence) * self.stderr
        return self.value - half_width, self.value + half_width

    def _repr_html_(self) -> str:
        return estimate_html(self.value, self.stderr, self.samples.shape[-1])


def rademacher(
    num_params: int, num_probes: int, *, seed: int = 0, path: Sequence[PathPart] = ()
) -> Int8[Tensor, "param probe"]:
    """Probes whose entries are independently +1 or -1 with equal probability, as columns of int8 on the CPU.

    Column i is drawn from ``stream(seed, "rademacher", *path, i)``, so it does not depend on the number of columns. Put
    the name of the task into ``path``. Probes may be shared along a task's inner steps, checkpoints and learners, whose
    differences then have small errors. Do not share them across tasks, because the errors of the tasks would then not
    average out.

    >>> bool((rademacher(5, 3) == rademacher(5, 8)[:, :3]).all())
    True
    """
    return _signs(num_params, range(num_probes), seed, path)


def _signs(num_params: int, columns: range, seed: int, path: Sequence[PathPart]) -> Int8[Tensor, "param probe"]:
    """The columns of :func:`rademacher` with these numbers."""
    probes = torch.empty(num_params, len(columns), dtype=torch.int8, device="cpu")
    for i, column in enumerate(columns):
        probes[:, i] = signs(num_params, stream(seed, "rademacher", *path, column))
    return probes


def signs(count: int, generator: torch.Generator) -> Int8[Tensor, " entry"]:
    """Numbers that are +1 or -1 with equal probability, on the CPU."""
    return torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)


def trace(
    H: Operator,
    *,
    num_probes: int = 64,
    atol: float | None = None,
    rtol: float | None = None,
    max_probes: int = 1024,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    probes: Num[Tensor, "*#point param probe"] | None = None,
    method: Method = "auto",
    progress: Progress | None = None,
) -> Estimate:
    """The trace of H at every point: exact where that costs no more than num_probes products, else from probes.

    method: "auto" decides by the cost, as just said; "probes" always uses probes; "exact" uses the cheapest exact way,
    whatever it costs.

    From probes the trace is estimated by the mean of z'Hz over Rademacher vectors z (Girard 1989, Hutchinson 1990). Its
    stderr is the sample standard deviation over sqrt(n) for n probes; stderr^2 estimates 2 sum_{i != j} H_ij^2 / n.
    By default the number of probes is fixed, and confidence intervals cover at their nominal rate. With atol or rtol,
    rounds of num_probes are added until stderr <= max(atol, rtol |value|) at every finite point, or max_probes is
    reached. The intervals then cover less often, because such a search tends to stop at samples that happen to agree.
    All points share the probes that are drawn, also where memory is too short to compute all points together.
    seed, path: name the random stream of the probes, see :func:`rademacher`.
    probes: your own probes, [param, probe] for all points or [point, param, probe], with independent entries of mean 0
    and variance 1; num_probes, atol, rtol and seed are then not used.

    An exact trace is the sum of all diagonal entries (num_params products). For a Gauss-Newton matrix it also follows
    from one backward pass for each example and output. The same holds for the Hessian of a network that is piecewise
    affine in each parameter tensor alone, because this Hessian has the trace of its Gauss-Newton part. ReLU networks
    without batch statistics are of this kind; :func:`is_multiaffine` recognises them.

    Probes are drawn a block at a time, so that their number does not matter for memory. Where a vector of length param
    takes more than 32 MiB (CUDA: 1/16 of the memory for products), a block is a single probe. The points are divided
    into parts that fit in memory, and each part draws the same probes anew.
    progress: called with (done, total) products or backward passes after each block; the total is an upper bound.
    Raises ValueError for fewer than two probes, and for probes with method="exact".

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(3), torch.tensor([1.0, -2.0, 4.0]))
    >>> estimate = trace(H, method="probes", num_probes=4)  # for a diagonal matrix all samples are equal
    >>> float(estimate.value), float(estimate.stderr), trace(H).method
    (3.0, 0.0, 'diagonal')
    """
    if probes is not None:
        if method == "exact":
            raise ValueError("method='exact' uses no probes; leave out method or probes")
        check_probes(probes)
        H.announce(probes.shape[-1])  # so that H takes the quickest engine for this number of products
        return estimate_of(_samples(H, probes, ProgressCounter(probes.shape[-1] * len(H.parts()), progress)))
    if min(num_probes, max_probes) < 2:
        raise ValueError(f"num_probes={num_probes}, max_probes={max_probes}: a standard error needs 2 probes or more")
    route = None if method == "probes" else exact_route(H, num_probes if method == "auto" else None)
    if route is not None:
        value, passes = exact_trace(H, route, block=BLOCK, progress=progress)
        return exact_estimate(value, num_probes, num_matvecs=passes, method=route)
    limit = num_probes if atol is None and rtol is None else max_probes
    H.announce(min(num_probes, limit))
    counter = ProgressCounter(limit * len(H.parts()), progress)
    samples = _samples(H, DrawnProbes(H.num_params, range(min(num_probes, limit)), seed, path), counter)
    estimate = estimate_of(samples, atol, rtol)
    while (done := estimate.samples.shape[-1]) < limit:
        # More probes help where the tolerance is missed, but never where the value or its error is not finite.
        finite = torch.isfinite(estimate.value) & torch.isfinite(estimate.stderr)
        if not (finite & ~estimate.converged).any():
            break
        more = DrawnProbes(H.num_params, range(done, min(done + num_probes, limit)), seed, path)
        estimate = estimate_of(torch.cat([estimate.samples, _samples(H, more, counter)], dim=-1), atol, rtol)
    return estimate


def estimate_of(
    samples: Float[Tensor, "*point probe"], atol: float | None = None, rtol: float | None = None
) -> Estimate:
    """The estimate from the samples of all probes; ``converged`` needs stderr <= max(atol, rtol |value|) if given."""
    count = samples.shape[-1]
    value, stderr = samples.mean(-1), samples.std(-1) / count**0.5
    converged = torch.isfinite(value) & torch.isfinite(stderr)
    if atol is not None or rtol is not None:
        converged &= stderr <= torch.clamp((rtol or 0.0) * value.abs(), min=atol or 0.0)
    return Estimate(value, stderr, samples, converged, torch.full_like(value, count, dtype=torch.long))


def exact_estimate(
    value: Float[Tensor, "*point"], num_samples: int, *, num_matvecs: int | Int[Tensor, "*point"], method: str
) -> Estimate:
    """An exact number as an estimate with equal samples, so that errors computed from them are zero."""
    count = torch.as_tensor(num_matvecs, device="cpu").to(value.device).expand(value.shape)
    samples = value[..., None].expand(*value.shape, num_samples)
    stderr = 0 * value  # NaN where the value is NaN
    return Estimate(value, stderr, samples, torch.isfinite(value), count, method)


def check_probes(probes: Tensor) -> None:
    """Raises ValueError unless there are two or more probes of real numbers; one probe gives no standard error."""
    if probes.is_complex():
        raise ValueError(f"probes are {probes.dtype}; give a tensor of real numbers [param, probe]")
    if probes.shape[-1] < 2:
        raise ValueError(f"probes have shape {tuple(probes.shape)}; give [param, probe] with 2 probes or more")


@dataclass(frozen=True)
class DrawnProbes:
    """Some columns of :func:`rademacher`, drawn when they are used; ``shape`` is that of the tensor of all of them."""

    num_params: int
    columns: range
    seed: int
    path: Sequence[PathPart]

    @property
    def shape(self) -> tuple[int, int]:
        """[param, probe]."""
        return self.num_params, len(self.columns)

    def split(self, size: int, dim: int) -> Iterator[Tensor]:
        """The columns in blocks of this many, as ``Tensor.split`` with dim=-1 gives them."""
        for start in range(0, len(self.columns), size):
            yield _signs(self.num_params, self.columns[start : start + size], self.seed, self.path)


Probes = Tensor | DrawnProbes


def over_probes(
    part: Operator,
    rows: slice,
    H: Operator,
    probes: Probes,
    counter: ProgressCounter,
    function: Callable[[Tensor, Tensor], T],
) -> list[T]:
    """``function(Z, HZ)`` for the probes Z, a block of them at a time, at all points of one part of H.

    part: H at some of its points. rows: the positions of these points among those of H. Where a vector is large, a
    block is one probe, and no two blocks are in memory at the same time.
    """
    if part is not H and isinstance(probes, Tensor) and probes.ndim > 2 and probes.shape[-3] > 1:
        probes = probes[..., rows, :, :]  # each point has its own probes
    vector_bytes = part.num_params * part.dtype.itemsize * (part.num_points or 1)
    size = vectors_at_once(part.device, vector_bytes, BLOCK)
    # Each block is used inside of a function, so that its tensors are freed before the next one is made.
    return [_on_block(part, block, counter, function) for block in probes.split(size, dim=-1)]


def _on_block(part: Operator, block: Tensor, counter: ProgressCounter, function: Callable[[Tensor, Tensor], T]) -> T:
    """``function(Z, HZ)`` for one block of probes Z."""
    Z = block.to(part.device, part.dtype)
    result = function(Z, part @ Z)
    counter.add(block.shape[-1])
    return result


def _samples(H: Operator, probes: Probes, counter: ProgressCounter) -> Float[Tensor, "*point probe"]:
    """z'Hz for every probe."""

    def part_samples(part: Operator, rows: slice) -> tuple[Tensor]:
        """The samples at some of the points of H. rows: the positions of these points."""
        # ``DrawnProbes`` are drawn anew for each part of the points, because kept for the next part they would take one
        # byte for each parameter and probe. Their stream is named by seed, path and column, so all parts have the same
        # probes.
        return (torch.cat(over_probes(part, rows, H, probes, counter, lambda Z, HZ: (Z * HZ).sum(-2)), dim=-1),)

    return part_by_part(H, part_samples)[0]
