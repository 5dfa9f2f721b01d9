"""Outer steps whose tasks are shared by the processes of a group, as ``torchrun`` starts them.

The first process leads: it alone has the optimiser, validates, and writes the run's folder. It tells the others what
comes next, a step or a checkpoint or the end, so that all of them do the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hessian_tools.inner.meta_loss import Aux
from hessian_tools.loss import Loss
from hessian_tools.processes import OtherProcessFailed, ProcessLost, Ranks, checked_group
from hessian_tools.train.config import Checkpoint, TrainConfig
from hessian_tools.train.outer import add_task_gradient

Order = Literal["step", "checkpoint", "end"]


class GroupStep:
    """Computes the outer steps of one run together with the other processes of a group.

    With P processes, process p computes the tasks p, p + P, p + 2 P and so on. The gradients of all tasks are added in
    the order of the tasks, as ``backward`` adds them in one process that computes one task after the other. The sum is
    therefore the same to the bit.

    Raises ValueError where the processes have different runs, and for options that share tasks in another way.
    """

    def __init__(self, config: TrainConfig, loss: Loss, theta: Tensor, process_group: Any) -> None:
        if config.workers > 1 or config.batched or config.tasks_at_once:
            raise ValueError(
                f"workers={config.workers}, batched={config.batched} and tasks_at_once={config.tasks_at_once} share "
                "the tasks of a step in another way than a process group does; leave them out"
            )
        self.config, self.loss = config, loss
        self.ranks = Ranks(checked_group(process_group), theta.device)
        self.others_wait = True  # whether the other processes wait for an order of the first one
        runs = self.ranks.gather((config.identity(loss.layout), config.checkpoints))
        for rank, run in enumerate(runs):
            if run != runs[0]:
                raise ValueError(f"process {rank} has other settings of the run than process 0; give all the same")

    @property
    def leads(self) -> bool:
        """True on the first process."""
        return self.ranks.rank == 0

    def accumulate_gradient(self, theta: Tensor, meta_step: int) -> list[Aux]:
        """On the first process: compute an outer step with all processes, like ``outer.accumulate_gradient`` in one."""
        self.tell("step", meta_step)
        return self._step(theta, meta_step)

    def tell(self, order: Order, what: Any = None) -> None:
        """On the first process: say what comes next.

        what: the meta-iteration of a step, a checkpoint, or the error that ends the run, if there was one.
        """
        self.ranks.from_process(0, (order, what))

    def close(self, error: BaseException | None = None) -> None:
        """On the first process: end the run on the other processes, and tell them the error, if there was one."""
        if self.others_wait and not isinstance(error, OtherProcessFailed | ProcessLost):
            self.others_wait = False
            self.tell("end", None if error is None else f"{type(error).__name__}: {error}")

    def follow(self, theta: Tensor) -> Iterator[Checkpoint]:
        """On every other process: compute shares until the end, and yield the checkpoints of the first process."""
        while True:
            order, what = self.ranks.from_process(0, None)
            if order == "step":
                self._step(theta, what)
            elif order == "checkpoint":
                yield replace(what, theta=what.theta.to(theta.device))
            elif what is not None:
                raise OtherProcessFailed(f"process 0 of {self.ranks.size} has stopped, so this one does too: {what}")
            else:
                return

    def _step(self, theta: Tensor, meta_step: int) -> list[Aux]:
        """The sum of the gradients in ``theta.grad``, and the parts of each task's loss, on every process."""
        ranks, count = self.ranks, self.config.meta_batch
        with torch.no_grad():
            theta.copy_(ranks.first(theta))
        theta.grad = None
        self.others_wait = False  # if the step fails, every process raises an error, and none waits for an order
        gradients, parts = ranks.with_shared_errors(lambda: self._own_tasks(theta, meta_step))
        aux = torch.zeros(count, len(Aux._fields), dtype=theta.dtype, device=theta.device)
        # Each process fills in the rows of its own tasks. The sum over the processes then holds all rows.
        for j in range(count):
            owner = j % ranks.size
            row = gradients.pop(0) if owner == ranks.rank else torch.empty_like(theta.detach())
            ranks.broadcast(row, owner)
            theta.grad = row if theta.grad is None else theta.grad.add_(row)
            aux[j] = parts.pop(0) if owner == ranks.rank else 0
        total = ranks.sum(aux)
        self.others_wait = True
        return [Aux(*row) for row in total]

    def _own_tasks(self, theta: Tensor, meta_step: int) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the tasks of this process, and the parts of their losses."""
        gradients, parts = [], []
        for j in range(self.ranks.rank, self.config.meta_batch, self.ranks.size):
            point = theta.detach().clone().requires_grad_()
            parts.append(torch.stack(add_task_gradient(self.config, self.loss, point, meta_step, j)))
            gradients.append(torch.zeros_like(point) if point.grad is None else point.grad)
        return gradients, parts
