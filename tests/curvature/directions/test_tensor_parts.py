"""The parts of a vector in each parameter tensor, and random rotations within them."""

import pytest
import torch
from cases import randn
from torch import Tensor

from hessian_tools.curvature import random_rotations, tensor_parts
from hessian_tools.layout import ParamLayout

LAYOUT = ParamLayout(("0.weight", "0.bias", "1.weight"), (torch.Size([2, 3]), torch.Size([2]), torch.Size([1])))
G = randn(4, 9, stream_name="g")


def pieces(v: Tensor, dim: int) -> tuple[Tensor, ...]:
    return v.split([6, 2, 1], dim=dim)


def test_parts_add_up_and_do_not_overlap() -> None:
    parts = tensor_parts(LAYOUT, G)
    assert parts.shape == (4, 9, 3)
    assert torch.equal(parts.sum(-1), G)
    assert torch.equal(parts[:, :6, 0], G[:, :6])
    assert torch.equal(parts[:, 6:8, 1], G[:, 6:8])
    assert (parts != 0).sum(-1).eq(1).all()


def test_an_entry_that_is_not_finite_stays_in_its_part() -> None:
    g = G.clone()
    g[1, 7] = torch.nan
    assert tensor_parts(LAYOUT, g).isnan().sum().item() == 1


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_rotations_keep_the_norm_of_every_tensor(size: float) -> None:
    g = (size * G).float()
    rotated = random_rotations(LAYOUT, g, 5)
    assert (rotated.shape, rotated.dtype) == ((4, 9, 5), torch.float32)
    for before, after in zip(pieces(G, -1), pieces(rotated.double() / size, -2), strict=True):
        torch.testing.assert_close(
            after.norm(dim=-2), before.norm(dim=-1, keepdim=True).expand(4, 5), rtol=1e-5, atol=0
        )


def test_points_share_their_directions_and_paths_do_not() -> None:
    rotated = random_rotations(LAYOUT, G, 3, seed=1, path=("task", 0))
    units = torch.cat([part / part.norm(dim=-2, keepdim=True) for part in pieces(rotated, -2)], -2)
    torch.testing.assert_close(units, units[:1].expand_as(units))
    more = random_rotations(LAYOUT, G, 6, seed=1, path=("task", 0))
    assert torch.equal(more[..., :3], rotated)
    for seed, path in ((2, ("task", 0)), (1, ("task", 1))):
        assert not torch.isclose(random_rotations(LAYOUT, G, 3, seed=seed, path=path)[:, :6], rotated[:, :6]).any()


def test_directions_are_uniform() -> None:
    """The mean of v is 0 and that of vv' is a multiple of the identity in each tensor, without correlation between."""
    v = random_rotations(LAYOUT, torch.ones(9, dtype=torch.float64), 4000)
    assert v.mean(-1).abs().max() < 0.07  # more than four standard errors of 1 / sqrt(4000)
    assert (v @ v.T / 4000 - torch.eye(9)).abs().max() < 0.07
