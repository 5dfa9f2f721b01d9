"""An outer step is replayed from its trace only where this gives the numbers of the step itself, to the bit."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hessian_tools import MLP, Conv4, Shot, TrainConfig, learners, meta_train
from hessian_tools.data import open_tasks
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.train import loop, task_loss
from hessian_tools.train.outer import accumulate_gradient
from hessian_tools.train.replay import Replay
from hessian_tools.train.warm_start import first_parameters

pytestmark = pytest.mark.heavy

SINE = TrainConfig(
    learner=learners.maml(2, 0.01),
    tasks=open_tasks("sine-line"),
    network=partial(MLP, (1, 6, 1)),
    meta_batch=3,
    validation_tasks=0,
)
PIXELS = replace(
    SINE,
    learner=learners.maml(2, 0.05),
    tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
    network=lambda: nn.Sequential(nn.Flatten(), MLP((784, 4, 3))),
    meta_batch=2,
)
SQUARED = Shot(distance="squared_error", weight=0.5)
STEPS = 7


def steps_of(config: TrainConfig, replay: Replay | None) -> list[Tensor]:
    """The gradients and the parts of the loss of a few steps of plain descent."""
    loss, theta = task_loss(config)
    meta = first_parameters(config, loss, theta).requires_grad_()
    numbers = []
    for meta_step in range(STEPS):
        meta.grad = None
        aux = accumulate_gradient(config, loss, meta, meta_step, replay=replay)
        # A NaN differs from itself, so it is replaced by a number.
        numbers.append(torch.cat([meta.grad, *(torch.stack(a).nan_to_num(-7.0) for a in aux)]))
        meta = (meta.detach() - 1e-4 * meta.grad).requires_grad_()
    return numbers


@pytest.mark.parametrize(
    "config",
    [
        SINE,
        replace(SINE, learner=learners.maml(2, 0.01, first_order=True), shot=SQUARED),
        replace(SINE, learner=learners.meta_sgd(2, 0.01), shot=replace(SQUARED, detach_reference=False)),
        replace(SINE, learner=learners.reptile(2, 0.01)),
        replace(SINE, penalty=CurvaturePenalty(0.3)),
        replace(SINE, learner=learners.anil(2, 0.01), shot=Shot(distance="l2_parameters")),
        replace(PIXELS, learner=learners.boil(2, 0.05), shot=Shot(weight=0.5)),
    ],
    ids=lambda c: f"{c.learner.name}-{c.tasks.kind}",
)
def test_replayed_steps_are_the_same_to_the_bit(config):
    replay = Replay(trace_after=2)
    replayed, expected = steps_of(config, replay), steps_of(config, None)
    assert replay.trace is not None
    # Two steps came before the trace and two were compared with it; the other three were replayed.
    assert (replay.direct_steps, replay.checks_left) == (4, 0)
    assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
    assert not torch.equal(replayed[-1], replayed[-2])


def test_a_step_whose_shot_weight_has_a_schedule_is_never_replayed():
    # A trace would keep the weight of the step that it was made in.
    config = replace(SINE, shot=replace(SQUARED, schedule="linear", schedule_steps=50))
    replay = Replay(trace_after=1)
    replayed, expected = steps_of(config, replay), steps_of(config, None)
    assert replay.trace is None and replay.direct_steps == 0
    assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))


def test_convolutional_networks_are_not_replayed():
    # Tracing a convolutional network takes many seconds and saves no measurable time.
    replay = Replay(trace_after=1)
    steps_of(replace(PIXELS, network=partial(Conv4, 3, width=2), batched=True), replay)
    assert replay.direct_steps == 0


def test_the_trace_of_a_step_that_changes_between_calls_is_dropped():
    calls = []

    def step(theta: Tensor, x: Tensor) -> Tensor:
        calls.append(len(calls))
        return theta * x + float(len(calls) >= 5)  # tracing counts as a call

    replay, theta = Replay(trace_after=2, checks_left=5), torch.ones(3)
    values = [float(replay(step, theta, torch.full((3,), float(k)))[0]) for k in range(6)]
    assert values == [0.0, 1.0, 2.0, 4.0, 5.0, 6.0]  # the fourth call differs from the trace, which is dropped
    assert replay.trace is None


def test_a_step_that_cannot_be_traced_is_always_computed_directly():
    replay = Replay(trace_after=1)
    assert [float(replay(lambda t, x: t * float(x[0]), torch.ones(1), torch.full((1,), k))) for k in (2.0, 3.0)] == [
        2,
        3,
    ]
    assert replay.trace is None


def test_a_step_with_other_shapes_or_dtypes_is_not_replayed():
    replay = Replay(trace_after=1, checks_left=1)
    for x in (torch.ones(3), 2 * torch.ones(3)):
        replay(lambda t, x: (t * x).sum(), torch.ones(3), x)
    assert replay.trace is not None
    trace, replay.trace = replay.trace, lambda *_: "replayed"
    assert replay(lambda t, x: (t * x).sum(), torch.ones(3), torch.ones(3)) == "replayed"
    assert float(replay(lambda t, x: (t * x).sum(), torch.ones(2), torch.ones(2))) == 2.0
    assert float(replay(lambda t, x: (t * x).sum(), torch.ones(3).double(), torch.ones(3))) == 3.0
    assert float(trace(torch.ones(3), 4 * torch.ones(3))) == 12.0


def test_all_steps_of_a_run_use_one_replay(monkeypatch):
    replays = []

    def spy(*args, replay, **options):
        replays.append(replay)
        return accumulate_gradient(*args, replay=replay, **options)

    monkeypatch.setattr(loop, "accumulate_gradient", spy)
    list(meta_train(replace(SINE, checkpoints=(0, 3), network=partial(MLP, (1, 4, 1), activation=nn.Tanh))))
    assert len(replays) == 3 and len(set(map(id, replays))) == 1
    assert replays[0].direct_steps == 3
