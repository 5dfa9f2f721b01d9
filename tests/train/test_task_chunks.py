"""Tests of tasks that are computed at once, in chunks: equal to tasks in turn, in float64, and bounded in memory."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from outer_steps import IMAGES, SINE, mean_gradient
from torch import Tensor, nn

from hessian_tools import MLP, Shot, evaluate, learners, meta_train
from hessian_tools.data import Episode
from hessian_tools.inner.learners import Latent, Learner
from hessian_tools.torch_fixes import convolutions
from hessian_tools.train import loop, task_loss
from hessian_tools.train import task_chunks as module
from hessian_tools.train.evaluate import evaluation_chunks, query_scores
from hessian_tools.train.outer import is_batched
from hessian_tools.train.task_chunks import TaskChunks, stacked, task_chunks
from hessian_tools.train.warm_start import first_parameters


def assert_equal(a: Tensor, b: Tensor) -> None:
    """Assert that two vectors are equal but for rounding in float64."""
    assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize(
    "learner",
    [
        learners.maml(2, 0.05),
        learners.maml(2, 0.05, first_order=True),
        learners.anil(2, 0.05),
        learners.boil(2, 0.05),
        learners.meta_sgd(2, 0.05),
        learners.reptile(2, 0.05),
    ],
    ids=lambda learner: learner.name,
)
@pytest.mark.parametrize("shot", [None, Shot(weight=0.5)], ids=["plain", "shot"])
def test_chunks_of_two_of_three_tasks_give_the_gradient_of_tasks_in_turn(learner, shot):
    # The network normalises by the statistics of the batch, for which vmap of the gradient is exact.
    config = replace(IMAGES, learner=learner, shot=shot)
    assert_equal(mean_gradient(replace(config, tasks_at_once=2)), mean_gradient(replace(config, tasks_at_once=1)))


def test_tasks_are_in_turn_on_a_cpu_for_convolutions_and_at_once_on_a_gpu():
    conv, on_gpu = IMAGES.network(), replace(IMAGES, device="cuda")
    assert not is_batched(IMAGES, conv)
    assert is_batched(on_gpu, conv)
    assert is_batched(replace(IMAGES, tasks_at_once=2), conv)
    for in_turn in (
        replace(on_gpu, batched=False),
        replace(on_gpu, tasks_at_once=1),
        replace(on_gpu, meta_batch=1),
        replace(on_gpu, checkpointing=True),
        replace(on_gpu, learner=learners.leo(2, 0.5, latent=Latent(4))),
    ):
        assert not is_batched(in_turn, conv)


@pytest.mark.parametrize("transductive", [True, False])
@pytest.mark.parametrize(
    "learner",
    [
        learners.maml(2, 0.05, evaluation_steps=3),
        learners.boil(2, 0.05),
        learners.meta_sgd(2, 0.05),
        learners.supervised(2, 0.05),
        learners.leo(2, 0.5, latent=Latent(4, fine_tuning_steps=1)),
    ],
    ids=lambda learner: learner.name,
)
def test_evaluation_in_chunks_gives_the_numbers_of_tasks_in_turn(learner: Learner, transductive: bool):
    config = replace(IMAGES, learner=learner)
    loss, theta = task_loss(config)
    meta = first_parameters(config, loss, theta.double())
    evaluated = partial(evaluate, learner, loss, meta, config.tasks, split="test", num_tasks=5, seed=1)
    in_turn, at_once = (evaluated(transductive=transductive, tasks_at_once=most) for most in (None, 2))
    assert_equal(at_once.losses, in_turn.losses)
    assert torch.equal(at_once.accuracies, in_turn.accuracies)


def test_convolutions_of_many_tasks_as_matrix_products_give_the_same_numbers(monkeypatch):
    """What a GPU does, forced on the CPU: the meta-gradient with SHOT, its memory, and an evaluation."""
    config = replace(IMAGES, shot=Shot(weight=0.5), batched=True)
    loss, theta = task_loss(config)
    evaluated = partial(
        evaluate, config.learner, loss, theta.double(), config.tasks, split="test", num_tasks=3, seed=1, tasks_at_once=2
    )
    expected, losses = mean_gradient(replace(config, batched=False)), evaluated().losses
    plain, by_matrices = TaskChunks(budget=10**8), TaskChunks(budget=10**8)
    mean_gradient(config, plain)
    shapes = []

    def count(form: convolutions.Form, element_size: int) -> int:
        shapes.append(form.kernels)
        return 0

    monkeypatch.setattr(convolutions, "pays", lambda *, points, **sizes: points > 1)
    monkeypatch.setattr(convolutions.Form, "patch_bytes", count)
    assert_equal(mean_gradient(config, by_matrices), expected)
    assert len(shapes) >= 4 * 2  # four convolutions, on the support and on the query set
    shapes.clear()
    assert_equal(evaluated().losses, losses)
    assert len(shapes) >= 4 * 2
    assert by_matrices.largest < plain.largest  # the patches were counted when one task was measured


class RaggedTasks:
    """Tasks of which every third one, from the second, has one query image fewer than the others."""

    kind, input_shape, outputs, digest = "classification", (1, 28, 28), 3, "ragged"

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        episode = IMAGES.tasks.episode(seed=seed, split=split, index=index)
        x, y = episode.query
        return episode._replace(query=(x[:-1], y[:-1])) if index % 3 == 1 else episode


def test_tasks_that_differ_in_shape_are_computed_in_turn():
    config = replace(IMAGES, tasks=RaggedTasks())
    first, ragged, third = (config.tasks.episode(seed=0, split="train", index=index) for index in range(3))
    assert stacked([first, third]) is not None
    assert stacked([first, ragged, third]) is None
    x, y = third.query
    assert stacked([first, third._replace(query=(x.double(), y))]) is None
    expected = mean_gradient(config)
    assert_equal(mean_gradient(replace(config, tasks_at_once=3)), expected)
    assert_equal(mean_gradient(replace(config, tasks_at_once=2)), expected)
    loss, theta = task_loss(config)
    losses = [
        evaluate(
            config.learner, loss, theta.double(), config.tasks, split="test", num_tasks=4, seed=0, tasks_at_once=most
        ).losses
        for most in (1, 4)
    ]
    assert_equal(*losses)


def bytes_of_one_task() -> int:
    """What a run measures on the first task of ``IMAGES``."""
    largest = []
    for budget in (10**8, 2 * 10**8):
        chunks = TaskChunks(budget=budget)
        mean_gradient(replace(IMAGES, batched=True), chunks)
        largest.append(chunks.largest)
    assert largest[0] == pytest.approx(largest[1] / 2, abs=1)
    return 10**8 // largest[0]


def test_a_chunk_has_as_many_tasks_as_fit_in_the_budget_measured_once():
    one = bytes_of_one_task()
    activations = 3 * 3 * 4 * (28 * 28 + 14 * 14 + 7 * 7 + 3 * 3) * 8  # outputs of 4 convolutions on 9 images, float64
    assert activations < one < 100 * activations
    config, seen = replace(IMAGES, batched=True, meta_batch=7), []
    chunks = TaskChunks(budget=int(3.1 * one))
    assert_equal(mean_gradient(config, chunks), mean_gradient(replace(config, batched=False)))
    assert chunks.largest == 3
    chunks.run(7, lambda tasks: seen.append(list(tasks)))
    assert seen == [[0, 1, 2], [3, 4], [5, 6]]  # no task is measured again, and the chunks are nearly equal
    assert task_chunks(None, "cpu").budget is None  # a CPU measures nothing


def test_the_budget_on_a_gpu_is_half_of_what_is_free_and_of_the_share_of_this_process(monkeypatch):
    numbers = {"memory_allocated": 10, "memory_reserved": 30, "mem_get_info": (100, 1000)}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(module, "card_memory", lambda device: 1000)
    chunks = task_chunks(None, "cuda")
    assert (chunks.largest, chunks.budget) == (None, 60)  # 100 free, and 20 reserved that nothing uses
    assert not chunks.demanded
    monkeypatch.setattr(module, "card_memory", lambda device: 50)
    assert task_chunks(None, "cuda").budget == 20  # 40 are left of the share of 50
    monkeypatch.setattr(module, "card_memory", lambda device: 5)
    assert task_chunks(None, "cuda").budget == 0
    in_turn = [evaluation_chunks(most, torch.device(name)) for most, name in ((None, "cpu"), (1, "cpu"), (1, "cuda"))]
    assert all(chunks.one_by_one and chunks.largest == 1 for chunks in in_turn)
    assert not evaluation_chunks(None, torch.device("cuda")).one_by_one
    given = task_chunks(8, "cuda")
    assert (given.largest, given.budget, given.demanded) == (8, None, True)


def test_a_run_measures_its_first_task_once_in_training_and_once_in_validation(monkeypatch):
    """What happens on a GPU: the run's chunks come from a budget, which is enough for all tasks."""
    measured = []

    class Counting(module._PeakOfLiveBytes):
        def __init__(self) -> None:
            super().__init__()
            measured.append(self)

    monkeypatch.setattr(module, "_PeakOfLiveBytes", Counting)
    for name in ("outer.training_chunks", "loop.training_chunks", "loop.evaluation_chunks"):
        monkeypatch.setattr(f"hessian_tools.train.{name}", lambda *options: TaskChunks(budget=10**9))
    config = replace(IMAGES, batched=True, checkpoints=(0, 1, 3), validation_tasks=2)
    list(meta_train(config))
    assert len(measured) == 2
    assert all(0 < counter.peak < 10**9 and counter.live == 0 for counter in measured)


