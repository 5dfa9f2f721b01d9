"""How straight an inner loop is, and what first derivatives say of it, in closed form (float64)."""

import pytest
import torch

from hessian_tools.curvature import drop_ratio, linearisation_error, path_ratio


def test_a_straight_path_has_ratio_one_and_a_closed_one_an_infinite_ratio():
    line = torch.arange(4.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0], dtype=torch.float64)
    back = torch.cat([line, line.flip(0)])
    assert float(path_ratio(line)) == pytest.approx(1)
    assert path_ratio(torch.stack([line, line * 3])).tolist() == pytest.approx([1, 1])
    assert path_ratio(back).isinf()
    assert path_ratio(torch.zeros(3, 2)).isnan()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 1.9, 2.5])
def test_the_drop_on_a_quadratic_is_one_minus_half_of_alpha_rho(alpha):
    curvatures = torch.tensor([0.3, 1.0], dtype=torch.float64)
    thetas = [torch.tensor([1.0, 0.7], dtype=torch.float64)]
    for _ in range(3):
        thetas.append(thetas[-1] - alpha * curvatures * thetas[-1])
    thetas = torch.stack(thetas)
    g = curvatures * thetas
    rho = (curvatures * g**2).sum(-1) / (g**2).sum(-1)
    ratios = drop_ratio((curvatures * thetas**2).sum(-1) / 2, g, thetas)
    torch.testing.assert_close(ratios, 1 - alpha * rho[:-1] / 2)


def test_the_drop_of_steps_that_are_not_along_the_gradient():
    # On a loss that is linear in theta the first-order prediction is exact, whatever the steps are.
    slope, thetas = torch.randn(5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(drop_ratio(thetas @ slope, slope.expand(4, 5), thetas), torch.ones(3).double())


def test_the_linearisation_error_of_a_cubic_and_of_a_pytree():
    start, end = torch.tensor([1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    assert float(linearisation_error(lambda t: t**3, start, end)) == pytest.approx((7 - 3) / 7)
    both = linearisation_error(lambda t: {"a": t**3, "b": [2 * t]}, start, end)
    assert float(both) == pytest.approx(4 / (7**2 + 2**2) ** 0.5)
    assert linearisation_error(lambda t: t - t, start, end).isnan()
