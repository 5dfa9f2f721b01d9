"""Every layout is recognised by its file names; each image is assigned to its class, and each class to its split."""

import json
import sys
from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest

from hessian_tools.data import ClassSet, ImageTasks, StoredClasses, describe, open_data
from hessian_tools.data.layouts import recognise
from hessian_tools.data.tree import Tree

SYNSETS = {part: list(names) for part, names in disk.SYNSETS.items()}
LABELS = {"train": ["train-000", "train-001"], "val": ["val-000"], "test": ["test-000", "test-001"]}
BERTINETTO = {part: list(names) for part, names in disk.BERTINETTO.items()}

# For each layout: a function that writes a small data set, the class names of each split, and the side of the images.
LAYOUTS = {
    "miniImageNet pickles": (disk.mini_pickles, SYNSETS, 84),
    "miniImageNet pickles, learn2learn": (lambda root: disk.mini_pickles(root, val="validation"), SYNSETS, 84),
    "FC100 pickles": (disk.fc100_pickles, LABELS, 32),
    "tieredImageNet PNG pickles": (lambda root: disk.tiered(root, packed="png"), LABELS, 84),
    "tieredImageNet PNG pickles of arrays": (lambda root: disk.tiered(root, packed="arrays"), LABELS, 84),
    "tieredImageNet npz files": (lambda root: disk.tiered(root, packed="npz"), LABELS, 84),
    "Bertinetto's layout": (disk.bertinetto, BERTINETTO, 8),
    "images listed by CSV": (lambda root: disk.mini_csv(root, heading=("filename", "label")), SYNSETS, 84),
    "images listed by CSV, other": (
        lambda root: disk.mini_csv(root, heading=("class_name", "image_name")),
        SYNSETS,
        84,
    ),
    "images listed by CSV, in split": (lambda root: disk.mini_split_csv(root, folder="split"), SYNSETS, 84),
    "images listed by CSV, in splits": (lambda root: disk.mini_split_csv(root, folder="splits"), SYNSETS, 84),
    "images in folders, by split and class": (disk.split_folders, SYNSETS, 8),
    "images in folders, by Split and class": (disk.capital_folders, SYNSETS, 8),
}


def split_names(data: ClassSet) -> dict[str, list[str]]:
    return {part: [data.class_names[p] for p in positions] for part, positions in data.splits.items()}


def class_images(data: ClassSet, name: str) -> np.ndarray:
    """The images of a class in their order, uint8 [example, channel, h, w]."""
    position = data.class_names.index(name)
    examples = np.arange(data.count(position))[:, None]
    return np.rint(data.take(np.array([position]), examples).numpy() * data.scale).astype(np.uint8)


