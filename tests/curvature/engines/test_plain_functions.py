"""A plain function as the loss has the same correct derivatives as a ``Loss``, where torch's are wrong or missing."""

from typing import Any

import pytest
import torch
from cases import randn, seeded, squared_error
from contract import close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hessian_tools import flatten, gauss_newton, gradient, hessian, make_loss
from hessian_tools.curvature import third_derivative


def weight_normalised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("route", ["auto", "direct", "kept"])
def test_weight_normalisation_in_a_plain_function(route: str) -> None:
    """By the kept route the Hessian was once silently 45 % off."""
    model = seeded(weight_normalised).double()
    theta, layout = flatten(model)
    batch = randn(5, 3, stream_name="x"), randn(5, 2, stream_name="y")

    def plain(theta: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return squared_error(functional_call(model, layout.unflatten(theta), (batch[0],)), batch[1])

    loss = make_loss(model, squared_error, layout)
    close(hessian(plain, theta, batch, route=route).to_dense(), hessian(loss, theta, batch).to_dense())
    g = gradient(plain, theta, batch)
    close(third_derivative(plain, theta, batch, g).value, third_derivative(loss, theta, batch, g).value)


@pytest.mark.parametrize("route", ["auto", "direct", "kept"])
def test_squared_error_and_attention_in_a_plain_function(route: str) -> None:
    """torch's fused attention has no second derivative, and its ``nn.MSELoss`` no forward-over-reverse derivative."""
    x, y = randn(1, 2, 3, 4, stream_name="x"), randn(1, 2, 3, 4, stream_name="y")

    def plain(theta: Tensor, _: None) -> Tensor:
        return nn.MSELoss()(F.scaled_dot_product_attention(theta * x, x, x), y)

    def written_out(theta: Tensor) -> Tensor:
        return squared_error(torch.softmax((theta * x) @ x.mT / 2, -1) @ x, y)

    theta = torch.ones(4, dtype=torch.float64)
    close(hessian(plain, theta, None, route=route).to_dense(), torch.autograd.functional.hessian(written_out, theta))


class _Doubled(torch.autograd.Function):
    """A function without a forward derivative and without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Doubled.apply(x)


def test_gauss_newton_of_a_function_without_a_forward_derivative_is_kept() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), _Double(), nn.Tanh(), nn.Linear(4, 2))).double()
    theta, layout = flatten(model)
    batch = randn(5, 3, stream_name="x"), randn(5, 2, stream_name="y")
    loss = make_loss(model, squared_error, layout)
    G = gauss_newton(loss, theta, batch)
    J = torch.autograd.functional.jacobian(lambda t: loss.outputs(t, batch[0]).flatten(), theta)
    close(G.to_dense(), 2 * J.T @ J / 10)
    assert G.route == "kept"
    with pytest.raises(RuntimeError, match=r"autograd\.Function"):
        gauss_newton(loss, theta, batch, route="direct") @ theta


@pytest.mark.parametrize("later", ["a larger batch", "a part in another mode"])
def test_weight_normalisation_in_a_branch_that_the_first_pass_did_not_take(later: str) -> None:
    """The Hessian was once about 60 % off there."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.normalised = nn.Linear(3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
            self.switch = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            other = len(x) > 5 or self.switch.training
            return torch.tanh(self.normalised(x) if other else self.plain(x))

    model = seeded(Branching).double().eval()
    theta, layout = flatten(model)
    loss = make_loss(model, squared_error, layout)
    small, large = ((randn(n, 3, stream_name="x"), randn(n, 2, stream_name="y")) for n in (5, 6))
    hessian(loss, theta, small) @ theta
    batch = small
    if later == "a larger batch":
        batch = large
    else:
        model.switch.train()
    expected = hessian(make_loss(model, squared_error, layout), theta, batch, route="direct").to_dense()
    for route in ("kept", "direct"):
        close(hessian(loss, theta, batch, route=route).to_dense(), expected)
    assert expected.norm() > 0


def test_a_plain_function_is_called_as_it_was_given() -> None:
    """It is called with theta and the batch as given. Any callable object is accepted."""

    class Scaled(nn.Module):
        def forward(self, theta: Tensor, batch: dict[str, Tensor]) -> Tensor:
            return (batch["scale"] * theta**2).sum()

    scale = torch.tensor([1.0, 3.0])
    close(hessian(Scaled(), torch.ones(2), {"scale": scale}).to_dense(), torch.diag(2 * scale))
