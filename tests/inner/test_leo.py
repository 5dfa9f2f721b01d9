"""LEO, whose inner loop moves one latent code per class, against its formulas written out pair by pair (float64)."""

from dataclasses import replace

import pytest
import torch
from plain_learners import episode, network, plain_forward
from torch import Tensor
from torch.nn import functional as F

from hessian_tools import (
    MLP,
    SaveAt,
    Shot,
    adapt,
    flatten,
    gradient,
    learners,
    make_loss,
    meta_loss,
    record,
    seeded,
    stream,
)
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.leo import latent_layout, latent_parameters, open_task

DTYPE = torch.float64
LATENT = Latent(
    4,
    fine_tuning_steps=2,
    fine_tuning_step_size=0.03,
    kl_weight=0.1,
    encoder_weight=0.2,
    l2_weight=0.01,
    orthogonality_weight=0.05,
)
LEO = learners.leo(3, 0.4, latent=LATENT)
NOISY = replace(LEO, latent=replace(LATENT, dropout=0.3))
L2 = Shot(weight=0.7, distance="l2_parameters")


def head_alone():
    """A network that is nothing but its head, on vectors of six numbers."""
    model = seeded(lambda: MLP((6, 3)), seed=0).double()
    theta, layout = flatten(model)
    x = torch.randn(21, 6, generator=stream(0, "leo"), dtype=DTYPE)
    y = torch.arange(21) % 3
    return make_loss(model, F.cross_entropy, layout), theta, (x[:6], y[:6]), (x[6:], y[6:])


def head_on_a_body():
    loss, theta, _ = network()
    return loss, theta, *episode(shots=2)


def initial_meta_parameters(learner, theta: Tensor, width: int) -> Tensor:
    latent = latent_parameters(learner, width=width, generator=stream(1, "leo")).double()
    return torch.cat([theta, latent]).requires_grad_()


def draws(latent: Latent, width: int, noisy: bool, examples: int):
    """The random numbers that the learner draws, in the same order: dropout, codes, weights."""
    if not noisy:
        return torch.ones(examples, width, dtype=DTYPE), torch.zeros(3, latent.size), torch.zeros(3, width)
    g = stream(9, "noise")
    mask = torch.ones(examples, width, dtype=DTYPE)
    if latent.dropout:
        mask = (torch.rand(examples, width, generator=g, dtype=DTYPE) >= latent.dropout).double() / (1 - latent.dropout)
    code_noise = torch.randn(3, latent.size, generator=g, dtype=DTYPE)
    return mask, code_noise, torch.randn(3, width, generator=g, dtype=DTYPE)