def test_running_out_of_memory_halves_the_chunk_and_loses_nothing():
    sizes = []

    def results_of(tasks: range) -> list[int]:
        sizes.append(len(tasks))
        if len(tasks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(tasks)

    chunks = TaskChunks(largest=100)
    assert [task for chunk in chunks.run(7, results_of) for task in chunk] == list(range(7))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]  # half of 7 is 3, and half of that is 1
    sizes.clear()
    chunks.run(7, results_of)
    assert max(sizes) <= 2  # the run remembers

    def at_most_32(tasks: range) -> None:
        sizes.append(len(tasks))
        if len(tasks) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")

    chunks = TaskChunks(largest=64)
    for count, expected in ((64, [64, 32, 32]), (32, [32]), (64, [32, 32]), (5, [5])):
        sizes.clear()
        chunks.run(count, at_most_32)
        assert sizes == expected  # a call with fewer tasks is not cut further

    def fails(tasks: range) -> None:
        sizes.append(len(tasks))
        raise torch.OutOfMemoryError("CUDA out of memory")

    sizes.clear()
    chunks = TaskChunks()
    with pytest.raises(torch.OutOfMemoryError):
        chunks.run(2, fails)
    assert (sizes, chunks.one_by_one) == ([2, 1], False)  # this is not taken for a network that vmap refuses


