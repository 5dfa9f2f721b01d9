"""The audit of somebody else's product: right ones pass in both precisions, and wrong ones fail for their mistake."""

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from cases import randn, squared_error
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy

import hessian_tools as ht
from benchmarks.references import tools

Product = Callable[[Tensor], Tensor]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def by_torch(model: nn.Module, batch: Any, criterion: Any = cross_entropy, factor: float = 1.0) -> Product:
    """Reverse over reverse of plain torch, at the weights and on the mode that the model has at each product."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def matvec(v: Tensor) -> Tensor:
        gradients = torch.autograd.grad(criterion(model(batch[0]), batch[1]), parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        parts = torch.autograd.grad(flat, parameters, factor * v)
        return torch.cat([part.reshape(-1) for part in parts])

    return matvec


def network(dtype: torch.dtype = torch.float32, *between: nn.Module) -> nn.Module:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), *between, nn.Linear(8, 3))

    return ht.seeded(layers, seed=4).to(dtype)


def data(dtype: torch.dtype = torch.float32, rows: int = 10) -> tuple[Tensor, Tensor]:
    return randn(rows, 4, stream_name="audited").to(dtype), torch.arange(rows) % 3


@DTYPES
@pytest.mark.parametrize("criterion", [cross_entropy, lambda out, y: squared_error(out, y[:, None])], ids=["ce", "mse"])
def test_a_right_product_passes_every_check(dtype: torch.dtype, criterion: Any) -> None:
    model, batch = network(dtype), data(dtype)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    found = ht.audit(by_torch(model, batch, criterion), model, criterion, batch, lambda m, b: by_torch(m, b, criterion))
    assert found.passed, str(found)
    assert all(finding.passed for finding in found.findings)
    assert "made before the move follows the parameters" in found.weights.sentence
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def without_last_layer(model: nn.Module, batch: Any) -> Product:
    """The part of the last layer's biases is left out."""
    right = by_torch(model, batch)
    return lambda v: torch.cat([right(v)[:-3], v.new_zeros(3)])


def of_gauss_newton(model: nn.Module, batch: Any) -> Product:
    theta, layout = ht.flatten(model)
    return ht.gauss_newton(ht.make_loss(model, cross_entropy, layout), theta, batch).mv


def of_other_weights(model: nn.Module, batch: Any) -> Product:
    other = deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(1.01)
    return by_torch(other, batch)


def asymmetric(model: nn.Module, batch: Any) -> Product:
    right = by_torch(model, batch)
    return lambda v: right(v) + 1e-2 * v.roll(1)


def with_dropout(model: nn.Module, batch: Any) -> Product:
    noisy = deepcopy(model)
    noisy.insert(2, nn.Dropout(0.1))
    return by_torch(noisy.train(), batch)


def moves_the_weights(model: nn.Module, batch: Any) -> Product:
    def matvec(v: Tensor) -> Tensor:
        with torch.no_grad():
            model[0].bias.add_(1e-3)
        return by_torch(model, batch)(v)

    return matvec


