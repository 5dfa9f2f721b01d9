"""Runs one small study of every learner from training to the report, and checks its numbers.

Curvature is compared with dense Hessians, which are computed here in float64.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from analysis.cli import run
from analysis.drawing.figures import FIGURES
from analysis.folder import open_folder, open_study, open_verdicts
from analysis.schema import MEASURED, alpha_steps, begun_elsewhere, learner_names
from hessian_tools import SaveAt, make_loss, record
from hessian_tools.layout import flatten
from hessian_tools.nets import seeded
from hessian_tools.runs.checkpoints import load_theta
from hessian_tools.runs.files import read_json
from hessian_tools.train import saved_checkpoints, task_loss

pytestmark = pytest.mark.heavy

STUDY = """
name: every
data: {name: quickdraw, ways: 3, shots: 1, queries: 2, test_queries: 2, image_size: 8}
network: {name: mlp, hidden: [6]}
inner: {steps: 2, step_size: 0.1}
learners:
  untrained: {algorithm: untrained}
  supervised: {algorithm: supervised}
  maml: {}
  maml-shot: {shot: {weight: 0.1, distance: js, schedule: linear, schedule_steps: 2}}
  fomaml: {first_order: true, evaluation_steps: 3}
  anil: {algorithm: anil}
  boil: {algorithm: boil}
  meta-sgd: {algorithm: meta-sgd}
  reptile: {algorithm: reptile, learning_rate: 0.5}
  leo: {algorithm: leo, step_size: 0.1, latent: {size: 3, fine_tuning_step_size: 0.1}}
  momentum: {rule: {name: momentum}}
  shot-p: {shot: {weight: 1}, pretraining: {hidden: 4}, learning_rate: 0.1}
  maml-p: {start: shot-p}
  boil-p: {algorithm: boil, start: shot-p, step_size: 0.2}
seeds: [0]
train: {checkpoints: [0, 2], meta_batch: 2, learning_rate: 0.002, validation_tasks: 10}
measure:
  tasks: 2
  full_tasks: 0
  light: {eigenvalues: 1, tolerance: 0.05, probes: 2, max_matvecs: 10}
  full: {eigenvalues: 1, tolerance: 0.01, probes: 2, max_matvecs: 24}
  block: 2
  evaluation_tasks: 2
"""
# Learners whose inner steps are not alpha times the gradient.
WITHOUT_ALPHA = {"meta-sgd", "leo", "momentum"}


@pytest.fixture(scope="module")
def study_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished study."""
    place = tmp_path_factory.mktemp("every")
    (place / "every.yaml").write_text(STUDY)
    assert run(["study", str(place / "every.yaml"), "--out", str(place / "out"), "--workers", "0"]) == 0
    return place / "out"


@pytest.fixture(scope="module")
def ds(study_path: Path) -> xr.Dataset:
    return open_study(study_path)


def stored_numbers(ds: xr.Dataset, learner: str, checkpoint: int) -> xr.Dataset:
    """The part of the study's Dataset that belongs to one checkpoint of a learner."""
    return ds.sel(learner=learner, seed=0, checkpoint=checkpoint)


def test_every_learner_is_measured_and_evaluated(ds):
    trained = ds["trained"].values == 1
    assert (ds["status"].sel(checkpoint=0) == MEASURED).all()
    assert (ds["status"].isel(learner=trained) == MEASURED).all()
    assert ds["rho"].isel(learner=trained).notnull().all()
    assert ds["evaluation_loss"].isel(learner=trained).notnull().all()


@pytest.mark.parametrize("name", ["supervised", "anil", "boil", "meta-sgd", "leo", "momentum", "boil-p"])
def test_curvature_is_that_along_the_learners_own_gradients(study_path, ds, name):
    study, task = open_folder(study_path), 1
    training = study.training(name, 0)
    loss, _ = task_loss(training)
    theta = load_theta(study.run(name, 0), 2)
    support, query = study.problem.held_out.episode(seed=0, split="test", index=task)
    trajectory = record(training.learner, loss, theta, support, query, save=SaveAt(thetas=True, gradients=True))
    stored = stored_numbers(ds, name, 2).sel(task=task)
    np.testing.assert_allclose(stored["support_loss"], trajectory.support_loss, rtol=1e-5)
    model = seeded(training.network, seed=0).double()
    exact = make_loss(model, torch.nn.functional.cross_entropy, flatten(model)[1])
    for k, (point, g) in enumerate(zip(trajectory.thetas.double(), trajectory.gradients.double(), strict=True)):
        H = torch.func.hessian(exact)(point, support)
        rho = float(g @ H @ g / (g @ g))
        at = stored.sel(inner_step=k)
        assert float(at["rho"]) == pytest.approx(rho, rel=1e-3, abs=1e-5)
        # The study's step size, which boil-p replaces by its own.
        alpha = {"boil-p": 0.2}.get(name, 0.1)
        expected = np.nan if name in WITHOUT_ALPHA else alpha * rho
        assert float(at["alpha_rho"]) == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)


