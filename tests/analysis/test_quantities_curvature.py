"""Compares the quantities of curvature with dense Hessians in float64, at a hundred points of a tiny network."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.config import LevelConfig
from analysis.quantities import QUANTITIES, Points, normalised_spectrum, spectral_density
from analysis.quantities.variants import variant_quantities
from analysis.schema import Sizes, blank_run
from hessian_tools import SaveAt, make_loss, record
from hessian_tools.curvature import Operator, rademacher, random_rotations
from hessian_tools.inner import learners
from hessian_tools.layout import flatten
from hessian_tools.rng import stream
from hessian_tools.trajectory import stack

TASKS, STEPS, ALPHA = 25, 3, 0.3
LEVEL = LevelConfig(eigenvalues=3, tolerance=1e-3, probes=8, max_matvecs=40)
SIZES = Sizes(
    checkpoints=(0,),
    tasks=tuple(range(TASKS)),
    steps=STEPS,
    layers=("0.weight", "1.weight", "1.bias", "3.weight", "3.bias"),
    eigenvalues=LEVEL.eigenvalues,
    probes=LEVEL.probes,
    evaluation_tasks=1,
)


def network() -> nn.Module:
    """A network of 51 parameters whose first weight is followed by a normalisation."""
    return nn.Sequential(
        nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3)
    )


def batches(name: str) -> tuple[Tensor, Tensor]:
    """Twelve random examples of three classes for each task."""
    generator = stream(0, "batches", name)
    x = torch.randn(TASKS, 12, 3, generator=generator)
    return x, torch.randint(0, 3, (TASKS, 12), generator=generator)


def make_points(learner: learners.Learner) -> Points:
    model = network()
    loss = make_loss(model, nn.functional.cross_entropy, flatten(model)[1])
    theta = torch.randn(loss.layout.numel, generator=stream(0, "theta"))
    support, query = batches("support"), batches("query")
    episodes = [[(x[task], y[task]) for x, y in (support, query)] for task in range(TASKS)]
    save = SaveAt(thetas=True, gradients=True)
    return Points(
        loss=loss,
        learner=learner,
        meta_theta=theta,
        trajectory=stack([record(learner, loss, theta, *episode, save=save) for episode in episodes]),
        support=support,
        query=query,
        other_support=tuple(leaf.roll(-1, 0) for leaf in support),
        normalised=("0.weight",),
        step_size=ALPHA,
        level=LEVEL,
        probes=torch.stack([rademacher(theta.numel(), LEVEL.probes, path=(task,)) for task in range(TASKS)]).float(),
        tasks=tuple(range(TASKS)),
        task_seed=0,
        seed=0,
        eigenvectors=True,
    )


@dataclass(frozen=True)
class Exact:
    """Gradients [task, step, param], and Hessians and Gauss-Newton matrices [task, step, param, param], in float64."""

    g: Tensor
    H: Tensor
    G: Tensor


def exact(points: Points, batch: tuple[Tensor, Tensor]) -> Exact:
    """The derivatives at all points, by reverse mode over reverse mode, one row at a time."""
    model = network().double()
    loss = make_loss(model, nn.functional.cross_entropy, flatten(model)[1])
    values = []
    for task, thetas in enumerate(points.thetas.double()):
        x, y = batch[0][task].double(), batch[1][task]
        for theta in thetas:
            t = theta.clone().requires_grad_()
            logits = loss.outputs(t, x)
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), t, create_graph=True)
            H = rows(g, t)
            J, p = rows(logits.flatten(), t), logits.detach().softmax(-1)
            B = torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / len(y)
            values.append((g.detach(), H, J.T @ B @ J))
    return Exact(*(points.unflatten(torch.stack(column)) for column in zip(*values, strict=True)))


def rows(outputs: Tensor, t: Tensor) -> Tensor:
    """The Jacobian of the outputs."""
    unit = torch.eye(len(outputs), dtype=t.dtype)
    return torch.autograd.grad(outputs, t, unit, retain_graph=True, is_grads_batched=True)[0]


def quotient(v: Tensor, H: Tensor) -> Tensor:
    """v'Hv / v'v at all points."""
    return (v * (H @ v[..., None])[..., 0]).sum(-1) / (v * v).sum(-1)


def covered(value: Tensor, error: Tensor, true: Tensor) -> float:
    """The share of points at which the true value lies within the stated error."""
    return float(((value - true).abs() <= error).double().mean())


@pytest.fixture(scope="module")
def points() -> Points:
    return make_points(learners.maml(STEPS, ALPHA))


@pytest.fixture(scope="module")
def dense(points: Points) -> Exact:
    return exact(points, points.support)


def measured(name: str, points: Points) -> dict[str, Tensor]:
    return {name: value.double() for name, value in QUANTITIES[name].measure(points).items()}


def first_two_tasks(points: Points) -> Points:
    return replace(
        points,
        trajectory=replace(
            points.trajectory,
            **{name: value[:2] for name, value in vars(points.trajectory).items() if value is not None},
        ),
        **{
            field: tuple(leaf[:2] for leaf in getattr(points, field)) for field in ("support", "query", "other_support")
        },
        probes=points.probes[:2],
        tasks=points.tasks[:2],
    )


SLOW = ("loss_surface",)  # 225 forward passes for each plane and task


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in QUANTITIES])
def test_values_have_the_names_and_the_shapes_that_are_declared(points: Points, name: str) -> None:
    quantity = QUANTITIES[name]
    blank = blank_run(replace(SIZES, further=quantity.coords(SIZES)), [*quantity.variables, *layer_norms()])
    values = measured(name, points)
    assert set(values) == {variable.name for variable in quantity.variables}
    for variable in quantity.variables:
        assert values[variable.name].shape == blank[variable.name].shape[1:]  # without the axis of checkpoints
        assert variable.error is None or variable.error in values


def layer_norms() -> tuple:
    """Every run has the dimension ``layer``."""
    return QUANTITIES["layer_norms"].variables


def test_the_curvature_along_the_gradient_is_at_most_the_largest_eigenvalue(points: Points) -> None:
    alpha_rho = measured("gradient_curvature", points)["alpha_rho"]
    largest = measured("eigenvalues", points)["alpha_lambda_max"]
    assert (alpha_rho <= largest + 0.01 * largest.abs()).all()
    assert alpha_rho.max() > 0.5  # so that the comparison says something


@pytest.mark.parametrize("loss", ["query", "across", "other_task"])
def test_variants_take_the_hessian_and_the_gradient_that_they_name(points: Points, dense: Exact, loss: str) -> None:
    other = exact(points, points.other_support if loss == "other_task" else points.query)
    g = other.g if loss == "query" else dense.g
    values = {}
    for quantity in variant_quantities(loss):
        values |= {name: value.double() for name, value in quantity.measure(points).items()}
    rho = quotient(g, other.H)
    torch.testing.assert_close(values[f"rho_{loss}"], rho, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values[f"alpha_rho_{loss}"], ALPHA * rho, rtol=1e-3, atol=1e-4)
    assert covered(values[f"rho_{loss}"], values[f"rho_error_{loss}"], rho) >= 0.95
    hg_ratio = (other.H @ g[..., None]).norm(dim=-2)[..., 0] / g.norm(dim=-1)
    torch.testing.assert_close(values[f"hg_ratio_{loss}"], hg_ratio, rtol=1e-3, atol=1e-4)
    if loss == "query":
        largest = torch.linalg.eigvalsh(other.H)[..., -1]
        torch.testing.assert_close(values["eigenvalue_max_query"], largest, rtol=1e-3, atol=1e-4)
        z = points.probes.double().unsqueeze(1)
        torch.testing.assert_close(values["trace_query"], (z * (other.H @ z)).sum(-2).mean(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", ["", "_normalised"])
def test_rotations_keep_the_norm_in_each_tensor_and_lose_the_direction(
    points: Points, dense: Exact, suffix: str
) -> None:
    """The mean over rotations is the sum over tensors of |g_l|^2 tr(H_ll) / n_l, divided by |g|^2."""
    name = "unit_filter_norm" if suffix else "rotated_gradient"
    _, g, H = scaled_to_unit_norm(points, dense) if suffix else (None, dense.g, dense.H)
    many = replace(points, level=LEVEL.model_copy(update={"probes": 200}))
    rho, stderr = (measured(name, many)[f"rho_rotated{part}"] for part in (suffix, suffix + "_stderr"))
    squares = [part.square().sum(-1) for part in g.split(list(points.loss.layout.sizes), -1)]
    diagonals = H.diagonal(dim1=-2, dim2=-1).split(list(points.loss.layout.sizes), -1)
    mean = sum(s * d.mean(-1) for s, d in zip(squares, diagonals, strict=True)) / sum(squares)
    distance = (rho - mean).abs() / stderr
    assert distance.max() < 4.5
    assert 0.5 < distance.mean() < 1.1  # 0.8 for a normal error
    fewer = measured(name, points)
    difference = (fewer[f"rho_rotated{suffix}"] - rho).abs()
    assert (difference < 6 * fewer[f"rho_rotated{suffix}_stderr"]).all()


def test_the_rotations_of_a_task_follow_from_its_name(points: Points) -> None:
    few = first_two_tasks(points)
    rho = measured("rotated_gradient", few)["rho_rotated"]
    renamed, drawn_anew = replace(few, tasks=few.tasks[::-1]), replace(few, task_seed=1)
    for others in (renamed, drawn_anew):
        assert not torch.isclose(measured("rotated_gradient", others)["rho_rotated"], rho, rtol=1e-3).any()
    # The seed of the starting vectors of Lanczos runs has no part in it.
    torch.testing.assert_close(measured("rotated_gradient", replace(few, seed=1))["rho_rotated"], rho)


def blocks_of(points: Points) -> dict[str, slice]:
    """The place of each tensor in the vector of parameters, by its number, and those of the body and of the head."""
    ends = np.cumsum((0, *points.loss.layout.sizes))
    tensors = {str(i): slice(ends[i], ends[i + 1]) for i in range(len(ends) - 1)}
    return tensors | {"body": slice(0, ends[3]), "head": slice(ends[3], ends[5])}


def of_block(values: dict[str, Tensor], name: str, block: str) -> Tensor:
    """A variable such as rho_{}_error of a tensor, of the head or of the body."""
    return values[name.format("layer")][..., int(block)] if block.isdigit() else values[name.format(block)]


def scaled_to_unit_norm(points: Points, dense: Exact) -> tuple[Tensor, Tensor, Tensor]:
    """The diagonal of D, the gradient D g and the Hessian D H D; the first weight's rows are its filters."""
    norms = points.thetas[..., :18].double().unflatten(-1, (6, 3)).norm(dim=-1)
    d = torch.cat([norms.repeat_interleave(3, -1), torch.ones_like(dense.g[..., 18:])], -1)
    return d, d * dense.g, d[..., :, None] * dense.H * d[..., None, :]


