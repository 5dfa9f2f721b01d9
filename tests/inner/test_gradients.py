"""The gradient of one inner step by autograd and by torch.func, and its dependence on theta (float64)."""

import pytest
import torch
from plain_learners import episode, network
from torch import Tensor

from hessian_tools import learners
from hessian_tools.inner.adapt import learner_path
from hessian_tools.inner.gradients import support_gradient

LOSS, THETA, _ = network()
X, Y = episode()[0]


def inputs_made_from(theta: Tensor) -> Tensor:
    return X * (1 + theta[:16])  # one factor for each column: a common factor would be undone by the normalisation


def squared_gradient(theta: Tensor) -> Tensor:
    return (support_gradient(LOSS, theta, (inputs_made_from(theta), Y)).vector ** 2).sum()


def test_inputs_made_from_theta_are_constants_to_the_inner_derivative_but_not_to_the_outer_one():
    point = THETA.clone().requires_grad_()
    inner_gradient = support_gradient(LOSS, point, (inputs_made_from(point), Y)).vector
    gradient_at_constant_inputs = support_gradient(LOSS, point, (inputs_made_from(point).detach(), Y)).vector
    torch.testing.assert_close(inner_gradient, gradient_at_constant_inputs)
    (outer,) = torch.autograd.grad(squared_gradient(point), point)
    # Inside torch.func, support_gradient runs another branch of its code.
    torch.testing.assert_close(outer, torch.func.grad(squared_gradient)(THETA))
    (without_inputs,) = torch.autograd.grad((gradient_at_constant_inputs**2).sum(), point)
    assert (outer - without_inputs).norm() > 1e-3 * outer.norm()


@pytest.mark.parametrize("first_order", [False, True])
def test_first_order_keeps_no_graph_of_the_inner_gradients(first_order):
    point = THETA.clone().requires_grad_()
    path = learner_path(learners.maml(3, 0.05, first_order=first_order), LOSS, point, (X, Y))
    assert [g.vector.requires_grad for g in path.gradients] == [not first_order] * 3
    assert path.adapted.requires_grad
