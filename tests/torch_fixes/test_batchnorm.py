"""``ShortBatchNorm`` has torch's values to the bit, and torch's first and second derivatives to rounding."""

import pytest
import torch
from cases import dense_hessian, randn
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.curvature import hessian
from hessian_tools.curvature.objective.matrix import hessian_product
from hessian_tools.torch_fixes.batchnorm import ShortBatchNorm

SHAPES = [(5, 3), (2, 3, 4), (4, 3, 3, 2), (2, 3, 2, 2, 2)]


def batchnorm_loss(shape: tuple[int, ...], eps: float, *, affine: bool):
    """A loss of inputs, weights and biases, all of which are in theta."""
    count = torch.Size(shape).numel()

    def loss(theta: Tensor, weights: Tensor) -> Tensor:
        x, w, b = theta[:count].view(shape), theta[count : count + 3], theta[count + 3 :]
        y = F.batch_norm(x, None, None, w if affine else None, b if affine else None, training=True, eps=eps)
        return (weights * torch.tanh(y)).sum()

    return loss, randn(count + 6, stream_name="theta"), randn(*shape, stream_name="weights")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.7])
def test_the_derivatives_agree_with_torch(shape, eps) -> None:
    for affine in (True, False):
        loss, theta, batch = batchnorm_loss(shape, eps, affine=affine)
        v = randn(len(theta), stream_name="v")
        expected = dense_hessian(loss, theta, batch) @ v
        value, gradient = loss(theta, batch), torch.func.grad(loss)(theta, batch)
        with ShortBatchNorm():
            assert torch.equal(loss(theta, batch), value)
            assert torch.allclose(torch.func.grad(loss)(theta, batch), gradient, rtol=1e-11, atol=1e-12)
            result = hessian_product(loss, theta, batch, v)
        assert torch.allclose(result, expected, rtol=1e-9, atol=1e-10)


def test_inputs_far_from_zero_lose_no_more_digits_than_in_torch() -> None:
    """Inputs of mean 1000 and variance 1, in float32, against torch's own derivative in both precisions."""
    loss, theta, batch = batchnorm_loss((40, 3), 1e-5, affine=True)
    theta[:120] += 1000  # the inputs come first in theta
    v = randn(len(theta), stream_name="v")
    exact = hessian_product(loss, theta, batch, v)

    def error(product: Tensor) -> float:
        return float((product - exact).norm() / exact.norm())

    single = [t.float() for t in (theta, batch, v)]
    own = error(hessian_product(loss, *single[:3]))
    with ShortBatchNorm():
        assert error(hessian_product(loss, *single[:3])) < 3 * own + 1e-6


def test_normalisation_by_running_statistics_is_left_alone() -> None:
    x, mean, var = randn(4, 3, stream_name="x"), torch.zeros(3).double(), torch.ones(3).double()
    with ShortBatchNorm():
        torch.testing.assert_close(F.batch_norm(x, mean, var), x / (1 + 1e-5) ** 0.5)
        F.batch_norm(x, mean, var, training=True)
    assert not torch.equal(mean, torch.zeros(3).double())  # running statistics still move


def test_third_derivatives_are_refused_rather_than_wrong() -> None:
    loss, theta, batch = batchnorm_loss((5, 3), 1e-5, affine=True)
    with ShortBatchNorm(), pytest.raises(NotImplementedError, match="third derivatives"):
        torch.func.grad(lambda t: torch.func.grad(loss)(t, batch).sum())(theta)
    assert hessian(loss, theta, batch).mv(theta).isfinite().all()
