"""Checkpointing of the inner loop needs less memory and gives the numbers of a loop that keeps its graph (float64)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from plain_learners import CASES, episode, network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hessian_tools import MLP, Conv4, Shot, TrainConfig, flatten, learners, make_loss, meta_loss, stream
from hessian_tools.data import open_tasks
from hessian_tools.inner.descent import inner_loop
from hessian_tools.inner.gradients import recomputed_gradient, support_gradient
from hessian_tools.inner.learners import Latent
from hessian_tools.inner.leo import latent_parameters
from hessian_tools.inner.parameters import meta_parameters
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.train import task_loss
from hessian_tools.train.outer import accumulate_gradient, is_batched
from hessian_tools.train.warm_start import first_parameters

pytestmark = pytest.mark.heavy

DTYPE = torch.float64
# With "attached" the gradient goes through the reference, too. "more" is the authors' name for a reference that takes
# more steps than the learner.
SHOTS = {
    "plain": None,
    "shot": Shot(weight=0.7),
    "attached": Shot(weight=0.7, target_steps=2, reference_steps=5, detach_reference=False),
    "more": Shot(weight=0.7, target_steps=None, reference_steps=6),
    "l2": Shot(weight=0.7, distance="l2_parameters", detach_reference=False),
}
LEARNERS = {name: case.learner for name, case in CASES.items()} | {"reptile": learners.reptile(3, 0.05)}


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 0
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(
    ("name", "shot"),
    [(n, s) for n in LEARNERS for s in (SHOTS if n in ("maml", "boil") else ("plain", "attached"))],
)
def test_the_meta_gradient_is_the_same_with_checkpointing(name, shot):
    loss, theta, layout = network()
    support, query = episode()
    meta = meta_parameters(LEARNERS[name], layout, theta).clone().requires_grad_()
    kept, recomputed = (
        meta_loss(LEARNERS[name], loss, meta, support, query, shot=SHOTS[shot], checkpointing=c) for c in (False, True)
    )
    assert torch.equal(recomputed[0], kept[0])
    assert torch.equal(recomputed[1].support_loss, kept[1].support_loss)
    assert_same(*(torch.autograd.grad(value, meta)[0] for value in (recomputed[0], kept[0])))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("shot", [None, Shot(weight=0.5), Shot(weight=0.5, distance="l2_parameters")])
def test_the_meta_gradient_of_leo_is_the_same_through_body_encoder_and_decoder(shot, first_order):
    loss, theta, layout = network()
    learner = learners.leo(3, 0.4, latent=Latent(4, fine_tuning_steps=2, dropout=0.3), first_order=first_order)
    width = layout.shapes[layout.names.index("head.weight")][1]
    meta = torch.cat([theta, latent_parameters(learner, width=width, generator=stream(1, "leo")).double()])
    meta.requires_grad_()
    gradients = []
    for checkpointing in (True, False):
        value, _ = meta_loss(
            learner, loss, meta, *episode(), shot=shot, noise=stream(2, "noise"), checkpointing=checkpointing
        )
        gradients.append(torch.autograd.grad(value, meta)[0])
    assert_same(*gradients)


@pytest.mark.parametrize("pretraining", [None, ShotPretraining(hidden=5)], ids=["shot_r", "shot_p"])
def test_an_outer_step_is_the_same_with_checkpointing(pretraining):
    config = TrainConfig(
        learner=learners.maml(3, 0.05),
        tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
        network=partial(Conv4, 3, width=4),
        meta_batch=2,
        shot=Shot(weight=0.5),
        pretraining=pretraining,
    )
    loss, theta = task_loss(config)
    gradients = []
    for checkpointing in (True, False):
        meta = first_parameters(config, loss, theta.double()).requires_grad_()
        accumulate_gradient(replace(config, checkpointing=checkpointing), loss, meta, 0)
        gradients.append(meta.grad)
    assert_same(*gradients)


def smooth_setting():
    model = MLP((2, 5, 1), activation=nn.Tanh).double()
    theta, layout = flatten(model)
    x = torch.randn(12, 2, generator=stream(0, "x"), dtype=DTYPE)
    y = torch.randn(12, 1, generator=stream(0, "y"), dtype=DTYPE)
    loss = make_loss(model, lambda a, b: ((a - b) ** 2).mean(), layout)
    return loss, theta, (x[:6], y[:6]), (x[6:], y[6:])


@pytest.mark.parametrize("shot", [None, Shot(weight=0.5, distance="squared_error", detach_reference=False)])
def test_a_checkpointed_meta_gradient_can_be_differentiated_again(shot):
    # A product with the Hessian of the meta-loss is compared, and so is the gradient of that product.
    loss, theta, support, query = smooth_setting()
    vector = torch.randn(len(theta), generator=stream(0, "v"), dtype=DTYPE)
    products, gradients_of_products = [], []
    for checkpointing in (True, False):
        point = theta.clone().requires_grad_()
        value, _ = meta_loss(learners.maml(3, 0.1), loss, point, support, query, shot=shot, checkpointing=checkpointing)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        (product,) = torch.autograd.grad(gradient @ vector, point, create_graph=True)
        products.append(product)
        gradients_of_products.append(torch.autograd.grad(product @ vector, point)[0])
    assert_same(*products)
    assert_same(*gradients_of_products)


def test_a_plain_function_on_a_batch_that_depends_on_theta():
    # The support inputs are made from theta itself, and the path through them must be counted once.
    def plain(theta: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return torch.cosh(batch["x"] @ theta - batch["y"]).mean()

    start = torch.randn(3, generator=stream(0, "plain"), dtype=DTYPE)
    rows = torch.randn(4, 3, generator=stream(0, "rows"), dtype=DTYPE)
    gradients = []
    for checkpointing in (True, False):
        theta, targets = start.clone().requires_grad_(), torch.ones(4, dtype=DTYPE, requires_grad=True)
        batch = {"x": rows * theta**2, "y": targets}
        path = inner_loop(plain, theta, batch, steps=3, step_size=0.05, checkpointing=checkpointing)
        value = (path.adapted**3).sum() + path.gradients[1].loss
        first = torch.cat(torch.autograd.grad(value, (theta, targets), create_graph=True))
        gradients.append(torch.stack([first, torch.cat(torch.autograd.grad((first**2).sum(), (theta, targets)))]))
    assert_same(*gradients)


def test_loss_and_outputs_of_a_step_are_differentiable():
    loss, theta, support, _ = smooth_setting()
    gradients = []
    for gradient_at in (recomputed_gradient, support_gradient):
        point = theta.clone().requires_grad_()
        gradient = gradient_at(loss, point, support)
        gradients.append(torch.autograd.grad(gradient.loss + (gradient.outputs**3).sum(), point)[0])
    assert_same(*gradients)


def peak_bytes(work: Callable[[], object]) -> int:
    """The largest number of bytes of tensors alive at once in ``work``, counted by allocations."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("name", "shot", "vectors"),
    [("maml", "plain", 1), ("maml", "shot", 1), ("anil", "plain", 1), ("boil", "plain", 2), ("meta-sgd", "shot", 2)],
)
def test_memory_grows_by_one_or_two_vectors_per_inner_step(name, shot, vectors):
    loss, theta, layout = network(width=8)
    support, query = episode(shots=5)
    vector = theta.numel() * theta.element_size()

    def growth(checkpointing: bool) -> float:
        def peak_of(steps: int) -> int:
            learner = replace(LEARNERS[name], steps=steps)
            point = meta_parameters(learner, layout, theta).clone().requires_grad_()
            options = {"shot": SHOTS[shot], "checkpointing": checkpointing}
            return peak_bytes(lambda: meta_loss(learner, loss, point, support, query, **options)[0].backward())

        return (peak_of(10) - peak_of(2)) / 8

    assert growth(True) <= (vectors + 0.15) * vector
    assert growth(False) > 20 * vector


