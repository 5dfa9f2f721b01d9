"""Tests of ``make_loss``: the loss is a pure function of one flat vector, and computes in the dtype of that vector."""

import gc
import weakref

import pytest
import torch
from torch import nn

from hessian_tools import HiddenStateError, flatten, hessian, make_loss, random_states, stream
from hessian_tools.random_states import torch_states


def network(*, eval_mode: bool):
    """A network whose batch normalisation has running statistics, which only its evaluation mode uses."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_var.fill_(2.0)
    return model.eval() if eval_mode else model


def batch():
    return torch.randn(6, 3, generator=stream(0, "x"), dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])


def test_a_graph_is_freed_with_its_loss_and_does_not_wait_for_the_garbage_collector():
    held = []

    def criterion(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        held.append(weakref.ref(outputs))
        return nn.functional.cross_entropy(outputs, y)

    model = nn.Linear(3, 2)
    theta, layout = flatten(model)
    gc.disable()
    try:
        loss = make_loss(model, criterion, layout)
        value = loss(theta.requires_grad_(), (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
        del value
        assert [outputs() for outputs in held] == [None] * len(held)
    finally:
        gc.enable()


def test_buffers_of_the_model_follow_the_dtype_of_theta():
    """Running statistics in float32 under a theta in float64 give the same numbers as a model in float64."""
    model = network(eval_mode=True)
    theta, layout = flatten(model)
    H = hessian(make_loss(model, nn.functional.cross_entropy, layout), theta.double(), batch()).to_dense()
    again = hessian(make_loss(model.double(), nn.functional.cross_entropy, layout), theta.double(), batch()).to_dense()
    assert torch.equal(H, again)
    assert model[1].running_var.eq(2.0).all()


def test_a_network_that_updates_its_buffers_is_refused_in_any_dtype_and_left_unchanged():
    for dtype in (torch.float32, torch.float64):
        model = network(eval_mode=False)
        theta, layout = flatten(model)
        with pytest.raises(HiddenStateError, match="module '1' .BatchNorm1d. moves its buffers"):
            hessian(make_loss(model, nn.functional.cross_entropy, layout), theta.to(dtype), batch())
        assert model[1].num_batches_tracked == 0
        assert model[1].running_var.eq(2.0).all()


class DrawingNetwork(nn.Module):
    """A network whose forward pass calls a function, which may draw random numbers."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.linear, self.draw = nn.Linear(3, 2), draw

    def forward(self, x):
        self.draw()
        return self.linear(x)


def test_random_numbers_drawn_on_a_cuda_device_are_noticed(monkeypatch):
    """The device is simulated: the state of its generator is a number that the forward pass changes."""
    state = torch.zeros(1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state.clone())
    monkeypatch.setattr(random_states, "torch_states", lambda device: torch_states(torch.device("cuda")))
    theta, layout = flatten(DrawingNetwork(lambda: state))
    hessian(make_loss(DrawingNetwork(lambda: state), nn.functional.cross_entropy, layout), theta, batch())
    with pytest.raises(HiddenStateError, match="draws random numbers"):
        hessian(make_loss(DrawingNetwork(lambda: state.add_(1)), nn.functional.cross_entropy, layout), theta, batch())
    assert len(torch_states(torch.device("cpu"))) == 1


@pytest.mark.slow
def test_a_network_may_return_its_outputs_in_any_container():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x):
            noise = torch.rand(()) if self.training else 0
            return {"a": self.a(x) + noise, "b": (self.b(x).tanh(),)}

    def criterion(out, y):
        return nn.functional.cross_entropy(out["a"] * out["b"][0], y)

    model = Heads().double().eval()
    theta, layout = flatten(model)
    dense = torch.autograd.functional.hessian(lambda t: make_loss(model, criterion, layout)(t, batch()), theta)
    for route in ("direct", "kept", "traced"):
        H = hessian(make_loss(model, criterion, layout), theta, batch(), route=route)
        assert torch.allclose(H.to_dense(), dense, rtol=1e-12, atol=1e-14)
    with pytest.raises(HiddenStateError, match="draws random numbers"):
        hessian(make_loss(model.train(), criterion, layout), theta, batch())


def test_a_network_put_into_training_mode_later_is_checked_again():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)).eval()
    theta, layout = flatten(model)
    loss = make_loss(model, nn.functional.cross_entropy, layout)
    before = hessian(loss, theta, batch()).to_dense()
    model.train()
    with pytest.raises(HiddenStateError, match="module '1' .Dropout. draws random numbers"):
        hessian(loss, theta, batch())
    model.eval()
    assert torch.equal(hessian(loss, theta, batch()).to_dense(), before)


class Decaying(nn.Linear):
    """A layer that shrinks its weight in each pass, past what torch watches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        self.weight.data.mul_(0.5)
        return out


def test_a_network_that_changes_its_parameters_out_of_sight_is_refused() -> None:
    model = nn.Sequential(Decaying(3, 2))
    theta, layout = flatten(model)
    with pytest.raises(HiddenStateError, match="moves its parameters"):
        hessian(make_loss(model, nn.functional.cross_entropy, layout), theta, batch())


def test_a_network_that_changes_its_parameters_is_refused_and_theta_is_left_unchanged() -> None:
    """``max_norm`` shortens rows of the embedding in place, and this must not change the caller's theta."""
    model = nn.Sequential(nn.Embedding(4, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2))
    theta, layout = flatten(model)
    before, loss = theta.clone(), make_loss(model, nn.functional.cross_entropy, layout)
    with pytest.raises(HiddenStateError, match="moves its parameters"):
        loss.refuse_hidden_state(theta, (torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])))
    assert torch.equal(theta, before)
