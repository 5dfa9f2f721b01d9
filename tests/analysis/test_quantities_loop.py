"""Quantities of a study that describe whole inner loops, against closed forms and plain loops in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hand_made_points import ALPHA, CLASSES, MAML, STEPS, TASKS, measured, points_of
from torch import Tensor

from analysis.quantities import QUANTITIES, Points
from analysis.quantities.shot_distances import OUTPUT_MEANINGS
from analysis.schema import Sizes
from hessian_tools import learners
from hessian_tools.curvature import adaptation_jacobian, hessian
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.shot import DISTANCES
from hessian_tools.inner.steps import Momentum

OTHER_RULES = [
    learners.meta_sgd(STEPS, ALPHA),
    learners.maml(STEPS, ALPHA, rule=Momentum(0.5)),
    learners.leo(STEPS, ALPHA, latent=Latent(size=2, fine_tuning_steps=1)),
]


@pytest.fixture(autouse=True)
def without_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few products are announced, because tracing a product takes longer than a test."""
    monkeypatch.setattr("analysis.quantities.points.PRODUCTS_OF_A_STUDY", 1)


def dense_hessian(points: Points, theta: Tensor, task: int) -> Tensor:
    """The Hessian of a task's support loss."""
    x, y = points.support
    return torch.func.hessian(points.loss)(theta, (x[task], y[task]))


def plain_descent(points: Points, task: int, steps: int, alpha: float) -> Tensor:
    """The end of gradient descent on a task's support loss, as a plain loop."""
    theta, (x, y) = points.thetas[task, 0], points.support
    for _ in range(steps):
        theta = theta - alpha * torch.func.grad(points.loss)(theta, (x[task], y[task]))
    return theta


def test_path_and_drop_on_a_quadratic():
    points = points_of(MAML, regression=True)
    values = measured("path", points)
    for task in range(TASKS):
        thetas, g = points.thetas[task], points.trajectory_gradients[task]
        length = sum(float((b - a).norm()) for a, b in pairwise(thetas))
        assert float(values["path_ratio"][task]) == pytest.approx(length / float((thetas[-1] - thetas[0]).norm()))
        H = dense_hessian(points, thetas[0], task)
        for k in range(STEPS):  # the fall is alpha |g|^2 - alpha^2 g'Hg / 2
            rho = float(g[k] @ H @ g[k] / (g[k] @ g[k]))
            assert float(values["drop_ratio"][task, k]) == pytest.approx(1 - ALPHA * rho / 2, rel=1e-9)
        assert values["drop_ratio"][task, -1].isnan()


def test_the_linearisation_error_is_zero_for_a_linear_model_and_exact_for_a_network():
    assert measured("linearisation", points_of(MAML, regression=True))["linearisation_error"].max() < 1e-12
    points = points_of(MAML)
    values = measured("linearisation", points)["linearisation_error"]
    for task, x in enumerate(points.query[0]):
        start, end = points.thetas[task, 0], points.thetas[task, -1]
        outputs = points.loss.outputs
        slope = torch.func.jacrev(lambda theta, x=x: points.loss.outputs(theta, x))(start)
        actual = outputs(end, x) - outputs(start, x)
        expected = (actual - slope @ (end - start)).norm() / actual.norm()
        assert float(values[task]) == pytest.approx(float(expected), rel=1e-9)
        assert float(expected) > 0.01


def test_shot_distances_are_those_of_plain_loops():
    points = points_of(MAML)
    values = measured("shot_distances", points)
    for task, x in enumerate(points.query[0]):
        ends = {n: plain_descent(points, task, n, ALPHA * STEPS / n) for n in range(1, STEPS + 1)}
        start = points.thetas[task, 0]
        for t in range(1, STEPS):
            for r in range(2, STEPS + 1):
                for name, distance in [*DISTANCES.items(), ("l2", lambda a, b: (a - b).norm())]:
                    see = (lambda v: v) if name == "l2" else (lambda theta, x=x: points.loss.outputs(theta, x))
                    expected = float(distance(see(ends[r]), see(ends[t])) / distance(see(ends[STEPS]), see(start)))
                    stored = float(values[f"shot_{name}"][task, t - 1, r - 2])
                    assert stored == pytest.approx(expected if t < r else np.nan, rel=1e-9, nan_ok=True)


def test_shot_distances_name_the_steps_and_cover_all_distances():
    sizes = Sizes((0,), (0,), STEPS, ("a",), 1, 2, 1)
    grid = QUANTITIES["shot_distances"].coords(sizes)
    assert grid["shot_target"].tolist() == [1, 2]
    assert grid["shot_reference"].tolist() == [2, 3]
    assert list(OUTPUT_MEANINGS) == list(DISTANCES)


