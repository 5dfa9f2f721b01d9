"""Meta-gradients against formulas that are written out plainly (float64)."""

from dataclasses import replace

import pytest
import torch
from plain_learners import ALPHA, CASES, STEPS, episode, network, plain_meta_gradient
from torch import Tensor, nn

from hessian_tools import Shot, adapt, flatten, learners, make_loss, meta_loss, stream
from hessian_tools.inner.adapt import learner_path, meta_gradient
from hessian_tools.inner.features import nearest_class_mean
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.inner.shot import squared_error

MAML = learners.maml(STEPS, ALPHA)
FOMAML = learners.maml(STEPS, ALPHA, first_order=True)
SHOTS = [
    None,
    Shot(weight=0.7),
    Shot(weight=0.7, distance="kl_target_reference"),
    Shot(weight=0.7, detach_reference=False),
    Shot(weight=0.7, target_steps=2),
    Shot(weight=0.7, reference_steps=6),
    Shot(weight=0.7, target_steps=3, reference_steps=6, detach_reference=False),
    Shot(weight=0.7, distance="js"),
    Shot(weight=0.7, distance="cross_entropy", detach_reference=False),
    Shot(weight=0.7, distance="l2_parameters", detach_reference=False),
]
FEWER_SHOTS = [SHOTS[i] for i in (0, 1, 6, 9)]  # for the learners that share SHOT's code with MAML


def initial_meta_parameters(learner: Learner, layout, theta: Tensor) -> Tensor:
    """The learner's first meta-parameters, whose step sizes, if they are learned, are made to differ."""
    meta = meta_parameters(learner, layout, theta)
    meta[layout.numel :] *= 1 + 0.5 * torch.rand(len(meta) - layout.numel, generator=stream(2), dtype=torch.float64)
    return meta.clone().requires_grad_()


@pytest.mark.parametrize(
    ("name", "shot"),
    [(name, shot) for name in CASES for shot in (SHOTS if name in ("maml", "fomaml") else FEWER_SHOTS)],
    ids=lambda v: v if isinstance(v, str) else "plain" if v is None else f"{v.distance}-T{v.target_steps}",
)
def test_meta_gradient_equals_the_plain_formula(name, shot):
    loss, theta, layout = network()
    support, query = episode()
    meta = initial_meta_parameters(CASES[name].learner, layout, theta)
    value, _ = meta_loss(CASES[name].learner, loss, meta, support, query, shot=shot)
    (gradient,) = torch.autograd.grad(value, meta)
    plain, expected = plain_meta_gradient(CASES[name], meta, layout, support, query, shot)
    assert abs(value.item() - plain.item()) < 1e-12
    assert (gradient - expected).norm() < 1e-10 * expected.norm()


def test_the_options_of_shot_change_the_meta_gradient():
    # Otherwise the comparison above could pass although both sides ignore the options.
    loss, theta, _ = network()
    support, query = episode()
    gradients = []
    for shot in SHOTS:
        t = theta.clone().requires_grad_()
        gradients.append(torch.autograd.grad(meta_loss(MAML, loss, t, support, query, shot=shot)[0], t)[0])
    distances = torch.cdist(torch.stack(gradients), torch.stack(gradients))
    off_diagonal = distances + torch.eye(len(SHOTS), dtype=torch.float64)
    assert off_diagonal.min() > 1e-6


def linear_regression():
    g = stream(3, "linear")
    model = nn.Linear(4, 1, bias=False).double()
    theta, layout = flatten(model)
    theta = torch.randn(len(theta), generator=g, dtype=torch.float64)
    x, y = torch.randn(6, 4, generator=g, dtype=torch.float64), torch.randn(6, 1, generator=g, dtype=torch.float64)
    xq, yq = torch.randn(5, 4, generator=g, dtype=torch.float64), torch.randn(5, 1, generator=g, dtype=torch.float64)
    return make_loss(model, squared_error, layout), theta, (x, y), (xq, yq)


