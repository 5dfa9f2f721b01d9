"""Networks that torch's derivatives treat badly: weight normalisation, recurrent layers; Ctrl-C inside TorchScript."""

from collections.abc import Callable

import pytest
import torch
from cases import randn, seeded, squared_error
from contract import close
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools.curvature import gauss_newton, gauss_newton_spectrum, hessian, trace
from hessian_tools.flat import flatten
from hessian_tools.loss import make_loss


def by_hook() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(3, 2))


def by_parametrization() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 2), dim=1)


@pytest.mark.parametrize("route", ["auto", "direct", "kept", "traced"])
@pytest.mark.parametrize(("make", "dim"), [(by_hook, 1), (by_parametrization, 0)])
def test_weight_normalisation(make: Callable[[], nn.Module], dim: int, route: str) -> None:
    """Against the formula written out: torch's own second derivative in reverse mode is 20 to 90 % off."""
    model = seeded(make).double()
    theta, layout = flatten(model)
    batch = randn(5, 3, path="x"), randn(5, 2, path="y")

    def written_out(theta: Tensor) -> Tensor:
        bias, g, v = layout.unflatten(theta).values()
        return squared_error(F.linear(batch[0], g * v / v.norm(dim=dim, keepdim=True), bias), batch[1])

    H = hessian(make_loss(model, squared_error, layout), theta, batch, route=route)
    close(H.to_dense(), torch.autograd.functional.hessian(written_out, theta))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_traces_of_recurrent_networks(kind: type[nn.Module]) -> None:
    """torch cannot run them under vmap without a gradient."""
    model = seeded(lambda: kind(3, 2, batch_first=True)).double()
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: squared_error(out[0], y), layout)
    batch = randn(2, 3, 3, path="x"), randn(2, 3, 2, path="y")
    H, G = hessian(loss, theta, batch), gauss_newton(loss, theta, batch)
    close(trace(H, method="exact").value, H.to_dense().trace())
    close(trace(G, method="exact").value, G.to_dense().trace())
    close(gauss_newton_spectrum(loss, theta, batch).trace, G.to_dense().trace())


def test_an_interruption_that_torchscript_reports_as_an_error() -> None:
    """torch has the derivative of batch normalisation in TorchScript, which makes a RuntimeError of Ctrl-C."""

    def interrupted(theta: Tensor, _: None) -> Tensor:
        raise RuntimeError("The following operation failed in the TorchScript interpreter.\nKeyboardInterrupt: ")

    H = hessian(interrupted, torch.ones(2, 3), None, shared=True, chunk=2)
    with pytest.raises(KeyboardInterrupt):
        H @ torch.ones(3)
