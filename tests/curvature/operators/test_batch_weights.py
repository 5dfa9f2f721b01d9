"""Several batches give exactly the Hessian of the criterion applied to all their data at once."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from contract import close
from torch import Tensor, nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import stream
from hessian_tools.curvature.objective import batch_weights as batch_weights_module


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=stream(0, "batch weights", name), dtype=torch.float64)


X = randn(10, 4)
LABELS = torch.tensor([0, 1, 2, -100, -100, -100, 1, 1, 0, -100])
CLASSES = torch.tensor([0, 1, 2, 0, 0, 0, 1, 1, 2, 2])
TARGETS, MASK = randn(10, 3, name="targets"), torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 1, 1, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])
CUTS = (0, 6, 8, 10)  # batches of 6, 2 and 2


def network() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed=0).double()


def masked(out: Tensor, y: Any) -> Tensor:
    errors = ((out - y["targets"]) ** 2).mean(-1)
    return (errors * y["mask"]).sum() / y["mask"].sum()


def focal(out: Tensor, y: Tensor) -> Tensor:
    p = out.softmax(1).gather(1, y[:, None])[:, 0]
    return (-((1 - p) ** 2) * p.log()).mean()


def contrast(out: Tensor, y: Tensor) -> Tensor:
    """Couples all examples of a batch, so that batches do not add up."""
    return F.cross_entropy(out @ out.T, torch.arange(len(out)))


# name: (criterion, targets)
CRITERIA: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "cross-entropy": (F.cross_entropy, CLASSES),
    "ignored labels": (nn.CrossEntropyLoss(), LABELS),
    "another ignored label": (partial(F.cross_entropy, ignore_index=0), CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "class weights, ignored": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0), CLASSES),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), LABELS),
    "label smoothing, weights": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), LABELS),
    "negative log-likelihood": (lambda out, y: F.nll_loss(out.log_softmax(1), y, weight=WEIGHTS.double()), LABELS),
    "soft targets": (F.cross_entropy, TARGETS.softmax(1)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "sum of squares": (nn.MSELoss(reduction="sum"), TARGETS),
    "own sum": (lambda out, y: ((out - y) ** 2).sum(), TARGETS),
    "sum over the length": (lambda out, y: ((out - y) ** 2).sum() / len(out), TARGETS),
    "squares": (nn.MSELoss(), TARGETS),
    "own mean": (lambda out, y: 0.5 * ((out - y) ** 2).mean(), TARGETS),
    "Huber": (nn.SmoothL1Loss(), TARGETS),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (TARGETS > 0).double()),
    "Poisson": (nn.PoissonNLLLoss(), (TARGETS > 0).double()),
    "Kullback-Leibler": (
        lambda out, y: F.kl_div(out.log_softmax(1), y, reduction="batchmean"),
        TARGETS.softmax(1),
    ),
    "cosine": (lambda out, y: F.cosine_embedding_loss(out, y, torch.ones(len(y))), TARGETS),
    "two terms": (lambda out, y: F.cross_entropy(out, y) + 0.1 * (out**2).mean(), CLASSES),
    "mask": (masked, {"targets": TARGETS, "mask": MASK}),
    "focal": (focal, CLASSES),
    "mean over examples first": (lambda out, y: ((out - y) ** 2).mean(0).mean(), TARGETS),
    "mean of masked": (lambda out, y: F.cross_entropy(out[y >= 0], y[y >= 0]), LABELS),
}


def cut(y: Any) -> list[Any]:
    spans = [slice(a, b) for a, b in pairwise(CUTS)]
    return [(X[s], {k: v[s] for k, v in y.items()} if isinstance(y, dict) else y[s]) for s in spans]


@pytest.mark.parametrize("name", CRITERIA)
def test_batches_are_weighted_as_the_criterion_divides(name: str) -> None:
    criterion, y = CRITERIA[name]
    model = network()
    theta, layout = ht.flatten(model)
    loss = ht.make_loss(model, criterion, layout)
    close(ht.hessian(loss, theta, cut(y)).to_dense(), ht.hessian(loss, theta, (X, y)).to_dense())
    close(ht.gradient(loss, theta, cut(y)), ht.gradient(loss, theta, (X, y)))
    close(ht.gauss_newton(loss, theta, cut(y)).to_dense(), ht.gauss_newton(loss, theta, (X, y)).to_dense())
    trajectory = ht.Recorder(model, criterion, cut(y)).trajectory()
    close(trajectory.support_loss[0], loss(theta, (X, y)).detach())


def test_a_plain_function_is_weighted_as_it_divides() -> None:
    theta = randn(4, name="theta")
    functions: list[Any] = [
        lambda t, b: F.binary_cross_entropy_with_logits(b[0] @ t, b[1]),
        lambda t, b: (b[1] * (b[0] @ t).tanh() ** 2).sum() / b[1].sum(),
        lambda t, b: (b[1] * (b[0] @ t).tanh() ** 2).sum(),
        lambda t, b: F.mse_loss(b[0] @ t, b[1], reduction="sum"),
    ]
    whole, parts = (X, MASK.double()), [(X[:6], MASK[:6].double()), (X[6:], MASK[6:].double())]
    for function in functions:
        close(ht.hessian(function, theta, parts).to_dense(), ht.hessian(function, theta, whole).to_dense())


def sentences(lengths: list[int], width: int, name: str) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 5, (len(lengths), width), generator=stream(0, "sentences", name))
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    return ids, torch.where(real, ids.flip(1), -100)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.out(torch.tanh(self.embedding(ids)))
        if labels is None:
            return logits
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_batches_of_unequal_length_are_weighted_by_the_labels_that_count() -> None:
    """They cannot be put together, so the divisor must have been seen."""
    model = ht.seeded(Tagger, seed=0).double()
    short, long = sentences([2, 3, 3], 3, "short"), sentences([6, 4], 7, "long")
    padded = torch.zeros(3, 7, dtype=torch.long), torch.full((3, 7), -100)
    for whole, part in zip(padded, short, strict=True):
        whole[:, :3] = part
    both = tuple(torch.cat(pair) for pair in zip(padded, long, strict=True))
    per_token = lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())  # noqa: E731
    transposed = lambda out, y: F.cross_entropy(out.mT, y)  # noqa: E731
    expected = ht.hessian_of(model, per_token, both).to_dense()
    for criterion in (per_token, transposed, None):
        close(ht.hessian_of(model, criterion, [short, long]).to_dense(), expected)
    by_sum = lambda out, y: F.cross_entropy(out.mT, y, reduction="sum") / (y != -100).sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"it is not known by what the loss divides.*give weights="):
        ht.hessian_of(model, by_sum, [short, long])
    counts = [int((y != -100).sum()) for _, y in (short, long)]
    close(ht.hessian_of(model, by_sum, [short, long], weights=counts).to_dense(), expected)


def test_a_criterion_that_couples_examples_needs_weights_where_sizes_differ() -> None:
    model = network()
    with pytest.raises(ValueError, match="give weights="):
        ht.hessian_of(model, contrast, cut(CLASSES))
    equal = [(X[:5], CLASSES[:5]), (X[5:], CLASSES[5:])]
    halves = [ht.hessian_of(model, contrast, batch).to_dense() for batch in equal]
    close(ht.hessian_of(model, contrast, equal).to_dense(), (halves[0] + halves[1]) / 2)


def test_points_whose_batches_need_different_weights_are_refused() -> None:
    model = network()
    theta, layout = ht.flatten(model)
    loss, thetas = ht.make_loss(model, F.cross_entropy, layout), theta.expand(2, -1)
    x, first, second = X[:4].expand(2, 4, 4), torch.zeros(2, 4).long(), torch.zeros(2, 4).long()
    same = ht.hessian(loss, thetas, [(x, first), (x, second)]).to_dense()
    close(same[0], same[1])
    first[1, :3] = -100
    with pytest.raises(ValueError, match="the batches of point 1 in other proportions"):
        ht.hessian(loss, thetas, [(x, first), (x, second)])
    ht.hessian(loss, thetas, [(x, first), (x, second)], weights=[1, 1])


def test_a_batch_without_any_label_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 1 has no label that counts"):
        ht.hessian_of(network(), F.cross_entropy, [(X[:6], LABELS[:6]), (X[3:6], LABELS[3:6])])


def test_rounding_in_the_loss_of_two_equal_batches_is_not_taken_for_a_sum() -> None:
    rounded = {(0,): 1.0, (1,): 1.0, (0, 1): 1.0 + 2.0**-50}
    assert batch_weights_module._ratios(lambda draw, chosen: rounded[chosen], 2) == ()
    added = {(0,): 1.0, (1,): 1.0, (0, 1): 2.0}
    assert batch_weights_module._ratios(lambda draw, chosen: added[chosen], 2) == (batch_weights_module.ADDS,) * 2
