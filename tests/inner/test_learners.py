"""The parameters that each learner moves, and its meta-gradient against formulas and finite differences (float64)."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from plain_learners import episode, network, plain_forward
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools import (
    MLP,
    SaveAt,
    Shot,
    adapt,
    flatten,
    gradient,
    hessian,
    learners,
    make_loss,
    meta_loss,
    record,
    seeded,
    stream,
)
from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.descent import row_parts
from hessian_tools.inner.learners import ALGORITHMS, Latent, Learner
from hessian_tools.inner.meta_loss import joined
from hessian_tools.inner.parameters import meta_parameters, network_parameters, num_moved
from hessian_tools.inner.shot import squared_error
from hessian_tools.inner.steps import Momentum, Preconditioned

DTYPE = torch.float64


def randn(*shape: int, stream_name: str) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "learners", stream_name), dtype=DTYPE)


def smooth_setting(criterion=squared_error):
    model = seeded(lambda: MLP((2, 5, 1), activation=nn.Tanh), seed=0).double()
    theta, layout = flatten(model)
    support, query = ((randn(6, 2, stream_name=f"{p}x"), randn(6, 1, stream_name=f"{p}y")) for p in "sq")
    return make_loss(model, criterion, layout), theta, support, query


def meta_gradient(learner: Learner, loss, theta: Tensor, support, query, shot: Shot | None = None) -> Tensor:
    point = theta.clone().requires_grad_()
    return torch.autograd.grad(meta_loss(learner, loss, point, support, query, shot=shot)[0], point)[0]


@pytest.mark.parametrize("shot", [None, Shot(weight=0.3, distance="squared_error")], ids=["plain", "shot"])
@pytest.mark.parametrize(
    "learner",
    [
        learners.maml(3, 0.1),
        learners.anil(3, 0.1, head=("weight",)),
        learners.meta_sgd(3, 0.1),
        learners.maml(3, 0.1, rule=Momentum(0.5)),
    ],
    ids=lambda v: v.name + v.rule.__class__.__name__,
)
def test_first_order_equals_second_order_where_the_loss_is_linear(learner, shot):
    # (outputs * y).mean() of a linear layer is linear in its parameters, so there is no Hessian to leave out.
    theta, layout = flatten(nn.Linear(2, 1).double())
    loss = make_loss(nn.Linear(2, 1), lambda out, y: (out * y).mean(), layout)
    _, _, support, query = smooth_setting()
    meta = meta_parameters(learner, layout, theta.double())
    full = meta_gradient(learner, loss, meta, support, query, shot)
    first = meta_gradient(replace(learner, first_order=True), loss, meta, support, query, shot)
    assert torch.allclose(full, first, rtol=1e-13, atol=1e-14)
    assert full.norm() > 1e-3


def test_first_order_differs_where_there_is_a_hessian():
    loss, theta, support, query = smooth_setting()
    for learner in (learners.maml(2, 0.1), learners.anil(2, 0.1), learners.boil(2, 0.1)):
        full = meta_gradient(learner, loss, theta, support, query)
        first = meta_gradient(replace(learner, first_order=True), loss, theta, support, query)
        assert (full - first).norm() > 1e-3 * full.norm()


@pytest.mark.parametrize(
    ("learner", "moved"),
    [
        (learners.anil(2, 0.1), "head."),
        (learners.boil(2, 0.1), "body."),
        (learners.anil(2, 0.1, head=("body.2",)), "body.2."),
    ],
    ids=["anil", "boil", "overridden"],
)
def test_the_inner_loop_moves_only_the_parameters_that_the_learner_names(learner, moved):
    loss, theta, layout = network()
    theta = theta + 0.1 * randn(
        len(theta), stream_name="elsewhere"
    )  # so that theta differs from the model's parameters
    support, query = episode()
    t = record(learner, loss, theta, support, query, save=SaveAt(thetas=True, gradients=True))
    for k in (1, 2):
        for name, change in layout.unflatten(t.thetas[k] - theta).items():
            assert bool(change.any()) == name.startswith(moved), name
    for name, g in layout.unflatten(t.gradients[2]).items():
        assert bool(g.any()) == name.startswith(moved), name
    # At the moved entries, the recorded gradient is that of the loss.
    full, recorded = gradient(loss, t.thetas[1], support), t.gradients[1]
    assert torch.allclose(full[recorded != 0], recorded[recorded != 0], rtol=1e-10)
    assert torch.allclose(t.displacement[-1], 0.1 * t.gram.sum().sqrt(), rtol=1e-10)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("shot", [None, Shot(weight=0.5, distance="squared_error", detach_reference=False)])
def test_step_gradients_of_meta_sgd_against_finite_differences(logarithmic, shot):
    loss, theta, support, query = smooth_setting()
    learner = learners.meta_sgd(3, 0.1, logarithmic=logarithmic)
    meta = meta_parameters(learner, loss.layout, theta)
    derivative = meta_gradient(learner, loss, meta, support, query, shot)
    for i in (0, 7, len(theta), len(theta) + 3, len(meta) - 1):
        nudge = torch.zeros_like(meta)
        nudge[i] = 1e-5
        up, down = (meta_loss(learner, loss, meta + s * nudge, support, query, shot=shot)[0] for s in (1, -1))
        assert abs((up - down) / 2e-5 - derivative[i]) < 1e-8
    assert derivative[len(theta) :].abs().min() > 0


def test_meta_sgd_begins_as_maml():
    loss, theta, support, _ = smooth_setting()
    meta_sgd = learners.meta_sgd(3, 0.1)
    for learner in (meta_sgd, replace(meta_sgd, step_sizes="learned_log")):
        meta = meta_parameters(learner, loss.layout, theta)
        assert len(meta) == 2 * len(theta)
        assert torch.equal(network_parameters(loss, meta), theta)
        adapted = adapt(learner, loss, meta, support)
        assert torch.allclose(adapted, adapt(learners.maml(3, 0.1), loss, theta, support), rtol=1e-13)
        assert record(learner, loss, meta, support, support).theta_norm.shape == (4,)
    head = replace(meta_sgd, moves=("head",))
    assert len(meta_parameters(head, loss.layout, theta)) == len(theta) + 6


@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_meta_gradient_of_reptile_has_the_expansion_of_its_paper(minibatches):
    # Nichol et al. 2018: sum_k g_k = sum_k gbar_k - alpha sum_k H_k sum_{j<k} gbar_j + O(alpha^2). Here g_k is the
    # gradient of minibatch k at theta_k, and gbar_k and H_k are its gradient and Hessian at theta_0.
    loss, theta, support, query = smooth_setting()
    parts = [row_parts(joined(support, query), minibatches)[k % minibatches] for k in range(3)]
    g = [gradient(loss, theta, part) for part in parts]
    H = [hessian(loss, theta, part) for part in parts]
    leading = sum(g)
    first_order_term = sum(H[k].mv(g[j]) for k in range(3) for j in range(k))

    def remainder(alpha: float) -> float:
        learner = learners.reptile(3, alpha, minibatches=minibatches)
        meta_derivative = meta_gradient(learner, loss, theta, support, query)
        return float((meta_derivative / alpha - leading + alpha * first_order_term).norm())

    errors = [remainder(a) for a in (4e-3, 2e-3, 1e-3)]
    assert first_order_term.norm() > 0.1
    assert all(3.8 < a / b < 4.2 for a, b in pairwise(errors))  # half of alpha gives a quarter of the remainder


def test_the_meta_gradient_of_reptile_is_the_displacement_on_support_and_query_set_together():
    loss, theta, support, query = smooth_setting()
    point = theta
    for _ in range(3):
        point = point - 0.1 * gradient(loss, point, joined(support, query))
    reptile = learners.reptile(3, 0.1)
    assert torch.allclose(meta_gradient(reptile, loss, theta, support, query), theta - point, rtol=1e-12)
    # With SHOT, the first-order gradient of the target's query loss is added.
    shot = Shot(weight=0.5, distance="squared_error")
    target = theta - 0.3 * gradient(loss, theta, joined(support, query))
    t = target.clone().requires_grad_()
    distance = squared_error(loss.outputs(t, query[0]), loss.outputs(point, query[0]))
    expected = theta - point + 0.5 * torch.autograd.grad(distance, t)[0]
    assert torch.allclose(meta_gradient(reptile, loss, theta, support, query, shot), expected, rtol=1e-10)


def test_supervised_training_descends_cross_entropy_under_a_head_of_its_own():
    loss, theta, layout = network()
    (x, _), (xq, _) = episode()
    images, labels = torch.cat([x, xq]), torch.arange(12) % 7
    meta = torch.cat([theta, 0.1 * randn(7 * 4 + 7, stream_name="classes")])
    learner = learners.supervised(3, 0.1)
    derivative = meta_gradient(learner, loss, meta, (x, labels[:3]), (xq, labels[3:]))

    leaf = meta.clone().requires_grad_()
    p = dict(layout.unflatten(leaf[: len(theta)]))
    p |= {"head.weight": leaf[len(theta) : -7].view(7, 4), "head.bias": leaf[-7:]}
    (expected,) = torch.autograd.grad(F.cross_entropy(plain_forward(p, images), labels), leaf)
    assert (derivative - expected).norm() < 1e-10 * expected.norm()
    assert not derivative[layout.indices("head")].any()  # the head of a new task is never trained
    # On a new task the network alone is used.
    adapted = adapt(learner, loss, meta, episode()[0])
    assert torch.equal(adapted, adapt(learners.maml(3, 0.1), loss, theta, episode()[0]))


def test_another_number_of_steps_on_a_new_task():
    loss, theta, support, _ = smooth_setting()
    learner = learners.maml(2, 0.1, evaluation_steps=5)
    assert len(learner_path(learner, loss, theta, support).gradients) == 2
    assert torch.equal(
        adapt(learner.evaluating(), loss, theta, support), adapt(learners.maml(5, 0.1), loss, theta, support)
    )
    assert learners.maml(2, 0.1).evaluating() == learners.maml(2, 0.1)


def test_maml_on_a_plain_function():
    theta = randn(3, stream_name="plain")
    adapted = adapt(learners.maml(2, 0.1), lambda t, b: ((t - b) ** 2).sum() / 2, theta, torch.ones(3, dtype=DTYPE))
    assert torch.allclose(adapted, 1 + 0.9**2 * (theta - 1), rtol=1e-14)


def test_a_preconditioned_step_is_finite_where_the_gradient_is_zero():
    # A dead unit's gradient is exactly 0, and there the root of the mean square has no derivative.
    model = MLP((2, 5, 1)).double()
    theta, layout = flatten(model)
    theta = torch.where(torch.arange(len(theta)) < 10, -theta.abs(), theta)
    loss = make_loss(model, squared_error, layout)
    batch = (randn(4, 2, stream_name="positive").abs(), randn(4, 1, stream_name="y"))
    learner = learners.maml(2, 0.01, rule=Preconditioned())
    assert (gradient(loss, theta, batch) == 0).any()
    assert torch.isfinite(meta_gradient(learner, loss, theta, batch, batch)).all()


def test_learners_that_cannot_be_used_are_refused():
    loss, theta, support, query = smooth_setting()
    with pytest.raises(ValueError, match="no parameter under 'tail'"):
        adapt(learners.anil(1, 0.1, head=("tail",)), loss, theta, support)
    with pytest.raises(ValueError, match="needs 21 step sizes after the network's 21"):
        adapt(learners.meta_sgd(1, 0.1), loss, theta, support)
    with pytest.raises(ValueError, match=r"anil moves named parameters \(head\), which a plain function does not have"):
        adapt(learners.anil(1, 0.1), lambda t, _: (t**2).sum(), theta, support)
    with pytest.raises(ValueError, match="outer='best' is not one of query"):
        Learner("mine", 1, 0.1, outer="best")
    with pytest.raises(ValueError, match="receive no gradient under outer='displacement'"):
        Learner("mine", 1, 0.1, outer="displacement", step_sizes="learned")
    with pytest.raises(ValueError, match="minibatches=2 needs outer='displacement'; use 1"):
        Learner("mine", 1, 0.1, minibatches=2)
    with pytest.raises(ValueError, match="evaluation_steps=0"):
        learners.maml(1, 0.1, evaluation_steps=0)
    with pytest.raises(ValueError, match="minibatches=13 of 12 examples"):
        meta_loss(learners.reptile(1, 0.1, minibatches=13), loss, theta, support, query)
    with pytest.raises(ValueError, match="must see the same data"):
        meta_loss(learners.reptile(3, 0.1, minibatches=3), loss, theta, support, query, shot=Shot())
    with pytest.raises(ValueError, match="no inner loop in training for SHOT"):
        meta_loss(learners.supervised(3, 0.1), loss, theta, support, query, shot=Shot())
    with pytest.raises(ValueError, match="decay=1.0 of momentum"):
        Momentum(1.0)


def test_the_settings_of_every_algorithm_and_the_learners_that_it_makes():
    settings = {name: algorithm.learner_settings for name, algorithm in ALGORITHMS.items()}
    loop = ("moves", "rule", "evaluation_steps")
    assert settings == {
        "maml": ("first_order", *loop),
        "anil": ("first_order", *loop),
        "boil": ("first_order", *loop),
        "meta-sgd": ("first_order", "logarithmic", *loop),
        "reptile": ("minibatches", *loop),
        "leo": ("first_order", "latent"),
        "supervised": loop,
        "untrained": loop,
    }
    run = ("start", "optimiser", "learning_rate", "shuffle_labels")
    assert [algorithm.training_settings for algorithm in ALGORITHMS.values()] == [
        *[("shot", "pretraining", "penalty", *run)] * 3,
        ("shot", "pretraining", *run),
        ("shot", *run),
        ("shot", *run),
        run,
        (),
    ]
    made = {name: algorithm.learner(1, 0.1) for name, algorithm in ALGORITHMS.items()}
    assert [name for name, learner in made.items() if learner.needs_classes] == ["leo", "supervised"]
    assert [name for name, algorithm in ALGORITHMS.items() if not algorithm.is_trained] == ["untrained"]
    meta_sgd = ALGORITHMS["meta-sgd"].learner(3, 0.1, logarithmic=True, moves=("head",), rule=None)
    assert meta_sgd == replace(learners.meta_sgd(3, 0.1, logarithmic=True), moves=("head",))
    with pytest.raises(ValueError, match="minibatches is not a setting of MAML; it has first_order, moves"):
        ALGORITHMS["maml"].learner(3, 0.1, minibatches=2)


def test_a_learner_says_why_it_has_no_alpha_and_how_many_parameters_it_moves():
    layout = flatten(MLP((2, 5, 1)))[1]
    expected = [
        (learners.maml(1, 0.1), None, 21),
        (learners.anil(1, 0.1), None, 6),
        (learners.maml(1, 0.1, rule=Momentum()), "its steps follow the momentum rule", 21),
        (learners.meta_sgd(1, 0.1), "each parameter has a step size of its own", 21),
        (learners.leo(latent=Latent(2)), "its steps are on codes", 5),
    ]
    for learner, reason, moved in expected:
        assert (learner.why_no_alpha, num_moved(learner, layout)) == (reason, moved)