def check_tints(data: ClassSet, numbers: dict[str, int]) -> None:
    """Check that every image has the colour that its class, numbered by ``numbers``, and its own number give it."""
    for name, c in numbers.items():
        images = class_images(data, name)
        assert len(images) == disk.EXAMPLES
        for e, image in enumerate(images):
            np.testing.assert_array_equal(image, np.broadcast_to(np.array(disk.tint(c, e))[:, None, None], image.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_found_and_read(layout, tmp_path):
    make, parts, side = LAYOUTS[layout]
    data = open_data(make(tmp_path))
    assert split_names(data) == parts
    assert data.example_shape == (3, side, side)
    assert isinstance(data, StoredClasses) and data.layout.startswith(layout.split(",")[0].removesuffix(" of arrays"))
    check_tints(data, {name: c for c, name in enumerate(n for names in parts.values() for n in names)})
    support, query = ImageTasks(data, ways=1, shots=1, queries=3).episode(seed=0, split="val", index=0)
    assert support[0].shape == (1, 3, side, side) and query[0].shape == (3, 3, side, side)
    assert float(query[0].min()) >= 0 and float(query[0].max()) <= 1
    assert layout.split(",")[0].removesuffix(" of arrays") in describe(tmp_path)


def test_a_zip_gives_the_same_data_as_the_folder_in_it(tmp_path):
    unpacked = open_data(disk.bertinetto(tmp_path / "unpacked"))
    archive = disk.zipped(tmp_path / "unpacked", tmp_path / "archive.zip")
    for path in (archive, tmp_path / "archive.zip"):
        data = open_data(path, cache=tmp_path / "cache")
        assert (data.digest, data.splits) == (unpacked.digest, unpacked.splits)


def test_the_path_of_one_file_opens_the_data_set_in_its_folder(tmp_path):
    disk.mini_pickles(tmp_path)
    (tmp_path / "unrelated").mkdir()
    disk.omniglot(tmp_path / "unrelated")
    assert split_names(open_data(tmp_path / "mini-imagenet-cache-train.pkl")) == SYNSETS


# Omniglot

BACKGROUND = ["Futurama/character01", "Futurama/character02", "Hebrew/character01"]
EVALUATION = ["Gurmukhi/character41", "Gurmukhi/character42", "ULOG/character01"]


def omniglot_zips(root: Path) -> Path:
    disk.omniglot(root / "source")
    home = root / "omniglot-py"
    home.mkdir()
    for part in ("images_background", "images_evaluation"):
        disk.zipped(root / "source" / part, home / f"{part}.zip", below=f"{part}/")
    return home


def pooled(root: Path) -> Path:
    """A folder omniglot_resized/ with all alphabets in it."""
    disk.omniglot(root / "source")
    for part in ("images_background", "images_evaluation"):
        for alphabet in (root / "source" / part).iterdir():
            (root / "omniglot_resized").mkdir(exist_ok=True)
            alphabet.rename(root / "omniglot_resized" / alphabet.name)
    return root / "omniglot_resized"


@pytest.mark.parametrize("make", [disk.omniglot, omniglot_zips, pooled])
def test_omniglot(make, tmp_path):
    data = open_data(make(tmp_path))
    assert split_names(data) == {
        "train": [*BACKGROUND[:2], EVALUATION[0]],
        "val": ["Hebrew/character01"],
        "test": EVALUATION[1:],
    }
    assert data.example_shape == (1, 28, 28)
    for c, name in enumerate(BACKGROUND + EVALUATION):
        for e, image in enumerate(class_images(data, name)):
            ink = np.zeros((28, 28), np.uint8)
            ink[c + 1, : 3 + e] = 255
            np.testing.assert_array_equal(image[0], ink)
    official = open_data(data.file.parent.parent, split="official")
    assert split_names(official) == {"train": BACKGROUND, "test": EVALUATION}


def test_zips_beside_their_unpacked_folders_are_not_read(tmp_path):
    home = omniglot_zips(tmp_path)
    disk.omniglot(home)
    assert open_data(home).counts == (disk.EXAMPLES,) * 6


def test_rotations_are_classes_of_their_own_in_the_same_split(tmp_path):
    disk.omniglot(tmp_path)
    plain, turned = open_data(tmp_path), open_data(tmp_path, rotations=True)
    assert turned.file == plain.file and len(turned.class_names) == 24
    assert turned.digest != plain.digest
    for part, names in split_names(plain).items():
        endings = ("", "/rot090", "/rot180", "/rot270")
        assert split_names(turned)[part] == [name + ending for name in names for ending in endings]
    upright = class_images(plain, "ULOG/character01")
    for quarter, ending in enumerate(("", "/rot090", "/rot180", "/rot270")):
        turn = class_images(turned, "ULOG/character01" + ending)
        np.testing.assert_array_equal(turn, np.rot90(upright, quarter, axes=(2, 3)))
    bar = upright[0, 0]
    assert bar[6, 0]
    assert not bar[6, -1]
    # The bar is at the left edge; a quarter turn counterclockwise brings it to the bottom.
    assert class_images(turned, "ULOG/character01/rot090")[0, 0][-1, 6]
    x, _ = ImageTasks(turned, ways=8, shots=1, queries=1).episode(seed=0, split="test", index=0).support
    assert len({image.tobytes() for image in x.numpy()}) == 8


# CIFAR-100


def test_cifar100_pools_train_and_test(tmp_path):
    data = open_data(disk.cifar100(tmp_path))
    assert split_names(data) == {"train": ["apple", "bottle"], "val": ["beaver"], "test": ["baby"]}
    check_tints(data, {name: c for c, name in enumerate(disk.CIFAR_NAMES)})
    by_superclass = open_data(tmp_path, split="fc100")
    assert split_names(by_superclass) == {"train": ["apple", "bottle"], "test": ["beaver", "baby"]}
    assert by_superclass.file == data.file  # another split uses the same decoded images


# Birds and cars


def test_birds_with_both_splits_and_with_boxes(tmp_path):
    data = open_data(disk.birds(tmp_path))
    albatross, laysan, ani, frigatebird = disk.BIRDS
    assert split_names(data) == {"train": [albatross], "val": [laysan], "test": [ani, frigatebird]}
    other = open_data(tmp_path, split="140-30-30")
    assert split_names(other) == {"train": [albatross, laysan, ani], "val": [frigatebird]}
    # By default the images are not cropped, so their corner is white.
    assert class_images(data, albatross)[0, :, 0, 0].tolist() == [255, 255, 255]
    check_tints(open_data(tmp_path, crop=True), {name: c for c, name in enumerate(disk.BIRDS)})


def test_cars_are_cropped_to_their_boxes_and_their_labels_count_from_one(tmp_path):
    data = open_data(disk.cars(tmp_path))
    assert split_names(data) == {"train": [disk.CARS[0], disk.CARS[2]], "val": [disk.CARS[1]], "test": [disk.CARS[3]]}
    assert "/" in data.class_names[3]
    check_tints(data, {name: c for c, name in enumerate(disk.CARS)})
    assert class_images(open_data(tmp_path, crop=False), disk.CARS[0])[0, :, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("make", [disk.birds, disk.cars])
def test_boxes_are_those_of_the_object_to_the_pixel(make, tmp_path):
    """The boxes of CUB count from 0 and give a width; those of Cars count from 1 and include their last pixel."""
    with Tree(make(tmp_path)) as tree:
        pictures = list(recognise(tree).read(tree, True).pictures())
    assert {picture.box for picture in pictures} == {(2, 3, 6, 7)} and len(pictures) == 16


# Parquet


def test_images_of_all_parquet_files_are_pooled_and_split_by_class(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'hessian-tools[parquet]')")
    data = open_data(disk.hub_parquet(tmp_path))
    assert split_names(data) == SYNSETS
    assert data.counts == (disk.EXAMPLES,) * 5
    for name, c in disk.numbered().items():
        assert [int(image[0, 0, 0]) for image in class_images(data, name)] == [disk.tint(c, e)[0] for e in range(4)]


@pytest.mark.parametrize(
    ("label", "limit", "said"),
    [
        (0, "MAX_GROUP", "has a row group of . MB, but at most 1 MB are read at once"),
        (0, "MAX_WHOLE", "has an image of 1 MB"),
        (2_000_000, "MAX_ROWS", "has the label 2000000; labels are whole numbers from 0, below 1000000"),
    ],
)
def test_a_parquet_file_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path, monkeypatch, label, limit, said):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'hessian-tools[parquet]')")
    parts = {"train": ["0"], "val": ["1"], "test": ["2"]}
    images = [{"bytes": bytes(1 << 20), "path": str(row)} for row in range(8)]
    table = pa.table({"image": images, "label": [label, 0, 1, 2, 0, 1, 2, 0]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "train-0.parquet")
    (tmp_path / "split.json").write_text(json.dumps(parts))
    monkeypatch.setattr(f"hessian_tools.data.layouts.parquet.{limit}", 1_000_000)
    with pytest.raises(ValueError, match=said):
        class_images(open_data(tmp_path, split=tmp_path / "split.json"), "0")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    disk.put(tmp_path / "train-0.parquet", b"PAR1")
    with pytest.raises(ValueError, match=r"needs pyarrow.\nRun: pip install 'hessian-tools\[parquet\]'"):
        open_data(tmp_path)