@pytest.mark.parametrize("suffix", ["", "_normalised"])
def test_blocks_are_those_of_the_dense_hessian_within_their_errors(points: Points, dense: Exact, suffix: str) -> None:
    values = measured("unit_filter_norm" if suffix else "blocks", points)
    _, g, H = scaled_to_unit_norm(points, dense) if suffix else (None, dense.g, dense.H)
    within: dict[str, list[float]] = {"rho_{}": [], "hg_ratio_{}": []}
    for block, at in blocks_of(points).items():
        g_b, h_b = g[..., at], H[..., at, at]
        rho, ratio = quotient(g_b, h_b), (h_b @ g_b[..., None]).norm(dim=-2)[..., 0] / g_b.norm(dim=-1)
        error = of_block(values, "rho_{}_error" + suffix, block)
        for name, true in (("rho_{}", rho), ("hg_ratio_{}", ratio)):
            value = of_block(values, name + suffix, block)
            torch.testing.assert_close(value, true, rtol=1e-3, atol=1e-4)
            within[name].append(covered(value, error, true))
        assert (error < 1e-4 * H.flatten(2).norm(dim=-1)).all()
    assert min(within["rho_{}"]) >= 0.95
    # The error is an estimate. For |Hg| / |g| it is too small most often in the bias of six entries.
    assert min(within["hg_ratio_{}"]) >= 0.8
    assert np.mean(within["hg_ratio_{}"]) >= 0.95


