"""Tests of studies on the user's own data, whose configuration gives a path instead of the name of a data set."""

import json
from pathlib import Path

import layouts_on_disk as disk
import pytest
from refused_commands import refused

from analysis.cli import run
from analysis.config import StudyConfig
from analysis.errors import UserError
from analysis.folder import open_folder, open_study
from analysis.schema import MEASURED
from analysis.setup_facts import command
from analysis.study import build, check
from analysis.study_file import load_study, overridden, parse_study, study_text, with_data
from hessian_tools.data import ImageTasks, open_data, summary
from hessian_tools.runs.checkpoints import load_theta
from hessian_tools.train import task_loss

pytestmark = pytest.mark.heavy

NAMES = tuple(f"class{c:02d}" for c in range(9))


def study(**data: object) -> StudyConfig:
    """The micro study with these settings of its data, and by default with small tasks."""
    settings = {"ways": 3, "shots": 1, "queries": 2, "test_queries": 3} | data
    text = study_text("micro")
    line = next(line for line in text.splitlines() if line.startswith("data:"))
    return parse_study(text.replace(line, f"data: {json.dumps(settings)}"), source="micro")


@pytest.fixture
def own(tmp_path: Path) -> dict[str, object]:
    """The settings for images in folders of nine classes, and a file that splits the classes."""
    disk.class_folders(tmp_path / "own", NAMES)
    parts = {"train": NAMES[:3], "val": NAMES[3:6], "test": NAMES[6:]}
    split = disk.put(tmp_path / "split.json", json.dumps(parts))
    return {"path": str(tmp_path / "own"), "split": str(split), "image_size": 16}


def test_a_study_runs_on_a_folder_of_images(own):
    config = study(**own)
    problem = build(config).problem
    tasks = problem.tasks
    assert tasks.input_shape == (3, 16, 16)
    assert tasks is build(config).problem.tasks  # the files are read once
    assert summary(tasks) == "images in folders, a folder for each class (split split.json: your file split.json)"
    check(build(config))
    assert problem.network()(tasks.episode(seed=0, split="val", index=0).support[0]).shape == (3, 3)


def test_held_out_tasks_can_come_from_other_data(own):
    config = study(**own, channels=1, test_path="quickdraw")
    held_out, drawings = build(config).problem.held_out, build(study(image_size=16)).problem.held_out
    for split, equal in (("test", True), ("train", False)):  # only the test split comes from the drawings
        x, drawn = (tasks.episode(seed=0, split=split, index=1).query[0] for tasks in (held_out, drawings))
        assert bool((x == drawn).all()) == equal
    assert summary(held_out).endswith("; tested on quickdraw")
    with pytest.raises(UserError, match=r"data: input_shape is \(3, 16, 16\) in training and \(1, 16, 16\) in test"):
        build(study(**own, test_path="quickdraw")).problem.tasks  # noqa: B018


def test_a_split_without_validation_classes_is_refused_unless_nothing_is_validated(own, tmp_path):
    parts = {"train": NAMES[:5], "test": NAMES[5:]}
    own["split"] = str(disk.put(tmp_path / "two.json", json.dumps(parts)))
    with pytest.raises(UserError, match="data: split='val' is not one of train, test"):
        check(build(study(**own)))
    config = study(**own)
    check(build(overridden(config, {"train": {"validation_tasks": 0}})))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "nowhere/at/all"}, "data: there is no file or folder nowhere/at/all"),
        ({"test_split": "official"}, "data: test_split is the split of the data at test_path and needs test_path"),
        ({"channels": 3, "rotations": True}, "data: split, rotations and crop are for data of your own"),
    ],
)
def test_missing_data_and_options_that_do_not_apply_are_refused_when_data_are_opened(data, message):
    with pytest.raises(UserError, match=message):
        build(study(**data)).problem.tasks  # noqa: B018


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "sine-line", "image_size": 3},
            "data: image_size is for images, but sine-line has none; leave it out",
        ),
        ({"pth": "x"}, "unknown key 'data.pth'; did you mean 'path'"),
    ],
)
def test_wrong_data_settings_are_refused_when_the_study_is_read(data, message):
    with pytest.raises(UserError, match=message):
        study(**data)


STUDY = """
name: crossed
network: {name: mlp, hidden: [4]}
inner: {steps: 1, step_size: 0.1}
learners: {supervised: {algorithm: supervised}, maml: {}}
seeds: [0]
train: {checkpoints: [0, 1], meta_batch: 1, validation_tasks: 1}
measure:
  {tasks: 1, full_tasks: 0, evaluation_tasks: 1, light: {eigenvalues: 1, tolerance: 0.1, probes: 2, max_matvecs: 8}}
"""


