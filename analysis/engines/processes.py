"""The engine of this machine: worker processes of one thread each, on its CPU or on its GPUs (here called cards)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from analysis.engines.place import Place
from analysis.engines.sharing import training_jobs, workers_on_card
from analysis.errors import UserError
from analysis.study import Study
from hessian_tools.runs.worker_pool import WorkerPool, available_cores

# The share of a card's memory that the tensors of all its workers may take, where several workers are on one card. The
# rest is for their CUDA contexts.
SHARED_PART = 0.9


class Processes(WorkerPool):
    """The worker processes of a study; ``min_units`` is explained in ``analysis.engines.engine.Engine``."""

    def __init__(
        self, workers: int, *, min_units: int | None = None, adapt: Callable[[Any, int], Any] | None = None
    ) -> None:
        super().__init__(workers, adapt=adapt)
        self.min_units = workers if min_units is None else min_units

    def __enter__(self) -> "Processes":
        return self


def pool(study: Study, place: Place) -> Processes:
    """The worker processes of a study.

    There is one for each entry of ``place.devices``, or ``place.workers`` of them. If the place gives neither, a small
    study is computed in the present process. On the CPU, any other study has a worker for each core. On a card, it has
    one for each unit of training, as far as the card's memory allows; see ``analysis.engines.sharing``. Workers on one
    card have equal shares of its memory.

    Raises UserError for a card that this machine lacks.
    """
    if study.device == "cuda" and not torch.cuda.is_available():
        option = f"--devices {','.join(place.devices)}" if place.devices else "--device cuda"
        raise UserError(f"{option}: this torch sees no CUDA device; use cpu, or install a CUDA build")
    if place.devices:
        for device in place.devices:
            number = int(device.partition(":")[2] or 0)
            if study.device == "cuda" and number >= torch.cuda.device_count():
                raise UserError(
                    f"--devices: there is no {device}; the cards of this machine are cuda:0 to"
                    f" cuda:{torch.cuda.device_count() - 1}"
                )
        return Processes(len(place.devices), adapt=partial(on_device, place.devices))
    workers, min_units = place.workers, None
    if workers is None:
        workers = 0 if _is_small(study) else available_cores()
        if study.device == "cuda":
            # Later, when few runs are left, the runs of a learner still stay together, even if a worker has no work.
            min_units = 1
            units = training_jobs(study, study.runs_to_train, min_units)
            card_bytes = torch.cuda.get_device_properties(0).total_memory
            workers = workers and workers_on_card(card_bytes, len(units))
    if study.device == "cuda":
        return Processes(workers, min_units=min_units, adapt=partial(on_device, ("cuda",) * workers))
    return Processes(workers)


def on_device(devices: tuple[str, ...], unit: Any, worker: int) -> Any:
    """The unit of work as the worker with that number does it: on the worker's device, with its share of the memory.

    devices: the device of each worker. A pool without workers never calls this function.
    """
    num_workers = devices.count(devices[worker])  # on the same device
    share = 1.0 if num_workers == 1 or devices[worker] == "cpu" else SHARED_PART / num_workers
    return replace(unit, study=replace(unit.study, device=devices[worker], device_share=share))


def _is_small(study: Study) -> bool:
    """True if starting worker processes, which takes some seconds, would cost more than it saves."""
    train_settings = study.config.train
    num_training_tasks = len(study.runs_to_train) * train_settings.checkpoints[-1] * train_settings.meta_batch
    return num_training_tasks < 500  # a rough limit
