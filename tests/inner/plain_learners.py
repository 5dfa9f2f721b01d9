"""Learners and the SHOT penalty, written as plainly as possible, as references for those of the library.

SHOT penalises the distance between the results of few large inner steps (the target) and of many small ones (the
reference). Here the target, the reference and the learner each run their own inner loop and share no computation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hessian_tools import Conv4, Shot, flatten, learners, make_loss, seeded, stream
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.steps import Momentum, Preconditioned

ALPHA, STEPS = 0.05, 3
Parameters = Mapping[str, Tensor]


def any_parameter(name: str) -> bool:
    """True for every parameter: the inner loop moves all of them."""
    return True


def latest_gradient(history: list[Tensor]) -> Tensor:
    """The direction of a step of plain gradient descent."""
    return history[-1]


@dataclass(frozen=True)
class PlainLearner:
    """A learner of the library, with what the plain version needs to know of it.

    moves: whether the inner loop moves the parameter of a given name.
    step: the direction of a step, as a function of all gradients so far.
    """

    learner: Learner
    moves: Callable[[str], bool] = any_parameter
    step: Callable[[list[Tensor]], Tensor] = latest_gradient


def heavy_ball(history: list[Tensor]) -> Tensor:
    """sum_j decay^(k-j) g_j with decay = 0.8, written as a sum and not as a recursion."""
    last = len(history) - 1
    return sum(0.8 ** (last - j) * g for j, g in enumerate(history))


def root_mean_square(history: list[Tensor]) -> Tensor:
    """The last gradient over the root of the running mean of squares, with the bias of the first steps corrected."""
    n = len(history)
    weights = [0.9 ** (n - 1 - j) for j in range(n)]
    square = sum(w * g**2 for w, g in zip(weights, history, strict=True)) / sum(weights)
    return history[-1] / torch.sqrt(square + 1e-4)


MOMENTUM = learners.maml(STEPS, ALPHA, rule=Momentum(0.8))
RMS = learners.maml(STEPS, 0.01, rule=Preconditioned(0.9, epsilon=1e-4))
CASES = {
    "maml": PlainLearner(learners.maml(STEPS, ALPHA)),
    "fomaml": PlainLearner(learners.maml(STEPS, ALPHA, first_order=True)),
    "anil": PlainLearner(learners.anil(STEPS, ALPHA), lambda name: name.startswith("head.")),
    "fo-anil": PlainLearner(learners.anil(STEPS, ALPHA, first_order=True), lambda name: name.startswith("head.")),
    "boil": PlainLearner(learners.boil(STEPS, ALPHA), lambda name: name.startswith("body.")),
    "meta-sgd": PlainLearner(learners.meta_sgd(STEPS, ALPHA)),
    "meta-sgd-log": PlainLearner(learners.meta_sgd(STEPS, ALPHA, logarithmic=True)),
    "fo-meta-sgd": PlainLearner(learners.meta_sgd(STEPS, ALPHA, first_order=True)),
    "momentum": PlainLearner(MOMENTUM, step=heavy_ball),
    "rms": PlainLearner(RMS, step=root_mean_square),
}


def plain_forward(p: Parameters, x: Tensor) -> Tensor:
    """The outputs of Conv4: four blocks of convolution, batch normalisation, ReLU and max-pooling; a linear head."""
    for i in range(4):
        x = F.conv2d(x, p[f"body.{i}.0.weight"], padding=1)
        mean = x.mean((0, 2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * p[f"body.{i}.1.weight"][:, None, None] + p[f"body.{i}.1.bias"][:, None, None]
        x = F.max_pool2d(x.relu(), 2)
    return x.flatten(1) @ p["head.weight"].T + p["head.bias"]


def plain_run(
    case: PlainLearner, p: Parameters, alphas: Parameters, support, *, steps: int, scale: float
) -> Parameters:
    """The parameters after ``steps`` steps of size scale * alpha, from gradients of all parameters, moved or not.

    alphas: the step size of each parameter, by name.
    """
    q, history = dict(p), {name: [] for name in p}
    for _ in range(steps):
        loss = F.cross_entropy(plain_forward(q, support[0]), support[1])
        grads = dict(zip(q, torch.autograd.grad(loss, list(q.values()), create_graph=True), strict=True))
        for name in filter(case.moves, p):
            history[name].append(grads[name].detach() if case.learner.first_order else grads[name])
        q = {n: t - scale * alphas[n] * case.step(history[n]) if case.moves(n) else t for n, t in q.items()}
    return q


def plain_distance(shot: Shot, reference: Parameters, target: Parameters, x: Tensor, case: PlainLearner) -> Tensor:
    """SHOT's distance between two adapted networks: of their moved parameters, or of their predictions for x."""
    if shot.distance == "l2_parameters":
        names = [name for name in target if case.moves(name)]
        square = sum(((target[n] - reference[n]) ** 2).sum() for n in names)
        return (square / sum(target[n].numel() for n in names)).sqrt()
    r, t = F.log_softmax(plain_forward(reference, x), -1), F.log_softmax(plain_forward(target, x), -1)
    if shot.distance == "cross_entropy":
        return -(r.exp() * t).sum(-1).mean()
    if shot.distance == "js":
        m = ((r.exp() + t.exp()) / 2).log()
        return (0.5 * r.exp() * (r - m) + 0.5 * t.exp() * (t - m)).sum(-1).mean()
    a, b = (t, r) if shot.distance == "kl_target_reference" else (r, t)
    return (a.exp() * (a - b)).sum(-1).mean()


