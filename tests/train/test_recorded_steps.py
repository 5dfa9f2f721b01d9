"""Outer steps that are replayed as a CUDA graph, tested in float64 with a recorder that behaves like one."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from graph_recorder import Recorder
from test_stacking import DRAWINGS, LINES, SQUARED, Unlucky, alone, assert_same, of_seeds, together
from torch import Tensor

from hessian_tools import Shot, TrainConfig, learners, meta_train
from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.curvature.engines.compiled.recorded import RecordedGraph
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.train import loop, task_chunks, task_loss
from hessian_tools.train.outer import accumulate_gradient
from hessian_tools.train.replay import CHECKS, Replay, _close
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters

STEPS = 7


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Steps are recorded on the CPU too, by the recorder that is returned."""
    made = Recorder()
    monkeypatch.setattr(recorded, "capture", made)
    monkeypatch.setattr(recorded, "switched_on", lambda device: True)
    return made


def steps_of(config: TrainConfig, replay: Replay | None, chunks: TaskChunks | None = None) -> list[Tensor]:
    """The gradients and the parts of the loss of a few steps of plain descent."""
    loss, theta = task_loss(config)
    meta = first_parameters(config, loss, theta).requires_grad_()
    numbers = []
    for meta_step in range(STEPS):
        meta.grad = None
        aux = accumulate_gradient(config, loss, meta, meta_step, replay=replay, chunks=chunks)
        # A NaN differs from itself, so it is replaced by a number.
        numbers.append(torch.cat([meta.grad, *(torch.stack(a).nan_to_num(-7.0) for a in aux)]))
        meta = (meta.detach() - 1e-3 * meta.grad).requires_grad_()
    return numbers


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """Assert that the numbers of all steps are the same up to rounding."""
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize(
    "config",
    [
        LINES,
        replace(LINES, learner=learners.maml(2, 0.01, first_order=True), shot=SQUARED, penalty=CurvaturePenalty(0.3)),
        replace(LINES, learner=learners.reptile(3, 0.01, minibatches=2)),
        # Convolutional networks are recorded, though they are not traced on a CPU.
        replace(DRAWINGS, shot=Shot(weight=0.5)),
        # The sizes of the chunks are 2 and 1, and the first that occurs at the third call is recorded.
        replace(DRAWINGS, batched=None, tasks_at_once=2),
    ],
    ids=["maml", "fomaml-shot-penalty", "reptile", "conv4-shot", "chunks"],
)
def test_replayed_steps_have_the_numbers_of_steps_that_are_not_recorded(config, recorder):
    replay = Replay(record_after=3)
    assert_equal(steps_of(config, replay), steps_of(config, None))
    assert replay.trace is not None and replay.checks_left == 0
    assert recorder.recordings == 1
    # One replay is that of the recording's own call, two are compared, and three steps or more are replayed alone.
    assert recorder.replays >= 1 + 2 + 2


def test_a_penalty_with_a_schedule_is_not_recorded(recorder):
    config = replace(LINES, shot=replace(SQUARED, schedule="linear", schedule_steps=50))
    assert_equal(steps_of(config, Replay(record_after=1)), steps_of(config, None))
    assert recorder.recordings == 0


def test_nothing_is_recorded_unless_it_is_switched_on(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(recorded, "capture", refuse)
    replay = Replay(record_after=1)
    steps_of(LINES, replay)
    assert replay.trace is None and replay.direct_steps == STEPS


def test_the_recording_of_a_step_that_changes_is_dropped(recorder):
    calls = []

    def step(theta: Tensor, x: Tensor) -> Tensor:
        calls.append(len(calls))
        return theta * x + float(len(calls))

    replay, theta = Replay(record_after=2), torch.ones(3, dtype=torch.float64)
    values = [float(replay(step, theta, torch.full((3,), float(k), dtype=torch.float64))[0]) for k in range(4)]
    # The second step is followed by two calls for the recording, and the third by one, whose value differs.
    assert values == [1.0, 3.0, 7.0, 10.0]
    assert recorder.recordings == 1 and replay.trace is None


def test_numbers_are_compared_up_to_rounding_and_a_nan_only_equals_a_nan():
    one, nan = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, torch.nan, 1.0], dtype=torch.float64)
    assert _close(one, one + 1e-12) and _close(nan, nan)
    assert not _close(one, one + 1e-6)
    assert not _close(nan, nan.nan_to_num())
    assert not _close(nan.nan_to_num(), nan)


