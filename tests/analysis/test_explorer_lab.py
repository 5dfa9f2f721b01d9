"""Tests of the explorer in JupyterLab with a kernel, in a real browser, and in a notebook that is exported."""

import json
import pickle
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.request import Request, urlopen

import pytest
from browser import as_number, new_page, set_slider, shown_values
from figure_contents import study_to_draw, with_further_variables

import analysis
from analysis.drawing.summary import measured, summarise

pytestmark = pytest.mark.heavy
TOKEN = "explorer"  # a request with it needs no cookie
PATIENCE = 180  # seconds; JupyterLab takes a few to start, to answer or to end on a quiet machine
# The folder of a study that grows is played by a file, which is another one after the test has replaced it.
CELLS = (
    "import pickle, pathlib, analysis\nfrom analysis.explorer import explorer\n"
    "explorer.open_study = lambda path: pickle.loads(pathlib.Path(path).read_bytes())",
    "shown = analysis.explore('study.pkl')\nshown",
)


@pytest.fixture(scope="module")
def ds():
    return with_further_variables(study_to_draw())


@pytest.fixture
def lab(ds, tmp_path, monkeypatch):
    """The address of a running JupyterLab, in whose folder there are a notebook and a study of one checkpoint."""
    nbformat = pytest.importorskip("nbformat")
    for module in ("jupyterlab", "anywidget"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    folder = tmp_path / "work"
    folder.mkdir()
    begun = {name: ds[name].where(ds["checkpoint"] == 0) for name in ("alpha_rho", "rho", "alignment")}
    (folder / "study.pkl").write_bytes(pickle.dumps(ds.assign(begun)))
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "explore.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The settings of the user must not influence the run.
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("BROWSER", "none")
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--notebook-dir={folder}"]
    options += [f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=None"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log)
        try:
            yield address_of(server, tmp_path / "jupyter"), folder
        finally:
            server.terminate()
            server.wait(PATIENCE)


def address_of(server, runtime_folder):
    """The address of a JupyterLab that has been started, once it answers.

    It writes its port into a file, because it takes another one where the port is in use.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError, ValueError):  # no file, half a file, or no answer yet
            about = json.loads((runtime_folder / f"jpserver-{server.pid}.json").read_text())
            address = f"http://127.0.0.1:{about['port']}"
            ask(f"{address}/api/status")
            return address
        time.sleep(0.5)
    raise AssertionError("JupyterLab did not start")


def ask(address, method="GET"):
    request = Request(address, method=method, headers={"Authorization": f"token {TOKEN}"})
    with urlopen(request, timeout=PATIENCE) as answer:
        return answer.read()


def check_table(page, ds, **place):
    mean = summarise(measured(ds, "alpha_rho")).mean.sel(place)
    shown = shown_values(page)
    assert shown
    for learner, (value, *_) in shown.items():
        assert as_number(value) == pytest.approx(float(mean.sel(learner=learner)), rel=1e-3, nan_ok=True)


def test_jupyterlab_shows_the_explorer_which_needs_its_kernel_for_files_alone(lab, ds, tmp_path):
    address, folder = lab
    with new_page(tmp_path / "browser", viewport={"width": 1200, "height": 1400}) as page:
        page.goto(f"{address}/lab/tree/explore.ipynb?token={TOKEN}")
        page.get_by_text("| Idle").wait_for()  # the kernel is ready
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_selector("[data-view=training] svg")
        check_table(page, ds, checkpoint=0, inner_step=0)
        # The study has grown.
        (folder / "study.pkl").write_bytes(pickle.dumps(ds))
        page.get_by_text("Read the study again").click()
        page.wait_for_function("document.querySelector('.note').textContent.includes('is read again')")
        set_slider(page, "checkpoint", ds.sizes["checkpoint"] - 1)
        check_table(page, ds, checkpoint=ds["checkpoint"].values[-1], inner_step=0)
        with page.expect_download() as download:
            page.locator("[data-view=inner]").get_by_text("Save PDF").click()
        download.value.save_as(tmp_path / "picture.pdf")
        assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")
        # Without a kernel, the sliders and the pictures still work.
        (kernel,) = json.loads(ask(f"{address}/api/kernels"))
        ask(f"{address}/api/kernels/{kernel['id']}", method="DELETE")
        before = page.locator("[data-view=training] circle").evaluate_all("all => all.map(c => c.getAttribute('cy'))")
        set_slider(page, "step", 2)
        check_table(page, ds, checkpoint=ds["checkpoint"].values[-1], inner_step=2)
        after = page.locator("[data-view=training] circle").evaluate_all("all => all.map(c => c.getAttribute('cy'))")
        assert before != after


def test_an_exported_notebook_shows_a_picture(ds):
    nbformat = pytest.importorskip("nbformat")
    exporters = pytest.importorskip("nbconvert.exporters", reason="nbconvert is not installed")
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    bundle, _ = analysis.explore(ds)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    output = nbformat.v4.new_output("execute_result", data=bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("analysis.explore(ds)", outputs=[output], execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    page, _ = exporters.HTMLExporter().from_notebook_node(notebook)
    assert bundle["image/png"][:200] in page.replace("\n", "")
