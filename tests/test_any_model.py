"""Whatever a model takes and returns: batches and outputs of any form, against dense Hessians by torch in float64."""

import warnings
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from contract import close
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import hessian_tools as ht
from hessian_tools import HiddenStateError, stream
from hessian_tools.compat.pyhessian import hessian as pyhessian


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "any model", name), dtype=torch.float64)


def integers(high: int, *shape: int, name: str = "ids") -> Tensor:
    return torch.randint(high, shape, generator=stream(0, "any model", name))


X, Y = randn(12, 4), torch.arange(12) % 3


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed=0).double()


def dense(model: nn.Module, loss_of: Callable[[dict[str, Tensor]], Tensor], where: Any = None) -> Tensor:
    """The Hessian by torch alone; loss_of: the loss at parameters by name."""
    theta, layout = ht.flatten(model, where)
    return torch.autograd.functional.hessian(lambda t: loss_of(layout.unflatten(t)), theta)


def dense_gauss_newton(model: nn.Module, outputs_of: Callable[[dict[str, Tensor]], Tensor], criterion: Any) -> Tensor:
    """J'BJ by torch alone, for one tensor of outputs."""
    theta, layout = ht.flatten(model)
    out = outputs_of(layout.unflatten(theta)).detach()
    J = torch.autograd.functional.jacobian(lambda t: outputs_of(layout.unflatten(t)), theta).reshape(-1, len(theta))
    B = torch.autograd.functional.hessian(criterion, out).reshape(out.numel(), out.numel())
    return J.T @ B @ J