def test_a_loop_of_one_step_is_the_target_of_two_steps():
    points = points_of(learners.boil(1, ALPHA))
    values = measured("shot_distances", points)
    assert values["shot_js"].shape == (TASKS, 1, 1)
    assert values["shot_js"].isfinite().all()
    assert measured("shot_direction", points)["shot_direction_cosine"].isnan().all()


def test_regression_has_no_distance_of_distributions():
    values = measured("shot_distances", points_of(MAML, regression=True))
    for name, value in values.items():
        known = name in ("shot_squared_error", "shot_l2")
        assert bool(value[0, 0, 0].isfinite()) == known


def test_shots_direction_follows_the_expansion_for_small_steps():
    points = points_of(learners.maml(STEPS, 1e-4))
    values = measured("shot_direction", points)
    assert values["shot_direction_cosine"].min() > 1 - 1e-6
    assert (values["shot_direction_ratio"] - 1).abs().max() < 1e-2


@pytest.mark.parametrize("make", [learners.maml, learners.anil, learners.boil])
def test_shots_direction_is_that_of_plain_loops(make):
    points = points_of(make(STEPS, ALPHA))
    values = measured("shot_direction", points)
    layout, learner = points.loss.layout, points.learner
    moved = torch.zeros(layout.numel, dtype=torch.float64)
    moved[layout.indices(*learner.moves) if learner.moves else slice(None)] = 1
    for task in range(TASKS):
        theta, g = points.thetas[task], points.trajectory_gradients[task, 0]
        actual = theta[-1] - (theta[0] - STEPS * ALPHA * g)
        tau = ALPHA * STEPS
        predicted = tau**2 / 2 * (1 - 1 / STEPS) * moved * (dense_hessian(points, theta[0], task) @ g)
        cosine = actual @ predicted / (actual.norm() * predicted.norm())
        assert float(values["shot_direction_cosine"][task]) == pytest.approx(float(cosine), rel=1e-8)
        ratio = float(actual.norm() / predicted.norm())
        assert float(values["shot_direction_ratio"][task]) == pytest.approx(ratio, rel=1e-8)


def moved_step_sizes(points: Points) -> Tensor:
    """The step size of each parameter, which is 0 where the inner loop does not move it."""
    layout, learner = points.loss.layout, points.learner
    sizes = torch.zeros(layout.numel, dtype=torch.float64)
    sizes[layout.indices(*learner.moves) if learner.moves else slice(None)] = ALPHA
    return sizes


@pytest.mark.parametrize("make", [learners.maml, learners.anil, learners.boil, learners.reptile, learners.meta_sgd])
def test_meta_gradient_and_adaptation_agree_with_the_dense_jacobian(make):
    points = points_of(make(STEPS, ALPHA))
    compared, stretch = measured("meta_gradient", points), measured("adaptation", points)
    sizes = moved_step_sizes(points)
    for task in range(TASKS):
        J = torch.eye(len(sizes), dtype=torch.float64)
        for theta in points.thetas[task, :-1]:
            J = J - sizes[:, None] * (dense_hessian(points, theta, task) @ J)
        query = points.query[0][task], points.query[1][task]
        g = torch.func.grad(points.loss)(points.thetas[task, -1], query)
        full = J.T @ g
        cosine = float(full @ g / (full.norm() * g.norm()))
        assert float(compared["meta_gradient_cosine"][task]) == pytest.approx(cosine, rel=1e-8)
        assert float(compared["meta_gradient_ratio"][task]) == pytest.approx(float(full.norm() / g.norm()), rel=1e-8)
        assert cosine < 0.9999  # the comparison is not between two equal vectors
        exact = torch.linalg.svdvals(J)[:2]
        error = stretch["adaptation_singular_value_residual"][task]
        assert ((stretch["adaptation_singular_value"][task] - exact).abs() <= error + 1e-6).all()


def test_the_meta_gradient_is_the_transposed_adaptation_jacobian_times_the_query_gradient():
    points = points_of(MAML)
    H = hessian(
        points.loss, points.thetas[:, :-1].flatten(0, 1), tuple(b.repeat_interleave(STEPS, 0) for b in points.support)
    )
    g = points.gradient_on(points.query)[:, -1]
    full = adaptation_jacobian(H, ALPHA, steps=STEPS).rmv(g)
    expected = full.norm(dim=-1) / g.norm(dim=-1)
    assert torch.allclose(measured("meta_gradient", points)["meta_gradient_ratio"], expected, rtol=1e-9)


