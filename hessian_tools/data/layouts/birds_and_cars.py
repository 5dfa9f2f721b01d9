"""Two fine-grained data sets that give a box around the object of each image: Caltech-UCSD Birds and Stanford Cars."""

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from hessian_tools.data.class_lists import META_DATASET_CUB
from hessian_tools.data.layouts.layout import (
    Box,
    Contents,
    Match,
    group_by_folder,
    group_by_home,
    home_suffix,
    image_files,
    is_image,
)
from hessian_tools.data.splits import split_by_lists, split_by_rule
from hessian_tools.data.tree import Tree

LOOKS_FOR = (
    "CUB: CUB_200_2011/images/NNN.Name/*.jpg",
    "Cars: cars_train/*.jpg with devkit/cars_train_annos.mat and devkit/cars_meta.mat",
)
BIRD = re.compile(r"(?P<home>(?:.*/)?)images/\d{3}\.[^/]+/[^/]+")
CAR_LABELS = re.compile(r"(?P<home>(?:.*/)?)devkit/cars_train_annos\.mat")

EVERY_FOURTH = "classes 1, 3, 5, ... for train, 2, 6, 10, ... for val, 4, 8, 12, ... for test"
CHEN_RULE = f"Chen et al. (2019), {EVERY_FOURTH}"
META_DATASET_RULE = "Meta-Dataset, Triantafillou et al. (2020)"
TSENG_RULE = f"Tseng et al. (2020), {EVERY_FOURTH}"


def every_fourth(number: int) -> str:
    """The part of the split to which a class belongs, by its number counted from 1 (Chen et al., 2019).

    >>> [every_fourth(n) for n in (1, 2, 3, 4)]
    ['train', 'val', 'train', 'test']
    """
    return "train" if number % 2 else "val" if number % 4 == 2 else "test"


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder that holds birds, and one for each that holds cars."""
    for home, birds in group_by_home(tree, BIRD, images=True).items():
        images = [bird.string for bird in birds]
        lists = [f"{home}images.txt", f"{home}bounding_boxes.txt"]
        has_boxes = all(name in tree.files for name in lists)
        files = [*images, *lists] if has_boxes else images
        read = partial(_read_birds, home=home, images=images)
        yield Match(f"CUB-200-2011{home_suffix(home)}", "cub", files, read, has_boxes=has_boxes)
    for home in group_by_home(tree, CAR_LABELS):
        labels, meta = f"{home}devkit/cars_train_annos.mat", f"{home}devkit/cars_meta.mat"
        if meta in tree.files:
            images = [name for name in tree.files if name.startswith(f"{home}cars_train/") and is_image(name)]
            read = partial(_read_cars, labels=labels, meta=meta, images=images)
            layout = f"Stanford Cars, cars_train{home_suffix(home)}"
            yield Match(layout, "cars", [labels, meta, *images], read, has_boxes=True, crop=True)


def _read_birds(tree: Tree, crop: bool, *, home: str, images: list[str]) -> Contents:
    """The contents of CUB-200-2011; the boxes are read only if images are cropped to them."""
    boxes = _bird_boxes(tree, home) if crop else {}
    boxless = [name for name in images if name not in boxes]
    if crop and boxless:
        raise ValueError(f"{home}bounding_boxes.txt has no box for {boxless[0]}; fetch it again, or use crop=False")
    classes = group_by_folder(images)
    names = list(classes)

    def number(name: str) -> int:
        return int(name[:3])  # the name of a class begins with its number, as in 017.Cardinal

    splits = (
        split_by_rule("100-50-50", CHEN_RULE, names, lambda name: every_fourth(number(name))),
        split_by_lists("140-30-30", META_DATASET_RULE, names, META_DATASET_CUB, number),
    )
    return image_files(tree, classes, splits, boxes=boxes)


def _bird_boxes(tree: Tree, home: str) -> dict[str, Box]:
    """The box of each image file in pixels counted from 0.

    images.txt has lines "number path", and bounding_boxes.txt has lines "number x y width height".
    """
    paths = dict(line.split(maxsplit=1) for line in tree.text(f"{home}images.txt").splitlines() if line)
    boxes: dict[str, Box] = {}
    for line in filter(None, tree.text(f"{home}bounding_boxes.txt").splitlines()):
        number, *sizes = line.split()
        x, y, width, height = (round(float(n)) for n in sizes)
        boxes[f"{home}images/{paths.get(number, '').strip()}"] = (x, y, x + width, y + height)
    return boxes


def _read_cars(tree: Tree, crop: bool, *, labels: str, meta: str, images: list[str]) -> Contents:
    """The contents of Stanford Cars. labels, meta: the names of the two MATLAB files of the devkit."""
    names = [str(name) for name in _matlab(tree, meta, "class_names")]
    paths = {image.rpartition("/")[2]: image for image in images}
    members: list[list[str]] = [[] for _ in names]
    boxes: dict[str, Box] = {}
    for annotation in _matlab(tree, labels, "annotations"):
        label, file = int(annotation["class"]), str(annotation["fname"])
        if not 1 <= label <= len(names):
            raise ValueError(f"{labels}: {file} has label {label}; labels are 1 to {len(names)}")
        if file not in paths:
            raise ValueError(f"{labels} lists {file}, which is not in cars_train; unpack the images again")
        # MATLAB counts labels and pixels from 1, and includes the last row and column of a box; we exclude them.
        members[label - 1].append(paths[file])
        left, top, right, bottom = (int(annotation[f"bbox_{key}"]) for key in ("x1", "y1", "x2", "y2"))
        boxes[paths[file]] = (left - 1, top - 1, right, bottom)
    classes = dict(zip(names, map(sorted, members), strict=True))
    part_of = {name: every_fourth(number) for number, name in enumerate(names, start=1)}
    split = split_by_rule("98-49-49", TSENG_RULE, names, part_of.__getitem__)
    return image_files(tree, classes, (split,), boxes=boxes if crop else None)


def _matlab(tree: Tree, name: str, key: str) -> list[Any]:
    """The list that the MATLAB file ``name`` holds under a key."""
    from scipy.io import loadmat  # imported here, because the import is slow and only this layout needs it

    try:
        file: Any = io.BytesIO(tree.read(name))  # scipy accepts files, although its annotations do not say so
        value = loadmat(file, simplify_cells=True)[key]
    except KeyError:
        raise ValueError(f"{name} has no {key!r}, as the Cars devkit would; fetch the devkit again") from None
    except Exception as e:
        raise ValueError(f"{name} cannot be read as a MATLAB file ({e}); fetch the devkit again") from None
    # With simplify_cells, scipy returns a list of one entry as that entry.
    return [value] if isinstance(value, dict | str) else list(value)
