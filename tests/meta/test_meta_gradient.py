"""Meta-gradients against formulas written out plainly, float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hessian_tools import Conv4, Shot, adapt, flatten, learners, make_loss, meta_loss, seeded, stream
from hessian_tools.meta.learners import Learner
from hessian_tools.meta.shot import squared_error

ALPHA, STEPS = 0.05, 3
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
]


def plain_forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
    for i in range(4):
        x = F.conv2d(x, p[f"body.{i}.0.weight"], padding=1)
        mean = x.mean((0, 2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * p[f"body.{i}.1.weight"][:, None, None] + p[f"body.{i}.1.bias"][:, None, None]
        x = F.max_pool2d(x.relu(), 2)
    return x.flatten(1) @ p["head.weight"].T + p["head.bias"]


def plain_meta_loss(p: dict[str, Tensor], support, query, learner: Learner, shot: Shot | None) -> Tensor:
    """MAML and SHOT written with nothing shared and nothing clever: every branch runs its own inner loop."""

    def run(steps: int, step_size: float) -> dict[str, Tensor]:
        q = p
        for _ in range(steps):
            loss = F.cross_entropy(plain_forward(q, support[0]), support[1])
            grads = torch.autograd.grad(loss, list(q.values()), create_graph=True)
            if learner.first_order:
                grads = [g.detach() for g in grads]
            q = {name: t - step_size * g for (name, t), g in zip(q.items(), grads, strict=True)}
        return q

    def log_p(q: dict[str, Tensor]) -> Tensor:
        return F.log_softmax(plain_forward(q, query[0]), -1)

    adapted = log_p(run(learner.steps, learner.step_size))
    total = F.nll_loss(adapted, query[1])
    if shot is None:
        return total
    time = learner.steps * learner.step_size
    count = shot.reference_steps or learner.steps
    reference, target = log_p(run(count, time / count)), log_p(run(shot.target_steps, time / shot.target_steps))
    if shot.detach_reference:
        reference = reference.detach()
    a, b = (target, reference) if shot.distance == "kl_target_reference" else (reference, target)
    return total + shot.weight * (a.exp() * (a - b)).sum(-1).mean()


def episode(shots: int = 1, queries: int = 3, ways: int = 3):
    g = stream(5, "episode")
    x = torch.rand(ways * (shots + queries), 1, 16, 16, generator=g, dtype=torch.float64)
    y = torch.arange(ways).repeat(shots + queries)
    cut = ways * shots
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def network(width: int = 4):
    model = seeded(lambda: Conv4(3, width=width, input_shape=(1, 16, 16)), seed=1).double()
    theta, layout = flatten(model)
    return make_loss(model, F.cross_entropy, layout), theta, layout


@pytest.mark.parametrize("shot", SHOTS, ids=lambda s: "none" if s is None else f"{s.distance}-T{s.target_steps}")
@pytest.mark.parametrize("learner", [MAML, FOMAML], ids=["maml", "fomaml"])
def test_meta_gradient_equals_the_plain_formula(learner, shot):
    loss, theta, layout = network()
    support, query = episode()
    theta.requires_grad_()
    value, _ = meta_loss(learner, loss, theta, support, query, shot=shot)
    (gradient,) = torch.autograd.grad(value, theta)

    p = {name: t.detach().clone().requires_grad_() for name, t in layout.unflatten(theta).items()}
    plain = plain_meta_loss(p, support, query, learner, shot)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(plain, list(p.values()))])
    assert abs(value.item() - plain.item()) < 1e-12
    assert (gradient - expected).norm() < 1e-10 * expected.norm()


def test_the_options_of_shot_change_the_meta_gradient():
    # Otherwise the comparison above could pass with options that are ignored on both sides.
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
    # L = |X theta - y|^2 / n has H = 2 X'X / n and every inner step is affine:
    # d theta_K / d theta_0 = (I - alpha H)^K, d theta_t / d theta_0 = I - K alpha H.
    loss, theta, (x, y), (xq, yq) = linear_regression()
    hessian, eye = 2 * x.T @ x / len(x), torch.eye(4, dtype=torch.float64)
    jacobian = torch.linalg.matrix_power(eye - ALPHA * hessian, STEPS)
    optimum = torch.linalg.solve(hessian, 2 * x.T @ y / len(x)).squeeze(-1)
    adapted = optimum + jacobian @ (theta - optimum)
    jump = eye - STEPS * ALPHA * hessian
    target = optimum + jump @ (theta - optimum)
    by_query = jacobian @ (2 * xq.T @ (xq @ adapted - yq.squeeze(-1)) / len(xq))
    by_shot = jump @ (2 * xq.T @ (xq @ (target - adapted)) / len(xq))

    t = theta.clone().requires_grad_()
    value, aux = meta_loss(MAML, loss, t, (x, y), (xq, yq), shot=Shot(weight=0.3, distance="squared_error"))
    (gradient,) = torch.autograd.grad(value, t)
    assert torch.allclose(gradient, by_query + 0.3 * by_shot, rtol=1e-12, atol=1e-12)
    assert torch.allclose(adapt(MAML, loss, theta, (x, y)), adapted, rtol=1e-12, atol=1e-12)
    assert torch.allclose(aux.shot_distance, ((xq @ (target - adapted)) ** 2).mean(), rtol=1e-12)
    assert aux.query_accuracy.isnan()


def test_first_order_is_the_query_gradient_at_the_adapted_point():
    loss, theta, support, (xq, yq) = linear_regression()
    adapted = adapt(FOMAML, loss, theta, support)
    t = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(meta_loss(FOMAML, loss, t, support, (xq, yq))[0], t)
    assert torch.allclose(gradient, 2 * xq.T @ (xq @ adapted - yq.squeeze(-1)) / len(xq), rtol=1e-12)


def flops(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("learner", [MAML, FOMAML], ids=["maml", "fomaml"])
def test_shot_costs_one_query_pass_and_no_support_pass(learner, shots):
    loss, theta, _ = network()
    support, query = episode(shots=shots)

    def outer(shot: Shot | None) -> int:
        t = theta.clone().requires_grad_()
        return flops(lambda: meta_loss(learner, loss, t, support, query, shot=shot)[0].backward())

    def query_pass() -> None:
        t = theta.clone().requires_grad_()
        (t * 1.0).retain_grad()
        loss(t * 1.0, query).backward()

    plain = outer(None)
    assert outer(Shot()) - plain == flops(query_pass) > 0
    # A reference of its own takes passes over the support set; so the equality above can fail.
    assert outer(Shot(reference_steps=6)) - plain > flops(query_pass)


def test_bad_settings_are_named():
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
