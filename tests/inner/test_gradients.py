"""The gradient of one inner step, by autograd and by torch.func, and the graph that it has (float64)."""

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
    return X * (1 + theta[:16])  # a factor per column, because a common one would vanish in the normalisation


def squared_gradient(theta: Tensor) -> Tensor:
    return (support_gradient(LOSS, theta, (inputs_made_from(theta), Y)).vector ** 2).sum()


def test_what_was_made_from_theta_is_a_constant_to_the_inner_loop_and_none_to_the_outer():
    point = THETA.clone().requires_grad_()
    inner_gradient = support_gradient(LOSS, point, (inputs_made_from(point), Y)).vector
    given = support_gradient(LOSS, point, (inputs_made_from(point).detach(), Y)).vector
    torch.testing.assert_close(inner_gradient, given)
    (outer,) = torch.autograd.grad(squared_gradient(point), point)
    torch.testing.assert_close(outer, torch.func.grad(squared_gradient)(THETA))  # which takes the other branch
    (without,) = torch.autograd.grad((given**2).sum(), point)
    assert (outer - without).norm() > 1e-3 * outer.norm()


@pytest.mark.parametrize("first_order", [False, True])
def test_first_order_keeps_no_graph_of_the_inner_gradients(first_order):
    point = THETA.clone().requires_grad_()
    path = learner_path(learners.maml(3, 0.05, first_order=first_order), LOSS, point, (X, Y))
    assert [g.vector.requires_grad for g in path.gradients] == [not first_order] * 3
    assert path.adapted.requires_grad
