"""SHOT's distances, its schedules and the effect of its gradient (float64)."""

import math

import pytest
import torch
from plain_learners import episode, network
from torch import nn
from torch.nn import functional as F

from hessian_tools import Shot, adapt, flatten, learners, make_loss, meta_loss, stream
from hessian_tools.inner.shot import (
    DISTANCES,
    cross_entropy,
    jensen_shannon,
    kl,
    longer_reference,
    reference_distance,
    root_mean_square,
    squared_error,
)

P, Q = torch.randn(2, 5, 4, generator=stream(0, "logits"), dtype=torch.float64)


def test_distances_of_distributions_by_their_definitions():
    p, q = P.softmax(-1), Q.softmax(-1)
    m = (p + q) / 2
    kl_pq = (p * (p / q).log()).sum(-1).mean()
    js_pq = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
    assert torch.allclose(kl(P, Q), kl_pq, rtol=1e-12)
    assert torch.allclose(kl(P, Q), F.kl_div(q.log(), p, reduction="batchmean"), rtol=1e-12)
    assert torch.allclose(jensen_shannon(P, Q), js_pq, rtol=1e-12)
    assert torch.allclose(jensen_shannon(P, Q), jensen_shannon(Q, P), rtol=1e-12)
    assert torch.allclose(cross_entropy(P, Q), F.cross_entropy(Q, p), rtol=1e-12)
    assert torch.allclose(cross_entropy(P, Q) - kl(P, Q), -(p * p.log()).sum(-1).mean(), rtol=1e-12)
    assert torch.allclose(DISTANCES["kl_target_reference"](P, Q), kl(Q, P), rtol=1e-15)


@pytest.mark.parametrize("name", ["kl_reference_target", "js", "cross_entropy"])
def test_distances_of_distributions_that_are_far_apart_are_finite(name):
    far = torch.tensor([[0.0, 1e4]], dtype=torch.float64, requires_grad=True)
    value = DISTANCES[name](-far.detach(), far)
    (g,) = torch.autograd.grad(value, far)
    assert torch.isfinite(value)
    assert torch.isfinite(g).all()


def quadratic(curvature: float):
    """L = lambda theta^2 / 2 as a linear network on one example, whose outputs are proportional to theta."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.full((1, 1), math.sqrt(curvature / 2), dtype=torch.float64)
    return make_loss(model, squared_error, flatten(model)[1]), (x, torch.zeros(1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("detach", "time", "grows"),
    [(True, 0.5, True), (True, 3.0, False), (True, 10.0, True), (False, 0.5, False), (False, 3.0, False)],
)
@pytest.mark.parametrize("distance", ["l2_parameters", "squared_error"])
def test_a_step_on_shot_grows_or_shrinks_the_component_of_the_gradient(detach, time, grows, distance):
    # For the total time tau and time = tau lambda, the target (one step) ends at (1 - time) theta, and the reference
    # (three steps) at (1 - time / 3)^3 theta.
    loss, batch = quadratic(2.0)
    theta = torch.tensor([1.3], dtype=torch.float64)
    learner = learners.maml(3, time / 2.0 / 3)
    shot = Shot(weight=1.0, distance=distance, detach_reference=detach)
    t = theta.clone().requires_grad_()
    value, aux = meta_loss(learner, loss, t, batch, batch, shot=shot)
    (total,) = torch.autograd.grad(value, t)
    plain = theta.clone().requires_grad_()
    (without,) = torch.autograd.grad(meta_loss(learner, loss, plain, batch, batch)[0], plain)

    target, reference = 1 - time, (1 - time / 3) ** 3
    gap = (target - reference) * theta
    slope = target if detach else target - reference
    scale = torch.sign(gap) if distance == "l2_parameters" else 2 * gap  # the squared input is lambda / 2 = 1
    assert torch.allclose(total - without, slope * scale, rtol=1e-12)
    assert torch.allclose(aux.shot_distance, gap.abs() if distance == "l2_parameters" else gap**2, rtol=1e-12)
    step = -(total - without)
    assert bool(step * theta > 0) == grows


def test_a_longer_reference_keeps_the_learners_own_loop_as_target():
    loss, theta, _ = network()
    support, query = episode()
    for learner in (learners.maml(3, 0.05), learners.anil(1, 0.05), learners.boil(1, 0.05)):
        shot = longer_reference(learner, 0.2)
        assert shot.counts(learner.steps) == (learner.steps, 2 * learner.steps)
        steps, half_step_size = learner.steps, learner.step_size / 2
        t = theta.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(meta_loss(learner, loss, t, support, query, shot=shot)[0], t)
        long = {"maml": learners.maml, "anil": learners.anil, "boil": learners.boil}[learner.name](
            2 * steps, half_step_size
        )
        reference = loss.outputs(adapt(long, loss, theta, support), query[0]).detach()
        t = theta.clone().requires_grad_()
        target = loss.outputs(adapt(learner, loss, t, support), query[0])
        (expected,) = torch.autograd.grad(F.cross_entropy(target, query[1]) + 0.2 * kl(reference, target), t)
        assert torch.allclose(derivative, expected, rtol=1e-9, atol=1e-12)


def test_schedules_of_the_weight():
    linear = Shot(0.4, schedule="linear", schedule_steps=4)
    assert [linear.weight_at(t) for t in (0, 1, 4, 9)] == [0.0, 0.1, 0.4, 0.4]
    cosine = Shot(0.4, schedule="cosine", schedule_steps=4)
    assert [round(cosine.weight_at(t), 12) for t in (0, 2, 4, 9)] == [0.4, 0.2, 0.0, 0.0]
    assert Shot(0.4).weight_at(7) == 0.4
    assert linear.at(1) == Shot(0.1)


def test_the_l2_distance_of_equal_points_has_gradient_zero():
    a = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(root_mean_square(a, a.detach(), moved=3), a)
    assert torch.equal(g, torch.zeros_like(a))


def test_unusable_settings_of_shot_are_refused():
    with pytest.raises(ValueError, match="schedule='step' is not one of constant, linear, cosine"):
        Shot(schedule="step")
    with pytest.raises(ValueError, match="schedule_steps=None with schedule='linear'"):
        Shot(schedule="linear")
    with pytest.raises(ValueError, match="schedule_steps=3 with schedule='constant'"):
        Shot(schedule_steps=3)
    with pytest.raises(ValueError, match="cannot be the reference of a target of 3"):
        Shot(target_steps=None).counts(3)


def test_the_projector_acts_on_the_reference_alone():
    """The reference gives 3 and is projected to 30; the target gives 1 and is not projected."""
    shot = Shot(distance="squared_error", target_steps=1)
    distance = reference_distance(
        shot, lambda steps: torch.full((1, 1), float(steps)), steps=3, moved=1, project=lambda outputs: 10 * outputs
    )
    assert float(distance) == 29.0**2