@dataclass
class Output:
    """Of the form that Hugging Face's models return."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None


class MappingOutput(UserDict):
    """A mapping of another class than dict, as BatchEncoding is."""


class Language(nn.Module):
    """A language model in small: ids and a mask in; a loss over shifted labels, logits, a cache and a mask out."""

    def __init__(self, form: type = Output) -> None:
        super().__init__()
        self.form = form
        self.embedding, self.hidden, self.head = nn.Embedding(7, 3), nn.Linear(3, 4), nn.Linear(4, 7)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = True,
    ) -> Any:
        assert input_ids is not None
        hidden = torch.tanh(self.hidden(self.embedding(input_ids)).cumsum(1))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits, loss = self.head(hidden), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), ignore_index=-100)
        cache = SimpleNamespace(keys=hidden) if use_cache else None
        if self.form is Output:
            return Output(loss=loss, logits=logits, past_key_values=cache, hidden_states=(hidden,))
        if self.form is tuple:
            return (loss, logits) if loss is not None else (logits,)
        kept = {"logits": logits, "cache": None, "ids": input_ids, "mask": input_ids > 2}
        return self.form(kept | ({"loss": loss} if loss is not None else {}))


def language(form: type = Output) -> Language:
    return ht.seeded(lambda: Language(form), seed=0).double()


def sentences(padding: list[int], length: int = 6, name: str = "ids") -> dict[str, Tensor]:
    """A batch of sentences; padding: how many tokens at the end of each have no label."""
    ids = integers(7, len(padding), length, name=name)
    real = torch.arange(length) < length - torch.tensor(padding)[:, None]
    return {"input_ids": ids, "attention_mask": real.long(), "labels": torch.where(real, ids, -100)}


def next_token(outputs: Any, labels: Tensor) -> Tensor:
    logits = outputs["logits"] if hasattr(outputs, "keys") else outputs.logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


BATCH = sentences([0, 2])


@pytest.mark.parametrize("form", [Output, dict, MappingOutput, tuple])
def test_a_model_that_returns_its_loss(form: type) -> None:
    model = language(form)
    loss = ht.make_loss(model)
    theta = ht.flatten(model)[0]
    expected = dense(language(), lambda p: functional_call(language(), p, (), BATCH).loss)
    for batch in (BATCH, UserDict(BATCH), tuple(BATCH.values())):
        close(ht.hessian(loss, theta, batch).to_dense(), expected)
    G = ht.gauss_newton(loss, theta, BATCH)
    logits = lambda p: functional_call(language(), p, (), BATCH).logits  # noqa: E731
    close(
        G.to_dense(), dense_gauss_newton(language(), logits, lambda out: next_token({"logits": out}, BATCH["labels"]))
    )
    assert G.route == "kept"
    assert ht.check_operator(G).ok
    assert float(ht.trace(G, num_probes=4, method="probes").value) > 0
    close(ht.spectrum(G).values[:3], torch.linalg.eigvalsh(G.to_dense()).flip(0)[:3])
    with pytest.raises((RuntimeError, ValueError), match="route='kept'"):
        ht.gauss_newton(loss, theta, BATCH, route="direct").mv(theta)


@pytest.mark.parametrize("route", ["direct", "kept", "traced"])
@pytest.mark.parametrize("form", [Output, dict, MappingOutput])
def test_a_criterion_of_outputs_that_hold_more_than_tensors(form: type, route: Any) -> None:
    """None, integers, masks and caches among the outputs are constants."""
    model = language(form)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, next_token, layout)
    close(
        ht.hessian(loss, theta, BATCH, route=route).to_dense(),
        dense(language(), lambda p: next_token(functional_call(language(), p, (), BATCH), BATCH["labels"])),
    )
    close(
        ht.gauss_newton(loss, theta, BATCH, route=route).to_dense(),
        ht.gauss_newton(ht.make_loss(language()), theta, BATCH).to_dense(),
    )
    if route == "direct":
        G = ht.gauss_newton(loss, theta, BATCH)
        spectrum = ht.gauss_newton_spectrum(loss, theta, BATCH)
        close(spectrum.values[:4], torch.linalg.eigvalsh(G.to_dense()).flip(0)[:4])
        assert ht.check_operator(G).ok


def test_gauss_newton_at_many_points_with_constants_among_the_outputs() -> None:
    model = language(dict)
    theta, layout = ht.flatten(model)
    loss, thetas = ht.make_loss(model, next_token, layout), torch.stack([theta, 1.1 * theta])
    G = ht.gauss_newton(loss, thetas, BATCH, shared=True)
    for point in range(2):
        close(G.to_dense()[point], ht.gauss_newton(loss, thetas[point], BATCH, route="kept").to_dense())


def test_a_loss_without_labels_or_logits_is_refused_in_a_sentence() -> None:
    model = language()
    theta = ht.flatten(model)[0]
    with pytest.raises(ValueError, match=r"put the labels into the batch, or give a criterion"):
        ht.hessian_of(model, None, {"input_ids": BATCH["input_ids"]})

    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return {"a": self.a(x), "b": self.b(x), "loss": (self.a(x).sum() * self.b(x).sum()) ** 2}

    unnamed = Unnamed().double()
    with pytest.raises(ValueError, match="names no logits"):
        ht.gauss_newton(ht.make_loss(unnamed), ht.flatten(unnamed)[0], X)
    with pytest.raises(ValueError, match="needs the criterion"):
        ht.gauss_newton_spectrum(ht.make_loss(model), theta, BATCH)


def test_an_output_that_depends_on_another_counts_once() -> None:
    """The hidden states are outputs, and so are the logits made from them."""
    model = language()
    loss = ht.make_loss(model, next_token)
    theta = ht.flatten(model)[0]
    close(
        ht.gauss_newton(loss, theta, BATCH, route="kept").to_dense(),
        ht.gauss_newton(loss, theta, BATCH, route="direct").to_dense(),
    )


def test_a_model_that_returns_logits_and_loss_in_a_tuple() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
            logits = self.body(x)
            return logits, None if targets is None else F.cross_entropy(logits, targets)

    model = Small()
    close(
        ht.hessian_of(model, None, (X, Y)).to_dense(),
        dense(model, lambda p: F.cross_entropy(functional_call(model, p, (X,))[0], Y)),
    )


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.a(a) * torch.tanh(self.b(b))


class Optional(Two):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(a, a if b is None else b)


class Any_(Two):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(*inputs)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class OnePair(Two):
    """A network with one input, which is a pair."""

    def forward(self, pair: Any) -> Tensor:  # type: ignore[override]
        return super().forward(*(pair.values() if isinstance(pair, dict) else pair))


A, B, LABEL = randn(6, 3, name="a"), randn(6, 3, name="b"), torch.arange(6) % 4
TWO_INPUTS: dict[str, tuple[type[Two], Any]] = {
    "nested": (Two, ((A, B), LABEL)),
    "nested list": (Two, [[A, B], LABEL]),
    "three parts": (Two, (A, B, LABEL)),
    "three parts in a list": (Two, [A, B, LABEL]),
    "optional": (Optional, ((A, B), LABEL)),
    "starred": (Any_, ((A, B), LABEL)),
    "by name": (Two, {"a": A, "b": B, "labels": LABEL}),
    "by name, optional": (Optional, {"b": B, "a": A, "target": LABEL}),
    "names within a pair": (Two, ({"b": B, "a": A}, LABEL)),
    "one pair": (OnePair, ((A, B), LABEL)),
    "one named pair": (OnePair, (Pair(A, B), LABEL)),
    "one dict": (OnePair, ({"first": A, "second": B}, LABEL)),
    "one dict, flat": (OnePair, {"first": A, "second": B, "y": LABEL}),
    "arrays": (Two, ((A.numpy(), B.numpy()), LABEL.numpy())),
}


@pytest.mark.parametrize("name", TWO_INPUTS)
def test_a_network_with_two_inputs(name: str) -> None:
    kind, batch = TWO_INPUTS[name]
    model = ht.seeded(kind, seed=0).double()
    reference = ht.seeded(Two, seed=0).double()
    expected = dense(reference, lambda p: F.cross_entropy(functional_call(reference, p, (A, B)), LABEL))
    close(ht.hessian_of(model, F.cross_entropy, batch).to_dense(), expected)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    for route in ("direct", "kept"):
        G = ht.gauss_newton(loss, theta, batch, route=route).to_dense()
        close(
            G,
            dense_gauss_newton(
                reference, lambda p: functional_call(reference, p, (A, B)), lambda o: F.cross_entropy(o, LABEL)
            ),
        )


def test_batches_that_cannot_be_divided_are_refused_in_a_sentence() -> None:
    model = network()
    for batch, words in (
        ((X, Y, torch.arange(12)), "3 parts, but the network takes 1 input"),
        (X, r"the batch is of type Tensor; give a pair \(x, y\)"),
    ):
        with pytest.raises(ValueError, match=words):
            ht.hessian_of(model, F.cross_entropy, batch)
    with pytest.raises(ValueError, match="holds 'idx', which the network's forward pass does not take"):
        ht.hessian_of(ht.seeded(Two, seed=0).double(), F.cross_entropy, {"a": A, "b": B, "idx": LABEL, "labels": LABEL})


def test_a_data_loader_and_lists_of_its_batches_are_one_big_batch() -> None:
    model, data = network(), TensorDataset(X, Y)
    expected = ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense()
    loader = DataLoader(data, batch_size=5)
    for batches in (loader, list(loader), [tuple(batch) for batch in loader]):
        close(ht.hessian_of(model, F.cross_entropy, batches).to_dense(), expected)
        trajectory = ht.Recorder(model, F.cross_entropy, batches).trajectory()
        close(trajectory.support_loss[0], F.cross_entropy(model(X), Y).detach())
        close(trajectory.support_accuracy[0], (model(X).argmax(-1) == Y).double().mean())
    with pytest.raises(ValueError, match="the DataLoader draws"):
        ht.hessian_of(model, F.cross_entropy, DataLoader(data, batch_size=5, shuffle=True))


def test_only_trained_parameters_are_taken_by_default() -> None:
    model = network()
    model[0].requires_grad_(False)
    layout = ht.flatten(model)[1]
    assert layout.names == ("2.weight", "2.bias")
    expected = dense(model, lambda p: F.cross_entropy(functional_call(model, p, (X,)), Y))
    close(ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense(), expected)
    close(ht.hessian_of(model, F.cross_entropy, (X, Y), where=lambda name: True).block("2").to_dense(), expected)
    recorder = ht.Recorder(model, F.cross_entropy, (X, Y))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimiser.step()
        recorder.step()
    close(recorder.trajectory().step_cosine, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        ht.flatten(model.requires_grad_(False))
    assert ht.flatten(model, where=lambda name: True)[1].numel == sum(p.numel() for p in model.parameters())
    assert ht.flatten(model, where="0")[1].names == ("0.weight", "0.bias")


class Adapter(nn.Module):
    """A frozen weight of low precision with a trained correction of low rank beside it (LoRA)."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width, bias=False).to(dtype).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(1, width) / 2), nn.Parameter(torch.randn(width, 1) / 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.frozen.weight)
        return torch.tanh(self.frozen(x.to(self.frozen.weight.dtype)).to(x.dtype) + x @ self.a.T @ self.b.T)


