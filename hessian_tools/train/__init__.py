"""Meta-training and evaluation: where tasks, network, learner and the run on disk come together."""

from hessian_tools.train.classes import ClassBatches
from hessian_tools.train.config import Checkpoint, TrainConfig, logarithmic_schedule
from hessian_tools.train.evaluate import Evaluation, best_checkpoint, evaluate, over_seeds
from hessian_tools.train.loop import DIVERGED, diverged_at, meta_train, saved_checkpoints, task_loss

__all__ = [
    "DIVERGED",
    "Checkpoint",
    "ClassBatches",
    "Evaluation",
    "TrainConfig",
    "best_checkpoint",
    "diverged_at",
    "evaluate",
    "logarithmic_schedule",
    "meta_train",
    "over_seeds",
    "saved_checkpoints",
    "task_loss",
]
