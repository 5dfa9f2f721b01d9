"""Starts processes that run functions together, and brings back what each process returned.

The processes talk to each other by gloo, torch's communication between CPUs.
"""

import os
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = (2, 4)
SIZE = max(SIZES)
# How long a process waits for another one. Those without a part in a case wait until the others have done it, which
# takes seconds on a quiet machine.
PATIENCE = timedelta(minutes=10)


def results_of(cases: dict[tuple[str, int], Any], folder: Path) -> dict[tuple[str, int], list[Any]]:
    """What each case returned in each process of its group, by (name, size). For an error, it is the error's text.

    cases: functions of a process group, by a name and the size of the group. The cases run one after the other in the
        same processes; those beyond the size of a case's group do not run the case.
    """
    processes = mp.start_processes(_serve, (cases, folder), nprocs=SIZE, start_method="spawn", join=False).processes
    for process in processes:
        process.join()
    files = [folder / f"{rank}.pt" for rank in range(SIZE)]
    found = [torch.load(file, weights_only=False) for file in files if file.exists()]  # a killed process may have none
    return {key: [own[key] for own in found if key in own] for key in cases}


def message_of(call: Callable[[], Any]) -> str:
    """The type and the words of the error that a call raises; "nothing" if it raises none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def check_messages(
    of_processes: Iterable[Any], expected: tuple[str, ...], holds: Callable[[str, str], bool] = str.__contains__
) -> None:
    """Asserts that every process gave the expected messages.

    of_processes: the list of messages of each process. The text of an error in place of a list fails.
    holds: whether a message has the expected words. By default it must contain them, and with ``str.startswith`` it
        must begin with them.
    """
    for messages in of_processes:
        assert not isinstance(messages, str), messages
        for words, message in zip(expected, messages, strict=True):
            assert holds(message, words), (words, message)


def _serve(rank: int, cases: dict[tuple[str, int], Any], folder: Path) -> None:
    """Run the cases in the process ``rank``, and save what they return in the folder after each of them."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # all processes are on this machine
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=PATIENCE)
    groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    results = {}
    for (name, size), case in cases.items():
        if rank < size:
            try:
                results[name, size] = case(groups[size])
            except Exception:
                results[name, size] = traceback.format_exc()
        torch.save(results, folder / f"{rank}.pt")
        if not name.startswith("killed"):  # a killed process would never reach the barrier
            dist.barrier()
    dist.destroy_process_group()
