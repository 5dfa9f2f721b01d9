"""Tests that the notebooks run from top to bottom, print what they promise, and are stored without outputs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from analysis.errors import UserError

if TYPE_CHECKING:  # the import takes six seconds, in every test process
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
QUICK_START = FOLDER / "01_quick_start.ipynb"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_LINES = 12

Outputs = Mapping[str, list["NotebookNode"]]
"""The outputs of each cell, by the cell's id."""


def read(path: Path) -> "NotebookNode":
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: "NotebookNode") -> Mapping[str, "NotebookNode"]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def execute(path: Path) -> Outputs:
    """Run a notebook in its own folder; nbclient raises, with the traceback, at the first cell that fails."""
    from nbclient import NotebookClient

    notebook = read(path)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    return {name: cell.outputs for name, cell in code_cells(notebook).items()}


def rows(table: str) -> list[list[str]]:
    """The words of each line that begins with two numbers."""
    lines = [line.split() for line in table.splitlines()]
    return [words for words in lines if len(words) > 1 and all(re.match(r"-?\d", word) for word in words[:2])]


# This is one test, because several tests would each start a kernel with all its imports in a parallel run.
@pytest.mark.heavy
def test_the_quick_start_runs_and_prints_what_it_promises(micro_study, tmp_path, monkeypatch):
    monkeypatch.setenv("HESSIAN_TOOLS_STUDY", str(micro_study))
    # The settings of the user must not influence the run.
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    outputs = execute(QUICK_START)
    streams = {name: [out for out in outs if out.output_type == "stream"] for name, outs in outputs.items()}
    assert all(out.name == "stdout" for outs in streams.values() for out in outs), "a cell warns"
    printed = {name: "".join(out.text for out in outs) for name, outs in streams.items()}
    check_eigenvalue_table(printed)
    check_stated_errors(printed)
    check_curvature_at_many_points(printed)
    check_inner_loop(printed)
    check_study(outputs, printed)


def check_eigenvalue_table(printed: Mapping[str, str]) -> None:
    table = rows(printed["eigenpairs"])
    values, residuals = [float(row[0]) for row in table], [float(row[1]) for row in table]
    assert len(table) == 5
    assert values == sorted(values, key=abs, reverse=True)
    assert all(0 <= residual <= 1e-3 * abs(value) for value, residual in zip(values, residuals, strict=True))
    assert all(row[2] == "True" for row in table)


def check_stated_errors(printed: Mapping[str, str]) -> None:
    assert "each within its residual: True" in printed["exact"]
    assert re.search(r"trace \d+\.\d+ \+- 0\.\d+", printed["trace-estimate"])
    assert "within three standard errors: True" in printed["exact-trace"]


def check_curvature_at_many_points(printed: Mapping[str, str]) -> None:
    assert "Hessian (5, 499, 499)" in printed["line"]
    losses = [float(row[1]) for row in rows(printed["line-table"])]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def check_inner_loop(printed: Mapping[str, str]) -> None:
    losses = [float(word) for word in printed["trajectory"].splitlines()[0].split()[2:]]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    table = rows(printed["alpha-rho-table"])
    assert [int(row[0]) for row in table] == list(range(6))
    assert all(row[3:] == ["below" if float(row[2]) < 2 else "above", "2"] for row in table)


def check_study(outputs: Outputs, printed: Mapping[str, str]) -> None:
    assert "alpha_rho" in outputs["open"][-1].data["text/html"]
    assert "learners: untrained, maml, maml-shot" in printed["variable"]
    assert "nan" not in printed["variable"]
    assert all("image/png" in outputs[name][-1].data for name in ("alpha-rho-figure", "hand-made"))
    assert re.search(r"(supported|inconclusive) +maml against untrained", printed["claims"])


@pytest.mark.slow
def test_a_missing_study_says_which_command_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HESSIAN_TOOLS_STUDY", str(tmp_path / "none"))
    with pytest.raises(UserError, match="does not exist.*'hessian-tools demo' makes one"):
        exec(code_cells(read(QUICK_START))["open"].source, {})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_local_paths(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    for name, cell in code_cells(notebook).items():
        assert not cell.outputs and cell.execution_count is None, f"{name}: clear outputs before saving"
        assert not re.search(r"/(home|Users|work|tmp)/", cell.source), f"{name}: a path of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_are_short_and_define_no_functions(path):
    for name, cell in code_cells(read(path)).items():
        function = re.search(r"^\s*(async def|def|class)\s|\blambda\b", cell.source, re.MULTILINE)
        assert not function, f"{name}: a function has a place in the library"
        assert len(cell.source.splitlines()) <= MAX_LINES, f"{name}: more than {MAX_LINES} lines"
