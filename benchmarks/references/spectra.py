"""Spectra in closed form, which are planted into quadratic losses. The library's tests use them, too."""

import torch
from torch import Tensor

DTYPE = torch.float64

SPECTRA: dict[str, Tensor] = {
    "decaying": 10.0 * 0.7 ** torch.arange(24, dtype=DTYPE),
    "indefinite": torch.linspace(-9.0, 11.0, 24, dtype=DTYPE) ** 3 / 100,
    "low_rank": torch.cat([torch.tensor([7.0, -5.0, 2.0], dtype=DTYPE), torch.zeros(21, dtype=DTYPE)]),
    "outliers": torch.cat([torch.tensor([50.0, 30.0, -20.0], dtype=DTYPE), torch.linspace(-0.5, 0.6, 21, dtype=DTYPE)]),
    "clustered": torch.cat([torch.linspace(4.99, 5.01, 8, dtype=DTYPE), torch.linspace(-1.0, 1.0, 16, dtype=DTYPE)]),
}
# Larger spectra, which only the comparison of tools uses: a negative trace, equal magnitudes of both signs, and a
# multiple eigenvalue.
LARGER: dict[str, Tensor] = {
    "negative": -torch.cat([torch.tensor([40.0, 25.0, -15.0], dtype=DTYPE), torch.linspace(0, 1.0, 197, dtype=DTYPE)]),
    "both_signs": torch.cat([torch.tensor([5.0, -5.0, 4.0], dtype=DTYPE), torch.linspace(-1, 1, 197, dtype=DTYPE)]),
    "multiple": torch.cat([torch.full((3,), 5.0, dtype=DTYPE), torch.linspace(-1, 2, 197, dtype=DTYPE)]),
}
