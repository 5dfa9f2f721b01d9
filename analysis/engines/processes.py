"""The engine of this machine: worker processes of one thread each, on its CPU or on its GPUs (here called cards)."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from analysis.engines.place import Place
from analysis.errors import UserError
from analysis.study import Study
from hessian_tools.runs.worker_pool import WorkerPool, available_cores

# On a card a worker that measures needs some 9 GiB: half a GiB for its CUDA context, 4 GiB for products and 4 GiB for
# the Lanczos bases of a search for eigenvalues. The rest of the 16 GiB is room for the tasks that it trains at once.
CARD_BYTES_PER_WORKER = 16 * 2**30
# The share of a card's memory that the tensors of all its workers may take, where several workers are on one card. The
# rest is for their CUDA contexts.
SHARED_PART = 0.9


def pool(study: Study, place: Place) -> WorkerPool:
    """The worker processes of a study.

    There is one for each entry of ``place.devices``, or ``place.workers`` of them. If the place gives neither, a small
    study is computed in the present process. On the CPU, any other study has a worker for each core. On a card, it has
    one for each 16 GiB of the card's memory, but no more than runs or cores. Workers on one card have equal shares of
    its memory.

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
        return WorkerPool(len(place.devices), adapt=partial(on_device, place.devices))
    workers = place.workers
    if workers is None:
        workers = 0 if _is_small(study) else available_cores()
        if workers and study.device == "cuda":
            workers = workers_on_card(torch.cuda.get_device_properties(0).total_memory, len(study.runs_to_train))
    if study.device == "cuda":
        return WorkerPool(workers, adapt=partial(on_device, ("cuda",) * workers))
    return WorkerPool(workers)


def workers_on_card(card_bytes: int, runs: int) -> int:
    """The number of worker processes that share a card by default; 0 means that this process does the work itself.

    It follows from the card's memory, and is at most the number of runs and of cores.

    >>> workers_on_card(24 * 2**30, runs=20)
    0
    """
    workers = min(card_bytes // CARD_BYTES_PER_WORKER, runs, available_cores())
    return workers if workers > 1 else 0


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
