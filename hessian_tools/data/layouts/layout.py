"""What the layouts have in common: how a data set is recognised by its file names, and what its reader returns.

A reader returns class names and counts first, which is cheap; images follow only when a cache is to be filled.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hessian_tools.data.safe_pickle import load_pickle
from hessian_tools.data.splits import PART_OF, Split
from hessian_tools.data.tree import Tree

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Box = tuple[int, int, int, int]
Images = Callable[[], Iterator[bytes | np.ndarray]]


class Picture(NamedTuple):
    """One image as the source stores it.

    class_index: the position of its class. where: what messages call it. content: the bytes of an image file, or
    uint8 pixels [h, w] or [h, w, 3]. box: what to cut out first, as (left, top, right, bottom) in pixels counted
    from 0, with right and bottom excluded.
    """

    class_index: int
    where: str
    content: bytes | np.ndarray
    box: Box | None = None


@dataclass(frozen=True)
class Contents:
    """What a source contains: the classes, the number of images of each, the splits, and the images.

    splits: those that go with the data, the default one first. pictures: reads the images from the start whenever it
    is called; those of one class always come in the same order.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[Split, ...]
    pictures: Callable[[], Iterator[Picture]]


@dataclass(frozen=True)
class Match:
    """A data set that was recognised by the names of its files.

    layout: a description for messages. name: a short name of the data set. files: the files that the images follow
    from. read: reads them, given the tree and whether to cut images to their boxes. image_size, channels: the usual
    ones of the data set. invert: whether images are dark ink on light paper, to be turned into light on dark.
    has_boxes: whether the data say where the object of each image is. crop: whether images are cut to that box unless
    the user says otherwise.
    """

    layout: str
    name: str
    files: Sequence[str]
    read: Callable[[Tree, bool], Contents] = field(repr=False)
    image_size: int = 84
    channels: int = 3
    invert: bool = False
    has_boxes: bool = False
    crop: bool = False


# Recognising


def is_image(name: str) -> bool:
    """Whether a file name ends like that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def by_home(tree: Tree, pattern: re.Pattern[str], *, images: bool = False) -> dict[str, list[re.Match[str]]]:
    """The files whose whole name matches a pattern, grouped by the folder that the pattern's group ``home`` matches.

    images: whether only image files count.
    """
    homes: dict[str, list[re.Match[str]]] = {}
    for name in tree.files:
        matched = pattern.fullmatch(name)
        if matched and (is_image(name) or not images):
            homes.setdefault(matched["home"], []).append(matched)
    return homes


def parts_by_home(tree: Tree, pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """As ``by_home``, for one file a part: the file of train, val and test, by the pattern's group ``part``.

    Where two files name the same part, the last in the order of their names counts.
    """
    homes = {
        home: {PART_OF[matched["part"]]: matched.string for matched in matches if matched["part"] in PART_OF}
        for home, matches in by_home(tree, pattern).items()
    }
    return {home: files for home, files in homes.items() if files}


def in_home(home: str) -> str:
    """The words that tell where a data set lies; none where it lies at the path that the user named.

    >>> in_home("a/b/"), in_home("")
    (' in a/b', '')
    """
    return f" in {home.rstrip('/')}" if home else ""


# Reading


def by_folder(images: Sequence[str]) -> dict[str, list[str]]:
    """Image files by the folder they lie in, which names their class; classes and images are sorted.

    Raises ValueError where folders of the same name lie in two places.
    """
    classes: dict[str, list[str]] = {}
    for name in sorted(images):
        classes.setdefault(name.split("/")[-2], []).append(name)
    for class_name, names in classes.items():
        folders = sorted({name.rpartition("/")[0] for name in names})
        if len(folders) > 1:
            raise ValueError(f"the class {class_name} lies in two places, {folders[0]} and {folders[1]}; keep one")
    return dict(sorted(classes.items()))


def image_files(
    tree: Tree,
    classes: Mapping[str, Sequence[str]],
    splits: tuple[Split, ...],
    *,
    boxes: Mapping[str, Box] | None = None,
) -> Contents:
    """Contents of classes whose images are files of the tree, in the order given; boxes by file name."""

    def pictures() -> Iterator[Picture]:
        for class_index, names in enumerate(classes.values()):
            for name in names:
                yield Picture(class_index, name, tree.read(name), (boxes or {}).get(name))

    return Contents(tuple(classes), tuple(len(names) for names in classes.values()), splits, pictures)


def labelled_images(
    class_names: tuple[str, ...], files: Mapping[str, tuple[list[int], Images]], splits: tuple[Split, ...]
) -> Contents:
    """Contents of files that hold many images each.

    files: for the name of each file, the positions of its images' classes, and a function that reads the images in
    the same order.
    """
    class_indices = [index for indices, _ in files.values() for index in indices]
    counts = tuple(int(n) for n in np.bincount(class_indices, minlength=len(class_names)))

    def pictures() -> Iterator[Picture]:
        for name, (indices, images) in files.items():
            num_images = 0
            for num_images, content in enumerate(images(), start=1):
                if num_images <= len(indices):  # further images are only counted, for the message
                    yield Picture(indices[num_images - 1], f"image {num_images - 1} of {name}", content)
            check_same_length(name, num_images, len(indices))

    return Contents(class_names, counts, splits, pictures)


def load_mapping(tree: Tree, name: str, *keys: str) -> Mapping[str, Any]:
    """The mapping in a pickle file; ValueError unless it is one and has the keys."""
    with tree.open(name) as file:
        data = load_pickle(file, where=name)
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__}, not a mapping with {', '.join(keys) or 'labels'}")
    # Keys that Python 2 wrote as strings can come out as bytes.
    data = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in data.items()}
    missing = [key for key in keys if key not in data]
    if missing:
        held = ", ".join(map(str, data))
        raise ValueError(f"{name} holds {held} but not {missing[0]!r}; it may belong to another data set")
    return data


def check_same_length(where: str, images: int, labels: int) -> None:
    """ValueError unless there is one label for each image."""
    if images != labels:
        raise ValueError(f"{where} has {images} images but {labels} labels; the files do not belong together")
