"""Runs of one learner that differ in their seed: whether they may be trained together, and which of them has failed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hessian_tools.failures import first_line, is_out_of_memory
from hessian_tools.loss import Loss
from hessian_tools.outputs import tensors_of
from hessian_tools.random_states import restored_random_states
from hessian_tools.rng import stream
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.outer import is_batched
from hessian_tools.train.run import Run

# The settings in which runs that are trained together may differ. The functions that build their networks cannot be
# compared, so the networks themselves are.
OF_ONE_RUN = ("seed", "folder", "start", "network")


def refuse_differing(configs: Sequence[TrainConfig]) -> None:
    """Raise ValueError where the configurations differ in more than their seed and the files of their runs.

    Folders must differ, because each holds one run.
    """
    if not configs:
        raise ValueError("no configuration given; pass one for each run")
    folders = [config.folder for config in configs]
    for number, folder in enumerate(folders):
        if folder is not None and folder in folders[:number]:
            raise ValueError(
                f"runs {folders.index(folder)} and {number} have the same folder {folder}; give each run its own"
            )
    for name in (field.name for field in fields(TrainConfig) if field.name not in OF_ONE_RUN):
        first, *others = (_compared(config, name) for config in configs)
        for number, value in enumerate(others, start=1):
            if value != first:
                raise ValueError(
                    f"runs that are trained together differ only in seed, folder and start, but run {number} has"
                    f" {name}={value!r} and run 0 has {first!r}"
                )


def _compared(config: TrainConfig, name: str) -> Any:
    """The value of a setting that can be compared; for the tasks it is the digest of their data."""
    return config.tasks.digest if name == "tasks" else getattr(config, name)


def can_be_stacked(config: TrainConfig, losses: Sequence[Loss], thetas: Sequence[Tensor]) -> bool:
    """Whether the tasks of several runs can be computed at once, by the network of the first run.

    config: the settings of the runs. losses, thetas: the loss and the meta-parameters [meta] of each run.

    The first network then stands for those of the other seeds. This is right only if they are the same function of the
    parameters. A network with a random buffer or a frozen layer, drawn from the seed, is another function for each
    seed, so the outputs of all networks are compared with those of the first one, each near its own parameters.
    """
    loss = losses[0]
    if not is_batched(config, loss.model):
        return False
    if any(other.layout != loss.layout for other in losses) or len({(len(t), t.dtype) for t in thetas}) > 1:
        return False
    x = config.tasks.episode(seed=config.seed, split="train", index=0).support[0]
    return all(_same_outputs(loss, other, theta, x) for other, theta in zip(losses[1:], thetas[1:], strict=True))


def _same_outputs(one: Loss, other: Loss, theta: Tensor, x: Any) -> bool:
    """Whether two networks have the same outputs near a point, up to rounding."""
    network = theta.detach()[: one.layout.numel]  # what the learner learns besides follows the network's parameters
    # The point is moved at random. Otherwise a layer that starts at zero, as some heads and gates do, would hide how
    # the networks differ before it.
    noise = torch.randn(len(network), generator=stream(0, "same network"), dtype=torch.float32, device="cpu")
    network = network + 0.01 * noise.to(network)
    with torch.no_grad(), restored_random_states(theta.device):
        outputs = [torch.cat([t.flatten() for t in tensors_of(loss.outputs(network, x))]) for loss in (one, other)]
    scale = 100 * torch.finfo(theta.dtype).eps
    return bool((outputs[0] - outputs[1]).norm() <= scale * outputs[1].norm())


def name_of(config: TrainConfig) -> str:
    """A run in words, for messages."""
    return f"{config.learner.name} seed {config.seed}"


@contextmanager
def naming_the_run(
    runs: Sequence[Run], all_runs: Sequence[Run], when: str, work_of: Callable[[Run], object]
) -> Iterator[None]:
    """Saves all runs where an error is raised inside the block, and notes in the error which of the runs has raised it.

    runs: the runs that are computed inside the block, which changes none of them. all_runs: those that are trained in
    one call. when: in words, for the note. work_of: does for one run alone what the block does for all of them at once,
    which shows the run that is to blame.

    The states of all runs that have not ended are saved, whatever the error is, so that the same call resumes them.
    Where a state cannot be saved, a note of the error says so, and the error itself is the one that is raised. The note
    on the runs that are to blame is added where there are several runs and only some of them fail by themselves.
    """
    try:
        yield
    except Exception as error:
        # The states are saved first, because the work that is done again below to find the runs that are to blame may
        # end the process.
        saved = [run for run in all_runs if run.end is None and _is_saved(run, error)]
        # A single run needs no name. Where memory is too little for several runs, it may be enough for each of them
        # alone, so no run is to blame.
        if len(all_runs) == 1 or (len(runs) > 1 and is_out_of_memory(error)):
            raise
        failed = runs if len(runs) == 1 else [run for run in runs if _fails(work_of, run)]
        # Where each of several runs fails by itself, the cause is something that they share.
        if failed and (len(failed) < len(runs) or len(runs) == 1):
            error.add_note(_note(failed, all_runs, saved, when))
        raise


def _is_saved(run: Run, error: Exception) -> bool:
    """Save the state of a run after an error, and return whether it is on disk; a failure is noted in that error."""
    try:
        run.save_state()
    except Exception as failure:
        error.add_note(f"The state of {name_of(run.config)} could not be saved: {first_line(failure)}")
        return False
    return run.config.folder is not None


def _fails(work_of: Callable[[Run], object], run: Run) -> bool:
    """Whether the work of a run alone raises an error."""
    try:
        work_of(run)
    except Exception:
        return True
    return False


def _note(failed: Sequence[Run], all_runs: Sequence[Run], saved: Sequence[Run], when: str) -> str:
    """In words, which runs have failed, and from where the others can be resumed. saved: the runs that are on disk."""
    names = " and ".join(name_of(run.config) for run in failed)
    # Runs are compared by identity, because == of two runs would compare their tensors.
    others = [run for run in all_runs if run.end is None and all(run is not each for each in failed)]
    texts = [
        f"seed {run.config.seed} from meta-iteration {run.meta_step}"
        for run in others
        if any(run is each for each in saved)
    ]
    if texts:
        resumed = f"the same call resumes {', '.join(texts)}"
    elif any(run.config.folder for run in others):
        resumed = "their states could not be saved"
    else:
        resumed = "they have no folder to be resumed from"
    return f"It was raised by {names} {when}." + (f" The other runs were stopped; {resumed}." if others else "")