def test_maml_with_shot_on_a_quadratic_in_closed_form():
    # L = |X theta - y|^2 / n has the Hessian H = 2 X'X / n, and every inner step is affine:
    # d theta_K / d theta_0 = (I - alpha H)^K for the reference, and I - K alpha H for the target's one step.
    loss, theta, (x, y), (xq, yq) = linear_regression()
    hessian, eye = 2 * x.T @ x / len(x), torch.eye(4, dtype=torch.float64)
    jacobian = torch.linalg.matrix_power(eye - ALPHA * hessian, STEPS)
    optimum = torch.linalg.solve(hessian, 2 * x.T @ y / len(x)).squeeze(-1)
    adapted = optimum + jacobian @ (theta - optimum)
    jump = eye - STEPS * ALPHA * hessian
    target = optimum + jump @ (theta - optimum)
    query_gradient = jacobian @ (2 * xq.T @ (xq @ adapted - yq.squeeze(-1)) / len(xq))
    shot_gradient = jump @ (2 * xq.T @ (xq @ (target - adapted)) / len(xq))

    t = theta.clone().requires_grad_()
    value, aux = meta_loss(MAML, loss, t, (x, y), (xq, yq), shot=Shot(weight=0.3, distance="squared_error"))
    (gradient,) = torch.autograd.grad(value, t)
    assert torch.allclose(gradient, query_gradient + 0.3 * shot_gradient, rtol=1e-12, atol=1e-12)
    assert torch.allclose(adapt(MAML, loss, theta, (x, y)), adapted, rtol=1e-12, atol=1e-12)
    assert torch.allclose(aux.shot_distance, ((xq @ (target - adapted)) ** 2).mean(), rtol=1e-12)
    assert aux.query_accuracy.isnan()


def test_first_order_is_the_query_gradient_at_the_adapted_point():
    loss, theta, support, (xq, yq) = linear_regression()
    adapted = adapt(FOMAML, loss, theta, support)
    t = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(meta_loss(FOMAML, loss, t, support, (xq, yq))[0], t)
    assert torch.allclose(gradient, 2 * xq.T @ (xq @ adapted - yq.squeeze(-1)) / len(xq), rtol=1e-12)


def test_unusable_settings_are_refused():
    with pytest.raises(ValueError, match="reference_steps=1 must exceed target_steps=1"):
        Shot(reference_steps=1)
    with pytest.raises(ValueError, match="distance='kl' is not one of"):
        Shot(distance="kl")
    with pytest.raises(ValueError, match="a learner of 1 inner steps cannot be the reference"):
        loss, theta, _ = network()
        meta_loss(learners.maml(1, 0.1), loss, theta, *episode(), shot=Shot())
    with pytest.raises(ValueError, match="steps=0"):
        learners.maml(0, 0.1)
    with pytest.raises(ValueError, match="step_size=-1.0"):
        learners.maml(1, -1.0)


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta-sgd", "momentum"])
def test_the_meta_gradient_of_the_query_loss_alone_is_that_of_the_meta_loss(name):
    loss, theta, layout = network()
    support, query = episode()
    for full in (True, False):
        learner = replace(CASES[name].learner, first_order=not full)
        meta = initial_meta_parameters(learner, layout, theta)
        (expected,) = torch.autograd.grad(meta_loss(learner, loss, meta, support, query)[0], meta)
        # The learner's own setting does not matter.
        gradient = meta_gradient(CASES[name].learner, loss, meta, support, query, full=full)
        assert torch.equal(gradient, expected)


def test_a_step_factor_multiplies_every_step_size():
    loss, theta, layout = network()
    support, _ = episode()
    expected = learner_path(learners.maml(STEPS, 3 * ALPHA), loss, theta, support).adapted
    for learner in (MAML, learners.meta_sgd(STEPS, ALPHA), learners.meta_sgd(STEPS, ALPHA, logarithmic=True)):
        meta = meta_parameters(learner, layout, theta)
        torch.testing.assert_close(learner_path(learner, loss, meta, support, step_factor=3).adapted, expected)


def test_the_nearest_class_mean_keeps_labels_that_are_no_range():
    inputs, labels = torch.tensor([[0.0, 1], [2, 1], [8, 0]]), torch.tensor([7, 7, 3])
    assert nearest_class_mean(inputs, labels, torch.tensor([[1.0, 1], [4, 1], [6, 0]])).tolist() == [7, 7, 3]