def test_prototype_agreement_counts_the_nearest_class_means():
    points = points_of(learners.maml(STEPS, 3.0))  # steps so large that the features change
    values = measured("prototypes", points)["prototype_agreement"]
    for task in range(TASKS):
        parameters = points.loss.layout.unflatten(points.thetas[task, -1])

        def body(x: Tensor, p=parameters) -> Tensor:
            return torch.tanh(x @ p["body.weight"].T + p["body.bias"])

        x, y = points.support[0][task], points.support[1][task]
        agreed = []
        for q in points.query[0][task]:
            means = [
                torch.stack([body(a) for a, b in zip(x, y, strict=True) if b == c]).mean(0) for c in range(CLASSES)
            ]
            prototype = min(range(CLASSES), key=lambda c: float((body(q) - means[c]).norm()))
            logits = parameters["head.weight"] @ body(q) + parameters["head.bias"]
            agreed.append(int(logits.argmax()) == prototype)
        assert float(values[task]) == pytest.approx(sum(agreed) / len(agreed))
    assert 0 < float(values.mean()) < 1  # neither answer is given by a planted constant


def test_prototypes_need_classes():
    assert measured("prototypes", points_of(MAML, regression=True))["prototype_agreement"].isnan().all()


def test_the_step_size_sweep_multiplies_every_step_size():
    for learner in (MAML, learners.meta_sgd(STEPS, ALPHA), learners.meta_sgd(STEPS, ALPHA, logarithmic=True)):
        points = points_of(learner)
        values = measured("alpha_sweep", points)
        factors = QUANTITIES["alpha_sweep"].coords(None)["alpha_factor"]
        assert factors.tolist() == [0.25, 0.5, 1, 2, 4]
        for task in range(TASKS):
            query = points.query[0][task], points.query[1][task]
            for i, factor in enumerate(factors):
                theta = plain_descent(points, task, STEPS, factor * ALPHA)
                assert float(values["swept_query_loss"][task, i]) == pytest.approx(float(points.loss(theta, query)))
                right = (points.loss.outputs(theta, query[0]).argmax(-1) == query[1]).double().mean()
                assert float(values["swept_query_accuracy"][task, i]) == pytest.approx(float(right))


LOOP_QUANTITIES = (
    "path",
    "linearisation",
    "shot_distances",
    "shot_direction",
    "meta_gradient",
    "adaptation",
    "prototypes",
    "alpha_sweep",
)


@pytest.mark.parametrize("scale", [1e3, 1e100], ids=["exploded", "infinite"])
@pytest.mark.parametrize("name", LOOP_QUANTITIES)
def test_a_diverged_task_has_no_value_and_leaves_its_neighbour_alone(name, scale):
    alone, beside = points_of(MAML, regression=True), points_of(MAML, regression=True, scale=scale)
    assert beside.trajectory.diverged.tolist() == [False, True]
    expected = QUANTITIES[name].measure(alone)
    for variable, value in QUANTITIES[name].measure(beside).items():
        assert torch.allclose(value[0], expected[variable][0], rtol=1e-7, equal_nan=True)
        if not QUANTITIES[name].products:  # the study itself removes those that need products
            assert value[1].isnan().all()


@pytest.mark.parametrize("learner", OTHER_RULES, ids=lambda learner: learner.name)
@pytest.mark.parametrize("name", LOOP_QUANTITIES)
def test_learners_of_other_rules_have_a_value_or_none(name, learner):
    points = points_of(learner)
    for variable, value in measured(name, points).items():
        if name in ("shot_distances", "shot_direction"):
            assert value.isnan().all(), variable
        elif name == "adaptation":
            assert bool(value.isnan().all()) == (learner.name != "meta-sgd"), variable
        elif name in ("meta_gradient", "alpha_sweep"):
            assert bool(value.isnan().all()) == (learner.latent is not None), variable
        else:
            assert not value.isnan().all(), variable


def test_momentum_has_the_meta_gradient_of_a_plain_loop():
    points = points_of(learners.maml(STEPS, ALPHA, rule=Momentum(0.5)))
    values = measured("meta_gradient", points)
    for task in range(TASKS):
        support = points.support[0][task], points.support[1][task]
        query = points.query[0][task], points.query[1][task]

        def after(theta: Tensor, support=support, query=query) -> Tensor:
            velocity = torch.zeros_like(theta)
            for _ in range(STEPS):
                velocity = 0.5 * velocity + torch.func.grad(points.loss)(theta, support)
                theta = theta - ALPHA * velocity
            return points.loss(theta, query)

        full = torch.func.grad(after)(points.thetas[task, 0])
        first_order = torch.func.grad(points.loss)(points.thetas[task, -1], query)
        cosine = full @ first_order / (full.norm() * first_order.norm())
        assert float(values["meta_gradient_cosine"][task]) == pytest.approx(float(cosine), rel=1e-8)


def test_quantities_leave_the_points_as_they_are():
    points = points_of(MAML)
    before = points.thetas.clone(), points.meta_theta.clone(), points.trajectory_gradients.clone()
    for name in LOOP_QUANTITIES:
        QUANTITIES[name].measure(points)
    after = points.thetas, points.meta_theta, points.trajectory_gradients
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert points.meta_theta.grad is None
