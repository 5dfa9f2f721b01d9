"""A study on data of the user's own: the same configuration with a path."""

import json
from pathlib import Path

import layouts_on_disk as disk
import pytest

from analysis import setting
from analysis.config import StudyConfig
from analysis.errors import UserError
from analysis.study_file import parse_study, study_text
from hessian_tools.data import summary

NAMES = tuple(f"class{c:02d}" for c in range(9))


def study(**data: object) -> StudyConfig:
    """The micro study, on other data."""
    settings = {"ways": 3, "shots": 1, "queries": 2, "test_queries": 3} | data
    text = study_text("micro")
    line = next(line for line in text.splitlines() if line.startswith("data:"))
    return parse_study(text.replace(line, f"data: {json.dumps(settings)}"), source="micro")


@pytest.fixture
def own(tmp_path: Path) -> dict[str, object]:
    """A folder of classes with a split of its own."""
    disk.class_folders(tmp_path / "own", NAMES)
    parts = {"train": NAMES[:3], "val": NAMES[3:6], "test": NAMES[6:]}
    split = disk.put(tmp_path / "split.json", json.dumps(parts))
    return {"path": str(tmp_path / "own"), "split": str(split), "image_size": 16}


def test_a_study_runs_on_a_folder_of_images(own):
    config = study(**own)
    tasks = setting.tasks(config)
    assert tasks.input_shape == (3, 16, 16)
    assert tasks is setting.tasks(config)  # the files are looked at once
    assert summary(tasks) == "images in folders, a folder for each class (split split.json: your file split.json)"
    setting.check(config)
    assert setting.network(config)()(tasks.episode(seed=0, split="val", index=0).support[0]).shape == (3, 3)


def test_held_out_tasks_can_come_from_elsewhere(own):
    config = study(**own, channels=1, test_path="quickdraw")
    held_out, elsewhere = setting.tasks(config, held_out=True), setting.tasks(study(image_size=16), held_out=True)
    for split, same in (("test", True), ("train", False)):
        ours, theirs = (each.episode(seed=0, split=split, index=1).query[0] for each in (held_out, elsewhere))
        assert bool((ours == theirs).all()) == same
    assert summary(held_out).endswith("; tested on quickdraw")
    with pytest.raises(UserError, match=r"data: input_shape is \(3, 16, 16\) in training and \(1, 16, 16\) in test"):
        setting.tasks(study(**own, test_path="quickdraw"))


def test_a_split_without_validation_serves_where_nothing_is_validated(own, tmp_path):
    parts = {"train": NAMES[:5], "test": NAMES[5:]}
    own["split"] = str(disk.put(tmp_path / "two.json", json.dumps(parts)))
    with pytest.raises(UserError, match="data: split='val' is not one of train, test"):
        setting.check(study(**own))
    config = study(**own)
    setting.check(config.model_copy(update={"train": config.train.model_copy(update={"validation_tasks": 0})}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "nowhere/at/all"}, "data: there is no file or folder nowhere/at/all"),
        ({"test_split": "official"}, "data: test_split needs test_path"),
        ({"channels": 3, "rotations": True}, "data: split, rotations and crop are for data of your own"),
    ],
)
def test_what_is_not_there_is_told_in_the_words_of_the_command_line(data, message):
    with pytest.raises(UserError, match=message):
        setting.tasks(study(**data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "sine-line", "image_size": 3}, "data: image_size is for images; sine-line has none"),
        ({"pth": "x"}, "unknown key 'data.pth'; did you mean 'path'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(data, message):
    with pytest.raises(UserError, match=message):
        study(**data)
