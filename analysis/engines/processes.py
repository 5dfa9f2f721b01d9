"""The engine of this machine: worker processes of one thread each, perhaps with a card for each of them."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from analysis.engines.place import Place
from analysis.errors import UserError
from analysis.study import Study
from hessian_tools.runs.worker_pool import WorkerPool, available_cores


def pool(study: Study, place: Place) -> WorkerPool:
    """The worker processes of a study: one for each device, or as many as are asked for, or one for each core.

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
        return WorkerPool(len(place.devices), place=partial(on_device, place.devices))
    workers = place.workers
    if workers is None:
        workers = 0 if study.device == "cuda" or _is_small(study) else available_cores()
    return WorkerPool(workers)


def on_device(devices: tuple[str, ...], unit: Any, worker: int) -> Any:
    """The unit of work as the worker with that number does it: on its own device."""
    return replace(unit, study=replace(unit.study, device=devices[worker]))


def _is_small(study: Study) -> bool:
    """True if starting worker processes, which takes some seconds, would cost more than it saves."""
    train_settings = study.config.train
    num_training_tasks = len(study.runs_to_train) * train_settings.checkpoints[-1] * train_settings.meta_batch
    return num_training_tasks < 500  # a rough limit