def plain_codes(embedded: list[Tensor], y: Tensor, own, *, ways: int, size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each class's code, from the pairs of an example of the class with any example.

    own: LEO's own meta-parameters by name.
    """

    def relate(a: Tensor, b: Tensor) -> Tensor:
        u = torch.cat([a, b])
        for i in range(2):
            u = torch.relu(own[f"relation.{i}"] @ u)
        return own["relation.2"] @ u

    means, stds = [], []
    for n in range(ways):
        members = [e for e, label in zip(embedded, y, strict=True) if label == n]
        pairs = torch.stack([relate(a, b) for a in members for b in embedded]).mean(0)
        means.append(pairs[:size])
        stds.append(pairs[size:].exp() / size**0.5)
    return torch.stack(means), torch.stack(stds)


def plain_penalties(latent: Latent, own, mean: Tensor, std: Tensor, moved: Tensor) -> Tensor:
    """The weighted sum of LEO's penalties; ``moved`` is the difference of the adapted codes and the first codes."""
    normal = torch.distributions.Normal(mean, std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    squares = sum((own[n] ** 2).sum() for n in own if n != "step_sizes")
    rows = own["decoder"].T
    correlation = torch.stack([torch.stack([(a @ b) / (a.norm() * b.norm()) for b in rows]) for a in rows])
    orthogonality = ((correlation - torch.eye(latent.size, dtype=DTYPE)) ** 2).sum().sqrt()
    total = latent.kl_weight * kl + latent.encoder_weight * (moved**2).sum(1).mean()
    return total + latent.l2_weight * squares + latent.orthogonality_weight * orthogonality


def plain_leo(learner, meta: Tensor, loss, support, query, shot: Shot | None, noisy: bool) -> Tensor:
    """LEO's objective by equations 1 to 7 of Rusu et al. 2019, with SHOT's distance between codes."""
    latent, layout = learner.latent, loss.layout
    net = layout.unflatten(meta[: layout.numel])

    def features(x: Tensor) -> Tensor:
        """The features of the body: the outputs of the network with the identity as its head."""
        if "body.0.0.weight" not in net:
            return x
        eye = torch.eye(net["head.weight"].shape[1], dtype=DTYPE)
        return plain_forward(net | {"head.weight": eye, "head.bias": torch.zeros(len(eye), dtype=DTYPE)}, x)

    (x, y), (xq, yq) = support, query
    support_features = features(x)
    width, h, ways = support_features.shape[1], latent.size, 3
    own = latent_layout(latent, width=width).unflatten(meta[layout.numel :])
    mask, code_noise, weight_noise = draws(latent, width, noisy, len(x))
    embedded = [own["encoder"] @ v for v in support_features * mask]

    mean, std = plain_codes(embedded, y, own, ways=ways, size=h)
    z0 = mean + std * code_noise

    def decode(z: Tensor) -> Tensor:
        both = z @ own["decoder"].T
        return both[:, :width] + both[:, width:].exp() * (2 / (width + h)) ** 0.5 * weight_noise

    def run(steps: int) -> Tensor:
        z = z0
        for _ in range(steps):
            inner = F.cross_entropy(support_features @ decode(z).T + net["head.bias"], y)
            (g,) = torch.autograd.grad(inner, z, create_graph=True)
            g = g.detach() if learner.first_order else g
            z = z - own["step_sizes"][0] * learner.steps / steps * g
        return z

    z = run(learner.steps)
    w = decode(z)
    for _ in range(latent.fine_tuning_steps):
        inner = F.cross_entropy(support_features @ w.T + net["head.bias"], y)
        (g,) = torch.autograd.grad(inner, w, create_graph=True)
        w = w - own["step_sizes"][1] * (g.detach() if learner.first_order else g)
    total = F.cross_entropy(features(xq) @ w.T + net["head.bias"], yq)

    total = total + plain_penalties(latent, own, mean, std, z.detach() - z0)
    if shot is not None:
        gap = run(shot.target_steps) - (z.detach() if shot.detach_reference else z)
        total = total + shot.weight * gap.norm() / gap.numel() ** 0.5
    return total


@pytest.mark.parametrize("shot", [None, replace(L2, target_steps=2), replace(L2, detach_reference=False)])
@pytest.mark.parametrize(
    ("learner", "noisy", "setting"),
    [
        (LEO, False, head_alone),
        (LEO, True, head_alone),
        (NOISY, True, head_alone),
        (replace(LEO, first_order=True), True, head_alone),
        (LEO, True, head_on_a_body),
    ],
    ids=["means", "draws", "dropout", "first-order", "body"],
)
def test_meta_gradient_equals_the_plain_formula(learner, noisy, setting, shot):
    loss, theta, support, query = setting()
    # The number of features: six inputs, or the four channels to which the convolutional body pools an image.
    meta = initial_meta_parameters(learner, theta, width=6 if setting is head_alone else 4)
    noise = stream(9, "noise") if noisy else None
    value, aux = meta_loss(learner, loss, meta, support, query, shot=shot, noise=noise)
    (derivative,) = torch.autograd.grad(value, meta)
    plain = plain_leo(learner, meta, loss, support, query, shot, noisy)
    (expected,) = torch.autograd.grad(plain, meta)
    assert abs(value.item() - plain.item()) < 1e-12
    assert (derivative - expected).norm() < 1e-10 * expected.norm()
    assert aux.shot_distance.isnan() == (shot is None)
    assert derivative[-2:].abs().min() > 0  # both step sizes are learned


def test_shapes_are_those_of_the_paper():
    layout = latent_layout(Latent(64), width=640)
    shapes = dict(zip(layout.names, map(tuple, layout.shapes), strict=True))
    relation = {f"relation.{i}": (128, 128) for i in range(3)}
    assert shapes == {"encoder": (64, 640), **relation, "decoder": (1280, 64), "step_sizes": (2,)}
    loss, theta, support, _ = head_alone()
    task = open_task(LEO, loss, initial_meta_parameters(LEO, theta, 6).detach(), support, None)
    assert task.mean.shape == task.std.shape == (3, 4)
    assert task.weights(task.start.flatten()).shape == (3 * 6,)


def test_the_recorded_loop_ends_at_the_adapted_network_and_only_its_head_weights_change():
    for setting, width in ((head_alone, 6), (head_on_a_body, 4)):
        loss, theta, support, query = setting()
        meta = initial_meta_parameters(LEO, theta, width).detach()
        t = record(LEO, loss, meta, support, query, save=SaveAt(thetas=True, gradients=True))
        assert t.steps == 3 + 2
        adapted = adapt(LEO, loss, meta, support)
        assert torch.allclose(t.thetas[-1], adapted, rtol=1e-12)
        assert t.support_loss[-1] < t.support_loss[0]
        changed = [n for n, c in loss.layout.unflatten(adapted - theta).items() if c.any()]
        assert changed == ["head.weight"]
        # Fine-tuning is descent on the weights along the recorded gradient.
        step = -0.03 * t.gradients[3]
        assert torch.allclose(t.thetas[4] - t.thetas[3], step, rtol=1e-6, atol=1e-9)
        weights = loss.layout.indices("head.weight")
        assert torch.allclose(t.gradients[3][weights], gradient(loss, t.thetas[3], support)[weights], rtol=1e-10)


def test_draws_follow_their_generator_and_without_one_codes_and_weights_are_the_means():
    loss, theta, support, query = head_alone()
    meta = initial_meta_parameters(NOISY, theta, 6).detach()

    def value(noise: torch.Generator | None) -> float:
        return float(meta_loss(NOISY, loss, meta, support, query, noise=noise)[0])

    assert value(stream(1)) == value(stream(1)) != value(stream(2))
    assert value(None) == value(None)
    assert torch.equal(adapt(NOISY, loss, meta, support), adapt(LEO, loss, meta, support))


def test_the_order_of_the_support_examples_does_not_matter():
    loss, theta, (x, y), _ = head_alone()
    meta = initial_meta_parameters(LEO, theta, 6).detach()
    order = torch.randperm(len(y), generator=stream(3))
    assert torch.allclose(adapt(LEO, loss, meta, (x, y)), adapt(LEO, loss, meta, (x[order], y[order])), rtol=1e-10)


def test_shot_on_outputs_compares_the_decoded_networks():
    loss, theta, support, query = head_alone()
    meta = initial_meta_parameters(LEO, theta, 6).detach()
    distance = meta_loss(LEO, loss, meta, support, query, shot=Shot())[1].shot_distance
    task = open_task(LEO, loss, meta, support, None)
    outputs = []
    for steps in (3, 1):
        weights = task.weights(task.code_path(steps=steps).adapted).view(3, 6)
        outputs.append(F.log_softmax(query[0] @ weights.T + theta[-3:], -1))
    expected = F.kl_div(outputs[1], outputs[0], log_target=True, reduction="batchmean")
    assert torch.allclose(distance, expected, rtol=1e-10)


def test_wrong_uses_of_leo_are_refused():
    loss, theta, support, _ = head_alone()
    with pytest.raises(ValueError, match="append latent_parameters"):
        adapt(LEO, loss, theta, support)
    with pytest.raises(ValueError, match="a plain function does not have; use"):
        adapt(LEO, lambda t, _: (t**2).sum(), theta, support)
    with pytest.raises(ValueError, match="a latent learner moves codes"):
        replace(LEO, moves=("head",))
    with pytest.raises(ValueError, match="dropout=1.0"):
        Latent(dropout=1.0)
