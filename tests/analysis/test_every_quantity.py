"""Measures all quantities on all losses in two small studies, of classification and of regression."""

from pathlib import Path

import pytest
import xarray as xr

from analysis.cli import run
from analysis.folder import open_folder, open_study
from analysis.quantities import QUANTITIES, VARIANTS
from analysis.schema import MEASURED

pytestmark = [pytest.mark.heavy, pytest.mark.slow]  # it measures everything, which takes more than a minute

CLASSIFICATION = """
name: all
data: {name: quickdraw, ways: 3, shots: 1, queries: 2, test_queries: 3, image_size: 4}
network: {name: mlp, hidden: [4]}
inner: {steps: 2, step_size: 0.1}
learners:
  maml: {}
  anil: {algorithm: anil}
  boil: {algorithm: boil}
  meta-sgd: {algorithm: meta-sgd}
  reptile: {algorithm: reptile, learning_rate: 0.5}
"""
REGRESSION = """
name: all
data: {name: sine-line}
network: {name: mlp, hidden: [4]}
inner: {steps: 2, step_size: 0.001}
learners: {maml: {}}
"""
SETTINGS = """
seeds: [0]
train: {checkpoints: [0, 1], meta_batch: 2, learning_rate: 0.002, validation_tasks: 1}
measure:
  tasks: 2
  full_tasks: FULL_TASKS
  block: FULL_TASKS
  light: {eigenvalues: 1, tolerance: 0.05, probes: 2, max_matvecs: 10}
  full: {eigenvalues: 2, tolerance: 0.01, probes: 3, max_matvecs: 24}
  evaluation_tasks: 2
  quantities: [all]
  losses: [query, across, other_task]
"""
# Some of what only learners have whose steps are alpha times the gradient, and of what only classification has.
WITH_ALPHA = ("alpha_rho", "alpha_hg_ratio", "alpha_lambda_max", "shot_l2", "shot_direction_ratio")
WITH_CLASSES = ("support_accuracy", "prototype_agreement", "swept_query_accuracy", "shot_js", "shot_cross_entropy")


def measured(folder: Path, text: str, *, full_tasks: int) -> xr.Dataset:
    """The measurements of a study that is trained and measured by the command line."""
    (folder / "all.yaml").write_text(text + SETTINGS.replace("FULL_TASKS", str(full_tasks)))
    out = folder / "out"
    assert run(["train", str(folder / "all.yaml"), "--out", str(out), "--workers", "0"]) == 0
    assert run(["measure", str(out), "--workers", "0"]) == 0
    declared = {v.name for q in open_folder(out).quantities for v in q.variables}
    ds = open_study(out)
    assert declared <= set(ds.data_vars)
    assert {v.name for q in QUANTITIES.values() for v in q.variables} <= declared
    assert all(f"rho_{loss}" in declared for loss in VARIANTS)
    assert all(ds[name].attrs["long_name"] and ds[name].attrs["units"] for name in declared)
    return ds


def empty(ds: xr.Dataset) -> set[str]:
    """The variables without a single value."""
    return {str(name) for name, values in ds.data_vars.items() if not bool(values.notnull().any())}


def test_every_quantity_is_measured_on_every_learner(tmp_path):
    ds = measured(tmp_path, CLASSIFICATION, full_tasks=2)
    assert (ds["status"] == MEASURED).all()
    assert ds["alpha_factor"].values.tolist() == [0.25, 0.5, 1, 2, 4]
    assert (ds["shot_target"].values.tolist(), ds["shot_reference"].values.tolist()) == ([1], [2])
    for name in ds["learner"].values:
        missing = empty(ds.sel(learner=name))
        scaled_by_alpha = {v for v in missing if "alpha" in v or v.startswith(("shot_", "density", "step_size"))}
        assert set(WITH_ALPHA) <= scaled_by_alpha if name == "meta-sgd" else not scaled_by_alpha
        # The part of the gradient that the inner loop does not move is 0.
        unmoved = {"anil": "rho_body", "boil": "rho_head"}.get(name, "none")
        assert {v for v in missing - scaled_by_alpha if not v.startswith(unmoved)} == set()


def test_every_quantity_is_measured_on_regression(tmp_path):
    ds = measured(tmp_path, REGRESSION, full_tasks=1)
    assert (ds["status"] == MEASURED).all()
    missing = empty(ds)
    assert set(WITH_CLASSES) <= missing
    assert {v for v in missing if "accuracy" not in v and not v.startswith(("shot_", "prototype"))} == set()
    assert not missing & {"shot_l2", "shot_squared_error", "shot_direction_cosine"}
    # The singular values belong to the full measurements, which are those of the first task.
    assert ds["adaptation_singular_value"].sel(task=0).notnull().all()
    assert ds["adaptation_singular_value"].sel(task=1).isnull().all()
