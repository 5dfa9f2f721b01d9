"""``check_operator`` on unusual points: ragged batches, losses that are not finite, and limits of float32."""

import pytest
import torch
from cases import randn
from torch import Tensor

from hessian_tools.curvature import Hessian, adaptation_jacobian, check_operator, hessian, ragged


def mean_cube(theta: Tensor, x: Tensor) -> Tensor:
    return ((x @ theta) ** 3).mean()


def ragged_cubes(*sizes: int) -> Hessian:
    """The Hessian of ``mean_cube`` at one point for each size, where the batch of a point has this many examples."""
    x = randn(len(sizes), max(sizes), 3, stream_name="ragged x")
    return hessian(
        mean_cube, randn(len(sizes), 3, stream_name="thetas"), ragged([x[i, :n] for i, n in enumerate(sizes)])
    )


def test_ragged_points_restricted_to_different_subspaces_pass() -> None:
    Q = torch.linalg.qr(randn(3, 3, 2, stream_name="subspaces")).Q
    assert all(finding.passed for finding in check_operator(ragged_cubes(4, 2, 4).restrict(Q)).findings)


def test_a_sum_of_matrices_that_are_ragged_in_different_ways_passes() -> None:
    """Of the points only 0 and 3 are checked, whose two batches are as large as those of the first point, (4, 2)."""
    result = check_operator(ragged_cubes(4, 4, 2, 4, 2) - ragged_cubes(2, 5, 2, 2, 2))
    assert all(finding.passed for finding in result.findings)


def test_a_sum_of_a_ragged_hessian_and_a_matrix_of_no_known_loss() -> None:
    H = ragged_cubes(4, 2, 4)
    result = check_operator(H + adaptation_jacobian(H, 0.1, steps=1).gram)
    # Without a loss there are no differences of its gradient, so this check is not judged (None).
    assert result.symmetry.passed and result.linearity.passed and result.differences.passed is None


def test_points_without_a_finite_loss_are_left_out() -> None:
    """They fail the check of state (is the loss a finite function of theta alone?); the other checks skip them."""
    thetas = randn(3, 3, stream_name="thetas")
    thetas[1, 0] = torch.nan
    result = check_operator(hessian(mean_cube, thetas, randn(4, 3, stream_name="x"), shared=True))
    assert [finding.name for finding in result.findings if not finding.passed] == ["state"]
    assert "not finite at 1 of 3 points" in result.state.sentence
    nothing = check_operator(hessian(mean_cube, thetas[1], randn(4, 3, stream_name="x")))
    assert nothing.state.passed is False and nothing.symmetry.passed is None
    assert "not finite" in nothing.symmetry.sentence


def test_products_that_are_not_finite_where_the_loss_is_finite_fail() -> None:
    """A square root at 0 has no second derivative."""
    result = check_operator(hessian(lambda theta, _: (theta**2).sum().sqrt(), torch.zeros(3), None))
    assert result.symmetry.passed is False and result.symmetry.sentence == "products are not finite"


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_extreme_scales_in_single_precision(scale: float) -> None:
    x, thetas = randn(4, 3, stream_name="x").float(), randn(3, stream_name="thetas").float()
    result = check_operator(hessian(lambda theta, x: scale * mean_cube(theta, x), thetas, x))
    assert result.symmetry.passed and result.linearity.passed and result.precision.passed
