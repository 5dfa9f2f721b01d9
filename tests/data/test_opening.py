"""Opening a data set by name or path: its splits, sizes, channels and description, and the options that are refused."""

import io
import json
from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest
from PIL import Image

from hessian_tools.data import ImageTasks, TaskSource, describe, load_quickdraw, open_data, open_tasks
from hessian_tools.data.splits import split_by_hash

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return disk.class_folders(tmp_path / "data", NAMES)


def split_names(data: object) -> dict[str, set[str]]:
    return {part: {data.class_names[p] for p in positions} for part, positions in data.splits.items()}


# Splits


def test_data_without_a_split_are_divided_by_the_hashes_of_the_class_names(root):
    data = open_data(root)
    assert {part: len(names) for part, names in split_names(data).items()} == {"train": 3, "val": 1, "test": 1}
    assert data.split_rule.startswith("by-name: ") and "no split of the literature" in data.split_rule
    assert "'by-name': train 3, val 1, test 1 classes" in describe(root)


def test_the_split_by_hash_depends_on_the_names_alone():
    names = [f"class {i}" for i in range(100)]
    split = split_by_hash(names)
    assert {part: len(members) for part, members in split.parts.items()} == {"train": 64, "val": 16, "test": 20}
    assert split_by_hash(names[::-1]) == split
    assert split_by_hash(["a", "b"]).parts == {"train": ("a", "b")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.json", json.dumps({"train": ["ant", "bee"], "valid": ["cat"], "novel": ["dog"]})),
        ("mine.csv", "class,split\nant,train\nbee,train\n\ncat,val\ndog,test\n"),
        ("mine.csv", "\ufeffant, train\nbee, train\ncat, validation\ndog, test\n"),
    ],
)
def test_a_split_can_be_given_by_a_file(name, text, root, tmp_path):
    file = disk.put(tmp_path / name, text)
    data = open_data(root, split=file)
    assert split_names(data) == {"train": {"ant", "bee"}, "val": {"cat"}, "test": {"dog"}}
    assert data.split_rule == f"{name}: your file {name}"
    assert f"split '{name}': train 2, val 1, test 1 classes" in describe(root, split=file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"train": ["ant"], "test": ["ant"]}', "a class of images is in two splits"),
        ("a.json", '{"train": ["ent"]}', "a.json names a class 'ent' that .* does not hold; did you mean 'eel|ant'"),
        ("a.json", '{"first": ["ant"]}', "divides the classes into first; use train, val and test"),
        ("a.json", "{}", "divides the classes into nothing; use train, val and test"),
        ("a.json", "[1]", "is not a JSON mapping of train, val and test"),
        ("a.json", '{"train": 3}', "is not a JSON mapping of train, val and test"),
        ("a.csv", "ant,bee,train\n", "line 1 has 3 fields; use class,split"),
        ("a.txt", "ant", "split='.*a.txt' is not known; give one of by-name, or a .json or .csv file"),
    ],
)
def test_splits_that_do_not_fit_are_refused(name, text, message, root, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_data(root, split=disk.put(tmp_path / name, text))


def test_an_unknown_split_is_refused_before_any_image_is_decoded(root):
    with pytest.raises(ValueError, match="split='official' is not known; give one of by-name, or"):
        open_data(root, split="official")
    assert not (root / ".hessian-tools").exists()


def test_classes_without_any_known_split_need_a_file(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'hessian-tools[parquet]')")
    import pyarrow
    from pyarrow import parquet

    rows = {"image": [disk.png(c, e) for c in range(2) for e in range(4)], "label": [0] * 4 + [1] * 4}
    parquet.write_table(pyarrow.table(rows), tmp_path / "some.parquet")
    with pytest.raises(ValueError, match="no split is known for the classes of parquet, 1 files pooled; give a .json"):
        open_data(tmp_path)
    file = disk.put(tmp_path / "s.json", '{"train": ["0"], "test": ["1"]}')
    assert open_data(tmp_path, split=file).splits == {"train": (0,), "test": (1,)}


# Pixels


def picture(file: Path, mode: str, value: object, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 90, 90), ("1", 1, 255), ("RGB", (90, 90, 90), 90)])
def test_grey_and_colour_are_turned_into_each_other(mode, value, grey, tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / name / "0.png", mode, value)
    native = open_data(tmp_path)
    assert native.example_shape == ((3 if mode == "RGB" else 1), 8, 8)
    for channels in (1, 3):
        images = open_data(tmp_path, channels=channels).images
        assert images.shape == (3, channels, 8, 8) and (np.asarray(images) == grey).all()


