"""CIFAR-100 as its authors distribute it, with its train and test images pooled: 600 images of each class."""

import re
from collections.abc import Iterator
from functools import partial

import numpy as np

from hessian_tools.data.class_lists import CIFAR_FS, FC100
from hessian_tools.data.layouts.layout import (
    Contents,
    Labelled,
    Match,
    check_same_length,
    group_by_home,
    home_suffix,
    labelled_images,
    load_mapping,
)
from hessian_tools.data.splits import split_by_lists
from hessian_tools.data.tree import Tree

LOOKS_FOR = ("CIFAR-100: cifar-100-python/{train,test,meta}",)
META = re.compile(r"(?P<home>(?:.*/)?)meta")
CIFAR_FS_RULE = "CIFAR-FS, Bertinetto et al. (2019)"
FC100_RULE = "FC100, Oreshkin et al. (2018): by superclass"
SIDE = 32


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder that holds the files train, test and meta."""
    for home in group_by_home(tree, META):
        files = [f"{home}{part}" for part in ("train", "test", "meta")]
        if all(name in tree.files for name in files):
            layout = f"CIFAR-100{home_suffix(home)}, train and test pooled"
            yield Match(layout, "cifar100", files, partial(_read, files=files), image_size=SIDE)


def _read(tree: Tree, crop: bool, *, files: list[str]) -> Contents:
    """The contents; ``crop`` is ignored, because the images have no boxes."""
    *image_files, meta = files
    names = tuple(str(name) for name in load_mapping(tree, meta, "fine_label_names")["fine_label_names"])
    superclass: dict[str, int] = {}  # for the name of each class, the number of its superclass, by which FC100 divides
    labelled: dict[str, Labelled] = {}
    for file in image_files:
        data = load_mapping(tree, file, "data", "fine_labels", "coarse_labels")
        labels = [int(label) for label in data["fine_labels"]]
        check_same_length(file, len(data["data"]), len(labels))
        check_same_length(file, len(data["data"]), len(data["coarse_labels"]))
        for label in labels:
            if not 0 <= label < len(names):
                raise ValueError(f"{file} has label {label}, but {meta} names {len(names)} classes; fetch both again")
        superclass |= {names[fine]: int(coarse) for fine, coarse in zip(labels, data["coarse_labels"], strict=True)}
        labelled[file] = labels, partial(_images, tree, file)
    splits = (
        split_by_lists("cifar-fs", CIFAR_FS_RULE, names, CIFAR_FS),
        split_by_lists("fc100", FC100_RULE, names, FC100, superclass.get),
    )
    return labelled_images(names, labelled, splits)


def _images(tree: Tree, file: str) -> Iterator[np.ndarray]:
    # A row of CIFAR-100 is one image as [channel, height, width], but readers yield [height, width, channel].
    rows = load_mapping(tree, file, "data")["data"]
    if not isinstance(rows, np.ndarray):
        raise ValueError(f"{file}: images are a {type(rows).__name__}; an array of uint8 is needed")
    rows = rows.astype(np.uint8)
    if rows.ndim != 2 or rows.shape[1] != 3 * SIDE**2:
        raise ValueError(f"{file}: images are of shape {rows.shape}; rows of {3 * SIDE**2} numbers are needed")
    yield from rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
