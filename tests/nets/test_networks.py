"""The networks have the initial parameters on which studies depend, and the documented shapes, sizes and heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hessian_tools import flatten, make_loss, seeded
from hessian_tools.nets import MLP, NORMALISATIONS, Conv4, ResNet12, VisionTransformer
from hessian_tools.rng import stream_seed


def conv4_by_hand() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (1, 16, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, track_running_stats=False)]
    return nn.Sequential(*layers, nn.Linear(16, 5))


# For each network, a function that builds it, and one whose layers draw the same initial parameters in the same order.
# The results of a study depend on every bit of them.
BY_HAND = {
    "conv4": (lambda: Conv4(5, width=16), conv4_by_hand),
    "conv4 plain": (
        lambda: Conv4(5, width=8, normalisation="none"),
        lambda: nn.Sequential(*[nn.Conv2d(i, 8, 3) for i in (1, 8, 8, 8)], nn.Linear(8, 5)),
    ),
    "mlp": (
        lambda: MLP((1, 40, 40, 1)),
        lambda: nn.Sequential(nn.Linear(1, 40), nn.Linear(40, 40), nn.Linear(40, 1)),
    ),
}
SMALL = {
    "conv4": lambda: Conv4(3, width=4, input_shape=(2, 20, 16)),
    "resnet12": lambda: ResNet12(3, widths=(2, 2, 3, 4), input_shape=(2, 20, 16)),
    "mlp": lambda: MLP((640, 5, 3)),
    "vision transformer": lambda: VisionTransformer(3, patch=4, width=4, depth=1, heads=2, input_shape=(2, 20, 16)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_initial_parameters_have_not_changed_by_a_bit(name):
    build, by_hand = BY_HAND[name]
    for seed in (0, 1):
        words = stream_seed(seed, "initial parameters")[:7]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(words, "little"))
            expected = flatten(by_hand())[0]
        state = torch.get_rng_state()
        assert flatten(seeded(build, seed=seed))[0].equal(expected)
        assert torch.get_rng_state().equal(state)


def test_the_convolutions_of_resnet12_are_drawn_kaiming_normal_with_fan_out():
    """The 3x3 convolutions have variance 2 / ((1 + 0.1^2) 9 outputs); the normalisation begins as the identity."""
    model = seeded(lambda: ResNet12(3, widths=(96, 32, 64, 64), input_shape=(3, 16, 16)), seed=0)
    weight = model.body[1].path[0].weight.detach()  # the std of these 27 648 numbers has a standard error of 0.4 %
    assert weight.std() == pytest.approx((2 / (1.01 * 9 * 32)) ** 0.5, rel=0.02)
    assert model.body[1].shortcut[0].weight.detach().std() == pytest.approx((2 / (1.01 * 32)) ** 0.5, rel=0.05)
    assert model.body[1].path[1].weight.eq(1).all()


@pytest.mark.parametrize("name", SMALL)
def test_outputs_head_and_body_of_every_network(name):
    model = seeded(SMALL[name], seed=0)
    layout = flatten(model)[1]
    x = torch.rand(5, 2, 20, 16, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (5, 3)
    assert layout.under("head") == ("head.weight", "head.bias")
    assert set(layout.under("body")) | {"head.weight", "head.bias"} == set(layout.names)
    assert layout.head == "head"
    loss, batch = make_loss(model, nn.functional.cross_entropy, layout), (x, torch.tensor([0, 1, 2, 0, 1]))
    loss.refuse_hidden_state(layout.flatten(model.state_dict()), batch)
    assert seeded(SMALL[name], seed=0)(x).equal(model(x))


def test_the_head_can_be_chosen():
    model = SMALL["resnet12"]()
    layout = flatten(model, head="body.3")[1]
    assert layout.under("head") == tuple(name for name in layout.names if name.startswith("body.3."))
    assert "head.weight" in layout.under("body")
    assert not set(layout.under("body")) & set(layout.under("head"))
    assert replace(layout, head="head").under("head") == ("head.weight", "head.bias")
    assert flatten(model, where=["body"], head="body.3")[1].under("body")[0] == "body.0.path.0.weight"
    with pytest.raises(ValueError, match="head='classifier' holds no parameter"):
        flatten(model, head="classifier")


def numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_numbers_of_parameters_agree_with_a_count_by_hand():
    """A convolution has 9 * in * out weights. Its normalisation has 2 * out; without one, it has a bias of out."""
    for width in (32, 64, 128):
        plain = 9 * width + 3 * 9 * width**2 + 5 * width + 5
        for normalisation in NORMALISATIONS:
            extra = 4 * width if normalisation == "none" else 8 * width
            assert numel(Conv4(5, width=width, normalisation=normalisation)) == plain + extra
    sizes = [(3, 64), (64, 128), (128, 256), (256, 512)]
    paths = sum(9 * (i * o + 2 * o * o) + 6 * o for i, o in sizes)
    shortcuts = [i * o + 2 * o for i, o in sizes]
    assert numel(ResNet12(5)) == paths + sum(shortcuts) + 512 * 5 + 5 == 7_999_365
    assert numel(ResNet12(5, residual=(True, True, False, False))) == 7_999_365 - sum(shortcuts[2:])
    assert numel(ResNet12(5, widths=(64, 160, 320, 640))) == 12_427_525


def test_without_a_shortcut_a_block_is_its_path():
    model = seeded(lambda: ResNet12(3, widths=(2, 2, 2, 2), residual=(True, True, True, False)), seed=3)
    x = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    last, third = model.body[3], model.body[2]
    assert last(x).equal(last.out(last.path(x)))
    assert third(x).equal(third.out(third.path(x) + third.shortcut(x)))
    assert not third(x).equal(third.out(third.path(x)))


def test_group_normalisation_does_not_mix_the_images_of_a_batch():
    """Batch statistics mix the images of a batch; group normalisation does not."""
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for normalisation, alone in (("group", True), ("batch", False), ("none", True)):
        build = lambda n=normalisation: Conv4(3, width=4, input_shape=(1, 16, 16), normalisation=n, groups=2)  # noqa: E731
        model = seeded(build, seed=0).double()
        assert torch.allclose(model(x)[:2], model(x[:2]), rtol=1e-12) == alone


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Conv4(3, normalisation="layer"), "normalisation='layer' is not one of batch, group, none"),
        (lambda: Conv4(3, width=12, normalisation="group"), "groups=8 does not divide 12 channels"),
        (lambda: ResNet12(3, normalisation="group", groups=0), "groups=0 must be at least 1"),
        (
            lambda: Conv4(3, input_shape=(1, 28, 15)),
            "images of 28x15 are too small for four poolings; use at least 16x16",
        ),
        (lambda: ResNet12(3, input_shape=(3, 8, 84)), "images of 8x84 are too small for four poolings"),
        (lambda: ResNet12(3, widths=(1, 2, 3)), "need four entries each, one for each block"),
        (lambda: ResNet12(3, residual=(True,) * 5), "need four entries each, one for each block"),
        (lambda: VisionTransformer(3, patch=5), "patch=5 does not divide images of 28x28"),
        (lambda: VisionTransformer(3, heads=5), "heads=5 does not divide width=64"),
        (lambda: MLP([3]), "needs at least two entries, the number of inputs"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