def test_frozen_weights_of_low_precision_are_neither_copied_nor_recast() -> None:
    model = ht.seeded(lambda: Adapter(4, torch.bfloat16), seed=0)
    theta, layout = ht.flatten(model)
    assert theta.dtype == torch.float32 and layout.names == ("a", "b")
    loss, x = ht.make_loss(model, lambda out, y: ((out - y) ** 2).mean(), layout), torch.randn(5, 4)
    batch = x, torch.zeros(5, 4)
    H = ht.hessian(loss, theta, batch)
    H.mv(theta)
    address = model.frozen.weight.data_ptr()
    assert {weight.data_ptr() for weight in model.seen} == {address}
    expected = torch.autograd.functional.hessian(lambda t: loss(t, batch), theta)
    assert torch.allclose(H.to_dense(), expected, atol=1e-6)
    model.seen.clear()
    double = ht.hessian(loss, theta.double(), batch)  # cast once, because bfloat16 would hide float64
    double.mv(theta.double())
    assert {weight.dtype for weight in model.seen} == {torch.float64}
    assert len({weight.data_ptr() for weight in model.seen}) == 1
    with torch.no_grad():
        model.frozen.weight.mul_(2)  # a changed weight is seen
    again = ht.hessian(loss, theta.double(), batch).to_dense()
    assert not torch.allclose(again, double.to_dense())
    assert ht.check_operator(H).state.passed


