"""Lengths of vectors at every scale."""

import pytest
import torch
from cases import randn

from hessian_tools.curvature.operators.lengths import lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-110, -75, -70, -66, -40, 0, 60, 66, 110])
def test_lengths_scale_with_the_vectors(power: int, dtype: torch.dtype) -> None:
    rows = randn(2, 3, 50, stream_name="rows").to(dtype)
    result = lengths(2.0**power * rows)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result / 2.0**power, rows.double().norm(dim=-1), rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_rows_that_are_zero_or_not_finite_do_not_change_others() -> None:
    rows = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [3e-25, 4e-25]])
    torch.testing.assert_close(
        lengths(rows), torch.tensor([0.0, torch.nan, torch.inf, 5e-25]).double(), equal_nan=True, rtol=1e-6, atol=0
    )
