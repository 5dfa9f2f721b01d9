"""Studies in worker processes for devices, in jobs of submitit and of a pretended SLURM, and on a Dask cluster.

Their numbers are equal to the bit with those of one process.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
import xarray as xr
from processes import PATIENCE
from small_study import SMALL_STUDY, train_and_measure

from analysis import UserError, open_study
from analysis.cli import run
from analysis.engines.place import Place
from analysis.engines.remote import UnitFailed

pytestmark = pytest.mark.heavy

# A network in a file of the user's own. Its first building in a job of submitit kills the job if the file "fatal"
# exists. Where a file "wrong" holds the number of a process, it cannot be built in any other one.
NETWORK = """
import os, signal
from contextlib import suppress
from pathlib import Path
from torch import nn

FATAL, WRONG = Path(__file__).with_name("fatal"), Path(__file__).with_name("wrong")

def small(outputs):
    if WRONG.exists() and int(WRONG.read_text()) != os.getpid():
        raise ArithmeticError("it does not add up")
    if "SUBMITIT_EXECUTOR" in os.environ:
        with suppress(FileNotFoundError):
            FATAL.unlink()  # only one of two jobs at once can remove it
            os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, outputs))
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study file and, in ``here``, the study as one process makes it; tests only add other folders."""
    folder = tmp_path_factory.mktemp("engines")
    text = SMALL_STUDY.replace(
        "{maml: {algorithm: maml}}", "{maml: {algorithm: maml}, fomaml: {algorithm: maml, first_order: true}}"
    )
    text = text.replace("{name: mlp, hidden: [3]}", "{name: 'net.py:small'}")
    (folder / "net.py").write_text(NETWORK)
    (folder / "study.yaml").write_text(text)
    train_and_measure(folder / "study.yaml", folder / "here", Place(workers=0))
    return folder


def assert_same(folder: Path, expected: Path) -> None:
    assert_same_training(folder, expected)
    xr.testing.assert_identical(open_study(folder), open_study(expected / "here"))


def assert_same_training(folder: Path, expected: Path) -> None:
    for path in expected.glob("here/runs/*/checkpoints/*"):
        assert (folder / path.relative_to(expected / "here")).read_bytes() == path.read_bytes(), path
    assert not list(folder.rglob("*.partial"))


def test_a_worker_for_each_device_gives_the_numbers_of_one_process(expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    train_and_measure(expected / "study.yaml", out, Place(devices=("cpu", "cpu")))
    assert_same(out, expected)


def test_jobs_of_submitit_and_one_that_dies(expected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit", reason="needs submitit")
    (tmp_path / "local.yaml").write_text("executor: local\njobs: 2\n")
    out, fatal = tmp_path / "study", expected / "fatal"
    cluster = tmp_path / "local.yaml"
    fatal.touch()
    command = ["train", str(expected / "study.yaml"), "--out", str(out), "--trust", "--cluster", str(cluster)]
    assert run(command) == 1
    assert not fatal.exists()
    message = capsys.readouterr().err
    assert "what was saved is complete" in message
    assert "while it was training" in message
    trained = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/0000002.safetensors")}
    assert len(trained) == 1, "the other job has ended its run"
    log = Path(message.split("its output is in ")[1].split(")")[0])
    assert log.is_file()
    train_and_measure(expected / "study.yaml", out, Place(cluster=cluster))
    assert trained == {path: path.stat().st_mtime_ns for path in trained}, "it was not run again"
    assert_same(out, expected)
    assert not (out / ".cluster").exists()


def test_jobs_of_slurm(expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="needs submitit")
    for name, value in fake_slurm.environment(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "slurm.yaml").write_text(
        "{jobs: 2, minutes: 9, partition: cpu, sbatch: {nice: 5}, setup: [export FROM_SETUP=1]}"
    )
    out = tmp_path / "study"
    options = ["--out", str(out), "--trust", "--cluster", str(tmp_path / "slurm.yaml")]
    assert run(["train", str(expected / "study.yaml"), *options]) == 0
    assert_same_training(out, expected)
    script = (tmp_path / "slurm" / "jobs" / "100.batch").read_text()
    for line in ("--array=0-1%2", "--time=9", "--partition=cpu", "--mem=4GB", "--nice=5", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport FROM_SETUP=1\n" in script
    assert fake_slurm.states(tmp_path / "slurm").keys() == {"100_0", "100_1"}


def test_ctrl_c_cancels_the_jobs_of_slurm(expected: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit")
    slurm, out = tmp_path / "slurm", tmp_path / "study"
    text = (expected / "study.yaml").read_text().replace("checkpoints: [0, 2]", "checkpoints: [0, 1000000]")
    (expected / "long.yaml").write_text(text)
    (tmp_path / "slurm.yaml").write_text("jobs: 2\n")
    command = ["train", str(expected / "long.yaml"), "--out", str(out), "--cluster", str(tmp_path / "slurm.yaml")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignored"
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "analysis.cli", *command, "--trust", "--yes"],
            env=os.environ | fake_slurm.environment(slurm),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    limit = time.monotonic() + PATIENCE
    while not any(path.read_text().count("\n") >= 2 for path in out.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no job has begun to train"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "hessian-tools: stopped; the same command goes on from here"
    assert fake_slurm.states(slurm) == {"100_0": "CANCELLED", "100_1": "CANCELLED"}
    assert not list(out.rglob("permit-*"))


# Tests must not meet at a port, nor need a network. A scheduler serves a web page at port 8787 unless told otherwise,
# and warns where another process has that port. It looks for its own address by a route to the internet, and warns
# where there is none.
CLUSTER = {"dashboard_address": ":0", "protocol": "tcp://", "host": "127.0.0.1"}
# Dask says so where making its folders took more than a second, as it may on a busy machine.
may_be_slow = pytest.mark.filterwarnings("ignore:Creating scratch directories is taking a surprisingly long time")


@may_be_slow
def test_the_workers_of_dask(expected: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    options = {"n_workers": 2, "threads_per_worker": 1, "local_directory": str(tmp_path)}
    with distributed.LocalCluster(**CLUSTER, **options) as cluster:
        address, out = cluster.scheduler_address, tmp_path / "study"
        wrong = expected / "wrong"
        wrong.write_text(str(os.getpid()))
        named = r"^training f?o?maml seed 0 failed in a Dask task on .*, process \d+: .*it does not add up"
        with pytest.raises(UnitFailed, match=named):
            train_and_measure(expected / "study.yaml", out, Place(dask=address))
        wrong.unlink()
        train_and_measure(expected / "study.yaml", out, Place(dask=address))
        assert_same(out, expected)


@may_be_slow
def test_dask_workers_with_several_threads_and_schedulers_that_do_not_answer_are_refused(
    expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    study, out = expected / "study.yaml", tmp_path / "study"
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "local_directory": str(tmp_path)}
    with (
        distributed.LocalCluster(**CLUSTER, **options) as cluster,
        pytest.raises(UserError, match="has 2 threads, but a unit"),
    ):
        train_and_measure(study, out, Place(dask=cluster.scheduler_address))
    monkeypatch.setattr("analysis.engines.dask_cluster.CONNECT_SECONDS", 0.2)
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        train_and_measure(study, out, Place(dask="tcp://127.0.0.1:9"))