WRONG: dict[str, tuple[Callable[[nn.Module, Any], Product], str, str]] = {
    "sum": (lambda m, b: by_torch(m, b, factor=10.0), "hessian differences", "10 times ours (a sum over 10 examples"),
    "factor": (lambda m, b: by_torch(m, b, factor=1.001), "hessian differences", "1.001 times ours"),
    "half": (lambda m, b: by_torch(m, (b[0][:5], b[1][:5])), "hessian differences", "on this batch"),
    "stale": (of_other_weights, "hessian differences", "at these parameters"),
    "gauss-newton": (of_gauss_newton, "hessian differences", "those of the Gauss-Newton matrix"),
    "last biases": (without_last_layer, "hessian differences", ""),
    "asymmetric": (asymmetric, "symmetry hessian differences", ""),
    "nonlinear": (lambda m, b: lambda v: v.norm() * by_torch(m, b)(v) / 2, "linearity hessian differences", ""),
    "zero": (lambda m, b: torch.zeros_like, "hessian differences", "they are zero"),
    "not finite": (lambda m, b: lambda v: v / 0, "state", "products are not finite"),
    "dropout": (with_dropout, "state", "draws random numbers"),
    "moves": (moves_the_weights, "state", "the product changes the model: 0.bias"),
    "shape": (
        lambda m, b: lambda v: v[:-1],
        "state",
        "it returns a tensor [82] of float32; a product is a",
    ),
    "error": (lambda m, b: lambda v: v @ torch.ones(2), "state", "the product fails: RuntimeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_product_fails_for_its_mistake(name: str) -> None:
    wrong, failed, sentence = WRONG[name]
    model, batch = network(), data()
    found = ht.audit(wrong(model, batch), model, cross_entropy, batch)
    assert not found.passed
    names = {finding.name for finding in found.findings if finding.passed is False}
    assert names >= set(failed.split()), str(found)
    assert names - set(failed.split()) <= {"symmetry"}, str(found)
    assert sentence in found.state.sentence + found.hessian.sentence, str(found)
    assert {"weights", "data"} <= set(found.not_tested)


def test_a_mistake_in_one_small_parameter_is_found_where_it_is() -> None:
    model, (x, _) = network(), data()
    batch = (x, torch.zeros(10, 3))
    with torch.no_grad():
        model[3].weight.mul_(300)  # so that the last biases have a small part of every product
    right, n = by_torch(model, batch, squared_error), sum(p.numel() for p in model.parameters())
    factors = torch.where(torch.arange(n) < n - 3, 1.0, 1.01)
    found = ht.audit(lambda v: factors * right(v), model, squared_error, batch)
    assert found.hessian.passed is False
    assert "of the part of '3.bias'" in found.hessian.sentence
    assert 9e-3 < found.hessian.value < 1.1e-2


def test_a_loss_that_is_no_function_of_the_weights_fails_in_words() -> None:
    model = network(torch.float32, nn.Dropout(0.5)).train()
    found = ht.audit(by_torch(model, data()), model, cross_entropy, data())
    assert not found.passed
    assert "'3' (Dropout)" in found.state.sentence
    assert found.not_tested == ("symmetry", "linearity", "hessian", "differences", "weights", "data")


def test_a_saturated_float32_product_does_not_fail_for_its_rounding_and_says_what_it_resolves() -> None:
    model, batch = network(), data()
    with torch.no_grad():
        model[3].weight.copy_(torch.eye(3, 8) * 9)
    batch = (batch[0], model(batch[0]).argmax(-1))
    found = ht.audit(by_torch(model, batch), model, cross_entropy, batch)
    assert found.passed, str(found)
    assert found.hessian.value < found.hessian.allowed
    both = model.double(), (batch[0].double(), batch[1])
    assert ht.audit(by_torch(*both), both[0], cross_entropy, both[1]).hessian.allowed < 1e-9


def kept_for_a_model(model: nn.Module, batch: Any, kept: dict[int, Any]) -> Product:
    """A tool that computes something once for each model, and never again: the Hessian itself."""
    if id(model) not in kept:
        kept[id(model)] = ht.hessian_of(model, cross_entropy, batch).to_dense()
    return kept[id(model)].mv


def test_a_factory_shows_dependence_on_weights_and_data() -> None:
    model, batch = network(), data()
    kept: dict[int, Any] = {}
    right = by_torch(model, batch)
    stale = ht.audit(right, model, cross_entropy, batch, lambda m, b: kept_for_a_model(m, b, kept))
    assert {f.name for f in stale.findings if f.passed is False} == {"weights", "data"}
    other_data = ht.audit(right, model, cross_entropy, batch, lambda m, _: by_torch(m, batch))
    assert {f.name for f in other_data.findings if f.passed is False} == {"data"}
    of_old = ht.audit(right, model, cross_entropy, batch, lambda m, b: ht.hessian_of(m, cross_entropy, b).mv)
    assert of_old.passed
    assert "keeps the old parameters" in of_old.weights.sentence
    fails = ht.audit(right, model, cross_entropy, batch, lambda m, b: None)
    assert fails.weights.passed is False
    assert "a product of the factory fails" in fails.weights.sentence
    one = data(rows=1)
    assert ht.audit(by_torch(model, one), model, cross_entropy, one, by_torch).data.passed is None


@DTYPES
def test_finite_differences_pass_on_a_smooth_network_within_a_tolerance_of_their_own(dtype: torch.dtype) -> None:
    model, batch = network(dtype), data(dtype)
    product = tools.differences(model, nn.CrossEntropyLoss(), batch)["matvec"]
    coarse = ht.audit(product, model, nn.CrossEntropyLoss(), batch, rtol=1e-2)
    assert coarse.passed, str(coarse)
    if dtype == torch.float64:
        assert not ht.audit(product, model, nn.CrossEntropyLoss(), batch).passed


def test_several_batches_and_a_loader_are_the_loss_of_all_data() -> None:
    model, (x, y) = network(), data()
    whole = by_torch(model, (x, y))

    def of_all(m: nn.Module, batches: Any) -> Product:
        return by_torch(m, (torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])))

    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6)
    for each in (batches, loader):
        assert ht.audit(whole, model, cross_entropy, each, of_all).passed

    def mean_of_means(v: Tensor) -> Tensor:
        return sum(by_torch(model, b)(v) for b in batches) / 2

    assert not ht.audit(mean_of_means, model, cross_entropy, batches).passed


