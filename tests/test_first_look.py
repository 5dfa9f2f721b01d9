"""Losses that would give wrong curvature in silence are refused at the first call, with the cause and the remedy."""

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from contract import close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "first look", name), dtype=torch.float64)


X, Y = randn(12, 4), torch.arange(12) % 3


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), seed=0).double()


def refused(model: nn.Module, criterion: Callable[..., Tensor], words: str, batch: Any = (X, Y)) -> None:
    """Every door is closed: Hessian, Gauss-Newton, gradient and recorder."""
    theta, layout = ht.flatten(model)
    for door in (ht.hessian, ht.gauss_newton, ht.gradient):
        with pytest.raises(HiddenStateError, match=words):
            door(ht.make_loss(model, criterion, layout), theta, batch)
    with pytest.raises(HiddenStateError, match=words):
        ht.Recorder(model, criterion, batch).trajectory()


# Criteria that draw, from every global generator, and one that counts its calls.
COUNT = iter(range(1, 10_000))
DRAWING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "label noise": (lambda out, y: F.cross_entropy(out + torch.randn_like(out), y), "criterion draws random numbers"),
    "dropout": (lambda out, y: F.cross_entropy(F.dropout(out), y), "criterion draws random numbers"),
    "gumbel": (lambda out, y: F.nll_loss(F.gumbel_softmax(out).log(), y), "criterion draws random numbers"),
    "mixup, NumPy": (lambda out, y: np.random.beta(1, 1) * F.cross_entropy(out, y), "criterion draws random numbers"),
    "python": (lambda out, y: random.random() * F.cross_entropy(out, y), "criterion draws random numbers"),
    "a rare change, Python": (
        lambda out, y: (2 if random.random() < 0.01 else 1) * F.cross_entropy(out, y),
        "criterion draws random numbers",
    ),
    "counter": (lambda out, y: F.cross_entropy(out, y) * next(COUNT), "another value the second time"),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_criterion_that_draws_is_refused_and_the_random_state_is_left_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "beartype", raising=False)
    criterion, words = DRAWING[name]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    refused(network(), criterion, words)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


def test_where_beartype_is_loaded_a_loss_may_draw_from_the_generator_of_python_if_it_does_not_use_it(monkeypatch):
    """Beartype looks at one entry of a list only, which it chooses at random."""
    monkeypatch.setitem(sys.modules, "beartype", sys)
    coin = (lambda out, y: random.choice([1, 2]) * F.cross_entropy(out, y), "another value the second time")
    refused(network(), *coin)

    class Checked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            random.getrandbits(32)
            return super().forward(x)

    def plain(theta: Tensor, batch: Any) -> Tensor:
        random.getrandbits(32)
        return F.cross_entropy(functional_call(model, layout.unflatten(theta), batch[0]), batch[1])

    model = Checked(4, 3).double()
    theta, layout = ht.flatten(model)
    H = ht.hessian(ht.make_loss(model, F.cross_entropy, layout), theta, (X, Y)).to_dense()
    close(ht.hessian(plain, theta, (X, Y)).to_dense(), H)


def test_a_criterion_that_moves_its_buffers_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(3))

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            self.centre.mul_(0.9).add_(0.1 * out.detach().mean(0))
            return F.cross_entropy(out - self.centre, y)

    criterion = Centred()
    refused(network(), criterion, "criterion moves its buffers")
    assert torch.equal(criterion.centre, torch.zeros(3))