@pytest.fixture
def two_trees(working_folder: Path) -> Path:
    """A working folder with two data sets, each with a file that splits it, and two studies.

    crossed.yaml trains on the classes of "home" and is tested on those of "away". drawn.yaml uses the bundled drawings.
    """
    disk.class_folders(working_folder / "home", NAMES)
    disk.class_folders(working_folder / "away", NAMES, first=3)  # other colours than "home"
    parts = {"train": NAMES[:3], "val": NAMES[3:6], "test": NAMES[6:]}
    for place in ("home", "away"):
        disk.put(working_folder / f"{place}.json", json.dumps(parts))
    sizes = "ways: 3, shots: 1, queries: 1, test_queries: 1, image_size: 8"
    (working_folder / "crossed.yaml").write_text(
        f"{STUDY}data: {{{sizes}, path: home, split: home.json, test_path: away, test_split: away.json}}\n"
    )
    (working_folder / "drawn.yaml").write_text(f"{STUDY}data: {{{sizes}}}\n")
    return working_folder


def test_a_cross_domain_study_from_end_to_end(two_trees, capsys):
    assert run(["study", "crossed.yaml", "--out", "out", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    where = "images in folders, a folder for each class"
    assert f"data: {where} (split home.json: your file home.json); tested on {where} (split away.json" in said
    ds = open_study("out")
    assert (ds["status"] == MEASURED).all()
    crossed = open_folder("out")
    loss, _ = task_loss(crossed.training("maml", 0))
    away = open_data("away", split="away.json", image_size=8)
    tasks = ImageTasks(away, ways=3, shots=1, queries=1)
    support, _ = tasks.episode(seed=0, split="test", index=0)
    expected = float(loss(load_theta(crossed.run("maml", 0), 1), support))
    stored = ds["support_loss"].sel(learner="maml", seed=0, checkpoint=1, task=0, inner_step=0)
    assert float(stored) == pytest.approx(expected, rel=1e-5)
    assert "tested on" in (two_trees / "out" / "report.html").read_text()


def test_data_on_the_command_line_replaces_the_data_of_the_study(two_trees, capsys):
    """The command prints the data and their split, and keeps ways, shots and image size.

    The path is stored as an absolute one, so that the study can be resumed from any working directory.
    """
    text = (two_trees / "drawn.yaml").read_text().replace("image_size: 8", "image_size: 8, split: home.json")
    (two_trees / "drawn.yaml").write_text(text)
    assert run(["train", "drawn.yaml", "--data", "home", "--out", "out", "--workers", "0"]) == 0
    assert "data: images in folders, a folder for each class (split home.json" in capsys.readouterr().out
    data = open_folder("out").config.data
    assert data.path == str((two_trees / "home").resolve())
    assert (data.ways, data.shots, data.image_size) == (3, 1, 8)
    assert "holds another study: its data is" in refused(
        capsys, ["train", "drawn.yaml", "--data", "away", "--out", "out"]
    )


def test_a_wrong_path_on_the_command_line_is_one_line(working_folder, capsys):
    message = refused(capsys, ["study", "micro", "--data", "nowhere"])
    assert "data: there is no file or folder" in message
    assert len(message.strip().splitlines()) == 1
    assert list(working_folder.iterdir()) == []
    assert "data: there is no file or folder" in refused(capsys, ["study", "micro", "--data", "~no-such-user/x"])
    assert "holds a NUL character" in refused(capsys, ["study", "micro", "--data", "a\0b"])
    (working_folder / "loop").symlink_to("loop")
    refused(capsys, ["study", "micro", "--data", "loop"])
    for folder in ("~no-such-user", "loop"):
        network = f"name: '{folder}/x.py:y'"
        text = study_text("micro").replace("name: conv4, width: 4, normalisation: batch", network)
        (working_folder / "mine.yaml").write_text(text)
        assert "add --trust" in refused(capsys, ["study", "mine.yaml"])
        assert "there is no file" in refused(capsys, ["study", "mine.yaml", "--trust"])
        text = study_text("micro").replace("name: quickdraw", f"path: {folder}")
        (working_folder / "mine.yaml").write_text(text)
        message = refused(capsys, ["study", "mine.yaml"])
        assert "there is no file or folder" in message or "no folder or file has this name" in message


def test_a_bundled_study_on_other_data_gives_the_command_that_repeats_it(own, tmp_path):
    config = with_data(load_study("demo"), str(own["path"]))
    assert command(build(config, tmp_path)) == "hessian-tools study study.yaml --out NEW_FOLDER"
    more = overridden(load_study("demo"), {"seeds": [4, 5]})
    assert command(build(more, tmp_path)) == "hessian-tools study demo --seeds 4 5 --out NEW_FOLDER"
    assert with_data(config, "quickdraw").data.source == "quickdraw"
