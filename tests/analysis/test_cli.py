"""Tests of the command line.

A mistake of the user is answered by one or two plain lines and exit status 2, and leaves no half-written files.
"""

import re
import shutil
import subprocess
import sys
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
    assert "requires an argument; see hessian-tools --help" in refused(capsys, ["study"])
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


@pytest.mark.slow
def test_info_and_the_single_commands_run_on_a_complete_study(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    assert run(["info", "study"]) == 0
    said = capsys.readouterr().out
    assert "quantities: standard\n" in said
    assert re.search(r"maml +to 5 +all +[\d.]+ s +[\d.]+ s\n", said)
    assert "study: complete\n" in said
    assert "verdicts: " in said
    assert re.search(r"on disk: [\d.]+ MB: measurements [\d.]+ MB, ", said)
    assert f"next: open {Path('study', 'report.html')}\n      hessian-tools explore study\n" in said
    assert re.search(r"inconclusive verdicts, .*\n  hessian-tools study study --seeds 0 1 \d", said)
    assert len(said.splitlines()) <= 24
    (working_folder / "study" / "verdicts.json").unlink()
    assert run(["info", "study"]) == 0
    said = capsys.readouterr().out
    assert "all is measured; to do: verdicts" in said
    assert said.endswith("next: hessian-tools test study\n")
    assert run(["test", "study"]) == 0
    capsys.readouterr()
    (working_folder / "study" / "figures" / "accuracy.png").unlink()
    assert "figures study' first" in refused(capsys, ["report", "study"])
    for command in ("test", "figures", "report"):
        assert run([command, "study"]) == 0
    assert 'id="figure-forest"' in (working_folder / "study" / "report.html").read_text()
    assert (working_folder / "study" / "figures" / "forest.csv").exists()
    assert run(["figures", "study", "--only", "forest", "--format", "svg", "--learners", "maml"]) == 0
    assert [path.name for path in (working_folder / "study" / "paper").iterdir()] == ["forest.svg"]
    capsys.readouterr()
    assert "has no single steps" in refused(capsys, ["figures", "study", "--only", "forest", "--steps", "0"])
    assert (working_folder / "study" / "figures" / "accuracy.png").read_bytes() == (
        micro_study / "figures" / "accuracy.png"
    ).read_bytes()


@pytest.mark.slow
def test_info_explains_a_study_that_is_not_complete_and_each_run(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    runs = working_folder / "study" / "runs"
    shutil.rmtree(runs / "maml-seed1")
    shutil.rmtree(runs / "maml-shot-seed0" / "measurements.zarr")
    (runs / "maml-shot-seed0" / "checkpoints" / "0000005.safetensors").unlink()
    assert run(["info", "study"]) == 0
    said = capsys.readouterr().out
    assert "study: not complete\n" in said
    assert re.search(r"maml +to 5 \(seed 0\); not yet \(seed 1\) +all \(seed 0\); not yet \(seed 1\)", said)
    assert re.search(r"maml-shot +2 of 5 \(seed 0\); to 5 \(seed 1\)", said)
    assert "next: hessian-tools study study " in said
    for folder in (str(runs / "maml-seed0"), "study/runs/maml-seed0"):
        assert run(["info", folder]) == 0
        said = capsys.readouterr().out
        assert said.startswith("run of the learner maml with seed 0, of the study micro: ")
        assert "trained: to 5; measured: all\ncheckpoints: 3\n" in said
        assert re.search(r"\n +5 +0\.\d+ +[01]", said)
    shutil.copytree(runs / "maml-seed0", working_folder / "alone")
    assert run(["info", "alone"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a training run of no study, in alone\nlearner: Learner(name='maml'")
    assert said.endswith('next: ht.saved_checkpoints("alone") reads the parameters\n')


def test_what_info_says_of_a_large_study_fits_on_a_screen(working_folder):
    from analysis.status import describe
    from analysis.study import build
    from analysis.study_file import load_study

    study = build(load_study("quickdraw"), "runs/quickdraw")
    assert len(study.learners) > 10
    lines = list(describe(study))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert any(line.split()[1:] == ["others", "not", "yet", "not", "yet", "-", "-"] for line in lines)


def test_more_seeds_are_suggested_where_they_would_decide_something():
    from types import SimpleNamespace

    from analysis.status import more_seeds

    def verdicts(*seeds_to_decide: int | None) -> list:
        return [SimpleNamespace(outcome="inconclusive", seeds_to_decide=number) for number in seeds_to_decide]

    assert more_seeds(verdicts(4, 6, 7, None), 3) == (6, 2)
    assert more_seeds(verdicts(40, 50), 3) == (40, 1)
    assert more_seeds(verdicts(None), 3) is None
    assert more_seeds([SimpleNamespace(outcome="supported", seeds_to_decide=None)], 3) is None


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of change of every file and folder below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(working_folder, capsys):
    assert run(["study", "micro", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("study micro in runs/micro: nothing is run or written")
    assert "runs: 6 (3 learners, 2 seeds)\n" in said
    assert "to train: 4 of 6 runs, 20 of 20 meta-iterations\n" in said
    assert "to measure: 20 of 20 units" in said
    assert re.search(r"\ntime: [\d.]+ s of processor time \(training .*, measuring .*\); a rough estimate", said)
    assert re.search(r"\non disk: about \d+ MB", said)
    assert max(map(len, said.splitlines())) <= 120
    assert run(["train", "micro", "--seeds", "0", "1", "2", "--workers", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "to train: 6 of 9 runs, 30 of 30 meta-iterations\n" in said
    assert "measuring" not in said
    assert "on 2 workers" in said
    assert list(working_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["micro", "--data", "nowhere"], "there is no file or folder"),
        (["micro", "--devices", "cpu,tpu"], "'tpu' is no device"),
        (["micro", "--claims", "none.yaml"], "there is no plan of the claims none.yaml"),
        (["mine.yaml"], "ways=60"),
    ],
)
def test_a_dry_run_reports_the_mistakes_that_a_run_would(working_folder, capsys, arguments, said):
    write_study_file(working_folder, "ways: 3", "ways: 60")
    assert said in refused(capsys, ["study", *arguments, "--dry-run"])
    assert [path.name for path in working_folder.iterdir()] == ["mine.yaml"]


@pytest.mark.slow
def test_a_dry_run_counts_what_is_there_already(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    runs = working_folder / "study" / "runs"
    shutil.rmtree(runs / "maml-shot-seed0" / "measurements.zarr")
    (runs / "maml-shot-seed0" / "checkpoints" / "0000005.safetensors").unlink()
    before = files_below(working_folder)
    assert run(["study", "micro", "--out", "study", "--seeds", "0", "1", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    # One run has 3 of 5 meta-iterations left; the new seed has those of two learners.
    assert "to train: 3 of 9 runs, 13 of 30 meta-iterations\n" in said
    # The new seed has 10 units, and the run without measurements has 6.
    assert "to measure: 16 of 30 units" in said
    assert "; by the times so far\n" in said
    disk = re.search(r"on disk: about (\d+) MB", said)
    taken = sum(512 * path.stat().st_blocks for path in [micro_study, *micro_study.rglob("*")])
    assert disk and 0.7 < 1e6 * int(disk.group(1)) / (1.5 * taken) < 1.4  # three seeds in place of two
    (working_folder / "plan.yaml").write_text(
        (working_folder / "study" / "claims.yaml").read_text().replace("confidence: 0.95", "confidence: 0.9")
    )
    assert "another plan" in refused(capsys, ["study", "micro", "--out", "study", "--claims", "plan.yaml", "--dry-run"])
    (working_folder / "plan.yaml").unlink()
    assert files_below(working_folder) == before


@pytest.mark.slow
def test_a_dry_run_goes_on_from_kept_results(working_folder, capsys):
    kept = Path(__file__).parents[2] / "docs" / "results" / "regression"
    num_kept = len([*kept.glob("seeds/seed-*.json")])
    options = ["--from", str(kept), "--seeds", *map(str, range(num_kept + 2)), "--dry-run"]
    assert run(["study", str(kept / "study.yaml"), "--out", "study", *options]) == 0
    said = capsys.readouterr().out
    runs = f"runs: {5 * num_kept + 10} (5 learners, {num_kept + 2} seeds), of which {5 * num_kept} are kept already\n"
    assert runs in said
    assert "to train: 8 of 10 runs" in said
    assert "; by the times so far\n" in said
    assert list(working_folder.iterdir()) == []


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


def test_help_is_instant_and_needs_no_torch():
    code = "import sys, analysis.cli as c; c.run(['--help']); assert 'torch' not in sys.modules; print('no torch')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no torch" in process.stdout
    for command in ("demo", "study", "train", "measure", "test", "figures", "report", "info", "verify"):
        assert command in process.stdout


def test_the_program_alone_says_what_to_do_next_and_its_commands_do_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = []
    for arguments in ([], ["--help"], ["info", "--help"]):
        assert run(arguments) == 0
        said.append(capsys.readouterr().out)
    last = said[0].split("What to do next:\n")[1].splitlines()
    assert said[0] == said[1]
    assert 3 <= len(last) <= 6
    for command in ("demo", "new", "study", "info", "explore"):
        assert sum(line.startswith(f"  hessian-tools {command} ") for line in last) == 1
    assert "What to do next" not in said[2]
    assert "empty" not in said[2]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_files_once_it_is_installed(working_folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(working_folder))
    assert run(["--install-completion", "--shell", "bash"]) == 0
    assert ".bashrc" in capsys.readouterr().out
    (working_folder / "mine.yaml").touch()
    (working_folder / "images").mkdir()
    for line, completed in (
        ("inf", "info"),
        ("study m", "mine.yaml"),
        ("study mine.yaml --data im", "images"),
        ("study mine.yaml --see", "--seeds --seed"),
        ("study mine.yaml --device c", "cpu cuda"),
        ("figures runs/mine --form", "--format"),
    ):
        complete = (
            f"source .bashrc; COMP_WORDS=(hessian-tools {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
            ' _hessian_tools; echo "${COMPREPLY[*]}"'
        )
        process = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
        assert process.stdout.strip() == completed, process.stderr


def test_the_completions_of_zsh_and_fish_are_written(working_folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(working_folder))
    for shell, file in (("zsh", ".zsh/completions/_cyclopts_hessian-tools"), ("fish", ".config/fish/completions/*")):
        assert run(["--install-completion", "--shell", shell]) == 0
        assert "explore" in next(working_folder.glob(file)).read_text()


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
