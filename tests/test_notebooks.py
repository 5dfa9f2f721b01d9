"""The notebooks run from top to bottom, print what they promise, and are stored clean."""

import re
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from analysis.config import UserError

FOLDER = Path(__file__).parents[1] / "notebooks"
QUICK_START = FOLDER / "01_quick_start.ipynb"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_LINES = 12


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(path: Path) -> Mapping[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in read(path).cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def outputs(micro_study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[nbformat.NotebookNode]]:
    """What each cell of the quick start put out, by the cell's id; a cell that raises ends the test here."""
    home = tmp_path_factory.mktemp("jupyter")
    notebook = read(QUICK_START)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HESSIAN_TOOLS_STUDY", str(micro_study.resolve()))
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):  # the user's own play no part
            patch.setenv(name, str(home))
        client.execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture
def printed(outputs: dict[str, list[nbformat.NotebookNode]]) -> dict[str, str]:
    return {name: "".join(out.text for out in outs if out.output_type == "stream") for name, outs in outputs.items()}


def rows(table: str) -> list[list[str]]:
    """The table's lines that begin with a number, as words."""
    lines = [line.split() for line in table.splitlines()]
    return [words for words in lines if len(words) > 2 and re.fullmatch(r"-?\d+(\.\d+)?", words[0])]


@pytest.mark.slow
class TestQuickStart:
    def test_no_cell_complains(self, outputs):
        complaints = [out for outs in outputs.values() for out in outs if out.get("name") == "stderr"]
        assert not complaints

    def test_the_eigenvalues_are_a_table_with_residuals(self, printed):
        table = rows(printed["eigenpairs"])
        values, residuals = [float(row[0]) for row in table], [float(row[1]) for row in table]
        assert len(table) == 5
        assert values == sorted(values, key=abs, reverse=True)
        assert all(0 <= residual <= 1e-3 * abs(value) for value, residual in zip(values, residuals, strict=True))
        assert all(row[2] == "True" for row in table)

    def test_errors_lie_within_what_was_stated(self, printed):
        assert "each within its residual: True" in printed["exact"]
        assert "within three standard errors: True" in printed["exact-trace"]
        assert re.search(r"trace \d+\.\d+ \+- 0\.\d+", printed["trace-estimate"])

    def test_many_points_are_one_call(self, printed):
        assert "Hessian (5, 499, 499)" in printed["line"]
        assert len(rows(printed["line-table"])) == 5

    def test_the_inner_loop_lowers_the_support_loss(self, printed):
        losses = [float(word) for word in printed["trajectory"].splitlines()[0].split()[2:]]
        assert len(losses) == 6
        assert losses[-1] < losses[0]

    def test_alpha_rho_is_compared_with_the_threshold(self, printed):
        table = rows(printed["alpha-rho-table"])
        assert [int(row[0]) for row in table] == list(range(6))
        assert all(row[3:] == ["below" if float(row[2]) < 2 else "above", "2"] for row in table)

    def test_the_study_is_shown_drawn_and_judged(self, outputs, printed):
        assert "alpha_rho" in outputs["open"][-1].data["text/html"]
        assert "learners: untrained, maml, maml-shot" in printed["variable"]
        assert all("image/png" in outputs[name][-1].data for name in ("alpha-rho-figure", "hand-made"))
        assert re.search(r"inconclusive +maml against untrained|supported +maml against untrained", printed["claims"])


def test_a_missing_study_says_which_command_makes_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HESSIAN_TOOLS_STUDY", str(tmp_path / "none"))
    with pytest.raises(UserError, match="does not exist"):
        exec(code_cells(QUICK_START)["open"].source, {})
    assert "hessian-tools demo" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean(path):
    assert read(path).metadata.kernelspec.name == "python3"
    for name, cell in code_cells(path).items():
        assert not cell.outputs and cell.execution_count is None, f"{name}: clear outputs before saving"
        assert not re.search(r"/(home|Users|work|tmp)/", cell.source), f"{name}: a path of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin(path):
    for name, cell in code_cells(path).items():
        assert not re.search(r"^\s*(async def|def|class)\s|\blambda\b", cell.source, re.MULTILINE), (
            f"{name}: a function has a place in the library"
        )
        assert len(cell.source.splitlines()) <= MOST_LINES, f"{name}: more than {MOST_LINES} lines"
