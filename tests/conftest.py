"""Gives each test process one thread, and defines the fixtures that several test files share."""

import os

# The OpenMP runtime reads these variables when torch is loaded, so they are set before the import. With two threads in
# each of two pytest workers, idle threads spin and take the cores from busy ones: the run took 14 minutes instead of 7.
# Commands that tests start inherit these variables.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The command line's help is wrapped at this width for the whole process if it is set when the first help is printed.
os.environ.pop("COLUMNS", None)

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # a plugin may have loaded torch before this file was read


ON_REQUEST = ("heavy", "campaign")
"""The markers of tests that run only if the option ``-m`` names the marker."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark heavy tests and the campaign as slow too, and deselect them unless the option ``-m`` mentions them.

    A test that reads the micro study is slow too, because making that study takes half a minute.
    """
    # The public functions of a package are wrappers around functions of its modules, whose examples run there.
    items[:] = [item for item in items if not _is_example_of_an_entry(item)]
    for item in items:
        if any(map(item.get_closest_marker, ON_REQUEST)) or "micro_study" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    for marker in (name for name in ON_REQUEST if name not in config.option.markexpr):
        left_out = [item for item in items if item.get_closest_marker(marker)]
        items[:] = [item for item in items if not item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of the campaign over to the process that prints, if this one is a worker of it."""
    from outcomes import TABLE

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["campaign"] = {part: dict(counts) for part, counts in TABLE.items()}


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker that has ended."""
    from outcomes import add

    add(getattr(node, "workeroutput", {}).get("campaign", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of the campaign, if a part of it has run."""
    from outcomes import TABLE, table_lines

    if TABLE:
        terminalreporter.write_line("\n" + "\n".join(table_lines()))


def _is_example_of_an_entry(item: pytest.Item) -> bool:
    """True for the doctest of a function in the __init__ of a package, and not of the package's own docstring."""
    example = getattr(item, "dtest", None)
    return example is not None and item.path.name == "__init__.py" and example.name not in sys.modules


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Hold a lock that only one process of a parallel test run can have at a time."""
    fcntl = pytest.importorskip("fcntl", reason="needs POSIX file locks")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def micro_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the completed micro study, which the command line makes once in a test run.

    Tests may only read this folder. A command locks the folder that it works on, even if it changes nothing, so a test
    that runs a command copies the folder first.
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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the documentation site, which is built once in a test run; warnings are errors.

    Beside it, ``jupyter_execute/tutorial`` holds the notebooks with their outputs.
    """
    pytest.importorskip("myst_nb", reason="the site needs the packages of the extra 'docs'")
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site" / "html"
    out.parent.mkdir(exist_ok=True)
    with only_one(out.parent / "lock"):
        if not (out.parent / "complete").exists():
            root = Path(__file__).parents[1]
            # The settings of the user must not influence the notebooks.
            own = dict.fromkeys(
                ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"), str(out.parent / "jupyter")
            )
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", str(root / "docs"), str(out)]
            run = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr[-5000:]
            (out.parent / "complete").touch()
    return out


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
