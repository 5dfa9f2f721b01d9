"""How often the intervals of ``ht.curvature.jackknife`` cover the population's value, on simulated linear regressions.

The Hessian of a linear regression is X'X / n, whose population is the covariance of the examples. 1,000 data sets are
drawn for each line. Run as ``python -m benchmarks.coverage``; it takes five minutes and prints a table in Markdown.

"covered" is the share of the 95 % intervals that contain the population's value. The last three columns use ``stderr``,
the root mean square of the reported standard errors. "error / spread" is ``stderr`` divided by the standard deviation
of the values over the data sets. "bias / stderr" is the mean error of the values divided by ``stderr``. The last column
is the mean of ``Jackknife.second_order`` divided by ``stderr``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import hessian_tools as ht
from hessian_tools.curvature.estimates.jackknife import Jackknife, Method, Quantity

DATA_SETS = 1000
DTYPE = torch.float64
# Eigenvalues of the covariance: one far above the others, and two that are close.
FAR = torch.tensor([4.0, 1.0, 0.5, 0.2], dtype=DTYPE)
NEAR = torch.tensor([4.0, 3.6, 0.5, 0.2], dtype=DTYPE)


class Case(NamedTuple):
    """A line of the table. sizes: the number of examples of each batch."""

    name: str
    quantity: Quantity
    method: Method
    spectrum: Tensor
    sizes: list[int]


def half_squares(theta: Tensor, x: Tensor) -> Tensor:
    """A loss whose Hessian is X'X / n."""
    return ((x @ theta) ** 2).mean() / 2


def cases() -> list[Case]:
    """All lines of the table."""
    sizes = {"24 batches of 16": [16] * 24, "12 of 32 and 12 of 8": [32] * 12 + [8] * 12, "6 of 16": [16] * 6}
    lines = [Case(name, "trace", "first_order", FAR, each) for name, each in sizes.items()]
    for spectrum in (FAR, NEAR):
        for name, each in sizes.items():
            lines += [
                Case(name, "top_eigenvalue", method, spectrum, each) for method in ("first_order", "leave_one_out")
            ]
        lines.append(Case("100 of 64", "top_eigenvalue", "first_order", spectrum, [64] * 100))
    return lines


def measure(case: Case, data_sets: int) -> Jackknife:
    """The jackknife of ``data_sets`` data sets. Each is the data of one point, so that all are computed at once."""
    n = len(case.spectrum)
    Q = torch.linalg.qr(torch.randn(n, n, generator=ht.stream(0, "basis"), dtype=DTYPE)).Q

    def batch(i: int, size: int) -> Tensor:
        x = torch.randn(data_sets, size, n, generator=ht.stream(1, "batch", i), dtype=DTYPE)
        return (x * case.spectrum.sqrt()) @ Q.mT

    batches = [batch(i, size) for i, size in enumerate(case.sizes)]
    H = ht.hessian(half_squares, torch.zeros(data_sets, n, dtype=DTYPE), batches)
    return ht.curvature.jackknife(H, case.quantity, method=case.method)


def main() -> None:
    """Print the table."""
    columns = ["quantity", "method", "eigenvalues", "batches", "covered", "error / spread", "bias / stderr"]
    print(f"| {' | '.join([*columns, 'second order / stderr'])} |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases():
        result = measure(case, DATA_SETS)
        truth = float(case.spectrum.max() if case.quantity == "top_eigenvalue" else case.spectrum.sum())
        low, high = result.interval()
        covered = float(((low <= truth) & (truth <= high)).double().mean())
        stderr = float((result.stderr**2).mean().sqrt())
        bias = float(result.value.mean()) - truth
        spectrum = ", ".join(f"{value:g}" for value in case.spectrum.tolist())
        print(
            f"| {case.quantity} | {case.method} | {spectrum} | {case.name} | {100 * covered:.1f} % | "
            f"{stderr / float(result.value.std()):.2f} | {bias / stderr:.2f} | "
            f"{float(result.second_order.mean()) / stderr:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
