"""Worker processes that share an outer step's tasks; their sum is that of one process, to the bit.

Each has one thread and a fixed part of the tasks. Parameters and gradients lie in shared memory, and
the gradients are added in the order of the tasks. A worker ends when its pipe does: with the run, with
an error, with Ctrl-C, or with a parent that was killed.
"""

import pickle
import signal
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import get_context

from hessian_tools.inner.meta_loss import Aux
from hessian_tools.loss import Loss
from hessian_tools.train.config import TrainConfig
from hessian_tools.train.outer import add_task_gradient

NAMES = tuple(Aux.__dataclass_fields__)
PATIENCE = 10.0  # seconds between the end of a pipe and the end of what does not heed it


class Workers:
    """``config.workers`` processes for the outer steps of one run; ``close`` ends them."""

    def __init__(self, config: TrainConfig, loss: Loss, theta: Tensor) -> None:
        tasks = config.meta_batch
        self._theta = theta.detach().clone().share_memory_()
        self._gradients = theta.new_zeros(tasks, len(theta)).share_memory_()
        self._aux = theta.new_zeros(tasks, len(NAMES)).share_memory_()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        context = get_context("spawn")
        try:
            for part in torch.arange(tasks, device="cpu").tensor_split(config.workers):
                ours, theirs = context.Pipe()
                shared = (self._theta, self._gradients, self._aux)
                process = context.Process(
                    target=_serve, args=(theirs, config, loss, part.tolist(), *shared), daemon=True
                )
                self._pipes.append(ours)
                process.start()
                self._processes.append(process)
                theirs.close()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise ValueError(
                f"workers={config.workers}: the run cannot be sent to another process ({error});"
                " build the network and the tasks from importable functions, not lambdas, or use workers=1"
            ) from None

    def accumulate_gradient(self, theta: Tensor, meta_step: int) -> list[Aux]:
        """As ``hessian_tools.train.outer.accumulate_gradient``; what a worker raised is raised here."""
        with torch.no_grad():
            self._theta.copy_(theta)
        for number, pipe in enumerate(self._pipes):
            self._ask(number, lambda pipe=pipe: pipe.send(meta_step))
        for failure in [self._ask(number, pipe.recv) for number, pipe in enumerate(self._pipes)]:
            if failure is not None:
                raise failure
        for gradient in self._gradients:  # one by one, as backward adds them in one process
            theta.grad = gradient.clone() if theta.grad is None else theta.grad.add_(gradient)
        return [Aux(*row) for row in self._aux.clone()]

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the workers and wait for them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def _ask(self, number: int, call: Any) -> Any:
        try:
            return call()
        except (EOFError, OSError):
            self._processes[number].join(PATIENCE)
            code = self._processes[number].exitcode
            raise RuntimeError(
                f"worker process {number} ended (exit code {code}); what was saved is whole:"
                " run the same again, with workers=1 if memory was short"
            ) from None


def _serve(
    pipe: Connection, config: TrainConfig, loss: Loss, tasks: list[int], theta: Tensor, gradients: Tensor, aux: Tensor
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent's end is ours
    torch.set_num_threads(1)
    point = theta.detach().clone().requires_grad_()
    try:
        while True:
            pipe.send(_step(config, loss, tasks, point, theta, gradients, aux, pipe.recv()))
    except (EOFError, OSError):
        return


def _step(
    config: TrainConfig,
    loss: Loss,
    tasks: list[int],
    point: Tensor,
    theta: Tensor,
    gradients: Tensor,
    aux: Tensor,
    meta_step: int,
) -> Exception | None:
    try:
        with torch.no_grad():
            point.copy_(theta)
        for j in tasks:
            point.grad = None
            seen = add_task_gradient(config, loss, point, meta_step, j)
            gradients[j] = torch.zeros_like(point) if point.grad is None else point.grad
            aux[j] = torch.stack([getattr(seen, name) for name in NAMES])
    except Exception as error:
        return error
    return None
