"""Losses that depend on theta only in part, or whose derivative would miss a part, are refused at the first call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import close
from first_look_cases import X, Y, network, refused
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

import hessian_tools as ht
from hessian_tools import HiddenStateError


def closure_loss(model: nn.Module) -> Callable[[Tensor, Any], Tensor]:
    return lambda theta, batch: F.cross_entropy(model(batch[0]), batch[1])


def filled_loss(model: nn.Module) -> Callable[[Tensor, Any], Tensor]:
    """theta is written into the module, where autograd does not see it."""

    def loss(theta: Tensor, batch: Any) -> Tensor:
        vector_to_parameters(theta, model.parameters())
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss


def detached_loss(model: nn.Module) -> Callable[[Tensor, Any], Tensor]:
    layout = ht.flatten(model)[1]
    return lambda theta, batch: F.cross_entropy(
        functional_call(model, layout.unflatten(theta.detach()), (batch[0],)), batch[1]
    )


@pytest.mark.parametrize("make", [closure_loss, filled_loss, detached_loss])
def test_a_plain_function_that_does_not_depend_on_theta_is_refused(make: Any) -> None:
    model = network()
    theta = ht.flatten(model)[0]
    with pytest.raises(HiddenStateError, match="not depend on theta|not theta itself"):
        ht.hessian(make(model), theta, (X, Y))


def test_a_plain_function_of_which_only_a_part_uses_theta_is_refused() -> None:
    """Weight decay on theta beside a network at its stored weights: the Hessian would be that of the decay alone."""
    model = network()
    theta = ht.flatten(model)[0]
    with pytest.raises(HiddenStateError, match="entries 0 to 31 of theta"):
        ht.hessian(lambda t, b: F.cross_entropy(model(b[0]), b[1]) + (t**2).sum(), theta, (X, Y))


def test_a_fixed_second_network_in_a_plain_function_is_no_fault() -> None:
    model, teacher = network(), ht.seeded(network, seed=3)
    for parameter in teacher.parameters():
        parameter.data.add_(0.1)
    theta, layout = ht.flatten(model)

    def distillation(theta: Tensor, batch: Any) -> Tensor:
        return ((functional_call(model, layout.unflatten(theta), (batch,)) - teacher(batch)) ** 2).mean()

    close(
        ht.hessian(distillation, theta, X).to_dense(),
        torch.autograd.functional.hessian(lambda t: distillation(t, X), theta),
    )


class HoldsWeights(nn.Module):
    """Its weights stand in a list beside the registered ones, so that theta does not reach the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()
        self.held = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(x @ self.held[0].T))


def test_a_network_that_uses_weights_held_elsewhere_is_refused() -> None:
    refused(HoldsWeights(), F.cross_entropy, "stored parameter 'first.weight' in place of theta")


