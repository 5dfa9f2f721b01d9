"""Images packed into one file for each part of the split, as miniImageNet, FC100 and tieredImageNet are distributed."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from hessian_tools.data.layouts.layout import (
    MAX_PIXELS,
    Contents,
    Images,
    Match,
    check_same_length,
    home_suffix,
    labelled_images,
    load_mapping,
    parts_by_home,
)
from hessian_tools.data.npz import stored_array
from hessian_tools.data.safe_pickle import packed_images
from hessian_tools.data.splits import given_split
from hessian_tools.data.tree import Tree
from hessian_tools.validation import some_of

LOOKS_FOR = (
    "miniImageNet: mini-imagenet-cache-{train,val,test}.pkl (or -validation)",
    "FC100, CIFAR-FS, miniImageNet: {FC100,CIFAR_FS,miniImageNet_category_split}_{train,val,test}.pickle",
    "tieredImageNet: {train,val,test}_images_png.pkl or _images.npz, with {train,val,test}_labels.pkl",
)
# The file names of the three kinds of packed data, in the order of ``LOOKS_FOR``: CACHE, LABELLED and TIERED. The
# "{}" in LABELLED stands for the name of a data set.
CACHE = re.compile(r"(?P<home>(?:.*/)?)mini-imagenet-cache-(?P<part>train|val|validation|test)\.pkl")
LABELLED = r"(?P<home>(?:.*/)?){}_(?P<part>train|val|test)\.(?:pickle|pkl)"
# If a folder has both kinds, the pickles of PNGs are read: of two files for one part, ``parts_by_home`` takes the last
# one in the order of names, and "_images_png.pkl" comes after "_images.npz".
TIERED = re.compile(r"(?P<home>(?:.*/)?)(?P<part>train|val|test)_images(?:_png\.pkl|\.npz)")
# For each beginning of file names: the short name of the data set, and the side of its images.
SETS = {"FC100": ("fc100", 32), "CIFAR_FS": ("cifar-fs", 32), "miniImageNet_category_split": ("miniimagenet", 84)}

# One part of a split: the label of each image, and a function that reads the images in the same order.
Part = tuple[list[str], Images]


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder that holds packed images of one of the three kinds."""
    for home, files in parts_by_home(tree, CACHE).items():
        read = partial(_read, files=files, read_part=_cache_part)
        yield Match(f"miniImageNet pickles{home_suffix(home)}", "miniimagenet", list(files.values()), read)
    for set_name, (name, size) in SETS.items():
        for home, files in parts_by_home(tree, re.compile(LABELLED.format(set_name))).items():
            read = partial(_read, files=files, read_part=_labelled_part)
            yield Match(f"{set_name} pickles{home_suffix(home)}", name, list(files.values()), read, image_size=size)
    for home, files in parts_by_home(tree, TIERED).items():
        for file in files.values():
            labels = _tiered_labels_file(file)
            if labels not in tree.files:
                raise ValueError(f"{tree.path} holds {file}, but not its labels, {labels}; fetch that file too")
        kind = "PNG pickles" if any(name.endswith(".pkl") for name in files.values()) else "npz files"
        read = partial(_read, files=files, read_part=_tiered_part)
        every_file = [*files.values(), *map(_tiered_labels_file, files.values())]
        yield Match(f"tieredImageNet {kind}{home_suffix(home)}", "tieredimagenet", every_file, read)


def _read(tree: Tree, crop: bool, *, files: Mapping[str, str], read_part: Callable[[Tree, str, str], Part]) -> Contents:
    """The contents of a data set with one file for each part.

    ``read_part`` reads such a file, given the tree, the part and the name of the file. ``crop`` is ignored, because the
    images have no boxes.
    """
    parts = {part: read_part(tree, part, name) for part, name in files.items()}
    members = {part: sorted(set(labels)) for part, (labels, _) in parts.items()}
    names = tuple(label for labels in members.values() for label in labels)
    class_index = {name: i for i, name in enumerate(names)}
    labelled = {
        files[part]: ([class_index[label] for label in labels], images) for part, (labels, images) in parts.items()
    }
    split = given_split(", ".join(name.rpartition("/")[2] for name in files.values()), members)
    return labelled_images(names, labelled, (split,))


