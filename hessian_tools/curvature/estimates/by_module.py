"""Trace and Frobenius norm of the diagonal block of every module, all from one set of products."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.estimates.trace import rademacher
from hessian_tools.curvature.html import modules_html
from hessian_tools.curvature.operators.operator import Operator, part_by_part
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.result import Result
from hessian_tools.rng import PathPart

# How many products are computed together; each takes the memory of two vectors of length param.
AT_ONCE = 4


@dataclass(frozen=True, repr=False)
class ByModule(Result):
    """Estimates for the diagonal block H_mm of each module m, with standard errors; ``str`` makes a table of them.

    modules: the names of the modules that hold parameters themselves; "" is the network itself. sizes: how many
    parameters each holds. trace, trace_stderr: tr H_mm. frobenius_squared, frobenius_squared_stderr: |H_mm|_F^2; the
    estimate is unbiased, and may therefore be negative where the block is small beside the rest of H. num_probes: the
    number of products at each point.

    The estimates of all modules come from the same probes, so that their errors are correlated.
    """

    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    trace: Float[Tensor, "*point module"]
    trace_stderr: Float[Tensor, "*point module"]
    frobenius_squared: Float[Tensor, "*point module"]
    frobenius_squared_stderr: Float[Tensor, "*point module"]
    num_probes: int

    @property
    def frobenius(self) -> Float[Tensor, "*point module"]:
        """|H_mm|_F, the square root of ``frobenius_squared``; 0 where that is negative."""
        return self.frobenius_squared.clamp(min=0).sqrt()

    @property
    def frobenius_stderr(self) -> Float[Tensor, "*point module"]:
        """The standard error of ``frobenius``, to first order; it is infinite where ``frobenius`` is 0."""
        return self.frobenius_squared_stderr / (2 * self.frobenius)

    def __str__(self) -> str:
        """A table of the estimates; if there are several points, of their means over the points."""
        columns = (self.trace, self.trace_stderr, self.frobenius, self.frobenius_stderr)
        numbers = torch.stack([column.reshape(-1, len(self.modules)).mean(0) for column in columns], dim=-1).tolist()
        width = max(len("module"), *map(len, self.modules))
        lines = [f"{'module':{width}}  {'parameters':>10}  {'trace':>22}  {'Frobenius norm':>22}"]
        for name, size, (trace, error, norm, norm_error) in zip(self.modules, self.sizes, numbers, strict=True):
            pairs = f"{trace:11.4g} ± {error:8.2g}  {norm:11.4g} ± {norm_error:8.2g}"
            lines.append(f"{name:{width}}  {size:10d}  {pairs}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return modules_html(self.modules, self.trace, self.trace_stderr, self.num_probes)


def by_module(
    H: Operator,
    *,
    num_probes: int = 32,
    seed: int = 0,
    path: Sequence[PathPart] = (),
    progress: Progress | None = None,
) -> ByModule:
    """The trace and the Frobenius norm of every module's diagonal block H_mm, from num_probes products at each point.

    seed, path: name the random stream of the probes, see :func:`~hessian_tools.curvature.rademacher`.

    With probes z_i of random signs, let a_ij = (z_i)_m' (H z_j)_m, where ( )_m is the part of a vector that belongs to
    the parameters of module m. Then the mean of a_ii estimates the trace (Hutchinson 1990), and the mean of a_ij a_ji
    over the pairs i != j estimates the squared Frobenius norm of the block: entries of H outside of the block
    contribute zero on average, because each term with such an entry contains some random sign exactly once. Products
    with each block separately would cost num_probes products for every module.

    Raises ValueError for an operator whose rows have no names, and for fewer than 4 probes.

    >>> from hessian_tools.curvature import hessian
    >>> from hessian_tools.layout import flatten
    >>> from hessian_tools.loss import make_loss
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> theta, layout = flatten(model)
    >>> loss = make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout)
    >>> result = by_module(hessian(loss, torch.tensor([1.0, 2.0, 0.0]), (torch.eye(2), torch.zeros(2, 1))))
    >>> result.modules, result.trace, result.frobenius  # 1^2 + 2^2 in the block of module 1
    (('0', '1'), tensor([0., 5.]), tensor([0., 5.]))
    """
    if num_probes < 4:
        raise ValueError(f"num_probes={num_probes}: give 4 or more, because the error compares pairs of probes")
    rows = {module: block.rows for module, block in H.blocks().items()}
    Z = rademacher(H.num_params, num_probes, seed=seed, path=path).to(H.device)
    H.announce(num_probes)  # so that H takes the quickest engine for this number of products
    counter = ProgressCounter(num_probes * len(H.parts()), progress)
    # A part is H at as many of its points as fit in memory together.
    (A,) = part_by_part(H, lambda part, _: (_module_grams(part, list(rows.values()), Z, counter),))
    traces = A.diagonal(dim1=-2, dim2=-1)
    frobenius_squared, frobenius_squared_stderr = _mean_over_pairs(A)

    def shaped(result: Tensor) -> Tensor:
        """The result in the dtype of H; without the axis of points if H has a single point."""
        return result.to(H.dtype)[0] if H.num_points is None else result.to(H.dtype)

    return ByModule(
        tuple(rows),
        tuple(len(of_module) for of_module in rows.values()),
        shaped(traces.mean(-1)),
        shaped(traces.std(-1) / num_probes**0.5),
        shaped(frobenius_squared),
        shaped(frobenius_squared_stderr),
        num_probes,
    )


def _module_grams(part: Operator, rows: list[Tensor], Z: Tensor, counter: ProgressCounter) -> Tensor:
    """The numbers a_ij of :func:`by_module` for each module m: float64 [point, module, probe, probe].

    rows: for each module, the positions of its parameters. Z: the probes [param, probe].
    """
    points, num_probes = part.num_points or 1, Z.shape[1]
    A = torch.zeros(points, len(rows), num_probes, num_probes, dtype=torch.float64, device=Z.device)
    for columns in torch.arange(num_probes, device=Z.device).split(AT_ONCE):
        V = Z[:, columns].to(part.dtype)
        W = part.products(V.expand(points, *V.shape).contiguous())
        for m, of_module in enumerate(rows):
            # A[:, m] is a view of A, so this writes into A itself.
            A[:, m][:, :, columns] = (Z[of_module].to(part.dtype).mT @ W[:, of_module]).double()
        counter.add(len(columns))
    return A


def _mean_over_pairs(A: Float[Tensor, "point module probe probe"]) -> tuple[Tensor, Tensor]:
    """The mean of a_ij a_ji over the pairs of different probes, and its standard error: [point, module] each.

    The squared standard error is the square of the mean, less an estimate of the square of the true value: the mean of
    (a_ij a_ji)(a_kl a_lk) over four different probes. It is unbiased, and cut off at 0. (The jackknife would be up to
    twice too large.)
    """
    n = A.shape[-1]
    pairs = A * A.mT
    pairs = pairs - torch.diag_embed(pairs.diagonal(dim1=-2, dim2=-1))
    total, of_probe = pairs.sum((-2, -1)), pairs.sum(-1)
    mean = total / (n * (n - 1))
    # The sum over four different probes: all products of two pairs, less those whose pairs share a probe.
    disjoint = total**2 - 4 * (of_probe**2).sum(-1) + 2 * (pairs**2).sum((-2, -1))
    variance = mean**2 - disjoint / (n * (n - 1) * (n - 2) * (n - 3))
    return mean, variance.clamp(min=0).sqrt()
