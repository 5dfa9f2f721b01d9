"""Cross-entropy by chunks of tokens: its values and derivatives are those of torch, its memory that of a chunk."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import stream
from hessian_tools.curvature.estimates.plan import PeakBytes
from hessian_tools.nets import linear_cross_entropy


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "vocabulary", name), dtype=torch.float64)


TARGETS = torch.tensor([[0, 3, -100, 4], [2, -100, 1, 1]])


def pieces(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias from one vector."""
    h, W, b = theta.split((8 * 3, 5 * 3, 5))
    return h.view(2, 4, 3), W.view(5, 3), b


def chunked(theta: Tensor, targets: Tensor = TARGETS, **options: Any) -> Tensor:
    h, W, b = pieces(theta)
    return linear_cross_entropy(h.tanh(), W, targets, b, chunk=3, **options)


def reference(theta: Tensor, targets: Tensor = TARGETS, **options: Any) -> Tensor:
    h, W, b = pieces(theta)
    return F.cross_entropy((h.tanh() @ W.mT + b).flatten(0, 1), targets.flatten(), **options)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"ignore_index": 1}])
def test_value_gradient_and_hessian_are_those_of_torch(options: dict[str, Any]) -> None:
    theta, targets = randn(44), torch.where(TARGETS < 0, 1, TARGETS) if "ignore_index" in options else TARGETS
    for derivative in (lambda f: f, grad, hessian):
        found, expected = (derivative(lambda t, f=f: f(t, targets, **options))(theta) for f in (chunked, reference))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    leaf = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(chunked(leaf, targets, **options), leaf, create_graph=True)
    (product,) = torch.autograd.grad(slope, leaf, theta)
    torch.testing.assert_close(product, hessian(lambda t: reference(t, targets, **options))(theta) @ theta)


def test_transforms_go_through_it() -> None:
    thetas = randn(3, 44)
    product = vmap(lambda t: jvp(grad(chunked), (t,), (t,))[1])(thetas)
    expected = torch.stack([hessian(reference)(t) @ t for t in thetas])
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-13)


class Model(nn.Module):
    """A language model that returns its loss. The embedding is its output layer, too."""

    def __init__(self, vocabulary: int = 7, width: int = 3, *, chunk: int | None) -> None:
        super().__init__()
        self.embedding, self.inner, self.chunk = nn.Embedding(vocabulary, width), nn.Linear(width, width), chunk

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.inner(self.embedding(ids[:, :-1])).tanh()
        if self.chunk is None:
            return F.cross_entropy((hidden @ self.embedding.weight.mT).flatten(0, 1), ids[:, 1:].flatten())
        return linear_cross_entropy(hidden, self.embedding.weight, ids[:, 1:], chunk=self.chunk)


@pytest.mark.parametrize("route", ["kept", "direct", "traced"])
def test_a_language_models_hessian_is_the_same_by_every_route(route: Any) -> None:
    ids = torch.randint(7, (2, 6), generator=stream(0, "ids"))
    found, expected = (
        ht.hessian_of(ht.seeded(lambda c=c: Model(chunk=c), seed=0).double(), None, ids, route=r).to_dense()
        for c, r in ((4, route), (None, "kept"))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_nothing_of_the_logits_size_is_made() -> None:
    """2000 tokens of 4000 words have 32 MB of logits in float32, a chunk of 100 has 1.6 MB."""
    ids = torch.randint(4000, (4, 501), generator=stream(0, "ids"))
    peaks = {}
    for chunk in (None, 100):
        model = ht.seeded(lambda chunk=chunk: Model(4000, 8, chunk=chunk), seed=0)
        theta, layout = ht.flatten(model)
        with PeakBytes() as count:
            ht.hessian(ht.make_loss(model, None, layout), theta, ids, route="kept").mv(theta)
        peaks[chunk] = count.peak
    assert peaks[100] < 16e6 < 96e6 < peaks[None]


def test_sizes_that_do_not_fit_are_refused() -> None:
    h, W, _ = pieces(randn(44))
    with pytest.raises(ValueError, match=r"targets has shape \(4,\)"):
        linear_cross_entropy(h, W, TARGETS[0])
    with pytest.raises(ValueError, match="chunk=0"):
        linear_cross_entropy(h, W, TARGETS, chunk=0)
    with pytest.raises(ValueError, match="reduction='none'"):
        linear_cross_entropy(h, W, TARGETS, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets holds a number that is not in 0 to 4, nor -100"):
        linear_cross_entropy(h, W, TARGETS + 5)
