"""Blocks whose activations are computed again: the same numbers, less memory, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import HiddenStateError, first_look, stream
from hessian_tools.curvature.estimates.plan import PeakBytes


class Block(nn.Module):
    """A residual block with normalisation, which takes several tensors, and returns a tensor beside other values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(3 * width, width),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> tuple[Tensor, None, int]:
        step = self.second(F.gelu(self.first(self.norm(x)))) * scale
        return x + (step if mask is None else step * mask), None, 3


class Stack(nn.Module):
    """Blocks under names like those of language models."""

    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[-1], dtype=torch.bool)
        for layer in self.layers:
            x, nothing, three = layer(x, mask, scale=0.5)
            assert nothing is None and three == 3
        return self.head(x)


def case(recompute: Any = ("layers.*",), model: nn.Module | None = None) -> tuple[ht.Loss, Tensor, Any]:
    model = model or ht.seeded(Stack, seed=0).double()
    theta, layout = ht.flatten(model)
    x = torch.randn(6, 4, generator=stream(0, "recompute"), dtype=torch.float64)
    return ht.make_loss(model, F.cross_entropy, layout, recompute=recompute), theta + 0.1, (x, torch.arange(6) % 3)


@pytest.mark.parametrize("make", [ht.hessian, ht.gauss_newton])
@pytest.mark.parametrize("recompute", [("layers.*",), ["layers.1"], ("layers.0.second", "layers.1")])
def test_products_and_gradients_are_those_of_kept_activations(make: Any, recompute: Any) -> None:
    """theta is not the point that the model stores, so that a block run at its own parameters would be seen."""
    loss, theta, batch = case(recompute)
    plain, *_ = case(())
    H, expected = make(loss, theta, batch), make(plain, theta, batch, route="kept")
    V = torch.randn(len(theta), 6, generator=stream(0, "columns"), dtype=torch.float64)
    torch.testing.assert_close(H @ V, expected @ V, rtol=0, atol=1e-13)
    assert H.route == "kept"
    torch.testing.assert_close(ht.gradient(loss, theta, batch), ht.gradient(plain, theta, batch), rtol=0, atol=1e-14)


def test_the_model_is_left_as_it_was() -> None:
    loss, theta, batch = case()
    ht.hessian(loss, theta, batch).mv(theta)
    assert not any("forward" in module.__dict__ for module in loss.model.modules())


def test_blocks_run_under_the_operations_that_replace_torchs_own() -> None:
    """Weight normalisation is one of these; torch's own second derivative of it is far off."""
    model = ht.seeded(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)),
        seed=0,
    )
    (loss, theta, batch), (plain, *_) = (case(names, model.double()) for names in (("0",), ()))
    torch.testing.assert_close(ht.hessian(loss, theta, batch).to_dense(), ht.hessian(plain, theta, batch).to_dense())


def test_a_graph_holds_less() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block(32) for _ in range(10))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)[0]
            return x[:, :3]

    peaks = {}
    for name, recompute in (("kept", ()), ("recomputed", ("layers.*",))):
        loss, theta, _ = case(recompute, ht.seeded(Wide, seed=0).double())
        batch = torch.ones(1000, 32, dtype=torch.float64), torch.arange(1000) % 3
        with PeakBytes() as count:
            H = ht.hessian(loss, theta, batch, route="kept")
            H.mv(theta)
        peaks[name] = count.peak
        planned = ht.plan(H, "product")
        assert planned.counted  # and not only estimated
        assert planned.bytes_added <= 1.2 * count.peak
    assert peaks["recomputed"] < peaks["kept"] / 3


class Remembering(nn.Module):
    """A block that keeps something of each call in one of three places."""

    def __init__(self, kept_in: str) -> None:
        super().__init__()
        self.inner, self.kept_in, self.calls = nn.Linear(4, 4), kept_in, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, cache: Any) -> Tensor:
        self.calls += self.kept_in == "itself"
        if self.kept_in == "a buffer":
            self.count += 1
        if self.kept_in == "a cache":
            cache.values.append(self.inner(x))
            # As in attention, an entry that recomputing appends a second time leaves this mean as it was, but not its
            # derivative.
            return torch.stack(cache.values).mean(0)
        return self.inner(x) * (1 + self.calls)


class Cache:
    """What language models pass from block to block."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []


class WithCache(nn.Module):
    def __init__(self, kept_in: str) -> None:
        super().__init__()
        self.block, self.head = Remembering(kept_in), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.block.calls = 0  # whole passes agree, and only a repetition within a pass differs
        return self.head(self.block(x, Cache() if self.block.kept_in == "a cache" else None))


@pytest.mark.parametrize(
    ("kept_in", "words"),
    [
        ("a cache", "module 'block' receives a Cache, which it might change .*use_cache=False"),
        ("a buffer", "module 'block' changes its inputs or its buffers in place"),
        ("itself", "module 'block' gives another output when it is computed again"),
    ],
)
def test_a_block_that_remembers_is_refused(kept_in: str, words: str) -> None:
    loss, theta, batch = case(("block",), ht.seeded(lambda: WithCache(kept_in), seed=0).double())
    with pytest.raises(HiddenStateError, match=words):
        ht.hessian(loss, theta, batch).mv(theta)


def test_wrong_names_and_routes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recompute='blocks\.\*' matches no module .* layers, head"):
        case(("blocks.*",))
    loss, theta, batch = case()
    for route in ("direct", "traced"):
        with pytest.raises(ValueError, match=f"route='{route}' keeps the activations"):
            ht.hessian(loss, theta, batch, route=route).mv(theta)


def test_a_recomputed_block_is_not_taken_for_a_part_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivatives of such a part are compared with differences, which takes the memory that is saved here."""
    monkeypatch.setattr(first_look, "wrong_derivative", lambda *_: pytest.fail("compared with differences"))
    network = ht.seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), seed=0)
    theta, layout = ht.flatten(network)
    loss = ht.make_loss(network, nn.functional.cross_entropy, layout, recompute=["0"])
    assert ht.hessian(loss, theta, (torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))).mv(theta).isfinite().all()