def test_checkpointing_costs_two_more_passes_per_step_and_nothing_in_first_order():
    loss, theta, _ = network()
    support, query = episode()

    def flops(steps: int, checkpointing: bool, first_order: bool, shot: Shot | None = None) -> int:
        point = theta.clone().requires_grad_()
        learner = learners.maml(steps, 0.05, first_order=first_order)
        with FlopCounterMode(display=False) as counter:
            meta_loss(learner, loss, point, support, query, shot=shot, checkpointing=checkpointing)[0].backward()
        return counter.get_total_flops()

    per_step = flops(3, False, True) - flops(2, False, True)  # the cost of the two passes of one step
    assert flops(3, True, False) - flops(3, False, False) == 3 * per_step > 0
    assert flops(3, True, True) == flops(3, False, True)
    # SHOT's target still shares the first gradient, so it costs as much as without checkpointing.
    assert flops(3, True, False, Shot()) - flops(3, True, False) == flops(3, False, False, Shot()) - flops(
        3, False, False
    )


def test_unsupported_uses_of_checkpointing_are_refused():
    loss, theta, support, query = smooth_setting()
    learned = torch.ones(1, dtype=DTYPE, requires_grad=True)
    hidden = lambda t, b: (t**2).sum() * learned.sum()  # noqa: E731
    with pytest.raises(ValueError, match="in neither theta nor the batch"):
        recomputed_gradient(hidden, theta, support)
    with torch.no_grad():
        assert_same(recomputed_gradient(lambda t, b: (t**2).sum(), theta, support).vector, 2 * theta)
    objective = lambda t: meta_loss(learners.maml(2, 0.1), loss, t, support, query, checkpointing=True)[0]  # noqa: E731
    with pytest.raises(ValueError, match="not inside torch.func"):
        torch.func.grad(objective)(theta)
    config = TrainConfig(learners.maml(2, 0.1), open_tasks("sine-line"), partial(MLP, (1, 4, 1)), checkpointing=True)
    assert not is_batched(config, config.network())
    with pytest.raises(ValueError, match="batched=True keeps the activations of all tasks"):
        replace(config, batched=True)


def test_integer_labels_and_none_in_the_batch_are_not_differentiated():
    def plain(theta: Tensor, batch: tuple[Tensor, Tensor, None]) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(x @ theta.view(2, 3), y)

    x = torch.randn(5, 2, generator=stream(0, "labels"), dtype=DTYPE)
    gradients = []
    for checkpointing in (True, False):
        theta = torch.linspace(-1, 1, 6, dtype=DTYPE).requires_grad_()
        batch = (x, torch.arange(5) % 3, None)
        end = inner_loop(plain, theta, batch, steps=2, step_size=0.5, checkpointing=checkpointing).adapted
        gradients.append(torch.autograd.grad((end**2).sum(), theta)[0])
    assert_same(*gradients)
