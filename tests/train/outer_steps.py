"""Two small configurations, one of regression and one of images, and the meta-gradient of an outer step in float64."""

from functools import partial

import torch
from torch import Tensor, nn

from hessian_tools import MLP, Conv4, TrainConfig, learners
from hessian_tools.data import open_tasks
from hessian_tools.train import task_loss
from hessian_tools.train.outer import accumulate_gradient
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters

SINE = TrainConfig(
    learner=learners.maml(3, 0.01),
    tasks=open_tasks("sine-line"),
    network=partial(MLP, (1, 6, 1), activation=nn.Tanh),
    meta_batch=3,
)
IMAGES = TrainConfig(
    learner=learners.maml(2, 0.05),
    tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
    network=partial(Conv4, 3, width=4),
    meta_batch=3,
)


def mean_gradient(config: TrainConfig, chunks: TaskChunks | None = None) -> Tensor:
    """The mean meta-gradient of outer step 5, followed by one number for each task: the sum of parts of its loss.

    chunks: how many tasks are computed at once; None follows the configuration.
    """
    loss, theta = task_loss(config)
    meta = first_parameters(config, loss, theta.double()).requires_grad_()
    aux = accumulate_gradient(config, loss, meta, 5, chunks=chunks)
    assert len(aux) == config.meta_batch
    assert not aux[0].query_loss.requires_grad
    numbers = torch.stack([torch.stack([a.query_loss, a.support_loss, a.output_variation]).sum() for a in aux])
    if config.penalty is not None:
        numbers = numbers + torch.stack([a.relative_change for a in aux])
    return torch.cat([meta.grad, numbers])
