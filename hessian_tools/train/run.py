"""A training run: its state while it trains, and its folder, from which it is resumed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.failures import first_line
from hessian_tools.inner.shot import squared_error
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss
from hessian_tools.nets import seeded
from hessian_tools.random_states import restored_random_states
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import fsync, read_json, write_json
from hessian_tools.runs.manifest import record_ownership, training_digest
from hessian_tools.train.config import Checkpoint, TrainConfig
from hessian_tools.train.warm_start import first_parameters

DIVERGED = "diverged.json"  # the file in a run's folder that records a divergence
SAVE_SECONDS = 10.0  # the work of at most this time is lost when a run is killed

Progress = Callable[[int, float], None]  # called with (meta-iteration, query loss)


@dataclass
class Run:
    """A run while it trains. A run without a folder saves nothing.

    theta: the meta-parameters [meta]. meta_step: the number of outer steps that have been taken.
    saved_at: the time of the last save, by the clock ``monotonic``.
    digest: the digest of the training; None without a folder.
    end: what is yielded in place of further checkpoints, once training has diverged.
    """

    config: TrainConfig
    progress: Progress | None
    loss: Loss
    theta: Tensor
    optimiser: torch.optim.Optimizer
    meta_step: int = 0
    saved_at: float = field(default_factory=monotonic)
    digest: str | None = None
    end: Checkpoint | None = None

    def is_on_disk(self, meta_step: int) -> bool:
        """Whether the run has a checkpoint at this meta-iteration, in a file of its folder."""
        folder = self.config.folder
        return folder is not None and checkpoints.checkpoint_path(folder, meta_step).exists()

    def saved_checkpoint(self, meta_step: int) -> Checkpoint:
        """The checkpoint at a meta-iteration, from its file."""
        assert self.config.folder is not None
        checkpoint = _read(self.config.folder, meta_step)
        return replace(checkpoint, theta=checkpoint.theta.to(self.theta.device))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint into its file."""
        if self.config.folder is None:
            return
        numbers = torch.tensor(
            [checkpoint.validation_loss, checkpoint.validation_accuracy], dtype=torch.float64, device="cpu"
        )
        path = checkpoints.checkpoint_path(self.config.folder, checkpoint.meta_step)
        checkpoints.save(path, {"theta": checkpoint.theta, "validation": numbers}, **self._facts(checkpoint.meta_step))

    def save_state(self) -> None:
        """Write the state from which the run is resumed."""
        if self.config.folder is None:
            return
        tensors = checkpoints.state(self.optimiser, self.theta, self.meta_step)
        fsync(self.config.folder / metrics.NAME)  # a resumed run relies on the lines up to the state
        checkpoints.save(checkpoints.state_path(self.config.folder), tensors, **self._facts(self.meta_step))
        self.saved_at = monotonic()

    def finish_step(self, row: dict[str, Any]) -> None:
        """Count an outer step that was taken, write its line of the metrics, save if that is due, and report it."""
        self.meta_step += 1
        row = {"meta_step": self.meta_step} | row
        if self.config.folder:
            metrics.append(self.config.folder / metrics.NAME, row, run=self.digest)
            save_is_due = self.config.save_every and self.meta_step % self.config.save_every == 0
            if save_is_due or monotonic() - self.saved_at > SAVE_SECONDS:
                self.save_state()
        if self.progress:
            self.progress(self.meta_step, row["query_loss"])

    def diverge(self, until: int) -> None:
        """End the run, because its next step would not be finite.

        until: the meta-iteration of the next checkpoint, in place of which the present parameters are yielded.
        """
        if self.config.folder:
            fsync(self.config.folder / metrics.NAME)
            write_json(self.config.folder / DIVERGED, {"meta_step": self.meta_step + 1})
        self.end = Checkpoint(until, self.theta.detach().clone(), float("nan"), float("nan"), diverged=True)

    def _facts(self, meta_step: int) -> dict[str, Any]:
        """The facts that a saved file holds about itself: its run (by the digest), learner, seed and meta-iteration."""
        run_facts = {"run": self.digest, "learner": self.config.learner.name, "seed": self.config.seed}
        return run_facts | {"meta_step": meta_step}


def start(config: TrainConfig, progress: Progress | None) -> Run:
    """The run in the state that training goes on from: the newest saved one, or that of a new run."""
    loss, theta = task_loss(config)
    first_episode = config.tasks.episode(seed=config.seed, split="train", index=0)
    _refuse_unfit(config, loss, theta, first_episode.support[0])
    loss.refuse_hidden_state(theta, first_episode.support)
    theta = first_parameters(config, loss, theta).requires_grad_()
    optimiser_class = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
    run = Run(config, progress, loss, theta, optimiser_class([theta], lr=config.learning_rate))
    if config.folder is None:
        return run
    record_ownership(config.folder, "training", config.identity(loss.layout))
    run.digest = training_digest(config.folder)
    saved = checkpoints.state_path(config.folder)
    if saved.exists():
        run.meta_step = checkpoints.restore(run.optimiser, theta, saved, run=run.digest)
    # Lines are numbered from 1. Where no state was saved, ``meta_step`` is 0, so every line is dropped.
    metrics.keep_until(config.folder / metrics.NAME, run.meta_step)
    return run


def task_loss(config: TrainConfig) -> tuple[Loss, Tensor]:
    """The loss of the run's tasks, and the network's untrained parameters [param], on the run's device."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={config.device!r} is not available, because torch finds no GPU; use 'cpu'")
    model = seeded(config.network, seed=config.seed)
    theta, layout = flatten(model, head=config.head)
    criterion = F.cross_entropy if config.tasks.kind == "classification" else squared_error
    return make_loss(model.to(config.device), criterion, layout), theta.to(config.device)


def _refuse_unfit(config: TrainConfig, loss: Loss, theta: Tensor, x: Tensor) -> None:
    """Raise ValueError where the network's inputs or outputs do not fit the tasks.

    A classifier may have more outputs than there are classes, because no label names the further ones.
    """
    name, needed = type(loss.model).__name__, config.tasks.outputs
    try:
        with torch.no_grad(), restored_random_states():
            outputs = loss.outputs(theta, x)
    except RuntimeError as e:
        raise ValueError(f"{name} cannot take examples of shape {tuple(x.shape[1:])}: {first_line(e)}") from e
    width = outputs.shape[-1]
    if outputs.shape[:-1] != x.shape[:1] or width < needed or (config.tasks.kind == "regression" and width != needed):
        raise ValueError(
            f"{name} makes shape {tuple(outputs.shape)} of {len(x)} examples; the tasks need ({len(x)}, {needed})"
        )


def diverged_at(folder: str | Path) -> int | None:
    """The meta-iteration at which a run on disk diverged; None where it did not."""
    path = Path(folder) / DIVERGED
    return int(read_json(path, "meta_step")["meta_step"]) if path.exists() else None


def saved_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """The checkpoints of a run on disk, from the first to the last."""
    folder = Path(folder)
    meta_steps = sorted(int(path.stem) for path in (folder / checkpoints.FOLDER).glob("[0-9]*.safetensors"))
    return [_read(folder, meta_step) for meta_step in meta_steps]


def _read(folder: Path, meta_step: int) -> Checkpoint:
    tensors = checkpoints.load_checkpoint(folder, meta_step)
    return Checkpoint(meta_step, tensors["theta"], *tensors["validation"].tolist())
