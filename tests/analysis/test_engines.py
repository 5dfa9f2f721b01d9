"""The engines that do a study's work elsewhere, with jobs that are threads of this process: what they share."""

import errno
import fcntl
import re
import sys
import threading
from collections import namedtuple
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xarray as xr
from refused_commands import refused
from small_study import SMALL_STUDY, train_and_measure

from analysis import UserError, open_study, times
from analysis.cli import run
from analysis.config.cluster import ClusterConfig, load_cluster
from analysis.engines import cluster, processes, remote, sharing, worker
from analysis.engines.engine import open_engine
from analysis.engines.place import Place
from analysis.engines.remote import JobLost, RemoteEngine, UnitFailed
from analysis.engines.worker import do_share
from analysis.folder import open_folder
from analysis.measure import measure_unit
from analysis.pipeline import prepare
from analysis.training import train_unit
from hessian_tools.runs.files import FolderInUseError, locked
from hessian_tools.runs.worker_pool import WorkerLost


@dataclass(frozen=True)
class Unit:
    """A unit of work that needs nothing of a study but its device."""

    task: Any
    study: Any = None

    def __str__(self) -> str:
        return f"doing {self.task}"


@dataclass
class ThreadJob:
    """A job in a thread of this process; ``lost`` ends it without an answer before it does anything."""

    share: worker.Share
    lost: bool = False
    name: str = "job 7"
    cancelled: bool = False
    answers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=lambda: self.answers.append(do_share(self.share)), daemon=True)
        if not self.lost:
            self.thread.start()

    def done(self) -> bool:
        return self.lost or not self.thread.is_alive()

    def answer(self) -> Any:
        if self.lost:
            raise JobLost("OUT_OF_MEMORY")
        return self.answers[0]

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[ThreadJob]:
    """The jobs of engines that are made in the test, whose units need not be those of a study and can run at once."""
    monkeypatch.setattr(remote, "_with_absolute_paths", lambda unit: unit)
    monkeypatch.setattr(
        worker, "_one_unit", nullcontext()
    )  # these jobs share a process, in which they would take turns
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.0)
    return []


def engine(
    folder: Path, jobs: list[ThreadJob], max_jobs: int | None = None, lost: tuple[int, ...] = ()
) -> RemoteEngine:
    def submit(shares: list[worker.Share]) -> list[ThreadJob]:
        jobs.extend(ThreadJob(share, lost=share.index in lost) for share in shares)
        return jobs

    return RemoteEngine(folder, submit, max_jobs)


CPU = SimpleNamespace(device="cpu")


def units(*tasks: Any) -> list[Unit]:
    return [Unit(task, CPU) for task in tasks]


DONE: list[Any] = []
WAITING = threading.Event()  # set once a unit "wait" is at work
PATIENCE = 60.0  # seconds; what is waited for takes some milliseconds on a quiet machine


def work(unit: Unit, emit: Any) -> None:
    if unit.task == "fail beside another":
        WAITING.wait(PATIENCE)  # else the other job may find no permit before it begins
        error = ArithmeticError("it does not add up")
        error.add_note("It was raised by maml seed 5.")
        raise error
    if unit.task == "refuse":
        raise UserError("the data have changed")
    if unit.task == "wait":
        while True:
            WAITING.set()
            emit(1, "waiting")
            threading.Event().wait(0.01)
    assert torch.get_num_threads() == 1
    DONE.append(unit.task)
    emit(unit.task, f"done {unit.task}")


