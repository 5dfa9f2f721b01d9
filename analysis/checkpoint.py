"""The network of a study at a checkpoint, for measurements of one's own: ``open_checkpoint``."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from analysis.errors import UserError
from analysis.folder import open_folder
from analysis.measure import Unit, network
from hessian_tools.batches import cast_like
from hessian_tools.data import Episode, TaskSource
from hessian_tools.inner.learners import Learner
from hessian_tools.loss import Loss
from hessian_tools.runs.checkpoints import checkpoint_path
from hessian_tools.validation import check_choice, check_whole


@dataclass(frozen=True, repr=False, eq=False)
class StudyCheckpoint:
    """The network of one run of a study at one checkpoint, with its loss and its held-out tasks.

    theta: the network's parameters [param], from which an inner loop starts.
    loss: the loss as a function of such a vector and a batch, with the network as ``loss.model`` and the names and
        shapes of its parameters as ``loss.layout``. Its Hessian is ``ht.hessian(loss, theta, batch)``, where ht stands
        for hessian_tools.
    learner: the library's learner, which is the inner loop.
    meta_theta: the meta-parameters [meta]: the network's first, and then whatever else the learner has learned, such as
        step sizes. ``ht.record(learner, loss, meta_theta, *checkpoint.task(0))`` records an inner loop.
    meta_iteration: the meta-iteration of the checkpoint; 0 is before training.
    tasks, task_seed: the source of the held-out tasks, and the seed with which the study draws them.
    run: the folder of the run.
    """

    theta: Float[Tensor, " param"]
    loss: Loss
    learner: Learner
    meta_theta: Float[Tensor, " meta"]
    meta_iteration: int
    tasks: TaskSource
    task_seed: int
    run: Path

    def __repr__(self) -> str:
        network = f"{len(self.theta)} parameters of {type(self.loss.model).__name__}"
        place = f"{str(self.run)!r} at meta-iteration {self.meta_iteration}"
        return f"StudyCheckpoint({place}: {network}, {self.learner.name})"

    def task(self, index: int) -> Episode:
        """The held-out task with an index, which is the study's own for the indices below ``measure.tasks``.

        It is a pair (support, query) of batches (x, y), on the device and in the dtype of ``theta``.
        """
        check_whole(at_least=0, index=index)
        episode: Episode = cast_like(self.tasks.episode(seed=self.task_seed, split="test", index=index), self.theta)
        return episode


def open_checkpoint(
    folder: str | Path,
    learner: str,
    seed: int,
    meta_iteration: int | None = None,
    *,
    device: str = "cpu",
    trust: bool = False,
) -> StudyCheckpoint:
    """Open the network of a study's run at a checkpoint: its parameters, its loss and its held-out tasks.

    folder: the folder of the study, which may still be running.
    learner, seed: the run.
    meta_iteration: one of those at which the study keeps checkpoints; None takes the last one that exists.
    device: where the tensors are put, such as "cpu" or "cuda".
    trust: whether a network of the study's author may be imported, which runs its code.

    Raises UserError for a folder that holds no study, for a learner or a seed that the study does not have, and for a
    checkpoint that is not there, such as one of kept results, which have none; DamagedFileError for a damaged file.
    """
    study = open_folder(folder, device=device, trust=trust)
    try:
        check_choice("learner", learner, list(study.learners))
    except ValueError as e:
        raise UserError(str(e)) from None
    if (learner, seed) not in study.runs:
        seeds = ", ".join(map(str, study.config.seeds_of(learner)))
        raise UserError(f"seed={seed}: {learner} has the seeds {seeds} in {folder}; give one of them")
    run = study.run(learner, seed)
    present = [step for step in study.learners[learner].checkpoints if checkpoint_path(run, step).exists()]
    if not present:
        reason = "its results are kept without them" if learner in study.kept.get(seed, ()) else "it is not trained yet"
        raise UserError(f"{run} has no checkpoints, because {reason}; run 'hessian-tools train' on the study first")
    if meta_iteration not in (None, *present):
        listed = ", ".join(map(str, present))
        raise UserError(f"meta_iteration={meta_iteration}: {run} has checkpoints at {listed}; give one of them")
    step = present[-1] if meta_iteration is None else meta_iteration
    unit = Unit(study, (learner,), seed, step, None)  # None: no block of tasks, on which the network does not depend
    loss, meta_theta = network(unit)
    return StudyCheckpoint(
        theta=meta_theta[: loss.layout.numel],
        loss=loss,
        learner=study.learners[learner].learner,
        meta_theta=meta_theta,
        meta_iteration=step,
        tasks=study.problem.held_out,
        task_seed=unit.task_seed,
        run=run,
    )