def test_a_step_that_cannot_be_recorded_is_computed_as_it_is(monkeypatch, recorder):
    def refuse(run: object, device: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "capture", refuse)
    replay = Replay(record_after=1)
    assert_equal(steps_of(LINES, replay), steps_of(LINES, None))
    assert replay.trace is None


def test_where_memory_is_short_the_tasks_are_halved_and_recorded_again(monkeypatch, recorder):
    config, tried = replace(LINES, meta_batch=4), []

    def short(run, device):
        tasks = len(run()[0])
        tried.append(tasks)
        if tasks > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return recorder(run, device)

    monkeypatch.setattr(recorded, "capture", short)
    replay, chunks = Replay(record_after=2), TaskChunks()
    assert_equal(steps_of(config, replay, chunks), steps_of(config, None))
    assert tried == [4, 2] and chunks.largest == 2 and not chunks.one_by_one
    assert replay.trace is not None and replay.checks_left == 0


def test_a_shortage_of_a_later_step_frees_its_recording(recorder):
    replay, theta = Replay(record_after=1, checks_left=0), torch.ones(3, dtype=torch.float64)
    replay(torch.mul, theta, theta)
    freed = weakref.ref(replay.trace)

    def short(theta: Tensor, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    with pytest.raises(torch.OutOfMemoryError):
        replay(short, theta[:2], theta[:2])
    gc.collect()
    assert freed() is None and (replay.direct_steps, replay.checks_left) == (0, CHECKS)


def test_a_chunk_has_half_of_the_memory_where_steps_are_recorded(monkeypatch):
    numbers = {"memory_allocated": 0, "memory_reserved": 0, "mem_get_info": (1000, 1000)}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(task_chunks, "card_memory", lambda device: 1000)
    assert task_chunks.task_chunks(None, "cuda").budget == 500
    monkeypatch.setattr(recorded, "RECORD", True)
    assert task_chunks.task_chunks(None, "cuda").budget == 250


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> list[weakref.ref]:
    """Weak references to the recordings of all runs, which are made at the second step."""
    made: list[weakref.ref] = []

    def seen(*arguments: object) -> RecordedGraph:
        graph = RecordedGraph(*arguments)
        made.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr("hessian_tools.train.replay.RecordedGraph", seen)
    monkeypatch.setattr(loop, "Replay", lambda: Replay(record_after=2))
    return made


def test_the_recording_of_a_run_is_freed_with_it(graphs, recorder):
    config = replace(LINES, checkpoints=(0, 6))
    run = meta_train(config)
    next(run), next(run)
    assert [graph() is None for graph in graphs] == [False]
    run.close()
    gc.collect()
    assert [graph() is None for graph in graphs] == [True]


def test_runs_that_are_trained_together_have_a_recording_that_is_freed_when_one_drops_out(graphs, monkeypatch):
    config = replace(LINES, tasks=Unlucky(), checkpoints=(0, 7))
    with monkeypatch.context() as patched:
        patched.setattr(recorded, "switched_on", lambda device: False)
        expected = alone(of_seeds(config))
    alive = []
    add = loop._add_gradients

    def counted(stack, runs):
        aux = add(stack, runs)
        gc.collect()
        alive.append((len(runs), sum(graph() is not None for graph in graphs)))
        return aux

    monkeypatch.setattr(loop, "_add_gradients", counted)
    assert_same(together(of_seeds(config)), expected)
    assert alive == [(3, 0), (3, 1), (3, 1), (2, 0), (2, 1), (2, 1), (2, 1)]
