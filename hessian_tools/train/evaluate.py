"""Evaluation as is usual in the field: on many tasks outside the training set, with the mean and its 95 % interval."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import cast_like
from hessian_tools.data import Episode, TaskSource
from hessian_tools.inner.adapt import adapt
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import accuracy
from hessian_tools.intervals import student_t
from hessian_tools.loss import Loss
from hessian_tools.result import Result
from hessian_tools.torch_fixes.convolutions import at_many_points
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.train.config import Checkpoint
from hessian_tools.train.task_chunks import TaskChunks, stacked, task_chunks
from hessian_tools.validation import check_whole

TRANSDUCTIVE = "transductive: the query set is one batch, which gives the batch statistics"
INDUCTIVE = "not transductive: each query is one batch with the support set, which gives the batch statistics"
MAX_ROWS = 512  # the examples that a non-transductive evaluation runs through the network at once; bounds its memory


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """The query losses and accuracies [task] of one network after adaptation; unpacks as (losses, accuracies).

    The intervals are 1.96 standard errors over the tasks. They hold for this network and say nothing of networks that
    were trained with other seeds.
    """

    losses: Float[Tensor, " task"]
    accuracies: Float[Tensor, " task"]
    split: str
    seed: int
    steps: int
    transductive: bool

    def __iter__(self) -> Iterator[Tensor]:
        yield self.losses
        yield self.accuracies

    @property
    def accuracy(self) -> tuple[float, float]:
        """The mean accuracy and the half-width of its interval; NaN for regression."""
        return _interval(self.accuracies)

    @property
    def loss(self) -> tuple[float, float]:
        """The mean loss and the half-width of its interval."""
        return _interval(self.losses)

    @property
    def protocol(self) -> str:
        """In words, whether the answer to a query example may depend on the other query examples."""
        return TRANSDUCTIVE if self.transductive else INDUCTIVE

    def __str__(self) -> str:
        mean, half_width = self.accuracy
        result = f"accuracy {100 * mean:.2f} +- {100 * half_width:.2f} %"
        if mean != mean:  # it is NaN for regression
            result = "loss {:.4g} +- {:.2g}".format(*self.loss)
        return (
            f"{result} (95 % over {len(self.losses)} {self.split} tasks of seed {self.seed},"
            f" {self.steps} steps; {self.protocol})"
        )


def evaluate(
    learner: Learner,
    loss: Loss,
    theta: Float[Tensor, " meta"],
    tasks: TaskSource,
    *,
    split: str,
    num_tasks: int,
    seed: int,
    transductive: bool = True,
    tasks_at_once: int | None = None,
) -> Evaluation:
    """Adapt to each of ``num_tasks`` tasks by the learner's evaluation steps, and test the result on the query set.

    Products of float32 are computed in float32, with TF32 and autocast off, whatever the process has set.

    transductive: True sends the whole query set through the network in one forward pass, as is usual in the field. With
        batch normalisation, the answer to a query example then depends on the other query examples. False puts each
        query example into a batch with the support set alone, and batch normalisation uses the statistics of that
        batch. This costs (support + 1) rows per query example in place of one. Without batch normalisation, True and
        False give the same answers.
    tasks_at_once: the most tasks that are computed at once, which gives the same numbers up to rounding. None computes
        one task after the other on a CPU, and on a GPU as many at once as fit in half of its free memory, judged by
        what the first task needs.
    """
    check_whole(at_least=1, tasks_at_once=tasks_at_once)
    losses, accuracies = query_scores(
        learner,
        loss,
        theta[None],
        partial(tasks.episode, seed=seed, split=split),
        num_tasks,
        transductive=transductive,
        chunks=evaluation_chunks(tasks_at_once, theta.device),
    )
    return Evaluation(losses[0], accuracies[0], split, seed, learner.evaluating().steps, transductive)


def evaluation_chunks(tasks_at_once: int | None, device: torch.device) -> TaskChunks:
    """How many tasks an evaluation computes at once; see ``evaluate``."""
    if tasks_at_once == 1 or (tasks_at_once is None and device.type != "cuda"):
        return TaskChunks(1, one_by_one=True)
    return task_chunks(tasks_at_once, device)


@full_precision
def query_scores(
    learner: Learner,
    loss: Loss,
    thetas: Float[Tensor, "run meta"],
    episode: Callable[..., Episode],
    num_tasks: int,
    *,
    transductive: bool,
    chunks: TaskChunks,
) -> tuple[Float[Tensor, "run task"], Float[Tensor, "run task"]]:
    """The losses and accuracies on the query sets of the tasks after adaptation, as ``evaluate`` reports them.

    Products of float32 are computed in float32, with TF32 and autocast off.

    thetas: the meta-parameters of one run or of several, which all adapt to the same tasks.
    episode: called as ``episode(index=index)`` for the tasks 0 to ``num_tasks`` - 1.
    chunks: how many tasks are computed at once, where a task counts once for each run. A run passes the same object at
        each checkpoint, so that the memory of a task is measured only once.
    """
    adapting, thetas = learner.evaluating(), thetas.detach()
    num_runs = len(thetas)

    def scores_of_one(theta: Tensor, task: Episode) -> tuple[Tensor, Tensor]:
        """The query loss and accuracy of one task."""
        support, (x, y) = task
        adapted = adapt(adapting, loss, theta, support)
        with torch.no_grad():
            outputs = loss.outputs(adapted, x) if transductive else outputs_one_by_one(loss, adapted, support, x)
            return loss.criterion(outputs, y), accuracy(outputs, y)

    def scores_of_chunk(pairs: range) -> list[Tensor]:
        """The query losses and accuracies [pair] of some pairs of a task and a run, where pair = task * num_runs + run.

        Pairs of one task follow each other, so that a task is drawn once for all runs of a chunk.
        """
        drawn = {task: episode(index=task) for task in dict.fromkeys(pair // num_runs for pair in pairs)}
        episodes, runs = [drawn[pair // num_runs] for pair in pairs], [pair % num_runs for pair in pairs]
        stacked_episodes = None if chunks.one_by_one else stacked(episodes)
        if stacked_episodes is not None:  # None also stands for tasks that differ in shape
            # The tasks of a single run share its theta, which costs less than one for each task.
            points, in_dims = (thetas[0], (None, 0)) if num_runs == 1 else (thetas[runs], (0, 0))
            # The number of points decides by which operations convolutions are computed. It is the number of all pairs,
            # so that the first one, which runs alone to measure its memory, takes the same operations as the others.
            with at_many_points(num_tasks * num_runs, thetas.device):
                return list(torch.vmap(scores_of_one, in_dims=in_dims)(points, cast_like(stacked_episodes, thetas)))
        rows = [scores_of_one(thetas[run], cast_like(task, thetas)) for run, task in zip(runs, episodes, strict=True)]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    parts = chunks.run(num_tasks * num_runs, scores_of_chunk)
    losses, accuracies = (torch.cat(column).reshape(num_tasks, num_runs).T for column in zip(*parts, strict=True))
    return losses.contiguous(), accuracies.contiguous()


def outputs_one_by_one(
    loss: Loss, theta: Float[Tensor, " param"], support: tuple[Tensor, Tensor], x: Float[Tensor, "query ..."]
) -> Float[Tensor, "query output"]:
    """The outputs for query inputs, each computed in one batch with the support inputs."""
    rows = len(support[0]) + 1

    def output(example: Tensor) -> Tensor:
        return loss.outputs(theta, torch.cat([support[0], example[None]]))[-1]

    return torch.vmap(output, chunk_size=max(1, MAX_ROWS // rows))(x)


def over_seeds(evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    """The mean over seeds of each seed's mean accuracy (loss for regression), and the half-width of its 95 % interval.

    evaluations: one for each seed, of networks that were trained independently. The interval is Student's t over their
    means. The spread of these means comes from the training and, where the tasks differ between seeds, from the tasks.
    The half-width is NaN for a single seed, and both numbers are NaN where a seed has no finite mean. Raises
    ValueError where there is no evaluation.

    >>> one_seed = lambda accuracy: Evaluation(torch.zeros(2), torch.full((2,), accuracy), "test", 0, 3, True)
    >>> mean, half_width = over_seeds([one_seed(0.50), one_seed(0.52), one_seed(0.54)])
    >>> print(f"{mean:.3f} +- {half_width:.4f}")  # 4.303 standard errors at two degrees of freedom
    0.520 +- 0.0497
    """
    if not evaluations:
        raise ValueError("no evaluation given; pass one for each seed")
    regression = all(bool(e.accuracies.isnan().all()) for e in evaluations)
    seed_means = [(e.loss if regression else e.accuracy)[0] for e in evaluations]
    means, count = torch.tensor(seed_means, dtype=torch.float64, device="cpu"), len(seed_means)
    half_width = float(student_t(count, 0.95) * means.std() / sqrt(count)) if count > 1 else float("nan")
    return float(means.mean()), half_width


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """The checkpoint with the highest validation accuracy or, for regression, the lowest validation loss.

    The rule is the same for every learner. Ties go to the earlier checkpoint. A checkpoint without a finite number,
    such as one of a run that diverged, does not count.
    """
    candidates = list(checkpoints)
    validated = [c for c in candidates if isfinite(c.validation_accuracy)]
    if validated:
        return max(validated, key=lambda c: (c.validation_accuracy, -c.meta_step))
    validated = [c for c in candidates if isfinite(c.validation_loss)]
    if not validated:
        raise ValueError(f"none of {len(candidates)} checkpoints was validated; set validation_tasks to 1 or more")
    return min(validated, key=lambda c: (c.validation_loss, c.meta_step))


def _interval(values: Tensor) -> tuple[float, float]:
    """The mean over the tasks and the half-width of its 95 % interval, by the normal distribution."""
    half_width = 1.96 * float(values.double().std()) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.double().mean()), half_width