class WithItem(nn.Module):
    """A network with an operation that vmap refuses: it reads a number of its outputs in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP((1, 6, 1), activation=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return out if out.detach().abs().max().item() < 1e9 else 0 * out


def test_a_network_that_vmap_refuses_is_trained_in_turn_unless_tasks_at_once_were_asked_for():
    config = replace(SINE, network=WithItem)
    assert torch.equal(mean_gradient(config), mean_gradient(replace(config, batched=False)))
    chunks = TaskChunks()
    mean_gradient(config, chunks)
    assert chunks.one_by_one  # later steps do not try again
    with pytest.raises(RuntimeError, match="vmap"):
        mean_gradient(replace(config, tasks_at_once=2))
    loss, theta = task_loss(config)
    episode = partial(config.tasks.episode, seed=0, split="val")
    scores = partial(query_scores, config.learner, loss, theta[None], episode, 3, transductive=True)
    losses = [scores(chunks=each)[0] for each in (TaskChunks(), TaskChunks(1))]
    assert torch.equal(*losses)


def test_a_run_with_tasks_at_once_validates_at_once_and_resumes_another_one(tmp_path, monkeypatch):
    validation_chunks = []

    def recorded_scores(*args, chunks: TaskChunks, **options) -> tuple[Tensor, Tensor]:
        validation_chunks.append(chunks)
        return query_scores(*args, chunks=chunks, **options)

    monkeypatch.setattr(loop, "query_scores", recorded_scores)
    config = replace(IMAGES, checkpoints=(0, 2), validation_tasks=3, folder=tmp_path, optimiser="sgd")
    in_turn = list(meta_train(replace(config, folder=None)))
    at_once = list(meta_train(replace(config, tasks_at_once=2)))
    for a, b in zip(in_turn, at_once, strict=True):
        assert torch.allclose(a.theta, b.theta, atol=1e-5)
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-3)
    assert [(chunks.largest, chunks.one_by_one) for chunks in validation_chunks] == [(1, True)] * 2 + [(2, False)] * 2
    again = list(meta_train(config))  # how steps are computed is not part of a run's identity
    assert torch.equal(again[-1].theta, at_once[-1].theta)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="tasks_at_once=0 must be at least 1"):
        replace(SINE, tasks_at_once=0)
    with pytest.raises(ValueError, match="batched=False and tasks_at_once=2 both say how many tasks"):
        replace(SINE, batched=False, tasks_at_once=2)
    with pytest.raises(ValueError, match="tasks_at_once=2, but a latent learner draws its noise task by task"):
        replace(IMAGES, learner=learners.leo(2, 0.5), tasks_at_once=2)
    with pytest.raises(ValueError, match="tasks_at_once=2 keeps the activations of all tasks"):
        replace(IMAGES, checkpointing=True, tasks_at_once=2)
    with pytest.raises(ValueError, match="workers=2 take tasks in turn on the CPU, which does not go with tasks_at"):
        replace(IMAGES, workers=2, tasks_at_once=2)
    with pytest.raises(ValueError, match="which does not go with device='cuda'; use workers=1"):
        replace(IMAGES, workers=2, device="cuda")
