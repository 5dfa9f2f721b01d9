"""The numbers of a recorded trajectory are compared with values computed anew at its points."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hessian_tools import Conv4, HiddenStateError, SaveAt, adapt, flatten, learners, make_loss, record, seeded, stream
from hessian_tools.trajectory import stack

LEARNER = learners.maml(3, 0.1)


def setting():
    model = seeded(lambda: Conv4(3, width=4, input_shape=(1, 16, 16)), seed=1).double()
    theta, layout = flatten(model)
    x = torch.rand(12, 1, 16, 16, generator=stream(0, "x"), dtype=torch.float64)
    y = torch.arange(3).repeat(4)
    return make_loss(model, F.cross_entropy, layout), theta, (x[:3], y[:3]), (x[3:], y[3:])


def test_the_numbers_of_a_trajectory_are_those_of_its_points():
    loss, theta, support, query = setting()
    t = record(LEARNER, loss, theta, support, query, save=SaveAt(thetas=True, gradients=True))
    assert t.steps == 3
    assert t.thetas is not None
    assert t.gradients is not None
    assert torch.equal(t.thetas[0], theta)
    assert torch.allclose(t.thetas[-1], adapt(LEARNER, loss, theta, support), rtol=1e-13)
    for k, point in enumerate(t.thetas):
        u = point.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(u, support), u)
        assert torch.allclose(t.gradients[k], g, rtol=1e-10, atol=1e-13)
        assert torch.allclose(t.support_loss[k], loss(point, support), rtol=1e-13)
        assert torch.allclose(t.query_loss[k], loss(point, query), rtol=1e-13)
        assert torch.allclose(t.grad_norm[k], g.norm(), rtol=1e-10)
        assert torch.allclose(t.theta_norm[k], point.norm(), rtol=1e-13)
        assert torch.allclose(t.displacement[k], (point - theta).norm(), rtol=1e-12)
        for (x, y), recorded in ((support, t.support_accuracy[k]), (query, t.query_accuracy[k])):
            right = (loss.outputs(point, x).argmax(-1) == y).double().mean()
            assert recorded == right
    assert torch.allclose(t.gram, t.gradients[:-1] @ t.gradients[:-1].T, rtol=1e-12)
    # The Gram matrix determines the displacement, because theta_K - theta_0 = -alpha sum g.
    assert torch.allclose(t.displacement[-1], 0.1 * t.gram.sum().sqrt(), rtol=1e-10)


def test_vectors_are_kept_only_on_request_and_inputs_are_left_alone():
    loss, theta, support, query = setting()
    before = theta.clone()
    state = torch.get_rng_state()
    t = record(LEARNER, loss, theta, support, query)
    assert t.thetas is None
    assert t.gradients is None
    assert torch.equal(theta, before)
    assert not theta.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert not t.support_loss.requires_grad


def test_stacked_trajectories_say_which_of_them_diverged():
    loss, theta, support, query = setting()
    good = record(LEARNER, loss, theta, support, query)
    bad = record(learners.maml(3, 1e200), loss, theta, support, query)
    both = stack([good, bad])
    assert both.support_loss.shape == (2, 4)
    assert both.diverged.tolist() == [False, True]
    assert both.query_accuracy[1].isnan().any()  # where an output is NaN, there is no largest one


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.BatchNorm1d(4), "module '1' (BatchNorm1d)"), (nn.Dropout(0.5), "module '1' (Dropout)")]
)
def test_hidden_state_is_refused_by_name(layer, name):
    model = nn.Sequential(nn.Linear(3, 4), layer)
    theta, layout = flatten(model)
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    loss = make_loss(model, F.cross_entropy, layout)
    batch = (torch.randn(4, 3, generator=stream(0)), torch.arange(4))
    state = torch.get_rng_state()
    with pytest.raises(HiddenStateError) as error:
        record(LEARNER, loss, theta, batch, batch)
    assert str(error.value).startswith(name)
    assert all(torch.equal(buffers[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    model.eval()
    record(LEARNER, make_loss(model, F.cross_entropy, layout), theta, batch, batch)


def test_an_inner_loop_whose_loss_explodes_has_diverged():
    loss, theta, support, query = setting()
    learning, exploding = (record(replace(LEARNER, step_size=a), loss, theta, support, query) for a in (0.1, 1e6))
    assert torch.isfinite(exploding.support_loss).all()
    assert exploding.support_loss.max() > 1000 * exploding.support_loss[0]
    assert stack([learning, exploding]).diverged.tolist() == [False, True]
    # A loop that begins at a loss of nearly 0 may rise far above it without having left the range of ordinary losses.
    rising = replace(learning, support_loss=torch.tensor([1e-6, 1.0, 900.0, 2.0], dtype=torch.float64))
    assert not rising.diverged
    assert replace(rising, query_loss=torch.tensor([1.5, 1.0, 1600.0, 2.0], dtype=torch.float64)).diverged