def test_every_unit_is_done_once_and_reported(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    reports: list[tuple[float, str]] = []
    DONE.clear()
    engine(tmp_path, jobs, 3).run(work, units(*range(1, 9)), emit=lambda *report: reports.append(report))
    assert sorted(DONE) == list(range(1, 9))
    assert sum(amount for amount, _ in reports) == 36
    assert [len(job.share.units) for job in jobs] == [3, 3, 2]
    assert not list(tmp_path.rglob("permit-*"))


def test_a_failed_unit_is_named_with_its_worker_and_ends_the_others(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    named = (
        r"^doing fail beside another failed in job 7 on .*, process \d+: ArithmeticError: it does not add up"
        r" It was raised by maml seed 5. \(see .*error.txt\)$"
    )
    WAITING.clear()
    with pytest.raises(UnitFailed, match=named) as error:
        engine(tmp_path, jobs).run(work, units("wait", "fail beside another"))
    assert isinstance(error.value.error, ArithmeticError)
    assert "    raise error\nArithmeticError: it" in (tmp_path / ".cluster" / "error.txt").read_text()
    assert all(job.cancelled for job in jobs)
    jobs[0].thread.join(PATIENCE)  # it reports its progress, and sees that its permit is gone
    assert isinstance(jobs[0].answers[0].error, worker.Stopped)


def test_lost_jobs_are_named_after_the_others_have_ended(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    DONE.clear()
    lost = (
        r"^job 7 ended \(OUT_OF_MEMORY\) before it had begun with a unit \(and 1 more\); what was saved is complete:\n"
    )
    with pytest.raises(WorkerLost, match=lost):
        engine(tmp_path, jobs, lost=(0, 2)).run(work, units(1, 2, 3, 4))
    assert sorted(DONE) == [2, 4]


def test_an_interrupted_command_ends_its_jobs(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    def interrupt(*report: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(tmp_path, jobs).run(work, units("wait"), emit=interrupt)
    jobs[0].thread.join(PATIENCE)
    assert (jobs[0].cancelled, jobs[0].done()) == (True, True)
    assert not list(tmp_path.rglob("permit-*"))


def test_a_killed_command_leaves_no_jobs_beside_the_next_one(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    permit = tmp_path / ".cluster" / "permit-1"
    permit.mkdir(parents=True)
    job = ThreadJob(worker.Share(work, tuple(units("wait")), permit, 0, worker.versions()))
    while not worker.report_file(permit, 0).exists():  # else it may find no permit before it begins
        sleep(0.01)
    remote.end_earlier_jobs(tmp_path)
    job.thread.join(PATIENCE)
    assert isinstance(job.answers[0].error, worker.Stopped)
    late = do_share(job.share)  # a job that begins only now
    assert late is not None
    assert (late.unit, type(late.error)) == ("starting", UserError)


def test_a_worker_that_cannot_do_the_work_says_what_is_missing(tmp_path: Path, jobs: list[ThreadJob]) -> None:
    permit = tmp_path / ".cluster" / "permit-1"
    permit.mkdir(parents=True)
    share = worker.Share(work, tuple(units(1)), permit, 0, worker.versions())
    far = replace(share, permit=Path("/no/such/folder/.cluster/permit-1"))
    old = replace(share, versions={**worker.versions(), "torch": "1.0"})
    card = replace(share, units=(Unit(1, SimpleNamespace(device="cuda")),))
    expected = [
        (far, r"does not see /no/such/folder/.*; choose an --out on a file system that all machines share"),
        (old, rf"has torch {re.escape(worker.versions()['torch'])}, but the command has 1\.0"),
        *([] if torch.cuda.is_available() else [(card, r"has no CUDA device; ask for one \(gpus: 1")]),
    ]
    for given, message in expected:
        failure = do_share(given)
        assert failure is not None
        with pytest.raises(UserError, match=message):
            raise failure.error


def test_a_process_does_one_unit_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_with_absolute_paths", lambda unit: unit)
    at_work: list[str] = []

    def alone(unit: Unit, emit: Any) -> None:
        assert not at_work
        at_work.append(str(unit))
        threading.Event().wait(0.02)
        at_work.remove(str(unit))

    engine(tmp_path, []).run(alone, units(1, 2, 3))


def test_the_run_of_an_earlier_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def in_use(unit: Unit, emit: Any) -> None:
        calls.append(unit)
        if len(calls) < 3:
            raise FolderInUseError("another process is at work")

    worker._do_patiently(in_use, Unit(1), lambda *report: None)
    assert len(calls) == 3
    monkeypatch.setattr(worker, "PATIENCE", -1.0)
    calls.clear()
    with pytest.raises(FolderInUseError):
        worker._do_patiently(in_use, Unit(1), lambda *report: None)


def test_a_job_waits_until_an_earlier_one_has_given_up_its_run(tmp_path: Path) -> None:
    calls: list[Unit] = []

    def in_use_at_first(unit: Unit, emit: Any) -> None:
        calls.append(unit)
        if len(calls) < 2:
            raise FolderInUseError("another process is at work")

    assert do_share(worker.Share(in_use_at_first, tuple(units("wait")), tmp_path, 0, worker.versions())) is None
    assert len(calls) == 2


@pytest.fixture
def small(working_folder: Path) -> Path:
    (working_folder / "small.yaml").write_text(SMALL_STUDY)
    return working_folder


@pytest.mark.slow
def test_a_study_in_jobs_has_the_numbers_of_one_process(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ThreadJob] = []

    def in_threads(study: Any, place: Place) -> AbstractContextManager[RemoteEngine]:
        def submit(shares: list[worker.Share]) -> list[ThreadJob]:
            assert all(unit.study.path == small / "elsewhere" for share in shares for unit in share.units)
            made.extend(ThreadJob(share) for share in shares)
            return made[-len(shares) :]

        return nullcontext(RemoteEngine(study.path, submit, 2))

    train_and_measure("small.yaml", Path("here"), Place(workers=0))
    monkeypatch.setattr("analysis.pipeline.open_engine", in_threads)
    train_and_measure("small.yaml", Path("elsewhere"), Place())
    assert len(made) == 3  # one run is trained in one job, and measured in two
    xr.testing.assert_identical(open_study("elsewhere"), open_study("here"))
    trained = "runs/maml-seed0/checkpoints/0000002.safetensors"
    assert Path("elsewhere", trained).read_bytes() == Path("here", trained).read_bytes()
    run_folder = Path("elsewhere/runs/maml-seed0")
    assert not (run_folder / "times.jsonl").exists()  # each process elsewhere has a file of its own
    assert set(times.cpu_seconds(run_folder)) == {"train", "measure"}
    assert run(["verify", "elsewhere"]) == 0


def test_paths_are_those_of_any_working_folder(small: Path) -> None:
    study, _ = prepare("small.yaml", out="study")
    assert remote._study_with_absolute_paths(study).path == small / "study"
    data = small / "images"
    data.mkdir()
    config = study.config.model_copy(update={"data": study.config.data.model_copy(update={"path": "images"})})
    moved = remote._study_with_absolute_paths(replace(study, config=config))
    assert moved.config.data.path == str(data)
    assert moved.problem.data.path == str(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "cuda:0,gpu1"], "--devices: 'gpu1' is no device; give for example --devices cuda:0,cuda:1"),
        (["--devices", "cpu,cuda:0"], "--devices cpu,cuda:0 mixes kinds of devices"),
        (["--devices", "cpu", "--workers", "2"], "--workers and --devices exclude each other; give one of them"),
        (["--devices", "cpu", "--device", "cuda"], "--device cuda and --devices cpu disagree; leave --device out"),
        (["--dask", "tcp://x:1", "--cluster", "slurm.yaml"], "--cluster and --dask exclude each other"),
        (["--cluster", "slurm.yaml"], "there is no cluster file slurm.yaml; docs/cluster.md has one to start from"),
    ],
)
def test_mistakes_in_the_place_are_refused_before_anything_is_written(
    small: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert said in refused(capsys, ["study", "small.yaml", "--out", "study", *options])
    assert not Path("study").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin: gpu", "slurm.yaml: unknown key 'partitoin'; did you mean 'partition'?"),
        ("{}\nx", "slurm.yaml is not YAML at line"),
        ("- jobs", "slurm.yaml holds no settings; a cluster file is a YAML mapping"),
        ("executor: pbs", "slurm.yaml: executor: input should be 'slurm' or 'local' (got 'pbs')"),
        ("minutes: 1", "slurm.yaml: minutes: input should be greater than or equal to 5 (got 1)"),
        ("jobs: 5000", "slurm.yaml: jobs: input should be less than or equal to 1000 (got 5000)"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(working_folder: Path, text: str, said: str) -> None:
    Path("slurm.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_cluster(Path("slurm.yaml"))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("package", "options"), [("submitit", ["--cluster", "slurm.yaml"]), ("distributed", ["--dask", "tcp://x:1"])]
)
def test_a_missing_package_is_named_with_its_extra(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str, options: list[str]
) -> None:
    Path("slurm.yaml").write_text("partition: gpu\n")
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"submitit": "cluster", "distributed": "dask"}[package]
    message = refused(capsys, ["study", "small.yaml", "--out", "study", *options])
    assert f"needs the package {package}; install it: pip install 'hessian-tools[{extra}]'" in message
    assert not Path("study").exists()


def test_slurm_is_looked_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("slurm.yaml").write_text("partition: gpu\n")
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    monkeypatch.setenv("PATH", "")
    study, _ = prepare("small.yaml", out="study", device="cuda")  # the command's machine need not have a card
    with pytest.raises(UserError, match="needs sbatch, srun, sacct, scancel on the PATH"):
        open_engine(study, Place(cluster=Path("slurm.yaml")))


def test_settings_of_a_cluster_reach_submitit_by_its_names() -> None:
    config = ClusterConfig(partition="gpu", gpus=2, minutes=90, sbatch={"exclusive": True}, setup=("module load cuda",))
    given = {name: value for name, value in cluster._parameters(config).items() if value is not None}
    assert given == {
        "name": "hessian-tools",
        "timeout_min": 90,
        "mem_gb": 4.0,
        "cpus_per_task": 1,
        "gpus_per_node": 2,
        "slurm_partition": "gpu",
        "slurm_array_parallelism": 16,
        "slurm_additional_parameters": {"exclusive": True},
        "slurm_setup": ["module load cuda"],
    }


def test_a_job_whose_time_is_up_is_queued_again_and_at_last_lost(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="needs submitit")
    permit = tmp_path / ".cluster" / "permit-1"
    permit.mkdir(parents=True)

    def too_often(unit: Unit, emit: Any) -> None:
        raise submitit.core.utils.UncompletedJobError("Job not requeued because: timed-out too many times.")

    task = cluster._Task(worker.Share(too_often, tuple(units(1)), permit, 0, worker.versions()))
    assert task.checkpoint().function is task
    with pytest.raises(submitit.core.utils.UncompletedJobError):  # and not a failure of the unit, which ends all jobs
        task()


def test_each_card_has_a_worker(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = ("cuda:0", "cuda:1")
    study, _ = prepare("small.yaml", out="study", device=Place(devices=devices).device("cpu"))
    assert study.device == "cuda"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--devices cuda:0,cuda:1: this torch sees no CUDA device"):
            open_engine(study, Place(devices=devices))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the workers of the pool are not started
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.pool(study, Place(devices=devices)).workers == 2
    with pytest.raises(UserError, match="there is no cuda:2; the cards of this machine are cuda:0 to cuda:1"):
        processes.pool(study, Place(devices=("cuda:0", "cuda:2")))
    placed = [processes.on_device(devices, Unit(1, study), number) for number in (0, 1)]
    assert [unit.study.device for unit in placed] == ["cuda:0", "cuda:1"]
    assert study.device == "cuda"


def test_workers_on_one_card_share_its_memory(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = prepare("small.yaml", out="study", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = ("cuda:0", "cuda:0", "cuda:1")
    assert processes.pool(study, Place(devices=devices)).workers == 3
    placed = [processes.on_device(devices, Unit(1, study), number).study for number in range(3)]
    assert [(s.device, s.device_share) for s in placed] == [("cuda:0", 0.45), ("cuda:0", 0.45), ("cuda:1", 1.0)]
    assert processes.on_device(("cpu", "cpu"), Unit(1, study), 0).study.device_share == 1.0
    told = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: told.append(args))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for each in (*placed, replace(placed[0], device="cuda")):
        each.limit_memory()
    assert told == [(0.45, 0), (0.45, 0), (0.45, 0)]  # a worker that has a card for itself is not limited

    class Told(Exception):
        pass

    def tell(*args: Any) -> None:
        raise Told

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", tell)
    for work in (train_unit, measure_unit):  # both kinds of units begin with it
        with pytest.raises(Told):
            work(Unit(1, placed[0]), lambda *progress: None)


def test_the_number_of_workers_on_a_card_follows_from_its_memory(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = prepare("small.yaml", out="study", device="cuda")
    card = namedtuple("card", "total_memory")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card(80 * 2**30))
    monkeypatch.setattr(sharing, "available_cores", lambda: 16)
    monkeypatch.setattr(processes, "_is_small", lambda study: False)
    assert processes.pool(study, Place()).workers == 0  # there is a single run
    # An outer step has a single task, so that runs are not trained together, and each is a unit.
    monkeypatch.setattr(type(study), "runs_to_train", [("maml", seed) for seed in range(20)])
    assert processes.pool(study, Place()).workers == 5
    # Now they are. All 20 runs of the learner are one unit, which needs no worker.
    monkeypatch.setattr(sharing, "trains_together", lambda study, learner: True)
    together = processes.pool(study, Place())
    assert (together.workers, together.min_units) == (0, 1)
    assert sharing.workers_on_card(80 * 2**30, units=20) == 5
    assert sharing.workers_on_card(31 * 2**30, units=20) == 0  # room for one, which works in the command itself
    assert sharing.workers_on_card(80 * 2**30, units=3) == 3
    monkeypatch.setattr(sharing, "available_cores", lambda: 2)
    assert sharing.workers_on_card(80 * 2**30, units=20) == 2
    asked_for = processes.pool(study, Place(workers=4))
    assert (asked_for.workers, asked_for.min_units) == (4, 4)  # the runs are divided among those who ask for workers
    assert asked_for._adapt(Unit(1, study), 3).study.device_share == processes.SHARED_PART / 4
    monkeypatch.setattr(processes, "_is_small", lambda study: True)
    assert processes.pool(study, Place()).workers == 0


@pytest.mark.parametrize(("number", "is_in_use"), [(errno.ENOSYS, False), (errno.ENOLCK, False), (errno.EAGAIN, True)])
def test_a_file_system_without_locks_is_not_taken_for_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_in_use: bool
) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(number, "as a file system says")

    monkeypatch.setattr(fcntl, "flock", flock)
    if is_in_use:
        with pytest.raises(FolderInUseError), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            pass


def test_the_folder_of_a_study_may_hold_what_jobs_have_left(small: Path) -> None:
    Path("study/.cluster/permit-1").mkdir(parents=True)
    assert run(["train", "small.yaml", "--out", "study", "--workers", "0"]) == 0
    assert not Path("study/.cluster/permit-1").exists()
    assert open_folder("study").runs == [("maml", 0)]