def _cache_part(tree: Tree, part: str, name: str) -> Part:
    """Read a file with ``image_data`` [image, 84, 84, 3] and ``class_dict``, which lists the rows of each class.

    ``part`` is not needed, because the labels are class names, but all readers of a part take the same arguments.
    """
    data = load_mapping(tree, name, "image_data", "class_dict")
    num_images = len(data["image_data"])
    labels = [""] * num_images
    for label, rows in data["class_dict"].items():
        for row in rows:
            if not 0 <= row < num_images:
                raise ValueError(f"{name}: class {label} lists image {row}, but there are {num_images}; fetch it again")
            labels[row] = str(label)
    if "" in labels:
        raise ValueError(f"{name}: image {labels.index('')} is in no class; fetch the file again")
    return labels, partial(_pickled_images, tree, name, "image_data")


def _labelled_part(tree: Tree, part: str, name: str) -> Part:
    """Read a file with ``data`` [image, h, w, 3] and ``labels``, whole numbers that begin at 0 in each file."""
    data = load_mapping(tree, name, "data", "labels")
    check_same_length(name, len(data["data"]), len(data["labels"]))
    return _numbered(part, data["labels"]), partial(_pickled_images, tree, name, "data")


def _tiered_part(tree: Tree, part: str, name: str) -> Part:
    """Read a part whose labels have a file of their own. Its images are read one by one and never held together."""
    where = _tiered_labels_file(name)
    data = load_mapping(tree, where)
    key = next((key for key in ("label_specific", "labels") if key in data), None)
    if key is None:
        raise ValueError(f"{where} holds {some_of(data)}, but neither label_specific nor labels")
    images = _npz_images if name.endswith(".npz") else _png_images
    return _numbered(part, data[key]), partial(images, tree, name)


def _tiered_labels_file(name: str) -> str:
    return re.sub(r"_images(?:_png\.pkl|\.npz)$", "_labels.pkl", name)


def _numbered(part: str, labels: Iterable[Any]) -> list[str]:
    """The class name of each image, made of its part and its label, such as "train-007"."""
    names = []
    for label in labels:
        try:
            number = int(label)
        except (TypeError, ValueError, OverflowError):
            number = -1  # refused below
        if number < 0 or (isinstance(label, float | np.floating) and number != label):
            raise ValueError(f"the part {part} has the label {str(label)[:40]}; labels are whole numbers from 0")
        names.append(f"{part}-{number:03d}")
    return names


def _pickled_images(tree: Tree, name: str, key: str) -> Iterator[np.ndarray]:
    """Yield the images of a pickled array; the array of one part is in memory as a whole."""
    array = load_mapping(tree, name, key)[key]
    if isinstance(array, list | tuple) and all(isinstance(image, np.ndarray) for image in array):
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: images are a {type(array).__name__}; uint8 [image, h, w, 3] is needed")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(f"{name}: images are {array.dtype} of shape {array.shape}; uint8 [image, h, w, 3] is needed")
    yield from array


def _png_images(tree: Tree, name: str) -> Iterator[bytes]:
    with tree.open(name) as file:
        yield from packed_images(file, where=name)


def _npz_images(tree: Tree, name: str) -> Iterator[np.ndarray]:
    """Yield the rows of the array ``images``, read one by one from the zip that an .npz file is."""
    with stored_array(tree, name, "images") as stored:
        shape = stored.shape
        if len(shape) != 4 or stored.fortran or stored.dtype != np.uint8 or shape[3] != 3:
            raise ValueError(f"{name}: images are {stored.dtype} of shape {shape}; uint8 [image, h, w, 3] is needed")
        size = prod(shape[1:])
        if not 0 < size <= 3 * MAX_PIXELS:
            raise ValueError(f"{name}: images are of shape {shape}; an image has 1 to {MAX_PIXELS} pixels")
        for _ in range(shape[0]):
            content = stored.file.read(size)
            if len(content) < size:
                raise ValueError(f"{name} ends before its last image; fetch it again")
            yield np.frombuffer(content, np.uint8).reshape(shape[1:])
