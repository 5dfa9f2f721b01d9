"""On randomly generated networks, the products of every engine agree with the dense Hessian, in float64.

The dense Hessian is computed row by row, by a reverse pass through the gradient.
"""

import pytest
import torch
from cases import dense_hessian, seeded, squared_error
from contract import close
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hessian_tools.curvature import hessian
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss
from hessian_tools.rng import stream

pytestmark = pytest.mark.heavy

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.ELU]
POINTS = 2


def norms(width: int, images: bool) -> list[object]:
    """Builders of normalisation layers. images: True for [channel, height, width], False for vectors."""
    batch = nn.BatchNorm2d if images else nn.BatchNorm1d
    return [
        lambda: nn.Identity(),
        lambda: batch(width, track_running_stats=False),
        lambda: batch(width, track_running_stats=False, affine=False, eps=0.1),
        lambda: nn.GroupNorm(2, width),
        lambda: nn.Identity() if images else nn.LayerNorm(width),
    ]


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], int]:
    """A random network of up to three blocks, the shape of one input, and the number of outputs."""
    outputs = draw(st.integers(2, 3))
    activation = draw(st.sampled_from(ACTIVATIONS))
    builders: list[object] = []
    if draw(st.booleans()):
        channels, size = draw(st.integers(1, 2)), draw(st.integers(4, 6))
        shape: tuple[int, ...] = (channels, size, size)
        for _ in range(draw(st.integers(1, 2))):
            kernel, stride, pad = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
            if size + 2 * pad < kernel:
                kernel = 1
            bias = draw(st.booleans())
            builders.append(lambda c=channels, k=kernel, s=stride, p=pad, b=bias: nn.Conv2d(c, 2, k, s, p, bias=b))
            builders += [draw(st.sampled_from(norms(2, images=True))), activation]
            channels, size = 2, (size + 2 * pad - kernel) // stride + 1
        if size >= 2:
            pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
            builders.append(lambda p=pool: p(2))
            size //= 2
        width = channels * size * size
        builders.append(nn.Flatten)
    else:
        width = draw(st.integers(1, 4))
        shape = (width,)
        for _ in range(draw(st.integers(0, 2))):
            builders.append(lambda w=width: nn.Linear(w, 4))
            builders += [draw(st.sampled_from(norms(4, images=False))), activation]
            width = 4
    builders.append(lambda w=width: nn.Linear(w, outputs))
    return seeded(lambda: nn.Sequential(*(build() for build in builders))).double(), shape, outputs


CRITERIA = {
    "squared": lambda out, y: squared_error(out, torch.eye(out.shape[-1], dtype=out.dtype)[y]),
    "cross-entropy": F.cross_entropy,
    "smoothed": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.2),
    "logistic": lambda out, y: F.softplus(-out[torch.arange(len(y)), y]).mean(),
}


# Hypothesis only generates examples (Phase.generate). It does not look for a simpler one that fails too (Phase.shrink),
# because each example takes a second.
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(network=networks(), criterion=st.sampled_from(sorted(CRITERIA)), examples=st.integers(2, 4))
def test_every_route_on_a_random_network(network, criterion: str, examples: int) -> None:
    model, shape, outputs = network
    theta, layout = flatten(model)
    g = stream(0, "nobody", criterion, examples)  # "nobody" is an arbitrary name, under which nothing else is drawn
    thetas = theta + 0.3 * torch.randn(POINTS, len(theta), generator=g, dtype=torch.float64)
    x = torch.randn(POINTS, examples, *shape, generator=g, dtype=torch.float64)
    y = torch.randint(0, outputs, (POINTS, examples), generator=g)
    loss = make_loss(model, CRITERIA[criterion], layout)
    V = torch.randn(POINTS, len(theta), 2, generator=g, dtype=torch.float64)
    expected = torch.stack([dense_hessian(loss, thetas[i], (x[i], y[i])) @ V[i] for i in range(POINTS)])
    for options in ({"route": "direct"}, {"route": "kept"}, {"route": "traced"}, {"route": "traced", "max_memory": 1}):
        H = hessian(loss, thetas, (x, y), **options)
        close(H @ V, expected)
        assert H.route == options["route"]
        close(hessian(loss, thetas[1], (x[1], y[1]), **options) @ V[1], expected[1])
