"""The curvature penalty against a plainly written version and finite differences, in float64."""

from dataclasses import replace

import pytest
import torch
from plain_learners import ALPHA, CASES, STEPS, episode, network, plain_forward
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.nn import functional as F

from hessian_tools import MLP, Shot, flatten, learners, make_loss, meta_loss, stream
from hessian_tools.inner.descent import inner_loop
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.penalty import CurvaturePenalty, mean_relative_change
from hessian_tools.inner.shot import squared_error
from hessian_tools.inner.steps import Momentum
from hessian_tools.loss import Loss

PENALTY = CurvaturePenalty(0.7)
NAMES = ("maml", "fomaml", "anil", "fo-anil", "boil")


def plain_objective(name: str, layout, theta: Tensor, support, query, weight: float) -> tuple[Tensor, Tensor]:
    """The query loss plus weight x the mean of alpha |Hg| / |g|, and this mean.

    The products are taken by forward mode over reverse mode, which the library does not do, and the network normalises
    as ``plain_forward`` has it written out.
    """
    case = CASES[name]
    moved = torch.cat(
        [torch.full(s, case.moves(n)).flatten() for n, s in zip(layout.names, layout.shapes, strict=True)]
    )

    def loss(vector: Tensor, batch) -> Tensor:
        return F.cross_entropy(plain_forward(layout.unflatten(vector), batch[0]), batch[1])

    def gradient(vector: Tensor) -> Tensor:
        return grad(loss)(vector, support) * moved

    point, ratios = theta, []
    for _ in range(case.learner.steps):
        direction = gradient(point)
        product = jvp(gradient, (point,), (direction,))[1]
        ratios.append((product**2).sum().sqrt() / (direction**2).sum().sqrt())
        point = point - case.learner.step_size * (direction.detach() if case.learner.first_order else direction)
    mean = case.learner.step_size * sum(ratios) / len(ratios)
    return loss(point, query) + weight * mean, mean


def gradient_of_meta_loss(learner, loss: Loss, theta: Tensor, batches, **options) -> tuple[Tensor, Tensor, Tensor]:
    """The meta-loss, its gradient, and the mean that is penalised."""
    t = theta.clone().requires_grad_()
    value, aux = meta_loss(learner, loss, t, *batches, **options)
    return value.detach(), torch.autograd.grad(value, t)[0], aux.relative_change


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_and_its_gradient_equal_the_plain_formula_on_a_conv4_with_batch_normalisation(name):
    loss, theta, layout = network()
    batches = episode()
    value, gradient, mean = gradient_of_meta_loss(CASES[name].learner, loss, theta, batches, penalty=PENALTY)
    t = theta.clone().requires_grad_()
    expected, expected_mean = plain_objective(name, layout, t, *batches, PENALTY.weight)
    (expected_gradient,) = torch.autograd.grad(expected, t)
    assert abs(value - expected) < 1e-12
    assert abs(mean - expected_mean) < 1e-12
    assert (gradient - expected_gradient).norm() < 1e-10 * expected_gradient.norm()
    _, unpenalised, none = gradient_of_meta_loss(CASES[name].learner, loss, theta, batches)
    assert (gradient - unpenalised).norm() > 1e-2 * gradient.norm()
    assert none.isnan()


def test_torchs_own_batch_normalisation_would_make_the_gradient_wrong(monkeypatch):
    """Makes the likely mistake on purpose, so that the comparison above is known to see it."""
    loss, theta, _ = network()
    _, right, _ = gradient_of_meta_loss(CASES["maml"].learner, loss, theta, episode(), penalty=PENALTY)
    monkeypatch.setattr(Loss, "thrice_differentiable", property(lambda self: self))
    _, wrong, _ = gradient_of_meta_loss(CASES["maml"].learner, loss, theta, episode(), penalty=PENALTY)
    assert (wrong - right).norm() > 1e-4 * right.norm()


def test_the_gradient_is_that_of_finite_differences_of_the_value():
    loss, theta, _ = network()
    batches = episode()

    def value(vector: Tensor) -> Tensor:
        return meta_loss(CASES["maml"].learner, loss, vector, *batches, penalty=PENALTY)[0]

    _, gradient, _ = gradient_of_meta_loss(CASES["maml"].learner, loss, theta, batches, penalty=PENALTY)
    direction = torch.randn(len(theta), generator=stream(0, "direction"), dtype=torch.float64)
    direction, h = direction / direction.norm(), 1e-5
    slope = (value(theta + h * direction) - value(theta - h * direction)) / (2 * h)
    assert abs(slope - gradient @ direction) < 1e-6 * abs(slope)