def test_a_plain_function_that_draws_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    theta, layout = ht.flatten(model)

    def loss(theta: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, layout.unflatten(theta), (batch[0],)), batch[1])

    for door in (lambda: ht.hessian(loss, theta, (X, Y)), lambda: ht.trajectory_from(loss, [theta, theta], (X, Y))):
        with pytest.raises(HiddenStateError, match="draws random numbers"):
            door()
    model.eval()
    assert ht.hessian(loss, theta, (X, Y)).mv(theta).isfinite().all()


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
    """A stand-in for the module that ``higher`` makes: its forward pass uses fast weights of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
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


def test_a_sparse_embedding_is_refused_with_the_remedy_and_a_sparse_bag_is_right() -> None:
    def made(sparse: bool, kind: Any = nn.Embedding) -> nn.Module:
        width = 6 if kind is nn.Embedding else 3
        return ht.seeded(lambda: nn.Sequential(kind(7, 3, sparse=sparse), nn.Flatten(), nn.Linear(width, 2)), seed=0)

    batch = torch.randint(0, 7, (5, 2), generator=stream(0, "ids")), torch.arange(5) % 2
    for door in (ht.hessian, ht.gauss_newton):
        theta, layout = ht.flatten(made(sparse=True))
        with pytest.raises(ValueError, match="use sparse=False"):
            door(ht.make_loss(made(sparse=True), F.cross_entropy, layout), theta, batch)
        assert door(ht.make_loss(made(sparse=False), F.cross_entropy, layout), theta, batch).mv(theta).isfinite().all()
    sparse, ordinary = (ht.hessian_of(made(s, nn.EmbeddingBag), F.cross_entropy, batch) for s in (True, False))
    v = torch.ones(sparse.num_params)
    assert torch.equal(sparse.mv(v), ordinary.mv(v))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own quantisation is deprecated
def test_a_quantised_part_before_trained_parameters_is_refused_and_behind_none_is_right() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 4)  # its weight is memory that nobody has written to
    quantised.set_weight_bias(torch.quantize_per_tensor(torch.eye(4), 0.01, 0, torch.qint8), torch.zeros(4))
    model = nn.Sequential(nn.Linear(4, 4), quantised, nn.Tanh(), nn.Linear(4, 3))
    batch = X.float(), Y
    with pytest.raises(HiddenStateError, match="module '1' is quantised and has no derivative"):
        ht.hessian_of(model, F.cross_entropy, batch)
    H = ht.hessian_of(model, F.cross_entropy, batch, where="3")
    features = model[2](model[1](model[0](batch[0]))).detach()
    expected = ht.hessian_of(model[3], F.cross_entropy, (features, Y)).to_dense()
    assert torch.allclose(H.to_dense(), expected, atol=1e-6)


def test_a_loss_that_draws_nothing_is_looked_at_once() -> None:
    calls = []

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(out, y)

    model = network()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    for _ in range(3):
        ht.hessian(loss, theta, (X, Y))
    assert len(calls) == 2


# Gauss-Newton of criteria that are linear in the outputs.
class LogProbabilities(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, 1)


LINEAR: dict[str, tuple[nn.Module, Any, str]] = {
    "module": (nn.LogSoftmax(-1), F.nll_loss, "leave LogSoftmax out"),
    "function": (LogProbabilities(), nn.NLLLoss(), "leave LogSoftmax out"),
    "soft targets": (
        nn.LogSoftmax(-1),
        lambda out, y: F.kl_div(out, F.one_hot(y, 3).to(out), reduction="batchmean"),
        "leave LogSoftmax out",
    ),
    "absolute error": (
        nn.Identity(),
        lambda out, y: (out - y[:, None]).abs().mean(),
        "linear in the network's outputs",
    ),
    "mean score": (nn.Tanh(), lambda out, y: out.mean(), "linear in the network's outputs"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_gauss_newton_warns_of_a_criterion_that_is_linear_in_the_outputs(name: str) -> None:
    last, criterion, words = LINEAR[name]
    model = nn.Sequential(network(), last)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    with pytest.warns(UserWarning, match=words):
        G = ht.gauss_newton(loss, theta, (X, Y))
    assert G.mv(theta).norm() == 0
    with pytest.warns(UserWarning, match=words):
        ht.gauss_newton_spectrum(loss, theta, (X, Y))


def test_gauss_newton_warns_of_a_linear_loss_inside_a_model() -> None:
    class Classifier(nn.Module):
        def __init__(self, criterion: Any) -> None:
            super().__init__()
            self.body, self.criterion = network(), criterion

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.body(x) if self.criterion is F.cross_entropy else F.log_softmax(self.body(x), 1)
            return {"logits": logits, "loss": self.criterion(logits, labels)}

    for criterion in (F.cross_entropy, F.nll_loss):
        model = Classifier(criterion)
        theta, loss, batch = ht.flatten(model)[0], ht.make_loss(model), {"x": X, "labels": Y}
        if criterion is F.cross_entropy:
            assert ht.gauss_newton(loss, theta, batch).mv(theta).norm() > 0
            continue
        with pytest.warns(UserWarning, match="leave LogSoftmax out"):
            ht.gauss_newton(loss, theta, batch)


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


def test_a_criterion_in_another_mode_is_looked_at_again() -> None:
    class Noisy(nn.Module):
        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(out + torch.randn_like(out) if self.training else out, y)

    criterion, model = Noisy().eval(), network()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    ht.hessian(loss, theta, (X, Y))
    criterion.train()
    with pytest.raises(HiddenStateError, match="criterion draws random numbers"):
        ht.hessian(loss, theta, (X, Y))


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


def test_a_derivative_inside_the_loss_without_a_graph_is_warned_of() -> None:
    model = network()
    theta, layout = ht.flatten(model)

    def penalised(theta: Tensor, batch: Any, *, create_graph: bool) -> Tensor:
        x = batch[0].clone().requires_grad_()
        out = functional_call(model, layout.unflatten(theta), (x,))
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=create_graph, retain_graph=True)
        return F.cross_entropy(out, batch[1]) + (slope**2).mean()

    with pytest.warns(UserWarning, match="without create_graph=True"):
        ht.hessian(partial(penalised, create_graph=False), theta, (X, Y))
    H = ht.hessian(partial(penalised, create_graph=True), theta, (X, Y))
    close(
        H.to_dense(),
        torch.autograd.functional.hessian(lambda t: penalised(t, (X, Y), create_graph=True), theta),
    )


def test_several_batches_of_a_network_that_moves_its_buffers_leave_them_alone() -> None:
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), seed=0).double()
    theta, layout = ht.flatten(model)
    with pytest.raises(HiddenStateError, match="moves its buffers"):
        ht.hessian(ht.make_loss(model, F.cross_entropy, layout), theta, [(X, Y), (X[:5], Y[:5])])
    assert model[1].num_batches_tracked == 0