def test_the_error_of_a_block_is_the_asymmetry_of_its_products(
    points: Points, dense: Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1000 added to each entry of Hz, z'Hg_b and g_b'Hz differ by 1000 times the sum of g_b."""
    crooked = replace(points.products, hz=points.products.hz + 1000)
    monkeypatch.setattr(Points, "products", crooked)
    values = measured("blocks", replace(points))
    for block, at in blocks_of(points).items():
        g_b = dense.g[..., at]
        expected = 1000 * g_b.sum(-1).abs() / (g_b.norm(dim=-1) * points.probes.shape[1] ** 0.5)
        torch.testing.assert_close(of_block(values, "rho_{}_error", block), expected, rtol=0.01, atol=1.0)


def test_the_unit_of_a_filter_changes_no_curvature_at_unit_filter_norm(points: Points) -> None:
    """With the first weight doubled the network computes the same, so that only the plain curvature changes."""
    thetas = points.thetas.clone()
    thetas[..., :18] *= 2
    gradients = points.trajectory_gradients.clone()
    gradients[..., :18] /= 2
    doubled = replace(points, trajectory=replace(points.trajectory, thetas=thetas, gradients=gradients))
    before, after = measured("unit_filter_norm", points), measured("unit_filter_norm", doubled)
    for name, value in before.items():
        if "error" not in name:
            # The normalisation adds its eps, 1e-5, to a variance that is four times as large.
            torch.testing.assert_close(after[name], value, rtol=0.02, atol=0.02 * float(value.abs().median()))
    plain, plain_doubled = (measured("blocks", each)["rho_layer"][..., 0] for each in (points, doubled))
    torch.testing.assert_close(plain_doubled, plain / 4, rtol=0.02, atol=0.02 * float(plain.abs().median()))


@pytest.mark.parametrize("suffix", ["", "_normalised"])
def test_traces_of_blocks_are_those_of_the_dense_hessian_seen_by_the_probes(
    points: Points, dense: Exact, suffix: str
) -> None:
    values = measured("normalised_spectrum" if suffix else "blocks", points)
    H = scaled_to_unit_norm(points, dense)[2] if suffix else dense.H
    z = points.probes.double().unsqueeze(1)
    products = z * (H @ z)
    for block, at in blocks_of(points).items():
        samples = products[..., at, :].sum(-2)
        trace, stderr = (of_block(values, name + suffix, block) for name in ("trace_{}", "trace_{}_stderr"))
        torch.testing.assert_close(trace, samples.mean(-1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(stderr, samples.std(-1) / LEVEL.probes**0.5, rtol=1e-3, atol=1e-3)
    whole = values["trace_normalised"] if suffix else measured("trace", points)["trace"]
    for parts in (
        values[f"trace_layer{suffix}"].sum(-1),
        values[f"trace_head{suffix}"] + values[f"trace_body{suffix}"],
    ):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_the_body_of_a_learner_that_moves_only_the_head_has_a_curvature() -> None:
    points = make_points(learners.anil(STEPS, ALPHA))
    assert (points.gradients[..., :30] == 0).all()
    dense, values = exact(points, points.support), measured("blocks", points)
    body = quotient(dense.g[..., :30], dense.H[..., :30, :30])
    torch.testing.assert_close(values["rho_body"], body, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values["rho_head"], measured("gradient_curvature", points)["rho"], rtol=1e-3, atol=1e-4)
    # The rotations of the inner gradient are zero in the body, as it is.
    g, path = points.gradients[1].double(), ("rotated_gradient", 1)
    v = random_rotations(points.loss.layout, g, LEVEL.probes, path=path).movedim(-1, 0)
    rotated = measured("rotated_gradient", points)["rho_rotated"][1]
    torch.testing.assert_close(rotated, quotient(v, dense.H[1]).mean(0), rtol=1e-3, atol=1e-4)


def test_the_gauss_newton_part_is_that_of_the_dense_matrix_within_its_errors(points: Points, dense: Exact) -> None:
    values = measured("gauss_newton", points)
    rho = quotient(dense.g, dense.G)
    torch.testing.assert_close(values["rho_gauss_newton"], rho, rtol=1e-3, atol=1e-5)
    assert covered(values["rho_gauss_newton"], values["rho_gauss_newton_error"], rho) >= 0.95
    eigenvalues, vectors = torch.linalg.eigh(dense.H)
    top = eigenvalues.abs().argmax(-1)[..., None]
    v = vectors.gather(-1, top[..., None].expand(*top.shape[:-1], len(vectors[0, 0]), 1))[..., 0]
    share = quotient(v, dense.G) / eigenvalues.gather(-1, top)[..., 0]
    rounding = 1e-5 * (1 + share.abs())
    assert covered(values["gauss_newton_share"], values["gauss_newton_share_error"] + rounding, share) == 1
    assert values["gauss_newton_share_error"].median() < 0.01
    assert share.std() > 0.01  # so that the comparison says something


def test_the_top_eigenspace_is_that_of_the_dense_hessian_within_its_errors(points: Points, dense: Exact) -> None:
    values, k = measured("top_eigenspace", points), LEVEL.eigenvalues
    eigenvalues, vectors = torch.linalg.eigh(dense.H)
    order = eigenvalues.abs().argsort(dim=-1, descending=True)[..., :k]
    V = vectors.gather(-1, order[..., None, :].expand(*order.shape[:-1], vectors.shape[-1], k))
    share = (V.mT @ dense.g[..., None])[..., 0].square().cumsum(-1) / dense.g.square().sum(-1, keepdim=True)
    assert covered(values["gradient_share"], values["gradient_share_error"] + 1e-5, share) == 1
    squares = (V[:, :-1].mT @ V[:, 1:]).square()
    overlap = torch.stack([squares[..., :j, :j].sum((-2, -1)) / j for j in range(1, k + 1)], -1)
    measured_overlap, error = (values[name] for name in ("subspace_overlap", "subspace_overlap_error"))
    assert covered(measured_overlap[:, :-1], error[:, :-1] + 1e-5, overlap) == 1
    assert measured_overlap[:, -1].isnan().all()
    # The gap after the last eigenvalue is known, because one more pair was computed.
    assert values["gradient_share_error"][..., -1].median() < 0.1
    assert error[:, :-1, -1].median() < 0.1


def test_one_more_eigenpair_does_not_change_the_eigenvalues(points: Points) -> None:
    alone = measured("eigenvalues", replace(points, eigenvectors=False))
    for name, value in measured("eigenvalues", points).items():
        if not name.endswith(("residual", "error")):
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-5)


def test_the_normalised_spectrum_is_that_of_the_dense_scaled_hessian(points: Points, dense: Exact) -> None:
    values = measured("normalised_spectrum", points)
    _, _, scaled = scaled_to_unit_norm(points, dense)
    exact_values = torch.linalg.eigvalsh(scaled)
    allowed = values["lambda_max_normalised_residual"] + 1e-5 * exact_values.abs().amax(-1)
    assert covered(values["lambda_max_normalised"], allowed, exact_values[..., -1]) == 1
    allowed = values["lambda_min_normalised_residual"] + 1e-5 * exact_values.abs().amax(-1)
    assert covered(values["lambda_min_normalised"], allowed, exact_values[..., 0]) == 1
    products = scaled @ points.probes.double().unsqueeze(1)
    traces = (points.probes.double().unsqueeze(1) * products).sum(-2)
    torch.testing.assert_close(values["trace_normalised"], traces.mean(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values["trace_normalised_stderr"], traces.std(-1) / 8**0.5, rtol=1e-3, atol=1e-3)
    distance = (values["frobenius_normalised"] - scaled.flatten(2).norm(dim=-1)).abs()
    distance = distance / values["frobenius_normalised_stderr"]
    assert distance.max() < 6
    assert 0.5 < distance.mean() < 1.3  # 0.8 for a normal error
    assert not torch.allclose(values["lambda_max_normalised"], torch.linalg.eigvalsh(dense.H)[..., -1], rtol=0.05)


def test_both_ends_of_the_normalised_spectrum_have_their_own_error_and_the_settings_of_the_level(
    points: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pairs(num_points: int, value: float, residual: float) -> SimpleNamespace:
        return SimpleNamespace(
            values=torch.full((num_points, 1), value), residuals=torch.full((num_points, 1), residual)
        )

    def ends(H: Operator, **options: Any) -> SimpleNamespace:
        asked.append(options)
        return SimpleNamespace(largest=pairs(H.shape[0], 3.0, 0.3), smallest=pairs(H.shape[0], -2.0, 0.2))

    monkeypatch.setattr(normalised_spectrum, "extremal_eigenpairs", ends)
    values = measured("normalised_spectrum", replace(points, seed=4))
    for end, value, residual in (("max", 3.0, 0.3), ("min", -2.0, 0.2)):
        name = f"lambda_{end}_normalised"
        assert values[name].unique().tolist() == [pytest.approx(value)]
        assert values[f"{name}_residual"].unique().tolist() == [pytest.approx(residual)]
    assert asked == [{"magnitude": 1, "ends": 1, "rtol": 1e-3, "max_matvecs": 40, "seed": 4}]


def test_the_density_is_that_of_the_dense_spectrum_seen_by_the_probes(points: Points, dense: Exact) -> None:
    """The share of eigenvalues below each edge, where an eigenvector u counts by (u'z)^2 for the first four probes."""
    values, width = measured("spectral_density", points), spectral_density.CELL_WIDTH
    eigenvalues, vectors = torch.linalg.eigh(dense.H)
    z = points.probes[..., :4].double().unsqueeze(1)
    weights = (vectors.mT @ z).square() / vectors.shape[-1]
    s = torch.linspace(-spectral_density.END, spectral_density.END, spectral_density.CELLS + 1, dtype=torch.float64)
    steps = (0.1 * s.sinh() - ALPHA * eigenvalues[..., None]) / values["density_width"][..., None, None]
    below = (weights[..., None] * torch.special.ndtr(steps)[..., None, :]).sum(-3)
    shares = width * values["density"]
    assert (shares.cumsum(-1) - (below[..., 1:] - below[..., :1]).mean(-2)).abs().max() < 0.01
    torch.testing.assert_close(shares.sum(-1), torch.ones(TASKS, STEPS + 1).double(), rtol=0, atol=1e-4)
    stderr = below.diff(dim=-1).std(-2) / 2
    assert (width * values["density_stderr"] - stderr).abs().max() < 0.01
    assert stderr.max() > 0.02  # so that the comparison says something
    middles = np.arcsinh(spectral_density.coords(SIZES)["grid"] / 0.1)
    np.testing.assert_allclose(middles, (s[1:] + s[:-1]) / 2, atol=1e-12)


def test_a_learner_without_alpha_has_no_density(points: Points) -> None:
    values = measured("spectral_density", replace(points, step_size=math.nan))
    assert all(value.isnan().all() for value in values.values())


@pytest.mark.parametrize("name", [name for name, quantity in QUANTITIES.items() if quantity.products])
def test_a_task_whose_inner_loop_left_the_numbers_does_not_harm_the_others(points: Points, name: str) -> None:
    """The values of the other tasks are the same as without it, up to rounding."""
    few = first_two_tasks(points)
    thetas, gradients = few.thetas.clone(), few.trajectory_gradients.clone()
    thetas[1, 2:], gradients[1, 2:] = torch.nan, torch.nan
    broken = replace(few, trajectory=replace(few.trajectory, thetas=thetas, gradients=gradients))
    expected = measured(name, few)
    for variable, value in measured(name, broken).items():
        torch.testing.assert_close(value[0], expected[variable][0], rtol=1e-3, atol=1e-3, equal_nan=True)
