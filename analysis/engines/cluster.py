"""The engine of a cluster: SLURM jobs, or processes on this machine to try it out, by the package submitit."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from analysis.config.cluster import ClusterConfig, load_cluster
from analysis.engines.remote import HIDDEN, Failure, JobLost, RemoteEngine, Share, do_share
from analysis.errors import UserError
from analysis.study import Study

COMMANDS = ("sbatch", "srun", "sacct", "scancel")  # of SLURM
MAX_TIMEOUTS = 10  # how often a job that needs more than its time is queued again; it goes on from what it has saved


def cluster(study: Study, file: Path) -> AbstractContextManager[RemoteEngine]:
    """An engine that does a study's work in jobs with the settings of a cluster's file.

    Raises UserError for a mistake in the file, or where submitit or SLURM is missing.
    """
    config = load_cluster(file)
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--cluster needs the package submitit; install it: pip install 'hessian-tools[cluster]'"
        ) from None
    if config.executor == "slurm" and (missing := [name for name in COMMANDS if shutil.which(name) is None]):
        raise UserError(
            f"{file}: executor: slurm needs {', '.join(missing)} on the PATH, as on a login node of the cluster; start"
            " there, or try the file out with executor: local"
        )
    # What the jobs print lies here. A folder of its own for each command, because local jobs are named by numbers that
    # are used again.
    logs = study.path.absolute() / HIDDEN / f"jobs-{uuid4().hex[:8]}"

    def submit(shares: list[Share]) -> list[_Job]:
        timeouts = {f"{config.executor}_max_num_timeout": MAX_TIMEOUTS}
        executor = submitit.AutoExecutor(folder=logs, cluster=config.executor, **timeouts)
        executor.update_parameters(**_parameters(config))
        try:
            return [_Job(job) for job in executor.submit_array([_Task(share) for share in shares])]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"{file}: the jobs were refused: {' '.join(str(error).split())}") from None

    remove_logs = partial(shutil.rmtree, logs.parent, ignore_errors=True)
    return nullcontext(RemoteEngine(study.path, submit, config.jobs, on_success=remove_logs))


def _parameters(config: ClusterConfig) -> dict[str, Any]:
    """The settings by submitit's names; it leaves those of SLURM out for local jobs."""
    return {
        "name": "hessian-tools",
        "timeout_min": config.minutes,
        "mem_gb": config.memory_gb,
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.gpus or None,
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "slurm_qos": config.qos,
        "slurm_constraint": config.constraint,
        "slurm_array_parallelism": config.jobs,
        "slurm_additional_parameters": dict(config.sbatch) or None,
        f"{config.executor}_setup": list(config.setup) or None,
    }


@dataclass(frozen=True)
class _Task:
    """What a job calls."""

    share: Share

    def __call__(self) -> Failure | None:
        return do_share(self.share)

    def checkpoint(self) -> Any:
        """What submitit queues again where the job's time is up, or where it had to make room for another job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Job:
    """A job of submitit; see :class:`analysis.engines.remote.Job`."""

    def __init__(self, job: Any) -> None:
        self._job, self.name = job, f"job {job.job_id}"

    def done(self) -> bool:
        """True if there is a result, or if the cluster says that the job has ended."""
        return bool(self._job.done())

    def answer(self) -> Failure | None:
        """The result of the job; submitit waits some seconds for the file, where the file system is late."""
        error = self._job.exception()
        if error is None:
            return self._job.result()  # type: ignore[no-any-return]
        log, state = self._job.paths.stderr, self._job.state
        if log.exists():
            raise JobLost(f"{state}, its output is in {log}")
        raise JobLost(
            f"{state}, without any output: perhaps its machine does not see {log.parent}, and --out must be on a file"
            " system that all machines share"
        )

    def cancel(self) -> None:
        """Run scancel, or interrupt the local process."""
        self._job.cancel(check=False)
