"""The engine that works in SLURM jobs or, to try it out, in processes on this machine, by the package submitit."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from analysis.config.cluster import ClusterConfig, load_cluster
from analysis.engines.remote import HIDDEN, JobLost, RemoteEngine
from analysis.engines.worker import Failure, Share, do_share
from analysis.errors import UserError
from analysis.study import Study

COMMANDS = ("sbatch", "srun", "sacct", "scancel")  # of SLURM
LATE_SECONDS = 15.0  # how long the result of a job that has ended may take to become visible on this machine
MAX_TIMEOUTS = 10  # how often a job whose time was too short is queued again, to go on from what it has saved


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
    # What the jobs print lies here. Each command has a folder of its own, because local jobs are named by numbers that
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

    return nullcontext(RemoteEngine(study.path, submit, config.jobs))  # this engine has nothing to close


def _parameters(config: ClusterConfig) -> dict[str, Any]:
    """The settings under submitit's names, None for one that is not given; local jobs ignore the settings of SLURM."""
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
    """The object that submitit sends to a job and calls there: a share of the work."""

    share: Share

    def __call__(self) -> Failure | None:
        import submitit

        failure = do_share(self.share)
        # submitit raises this error inside the work once the job has used up its time more than MAX_TIMEOUTS times. The
        # job has then no answer, so the error is raised again, and the command counts the job as lost.
        if failure is not None and isinstance(failure.error, submitit.core.utils.UncompletedJobError):
            raise failure.error
        return failure

    def checkpoint(self) -> Any:
        """What submitit queues again where the job's time is up, or where it had to make room for another job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class _Job:
    """A job of submitit; see :class:`analysis.engines.remote.Job`."""

    def __init__(self, job: Any) -> None:
        self._job, self.name = job, f"job {job.job_id}"
        self._ended: float | None = None  # when it was first seen to have ended without a result

    def done(self) -> bool:
        """True if the job has ended, and its result is there or has not appeared within ``LATE_SECONDS``."""
        if not self._job.done():
            return False
        if self._ended is None:
            self._ended = monotonic()
        return self._has_result or monotonic() - self._ended > LATE_SECONDS

    def answer(self) -> Failure | None:
        """The result of the job. Raises JobLost where there is none."""
        log, ending = self._job.paths.stderr, self._job.state
        if self._has_result:
            error = self._job.exception()
            if error is None:
                return self._job.result()  # type: ignore[no-any-return]
            # The text holds the traceback of the job; its last line with "Error" names the exception.
            ending = next((line for line in reversed(str(error).splitlines()) if "Error" in line), ending)
        if log.exists():
            raise JobLost(f"{ending}, its output is in {log}")
        raise JobLost(
            f"{ending}, without any output: perhaps its machine does not see {log.parent}, and --out must be on a file"
            " system that all machines share"
        )

    @property
    def _has_result(self) -> bool:
        return bool(self._job.paths.result_pickle.exists())

    def cancel(self) -> None:
        """Run scancel, or interrupt the local process."""
        self._job.cancel(check=False)
