"""Tests of the loss on a plane, and of directions that are scaled to the filters of the parameters."""

import torch

from hessian_tools import make_loss
from hessian_tools.curvature import filter_normalised, loss_surface
from hessian_tools.layout import flatten


def test_the_first_axis_of_a_surface_is_along_the_first_direction():
    A, theta = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double(), torch.tensor([1.0, -1.0, 2.0]).double()
    along, across = torch.eye(3).double()[0], 2 * torch.eye(3).double()[2]
    grid = torch.tensor([-1.0, 0.0, 0.5]).double()
    values = loss_surface(lambda t, batch: 0.5 * t @ batch @ t, theta, A, along, across, grid)
    points = theta + grid[:, None, None] * along + grid[:, None] * across
    torch.testing.assert_close(values, 0.5 * torch.einsum("xyi,ij,xyj->xy", points, A, points))


def test_filters_of_the_direction_get_the_norms_of_the_parameters_and_vectors_are_left_out():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Linear(2, 2)).double()
    theta, layout = flatten(model)
    direction = torch.randn(2, layout.numel, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction[1, :4] = 0.0  # the first filter of the second direction
    scaled = filter_normalised(layout, theta.expand(2, -1), direction)
    for index in range(2):
        own, given, wanted = (layout.unflatten(vector) for vector in (scaled[index], direction[index], theta))
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if len(shape) < 2:
                assert not own[name].any()
                continue
            norms, target = (tensor.flatten(1).norm(dim=1) for tensor in (own[name], wanted[name]))
            target = torch.where(given[name].flatten(1).norm(dim=1) > 0, target, 0.0)
            torch.testing.assert_close(norms, target)
            torch.testing.assert_close(
                own[name].flatten(1) * given[name].flatten(1).norm(dim=1, keepdim=True),
                given[name].flatten(1) * norms[:, None],
            )


def test_a_surface_needs_no_more_than_forward_passes():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    theta, layout = flatten(model)
    loss = make_loss(model, torch.nn.functional.cross_entropy, layout)
    batch = (torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0]))
    values = loss_surface(loss, theta.requires_grad_(), batch, theta.detach(), -theta.detach(), torch.zeros(1))
    assert not values.requires_grad
    torch.testing.assert_close(values[0, 0], loss(theta, batch).detach())
