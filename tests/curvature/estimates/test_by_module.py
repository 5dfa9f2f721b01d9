"""Trace and Frobenius norm by module, the loss along directions, and curvature in an optimiser's metric."""

from functools import partial
from typing import Any

import pytest
import torch
from contract import close
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import stream

X = torch.randn(12, 4, generator=stream(0, "by module"), dtype=torch.float64)
Y = torch.arange(12) % 3


class Nested(nn.Module):
    """A module with a parameter of its own before and after the one inside it, so that its rows are not adjacent."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.inside = nn.Linear(4, 3)
        self.register_parameter("shift", nn.Parameter(torch.zeros(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(torch.tanh(x * self.scale)) + self.shift


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 4), Nested()), seed=0).double()


@pytest.mark.heavy
def test_the_estimates_are_unbiased_and_their_errors_are_those_of_many_repetitions() -> None:
    """Over 300 sets of probes: means within 4 standard errors, and the mean squared error equal to the variance."""
    H = ht.hessian_of(network(), F.cross_entropy, (X, Y))
    dense = H.to_dense()
    results = [ht.by_module(H, num_probes=16, seed=seed) for seed in range(300)]
    blocks = {name: block.to_dense() for name, block in H.blocks().items()}
    assert results[0].modules == tuple(blocks) == ("0", "1", "1.inside")
    assert results[0].sizes == tuple(len(block) for block in blocks.values())
    assert dense.norm() ** 2 > 1.2 * sum(block.norm() ** 2 for block in blocks.values())  # much lies between modules
    expected = {
        "trace": torch.stack([block.trace() for block in blocks.values()]),
        "frobenius_squared": torch.stack([block.norm() ** 2 for block in blocks.values()]),
    }
    for name, exact in expected.items():
        values = torch.stack([getattr(result, name) for result in results])
        errors = torch.stack([getattr(result, f"{name}_stderr") for result in results])
        assert ((values.mean(0) - exact).abs() < 4 * values.std(0) / 300**0.5).all()
        ratio = (errors**2).mean(0) / values.var(0)
        assert ((ratio > 0.75) & (ratio < 1.35)).all()


def test_many_points_and_blocks_have_modules_too() -> None:
    model = network()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    thetas = torch.stack([theta, 1.1 * theta])
    both = ht.by_module(ht.hessian(loss, thetas, (X, Y), shared=True))
    one = ht.by_module(ht.hessian(loss, thetas[1], (X, Y)))
    close(both.trace[1], one.trace)
    close(both.frobenius_squared_stderr[1], one.frobenius_squared_stderr)
    assert ht.by_module(ht.hessian(loss, theta, (X, Y)).block("1")).modules == ("1", "1.inside")
    table = str(one).splitlines()
    assert len(table) == 4
    assert table[3].startswith("1.inside") and "±" in table[3]
    assert "1.inside" in one._repr_html_() and one._repr_html_().count("<svg") == 3
    with pytest.raises(ValueError, match="4 or more"):
        ht.by_module(ht.hessian(loss, theta, (X, Y)), num_probes=3)
    with pytest.raises(ValueError, match="have no names"):
        ht.by_module(ht.hessian(lambda t, _: (t**2).sum(), theta, None))


def test_the_loss_along_directions_and_its_quadratic_model() -> None:
    model = network()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    H = ht.hessian(loss, theta, [(X[:5], Y[:5]), (X[5:], Y[5:])])
    pairs = ht.top_eigenpairs(H, k=2, vectors=True)
    assert pairs.vectors is not None
    result = ht.loss_along(H, pairs.vectors, steps=[-0.01, 0.0, 0.01, 0.5])
    for i in range(2):
        for j, step in enumerate(result.steps):
            close(result.loss[i, j], loss(theta + step * pairs.vectors[:, i], (X, Y)).detach())
    close(result.curvature, (pairs.vectors * (H @ pairs.vectors)).sum(0))
    assert ((result.loss - result.quadratic).abs()[:, :3] < 1e-5).all()
    many = ht.hessian(loss, torch.stack([theta, 1.1 * theta]), (X, Y), shared=True)
    close(ht.loss_along(many, pairs.vectors, steps=[0.5]).loss[0, :, 0], result.loss[:, 3])
    ragged = ht.hessian(loss, torch.stack([theta, theta]), ht.ragged([(X[:5], Y[:5]), (X, Y)]))
    close(ht.loss_along(ragged, pairs.vectors, steps=[0.5]).loss[1, :, 0], result.loss[:, 3])
    with pytest.raises(ValueError, match="give a LossOperator|is not the matrix of a loss"):
        ht.loss_along(2 * H, pairs.vectors)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give vectors as columns|give a tensor .*param, direction"):
        ht.loss_along(H, pairs.vectors.T)


# Optimisers, with the denominator of a step written out from their squared gradients g (one for each step).
def adam(g: Tensor) -> Tensor:
    v = torch.zeros_like(g[0])
    for row in g:
        v = 0.99 * v + 0.01 * row**2
    return (v / (1 - 0.99 ** len(g))).sqrt() + 1e-6


def amsgrad(g: Tensor) -> Tensor:
    v, largest = torch.zeros_like(g[0]), torch.zeros_like(g[0])
    for row in g:
        v = 0.99 * v + 0.01 * row**2
        largest = torch.maximum(largest, v)
    return (largest / (1 - 0.99 ** len(g))).sqrt() + 1e-6


def rmsprop(g: Tensor) -> Tensor:
    v = torch.zeros_like(g[0])
    for row in g:
        v = 0.9 * v + 0.1 * row**2
    return v.sqrt() + 1e-6


def centred_rmsprop(g: Tensor) -> Tensor:
    v, mean = torch.zeros_like(g[0]), torch.zeros_like(g[0])
    for row in g:
        v, mean = 0.9 * v + 0.1 * row**2, 0.9 * mean + 0.1 * row
    return (v - mean**2).sqrt() + 1e-6


OPTIMISERS: dict[str, tuple[Any, Any]] = {
    "Adam": (partial(torch.optim.Adam, betas=(0.9, 0.99), eps=1e-6, lr=0.01), adam),
    "AdamW": (partial(torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-6, lr=0.01), adam),
    "amsgrad": (partial(torch.optim.Adam, betas=(0.9, 0.99), eps=1e-6, lr=0.01, amsgrad=True), amsgrad),
    "RMSprop": (partial(torch.optim.RMSprop, alpha=0.9, eps=1e-6, lr=0.01), rmsprop),
    "RMSprop, centred": (partial(torch.optim.RMSprop, alpha=0.9, eps=1e-6, lr=0.01, centered=True), centred_rmsprop),
    "Adagrad": (partial(torch.optim.Adagrad, eps=1e-6, lr=0.01), lambda g: (g**2).sum(0).sqrt() + 1e-6),
    "SGD": (partial(torch.optim.SGD, lr=0.01, momentum=0.9), lambda g: torch.ones_like(g[0])),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_curvature_in_the_metric_of_an_optimiser(name: str) -> None:
    make, denominator = OPTIMISERS[name]
    model = network()
    optimiser, gradients = make(model.parameters()), []
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        optimiser.step()
    H = ht.hessian_of(model, F.cross_entropy, (X, Y))
    scale = denominator(torch.stack(gradients)).rsqrt()
    expected = scale[:, None] * H.to_dense() * scale
    P = ht.preconditioned(H, optimiser)
    close(P.to_dense(), expected)
    top = float(max(torch.linalg.eigvalsh(expected), key=abs))
    assert float(ht.top_eigenpairs(P, k=1, rtol=1e-9).values[0]) == pytest.approx(top, rel=1e-8)
    close(ht.preconditioned(H, denominator(torch.stack(gradients))).to_dense(), expected)
    assert P.layout == H.layout
    assert ht.check_operator(P).ok


def test_an_optimiser_of_another_model_or_without_a_state_is_refused() -> None:
    H = ht.hessian_of(network(), F.cross_entropy, (X, Y))
    other = torch.optim.Adam(network().parameters())
    with pytest.raises(ValueError, match="does not hold the parameter '0.weight'"):
        ht.preconditioned(H, other)
    model = network()
    H = ht.hessian_of(model, F.cross_entropy, (X, Y))
    with pytest.raises(ValueError, match="take a step first"):
        ht.preconditioned(H, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="numbers above 0"):
        ht.preconditioned(H, torch.zeros(H.num_params))
