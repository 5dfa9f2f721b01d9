"""Derivatives that the user's code writes by hand, in a ``torch.autograd.Function`` or a backward hook."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import close
from first_look_cases import Cube, CubeOnce, Exponential, StraightThrough
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "hand written", name), dtype=torch.float64)


X, Y = randn(12, 4), torch.arange(12) % 3


class CubeOfConstant(Cube):
    """The third power, with its input detached in the backward pass."""

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return slope * 3 * x.detach() ** 2


class Reversed(torch.autograd.Function):
    """Gradient reversal, as in domain-adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return -slope


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = (
            ht.seeded(lambda m=m, n=n: nn.Linear(m, n), seed=n).double() for m, n in ((4, 5), (5, 3))
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("function", "order"),
    [(Exponential, "Hessian"), (CubeOfConstant, "Hessian"), (StraightThrough, "gradient"), (Reversed, "gradient")],
)
def test_wrong_derivatives_are_refused_in_a_network_and_in_a_plain_function(
    function: Any, order: str, dtype: torch.dtype
) -> None:
    model = Net(function.apply).to(dtype)
    with pytest.raises(HiddenStateError, match=rf"\({function.__name__}\), and its {order} is not the derivative"):
        ht.hessian_of(model, F.cross_entropy, (X.to(dtype), Y))
    with pytest.raises(HiddenStateError, match=f"its {order} is not the derivative"):
        ht.hessian(lambda theta, _: (function.apply(theta) ** 2).sum(), randn(5).to(dtype), None)


def test_right_derivatives_are_taken() -> None:
    expected = ht.hessian_of(Net(lambda x: x**3), F.cross_entropy, (X, Y))
    close(ht.hessian_of(Net(Cube.apply), F.cross_entropy, (X, Y)).to_dense(), expected.to_dense())
    with pytest.raises(RuntimeError, match="once_differentiable"):
        ht.hessian_of(Net(CubeOnce.apply), F.cross_entropy, (X, Y)).to_dense()


def test_kinks_beside_a_backward_hook_are_no_wrong_derivatives() -> None:
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 3)), seed=0)
    expected = ht.hessian_of(model, F.cross_entropy, (X.float(), Y)).mv(torch.ones(2403))
    model[2].register_full_backward_hook(lambda module, before, after: None)
    got = ht.hessian_of(model, F.cross_entropy, (X.float(), Y)).mv(torch.ones(2403))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_hooks_of_modules_that_change_gradients_are_refused() -> None:
    doubled = Net(torch.tanh)
    doubled.last.register_full_backward_hook(lambda module, before, after: tuple(2 * g for g in before))
    before = Net(torch.tanh)
    before.last.register_full_backward_pre_hook(lambda module, after: tuple(2 * g for g in after))
    for model in (doubled, before):
        with pytest.raises(HiddenStateError, match=r"\(a backward hook of a module\), and its gradient is not"):
            ht.hessian_of(model, F.cross_entropy, (X, Y))


class Hidden(nn.Module):
    """A network whose first layer is called where no graph is recorded."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(4, 4).double(), nn.Linear(4, 3).double(), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "no_grad":
            with torch.no_grad():
                features = self.first(x)
        elif self.way == "detach":
            features = self.first(x).detach()
        elif self.way == "numpy":
            features = torch.from_numpy(self.first(x).detach().numpy())
        elif self.way == "checkpoint":
            features = checkpoint(self.first, x, use_reentrant=True)
        else:  # computed and thrown away
            self.first(x)
            features = x
        return self.last(features)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", ["no_grad", "detach", "numpy", "checkpoint"])
def test_a_parameter_on_which_the_loss_depends_without_a_gradient_is_refused(way: str) -> None:
    model = Hidden(way)
    with pytest.raises(HiddenStateError, match=r"depends on the parameter 'first\.weight', but its gradient does not"):
        ht.hessian_of(model, F.cross_entropy, (X, Y))
    # As the message says, it may be made a constant.
    expected = ht.hessian_of(model.last, F.cross_entropy, (model.first(X).detach(), Y)).to_dense()
    close(ht.hessian_of(model, F.cross_entropy, (X, Y), where="last", route="kept").to_dense(), expected)


def test_a_parameter_on_which_the_loss_does_not_depend_has_rows_of_zeros() -> None:
    model = Hidden("unused")
    dense = ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense()
    assert dense[:20].abs().max() == 0
    close(dense[20:, 20:], ht.hessian_of(model.last, F.cross_entropy, (X, Y)).to_dense())
