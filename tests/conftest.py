"""Fixtures shared by tests in different places."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests run in several processes; one thread each


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Across the processes of a parallel test run."""
    fcntl = pytest.importorskip("fcntl", reason="needs POSIX file locks")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def micro_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled micro study, complete, made by the command line once a test run.

    Read it; any command in its folder, even one that changes nothing, would keep other workers out. Copy it for that.
    """
    from analysis.cli import run

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / "micro-study"
    complete = shared / "micro-study.complete"
    with only_one(shared / "micro-study.lock"):
        if not complete.exists():
            assert run(["study", "micro", "--out", str(out), "--workers", "0"]) == 0
            complete.touch()
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
