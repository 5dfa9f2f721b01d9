"""Normalisation computed from primitives has the values and the first two derivatives of torch's kernels."""

from collections.abc import Callable

import pytest
import torch
from cases import randn
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.nn import functional as F

from hessian_tools.torch_fixes.function_modes import PrimitiveNormalisation

WEIGHT, BIAS = randn(4, stream_name="weight"), randn(4, stream_name="bias")
MEAN, VAR = randn(4, stream_name="mean"), randn(4, stream_name="var") ** 2
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch": lambda x: F.batch_norm(x, None, None, WEIGHT, BIAS, training=True),
    "batch-plain": lambda x: F.batch_norm(x, None, None, training=True, eps=1e-2),
    "batch-eval": lambda x: F.batch_norm(x, MEAN, VAR, WEIGHT, BIAS),
    "torch-batch": lambda x: torch.batch_norm(x, WEIGHT, BIAS, None, None, True, 0.1, 1e-3, False),
    "instance": lambda x: F.instance_norm(x, weight=WEIGHT, bias=BIAS),
    "instance-eval": lambda x: F.instance_norm(x, MEAN, VAR, WEIGHT, BIAS, use_input_stats=False),
    "torch-instance": lambda x: torch.instance_norm(x, WEIGHT, BIAS, None, None, True, 0.1, 1e-3, False),
    "layer": lambda x: F.layer_norm(
        x, x.shape[2:], randn(*x.shape[2:], stream_name="w"), randn(*x.shape[2:], stream_name="b")
    ),
    "torch-layer": lambda x: torch.layer_norm(x, x.shape[1:], eps=1e-3),
    "group": lambda x: F.group_norm(x, 2, WEIGHT, BIAS),
    "torch-group": lambda x: torch.group_norm(x, 2, eps=1e-3),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 6)])
def test_values_and_two_derivatives_agree_with_torch(name: str, shape: tuple[int, ...]) -> None:
    norm, x, v = NORMS[name], randn(*shape, stream_name="x"), randn(*shape, stream_name="v")

    def primitive(x: Tensor) -> Tensor:
        with PrimitiveNormalisation():
            return norm(x)

    def loss(normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.sin(normalise(x)).sum()

    torch.testing.assert_close(primitive(x), norm(x))
    ours, theirs = (jvp(grad(loss(n)), (x,), (v,)) for n in (primitive, norm))
    torch.testing.assert_close(ours, theirs)


def test_modules_are_covered_and_statistics_do_not_move() -> None:
    x, layer = randn(6, 4, stream_name="x"), nn.BatchNorm1d(4, dtype=torch.float64)
    assert not torch.equal(nn.BatchNorm1d(4, dtype=torch.float64)(x), x)
    with PrimitiveNormalisation():
        inside = layer(x)
    assert layer.running_mean is not None
    assert (layer.running_mean == 0).all()
    torch.testing.assert_close(inside, layer(x))
    assert (layer.running_mean != 0).all()
