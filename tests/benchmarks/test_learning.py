"""The learning harness: what it keeps of a run, its arithmetic on made-up numbers, and tiny runs through all of it."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import layouts_on_disk
import numpy as np
import pytest
import torch

from analysis.progress import Quiet
from benchmarks.learning import experiments, transfer
from benchmarks.learning.page import write_page
from benchmarks.learning.results import keep
from benchmarks.learning.runs import Work, run
from benchmarks.learning.settings import QUICKDRAW, REGRESSION, TUNING_SEED, Finish, Setting
from benchmarks.learning.sources import omniglot_split, quickdraw, regression
from benchmarks.learning.tables import counted, crossing
from benchmarks.learning.trial import PER_TASK, Trial, run_trial
from hessian_tools.data import SineLineTasks
from hessian_tools.inner.learners import maml
from hessian_tools.nets import MLP
from hessian_tools.runs.files import write_json
from hessian_tools.train import TrainConfig


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def trial(folder: Path, **more: Any) -> Trial:
    config = TrainConfig(
        maml(1, 0.01),
        SineLineTasks(),
        partial(MLP, (1, 4, 1)),
        checkpoints=(0, 1, 2, 3),
        meta_batch=2,
        validation_tasks=0,
        folder=folder,
    )
    return Trial("maml", config, SineLineTasks(), 0, **{"validation_tasks": 3, "test_tasks": 4, **more})


def silent(steps: int, note: str) -> None:
    pass


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    curve = [{name: v for name, v in row.items() if not name.endswith("seconds")} for row in found["curve"]]
    return found | {"curve": curve}


def test_an_interrupted_trial_goes_on_to_the_same_numbers(tmp_path):
    def interrupt(steps: int, note: str) -> None:
        if steps:
            raise Interrupted

    whole = run_trial(trial(tmp_path / "whole"), progress=silent)
    with pytest.raises(Interrupted):
        run_trial(trial(tmp_path / "cut"), progress=interrupt)
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = run_trial(trial(tmp_path / "cut"), progress=silent)
    assert without_seconds(resumed) == without_seconds(whole)
    assert [row["meta_step"] for row in whole["curve"]] == [0, 1, 2, 3]
    assert whole["judged_at"] == min(whole["curve"], key=lambda row: row["loss"])["meta_step"]


def test_processor_seconds_add_up_over_a_resumption(tmp_path):
    found = run_trial(trial(tmp_path), progress=silent)
    (tmp_path / "result.json").unlink()
    later = replace(trial(tmp_path).config, checkpoints=(0, 1, 2, 3, 4))
    more = run_trial(replace(trial(tmp_path), config=later), progress=silent)
    assert more["curve"][:4] == found["curve"]
    assert more["curve"][4]["cpu_seconds"] > found["curve"][3]["cpu_seconds"]


def test_the_clock_ends_a_trial_and_the_last_checkpoint_is_tested_if_asked(tmp_path):
    found = run_trial(trial(tmp_path, cpu_seconds=1e-9, judged="last"), progress=silent)
    assert [row["meta_step"] for row in found["curve"]] == [0]
    assert found["judged_at"] == 0
    assert len(np.load(tmp_path / PER_TASK)) == found["test"]["tasks"] == 4


def test_a_level_is_crossed_between_checkpoints():
    points = [(0, 0.2), (10, 0.4), (20, 0.3), (30, 0.5)]
    assert crossing(points, 0.3) == pytest.approx(5.0)
    assert crossing(points, 0.45) == pytest.approx(27.5)
    assert crossing(points, 0.1) == 0.0
    assert crossing(points, 0.51) is None
    assert crossing([], 0.3) is None


def test_training_and_judging_tasks_share_classes_and_support_but_not_the_number_of_queries():
    source = quickdraw(5, channels=1, side=28)
    (x, _), (q, _) = source.training.episode(seed=0, split="test", index=3)
    (judged_x, _), (judged_q, _) = source.judging.episode(seed=0, split="test", index=3)
    assert torch.equal(x, judged_x)
    assert torch.equal(q, judged_q[:25])
    assert len(judged_q) == 75


def test_omniglot_is_judged_on_all_evaluation_characters_and_validated_on_alphabets_held_back(tmp_path):
    place = layouts_on_disk.omniglot(tmp_path / "data")
    parts = json.loads(omniglot_split(place, tmp_path / "cache").read_text())
    assert {part: {name.split("/")[0] for name in names} for part, names in parts.items()} == {
        "train": {"Futurama"},
        "val": {"Hebrew"},
        "test": {"Gurmukhi", "ULOG"},
    }
    assert [len(names) for names in parts.values()] == [2, 1, 3]


def small(setting: Setting, **more: Any) -> Setting:
    return replace(setting.quick(), **more)


def done(work: Work, results: Path) -> dict[str, Any]:
    return json.loads(keep(work, run(work, Quiet()), results).read_text())


def test_shot_differences_are_paired_by_task(tmp_path):
    work = Work("regression", small(REGRESSION), regression(), tmp_path / "runs", (0,))
    run(work, Quiet())
    for name, values in (("fomaml", [1.0, 2.0, 3.0]), ("fomaml-shot", [2.0, 2.0, 4.0])):
        np.save(work.folder / f"{name}-seed0" / PER_TASK, np.array(values))
    kept = done(work, tmp_path)
    mean, half = next(t for t in kept["trials"] if t["shot"])["difference"]
    assert mean == pytest.approx(2 / 3, abs=1e-5)
    assert half == pytest.approx(1.96 * np.std([1, 0, 1], ddof=1) / np.sqrt(3), abs=1e-5)
    assert "difference" not in next(t for t in kept["trials"] if not t["shot"])


def test_a_diverged_trial_is_named_and_compared_with_nothing(tmp_path):
    setting = small(QUICKDRAW, learners=("anil",), with_shot=("anil",), candidates=(0.1,))
    work = Work("quickdraw", setting, quickdraw(1, channels=1, side=28), tmp_path / "runs", (0,))
    run(work, Quiet())
    plain = work.folder / "anil-seed0" / "result.json"
    write_json(plain, json.loads(plain.read_text()) | {"diverged_at": 2})
    kept = done(work, tmp_path)
    assert not any("difference" in each for each in kept["trials"])
    assert "| ANIL | diverged at outer step 2 |" in write_page(tmp_path).read_text()


def test_the_step_size_is_the_best_tried_shared_with_shot_and_chosen_once(tmp_path):
    setting = small(QUICKDRAW, learners=("anil",), with_shot=("anil",))
    work = Work("quickdraw", setting, quickdraw(1, channels=1, side=28), tmp_path / "runs", (0,))
    path = work.folder / "step_sizes.json"
    first = done(work, tmp_path)["step_sizes"]["anil"]
    assert first["tried"][f"{first['step_size']:g}"] == max(first["tried"].values())
    held = json.loads(path.read_text())
    write_json(path, {"anil": held["anil"] | {"step_size": 0.123}})
    found = run(replace(work, seeds=(1,)), Quiet())["trials"]
    assert [t["step_size"] for t in found] == [0.123, 0.123]
    assert TUNING_SEED not in work.seeds


def test_a_second_part_begins_at_the_best_checkpoint_on_tasks_of_its_own(tmp_path):
    finish = Finish(learning_rate=1e-4, meta_batch=3, meta_steps=1, every=1, cpu_seconds=100.0)
    setting = small(QUICKDRAW, learners=("anil",), with_shot=(), candidates=(0.1,), finish=finish)
    work = Work("quickdraw", setting, quickdraw(1, channels=1, side=28), tmp_path / "runs", (0,))
    first, second = run(work, Quiet())["trials"]
    best = next(row for row in first["curve"] if row["meta_step"] == first["judged_at"])
    assert second["begun_at"] == first["judged_at"]
    assert second["curve"][0]["loss"] == best["loss"]  # the same network on the same validation tasks
    assert (second["meta_batch"], second["optimiser"][1], second["seed"]) == (3, 1e-4, 0)


def test_differences_are_counted_by_their_intervals():
    made = [
        ("a-shot", 0, [0.03, 0.02]),
        ("a-shot", 1, [0.01, 0.02]),
        ("b-shot", 0, [-0.03, 0.02]),
        ("b-shot", 1, [0.03, 0.02]),
    ]
    trials = [{"name": name, "seed": seed, "shot": True, "difference": value} for name, seed, value in made]
    text = counted({"trials": trials})
    assert "SHOT's differences (4), 2 lie above 0 by their interval over tasks, 1 below" in text
    assert "agree between the seeds for 1 of 2 learners" in text
    assert "one seed" in counted({"trials": trials[::2]})


def test_the_page_holds_the_numbers_of_the_files(tmp_path, monkeypatch):
    setting = small(QUICKDRAW, learners=("untrained", "anil"), with_shot=("anil",), candidates=(0.1,))
    monkeypatch.setitem(experiments.SETTINGS, "quickdraw", setting)
    source = quickdraw(setting.queries, channels=1, side=28)
    kept = done(Work("quickdraw", setting, source, tmp_path / "runs" / "quickdraw", (0, 1)), tmp_path)
    done(Work("regression", small(REGRESSION), regression(), tmp_path / "runs" / "regression", (0,)), tmp_path)
    text = write_page(tmp_path).read_text()
    for each in kept["trials"]:
        assert f"{100 * each['test']['accuracy']:.1f} +- {100 * each['test']['accuracy_half']:.1f}" in text
    for name in re.findall(r"\]\((.*\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 5000


def test_networks_are_judged_on_other_sets_of_their_shape(tmp_path, monkeypatch):
    setting = small(QUICKDRAW, learners=("anil",), with_shot=("anil",), candidates=(0.1,))
    monkeypatch.setitem(experiments.SETTINGS, "quickdraw", setting)
    source = quickdraw(setting.queries, channels=1, side=28)
    done(Work("quickdraw", setting, source, tmp_path / "runs" / "quickdraw", (0,)), tmp_path)
    monkeypatch.setattr(transfer, "SHAPES", {"quickdraw": (1, 28), "regression": (1, 28)})
    monkeypatch.setattr(transfer, "open_source", lambda *args, **named: source)
    path = transfer.judge_elsewhere({"regression": tmp_path}, tasks=2, out=tmp_path / "runs", results=tmp_path)
    found = json.loads(path.read_text())["trials"]
    assert [(row["name"], row["trained_on"], row["judged_on"], row["test"]["tasks"]) for row in found] == [
        ("anil", "quickdraw", "regression", 2),
        ("anil-shot", "quickdraw", "regression", 2),
    ]


def test_plain_errors(tmp_path):
    with pytest.raises(ValueError, match="seeds=.* must be different"):
        experiments.run_experiment("quickdraw", None, seeds=(0, 0), out=tmp_path, results=tmp_path, quick=True)
    with pytest.raises(ValueError, match="does not exist; give the folder that holds omniglot"):
        experiments.run_experiment("omniglot", tmp_path / "no", seeds=(0,), out=tmp_path, results=tmp_path, quick=True)
    with pytest.raises(ValueError, match="holds no results"):
        write_page(tmp_path)
    with pytest.raises(ValueError, match="no trained networks"):
        transfer.judge_elsewhere({"omniglot": None, "cifar-fs": None}, tasks=1, out=tmp_path, results=tmp_path)
