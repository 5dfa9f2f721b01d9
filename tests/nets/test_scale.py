"""``normalised_weights`` is tested by rescaling every filter that it names, and every filter that it does not name."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools import flatten, make_loss, seeded, stream
from hessian_tools.nets import MLP, Conv4, ResNet12, VisionTransformer, normalised_weights

IMAGE = (1, 16, 16)


def conv4(**options):
    return Conv4(3, width=4, input_shape=IMAGE, **options)


def resnet12(**options):
    return ResNet12(3, widths=(2, 2, 4, 4), input_shape=IMAGE, **options)


class Wired(nn.Module):
    """Convolutions that are followed by a normalisation in the forward pass, but not in the order of the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, track_running_stats=False) for _ in range(3))
        self.seen, self.also_seen, self.twice = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.seen(x)).tanh()
        y = self.also_seen(x)
        x = self.norms[1](y) + y  # the convolution's output also bypasses the normalisation
        x = self.norms[2](self.twice(self.norms[1](self.twice(x)).tanh())).tanh()
        return self.head(x.mean((-2, -1)))


class Branching(nn.Module):
    """A network that torch.fx cannot trace, because it branches on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if x.sum() > 1e9 else x + 1).mean((-2, -1))


class Tied(nn.Module):
    """One weight in two convolutions, of which only the last one is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.second(x)
        return (self.norm(self.first(x)) + seen).mean((-2, -1))[:, :3]


class Reused(nn.Module):
    """A convolution whose weight is also used by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)).mean((-2, -1))


def classifier(*layers: nn.Module) -> nn.Module:
    """The layers, followed by an activation and a linear layer with three outputs."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def change_affine_parameters(norm: nn.Module) -> nn.Module:
    """Move the affine parameters away from the identity."""
    with torch.no_grad():
        for p in norm.parameters():
            p += torch.linspace(0.1, 0.5, len(p))
    return norm


# For each network, a function that builds it, and the weights that ``normalised_weights`` must name.
NAMED = {
    "conv4 batch": (conv4, [f"body.{i}.0.weight" for i in range(4)]),
    "conv4 none": (lambda: conv4(normalisation="none"), []),
    "conv4 group": (lambda: conv4(normalisation="group", groups=2), []),
    "conv4 layer": (lambda: conv4(normalisation="group", groups=1), []),
    "conv4 instance": (lambda: conv4(normalisation="group", groups=4), [f"body.{i}.0.weight" for i in range(4)]),
    "resnet12": (
        lambda: resnet12(residual=(True, True, True, False)),
        [f"body.{i}.{c}.weight" for i in range(4) for c in ("path.0", "path.3", "path.6", "shortcut.0")][:-1],
    ),
    # Two groups hold one channel each in the blocks of two channels, but two channels each in the later blocks.
    "resnet12 group": (lambda: resnet12(normalisation="group", groups=2), [
        f"body.{i}.{c}.weight" for i in range(2) for c in ("path.0", "path.3", "path.6", "shortcut.0")
    ]),
    "mlp": (lambda: MLP((256, 4, 3)), []),
    "vision transformer": (lambda: VisionTransformer(3, patch=8, width=4, depth=1, heads=2, input_shape=IMAGE), []),
    "wired": (Wired, ["seen.weight", "twice.weight"]),
    "branching": (Branching, ["body.0.weight"]),
    "tied": (Tied, []),
    "reused": (Reused, []),
    "tracking": (lambda: classifier(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), ["0.weight"]),
    "tracked, eval mode": (lambda: classifier(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval(), []),
    "instance": (lambda: classifier(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)).eval(), ["0.weight"]),
    "instance, tracked, eval mode": (
        lambda: classifier(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)).eval(), []
    ),
    "transposed": (
        lambda: classifier(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.ConvTranspose2d(2, 4, 3), nn.InstanceNorm2d(4)), []
    ),
    "linear": (
        lambda: classifier(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4, track_running_stats=False)), ["1.weight"]
    ),
    "linear, layer norm": (lambda: classifier(nn.Flatten(), nn.Linear(256, 4), nn.LayerNorm(4)), []),
    "activation between": (
        lambda: classifier(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.BatchNorm2d(4, track_running_stats=False)), []
    ),
}  # fmt: skip


def setting(name: str):
    build, expected = NAMED[name]
    model = seeded(build, seed=0)
    x = torch.randn(6, *IMAGE, generator=stream(0, "images"), dtype=torch.float64)
    training = model.training
    with torch.no_grad():
        model.eval()(x[:2].float())  # lazy layers get their shapes; nothing is tracked
    for module in model.train(training).modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
            module.eps = 1e-14
            change_affine_parameters(module)
    return model.double(), expected, (x, torch.arange(6) % 3)


@pytest.mark.parametrize("name", NAMED)
def test_the_named_weights_are_those_whose_single_filters_can_be_rescaled(name):
    """Scaling any filter of a named weight by 3 leaves the loss; every other weight has a filter that changes it."""
    model, expected, batch = setting(name)
    assert list(normalised_weights(model)) == expected
    theta, layout = flatten(model)
    loss = make_loss(model, F.cross_entropy, layout)
    before = loss(theta, batch)
    for weight in (n for n, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) > 1):
        changes = []
        for i in range(layout.unflatten(theta)[weight].shape[0]):
            rescaled = theta.clone()
            layout.unflatten(rescaled)[weight][i] *= 3
            changes.append(abs(float(loss(rescaled, batch) - before)))
        assert (max(changes) < 1e-9) == (weight in expected), (weight, changes)


def test_normalised_weights_changes_nothing_in_the_network():
    """No buffer changes, no random number is drawn, no activation is kept, and no attribute is a traced value."""

    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x + torch.rand(1))
            self.count.add_(1)
            return self.kept

    model = Keeping(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model.register_buffer("count", torch.zeros(()))
    state, buffers = torch.get_rng_state(), {name: b.clone() for name, b in model.named_buffers()}
    assert normalised_weights(model) == ("0.weight",)
    assert torch.get_rng_state().equal(state)
    assert all(b.equal(buffers[name]) for name, b in model.named_buffers())
    assert "kept" not in vars(model)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
