"""Evaluation as the field does it: many held-out tasks, the mean with a 95 % interval over them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.data import TaskSource
from hessian_tools.inner.adapt import adapt
from hessian_tools.inner.learners import Learner
from hessian_tools.inner.meta_loss import accuracy
from hessian_tools.intervals import student_t
from hessian_tools.loss import Loss, cast_like
from hessian_tools.train.config import Checkpoint

TRANSDUCTIVE = "transductive: the query set is one batch, so batch statistics are its own"
INDUCTIVE = "not transductive: each query is one batch with the support set, so batch statistics are theirs"
AT_ONCE = 512  # rows of the batches that a non-transductive evaluation runs at a time


@dataclass(frozen=True)
class Evaluation:
    """Query losses and accuracies [task] after adaptation; unpacks as (losses, accuracies).

    The interval is 1.96 standard errors over tasks, for one network: it says nothing of other seeds.
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
        """Mean accuracy and the half-width of its interval; NaN for regression."""
        return _interval(self.accuracies)

    @property
    def loss(self) -> tuple[float, float]:
        """Mean loss and the half-width of its interval."""
        return _interval(self.losses)

    @property
    def protocol(self) -> str:
        """Whether query examples may know of each other, in words."""
        return TRANSDUCTIVE if self.transductive else INDUCTIVE

    def __str__(self) -> str:
        mean, half = self.accuracy
        shown = f"accuracy {100 * mean:.2f} +- {100 * half:.2f} %"
        if mean != mean:
            shown = "loss {:.4g} +- {:.2g}".format(*self.loss)
        return (
            f"{shown} (95 % over {len(self.losses)} {self.split} tasks of seed {self.seed},"
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
) -> Evaluation:
    """Adapt to each of ``num_tasks`` tasks by the learner's evaluation steps and judge on its query set.

    transductive: the whole query set in one forward pass, the field's habit; with batch statistics
    each query's answer then depends on the others. Otherwise each query example goes in one batch
    with the support set: for batch normalisation that is rows of support + 1, for networks without
    it the same answers. Costs support + 1 rows per query example in place of one.
    """
    adapting = learner.evaluating()
    losses, accuracies = [], []
    for index in range(num_tasks):
        support, query = (cast_like(b, theta) for b in tasks.episode(seed=seed, split=split, index=index))
        adapted = adapt(adapting, loss, theta.detach(), support)
        with torch.no_grad():
            outputs = loss.outputs(adapted, query[0]) if transductive else one_by_one(loss, adapted, support, query[0])
            losses.append(loss.criterion(outputs, query[1]))
            accuracies.append(accuracy(outputs, query[1]))
    return Evaluation(torch.stack(losses), torch.stack(accuracies), split, seed, adapting.steps, transductive)


def one_by_one(
    loss: Loss, theta: Float[Tensor, " param"], support: tuple[Tensor, Tensor], x: Float[Tensor, "query ..."]
) -> Float[Tensor, "query output"]:
    """Outputs for query inputs, each computed in a batch of its own: the support inputs and this one."""
    rows = len(support[0]) + 1

    def last(one: Tensor) -> Tensor:
        return loss.outputs(theta, torch.cat([support[0], one[None]]))[-1]

    return torch.vmap(last, chunk_size=max(1, AT_ONCE // rows))(x)


def over_seeds(evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    """Mean over seeds of each seed's mean accuracy (loss for regression), and the half-width of its 95 % interval.

    One evaluation a seed, of networks trained apart; Student's t over their means, which holds what training and,
    where the seeds' tasks differ, tasks contribute. NaN half-width for a single seed, NaN where a seed has no
    finite number. ValueError for no evaluation.

    >>> of = lambda accuracy: Evaluation(torch.zeros(2), torch.full((2,), accuracy), "test", 0, 3, True)
    >>> mean, half = over_seeds([of(0.50), of(0.52), of(0.54)])
    >>> print(f"{mean:.3f} +- {half:.4f}")  # 4.303 standard errors at two degrees of freedom
    0.520 +- 0.0497
    """
    if not evaluations:
        raise ValueError("no evaluation given; pass one for each seed")
    regression = all(bool(e.accuracies.isnan().all()) for e in evaluations)
    judged = [(e.loss if regression else e.accuracy)[0] for e in evaluations]
    means, count = torch.tensor(judged, dtype=torch.float64, device="cpu"), len(judged)
    half = float(student_t(count, 0.95) * means.std() / sqrt(count)) if count > 1 else float("nan")
    return float(means.mean()), half


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """The one rule for every learner: highest validation accuracy, for regression lowest validation loss.

    Ties go to the earlier; checkpoints without a finite number, diverged ones among them, do not count.
    """
    found = list(checkpoints)
    judged = [c for c in found if isfinite(c.validation_accuracy)]
    if judged:
        return max(judged, key=lambda c: (c.validation_accuracy, -c.meta_step))
    judged = [c for c in found if isfinite(c.validation_loss)]
    if not judged:
        raise ValueError(f"none of {len(found)} checkpoints was validated; set validation_tasks to 1 or more")
    return min(judged, key=lambda c: (c.validation_loss, c.meta_step))


def _interval(values: Tensor) -> tuple[float, float]:
    half = 1.96 * float(values.double().std()) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.double().mean()), half
