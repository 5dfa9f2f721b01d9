"""Features are read from one or three .npz files and checked; episodes of features are drawn like those of images."""

from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest
import torch

from hessian_tools.data import FeatureClasses, ImageTasks, TaskSource, describe, open_data, open_tasks

SYNSETS = {part: list(names) for part, names in disk.SYNSETS.items()}


def one_file(root: Path, **changes: object) -> Path:
    arrays = {key: value for key, value in (disk.feature_arrays() | changes).items() if value is not None}
    np.savez(root / "all.npz", **arrays)
    return root / "all.npz"


def three_files(root: Path) -> Path:
    for part, names in disk.SYNSETS.items():
        arrays = disk.feature_arrays({part: names})
        # ``feature_arrays`` numbers the classes of each call from 0; here they get their numbers in the whole data set.
        arrays["features"][:, 0] += disk.numbered()[names[0]]
        np.savez(root / f"{part}.npz", features=arrays["features"], labels=arrays["labels"])
    return root


@pytest.mark.parametrize("make", [one_file, three_files])
def test_vectors_come_out_by_class_and_split(make, tmp_path):
    data = open_data(make(tmp_path))
    assert isinstance(data, FeatureClasses)
    assert {part: [data.class_names[p] for p in positions] for part, positions in data.splits.items()} == SYNSETS
    for name, c in disk.numbered().items():
        position = data.class_names.index(name)
        vectors = data.take(np.array([position]), np.arange(4)[:, None])
        assert vectors.tolist() == [disk.feature_vector(c, e) for e in range(4)]


def test_tasks_of_features(tmp_path):
    tasks = open_tasks(one_file(tmp_path), ways=2, shots=1, queries=3)
    assert isinstance(tasks, TaskSource)
    assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("classification", (3,), 2)
    support, query = tasks.episode(seed=0, split="test", index=0)
    assert support[0].dtype == torch.float32 and support[0].shape == (2, 3) and query[0].shape == (6, 3)
    assert query[1].tolist() == [0, 1, 0, 1, 0, 1]
    assert {row[0] for row in query[0].tolist()} == {3.0, 4.0}
    support[0].fill_(9.0)
    assert not torch.equal(support[0], tasks.episode(seed=0, split="test", index=0).support[0])
    assert "features of length 3: 5 classes of 4 to 4 vectors\nsplit given" in describe(tmp_path / "all.npz")


@pytest.mark.parametrize("dtype", [int, float])
def test_numbers_as_labels_begin_anew_in_each_file(tmp_path, dtype):
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", features=np.zeros((4, 2)), labels=np.array([0, 0, 1, 1], dtype))
    data = open_data(tmp_path)
    assert data.class_names == tuple(f"{part}-{dtype(label)}" for part in ("test", "train") for label in (0, 1))
    assert data.splits == {"train": (2, 3), "test": (0, 1)}


def test_digest_follows_vectors_and_classes(tmp_path):
    arrays = disk.feature_arrays()
    first = open_data(one_file(tmp_path)).digest
    assert open_data(one_file(tmp_path)).digest == first
    assert open_data(one_file(tmp_path, features=arrays["features"] + 1)).digest != first
    assert open_data(one_file(tmp_path, labels=np.char.add(arrays["labels"], "x"))).digest != first


def test_a_split_can_be_given_by_a_file(tmp_path):
    file = disk.put(tmp_path / "s.json", '{"train": ["n01532829"], "test": ["n01981276"]}')
    data = open_data(one_file(tmp_path, parts=None), split=file)
    assert [data.class_names[p] for p in (*data.splits["train"], *data.splits["test"])] == ["n01532829", "n01981276"]
    ImageTasks(data, ways=1, shots=1, queries=1).episode(seed=0, split="test", index=0)


ARRAYS = disk.feature_arrays()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "all.npz holds the arrays features, parts, but it needs features .* and labels"),
        ({"parts": None}, "all.npz has no array parts; add it, or give split=, a file that divides the classes"),
        ({"features": np.zeros((20, 3), int)}, "features are int64 of shape .*; use floats"),
        ({"features": np.zeros((20, 3, 1))}, "features are float64 of shape .*; use floats"),
        ({"features": np.full((20, 3), np.nan)}, "some features are not finite"),
        ({"labels": np.array(["a"])}, "all.npz has 20 images but 1 labels"),
        (
            {"labels": np.arange(20) % 5 - 1},
            "all.npz: some labels are no whole numbers from 0; give those, or the names",
        ),
        ({"labels": np.arange(20) / 2}, "all.npz: some labels are no whole numbers from 0"),
        ({"parts": np.array(["train"])}, r"all.npz \(parts\) has 20 images but 1 labels"),
        ({"parts": np.array(["first"] * 20)}, "parts of all.npz holds 'first'; use train, val and test"),
        ({"parts": np.array(["train", "test"] * 10)}, "a class of features is in two splits"),
        ({"labels": np.array([object()] * 20)}, "all.npz cannot be read .*; save features"),
    ],
)
def test_features_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_data(one_file(tmp_path, **changes))
