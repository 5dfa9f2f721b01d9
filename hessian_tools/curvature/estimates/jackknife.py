"""Standard errors and intervals from the data: how far the top eigenvalue or the trace may be from the population's.

The batches are taken as independent draws from a population, and the curvature of the mean loss over that population is
estimated. The jackknife leaves out one batch after the other. For batches of unequal size it is the delete-m_j
jackknife (Busing, Meijer, van der Leeden 1999): with the share w_j of batch j in the data and h_j = 1 / w_j,

    pseudo-value  p_j = h_j value - (h_j - 1) value_without_j,
    estimate = sum_j w_j p_j,       stderr^2 = 1/g sum_j (p_j - estimate)^2 / (h_j - 1)      for g batches.

To first order, the top eigenvalue without batch j is value + w_j / (1 - w_j) (value - v'H_j v), where v is the
eigenvector on all data and H_j the Hessian of batch j. The pseudo-value is then p_j = v'H_j v.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import Limits
from hessian_tools.curvature.eigen.lanczos import lanczos
from hessian_tools.curvature.eigen.pairs import top_eigenpairs
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.estimates.exact_trace import exact_route
from hessian_tools.curvature.estimates.trace import rademacher, trace
from hessian_tools.curvature.html import interval_html
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import by_batch, weights_of_batches
from hessian_tools.intervals import student_t
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result

Quantity = Literal["top_eigenvalue", "trace"]
Method = Literal["first_order", "leave_one_out"]

# The most basis vectors, and the most products, of a Lanczos run that leaves out one batch. It needs few, because it
# starts from the eigenvector on all data.
MAX_BASIS, MAX_STEPS = 20, 100


@dataclass(frozen=True, repr=False)
class Jackknife(Result):
    """A quantity of the curvature with its standard error as an estimate for the population of the batches.

    value: the quantity on all batches. stderr: its standard error, by the jackknife over the batches. For a trace
    from probes it includes the error of the probes, ``probe_stderr``.
    bias: the jackknife's estimate of the expectation of ``value`` minus the population's value. It is 0 for a trace,
    and by the method "first_order", which cannot see it.
    second_order: the largest bias that second-order perturbation allows, given the measured gap to the next eigenvalue;
    0 for a trace. Where it is not small beside stderr, the top eigenvalue is too close to the next one for first order:
    give method="leave_one_out", or more data.
    samples: the pseudo-value of each batch; their mean, weighted by ``weights``, is value - bias. weights: the share of
    each batch in the data. converged: True where the eigenvalues or the samples of the trace are accurate and finite.
    """

    quantity: Quantity
    value: Float[Tensor, "*point"]
    stderr: Float[Tensor, "*point"]
    probe_stderr: Float[Tensor, "*point"]
    bias: Float[Tensor, "*point"]
    second_order: Float[Tensor, "*point"]
    samples: Float[Tensor, "*point batch"]
    weights: tuple[float, ...]
    converged: Bool[Tensor, "*point"]

    @property
    def more_batches(self) -> int:
        """How many more batches like these would halve the standard error: three times their number."""
        return 3 * len(self.weights)

    def interval(self, *, confidence: float = 0.95) -> tuple[Float[Tensor, "*point"], Float[Tensor, "*point"]]:
        """The confidence interval of the population's value: value - bias -+ t stderr.

        t is the quantile of Student's distribution with (number of batches - 1) degrees of freedom. Raises ValueError
        unless 0 < confidence < 1. ``docs/quantities.md`` says how often the interval covers
        the population's value.
        """
        half_width = student_t(len(self.weights), confidence) * self.stderr
        return self.value - self.bias - half_width, self.value - self.bias + half_width

    def __str__(self) -> str:
        """One line for each of the first eight points, and how many more batches would halve the error."""
        return "\n".join([*(text for text, *_ in self._rows()), self._advice()])

    def _repr_html_(self) -> str:
        rows = "".join(interval_html(value, low, high, (), text) for text, value, low, high in self._rows())
        return f"<div>{rows}<div>{self._advice()}</div></div>"

    def _rows(self) -> list[tuple[str, float, float, float]]:
        """For each of the first eight points, a line of text, the value, and the ends of its 95 % interval."""
        columns = (self.value, self.stderr, *self.interval())
        return [
            (f"{self.quantity} {value:.4g} ± {error:.2g}, 95 % interval {low:.4g} to {high:.4g}", value, low, high)
            for value, error, low, high in zip(*(column.reshape(-1)[:8].tolist() for column in columns), strict=True)
        ]

    def _advice(self) -> str:
        return f"about {self.more_batches} more batches like these would halve the error"


def jackknife(
    H: Operator,
    quantity: Quantity = "top_eigenvalue",
    *,
    method: Method = "first_order",
    num_probes: int = 16,
    rtol: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Jackknife:
    """The top eigenvalue or the trace of H with its standard error over the batches, at every point.

    H: the matrix of a loss over two batches or more (20 give an interval that is useful), or a block or a sum of such
    matrices.
    quantity: "top_eigenvalue" is the largest eigenvalue, "trace" the trace.
    method: how the top eigenvalue without a batch is found. "first_order" perturbs the eigenvector on all data, which
    costs one product with each batch, as much as one product with H. "leave_one_out" runs Lanczos without the batch,
    from that eigenvector, which costs about ten products with H for each batch, and estimates the bias.
    num_probes: for a trace that is not computed exactly; all batches share the probes. rtol: the residual of eigenpairs
    as a share of their values. seed: of the probes and of start vectors. progress: called with (done, total) batches.

    Batches that depend on each other, such as neighbouring parts of one text, make the error too small.
    Raises ValueError for one batch, for batches whose losses add up (``reduction="sum"``), and for an operator that has
    no batches. (Quenouille 1956; Tukey 1958; Busing, Meijer, van der Leeden 1999.)

    >>> from hessian_tools.curvature import hessian
    >>> batches = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 1.0]])]
    >>> H = hessian(lambda theta, a: (a * theta**2).mean(0).sum() / 2, torch.zeros(2), batches)
    >>> print(jackknife(H))  # the mean of 1, 3 and 2, whose standard deviation is 1
    top_eigenvalue 2 ± 0.58, 95 % interval -0.4841 to 4.484
    about 9 more batches like these would halve the error
    """
    weights = weights_of_batches(H)
    if len(weights) < 2:
        raise ValueError(
            "the operator has one batch, and an error over batches needs two or more; give a list or a loader"
        )
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            "the losses of the batches add up, so they are no mean over a population; average in the criterion "
            "(reduction='mean')"
        )
    counter = ProgressCounter(len(weights), progress)
    if quantity == "trace":
        return _of_trace(H, weights, num_probes, seed, counter)
    return _of_top_eigenvalue(H, weights, method, rtol, seed, counter)


def _of_trace(
    H: Operator, weights: tuple[float, ...], num_probes: int, seed: int, counter: ProgressCounter
) -> Jackknife:
    """The jackknife of the trace, whose pseudo-values are the traces of the single batches.

    This is exact, because the trace on all data is their weighted mean.
    """
    is_exact = exact_route(H, num_probes) is not None
    probes = None if is_exact else rademacher(H.num_params, num_probes, seed=seed)
    # probe_samples: for each probe, its sample of the trace on all data.
    traces, probe_samples, converged = [], torch.zeros((), dtype=H.dtype, device=H.device), None
    for weight, part in zip(weights, by_batch(H), strict=True):
        estimate = trace(part, method="exact") if probes is None else trace(part, probes=probes)
        traces.append(estimate.value)
        # The batches share the probes, so their errors are correlated. They are therefore summed for each probe.
        probe_samples = probe_samples + weight * (estimate.value[..., None] if is_exact else estimate.samples)
        converged = estimate.converged if converged is None else converged & estimate.converged
        counter.add(1)
    assert converged is not None
    probe_stderr = 0 * probe_samples[..., 0] if is_exact else probe_samples.std(-1) / num_probes**0.5
    zero = torch.zeros_like(probe_stderr)
    value = probe_samples.mean(-1)
    return _jackknife("trace", value, torch.stack(traces, dim=-1), weights, probe_stderr, zero, converged)


def _of_top_eigenvalue(
    H: Operator, weights: tuple[float, ...], method: Method, rtol: float, seed: int, counter: ProgressCounter
) -> Jackknife:
    """The jackknife of the top eigenvalue, by the formulas at the head of this module."""
    k = min(2, H.num_params)  # the second eigenvalue gives the gap
    pairs = top_eigenpairs(H, k=k, which="LA", rtol=rtol, vectors=True, seed=seed)
    assert pairs.vectors is not None
    value, v, converged = pairs.values[..., 0], pairs.vectors[..., 0], pairs.converged.all(-1)
    gap = value - pairs.values[..., 1] if k == 2 else torch.full_like(value, torch.inf)
    samples, bound = [], torch.zeros_like(value)
    for weight, part in zip(weights, by_batch(H), strict=True):
        hv = part.mv(v)
        first_order = (v * hv).sum(-1)
        remainder = vector_norm(hv - first_order[..., None] * v)
        # At second order, leaving out the batch changes the eigenvalue by up to (w / (1 - w))^2 remainder^2 / gap. This
        # change enters the bias with the factor w (1 / w - 1) = 1 - w.
        bound = bound + weight**2 / (1 - weight) * remainder**2 / gap
        if method == "first_order":
            samples.append(first_order)
        else:
            without = (1 / (1 - weight)) * (H - weight * part)
            limits = Limits(seed, MAX_STEPS, min(MAX_BASIS, H.num_params))
            run = lanczos(without, (Selection("LA", 1, rtol),), limits, start=v.reshape(-1, H.num_params))
            value_without = run.values.amax(-1).to(value).reshape(value.shape)
            converged = converged & run.converged.to(H.device).reshape(value.shape)
            samples.append(value / weight - (1 / weight - 1) * value_without)
        counter.add(1)
    return _jackknife(
        "top_eigenvalue", value, torch.stack(samples, dim=-1), weights, torch.zeros_like(value), bound, converged
    )


def _jackknife(
    quantity: Quantity,
    value: Tensor,
    samples: Float[Tensor, "*point batch"],
    weights: tuple[float, ...],
    probe_stderr: Tensor,
    second_order: Tensor,
    converged: Tensor,
) -> Jackknife:
    """The result from the pseudo-values ``samples``, by the formulas at the head of this module."""
    w = torch.tensor(weights, dtype=torch.float64, device="cpu").to(samples)
    center = (w * samples).sum(-1)
    # w / (1 - w) is 1 / (h - 1) with h = 1 / w.
    variance = (w / (1 - w) * (samples - center[..., None]) ** 2).mean(-1)
    stderr = (variance + probe_stderr**2).sqrt()
    bias = value - center
    return Jackknife(
        quantity, value, stderr, probe_stderr, bias, second_order, samples, weights, converged & stderr.isfinite()
    )
