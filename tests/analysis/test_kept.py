"""Kept results: they are small, give the same verdicts, tables and captions, and a study goes on from them."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml
from simulated_studies import simulated_study

import analysis
from analysis import kept, networks, times, training
from analysis.claims import judge, load_plan
from analysis.cli import run
from analysis.drawing.figures import figures_of
from analysis.folder import begin, going_on_from, open_folder, open_study
from analysis.keep import _minutes
from analysis.measure import units
from analysis.report.scale import scale_section
from analysis.schema import LEARNER_COORDINATES, learner_names, stack_runs
from analysis.study import build
from analysis.study_file import study_of
from analysis.times import cpu_seconds, stopwatch
from hessian_tools.runs.files import DamagedFileError, read_json, write_json
from hessian_tools.train import meta_train_runs

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FACTS = {"study": "simulated"}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return simulated_study(tasks=6, evaluation_tasks=20, diverged=[("maml", 1, 2)])


def runs_of(ds: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
    return {name: ds.sel(learner=name, seed=seed, drop=True) for name in learner_names(ds)}


def opened(ds: xr.Dataset, folder: Path) -> xr.Dataset:
    """The study ``ds`` as it is read from a folder of kept seeds."""
    names = learner_names(ds)
    stacked = stack_runs(kept.runs_of(folder, [(name, seed) for name in names for seed in ds["seed"].values]), names)
    coords = {name: ds[name] for name in LEARNER_COORDINATES}
    return stacked.assign_coords(coords).assign_attrs(ds.attrs)


@pytest.fixture(scope="module")
def from_files(ds, tmp_path_factory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("kept")
    for seed in ds["seed"].values:
        assert kept.write_seed(folder, int(seed), runs_of(ds, seed), FACTS) == "written"
    return opened(ds, folder)


def test_kept_numbers_are_those_that_were_measured(ds, from_files):
    for name in ("alpha_rho", "rho", "support_loss", "alignment", "evaluation_accuracy"):
        np.testing.assert_allclose(from_files[name], ds[name], rtol=6e-8)
        assert from_files[name].dtype == np.float64
    np.testing.assert_allclose(from_files["trace"], ds["trace"], rtol=2.0**-13)
    np.testing.assert_allclose(from_files["rho_error"], ds["rho_error"], rtol=2.0**-9)
    for name in ("status", "level", "done", "evaluation_done", "num_params"):
        xr.testing.assert_identical(from_files[name].drop_vars(ds.coords, errors="ignore").drop_attrs(),
                                    ds[name].drop_vars(ds.coords, errors="ignore").drop_attrs())  # fmt: skip
    assert from_files["rho"].attrs == ds["rho"].attrs
    assert from_files["layer"].attrs["flag_meanings"] == ds["layer"].attrs["flag_meanings"]
    assert not set(kept.LEFT_OUT) & set(from_files)
    mean = ds["layer_norm"].where(ds["status"] == 1)
    np.testing.assert_allclose(from_files["layer_norm"], mean.mean("task"), rtol=2.0**-12)
    spread = mean.std("task", ddof=1) / mean.notnull().sum("task") ** 0.5
    np.testing.assert_allclose(from_files["layer_norm" + kept.MEAN_ERROR], spread, rtol=2.0**-8, atol=1e-12)


def test_each_variable_is_kept_in_one_piece(tmp_path):
    """Left to itself, HDF5 would divide the larger ones of a real study."""
    kept.write_seed(tmp_path, 0, kept.open_seed(RESULTS / "quickdraw", 0), FACTS)
    with h5py.File(kept.files(tmp_path, 0)[0]) as file:
        in_pieces = {name: (values.chunks, values.shape) for name, values in file.items() if values.chunks}
    assert len(in_pieces) > 10
    assert all(chunks == shape for chunks, shape in in_pieces.values())


def test_errors_of_errors_are_not_kept(ds, from_files):
    """Earlier versions kept them, for nobody."""
    measured = runs_of(ds, 0)["maml"]
    measured = measured.assign(layer_norm_error=0.1 * measured["layer_norm"])  # it has a value for each task, too
    measured["layer_norm"].attrs["error_variable"] = "layer_norm_error"
    measured["num_params"].attrs["error_variable"] = "num_params_error"  # which the run does not have
    once = kept.reduced(measured)
    assert {"layer_norm_error", "layer_norm" + kept.MEAN_ERROR} <= set(once)
    assert "layer_norm_error" + kept.MEAN_ERROR not in once
    assert "error_variable" not in once["layer_norm_error"].attrs
    assert "error_variable" not in once["num_params"].attrs
    # The run that was reduced is not changed.
    assert measured["layer_norm"].attrs["error_variable"] == "layer_norm_error"
    assert measured["num_params"].attrs["error_variable"] == "num_params_error"
    run = kept.open_seed(RESULTS / "quickdraw", 0)["maml"]
    for error in ("rho_layer_error", "density_stderr"):
        run = run.assign({f"{error}{kept.MEAN_ERROR}": run[error]})
        run[error].attrs["error_variable"] = f"{error}{kept.MEAN_ERROR}"
    reduced = kept.reduced(run)
    for ds in (from_files, reduced):
        errors = {values.attrs.get("error_variable") for values in ds.data_vars.values()} - {None}
        assert errors <= set(ds.data_vars)
        assert not any(f"{error}{kept.MEAN_ERROR}" in ds for error in errors)
    assert {"rho_layer_error", "rho_layer" + kept.MEAN_ERROR} <= set(reduced)


def test_claims_figures_and_tables_need_nothing_else(ds, from_files):
    plan = load_plan()
    before, after = judge(ds, plan), judge(from_files, plan)
    assert [v.outcome for v in after] == [v.outcome for v in before]
    for name in ("effect", "low", "high", "margin", "bootstrap_low"):
        values = [[getattr(v, name) for v in verdicts] for verdicts in (after, before)]
        np.testing.assert_allclose(*values, rtol=2e-5, atol=1e-6)
    assert set(figures_of(from_files)) == set(figures_of(ds))
    for figure in figures_of(ds).values():
        assert figure.caption(from_files) == figure.caption(ds)
        figure(from_files)
    assert [part.text for part in scale_section(from_files)] == [part.text for part in scale_section(ds)]


def test_a_seed_that_did_not_change_is_left_as_it_is(ds, tmp_path):
    runs = runs_of(ds, 0)
    kept.write_seed(tmp_path, 0, runs, FACTS)
    path = kept.files(tmp_path, 0)[0]
    first = path.read_bytes()
    assert kept.write_seed(tmp_path, 0, runs, FACTS) == "unchanged"
    assert kept.write_seed(tmp_path, 0, kept.open_seed(tmp_path, 0), FACTS) == "unchanged"  # reduced already
    other = tmp_path / "other"
    kept.write_seed(other, 0, runs, FACTS)
    assert kept.files(other, 0)[0].read_bytes() == first
    changed = runs | {"maml": runs["maml"].assign(rho=runs["maml"]["rho"] * 2)}
    assert kept.write_seed(tmp_path, 0, changed, FACTS) == "replaced"
    assert kept.kept_learners(tmp_path) == {0: tuple(learner_names(ds))}


def test_a_kept_seed_reads_as_xarray_reads_it(ds, tmp_path):
    kept.write_seed(tmp_path, 0, runs_of(ds, 0), FACTS)
    with xr.open_dataset(kept.files(tmp_path, 0)[0], engine="h5netcdf") as stored:
        for name, run in kept.open_seed(tmp_path, 0).items():
            expected = stored.sel(learner=name, drop=True)
            xr.testing.assert_identical(run, expected.map(_widened, keep_attrs=True))


def _widened(values: xr.DataArray) -> xr.DataArray:
    return values.astype(float, keep_attrs=True) if values.dtype.kind == "f" else values


def test_damage_to_a_kept_seed_is_named(ds, tmp_path):
    kept.write_seed(tmp_path, 0, runs_of(ds, 0), FACTS)
    path = kept.files(tmp_path, 0)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=r"seed-0.nc was changed after it was written; put it back, or keep"):
        kept.open_seed(tmp_path, 0)
    path.unlink()
    with pytest.raises(DamagedFileError, match=r"seed-0.nc is missing"):
        kept.refuse_damaged(tmp_path, 0)


def test_the_largest_seed_that_is_planned_stays_below_the_limit(ds, tmp_path):
    """The overhead of netCDF, measured on a small seed, is small enough for 80 variables."""
    kept.write_seed(tmp_path, 0, runs_of(ds, 0), FACTS)
    with xr.open_dataset(kept.files(tmp_path, 0)[0], engine="h5netcdf") as stored:
        overhead = kept.files(tmp_path, 0)[0].stat().st_size - sum(stored[name].size * 4 for name in stored)
        assert overhead / len(stored.variables) < 2000


# ---- a study that goes on from kept results

SETTINGS = """
name: going-on
data: {name: quickdraw, ways: 3, shots: 1, queries: 1, test_queries: 1, image_size: 8}
network: {name: mlp, hidden: [4]}
inner: {steps: 2, step_size: 0.1}
learners: {untrained: {algorithm: untrained}, maml: {}}
seeds: [0, 1]
train: {checkpoints: [0, 2], meta_batch: 1, validation_tasks: 1}
measure:
  {tasks: 2, full_tasks: 0, evaluation_tasks: 2, light: {eigenvalues: 1, tolerance: 0.1, probes: 2, max_matvecs: 8}}
