"""What a reader of one layout hands over: names first, cheaply; images only when a cache is to be filled."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hessian_tools.data.tree import Tree

PARTS = {
    "train": ("train", "base", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "novel", "testing"),
}
PART_OF = {alias: part for part, aliases in PARTS.items() for alias in aliases}
GIVEN = "given"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

Box = tuple[int, int, int, int]


class Picture(NamedTuple):
    """One image as the source holds it.

    of: position of its class. where: for messages. content: an image file's bytes, or uint8 pixels [h, w] or [h, w, 3].
    box: what to cut out first, as (left, top, right, bottom) in pixels from 0, right and bottom excluded.
    """

    of: int
    where: str
    content: bytes | np.ndarray
    box: Box | None = None


@dataclass(frozen=True)
class Split:
    """A named division of classes. rule: in words, with its source. parts: class names by train, val, test."""

    name: str
    rule: str
    parts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Contents:
    """What is in the source: counts of images by class, the splits that go with it (the default first), the images.

    pictures: reads them again from the start whenever it is called; of one class always in the same order.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[Split, ...]
    pictures: Callable[[], Iterator[Picture]]


@dataclass(frozen=True)
class Match:
    """A layout that was recognised by the names of its files.

    layout: in words. name: of the data set, short. files: what the images follow from. read: opens them.
    image_size, channels: the data set's customary ones. ink: dark on light, to be inverted.
    boxes: whether images can be cut to the box of their object. crop: whether they are unless told otherwise.
    """

    layout: str
    name: str
    files: Sequence[str]
    read: Callable[[Tree, bool], Contents] = field(repr=False)
    image_size: int = 84
    channels: int = 3
    ink: bool = False
    boxes: bool = False
    crop: bool = False


def is_image(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def image_files(tree: Tree, classes: Mapping[str, Sequence[str]], splits: tuple[Split, ...]) -> Contents:
    """Contents of classes whose images are files of the tree, in the order of the names given."""

    def pictures() -> Iterator[Picture]:
        for position, names in enumerate(classes.values()):
            for name in names:
                yield Picture(position, name, tree.read(name))

    return Contents(tuple(classes), tuple(len(names) for names in classes.values()), splits, pictures)


def given_split(source: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """The split that the data themselves come in."""
    return named_split(GIVEN, f"as given by {source}", parts)


def named_split(name: str, rule: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """A split with its parts in order, without parts that hold no class, and with no name twice in one."""
    members = {part: tuple(dict.fromkeys(parts.get(part, ()))) for part in PARTS}
    return Split(name, rule, {part: names for part, names in members.items() if names})


def by_rule(name: str, rule: str, class_names: Sequence[str], part_of: Callable[[str], str]) -> Split:
    """A split by a function of the class name."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for each in class_names:
        parts[part_of(each)].append(each)
    return named_split(name, rule, parts)


def grouped(labels: Sequence[str]) -> dict[str, list[int]]:
    """Rows by label, labels in sorted order."""
    rows: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows[label].append(row)
    return rows


def same_length(where: str, images: int, labels: int) -> None:
    """ValueError where there is not one label to each image."""
    if images != labels:
        raise ValueError(f"{where} has {images} images but {labels} labels; the files do not belong together")
