"""Models of the kinds that people bring: eigenvalues, trace and Gauss-Newton against dense float64 matrices by torch.

The language and vision models of Hugging Face and the adapters of peft are skipped where these packages are missing;
``test_any_model.py`` holds stand-ins of the same form. Nothing is downloaded.
"""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessian_tools as ht
from hessian_tools import stream

pytestmark = pytest.mark.heavy


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "real models"), dtype=torch.float64)


def ids(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=stream(0, "real ids"))


class UNet(nn.Module):
    """Two scales, with a skip connection and group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.SiLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.SiLU())
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.middle(skip))], 1))


class Tagger(nn.Module):
    """An LSTM that labels each word of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(7, 2), nn.LSTM(2, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(words))[0])


class GraphNetwork(nn.Module):
    """Two rounds of messages along the edges of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            messages = layer(nodes)
            nodes = torch.tanh(messages + torch.zeros_like(messages).index_add(0, edges[1], messages[edges[0]]))
        return nodes


class Physics(nn.Module):
    """A field u(x) whose output is the residual u' + sin x, by a derivative inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.field(x).sum(), x, create_graph=True)
        return slope + torch.sin(x)


def per_token(out: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(out.mT if isinstance(out, Tensor) else out.logits.mT, y)


def next_token(out: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def classes(out: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(out.logits, y)


def squares(out: Tensor, y: Tensor) -> Tensor:
    return ((out - y) ** 2).mean()


def from_transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()

    return make


SMALL_GPT = {"vocab_size": 11, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2}
SMALL_GPT |= {"bos_token_id": 0, "eos_token_id": 0}
SMALL: dict[str, Any] = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
SENTENCES = {"input_ids": ids(11, 3, 6), "labels": torch.where(ids(4, 3, 6) > 0, ids(11, 3, 6), -100)}


def adapted() -> nn.Module:
    """GPT-2 with trained adapters of rank 1 (LoRA) beside its frozen weights."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = from_transformers("GPT2LMHeadModel", "GPT2Config", **SMALL_GPT)()
    model = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=["c_attn", "c_fc"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=stream(0, "lora"))
    return model.eval()


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
MODELS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "U-Net": (UNet, F.cross_entropy, (randn(2, 1, 4, 4), ids(2, 2, 4, 4))),
    "LSTM tagger": (Tagger, per_token, (ids(7, 3, 5), torch.where(ids(4, 3, 5) > 0, ids(3, 3, 5), -100))),
    "graph network": (GraphNetwork, F.cross_entropy, ((randn(5, 3), EDGES), ids(3, 5))),
    "PINN": (Physics, squares, (torch.linspace(0, 1, 10, dtype=torch.float64)[:, None], torch.zeros(10, 1))),
    "GPT-2": (from_transformers("GPT2LMHeadModel", "GPT2Config", **SMALL_GPT), next_token, SENTENCES),
    "GPT-2, LoRA": (adapted, next_token, SENTENCES),
    "Llama": (
        from_transformers(
            "LlamaForCausalLM",
            "LlamaConfig",
            vocab_size=11,
            num_key_value_heads=1,
            bos_token_id=0,
            eos_token_id=0,
            **SMALL,
        ),
        next_token,
        SENTENCES,
    ),
    "BERT": (
        from_transformers(
            "BertForTokenClassification", "BertConfig", vocab_size=11, max_position_embeddings=8, **SMALL
        ),
        per_token,
        SENTENCES | {"labels": ids(2, 3, 6)},
    ),
    "ViT": (
        from_transformers("ViTForImageClassification", "ViTConfig", image_size=8, patch_size=4, num_labels=3, **SMALL),
        classes,
        {"pixel_values": randn(2, 3, 8, 8), "labels": torch.tensor([0, 2])},
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # those of the other packages
def test_a_model_against_dense_matrices(name: str) -> None:
    make, criterion, batch = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ht.seeded(make, seed=0).double()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    x, y = loss.split(batch)

    def outputs(t: Tensor) -> Any:
        positional, by_name = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, layout.unflatten(t), positional, by_name)

    # The Hessian by torch alone, row by row.
    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(outputs(leaf), y), leaf, create_graph=True)
    dense = torch.stack([torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient])
    H = ht.hessian(loss, theta, batch)
    # Llama computes its norms in float32, whatever the dtype of its weights, so that its products round in float32.
    single = name == "Llama"
    tolerance = 1e-4 if single else 1e-9
    assert (H.to_dense() - dense).norm() < tolerance * dense.norm()
    values = torch.linalg.eigvalsh(dense)
    top = values[values.abs().argsort(descending=True)][:5]
    pairs = ht.top_eigenpairs(H, k=5, rtol=1e-3 if single else 1e-8)
    assert (pairs.values - top).abs().max() < (1e-2 if single else 1e-7) * top.abs().max()
    assert float(ht.trace(H, method="exact").value) == pytest.approx(float(dense.trace()), rel=tolerance)

    def logits(t: Tensor) -> Tensor:
        out = outputs(t)
        return out if isinstance(out, Tensor) else out.logits

    wrapped = lambda out: criterion(out if name in PLAIN else SimpleNamespace(logits=out), y)  # noqa: E731
    out = logits(theta).detach()
    leaf = theta.clone().requires_grad_()
    J = torch.stack([torch.autograd.grad(o, leaf, retain_graph=True)[0] for o in logits(leaf).flatten()])
    B = torch.autograd.functional.hessian(wrapped, out).reshape(out.numel(), out.numel())
    G = ht.gauss_newton(loss, theta, batch).to_dense()
    assert (G - J.T @ B @ J).norm() < tolerance * (J.T @ B @ J).norm()
    if name not in PLAIN:  # the model's own loss is the same, except that it rounds its logits to float32
        own = ht.make_loss(model)
        labelled = {**x, "labels": y}
        assert (ht.hessian(own, theta, labelled).to_dense() - dense).norm() < 1e-4 * dense.norm()
        assert (ht.gauss_newton(own, theta, labelled).to_dense() - G).norm() < 1e-4 * G.norm()


PLAIN = ("U-Net", "LSTM tagger", "graph network", "PINN")


@pytest.mark.parametrize(("name", "blocks"), [("GPT-2", "transformer.h.*"), ("Llama", "model.layers.*")])
@pytest.mark.filterwarnings("ignore")
def test_blocks_of_a_language_model_are_computed_again(name: str, blocks: str) -> None:
    make, criterion, batch = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ht.seeded(make, seed=0).double()
    theta, layout = ht.flatten(model)
    recomputed = ht.make_loss(model, criterion, layout, recompute=[blocks])
    with pytest.raises(ht.HiddenStateError, match="receives a DynamicCache.*use_cache=False"):
        ht.hessian(recomputed, theta + 0.1, batch).mv(theta)
    without_cache = batch | {"use_cache": False}
    found, expected = (
        ht.hessian(loss, theta + 0.1, without_cache, route="kept").to_dense()
        for loss in (recomputed, ht.make_loss(model, criterion, layout))
    )
    assert (found - expected).norm() < (1e-6 if name == "Llama" else 1e-12) * expected.norm()
