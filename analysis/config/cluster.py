"""The settings of a cluster: in which jobs the work of a study runs there."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from analysis.config.base import Natural, Positive, Strict
from analysis.config.mistakes import first_mistake
from analysis.config.yaml_reader import parse_yaml, read_settings
from analysis.errors import UserError


class ClusterConfig(Strict):
    """The settings of a cluster, as its YAML file holds them; docs/cluster.md has an example.

    executor: "slurm", or "local" for jobs on this machine, with which the file can be tried out.
    jobs: the largest number of jobs into which a part of a study (training, measuring) is divided.
    minutes, memory_gb, cpus, gpus: what each job gets. A unit of work computes on one thread.
    partition, account, qos, constraint: as SLURM's ``sbatch`` takes them.
    sbatch: further options of ``sbatch``, by their long names; true for an option that takes no value.
    setup: lines of shell that a job runs first, exactly as they are written.
    """

    executor: Literal["slurm", "local"] = "slurm"
    jobs: Annotated[int, Field(gt=0, le=1000, strict=True)] = 16  # SLURM's default limit of a job array is 1001
    minutes: Annotated[int, Field(ge=5, strict=True)] = 60  # submitit needs the last 90 seconds to queue a job again
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    cpus: Positive = 1
    gpus: Natural = 0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: dict[str, bool | int | str] = {}
    setup: tuple[str, ...] = ()


def load_cluster(path: Path) -> ClusterConfig:
    """The settings in a file. Raises UserError, which names the first mistake, its place and what is allowed there."""
    if not path.is_file():
        raise UserError(f"there is no cluster file {path}; docs/cluster.md has one to start from")
    try:
        settings = parse_yaml(read_settings(path))
    except ValueError as e:
        raise UserError(f"{path} {e}") from None
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} holds no settings; a cluster file is a YAML mapping with partition, minutes, jobs, ..."
        )
    try:
        return ClusterConfig.model_validate(settings)
    except ValidationError as e:
        raise UserError(f"{path}: {first_mistake(e, ClusterConfig)}") from None