def plain_meta_loss(case: PlainLearner, p: Parameters, alphas: Parameters, support, query, shot: Shot | None) -> Tensor:
    """The query loss after adaptation, plus SHOT's penalty if ``shot`` is given."""
    steps = case.learner.steps
    adapted = plain_run(case, p, alphas, support, steps=steps, scale=1.0)
    total = F.nll_loss(F.log_softmax(plain_forward(adapted, query[0]), -1), query[1])
    if shot is None:
        return total

    def run_with(count: int) -> Parameters:
        # Along a constant gradient, ``count`` steps of this size cover the same distance as the learner's own steps.
        # With momentum, later steps are longer, so that the distance is not proportional to their number.
        unit = torch.ones((), dtype=torch.float64)
        momentum = case.step is heavy_ball
        length = lambda n: sum(heavy_ball([unit] * k) for k in range(1, n + 1)) if momentum else n  # noqa: E731
        return plain_run(case, p, alphas, support, steps=count, scale=float(length(steps) / length(count)))

    reference, target = run_with(shot.reference_steps or steps), run_with(shot.target_steps or steps)
    if shot.detach_reference:
        reference = {name: t.detach() for name, t in reference.items()}
    return total + shot.weight * plain_distance(shot, reference, target, query[0], case)


def plain_meta_gradient(case: PlainLearner, theta: Tensor, layout, support, query, shot) -> tuple[Tensor, Tensor]:
    """The meta-loss and its gradient with respect to the vector [network | learned step sizes]."""
    p = {name: t.detach().clone().requires_grad_() for name, t in layout.unflatten(theta[: layout.numel]).items()}
    inputs = list(p.values())
    if case.learner.learns_step_sizes:
        learned = layout.unflatten(theta[layout.numel :].detach().clone())
        learned = {name: t.clone().requires_grad_() for name, t in learned.items()}
        inputs += list(learned.values())
        alphas = {n: t.exp() if case.learner.step_sizes == "learned_log" else t for n, t in learned.items()}
    else:
        alphas = dict.fromkeys(p, case.learner.step_size)
    value = plain_meta_loss(case, p, alphas, support, query, shot)
    return value, torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, inputs)])


def episode(shots: int = 1, queries: int = 3, ways: int = 3):
    """A support set and a query set of random images."""
    g = stream(5, "episode")
    x = torch.rand(ways * (shots + queries), 1, 16, 16, generator=g, dtype=torch.float64)
    y = torch.arange(ways).repeat(shots + queries)
    cut = ways * shots
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def network(width: int = 4):
    """The loss of a small Conv4 in float64, its parameters, and their layout."""
    model = seeded(lambda: Conv4(3, width=width, input_shape=(1, 16, 16)), seed=1).double()
    theta, layout = flatten(model)
    return make_loss(model, F.cross_entropy, layout), theta, layout
