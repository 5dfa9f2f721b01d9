"""Exact traces from the outputs are used where they are right, and not used where they would be wrong."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from cases import (
    GAUSS_NEWTON,
    LINEAR,
    Case,
    conv_batchnorm,
    network_case,
    randn,
    relu_mlp,
    seeded,
    squared_error,
    tanh_mlp,
    without_type_checks,
)
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools.curvature import gauss_newton, hessian, ragged, trace
from hessian_tools.curvature.estimates.multiaffine import is_multiaffine
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss
from hessian_tools.nets import MLP, Conv4


class Custom(nn.Module):
    """Two layers 4-4, combined by a given function, and a head 4-3."""

    def __init__(self, join: Callable[["Custom", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self, x))


class WeightNormed(nn.Module):
    """A layer whose weight is divided by its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(x, self.weight / self.weight.norm())))


def images(*layers: nn.Module) -> nn.Module:
    """A network on 1 x 4 x 4 images, which leaves 4 x 1 x 1 features."""
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *layers, nn.Flatten(), nn.LazyLinear(3))


def in_eval_mode() -> nn.Module:
    """A network in eval mode, whose BatchNorm uses stored statistics."""
    norm = nn.BatchNorm1d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    return nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3)).double().eval()


def layers(*middle: nn.Module) -> nn.Module:
    """A linear layer, the given modules, and a linear head."""
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, 3))