"""


def settings(**changes):
    return yaml.safe_load(SETTINGS) | changes


def test_only_what_is_not_kept_is_trained_and_measured(tmp_path):
    study = build(
        study_of(settings(learners={"untrained": {"algorithm": "untrained"}, "maml": {}, "more": {"start": "maml"}})),
        tmp_path,
        kept={0: ("untrained", "maml")},
    )
    missing = [("untrained", 1), ("maml", 1), ("more", 0), ("more", 1)]
    assert study.runs_to_measure == missing
    # A learner that was added begins from a checkpoint of a kept run, which is therefore trained once more.
    assert set(study.runs_to_train) == {*missing, ("maml", 0)}
    assert {(name, unit.seed) for unit in units(study) for name in unit.learners} == set(missing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a study with two seeds."""
    out = tmp_path_factory.mktemp("whole") / "study"
    analysis.run_study(settings(), out=out, workers=0)
    return out


@pytest.fixture(scope="module")
def kept_folder(whole, tmp_path_factory) -> Path:
    """Both seeds of ``whole``, kept, with the verdicts, figures and report made there."""
    base = tmp_path_factory.mktemp("results")
    shutil.copytree(whole, base / "whole")
    out = base / "kept"
    assert run(["keep", str(base / "whole"), "--out", str(out)]) == 0
    for command in ("test", "figures", "report"):
        assert run([command, str(out)]) == 0
    return out