def test_complex_parameters_are_refused_with_the_way_to_keep_them() -> None:
    class Spectral(nn.Module):
        def __init__(self, *, as_real: bool) -> None:
            super().__init__()
            weight = torch.complex(randn(3, name="re"), randn(3, name="im"))
            self.weight = nn.Parameter(torch.view_as_real(weight) if as_real else weight)
            self.linear = ht.seeded(lambda: nn.Linear(5, 5), seed=0).double()

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
            return torch.fft.irfft(torch.fft.rfft(torch.tanh(self.linear(x))) * weight, n=5)

    batch, squared = (randn(6, 5), randn(6, 5, name="y")), lambda out, y: ((out - y) ** 2).mean()
    with pytest.raises(ValueError, match=r"'weight' is complex .*view_as_real"):
        ht.flatten(Spectral(as_real=False))
    model = Spectral(as_real=True)
    H = ht.hessian_of(model, squared, batch)
    close(H.to_dense(), dense(model, lambda p: squared(functional_call(model, p, (batch[0],)), batch[1])))
    frozen = Spectral(as_real=False)  # a complex constant is no obstacle
    frozen.weight.requires_grad_(False)
    close(ht.hessian_of(frozen, squared, batch).to_dense(), H.block("linear").to_dense())


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrappers_are_taken_off(wrap: Any) -> None:
    model = network()
    wrapped = wrap(model)
    expected = ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense()
    H = ht.hessian_of(wrapped, F.cross_entropy, (X, Y))
    assert H.layout is not None and H.layout.names[0] == "0.weight"
    close(H.to_dense(), expected)
    assert ht.Recorder(wrapped, F.cross_entropy, (X, Y)).trajectory().support_loss.isfinite().all()
    own = pyhessian(wrapped, nn.CrossEntropyLoss(), data=(X, Y), cuda=False)
    assert own.eigenvalues()[0][0] == pytest.approx(float(torch.linalg.eigvalsh(expected).abs().max()), rel=1e-3)
    assert [p.shape for p in own.params] == [p.shape for p in model.parameters()]
    # The same within a network.
    first, second = nn.Linear(4, 4).double(), network()
    expected = ht.hessian_of(nn.Sequential(first, second), F.cross_entropy, (X, Y)).to_dense()
    close(ht.hessian_of(nn.Sequential(first, wrap(second)), F.cross_entropy, (X, Y)).to_dense(), expected)


