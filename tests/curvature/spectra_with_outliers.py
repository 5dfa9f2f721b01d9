"""Spectra like those of networks: a bulk of small eigenvalues and a few outliers."""

import math

import torch
from torch import Tensor


def bulk(n: int) -> Tensor:
    """Eigenvalues at the quantiles of a semicircle of radius 1, by bisection of its distribution function."""
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    low, high = -torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    for _ in range(60):
        x = (low + high) / 2
        below = 0.5 + (x * (1 - x**2).sqrt() + x.asin()) / math.pi < shares
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return (low + high) / 2


OUTLIERS = torch.tensor([40.0, 25.0, -12.0], dtype=torch.float64)


def spectrum_with_outliers(n: int = 300) -> Tensor:
    """n eigenvalues: the three OUTLIERS, followed by the bulk."""
    return torch.cat([OUTLIERS, bulk(n - 3)])