def test_the_certificate_is_one_page_and_the_result_is_saved_and_read(tmp_path: Path) -> None:
    model, batch = network(), data()
    found = ht.audit(by_torch(model, batch, factor=2.0), model, cross_entropy, batch)
    assert repr(found) == "Audit(passed=False, failed=('hessian', 'differences'), not_tested=('weights', 'data'))"
    text = found.save(tmp_path / "audit.txt").read_text()
    assert text == found.text()
    assert text.startswith("Audit of a Hessian-vector product: FAILED")
    assert len(text.splitlines()) < 50
    assert max(map(len, text.splitlines())) <= 120
    assert all(f"{finding.name}:" in text for finding in found.findings)
    page = found.save(tmp_path / "audit.html").read_text()
    ElementTree.fromstring(f"<div>{found._repr_html_()}</div>")
    assert "FAILED" in page
    assert "http" not in page
    again = ht.load(found.save(tmp_path / "audit.safetensors"))
    assert str(again) == str(found)
    assert again.setting == found.setting


def test_wrong_arguments_are_refused() -> None:
    model, batch = network(), data()
    with pytest.raises(ValueError, match="matvec"):
        ht.audit(torch.eye(67), model, cross_entropy, batch)
    with pytest.raises(ValueError, match="num_probes"):
        ht.audit(by_torch(model, batch), model, cross_entropy, batch, num_probes=0)
    with pytest.raises(ValueError, match=r"bfloat16; audit it as model.float\(\)"):
        ht.audit(by_torch(model, batch), network(torch.bfloat16), cross_entropy, batch)


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_product_through_batch_statistics_in_a_wrong_order_of_derivatives_fails() -> None:
    """Forward over reverse of functional_call, as some tools do it, is silently wrong through F.batch_norm."""
    model, batch = ht.seeded(WithBatchNorm, seed=2), data()
    theta, layout = ht.flatten(model)

    def reverse_over_forward(v: Tensor) -> Tensor:
        def loss(t: Tensor) -> Tensor:
            return cross_entropy(functional_call(model, layout.unflatten(t), batch[0]), batch[1])

        return torch.func.grad(lambda t: jvp(loss, (t,), (v,))[1])(theta)

    found = ht.audit(reverse_over_forward, model, cross_entropy, batch)
    assert {"hessian", "differences"} <= {f.name for f in found.findings if f.passed is False}
    assert found.hessian.value > 1e-2
    assert ht.audit(by_torch(model, batch), model, cross_entropy, batch).passed


PEERS = {
    "pyhessian": tools.pyhessian,
    "hessian_eigenthings": tools.eigenthings,
    "curvlinops": tools.curvlinops,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", PEERS)
def test_the_products_of_peers_are_judged(module: str) -> None:
    pytest.importorskip(module, reason=f"{module} is a peer that is not installed here; see docs/audit.md")
    criterion, tool = nn.CrossEntropyLoss(), PEERS[module]
    smooth = ht.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), seed=4).eval()
    through_statistics = ht.seeded(WithBatchNorm, seed=2).eval()
    for model, right in ((smooth, True), (through_statistics, module != "curvlinops")):
        product = tool(model, criterion, data())["matvec"]
        found = ht.audit(product, model, criterion, data(), lambda m, b: tool(m, criterion, b)["matvec"])
        assert found.passed is right, str(found)
        if not right:
            assert found.hessian.passed is False


@pytest.mark.filterwarnings("ignore")
def test_a_second_object_of_pyhessian_adds_the_first() -> None:
    """It accumulates into ``.grad``, so a factory that does not clear it fails on the second product."""
    hessian = pytest.importorskip("pyhessian", reason="PyHessian is not installed here").hessian
    utils = sys.modules["pyhessian.utils"]
    model, batch = network().eval(), data()

    def factory(m: nn.Module, b: Any) -> Product:
        H = hessian(m, cross_entropy, data=b, cuda=False)

        def matvec(v: Tensor) -> Tensor:
            parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in H.params]), H.params, strict=True)]
            return torch.cat([t.reshape(-1) for t in utils.hessian_vector_product(H.gradsH, H.params, parts)])

        return matvec

    first = factory(model, batch)
    found = ht.audit(first, model, cross_entropy, batch, factory)
    assert found.hessian.passed
    assert found.weights.passed is False