# Losses that differentiate inside themselves, at theta and a batch of places or images.
FIELD = ht.seeded(lambda: nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), seed=0).double()
FIELD_LAYOUT = ht.flatten(FIELD)[1]
PLACES = torch.linspace(0, 1, 10, dtype=torch.float64)[:, None]


def field(theta: Tensor, x: Tensor) -> Tensor:
    return functional_call(FIELD, FIELD_LAYOUT.unflatten(theta), (x,))


def residual(theta: Tensor, x: Tensor) -> Tensor:
    """u' + sin x = 0."""
    x = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(field(theta, x).sum(), x, create_graph=True)
    return ((slope + torch.sin(x)) ** 2).mean()


def second_order(theta: Tensor, x: Tensor) -> Tensor:
    """u'' + u = 0."""
    x = x.detach().requires_grad_()
    u = field(theta, x)
    (slope,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
    (bend,) = torch.autograd.grad(slope, x, torch.ones_like(u), create_graph=True)
    return ((bend + u) ** 2).mean()


def gradient_penalty(theta: Tensor, x: Tensor) -> Tensor:
    value = (field(theta, x) ** 2).mean()
    (g,) = torch.autograd.grad(value, theta, create_graph=True)
    return value + (g**2).sum()


def adapted(theta: Tensor, x: Tensor) -> Tensor:
    """The loss after one inner step."""
    (g,) = torch.autograd.grad(((field(theta, x[::2]) - 1) ** 2).mean(), theta, create_graph=True)
    return ((field(theta - 0.1 * g, x[1::2]) - 1) ** 2).mean()


@pytest.mark.parametrize("loss", [residual, second_order, gradient_penalty, adapted])
def test_a_loss_that_differentiates_inside_itself(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    theta = ht.flatten(FIELD)[0]
    expected = torch.autograd.functional.hessian(lambda t: loss(t, PLACES), theta)
    for route in ("auto", "kept"):
        close(ht.hessian(loss, theta, PLACES, route=route).to_dense(), expected)
    H = ht.hessian(loss, torch.stack([theta, 1.2 * theta]), PLACES, shared=True)
    close(H.to_dense()[0], expected)
    assert float(ht.top_eigenpairs(H, k=1).values[0, 0]) == pytest.approx(
        float(max(torch.linalg.eigvalsh(expected), key=abs)), rel=1e-3
    )
    close(ht.gradient(loss, theta, PLACES), torch.autograd.functional.jacobian(lambda t: loss(t, PLACES), theta))
    assert ht.trajectory_from(loss, [theta, theta], PLACES).support_loss.shape == (2,)
    direct = ht.hessian(loss, theta, PLACES, route="direct")
    if loss in (gradient_penalty, adapted):  # torch.func can differentiate by theta inside
        close(direct.to_dense(), expected)
    else:
        with pytest.raises(RuntimeError, match="route='kept'"):
            direct.mv(theta)


class Forces(nn.Module):
    """A network whose output is the derivative of an energy, as in molecular dynamics."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = ht.seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), seed=0)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_a_network_that_differentiates_inside_itself() -> None:
    model, y = Forces().double(), randn(12, 4, name="forces")
    squared = lambda out, y: ((out - y) ** 2).mean()  # noqa: E731
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, squared, layout)
    expected = torch.autograd.functional.hessian(lambda t: loss(t, (X, y)), theta)
    close(ht.hessian(loss, theta, (X, y)).to_dense(), expected)
    J = torch.autograd.functional.jacobian(lambda t: loss.outputs(t, X).flatten(), theta)
    G = ht.gauss_newton(loss, theta, (X, y))
    close(G.to_dense(), 2 * J.T @ J / y.numel())
    assert ht.Recorder(model, squared, (X, y)).trajectory().support_loss.isfinite().all()
    batches = [(X[:5], y[:5]), (X[5:], y[5:])]
    close(ht.gauss_newton(loss, theta, batches).to_dense(), G.to_dense())


def test_a_module_with_a_full_backward_hook_is_recorded() -> None:
    model = network()
    handle = model[0].register_full_backward_hook(lambda module, before, after: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the hook fires
        with_hook = ht.Recorder(model, F.cross_entropy, (X, Y)).trajectory()
        theta, layout = ht.flatten(model)
        G = ht.gauss_newton(ht.make_loss(model, F.cross_entropy, layout), theta, (X, Y)).to_dense()
    handle.remove()
    close(with_hook.support_loss, ht.Recorder(model, F.cross_entropy, (X, Y)).trajectory().support_loss)
    close(G, ht.gauss_newton(ht.make_loss(model, F.cross_entropy, layout), theta, (X, Y)).to_dense())


# Criteria that hold tensors, in float32, under a theta in float64.
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])
HOLDING: dict[str, Any] = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "partial": partial(F.cross_entropy, weight=WEIGHTS),
    "closure": lambda out, y: F.cross_entropy(out, y, weight=WEIGHTS),
    "smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    "nll": lambda out, y: F.nll_loss(F.log_softmax(out, 1), y, WEIGHTS),
    "binary": lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 3).to(out), pos_weight=WEIGHTS),
    "probabilities": lambda out, y: F.binary_cross_entropy(out.sigmoid(), F.one_hot(y, 3).to(out), weight=WEIGHTS),
}


class Scaled(nn.Module):
    """A criterion with a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.diag(WEIGHTS))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out @ self.matrix, y)


