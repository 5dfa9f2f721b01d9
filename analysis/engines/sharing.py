"""How the runs of a study share a GPU: which of them are trained together, and how many processes work on it.

The rule: runs of one learner are trained together first, and only then do several processes share the GPU. A single run
leaves most of a GPU idle, because launching its operations takes longer than computing them: on an H200, an outer step
on 16 tasks of a network of four convolutions took 1.2 times as long as one on 4 tasks. Runs that are trained together
share their launches in the same way. Processes with a run each launch all operations once for every run, take turns on
the GPU, and divide its memory. Processes are therefore for what cannot be trained together: the learners. There are no
more of them than such units of training, so that none takes a part of the memory for nothing.

A user who gives the number of workers, devices or jobs wants all of them to work. The runs of a learner are then
divided until every worker has some, as far as there are runs.
"""

from collections.abc import Container, Sequence
from math import ceil

import torch

from analysis.study import Study
from hessian_tools.runs.worker_pool import available_cores

# On a card a worker that measures needs some 9 GiB: half a GiB for its CUDA context, 4 GiB for products and 4 GiB for
# the Lanczos bases of a search for eigenvalues. The rest of the 16 GiB is room for the tasks that it trains at once.
CARD_BYTES_PER_WORKER = 16 * 2**30
# What runs that are trained together may hold between their outer steps; the tasks of a step need the rest. It is a
# limit for networks of many millions of parameters only: the tasks themselves are computed in chunks that fit.
BYTES_OF_RUNS = 4 * 2**30
# A run holds its parameters, their gradient and two moments of Adam, and twice that where a learner learns a step size
# for each parameter.
VECTORS_OF_A_RUN = 8
BYTES_OF_A_NUMBER = 4  # in float32

Run = tuple[str, int]  # a learner and a seed


def training_jobs(study: Study, runs: Sequence[Run], min_units: int | None) -> list[tuple[str, tuple[int, ...]]]:
    """The learner and the seeds of each unit in which runs are trained; min_units is that of the engine."""
    together = set() if min_units is None else {name for name, _ in runs if trains_together(study, name)}
    at_most = len(runs)
    if together:
        at_most = BYTES_OF_RUNS // (VECTORS_OF_A_RUN * BYTES_OF_A_NUMBER * study.problem.layout.numel)
    return shared_out(runs, together, at_least=min_units or 1, at_most=max(1, at_most))


def trains_together(study: Study, learner: str) -> bool:
    """Whether the runs of a learner are trained together: on a GPU, most of which a single run would leave idle.

    On a CPU each run is trained alone, so that its numbers do not depend on the other runs, not even in their rounding.
    LEO's tasks and those of outer steps with one task are computed in turn, so nothing would be gained there.
    """
    computed_at_once = study.learners[learner].learner.latent is None and study.config.train.meta_batch > 1
    return computed_at_once and torch.device(study.device).type == "cuda"


def shared_out(
    runs: Sequence[Run], together: Container[str], *, at_least: int, at_most: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Divide runs into jobs of one learner each: as few jobs as possible, given as the learner and the seeds.

    together: the learners whose runs can be trained together; each run of the others is a job by itself.
    at_least: the smallest number of jobs; where there are fewer runs, each of them is a job.
    at_most: the largest number of runs in a job.

    >>> runs = [("maml", 0), ("maml", 1), ("maml", 2), ("maml", 3), ("leo", 0), ("leo", 1)]
    >>> shared_out(runs, ["maml"], at_least=1, at_most=8)
    [('maml', (0, 1, 2, 3)), ('leo', (0,)), ('leo', (1,))]
    >>> shared_out(runs, ["maml"], at_least=4, at_most=8)
    [('maml', (0, 2)), ('maml', (1, 3)), ('leo', (0,)), ('leo', (1,))]
    """
    groups: dict[tuple[str, int | None], list[int]] = {}  # a run that is a job by itself has its seed in the key
    for learner, seed in runs:
        groups.setdefault((learner, None if learner in together else seed), []).append(seed)
    at_most = min(at_most, max(map(len, groups.values()), default=1))
    while at_most > 1 and sum(ceil(len(seeds) / at_most) for seeds in groups.values()) < at_least:
        at_most -= 1
    jobs = []
    for (learner, _), seeds in groups.items():
        # The jobs of a learner have nearly equally many runs, so that their workers end at about the same time.
        num_jobs = ceil(len(seeds) / at_most)
        jobs += [(learner, tuple(seeds[first::num_jobs])) for first in range(num_jobs)]
    return jobs


def workers_on_card(card_bytes: int, units: int) -> int:
    """The number of worker processes that share a card by default; 0 means that this process does the work itself.

    units: the number of units of training, where as many runs as possible are trained together. There is a worker for
    each of them, but no more than cores, and than the card's memory allows.

    >>> workers_on_card(24 * 2**30, units=20)
    0
    """
    workers = min(card_bytes // CARD_BYTES_PER_WORKER, units, available_cores())
    return workers if workers > 1 else 0