def test_variables_scaled_by_alpha_are_missing_only_for_learners_without_alpha(study_path, ds):
    for name in learner_names(ds):
        values = stored_numbers(ds, name, 0)
        assert alpha_steps(ds, name) == (name not in WITHOUT_ALPHA)
        assert bool(values["alpha_rho"].isnull().all()) == (name in WITHOUT_ALPHA)
        assert bool(values["alpha_rho"].isnull().any()) == (name in WITHOUT_ALPHA)
        assert bool(values["step_size"].isnull()) == (name in WITHOUT_ALPHA)
        stored = xr.open_zarr(study_path / "runs" / f"{name}-seed0" / "measurements.zarr", consolidated=False)
        assert ("step_size_missing" in stored.attrs) == (name in WITHOUT_ALPHA)
    judged = {
        v.learner: v.quantity for v in open_verdicts(study_path) if (v.claim, v.comparison) == ("suppression", "raw")
    }
    assert {name for name, quantity in judged.items() if quantity == "rho"} == WITHOUT_ALPHA
    assert set(judged.values()) == {"rho", "alpha_rho"}


def test_before_training_only_learners_with_the_same_inner_loop_have_equal_numbers(ds):
    losses = {name: stored_numbers(ds, name, 0)["support_loss"].values for name in learner_names(ds)}
    alike = [name for name, values in losses.items() if np.array_equal(values, losses["maml"])]
    # Meta-SGD is among them, because all the step sizes that it learns begin at alpha.
    assert alike == ["untrained", "supervised", "maml", "maml-shot", "fomaml", "meta-sgd", "reptile", "shot-p"]
    for name in ("anil", "boil", "momentum"):  # the same network, so that only the loss before the first step is equal
        np.testing.assert_allclose(losses[name][:, 0], losses["maml"][:, 0], rtol=1e-5)
    for name in ("anil", "boil", "leo", "momentum"):
        assert not np.isclose(losses[name][:, -1], losses["maml"][:, -1], rtol=1e-4).any()


def test_num_params_counts_the_parameters_that_the_inner_loop_moves(ds):
    moved = {name: int(stored_numbers(ds, name, 0)["num_params"]) for name in learner_names(ds)}
    body, head = 64 * 6 + 6, 6 * 3 + 3
    assert moved["maml"] == moved["meta-sgd"] == body + head
    assert (moved["anil"], moved["boil"], moved["leo"]) == (head, body, 6 * 3)


def test_a_learner_with_a_start_begins_from_the_best_checkpoint_of_that_learner(study_path, ds):
    folder = open_folder(study_path)
    source = saved_checkpoints(folder.run("shot-p", 0))
    best = max(source, key=lambda c: (c.validation_accuracy, -c.meta_step))
    begun = read_json(folder.run("maml-p", 0) / "begun.json")
    assert begun == {"learner": "shot-p", "meta_step": best.meta_step}
    assert best.meta_step == 2  # checkpoint 0 would be the seed's untrained network
    numel = len(load_theta(folder.run("maml", 0), 0))
    assert len(best.theta) > numel  # the projector of the pretraining is left out of the start
    for name in ("maml-p", "boil-p"):
        assert load_theta(folder.run(name, 0), 0).equal(best.theta[:numel])
    assert set(begun_elsewhere(ds)) == {"maml-p", "boil-p"}


def test_a_learner_with_a_start_is_compared_with_the_untrained_network(study_path, ds):
    """The untrained network is measured under the inner loop of maml-p, but not under that of boil-p (other alpha)."""
    judged = [v for v in open_verdicts(study_path) if v.claim == "suppression"]
    assert "boil-p" not in {v.learner for v in judged}
    raw = next(v for v in judged if (v.learner, v.steps, v.comparison) == ("maml-p", "step 0", "raw"))
    untrained = stored_numbers(ds, "maml", 0)["alpha_rho"].sel(inner_step=0).mean()
    assert raw.baseline_value == pytest.approx(float(untrained), rel=1e-6)


def test_the_report_says_how_learners_differ_from_the_others(study_path):
    page = (study_path / "report.html").read_text()
    assert "supervised is a control: it was trained on all classes at once, not meta-trained." in page
    assert "meta-sgd has no alpha rho: each parameter has a step size of its own." in page
    assert "The inner loop of anil, boil, leo and boil-p moves only a part of the network" in page
    assert "boil-p begins from the best checkpoint of shot-p by validation" in page
    assert "there is no verdict on suppression for it" in page
    assert "Learners whose inner steps are not alpha times the gradient are not drawn: Meta-SGD, each parameter" in page
    manifest = json.loads((study_path / "runs" / "maml-p-seed0" / "manifest.json").read_text())["config"]
    assert manifest["begins_from"][0]["pretraining"]["hidden"] == 4


@pytest.mark.parametrize(("name", "least_height"), [("accuracy", 1.35), ("alpha_rho", 1.0)])
def test_a_long_legend_does_not_shrink_the_panels(ds, name, least_height):
    """least_height: the height of a panel in inches in a figure with few learners."""
    figure = FIGURES[name](ds)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    inches = ax.get_window_extent().height / figure.dpi
    assert inches > least_height
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert 2 < len(entries) == len(set(entries))
    legend = figure.legends[0].get_window_extent()
    assert legend.width <= figure.bbox.width
    assert not legend.overlaps(ax.get_window_extent())


def test_running_a_complete_study_again_writes_no_checkpoint(study_path):
    written = {path: path.stat().st_mtime_ns for path in study_path.glob("runs/*/checkpoints/0*")}
    folder = open_folder(study_path)
    # Two checkpoints of each trained learner, and one of the untrained network.
    assert len(written) == 2 * (len(folder.config.learners) - 1) + 1
    assert run(["train", str(study_path), "--workers", "0"]) == 0
    assert run(["measure", str(study_path), "--workers", "0"]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in study_path.glob("runs/*/checkpoints/0*")}
