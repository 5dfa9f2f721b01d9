"""Losses that draw, move their buffers or have no second derivative are refused at the first call, with the remedy."""

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from contract import close
from first_look_cases import Cube, X, Y, network, refused
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream
from hessian_tools.watches import ForwardWatch

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


# What is used without its graph, beside a use that has one, so that every parameter has a gradient.
CUT: dict[str, Callable[[Tensor], Tensor]] = {
    "detach()": lambda h: h * h.norm().detach(),
    ".data": lambda h: h * h.data,
    "item()": lambda h: h * h.norm().item(),
    "float()": lambda h: h * float(h.norm()),
    "numpy()": lambda h: h * torch.as_tensor(h.detach().numpy()) ** 2,
    "torch.no_grad()": lambda h: h * torch.no_grad()(torch.exp)(h),
    "straight-through": lambda h: h + ((4 * h).round() / 4 - h).detach(),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@pytest.mark.parametrize("name", CUT)
def test_a_part_that_is_detached_is_warned_of(name: str) -> None:
    words = name if name in ("item()", "float()", ".data", "torch.no_grad()") else r"detach\(\)"
    with pytest.warns(
        UserWarning, match=f"through {words.replace('()', '[(][)]')}, so that it counts as a constant"
    ) as warned:
        ht.hessian_of(network(), lambda out, y: F.cross_entropy(CUT[name](out), y), (X, Y))
    assert [warning.filename for warning in warned if "counts as a constant" in str(warning.message)] == [__file__]


def test_a_detached_part_that_changes_nothing_is_not_warned_of() -> None:
    """The largest output is subtracted for the sake of rounding; softmax does not depend on it."""
    values = []

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(out - out.max().detach(), y)
        values.append(value.item())
        return value

    H, plain = ht.hessian_of(network(), criterion, (X, Y)), ht.hessian_of(network(), F.cross_entropy, (X, Y))
    v = torch.ones(H.num_params, dtype=H.dtype)
    close(H.mv(v), plain.mv(v))


def test_a_function_that_runs_after_a_part_without_a_graph_is_not_taken_for_one() -> None:
    """Torch records no graph inside a Function; Python code had switched graphs off before, and on again."""
    with ForwardWatch(lambda _: False) as watch:
        with torch.no_grad():
            constant = torch.ones(2).exp()
        Cube.apply(constant.requires_grad_())
    assert watch.cut == ""


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
    random.seed(0)  # with one seed in 256 the coin would fall alike at every look
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
    with pytest.warns(UserWarning, match=words) as warned:
        ht.gauss_newton_spectrum(loss, theta, (X, Y))
    assert warned[0].filename == __file__


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


def test_a_derivative_inside_the_loss_without_a_graph_is_warned_of() -> None:
    model = network()
    theta, layout = ht.flatten(model)

    def penalised(theta: Tensor, batch: Any, *, create_graph: bool) -> Tensor:
        x = batch[0].clone().requires_grad_()
        out = functional_call(model, layout.unflatten(theta), (x,))
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=create_graph, retain_graph=True)
        return F.cross_entropy(out, batch[1]) + (slope**2).mean()

    with pytest.warns(UserWarning, match="without create_graph=True") as warned:
        ht.hessian(partial(penalised, create_graph=False), theta, (X, Y))
    assert warned[0].filename == __file__
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
