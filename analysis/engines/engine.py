"""The interface of the engines, and the function that opens the engine for the place that the user has chosen."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from analysis.engines import processes
from analysis.engines.place import Place
from analysis.study import Study
from hessian_tools.runs.worker_pool import Emit, Work, ignore_progress


class Engine(Protocol):
    """Does units of work. A unit is a picklable value; its ``str`` says what is done, as in "training maml seed 0"."""

    @property
    def min_units(self) -> int | None:
        """The least number of units into which the runs of a study are divided, as far as there are runs.

        It is the number of workers or jobs that the user has asked for, each of which should have some work. With None
        each run is a unit.
        """
        ...

    def run(self, work: Work, units: Sequence[Any], *, emit: Emit = ignore_progress) -> None:
        """Call ``work(unit, emit)`` once for every unit, somewhere, and return when all are done.

        work: an importable function; it leaves out what is already in the study's folder.
        emit: called in this process with (amount, note) as the work reports its progress.

        An error of a unit is raised here, at once, and all other work is stopped. Raises WorkerLost, which names the
        unit and the worker, where a worker ended without an answer. Work that is interrupted, as by Ctrl-C, is stopped
        wherever it runs.
        """
        ...


def open_engine(study: Study, place: Place) -> AbstractContextManager[Engine]:
    """The engine of a place, for the work of one study.

    It is a context. The caller locks the study's folder before it enters that context.
    Raises UserError where the place does not exist, or needs a package that is not installed.
    """
    # Engines that need a further package are imported only where they are asked for.
    if place.cluster is not None:
        from analysis.engines.cluster import cluster

        return cluster(study, place.cluster)
    if place.dask is not None:
        from analysis.engines.dask_cluster import dask_cluster

        return dask_cluster(study, place.dask)
    return processes.pool(study, place)
