"""Compares the stored numbers of a study with dense Hessians, computed in float64 at the recorded points."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from small_study import SMALL_STUDY, train_and_measure

import analysis
from analysis import measure as measuring
from analysis import store
from analysis.engines.place import Place
from analysis.folder import open_folder, open_study
from analysis.schema import LEARNER_COORDINATES, RUN_VARIABLES, learner_names
from analysis.study import build
from analysis.study_file import load_study, overridden, parse_study, study_text
from hessian_tools import SaveAt, make_loss, record
from hessian_tools.layout import flatten
from hessian_tools.nets import seeded
from hessian_tools.runs.checkpoints import load_theta
from hessian_tools.train import task_loss

LEARNER, SEED, CHECKPOINT, TASK = "maml-shot", 1, 5, 1  # a unit at the level "full": all eigenvalues


@pytest.fixture(scope="module")
def point(micro_study: Path):
    """One task of the micro study: its stored numbers, and its trajectory and dense Hessians computed again by hand."""
    study = open_folder(micro_study)
    stored = open_study(micro_study).sel(learner=LEARNER, seed=SEED, checkpoint=CHECKPOINT, task=TASK)
    training = study.training(LEARNER, SEED)
    loss, _ = task_loss(training)
    theta = load_theta(study.run(LEARNER, SEED), CHECKPOINT)
    support, query = study.problem.held_out.episode(seed=SEED, split="test", index=TASK)
    trajectory = record(training.learner, loss, theta, support, query, save=SaveAt(thetas=True))
    model = seeded(training.network, seed=0).double()
    exact = make_loss(model, torch.nn.functional.cross_entropy, flatten(model)[1])
    thetas = trajectory.thetas.double()
    return stored, trajectory, thetas, [dense(exact, t, support) for t in thetas]


def dense(loss, theta, batch):
    """Gradient and Hessian, reverse over reverse, row by row."""
    t = theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(t, batch), t, create_graph=True)
    rows = [torch.autograd.grad(g[i], t, retain_graph=True)[0] for i in range(len(t))]
    return g.detach(), torch.stack(rows)


@pytest.mark.slow
def test_the_trajectory_is_stored_as_recorded(point):
    stored, trajectory, _, _ = point
    for name in ("support_loss", "query_loss", "query_accuracy", "theta_norm", "grad_norm", "displacement", "gram"):
        np.testing.assert_allclose(stored[name], getattr(trajectory, name).double(), rtol=1e-6)
    gram = trajectory.gram.double()
    expected = (gram.sum() - gram.trace()) / gram.trace()  # the factor 1 / (K - 1) is 1, as K = 2
    np.testing.assert_allclose(stored["alignment"], expected, rtol=1e-5, atol=1e-6)


def test_curvature_along_the_gradient(point):
    stored, _, thetas, hessians = point
    for k, (g, H) in enumerate(hessians):
        rho = float(g @ H @ g / (g @ g))
        at = stored.sel(inner_step=k)
        assert float(at["rho"]) == pytest.approx(rho, rel=1e-3)
        assert float(at["alpha_rho"]) == pytest.approx(0.1 * rho, rel=1e-3)
        assert float(at["hg_ratio"]) == pytest.approx(float((H @ g).norm() / g.norm()), rel=1e-3)
        assert abs(float(at["rho"]) - rho) < 2 * float(at["rho_error"])
        assert float(at["rho_error"]) < 1e-4 * float(at["hg_ratio"])
    moved = thetas[-1] - thetas[0]
    cosines = [float(-g @ moved / (g.norm() * moved.norm())) for g, _ in hessians]
    np.testing.assert_allclose(stored["cos_displacement"][:-1], cosines[:-1], rtol=1e-3)
    assert np.isnan(stored["cos_displacement"][-1])


def test_eigenvalues_lie_within_their_residuals(point):
    stored, _, _, hessians = point
    for k, (_, H) in enumerate(hessians):
        exact = torch.linalg.eigvalsh(H).numpy()
        at = stored.sel(inner_step=k)
        by_magnitude = exact[np.argsort(-np.abs(exact))][:2]
        for name, wanted in (
            ("eigenvalue", by_magnitude),
            ("eigenvalue_max", exact[-1]),
            ("eigenvalue_min", exact[0]),
        ):
            allowed = at[f"{name}_residual"].values + 1e-4 * np.abs(exact).max()
            assert np.all(np.abs(at[name].values - wanted) <= allowed)


def test_trace_samples_their_error_and_random_directions(point):
    stored, _, thetas, hessians = point
    for k, (_, H) in enumerate(hessians):
        at = stored.sel(inner_step=k)
        samples = at["trace_sample"].values
        assert float(at["trace"]) == pytest.approx(samples.mean(), rel=1e-5)
        # There are four probes, whose square root is 2.
        assert float(at["trace_stderr"]) == pytest.approx(samples.std(ddof=1) / 2, rel=1e-5)
        assert abs(float(at["trace"]) - float(H.trace())) < 6 * float(at["trace_stderr"])
        assert float(at["rho_random"]) == pytest.approx(samples.mean() / thetas.shape[1], rel=1e-5)


@pytest.mark.heavy
def test_every_quantity_fills_the_variables_that_it_declares(micro_study):
    unit = measuring.Unit(open_folder(micro_study), (LEARNER,), SEED, CHECKPOINT, (TASK,))
    points = measuring._points(unit, unit.tasks, *measuring.network(unit))
    declared = set()
    for quantity in unit.study.quantities:
        names = {variable.name for variable in quantity.variables}
        assert set(quantity.measure(points)) == names
        assert {variable.error for variable in quantity.variables if variable.error} <= names
        declared |= names
    assert declared == set(open_study(micro_study).data_vars) - {variable.name for variable in RUN_VARIABLES}


@pytest.mark.slow
def test_light_units_hold_fewer_eigenvalues_and_probes_and_nan_for_the_others(micro_study):
    ds = open_study(micro_study)
    # Only the first and the last checkpoint are measured at the level "full".
    full = ds.sel(learner="maml", seed=0, checkpoint=5)
    light = ds.sel(learner="maml", seed=0, checkpoint=2)
    assert (full["level"] == measuring.FULL).all()
    assert full["eigenvalue"].notnull().all()
    assert full["trace_sample"].notnull().all()
    assert (light["level"] == measuring.LIGHT).all()
    assert light["eigenvalue"].isel(eigen_index=0).notnull().all()
    assert light["eigenvalue"].isel(eigen_index=1).isnull().all()
    assert light["trace_sample"].isel(probe=[0, 1]).notnull().all()
    assert light["trace_sample"].isel(probe=[2, 3]).isnull().all()
    assert (ds["status"].sel(learner="maml") == measuring.MEASURED).all()


def test_before_training_learners_with_the_same_inner_loop_have_equal_numbers(micro_study):
    ds = open_study(micro_study).sel(checkpoint=0)
    learner_coordinates = ["learner", *LEARNER_COORDINATES]
    first = ds.isel(learner=0).drop_vars(learner_coordinates)
    for other in range(1, ds.sizes["learner"]):
        xr.testing.assert_equal(first, ds.isel(learner=other).drop_vars(learner_coordinates))
    # Different seeds have different networks and held-out tasks.
    assert not np.isclose(ds["support_loss"].sel(seed=0), ds["support_loss"].sel(seed=1)).any()


def test_a_store_opens_in_one_line_with_labels(micro_study):
    run = xr.open_zarr(micro_study / "runs" / "maml-seed0" / "measurements.zarr", consolidated=False)
    assert run["eigenvalue"].dims == ("checkpoint", "task", "inner_step", "eigen_index")
    assert run["eigenvalue"].attrs["error_variable"] == "eigenvalue_residual"
    assert run["checkpoint"].values.tolist() == [0, 2, 5]
    assert run.attrs["learner"] == "maml"
    assert (run["done"] == 1).all()
    ds = analysis.open_study(micro_study)
    assert learner_names(ds) == ds["learner"].values.tolist() == ["untrained", "maml", "maml-shot"]
    assert ds["layer"].attrs["flag_meanings"].split()[0] == "body.0.0.weight"
    quantities = [variable for quantity in open_folder(micro_study).quantities for variable in quantity.variables]
    assert [str(name) for name in ds.data_vars] == [v.name for v in (*quantities, *RUN_VARIABLES)]


@pytest.mark.parametrize(("tasks", "full", "block"), [(16, 4, 4), (4, 2, 2), (7, 3, 2), (5, 0, 4), (3, 3, 8)])
def test_units_cover_every_task_once_and_match_the_chunks_of_the_store(tmp_path, tasks, full, block):
    settings = load_study("micro").model_dump(mode="json")["measure"]
    config = overridden(
        load_study("micro"), {"measure": settings | {"tasks": tasks, "full_tasks": full, "block": block}}
    )
    study = build(config, tmp_path)
    every = measuring.units(study)
    last = [u for u in every if u.learner.name == "maml" and u.seed == 0 and u.checkpoint == 5 and u.tasks]
    assert sorted(t for u in last for t in u.tasks) == list(range(tasks))
    assert sorted(t for u in last if u.level == measuring.FULL for t in u.tasks) == list(range(full))
    chunk = measuring.chunk_tasks(study)
    for unit in last:
        assert unit.tasks[0] % chunk == 0
        assert len(unit.tasks) % chunk == 0 or unit.tasks[-1] == tasks - 1


def test_a_task_whose_curvature_overflows_has_diverged_and_a_zero_gradient_has_not():
    inf, nan = np.inf, np.nan
    values = {
        "grad_norm": np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),
        "rho": np.array([[0.5, 0.4], [0.5, inf], [nan, 0.3]]),
        "rho_normalised": np.array([[0.5, 0.4], [0.5, nan], [nan, 0.3]]),
        "status": np.full(3, measuring.MEASURED),
    }
    measuring._mark_overflow(values)
    assert values["status"].tolist() == [measuring.MEASURED, measuring.DIVERGED, measuring.MEASURED]


def test_the_roles_of_learners_follow_from_their_settings_and_not_from_their_names():
    text = study_text("micro").replace("untrained: {algorithm: untrained}", "control: {algorithm: untrained}")
    text = text.replace("maml-shot: {algorithm", "mine: {algorithm").replace("maml: {algorithm: maml}", "untrained: {}")
    study = build(parse_study(text, source="micro"))
    trained = {name: one.settings.trained for name, one in study.learners.items()}
    assert trained == {"control": False, "untrained": True, "mine": True}
    assert study.without_shot == {"mine": "untrained"}


@pytest.mark.slow
def test_blocks_that_are_measured_together_are_stored_as_blocks_measured_alone(tmp_path, monkeypatch):
    """On a GPU a unit has all tasks of a level, and as many blocks as fit in memory are measured together."""
    text = SMALL_STUDY.replace("tasks: 2\n  full_tasks: 1", "tasks: 7\n  full_tasks: 2").replace("block: 1", "block: 2")
    source, alone, together = tmp_path / "small.yaml", tmp_path / "alone", tmp_path / "together"
    source.write_text(text)
    train_and_measure(source, alone, Place(workers=0))
    study = open_folder(alone)
    assert [len(unit.tasks or ()) for unit in measuring.units(study)] == [2, 2, 2, 2, 1, 0, 2, 2, 1, 0]
    assert measuring.blocks_at_once(measuring.units(study)[0]) == 1

    measure_tasks, calls = measuring._measurements, []

    def measurements(unit, tasks):
        calls.append(tasks)
        if len(tasks) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return measure_tasks(unit, tasks)

    monkeypatch.setattr(measuring, "_measurements", measurements)
    monkeypatch.setattr(measuring, "tasks_of_a_unit", lambda study: study.config.measure.tasks)
    monkeypatch.setattr(measuring, "blocks_at_once", lambda unit: 8)
    shutil.copytree(alone, together)
    shutil.rmtree(together / "runs" / "maml-seed0" / store.NAME)
    study = open_folder(together)
    path = measuring.allocate(study, "maml", 0)
    for unit in measuring.units(study):
        if unit.checkpoint == 0 and unit.level == measuring.LIGHT and unit.tasks:
            # The block in the middle is there already, as after an interruption.
            store.write_unit(path, 0, slice(4, 6), measure_tasks(unit, (4, 5)))
        assert not measuring.is_measured(unit)
        measuring.measure_unit(unit, lambda done, name: None)
        assert measuring.is_measured(unit)
    # At checkpoint 0 a block was left out; at checkpoint 2 the three blocks had no room together.
    assert calls == [(0, 1), (0, 1), (2, 3, 6), (2, 3, 4, 5, 6), (2, 3), (4, 5), (6,)]
    xr.testing.assert_allclose(open_study(alone), open_study(together), rtol=1e-4)
    assert not list(store.faults(path))
    files = [sorted(f.relative_to(p).as_posix() for f in p.rglob("*")) for p in (alone / "runs", together / "runs")]
    assert files[0] == files[1]

    # The process remembers that five tasks had no room together.
    calls.clear()
    shutil.rmtree(path)
    measuring.allocate(study, "maml", 0)
    for unit in measuring.units(study):
        if unit.level == measuring.LIGHT and unit.tasks:
            measuring.measure_unit(unit, lambda done, name: None)
    assert calls == 2 * [(2, 3), (4, 5), (6,)]


def test_on_a_gpu_a_unit_has_all_tasks_of_a_level_and_as_many_blocks_at_once_as_fit(tmp_path, monkeypatch):
    settings = load_study("micro").model_dump(mode="json")["measure"] | {"tasks": 9, "full_tasks": 3, "block": 2}
    study = replace(build(overridden(load_study("micro"), {"measure": settings}), tmp_path), device="cuda")
    every = measuring.units(study)
    assert {unit.tasks for unit in every} == {(0, 1, 2), (3, 4, 5, 6, 7, 8), None}
    one = 2 * (study.config.inner.steps + 1) * 48 * study.problem.layout.numel * 4
    for memory, blocks in ((4 * one, 1), (13 * one, 3), (one, 1)):
        monkeypatch.setattr(measuring, "card_memory", lambda device, memory=memory: memory)
        assert measuring.blocks_at_once(every[0]) == blocks