@pytest.mark.heavy
def test_a_kept_folder_is_read_like_a_study(whole, kept_folder, capsys):
    ds, before = open_study(kept_folder), open_study(whole)
    np.testing.assert_allclose(ds["rho"], before["rho"], rtol=6e-8)
    assert list(ds["learner"].values) == list(before["learner"].values)
    np.testing.assert_array_equal(ds["trained"], before["trained"])
    assert [v.outcome for v in analysis.open_verdicts(kept_folder)] == [
        v.outcome for v in analysis.open_verdicts(whole)
    ]
    page = (kept_folder / "report.html").read_text(encoding="utf-8")
    assert 'src="figures/alpha_rho.png"' in page
    assert len(page) < 200_000
    for fact in ("Data", "Network", "Seeds", "Versions"):
        assert f">{fact}</th>" in page
    assert run(["verify", str(kept_folder)]) == 0
    assert run(["info", str(kept_folder)]) == 0
    said = capsys.readouterr().out
    assert re.search("maml +kept +kept", said)
    readme = (kept_folder / "README.md").read_text(encoding="utf-8")
    assert "hessian-tools study study.yaml --seeds 1 --out FOLDER" in readme
    facts = read_json(kept_folder / "seeds" / "seed-0.json")
    assert facts["runs"]["maml"]["cpu_seconds"].keys() <= {"train", "measure"}
    assert facts["data_digest"][:16] in readme
    for text in (readme, yaml.safe_dump(facts), (kept_folder / "study.yaml").read_text(encoding="utf-8")):
        assert str(whole.parent) not in text


def test_times_that_older_versions_did_not_record_are_not_counted_as_zero():
    assert _minutes([60.0, 30.0]) == "1.5 min"
    assert _minutes([60.0, None]) == "at least 1.0 min"
    assert _minutes([None, None]) == "not recorded"