def test_palettes_transparency_and_odd_shapes(tmp_path):
    picture(tmp_path / "a" / "0.png", "RGB", (10, 20, 30), size=(12, 6))
    picture(tmp_path / "b" / "0.png", "RGBA", (10, 20, 30, 255))
    palette = Image.new("P", (8, 8), 5)
    palette.putpalette([0] * 15 + [10, 20, 30])
    disk.put(tmp_path / "c" / "0.png", b"")
    palette.save(tmp_path / "c" / "0.png")
    images = np.asarray(open_data(tmp_path, image_size=7, channels=3).images)
    assert images.shape == (3, 3, 7, 7)
    assert (images == np.array([10, 20, 30])[:, None, None]).all()


def test_more_than_eight_bits_are_refused_rather_than_clipped(tmp_path):
    picture(tmp_path / "a" / "0.png", "I;16", 60000)
    with pytest.raises(ValueError, match=r"a/0.png cannot be read as an image .*more than 8 bits; convert"):
        open_data(tmp_path)


def test_photographs_are_used_at_84_and_small_images_as_they_are(tmp_path):
    for side, used in ((105, 105), (300, 84)):
        picture(tmp_path / str(side) / "a" / "0.png", "RGB", (1, 2, 3), size=(side, side))
        assert open_data(tmp_path / str(side)).example_shape == (3, used, used)


def test_shrinking_an_image_averages_over_pixels(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.array([[0, 200], [200, 0]], np.uint8), (28, 28))).save(buffer, "PNG")
    disk.put(tmp_path / "a" / "0.png", buffer.getvalue())
    inner = np.asarray(open_data(tmp_path, image_size=7).images)[0, 0, 1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 100).max() <= 2


# Names, paths and descriptions


def test_tasks_opened_by_a_path_are_a_task_source(root):
    tasks = open_tasks(str(root), ways=2, shots=1, queries=3, image_size=6, channels=1)
    assert isinstance(tasks, TaskSource)
    assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("classification", (1, 6, 6), 2)
    assert tasks.episode(seed=0, split="train", index=0).query[0].shape == (6, 1, 6, 6)
    assert len({tasks.digest, open_tasks(root, ways=2, shots=1, queries=3).digest}) == 2


def test_a_word_that_is_no_path_is_taken_for_the_name_of_bundled_data(working_folder):
    with pytest.raises(ValueError, match="name='omniglot' is not one of quickdraw, sine-line, and no folder"):
        open_tasks("omniglot")
    with pytest.raises(ValueError, match="there is no file or folder somewhere/omniglot"):
        open_tasks("somewhere/omniglot")
    disk.omniglot(working_folder / "omniglot")
    assert open_tasks("omniglot", shots=1, queries=3, ways=1).input_shape == (1, 28, 28)
    with pytest.raises(ValueError, match="has no classes; use open_tasks"):
        open_data("sine-line")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"channels": 2}, "channels=2, but images are grey or colour; use 1 or 3"),
        ({"crop": True}, r"crop=True, but no boxes come with the data \(images in folders"),
    ],
)
def test_impossible_options_are_refused(options, message, root):
    with pytest.raises(ValueError, match=message):
        open_data(root, **options)


def test_describe_gives_layout_counts_and_splits(tmp_path):
    disk.omniglot(tmp_path)
    lines = describe(tmp_path).splitlines()
    assert lines[0] == "Omniglot, folders of alphabets: 6 classes of 4 images, 24 in all"
    assert lines[1] == "used as 1 x 28 x 28 (not decoded yet)"
    assert lines[2].startswith("split 'vinyals': train 3, val 1, test 2 classes (as used since Vinyals et al. (2016)")
    assert lines[3].startswith("also 'official': train 3, test 3 classes (Lake et al. (2015)")
    assert not (tmp_path / ".hessian-tools").exists()
    data = open_data(tmp_path)
    assert f"decoded in {data.file}" in describe(tmp_path)
    assert describe(tmp_path, split="official").splitlines()[2].startswith("split 'official'")
    assert "345 classes of 20 images" in describe("quickdraw")


# The bundled drawings in other shapes


def test_quickdraw_can_be_reshaped_to_fit_other_data():
    plain = load_quickdraw()
    assert open_data("quickdraw") is plain
    colour = open_data("quickdraw", channels=3)
    assert colour.images.shape == (345, 20, 3, 28, 28) and colour.scale == 1
    np.testing.assert_array_equal(colour.images[7, 3], np.repeat(plain.images[7, 3], 3, axis=0))
    larger = open_data("quickdraw", image_size=56, channels=1)
    assert larger is open_data("quickdraw", image_size=56, channels=1)  # made once for each process
    x, _ = ImageTasks(larger).episode(seed=0, split="test", index=0).support
    same, _ = ImageTasks(plain).episode(seed=0, split="test", index=0).support
    assert x.shape == (5, 1, 56, 56) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert float((x.mean() - same.mean()).abs()) < 0.01
    assert len({data.digest for data in (plain, colour, larger)}) == 3
    with pytest.raises(ValueError, match="leave them out with 'quickdraw'"):
        open_data("quickdraw", rotations=True)