def tied() -> nn.Module:
    """Two layers of a sequence share their weight."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


PIECEWISE_AFFINE: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: layers(nn.ReLU(inplace=True)),
    "deep leaky": lambda: layers(nn.LeakyReLU(0.2), nn.Linear(4, 4), nn.Hardtanh()),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 3),
    ),
    "average pool": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    ),
    "kept statistics": in_eval_mode,
    "additive skip": lambda: Custom(lambda net, x: F.relu(net.first(x)) + F.relu(net.second(x)) + x),
    "residual": lambda: Custom(lambda net, x: net.second(F.relu(h := net.first(x))) + h),
    "two branches multiplied": lambda: Custom(lambda net, x: F.relu(net.first(x)) * net.second(x)),
    "one layer on two inputs, added": lambda: Custom(
        lambda net, x: F.relu(net.first(x)) + net.first(2 * x) + net.second(x)
    ),
}
NOT_PIECEWISE_AFFINE: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: layers(nn.Tanh()),
    "gelu": lambda: layers(nn.GELU()),
    "batch statistics": lambda: layers(nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()),
    "batch statistics in eval": lambda: layers(nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()).eval(),
    "layer norm": lambda: layers(nn.LayerNorm(4), nn.ReLU()),
    "softmax": lambda: layers(nn.Softmax(-1)),
    "tied weights": tied,
    "one layer twice": lambda: Custom(lambda net, x: net.second(net.first(F.relu(net.first(x))))),
    "multiplicative skip": lambda: Custom(lambda net, x: (h := net.first(x)) * F.relu(net.second(h))),
    "squared": lambda: Custom(lambda net, x: net.second(net.first(x) ** 2)),
    "weight normalised": WeightNormed,
}


@cache
def case_of(build: Callable[[], nn.Module], criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Case:
    batch = (randn(3, 5, 4, stream_name="exact x"), torch.tensor([0, 1, 2, 0, 1]).expand(3, 5))
    if criterion is not F.cross_entropy:
        batch = (batch[0], randn(3, 5, 3, stream_name="exact y"))
    return network_case("exact", seeded(build), criterion, batch)


def diagonal_sum(dense: Tensor) -> Tensor:
    return dense.diagonal(dim1=-2, dim2=-1).sum(-1)


def concave(outputs: Tensor, targets: Tensor) -> Tensor:
    """A criterion that couples the examples and is not convex."""
    return torch.cos(outputs - targets).sum() + outputs.sum() ** 2


ALL_WITH_ONE = [(name, F.cross_entropy) for name in PIECEWISE_AFFINE]
ONE_WITH_OTHERS = [("convolution", squared_error), ("convolution", concave)]


@pytest.mark.parametrize(
    ("name", "criterion"), ALL_WITH_ONE + ONE_WITH_OTHERS, ids=lambda part: getattr(part, "__name__", part)
)
def test_the_trace_of_piecewise_affine_networks_comes_from_the_outputs(
    name: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """For any criterion the trace of H is that of Gauss-Newton, which takes 15 backward passes here."""
    case = case_of(PIECEWISE_AFFINE[name], criterion)
    assert is_multiaffine(case.loss, *case.at(0)[:2])
    estimate = trace(hessian(case.loss, case.thetas, case.batch), num_probes=16)
    assert estimate.method == "outputs"
    torch.testing.assert_close(estimate.value, diagonal_sum(case.dense), rtol=1e-11, atol=1e-11)
    assert (estimate.stderr == 0).all()
    assert estimate.converged.all()
    assert (estimate.num_matvecs == 15).all()


@pytest.mark.parametrize("name", NOT_PIECEWISE_AFFINE)
def test_other_networks_are_not_mistaken_for_piecewise_affine_ones(name: str) -> None:
    """The trace from the outputs would be wrong for them, because the traces of H and Gauss-Newton differ."""
    case = case_of(NOT_PIECEWISE_AFFINE[name])
    assert not is_multiaffine(case.loss, *case.at(0)[:2])
    H, G = (make(case.loss, case.thetas, case.batch) for make in (hessian, gauss_newton))
    exact, other = diagonal_sum(case.dense), trace(G, method="exact").value
    assert ((exact - other).abs() > 1e-3 * exact.abs()).any()
    assert trace(H, num_probes=16).method == "probes"
    forced = trace(H, method="exact")
    assert forced.method == "diagonal"
    torch.testing.assert_close(forced.value, exact)


def test_networks_with_control_flow_on_data_are_not_certain_to_be_piecewise_affine() -> None:
    model = seeded(lambda: Custom(lambda net, x: net.first(x) if x.sum() > 0 else net.second(x).tanh()))
    theta, layout = flatten(model)
    loss = make_loss(model, F.cross_entropy, layout)
    assert not is_multiaffine(loss, theta, (torch.ones(2, 4), torch.zeros(2, dtype=torch.long)))


def test_which_networks_of_the_study_are_piecewise_affine() -> None:
    x = torch.rand(2, 1, 16, 16)
    networks = (
        (Conv4(2, width=2, input_shape=(1, 16, 16), normalisation="none"), True),
        (Conv4(2, width=2, input_shape=(1, 16, 16)), False),
        (MLP([256, 3, 2]), True),
        (MLP([256, 3, 2], activation=nn.Tanh), False),
    )
    for model, expected in networks:
        theta, layout = flatten(model)
        assert is_multiaffine(make_loss(model, F.cross_entropy, layout), theta, (x, torch.tensor([0, 1]))) == expected


@pytest.mark.parametrize("case", GAUSS_NEWTON, ids=lambda case: case.name)
def test_the_trace_of_gauss_newton_from_its_outputs(case: Case) -> None:
    G = gauss_newton(case.loss, case.thetas, case.batch)
    estimate = trace(G, method="exact")
    torch.testing.assert_close(estimate.value, diagonal_sum(case.dense), rtol=1e-11, atol=1e-12)
    assert estimate.method in ("outputs", "diagonal")
    single = trace(gauss_newton(case.loss, *case.at(1)[:2]), method="exact")
    torch.testing.assert_close(single.value, estimate.value[1])
    assert single.value.shape == single.num_matvecs.shape == ()


def test_lists_of_batches_chunks_and_loops_give_the_same_trace() -> None:
    case = relu_mlp()
    x, y = case.batch
    pieces = [(x[:, :2], y[:, :2]), (x[:, 2:], y[:, 2:])]
    whole = trace(hessian(case.loss, case.thetas, case.batch), num_probes=20)
    assert whole.method == "outputs"
    for batch, options in ((pieces, {}), (case.batch, {"chunk": 2}), (case.batch, {"batching": "loop"})):
        H = hessian(case.loss, case.thetas, batch, **options)
        result = trace(H, num_probes=20)
        torch.testing.assert_close(result.value, whole.value)
        assert torch.equal(result.num_matvecs, whole.num_matvecs)
    weighted = hessian(case.loss, case.thetas, pieces, weights=[1, 3])
    dense = diagonal_sum(weighted.to_dense())
    torch.testing.assert_close(trace(weighted, num_probes=20).value, dense)


@pytest.mark.slow
def test_auto_is_exact_where_that_costs_no_more_than_the_probes() -> None:
    """With 18 outputs and 63 parameters, fewer than 18 probes are cheaper than the exact trace; 18 or more are not."""
    case = relu_mlp()
    H = hessian(case.loss, case.thetas, case.batch)
    assert [trace(H, num_probes=n).method for n in (17, 18, 100)] == ["probes", "outputs", "outputs"]
    assert trace(H, num_probes=100, method="probes").method == "probes"
    smooth = tanh_mlp()
    S = hessian(smooth.loss, smooth.thetas, smooth.batch)
    n = smooth.thetas.shape[-1]
    assert [trace(S, num_probes=m).method for m in (n - 1, n)] == ["probes", "diagonal"]
    torch.testing.assert_close(trace(S, num_probes=n).value, diagonal_sum(smooth.dense))
    torch.testing.assert_close(trace(H.block("head"), num_probes=20).value, diagonal_sum(case.dense[:, 45:, 45:]))


def test_a_point_that_is_not_finite_changes_no_other() -> None:
    case = relu_mlp()
    thetas = case.thetas.clone()
    thetas[1, 0] = torch.nan
    estimate = trace(hessian(case.loss, thetas, case.batch), num_probes=20)
    assert estimate.method == "outputs"
    assert estimate.value.isnan().tolist() == estimate.stderr.isnan().tolist() == [False, True, False]
    assert estimate.converged.tolist() == [True, False, True]


def test_a_criterion_that_is_not_finite_at_one_point_gives_nan_there() -> None:
    """The Jacobian of the outputs is finite at all points."""
    model = nn.Linear(2, 1)
    theta, layout = flatten(model)
    loss = make_loss(model, lambda outputs, y: ((outputs - y) ** 4).mean(), layout)
    batch = randn(2, 2, 2, stream_name="x").float(), torch.tensor([[[0.0], [1.0]], [[0.0], [torch.nan]]])
    estimate = trace(gauss_newton(loss, theta.expand(2, -1), batch), num_probes=4)
    assert estimate.method == "outputs"
    assert estimate.value.isnan().tolist() == [False, True]


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    case = LINEAR[0]
    H = hessian(case.loss, case.thetas, case.batch)
    with without_type_checks(), pytest.raises(ValueError, match="auto, probes, exact"):
        trace(H, method="gram")
    with pytest.raises(ValueError, match="uses no probes"):
        trace(H, method="exact", probes=randn(5, 3, stream_name="probes"))


def test_progress_counts_every_product_once() -> None:
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))

    case = conv_batchnorm()
    H = hessian(case.loss, case.thetas, case.batch)
    trace(H, num_probes=40, progress=progress)
    assert reports == [(16, 40), (32, 40), (40, 40)]
    reports.clear()
    trace(H, num_probes=20, rtol=1e-9, max_probes=50, progress=progress)
    assert [done for done, _ in reports] == [16, 20, 36, 40, 50]
    assert {total for _, total in reports} == {50}
    for options in ({"method": "exact"}, {"num_probes": 10}):
        reports.clear()
        relu = relu_mlp()
        trace(gauss_newton(relu.loss, relu.thetas, relu.batch), progress=progress, **options)
        assert reports[-1][0] == reports[-1][1]
        assert [done for done, _ in reports] == sorted({done for done, _ in reports})


def test_progress_and_num_matvecs_of_ragged_points() -> None:
    """Progress counts the passes of all groups together, and num_matvecs at each point those for its batch."""
    case = GAUSS_NEWTON[-1]
    x, y = torch.utils._pytree.tree_map(lambda leaf: leaf[0], case.batch)
    batches = ragged([(x[:2], y[:2]), (x, y), (x[:2], y[:2])])
    G = gauss_newton(case.loss, case.thetas[:1].expand(3, -1), batches)
    reports: list[tuple[int, int]] = []
    estimate = trace(G, method="exact", progress=lambda done, total: reports.append((done, total)))
    small, large = (int(case.loss.outputs(case.thetas[0], part).numel()) for part in (x[:2], x))
    assert estimate.method == "outputs"
    assert estimate.num_matvecs.tolist() == [small, large, small]
    assert reports[-1] == (2 * small + large, 2 * small + large)
    assert [total for _, total in reports] == [2 * small + large] * len(reports)
    assert all(before < after for (before, _), (after, _) in pairwise(reports))
