"""Networks whose derivatives torch computes wrongly or not at all: weight normalisation, attention, recurrent layers.

Torch computes the derivative of batch normalisation in TorchScript, which turns Ctrl-C into another error; the last
test is that Ctrl-C stays KeyboardInterrupt.
"""

from collections.abc import Callable

import pytest
import torch
from cases import randn, seeded, squared_error
from contract import close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessian_tools.curvature import gauss_newton, gauss_newton_spectrum, hessian, trace
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss

pytestmark = pytest.mark.heavy


def by_hook() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(3, 2))


def by_parametrization() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 2), dim=1)


@pytest.mark.parametrize("route", ["auto", "direct", "kept", "traced"])
# norm_over: the dimension of the weight over which the norm is taken. torch's ``dim`` is the dimension that is kept; it
# is 0 by default.
@pytest.mark.parametrize(("make", "norm_over"), [(by_hook, 1), (by_parametrization, 0)])
def test_weight_normalisation_by_every_route(make: Callable[[], nn.Module], norm_over: int, route: str) -> None:
    """Compared with the formula written out, because torch's second derivative in reverse mode is 20 to 90 % off."""
    model = seeded(make).double()
    theta, layout = flatten(model)
    batch = randn(5, 3, stream_name="x"), randn(5, 2, stream_name="y")

    def written_out(theta: Tensor) -> Tensor:
        bias, g, v = layout.unflatten(theta).values()
        return squared_error(F.linear(batch[0], g * v / v.norm(dim=norm_over, keepdim=True), bias), batch[1])

    H = hessian(make_loss(model, squared_error, layout), theta, batch, route=route)
    close(H.to_dense(), torch.autograd.functional.hessian(written_out, theta))


class DirectWeightNorm(nn.Linear):
    """A layer that calls torch's kernel of weight normalisation directly, with its bias as the norms g."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.weight, self.bias[:, None], 0))


def test_weight_normalisation_by_a_direct_call_of_the_kernel() -> None:
    model = seeded(lambda: DirectWeightNorm(3, 2)).double()
    theta, layout = flatten(model)
    batch = randn(5, 3, stream_name="x"), randn(5, 2, stream_name="y")

    def written_out(theta: Tensor) -> Tensor:
        v, g = layout.unflatten(theta).values()
        return squared_error(F.linear(batch[0], g[:, None] * v / v.norm(dim=1, keepdim=True)), batch[1])

    H = hessian(make_loss(model, squared_error, layout), theta, batch)
    close(H.to_dense(), torch.autograd.functional.hessian(written_out, theta))


class Attention(nn.Module):
    """One layer of attention with two outputs. way: how attention is called."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.out = way, nn.Linear(4, 2)
        if way == "encoder layer":
            self.inner: nn.Module = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        else:
            self.inner = nn.Linear(4, 4) if way == "function" else nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "encoder layer":
            return self.out(self.inner(x).mean(1))
        if self.way == "function":
            q = self.inner(x)
            return self.out(F.scaled_dot_product_attention(q, q, x).mean(1))
        return self.out(self.inner(x, x, x, need_weights=self.way == "with weights")[0].mean(1))


@pytest.mark.parametrize("way", ["function", "module", "with weights", "encoder layer"])
@pytest.mark.parametrize("training", [True, False])
def test_attention_by_every_route(way: str, training: bool) -> None:
    """Compared with torch's attention by matrix products, because its fused kernels have no second derivative."""
    model = seeded(lambda: Attention(way)).double().train(training)
    theta, layout = flatten(model)
    thetas = theta + 0.1 * randn(2, len(theta), stream_name="thetas")
    x, y = randn(2, 3, 5, 4, stream_name="x"), randn(2, 3, 2, stream_name="y")

    def written_out(point: int) -> Callable[[Tensor], Tensor]:
        def value(theta: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return squared_error(functional_call(model, layout.unflatten(theta), (x[point],)), y[point])

        return value

    expected = torch.stack([torch.autograd.functional.hessian(written_out(i), thetas[i]) for i in range(2)])
    for route in ("auto", "direct", "kept", "traced"):
        H = hessian(make_loss(model, squared_error, layout), thetas, (x, y), route=route)
        close(H.to_dense(), expected)
        # At few points "auto" chooses the engine double_backward, which ``H.route`` reports by its older name "kept".
        assert H.route == ("kept" if route == "auto" else route)


def test_a_kept_graph_refuses_the_users_vmap() -> None:
    H = hessian(lambda theta, a: (a * theta**3).sum(), torch.ones(3), torch.ones(3), route="kept")
    with pytest.raises(RuntimeError, match="a kept graph cannot be transformed by torch.func: pass route='direct'"):
        torch.func.vmap(lambda v: H @ v)(torch.ones(2, 3))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_traces_of_recurrent_networks(kind: type[nn.Module]) -> None:
    """Exact traces use vmap without recording gradients, where torch cannot run recurrent networks."""
    model = seeded(lambda: kind(3, 2, batch_first=True)).double()
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: squared_error(out[0], y), layout)
    batch = randn(2, 3, 3, stream_name="x"), randn(2, 3, 2, stream_name="y")
    H, G = hessian(loss, theta, batch), gauss_newton(loss, theta, batch)
    close(trace(H, method="exact").value, H.to_dense().trace())
    close(trace(G, method="exact").value, G.to_dense().trace())
    close(gauss_newton_spectrum(loss, theta, batch).trace, G.to_dense().trace())


def test_ctrl_c_stays_ctrl_c_if_torchscript_reports_it_as_an_error() -> None:
    """torch's derivative of batch normalisation is written in TorchScript, which turns Ctrl-C into a RuntimeError."""

    def interrupted(theta: Tensor, _: None) -> Tensor:
        raise RuntimeError("The following operation failed in the TorchScript interpreter.\nKeyboardInterrupt: ")

    H = hessian(interrupted, torch.ones(2, 3), None, shared=True, chunk=2)
    with pytest.raises(KeyboardInterrupt):
        H @ torch.ones(3)
