"""Tests that the notebooks run from top to bottom, show what they promise, and agree with their text files.

They are executed where the documentation site is built; see the fixture ``site``.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the import takes six seconds, in every test process
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_LINES = 13

# How many pictures each notebook shows in the smoke setting, and texts that its outputs have, as regular expressions.
PROMISES = {
    "01_quick_start": (2, ["EigenPairs", "eigenvalues within their residuals: 8 of 8", r"of which G \d+%", "symmetry"]),
    "02_inner_loop": (5, [r"alpha rho +-?\d+\.\d+ ± ", r"by chance: 0\.\d+%", "accuracy on validation tasks"]),
    "03_suppression": (
        5,
        [
            r"Supported with \d+ seeds",
            r"-\d\.\d+, 95 % interval -\d\.\d+ to -\d\.\d+",
            r"of 24 such primary comparisons, yes in \d+",
        ],
    ),
    "04_shot": (
        4,
        [r"closed form +0\.00", r"After the correction for \d+ comparisons it is inconclusive", r"squared error \d+"],
    ),
    "05_my_own_training": (4, ["top_eigenvalue .* 95 % interval", "more batches like these"]),
    "06_paper_figure": (4, ["did you mean 'maml'", "alpha_rho.pdf", "Means are over 8 held-out tasks"]),
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> "NotebookNode":
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.heavy
@pytest.mark.xdist_group("site")
@each_notebook
def test_a_notebook_runs_and_shows_what_it_promises(path, site):
    # The site stops, with the traceback, at the first cell that fails.
    notebook = read(site.parent / "jupyter_execute" / "tutorial" / path.name)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out.text for out in outputs if out.get("name") == "stderr"], "a cell warns"
    data = [out.get("data", {}) for out in outputs]
    texts = [out.get("text", "") for out in outputs] + [str(part) for one in data for part in one.values()]
    pictures, promises = PROMISES[path.stem]
    assert sum("image/png" in one for one in data) == pictures
    for promise in promises:
        assert any(re.search(promise, text) for text in texts), promise


@pytest.mark.slow
@each_notebook
def test_a_notebook_agrees_with_its_text_file(path):
    import jupytext

    text, notebook = jupytext.read(path.with_suffix(".py")), read(path)
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (text, notebook)]
    assert cells[0] == cells[1], "run 'jupytext --sync notebooks/*.py'"


@pytest.mark.slow
@each_notebook
def test_a_notebook_is_stored_without_outputs(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "clear the outputs before saving"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_are_short_and_define_no_functions(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|work|tmp)/", text), "a path of one machine"
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        source = cell.partition("\n")[2].strip()
        if cell.startswith(" [markdown]"):
            continue
        function = re.search(r"^\s*(async def|def|class)\s|\blambda\b", source, re.MULTILINE)
        assert not function, f"a function has a place in the library: {source}"
        assert len(source.splitlines()) <= MAX_LINES, f"more than {MAX_LINES} lines: {source}"
