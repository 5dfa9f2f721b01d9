"""Pickles of pixels, one file to a split: miniImageNet's cache, FC100 and its kin, tieredImageNet."""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from hessian_tools.data.layouts.layout import (
    PART_OF,
    Contents,
    Match,
    Picture,
    given_split,
    grouped,
    same_length,
)
from hessian_tools.data.safe_pickle import load_pickle, packed_images
from hessian_tools.data.tree import Tree

LOOKS_FOR = (
    "miniImageNet: mini-imagenet-cache-{train,val,test}.pkl (or -validation)",
    "FC100, CIFAR-FS, miniImageNet: {FC100,CIFAR_FS,miniImageNet_category_split}_{train,val,test}.pickle",
    "tieredImageNet: {train,val,test}_images_png.pkl or _images.npz, with {train,val,test}_labels.pkl",
)
CACHE = re.compile(r"(?P<home>(?:.*/)?)mini-imagenet-cache-(?P<part>train|val|validation|test)\.pkl")
LABELLED = re.compile(
    r"(?P<home>(?:.*/)?)(?P<set>FC100|CIFAR_FS|miniImageNet_category_split)_(?P<part>train|val|test)\.(?:pickle|pkl)"
)
TIERED = re.compile(r"(?P<home>(?:.*/)?)(?P<part>train|val|test)_images(?:_png\.pkl|\.npz)")
SETS = {"FC100": ("fc100", 32), "CIFAR_FS": ("cifar-fs", 32), "miniImageNet_category_split": ("miniimagenet", 84)}

Rows = Callable[[], Iterator[bytes | np.ndarray]]


def find(tree: Tree) -> list[Match]:
    """Matches of all three kinds, one for each folder that holds them."""
    return [*_find_caches(tree), *_find_labelled(tree), *_find_tiered(tree)]


def _find_caches(tree: Tree) -> Iterator[Match]:
    for home, files in _by_home(tree, CACHE).items():
        yield Match(
            f"miniImageNet pickles{_in(home)}", "miniimagenet", list(files.values()), partial(_read_caches, files=files)
        )


def _find_labelled(tree: Tree) -> Iterator[Match]:
    for set_name, (name, size) in SETS.items():
        for home, files in _by_home(tree, LABELLED, only=set_name).items():
            read = partial(_read_labelled, files=files)
            yield Match(f"{set_name} pickles{_in(home)}", name, list(files.values()), read, image_size=size)


def _find_tiered(tree: Tree) -> Iterator[Match]:
    for home, files in _by_home(tree, TIERED).items():
        labels = [f"{home}{part}_labels.pkl" for part in files]
        for name, beside in zip(files.values(), labels, strict=True):
            if beside not in tree.files:
                raise ValueError(f"{tree.path} holds {name} but no {beside}, its labels")
        kind = "PNG pickles" if any(name.endswith(".pkl") for name in files.values()) else "npz files"
        read = partial(_read_tiered, files=files, home=home)
        yield Match(f"tieredImageNet {kind}{_in(home)}", "tieredimagenet", [*files.values(), *labels], read)


def _by_home(tree: Tree, pattern: re.Pattern[str], *, only: str | None = None) -> dict[str, dict[str, str]]:
    """Files by the folder they lie in and the part they hold; a pickle of PNGs goes before an npz of the same."""
    homes: dict[str, dict[str, str]] = {}
    for name in sorted(tree.files):
        found = pattern.fullmatch(name)
        if found and (only is None or found["set"] == only):
            homes.setdefault(found["home"], {})[PART_OF[found["part"]]] = name
    return homes


def _in(home: str) -> str:
    return f" in {home.rstrip('/')}" if home else ""


def _read_caches(tree: Tree, crop: bool, *, files: Mapping[str, str]) -> Contents:
    """``image_data`` [image, 84, 84, 3] and ``class_dict``, which lists the rows of each class."""
    labels, rows = {}, {}
    for part, name in files.items():
        data = _mapping(tree, name, "image_data", "class_dict")
        labels[part] = _class_dict_labels(data["class_dict"], len(data["image_data"]), name)
        rows[part] = partial(_cached_rows, tree, name, "image_data")
    return _labelled_contents(labels, rows, files)