def test_a_criterion_that_uses_the_models_weights_is_refused() -> None:
    """Weight decay over ``model.parameters()``: its second derivative, the multiple of I, would be missing."""
    model = network()

    def with_decay(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + 0.01 * sum(p.pow(2).sum() for p in model.parameters())

    refused(model, with_decay, "stored parameter '0.weight' in place of theta")


class Patched(nn.Module):
    """A stand-in for the module that ``higher`` makes: it uses fast weights of its own, and cannot be copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = (name for name, _ in model.named_parameters())
        self.fast_params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.model, {name: p.clone() for name, p in self.fast_params.items()}, (x,))


def test_a_patched_module_is_refused_with_the_way_to_pass_fast_weights() -> None:
    refused(Patched(network()), F.cross_entropy, r"does not depend on theta.*fast weights as theta = torch\.cat")
    higher = pytest.importorskip("higher", reason="higher is not installed; the stand-in above has its form")
    model = network()
    with higher.innerloop_ctx(model, torch.optim.SGD(model.parameters(), lr=1.0)) as (patched, _):
        refused(patched, F.cross_entropy, r"does not depend on theta.*fast weights as theta = torch\.cat")


class Replayed(torch.autograd.Function):
    """A checkpoint written by hand: the module is run again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = ctx.module(x)
            weights = list(ctx.module.parameters())
            gx, *gw = torch.autograd.grad(out, [x, *weights], g, allow_unused=True)
        return (None, gx, *gw)


class AddsToGrad(Replayed):
    """The same by ``torch.autograd.backward``, which adds to ``.grad`` of the module's own weights."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(x), g)
        return (None, x.grad, *(None for _ in ctx.module.parameters()))


class RunAgain(nn.Module):
    def __init__(self, function: Any, *, direct: bool) -> None:
        super().__init__()
        self.function, self.direct = function, direct
        self.inner, self.out = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        inner = (lambda x: torch.tanh(F.linear(x, self.inner.weight))) if self.direct else self.inner
        if self.direct:
            inner.parameters = self.inner.parameters  # type: ignore[attr-defined]
        return self.out(self.function.apply(inner, x, *self.inner.parameters()))


@pytest.mark.parametrize("direct", [False, True], ids=["module", "functional"])
@pytest.mark.parametrize("function", [Replayed, AddsToGrad])
def test_a_module_that_is_run_again_in_its_backward_pass_is_refused(function: Any, direct: bool) -> None:
    model = RunAgain(function, direct=direct)
    refused(model, F.cross_entropy, "run again inside the backward pass")
    assert all(parameter.grad is None for parameter in model.parameters())
    theta, layout = ht.flatten(model)

    def plain(theta: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, layout.unflatten(theta), (batch[0],)), batch[1])

    with pytest.raises(HiddenStateError, match="run again inside the backward pass"):
        ht.hessian(plain, theta, (X, Y))


def test_the_adjoint_method_of_an_ordinary_differential_equation_is_refused() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed; Replayed has its form")

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(self.linear(z))

    class Network(nn.Module):
        def __init__(self, solve: Any) -> None:
            super().__init__()
            self.flow, self.out, self.solve = Flow(), nn.Linear(4, 3), solve

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.solve(self.flow, x, torch.linspace(0, 1, 9).to(x), method="rk4")[-1])

    refused(
        Network(torchdiffeq.odeint_adjoint).double(), F.cross_entropy, "use the ordinary forward pass, such as odeint"
    )
    assert ht.hessian_of(Network(torchdiffeq.odeint).double(), F.cross_entropy, (X, Y)).to_dense().isfinite().all()


class Hooked(nn.Module):
    """A gradient hook, as models with implicit derivatives and clipped gradients have."""

    def __init__(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.body, self.hook = network(), hook

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if out.requires_grad:
            out.register_hook(self.hook)
        return out


def test_a_hook_that_changes_a_gradient_is_refused_and_one_that_looks_is_not() -> None:
    refused(Hooked(lambda g: 2 * g), F.cross_entropy, "a hook on a tensor changes its gradient")
    refused(Hooked(lambda g: g.clamp(-0.01, 0.01)), F.cross_entropy, "a hook on a tensor changes its gradient")
    seen: list[float] = []
    watched = Hooked(lambda g: seen.append(float(g.detach().norm())))
    H = ht.hessian_of(watched, F.cross_entropy, (X, Y), route="kept")
    close(H.to_dense(), ht.hessian_of(watched.body, F.cross_entropy, (X, Y)).to_dense())
    assert seen


def test_weights_put_in_behind_a_layer_of_equal_numbers_are_refused() -> None:
    model = ht.seeded(lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), seed=0).double()
    theta = ht.flatten(model)[0]

    def loss(theta: Tensor, batch: Any) -> Tensor:
        vector_to_parameters(theta, model.parameters())
        return F.cross_entropy(model(batch[0]), batch[1]) + 1e-3 * theta @ theta

    with pytest.raises(HiddenStateError, match=r"stored parameter of shape \(3, 4\)"):
        ht.hessian(loss, theta, (X, Y))


def test_an_anchor_is_a_constant_if_it_is_detached() -> None:
    """The penalty of implicit MAML, on the distance from the stored weights."""
    model = network()
    theta, layout = ht.flatten(model)

    def loss(theta: Tensor, batch: Any) -> Tensor:
        anchor = torch.cat([p.detach().flatten() for p in model.parameters()])
        out = functional_call(model, layout.unflatten(theta), (batch[0],))
        return F.cross_entropy(out, batch[1]) + ((theta - anchor) ** 2).sum()

    expected = ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense()
    close(ht.hessian(loss, theta, (X, Y)).to_dense(), expected + 2 * torch.eye(len(theta), dtype=theta.dtype))


def test_a_tensor_computed_from_the_weights_beforehand_is_refused() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
            self.weight = 2 * self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(x @ self.weight.mT))

    refused(Computed(), F.cross_entropy, "uses the model's stored parameter 'first.weight'")
