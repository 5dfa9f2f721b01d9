"""Tests of the suite of references: what is planted is there, right tools score fully, and wrong ones do not."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hessian_tools as ht
from benchmarks.references.problems import Reference, references
from benchmarks.references.scores import score, table
from benchmarks.references.tools import ours

PROBLEMS = {problem.name: problem for problem in references()}
SOME = [PROBLEMS["planted indefinite"], PROBLEMS["three batches, ignored labels"]]


def test_planted_spectra_are_those_of_the_dense_hessian() -> None:
    for problem in PROBLEMS.values():
        if problem.planted is not None and len(problem.planted) < 100:
            values = torch.linalg.eigvalsh(problem.dense())
            torch.testing.assert_close(values, problem.planted.sort().values, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.planted is None])
def test_the_references_of_networks_are_our_hessians(name: str) -> None:
    problem = PROBLEMS[name]
    H = ht.hessian_of(deepcopy(problem.model).double(), problem.criterion, problem.batch, route="direct")
    torch.testing.assert_close(H.to_dense(), problem.dense(), rtol=1e-10, atol=1e-12)


def wrong(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
    right = ours(model, criterion, batch)
    return {
        "matvec": lambda v: 1.001 * right["matvec"](v),
        "top": lambda k: 1.02 * right["top"](k),
        "trace": lambda: (right["trace"]()[0] + 40.0, 1.0),
    }


@pytest.mark.heavy
def test_scores_of_a_right_and_of_a_wrong_tool() -> None:
    right = score(ours, SOME)
    assert isinstance(right, dict)
    assert all(each.right for of in right.values() for each in of.values())
    not_right = score(wrong, SOME)
    assert isinstance(not_right, dict)
    assert not any(each.right for of in not_right.values() for each in of.values())
    assert not_right["planted indefinite"]["product"].note.startswith("hessian 1e-03")

    def absent(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
        raise ImportError("no module named absent")

    def silent(model: nn.Module, criterion: nn.Module, batch: Any) -> dict[str, Any]:
        return {"trace": lambda: 1 / 0}

    assert score(absent, SOME) == "not installed (no module named absent)"
    fails = score(silent, SOME)
    assert isinstance(fails, dict)
    assert [each.right for each in fails["planted indefinite"].values()] == [None, None, False]
    lines = table({"ours": right, "wrong": not_right, "absent": "not installed"}, SOME).splitlines()
    assert lines[2].startswith("| planted indefinite | ok, ok, ok | **hessian 1e-03**, **")
    assert lines[-1] == "| **right of those offered** | 6 of 6 | 0 of 6 | not installed |"


def test_references_have_few_parameters_and_one_dtype() -> None:
    for problem in PROBLEMS.values():
        assert isinstance(problem, Reference)
        parameters = list(problem.model.parameters())
        assert sum(p.numel() for p in parameters) <= 400
        assert {p.dtype for p in parameters} == {torch.float32}


@pytest.mark.heavy
def test_the_command_runs_a_tool_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def tool(model, criterion, batch):\n    return {}\n")
    command = [sys.executable, "-m", "benchmarks.references", "--tool", f"{file}:tool"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "| **right of those offered** | 0 of 0 |" in run.stdout