HOLDING["module"] = Scaled()


@pytest.mark.parametrize("name", HOLDING)
def test_tensors_of_a_criterion_follow_theta(name: str) -> None:
    criterion, model = HOLDING[name], network().float()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    H = ht.hessian(loss, theta, (X.float(), Y))
    assert [finding.passed for finding in ht.check_operator(H).findings][:4] == [True] * 4
    double = ht.hessian(loss, theta.double(), (X.float(), Y)).to_dense()
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), H.to_dense(), atol=1e-5)
    assert torch.equal(WEIGHTS, torch.tensor([1.0, 2.0, 5.0]))
    own = getattr(criterion, "matrix", None)
    assert own is None or own.dtype == torch.float32


def test_dropout_in_a_model_that_returns_its_loss_is_refused() -> None:
    class Noisy(Language):
        def forward(self, **inputs: Any) -> Any:  # type: ignore[override]
            outputs = super().forward(**inputs)
            return Output(loss=outputs.loss * torch.rand(()), logits=outputs.logits)

    with pytest.raises(HiddenStateError, match="draws random numbers"):
        ht.hessian_of(ht.seeded(Noisy, seed=0).double(), None, BATCH)


@pytest.mark.parametrize("padding", [0, -7])
def test_the_padding_row_of_an_embedding_is_a_constant_in_every_mode(padding: int) -> None:
    """torch gives it the gradient 0 in reverse mode but moves it in forward mode: products were 14 % off in silence."""

    def made() -> nn.Module:
        return nn.Sequential(nn.Embedding(7, 3, padding_idx=padding), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))

    model, x, y = ht.seeded(made, seed=0).double(), integers(7, 6, 4, name="padded"), torch.arange(6) % 2
    assert (x == 0).any()
    model[0].weight.data[0] = 0.5  # torch begins with zeros
    theta, layout = ht.flatten(model)
    loss, thetas = ht.make_loss(model, F.cross_entropy, layout), torch.stack([theta, 1.1 * theta])
    expected = dense(model, lambda p: F.cross_entropy(functional_call(model, p, (x,)), y))
    for route in ("direct", "kept", "traced"):
        close(ht.hessian(loss, theta, (x, y), route=route).to_dense(), expected)
    close(ht.hessian(loss, thetas, (x, y), shared=True, route="direct").to_dense()[0], expected)
    G = dense_gauss_newton(model, lambda p: functional_call(model, p, (x,)), lambda out: F.cross_entropy(out, y))
    for route in ("direct", "kept", "traced"):
        close(ht.gauss_newton(loss, theta, (x, y), route=route).to_dense(), G)
    assert expected[:3].norm() == 0
    with pytest.raises(ValueError, match="scale_grad_by_freq=True has a gradient that is no derivative"):
        scaled = nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 2)).double()
        ht.hessian_of(scaled, F.cross_entropy, (x, y))


