"""Tests of what ``info`` says of a study and of its runs, and of the seeds that it suggests."""

import re
import shutil
from pathlib import Path

import pytest
from refused_commands import refused

from analysis import open_verdicts
from analysis.claims.verdict import counted
from analysis.cli import run


@pytest.mark.slow
def test_info_and_the_single_commands_run_on_a_complete_study(working_folder, capsys, micro_study):
    shutil.copytree(micro_study, working_folder / "study")
    assert run(["info", "study"]) == 0
    said = capsys.readouterr().out
    assert "quantities: standard\n" in said
    assert re.search(r"maml +to 5 +all +[\d.]+ s +[\d.]+ s\n", said)
    assert "study: complete\n" in said
    assert f"verdicts: {counted(open_verdicts('study'))}\n" in said
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
    assert "has no choice of steps" in refused(capsys, ["figures", "study", "--only", "forest", "--steps", "0"])
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
        return [
            SimpleNamespace(outcome="inconclusive", corrected_outcome=None, seeds_to_decide=number)
            for number in seeds_to_decide
        ]

    assert more_seeds(verdicts(4, 6, 7, None), 3) == (6, 2)
    assert more_seeds(verdicts(40, 50), 3) == (40, 1)
    assert more_seeds(verdicts(2, 40), 3) == (40, 1)  # the present seeds have not decided the first one
    assert more_seeds(verdicts(None), 3) is None
    assert more_seeds([SimpleNamespace(outcome="supported", corrected_outcome=None, seeds_to_decide=None)], 3) is None
    lost = SimpleNamespace(outcome="supported", corrected_outcome="inconclusive", seeds_to_decide=5)
    assert more_seeds([lost], 3) == (6, 1)  # the correction has made it inconclusive, and more seeds would pass it


def test_the_seeds_that_are_suggested_are_new_and_the_command_trusts_what_it_must(working_folder):
    from types import SimpleNamespace

    from analysis.status import seeds_line
    from analysis.study import build
    from analysis.study_file import load_study

    config = load_study("micro").model_copy(update={"seeds": (1, 5)})
    undecided = [
        SimpleNamespace(outcome="inconclusive", corrected_outcome=None, seeds_to_decide=number) for number in (4, 9)
    ]
    line = seeds_line(build(config, "runs/mine"), undecided)
    assert line == (
        "4 seeds would decide about 1 of the 2 inconclusive verdicts, if means and spreads stay as they are:\n"
        "  hessian-tools study runs/mine --seeds 1 5 0 2"
    )
    own = config.model_copy(update={"claims": {"mine": "mine.py:judge"}})
    assert " runs/mine --trust --seeds" in seeds_line(build(own, "runs/mine", trust=False), undecided)
