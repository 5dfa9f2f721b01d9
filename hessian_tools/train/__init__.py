"""Meta-training and evaluation: where tasks, network, learner and the run on disk come together."""

from hessian_tools.train.classes import ClassBatches
from hessian_tools.train.config import Checkpoint, TrainConfig, logarithmic_schedule
from hessian_tools.train.evaluate import Evaluation, best_checkpoint, evaluate, over_seeds
from hessian_tools.train.loop import meta_train, meta_train_runs
from hessian_tools.train.run import DIVERGED, diverged_at, saved_checkpoints, task_loss

# A training run, and what it is made of.
__all__ = ["TrainConfig", "meta_train", "meta_train_runs", "Checkpoint", "logarithmic_schedule", "task_loss"]
__all__ += ["ClassBatches"]
# A run on disk.
__all__ += ["saved_checkpoints", "diverged_at", "DIVERGED"]
# Evaluation of a run's networks.
__all__ += ["evaluate", "Evaluation", "best_checkpoint", "over_seeds"]
