"""How wrong eigenvalues or meta-gradients are, against the reference."""

import torch

from benchmarks.rows import META_GRADIENT, Row


def error(row: Row, values: list[list[float]] | None, truth: list[list[float]] | None) -> float | None:
    """The row's measure of error; None where there is nothing to compare."""
    if values is None or truth is None:
        return None
    if row.quantity == META_GRADIENT:
        return error_of_vector(values, truth)
    return (worst_error if row.quantity == "top5" else error_to_norm)(values, truth)


def worst_error(values: list[list[float]], reference: list[list[float]]) -> float:
    """The largest relative error, number by number in order of magnitude; of magnitudes, so that ties do not matter."""
    found, true = (torch.tensor(v, dtype=torch.float64).abs().sort(-1).values for v in (values, reference))
    return float(((found - true).abs() / true).max())


def error_to_norm(values: list[list[float]], reference: list[list[float]]) -> float:
    """The largest error of whole spectra, in order of value, over the largest magnitude at the point."""
    found, true = (torch.tensor(v, dtype=torch.float64).sort(-1).values for v in (values, reference))
    return float(((found - true).abs().amax(-1) / true.abs().amax(-1)).max())


def error_of_vector(values: list[list[float]], reference: list[list[float]]) -> float:
    """The norm of the difference over the norm of the reference."""
    found, true = (torch.tensor(v, dtype=torch.float64) for v in (values, reference))
    return float((found - true).norm() / true.norm())
