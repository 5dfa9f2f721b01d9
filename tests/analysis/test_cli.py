"""Tests of the command line.

A mistake of the user is answered by one or two plain lines and exit status 2, and leaves no half-written files.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from refused_commands import changed_micro, refused

from analysis.cli import run
from analysis.drawing.figures import figures_of
from analysis.folder import open_study
from analysis.schema import STATUS_MEANINGS
from analysis.study_file import study_text
from hessian_tools.runs.files import read_json, write_json


def write_study_file(working_folder: Path, old: str = "", new: str = "") -> str:
    """Write the micro study to mine.yaml with ``old`` replaced by ``new``, and return the name of the file."""
    (working_folder / "mine.yaml").write_text(changed_micro(old, new))
    return "mine.yaml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: [0, 1]", "sedes: [0, 1]", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("meta_batch: 2", "meta_bach: 2", "unknown key 'train.meta_bach'; did you mean 'meta_batch'?"),
        ("weight: 0.1", "wieght: 0.1", "unknown key 'learners.maml-shot.shot.wieght'; did you mean 'weight'?"),
        ("probes: 2", "prob: 2", "unknown key 'measure.light.prob'; did you mean 'probes'?"),
        ("width: 4", "width: wide", "network.width: input should be a valid integer"),
        ("algorithm: maml}", "algorithm: mamll}", "learners.maml.algorithm: input should be 'maml', 'anil'"),
        ("algorithm: maml}", "algorithm: mamll}", "(got 'mamll'); did you mean 'maml'?"),
        ("name: quickdraw", "name: quikdraw", "(got 'quikdraw'); did you mean 'quickdraw'?"),
        ("name: conv4", "name: conv5", "nor an import path package.module:name or file.py:name; did you mean 'conv4'?"),
        ("seeds: [0, 1]", "seeds: 2", "seeds: give a list in brackets, such as [2] (got 2)"),
        ("[0, 2, 5]", "[2, 5]", "checkpoints must rise from 0"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds [0, 0] hold one twice"),
        ("full_tasks: 2", "full_tasks: 9", "full_tasks=9 exceeds tasks=2"),
        ("name: micro", "name: [micro", "is not YAML at line"),
        ("  untrained:", "  maml:", "is not YAML at line 8: 'maml' stands twice"),
        ("ways: 3", "ways: 60", "ways=60"),
        ("test_queries: 3", "test_queries: 30", "20"),
        ("algorithm: maml, shot: {weight: 0.1}", "shot: {target_steps: 2}", "cannot be the reference"),
        ("name: quickdraw", "name: sine-line", "conv4 needs images, but sine-line has none"),
        ("name: quickdraw, ways: 3", "name: quickdraw, ways: '3'", "data.ways: input should be a valid integer"),
        ("seeds: [0, 1]", "seeds: [true, false]", "seeds.0: input should be a valid integer"),
        (
            "max_matvecs: 10",
            "max_matvecs: 5",
            "max_matvecs=5 is too few for eigenvalues=1: finding and checking these",
        ),
        (
            "eigenvalues: 2, tolerance: 0.01, probes: 4, max_matvecs: 24",
            "eigenvalues: 900, max_matvecs: 4000",
            "measure.full.eigenvalues=900 is more than the 515 parameters of the network",
        ),
        ("step_size: 0.1", "step_size: fast", "inner.step_size: input should be a valid number"),
        ("step_size: 0.1", "step_size: -1", "inner.step_size"),
        ("step_size: 0.1", "step_size: {candidates: [0.1], learner: untrained}", "must name a trained learner"),
    ],
)
def test_a_mistake_in_a_study_is_named_and_nothing_is_written(working_folder, capsys, old, new, said):
    file = write_study_file(working_folder, old, new)
    message = refused(capsys, ["study", file])
    assert said in message
    assert [path.name for path in working_folder.iterdir()] == ["mine.yaml"]


def test_a_name_near_that_of_a_study_is_answered_with_it(working_folder, capsys):
    write_study_file(working_folder, "seeds: [0, 1]", "seeds: [0]")
    for given in ("mine", "mine.yml", "mnie.yaml"):
        assert "did you mean 'mine.yaml'?" in refused(capsys, ["study", given])
    assert "did you mean 'quickdraw'?" in refused(capsys, ["study", "quikdraw"])
    assert "did you mean" not in refused(capsys, ["study", "nowhere/nothing"])
    for command in ("info", "figures"):
        assert "mine.yaml is a file; give the folder of a study, which is runs/NAME" in refused(
            capsys, [command, "mine.yaml"]
        )


@pytest.mark.slow
def test_folders_that_are_missing_or_hold_no_study_are_refused(working_folder, capsys, micro_study):
    assert "there is no study file nowhere.yaml" in refused(capsys, ["study", "nowhere.yaml"])
    for command in ("measure", "test", "figures", "report", "info", "verify"):
        assert "nowhere does not exist" in refused(capsys, [command, "nowhere"])
    (working_folder / "foreign").mkdir()
    (working_folder / "foreign" / "letter.txt").write_text("dear")
    assert "is no study folder" in refused(capsys, ["measure", "foreign"])
    assert "is not empty and holds no study.yaml" in refused(capsys, ["study", "micro", "--out", "foreign"])
    assert [path.name for path in (working_folder / "foreign").iterdir()] == ["letter.txt"]
    (working_folder / "file").write_text("")
    assert "is a file" in refused(capsys, ["study", "micro", "--out", "file"])


def test_a_folder_of_another_study_is_refused_and_left_alone(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    before = (working_folder / "study" / "study.yaml").read_bytes()
    file = write_study_file(working_folder, "width: 4", "width: 8")
    assert "holds another study: its network is" in refused(capsys, ["study", file, "--out", "study"])
    assert "its seeds is [0, 1], yours [0]" in refused(capsys, ["study", "micro", "--seeds", "0", "--out", "study"])
    assert (working_folder / "study" / "study.yaml").read_bytes() == before
    manifest = working_folder / "study" / "runs" / "maml-seed0" / "manifest.json"
    content = read_json(manifest)
    content["config"]["network"]["width"] = 8
    write_json(manifest, content)
    message = refused(capsys, ["study", "micro", "--out", "study"])
    assert "maml-seed0 holds another run: its network is" in message


def test_a_study_keeps_the_plan_of_the_claims_with_which_it_was_begun(working_folder, capsys, micro_study):
    from analysis.claims.plan import BUNDLED

    plan = BUNDLED.read_text().replace("confidence: 0.95", "confidence: 0.9")
    (working_folder / "plan.yaml").write_text(plan)
    (working_folder / "odd.yaml").write_text(plan.replace("bootstrap:", "bootstap:"))
    assert "did you mean 'bootstrap'?" in refused(capsys, ["study", "micro", "--claims", "odd.yaml"])
    (working_folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    assert "bytes.yaml is not a text file" in refused(capsys, ["study", "micro", "--claims", "bytes.yaml"])
    assert "no plan of the claims none.yaml" in refused(capsys, ["study", "micro", "--claims", "none.yaml"])
    shutil.copytree(micro_study, working_folder / "study")
    said = refused(capsys, ["study", "micro", "--claims", "plan.yaml", "--out", "study"])
    assert "was begun with another plan" in said
    (working_folder / "study" / "claims.yaml").write_text(plan)
    assert "was changed after the runs were begun" in refused(capsys, ["test", "study"])


def test_wrong_options_are_refused(working_folder, capsys):
    assert "--help" in refused(capsys, ["study"])
    assert "'hessian-tools study' needs this: a study's YAML file" in refused(capsys, ["study"])
    assert "'hessian-tools info' needs this: folder of a study or of a run; see" in refused(capsys, ["info"])
    assert "'hessian-tools keep' needs --out: folder of kept results; see" in refused(capsys, ["keep", "runs/micro"])
    assert "--workers needs a value: number of worker processes" in refused(capsys, ["study", "micro", "--workers"])
    assert "takes no further argument, but got b c; see" in refused(capsys, ["info", "a", "b", "c"])
    assert "seeds: give a list of at least 1 (got ())" in refused(capsys, ["demo", "--seeds"])
    assert "--help" in refused(capsys, ["demmo"])
    assert "--help" in refused(capsys, ["demo", "--seeds", "zero"])
    for option, value in (("--seeds", "1.5"), ("--seed", "0.5"), ("--workers", "1.5"), ("--workers", "0.0")):
        message = refused(capsys, ["demo", option, value])
        assert option in message
        assert value in message
    assert "1.5" in refused(capsys, ["train", "micro", "--seeds", "0", "1.5"])
    assert "--workers -1" in refused(capsys, ["demo", "--workers", "-1"])
    assert list(working_folder.iterdir()) == []


@pytest.mark.slow
def test_measuring_before_training_names_the_command_to_run_first(working_folder, capsys):
    from analysis.folder import begin
    from analysis.study import build
    from analysis.study_file import load_study

    begin(build(load_study("micro"), working_folder / "study"))
    assert "run 'hessian-tools train' first" in refused(capsys, ["measure", "study"])


def test_a_second_command_on_the_same_folder_is_refused(working_folder, capsys, micro_study):
    from analysis.folder import locked

    shutil.copytree(micro_study, working_folder / "study")
    with locked(working_folder / "study"):
        assert "another hessian-tools is at work in study" in refused(capsys, ["test", "study"])


@pytest.mark.heavy
def test_a_study_whose_training_diverges_says_so_in_every_output(working_folder, capsys):
    file = write_study_file(working_folder, "step_size: 0.1", "step_size: 1.0e+30")
    assert run(["study", file, "--out", "study", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "maml seed 0 diverged at meta-iteration 1; recorded as such" in said
    assert "inconclusive" in said
    assert "diverged at meta-iteration 1" in (working_folder / "study" / "report.html").read_text()
    assert run(["info", "study"]) == 0
    assert re.search("maml +diverged at 1 +all", capsys.readouterr().out)


@pytest.mark.heavy
def test_inner_loops_whose_losses_explode_are_counted_as_diverged(working_folder, capsys):
    """At this step size losses reach 1e20 and more, but stay finite; no verdict may rest on such points."""
    file = write_study_file(working_folder, "step_size: 0.1", "step_size: 1.0e+6")
    assert run(["study", file, "--out", "study", "--seeds", "0", "--workers", "0"]) == 0
    ds = open_study("study")
    untrained = ds.sel(learner="untrained", seed=0, checkpoint=0)
    assert np.isfinite(untrained["support_loss"]).all()
    assert (untrained["status"] == STATUS_MEANINGS.index("diverged")).all()
    report = (working_folder / "study" / "report.html").read_text()
    assert "None of the" not in report
    assert "rises above 1000 times the loss at step 0" in report
    assert "supported in" not in report


@pytest.mark.heavy
def test_seeds_can_be_added_and_the_first_ones_stay(working_folder, capsys, micro_study):
    import xarray as xr

    shutil.copytree(micro_study, working_folder / "study")
    assert run(["study", "study", "--seeds", "0", "1", "2", "--workers", "0"]) == 0
    ds = open_study("study")
    assert ds["seed"].values.tolist() == [0, 1, 2]
    xr.testing.assert_identical(ds.sel(seed=[0, 1]), open_study(micro_study))


@pytest.mark.heavy
def test_measuring_ignores_the_autocast_precision_of_the_process(working_folder, micro_study):
    import torch
    import xarray as xr

    shutil.copytree(micro_study, working_folder / "study")
    for measured in (working_folder / "study").glob("runs/*/*.zarr"):
        shutil.rmtree(measured)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(["measure", "study", "--workers", "0"]) == 0
    xr.testing.assert_identical(open_study("study"), open_study(micro_study))


@pytest.mark.heavy
def test_progress_in_a_pipe_has_no_control_codes(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    assert run(["figures", "study"]) == 0
    said = capsys.readouterr().out
    assert f"draw: {len(figures_of(open_study('study')))} figures" in said
    assert "\x1b" not in said
    assert "\r" not in said


@pytest.mark.heavy
def test_figures_of_ones_own_lie_beside_those_of_the_report(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    drawn = (working_folder / "study" / "figures" / "drawn.json").read_bytes()
    options = ["--only", "alpha_rho", "--width", "icml", "--steps", "0", "--format", "pdf", "csv"]
    assert run(["figures", "study", *options]) == 0
    assert sorted(path.name for path in Path("study/paper").iterdir()) == ["alpha_rho.csv", "alpha_rho.pdf"]
    assert (working_folder / "study" / "figures" / "drawn.json").read_bytes() == drawn
    capsys.readouterr()
    for option, values, allowed in (
        ("--width", "icmll", "did you mean 'icml'"),
        ("--width", "0.1", "between 1.5 and 20 inches"),
        ("--only", "alpha_roh", "did you mean 'alpha_rho'"),
        ("--format", "jpg", "is not one of pdf, png, svg, csv"),
        ("--learners", "mamll", "did you mean 'maml'"),
        ("--steps", "99", "give some of the points 0 to"),
        ("--steps", "1.5", "--steps"),
    ):
        message = refused(capsys, ["figures", "study", "--only", "alpha_rho", option, values])
        assert allowed in message, message


def write_sine_line_study(working_folder: Path) -> str:
    """Write a regression study that searches for its step size to sine.yaml, and return the name of the file."""
    text = study_text("micro")
    for old, new in (
        ("{name: quickdraw, ways: 3, shots: 1, queries: 2, test_queries: 3}", "{name: sine-line}"),
        ("{name: conv4, width: 4, normalisation: batch}", "{name: mlp, hidden: [8, 8]}"),
        ("step_size: 0.1", "step_size: {candidates: [0.01, 0.001], meta_steps: 3}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (working_folder / "sine.yaml").write_text(text)
    return "sine.yaml"


def test_shot_by_class_probabilities_is_refused_for_regression(working_folder, capsys):
    message = refused(capsys, ["study", write_sine_line_study(working_folder), "--out", "study"])
    assert "learners.maml-shot: distance='kl_reference_target' compares class probabilities" in message


@pytest.mark.heavy
def test_a_regression_study_runs_and_its_step_size_search_is_stored_as_json(working_folder, capsys):
    import json

    file = write_sine_line_study(working_folder)
    text = (working_folder / file).read_text().replace("weight: 0.1}", "weight: 0.1, distance: squared_error}")
    (working_folder / file).write_text(text)
    assert run(["study", file, "--out", "study", "--seeds", "0", "--workers", "0"]) == 0
    # NaN and infinity are not valid JSON, so they make the test fail.
    search = json.loads((working_folder / "study" / "step_size.json").read_text(), parse_constant=pytest.fail)
    losses = {row["step_size"]: row["validation_loss"] for row in search["candidates"]}
    assert search["step_size"] == min(losses, key=losses.get)
    assert "classes never trained on" not in (working_folder / "study" / "report.html").read_text()


def test_an_output_folder_that_cannot_be_made_is_named(working_folder, capsys):
    (working_folder / "file").write_text("")
    assert "cannot be made" in refused(capsys, ["study", "micro", "--out", "file/below"])
    assert "File name too long" in refused(capsys, ["study", "micro", "--out", "x" * 300])