@pytest.mark.heavy
def test_a_study_goes_on_from_kept_seeds(whole, kept_folder, tmp_path, capsys):
    shutil.copytree(kept_folder, tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept" / "seeds")
    (tmp_path / "kept" / "seeds").mkdir()
    for file in kept.files(kept_folder, 0):  # only the first seed is kept
        shutil.copy(file, tmp_path / "kept" / "seeds")
    result = analysis.run_study(settings(), out=tmp_path / "more", kept=tmp_path / "kept", workers=0)
    assert sorted(path.name for path in (tmp_path / "more" / "runs").iterdir()) == ["maml-seed1", "untrained-seed1"]
    np.testing.assert_allclose(result.dataset["rho"], open_study(whole)["rho"], rtol=6e-8)
    # The seed that was run is kept beside the others, which stay as they are.
    first = kept.files(tmp_path / "kept", 0)[0].read_bytes()
    assert run(["keep", str(tmp_path / "more"), "--out", str(tmp_path / "kept")]) == 0
    assert "seed-0.nc: unchanged" in capsys.readouterr().out.replace("\n", "")
    assert kept.files(tmp_path / "kept", 0)[0].read_bytes() == first
    assert list(open_folder(tmp_path / "kept").config.seeds) == [0, 1]
    content = [read_json(kept.files(folder, 1)[1])["content"] for folder in (tmp_path / "kept", kept_folder)]
    assert content[0] == content[1]


def begun_from(folder: Path, path: Path, **changes: object) -> list[str]:
    """The command that measures the networks of the study in a folder by other settings, in the file ``path``."""
    path.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return ["study", str(path), "--out", str(path.with_suffix("")), "--from", str(folder), "--workers", "0"]


@pytest.fixture
def trained(whole, tmp_path) -> Path:
    """A copy of ``whole`` whose training of one run is said to have taken 12.5 s."""
    shutil.copytree(whole, tmp_path / "trained")
    times = tmp_path / "trained" / "runs" / "maml-seed0" / "times.jsonl"
    times.write_text('{"part": "train", "cpu_seconds": 12.5}\n{"part": "measure", "cpu_seconds": 50.0}\n')
    return tmp_path / "trained"


OTHER_MEASURE = yaml.safe_load(SETTINGS)["measure"] | {"quantities": ["blocks"]}


@pytest.mark.heavy
def test_trained_networks_are_measured_in_another_way(trained, tmp_path, capsys, monkeypatch):
    """Other quantities, other held-out tasks and a third seed; only that seed is trained."""
    data = settings()["data"] | {"test_queries": 2}
    command = begun_from(trained, tmp_path / "more.yaml", measure=OTHER_MEASURE, seeds=[0, 1, 2], data=data)
    assert run([*command, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"networks: taken over from {trained}" in said
    assert "to train: 1 of 6 runs" in said
    in_training = []

    def recorded(configs, **options):
        in_training.extend(Path(config.folder).name for config in configs)
        return meta_train_runs(configs, **options)

    monkeypatch.setattr(training, "meta_train_runs", recorded)
    assert run(command) == 0
    assert f"networks: 4 taken over from {trained}" in " ".join(capsys.readouterr().out.split())
    assert set(in_training) == {"untrained-seed2", "maml-seed2"}
    before, after = open_study(trained), open_study(tmp_path / "more")
    np.testing.assert_array_equal(after["rho"].sel(learner=before["learner"], seed=[0, 1]), before["rho"])
    assert "rho_head" in after and "rho_head" not in before
    assert cpu_seconds(tmp_path / "more" / "runs" / "maml-seed0")["train"] == 12.5
    assert cpu_seconds(tmp_path / "more" / "runs" / "maml-seed0").get("measure", 0.0) < 50
    assert "trained in the study in trained, from which" in (tmp_path / "more" / "report.html").read_text("utf-8")
    assert run(["verify", str(tmp_path / "more")]) == 0


@pytest.mark.heavy
def test_an_interrupted_copy_of_networks_is_made_again(trained, tmp_path, monkeypatch):
    command = begun_from(trained, tmp_path / "more.yaml", measure=OTHER_MEASURE)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(networks, "take_times", interrupted)
        assert run(command) == 1
    assert open_folder(tmp_path / "more").networks_from == trained
    assert run(["study", str(tmp_path / "more"), "--workers", "0"]) == 0  # it goes on without --from
    np.testing.assert_array_equal(open_study(tmp_path / "more")["rho"], open_study(trained)["rho"])
    assert not list((tmp_path / "more" / "runs").glob(".*.partial"))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner": {"steps": 2, "step_size": 0.2}}, "its networks were trained with the inner loop"),
        ({"train": {"checkpoints": [0, 2], "meta_batch": 2, "validation_tasks": 1}}, "with another train"),
        ({"network": {"name": "mlp", "hidden": [5]}}, "with another network"),
        ({"data": {"name": "quickdraw", "ways": 2, "shots": 1, "image_size": 8}}, "have changed since"),
    ],
)
def test_networks_that_were_trained_in_another_way_are_refused(trained, tmp_path, capsys, changes, said):
    assert run(begun_from(trained, tmp_path / "other.yaml", **changes)) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


@pytest.mark.heavy
def test_kept_results_of_another_study_are_refused(whole, kept_folder, tmp_path, capsys):
    def said(*arguments: object) -> str:
        assert run([str(argument) for argument in arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(settings(inner={"steps": 2, "step_size": 0.2})))
    going_on = ("study", other, "--out", tmp_path / "out", "--from", kept_folder)
    assert "holds results of other settings: its inner is {'steps': 2, 'step_size': 0.1}, yours" in said(*going_on)
    other.write_text(yaml.safe_dump(settings(learners={"maml": {}})))
    assert "its learners is" in said(*going_on)
    other.write_text(yaml.safe_dump(settings()))
    assert "it holds neither kept results" in said(*going_on[:-1], tmp_path)
    assert "holds kept results, beside which nothing is run" in said("study", other, "--out", kept_folder)
    assert not (tmp_path / "out").exists()
    study = build(study_of(settings(seeds=[0, 5])), tmp_path / "new")
    begin(study)
    assert "no seed of" in said("keep", tmp_path / "new", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copytree(whole, tmp_path / "whole")
    assert "is the study's own folder" in said("keep", tmp_path / "whole", "--out", tmp_path / "whole")
    assert "is not empty and holds no kept results" in said("keep", tmp_path / "whole", "--out", other.parent)
    facts_file = kept.files(kept_folder, 0)[1]
    shutil.copytree(kept_folder, tmp_path / "kept")
    facts = read_json(facts_file) | {"data_digest": "0" * 64}
    write_json(tmp_path / "kept" / "seeds" / "seed-0.json", facts)
    assert "have changed since" in said(*going_on[:-1], tmp_path / "kept")


@pytest.mark.heavy
def test_a_learner_may_be_added_to_kept_seeds(kept_folder, tmp_path):
    study = build(study_of(settings(learners=settings()["learners"] | {"anil": {"algorithm": "anil"}})), tmp_path)
    going_on = going_on_from(study, kept_folder)
    assert going_on.runs_to_measure == [("anil", 0), ("anil", 1)]
    assert going_on.runs_to_train == [("anil", 0), ("anil", 1)]


def test_the_time_of_a_run_is_the_sum_of_its_lines(tmp_path):
    assert cpu_seconds(tmp_path) == {}
    record = stopwatch(tmp_path, "measure")
    sum(range(10_000))
    record()
    with (tmp_path / "times.jsonl").open("a") as file:
        file.write('{"part": "train", "cpu_seconds": 1.25}\n{"part": "train", "cpu_seconds": 2}\n{"part": "tr')
    assert cpu_seconds(tmp_path)["train"] == 3.2
    assert "measure" not in cpu_seconds(tmp_path) or cpu_seconds(tmp_path)["measure"] < 1


def test_a_stopwatch_records_a_share_of_the_time_since_its_last_call(tmp_path, monkeypatch):
    monkeypatch.setattr(times, "process_time", iter([1.0, 3.0, 7.0, 8.0, 10.0, 10.0, 11.0]).__next__)
    record = stopwatch(tmp_path, "train")
    record(0.25)
    record()
    assert cpu_seconds(tmp_path) == {"train": 0.5 + 4.0}
    with times.apart("node-7"):
        stopwatch(tmp_path, "measure")()
    stopwatch(tmp_path, "measure")()
    lines = {file.name: len(file.read_text().splitlines()) for file in tmp_path.iterdir()}
    assert lines == {"times.jsonl": 3, "times-node-7.jsonl": 1}
    assert cpu_seconds(tmp_path)["measure"] == 2.0 + 1.0


# ---- what the repository holds


def test_what_the_repository_keeps_is_small():
    folders = [path for path in RESULTS.iterdir() if path.is_dir()]
    assert [file for file in RESULTS.rglob("*") if file.is_file() and file.stat().st_size > kept.MAX_BYTES] == []
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 10_000_000, folder