def _class_dict_labels(class_dict: Any, num_images: int, where: str) -> list[str]:
    labels = [""] * num_images
    for label, members in class_dict.items():
        for row in members:
            if not 0 <= row < num_images:
                raise ValueError(f"{where}: class {label} lists image {row} of {num_images}; fetch the file again")
            labels[row] = str(label)
    if "" in labels:
        raise ValueError(f"{where}: image {labels.index('')} is in no class; fetch the file again")
    return labels


def _read_labelled(tree: Tree, crop: bool, *, files: Mapping[str, str]) -> Contents:
    """``data`` [image, h, w, 3] and ``labels``, whole numbers."""
    labels, rows = {}, {}
    for part, name in files.items():
        data = _mapping(tree, name, "data", "labels")
        same_length(name, len(data["data"]), len(data["labels"]))
        labels[part] = [f"{part}-{int(label):03d}" for label in data["labels"]]
        rows[part] = partial(_cached_rows, tree, name, "data")
    return _labelled_contents(labels, rows, files)


def _read_tiered(tree: Tree, crop: bool, *, files: Mapping[str, str], home: str) -> Contents:
    """Labels first, then images one by one: a split is never in memory whole."""
    labels, rows = {}, {}
    for part, name in files.items():
        where = f"{home}{part}_labels.pkl"
        labels[part] = [f"{part}-{int(label):03d}" for label in _tiered_labels(tree, where)]
        streamed = _npz_rows if name.endswith(".npz") else _png_rows
        rows[part] = partial(streamed, tree, name)
    return _labelled_contents(labels, rows, files)


def _tiered_labels(tree: Tree, where: str) -> Any:
    data = _mapping(tree, where)
    for key in ("label_specific", "labels"):
        if key in data:
            return data[key]
    raise ValueError(f"{where} holds {', '.join(map(str, data))} but neither label_specific nor labels")


def _labelled_contents(labels: Mapping[str, list[str]], rows: Mapping[str, Rows], files: Mapping[str, str]) -> Contents:
    """Contents of one list of labels and one stream of images to a part."""
    members = {part: grouped(found) for part, found in labels.items()}
    names = tuple(label for groups in members.values() for label in groups)
    counts = tuple(len(found) for groups in members.values() for found in groups.values())
    position = {name: i for i, name in enumerate(names)}
    split = given_split(", ".join(name.rpartition("/")[2] for name in files.values()), members)

    def pictures() -> Iterator[Picture]:
        for part, stream in rows.items():
            row = 0
            for row, content in enumerate(stream(), start=1):
                if row <= len(labels[part]):
                    yield Picture(position[labels[part][row - 1]], f"image {row - 1} of {files[part]}", content)
            same_length(files[part], row, len(labels[part]))

    return Contents(names, counts, (split,), pictures)


def _cached_rows(tree: Tree, name: str, key: str) -> Iterator[np.ndarray]:
    """The whole array has to be in memory, of one split at a time."""
    yield from _pixels(_mapping(tree, name, key)[key], name)


def _png_rows(tree: Tree, name: str) -> Iterator[bytes]:
    with tree.open(name) as file:
        yield from packed_images(file, where=name)


def _npz_rows(tree: Tree, name: str) -> Iterator[np.ndarray]:
    """Rows of ``images`` straight out of the zip that an npz is."""
    with tree.open(name) as file, zipfile.ZipFile(file) as archive:
        if "images.npy" not in archive.namelist():
            raise ValueError(f"{name} holds {', '.join(archive.namelist())} but no array 'images'")
        with archive.open("images.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(member)
            if len(shape) != 4 or fortran or dtype != np.uint8:
                raise ValueError(f"{name}: images are {dtype} of shape {shape}; uint8 [image, h, w, 3] was expected")
            size = int(np.prod(shape[1:]))
            for _ in range(shape[0]):
                yield np.frombuffer(member.read(size), np.uint8).reshape(shape[1:])


def _mapping(tree: Tree, name: str, *keys: str) -> Mapping[str, Any]:
    with tree.open(name) as file:
        data = load_pickle(file, where=name)
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__}, not a mapping with {', '.join(keys) or 'labels'}")
    data = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in data.items()}
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(f"{name} holds {', '.join(map(str, data))} but no {missing[0]!r}; is it another file?")
    return data


def _pixels(images: Any, where: str) -> np.ndarray:
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(f"{where}: images are {array.dtype} of shape {array.shape}; uint8 [image, h, w, 3] is needed")
    return array
