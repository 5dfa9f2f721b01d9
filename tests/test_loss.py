"""The waist of the library: a pure function of one flat vector, in the dtype of that vector."""

import pytest
import torch
from torch import nn

from hessian_tools import HiddenStateError, flatten, hessian, make_loss, stream


def network(*, eval_mode: bool):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_var.fill_(2.0)
    return model.eval() if eval_mode else model


def batch():
    return torch.randn(6, 3, generator=stream(0, "x"), dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])


def test_buffers_of_the_model_follow_the_dtype_of_theta():
    """Running statistics in float32 under a theta in float64: the same numbers as from a model in float64."""
    model = network(eval_mode=True)
    theta, layout = flatten(model)
    H = hessian(make_loss(model, nn.functional.cross_entropy, layout), theta.double(), batch()).to_dense()
    again = hessian(make_loss(model.double(), nn.functional.cross_entropy, layout), theta.double(), batch()).to_dense()
    assert torch.equal(H, again)
    assert model[1].running_var.eq(2.0).all()


def test_moving_buffers_are_refused_in_any_dtype_and_left_as_they_were():
    for dtype in (torch.float32, torch.float64):
        model = network(eval_mode=False)
        theta, layout = flatten(model)
        with pytest.raises(HiddenStateError, match="module '1' .BatchNorm1d. moves its buffers"):
            hessian(make_loss(model, nn.functional.cross_entropy, layout), theta.to(dtype), batch())
        assert model[1].num_batches_tracked == 0
        assert model[1].running_var.eq(2.0).all()
