"""Difference quotients of a gradient, against the closed form for a cubic loss."""

import torch
from wrong_operators import cubic

from hessian_tools.curvature import hessian
from hessian_tools.curvature.checks.differences import difference_quotients


def test_difference_quotients_of_a_cubic() -> None:
    """H = 6 diag(theta), so central quotients are exact up to rounding; forward and backward ones differ by 6 h."""
    thetas = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    H = hessian(cubic, thetas, None)
    V = torch.eye(2, dtype=torch.float64)
    quotients = difference_quotients(H, V)
    torch.testing.assert_close(quotients.central, 6 * torch.diag_embed(thetas), rtol=1e-6, atol=1e-6)
    assert (quotients.disagreement < 1e-5).all()
    error = (quotients.central - 6 * torch.diag_embed(thetas)).norm(dim=1)
    assert (error <= 2 * quotients.disagreement).all()
    coarse = difference_quotients(hessian(cubic, 1e-3 * thetas, None), V)
    assert coarse.central.shape == (2, 2, 2)