@pytest.mark.parametrize("name", ["maml", "fo-anil"])
def test_checkpointing_and_transforms_give_the_same_gradient(name):
    loss, theta, _ = network()
    batches, learner = episode(), CASES[name].learner
    shot = Shot(weight=0.3, reference_steps=6)
    value, gradient, _ = gradient_of_meta_loss(learner, loss, theta, batches, penalty=PENALTY, shot=shot)
    again = gradient_of_meta_loss(learner, loss, theta, batches, penalty=PENALTY, shot=shot, checkpointing=True)
    assert abs(again[0] - value) < 1e-12
    assert (again[1] - gradient).norm() < 1e-12 * gradient.norm()
    transformed = grad(lambda t: meta_loss(learner, loss, t, *batches, penalty=PENALTY, shot=shot)[0])(theta)
    assert (transformed - gradient).norm() < 1e-12 * gradient.norm()
    with torch.no_grad():
        assert abs(meta_loss(learner, loss, theta, *batches, penalty=PENALTY, shot=shot)[0] - value) < 1e-12


def test_a_penalty_of_weight_zero_leaves_the_gradient_as_it_is():
    loss, theta, _ = network()
    for name in NAMES:
        _, plain, _ = gradient_of_meta_loss(CASES[name].learner, loss, theta, episode())
        _, zero, mean = gradient_of_meta_loss(
            CASES[name].learner, loss, theta, episode(), penalty=CurvaturePenalty(0.0)
        )
        assert (zero - plain).norm() < 1e-11 * plain.norm()
        assert mean > 0


def test_on_a_quadratic_the_mean_is_known():
    # L = |X theta - y|^2 / n has the Hessian H = 2 X'X / n. With X'X / n = c I the ratio |Hg| / |g| is 2 c.
    model = nn.Linear(3, 1, bias=False).double()
    theta, layout = flatten(model)
    support = (2.0 * torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    loss = make_loss(model, squared_error, layout)
    path = inner_loop(loss, theta, support, steps=4, step_size=0.1, products=True)
    assert abs(mean_relative_change(path, 0.1) - 0.1 * 2 * 4 / 3) < 1e-12
    with pytest.raises(ValueError, match="make it with products=True"):
        mean_relative_change(inner_loop(loss, theta, support, steps=1, step_size=0.1), 0.1)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_gradient_of_zero_counts_as_no_curvature(first_order):
    model = MLP((2, 4, 1), activation=nn.Tanh).double()
    theta, layout = flatten(model)
    loss = make_loss(model, squared_error, layout)
    x = torch.randn(5, 2, generator=stream(0, "x"), dtype=torch.float64)
    fitted = (x, loss.outputs(theta, x).detach())
    learner = learners.maml(2, 0.1, first_order=first_order)
    query = (x, torch.ones(5, 1, dtype=torch.float64))
    _, gradient, mean = gradient_of_meta_loss(learner, loss, theta, (fitted, query), penalty=PENALTY)
    _, plain, _ = gradient_of_meta_loss(learner, loss, theta, (fitted, query))
    assert mean == 0
    assert torch.equal(gradient, plain)
    assert not grad(lambda t: meta_loss(learner, loss, t, fitted, query, penalty=PENALTY)[0])(theta).isnan().any()


def test_a_gradient_that_is_not_a_number_is_not_hidden():
    loss, theta, _ = network()
    _, _, mean = gradient_of_meta_loss(learners.maml(2, 1e200), loss, theta, episode(), penalty=PENALTY)
    assert mean.isnan()


def test_learners_that_the_penalty_does_not_fit_are_refused_in_one_line():
    loss, theta, _ = network()
    for learner, said in (
        (learners.leo(2, 0.5, latent=Latent(4)), "which leo does not take: its steps are on codes; use penalty=None"),
        (learners.meta_sgd(STEPS, ALPHA), "meta-sgd does not take: each parameter has a step size of its own"),
        (learners.maml(STEPS, ALPHA, rule=Momentum()), "maml does not take: its steps follow the momentum rule"),
        (learners.reptile(STEPS, ALPHA, minibatches=2), "query loss after the inner loop, which reptile does not"),
        (learners.supervised(STEPS, ALPHA), "which supervised does not descend in training; use penalty=None"),
        (learners.untrained(STEPS, ALPHA), "which untrained does not descend in training"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            meta_loss(learner, loss, theta, *episode(), penalty=PENALTY)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="weight=nan must be a finite number"):
        replace(PENALTY, weight=float("nan"))