def test_several_mappings_are_the_loss_of_all_their_labels() -> None:
    first, second = BATCH, sentences([4, 1, 3], name="second")
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    for criterion in (None, next_token):
        model = language()
        expected = ht.hessian_of(model, criterion, both).to_dense()
        close(ht.hessian_of(model, criterion, [first, UserDict(second)]).to_dense(), expected)
    loss = ht.make_loss(language())
    theta = ht.flatten(language())[0]
    close(
        ht.gauss_newton(loss, theta, [first, second]).to_dense(),
        ht.gauss_newton(loss, theta, both).to_dense(),
    )


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=5, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shuffle": True}, "draws its examples at random"),
        ({"sampler": WeightedRandomSampler([1.0] * len(X), len(X))}, "draws its examples at random"),
        ({"sampler": SubsetRandomSampler(range(len(X)))}, "draws its examples at random"),
        ({"drop_last": True}, "leaves out .* examples"),
    ],
)
def test_a_loader_that_draws_or_leaves_out_examples_is_refused(options: dict[str, Any], words: str) -> None:
    model = nn.Linear(X.shape[1], 3).double()
    for door in (ht.hessian_of, ht.Recorder):
        with pytest.raises(ValueError, match=words):
            door(model, F.cross_entropy, loader(**options))
    state = torch.get_rng_state()
    H = ht.hessian_of(model, F.cross_entropy, loader())
    assert torch.equal(state, torch.get_rng_state())
    close(H.to_dense(), ht.hessian_of(model, F.cross_entropy, (X, Y)).to_dense())


def test_inputs_that_a_network_cannot_take_are_refused_in_a_sentence() -> None:
    model = nn.Linear(X.shape[1], 3).double()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    ht.hessian(loss, theta, (X, Y))  # looked at already
    for batch in (((X, Y), (X, Y)), {"x": X, "labels": Y}):
        with pytest.raises(ValueError, match="a batch is .* and several batches are a list"):
            ht.hessian(loss, theta, batch).mv(theta)


def test_tensors_of_another_dtype_and_complex_points_are_refused_with_the_remedy() -> None:
    model = nn.Linear(X.shape[1], 3).double()
    with pytest.raises(ValueError, match=r"cast it where it is used, as in w\.to"):
        ht.hessian_of(model, lambda out, y: ((out @ torch.eye(3)) ** 2).mean(), (X, Y))
    with pytest.raises(ValueError, match="view_as_real"):
        ht.hessian(lambda theta, _: (theta.abs() ** 2).sum(), torch.ones(2, dtype=torch.complex128), None)


def test_a_frozen_weight_of_low_precision_that_was_changed_is_seen() -> None:
    """Merged adapters are written into ``weight.data``, of which torch keeps no record."""
    model = nn.Sequential(nn.Linear(X.shape[1], 4), nn.Tanh(), nn.Linear(4, 3)).bfloat16()
    model[0].requires_grad_(False)
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, F.cross_entropy, layout)
    ht.hessian(loss, theta.double(), (X, Y)).to_dense()
    model[0].weight.data += 1
    expected = ht.hessian(loss.fresh(), theta.double(), (X, Y)).to_dense()
    close(ht.hessian(loss, theta.double(), (X, Y)).to_dense(), expected)


def test_a_mapping_reaches_a_network_whose_only_argument_has_a_default() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, input_ids: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.layer(input_ids)}

    model = ht.seeded(Named, seed=0).double()
    x, y = torch.ones(5, 4, dtype=torch.float64), torch.arange(5) % 3
    H = ht.hessian_of(model, lambda out, y: F.cross_entropy(out["logits"], y), {"input_ids": x, "labels": y})
    plain = ht.hessian_of(model.layer, F.cross_entropy, (x, y))
    v = torch.ones(H.num_params, dtype=H.dtype)
    assert torch.equal(H.mv(v), plain.mv(v))
