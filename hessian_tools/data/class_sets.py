"""Sets of images grouped by class: in memory, with classes of equal size, or in a file, with classes of any size.

In this file a split is one part of the classes, such as "train", "val" or "test", and the position of a class is its
index in ``class_names``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hessian_tools.data.episodes import Examples, Ways, text_digest
from hessian_tools.validation import check_choice

TURNS = ("", "/rot090", "/rot180", "/rot270")  # the endings of the class names for images turned by 0, 90, ... degrees


class DisjointClasses:
    """The base of all sets of classes: it checks the splits and looks a split up by name.

    Raises ValueError if a class is in two splits, if a split holds a position that no class has, or if all splits are
    empty.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        members = sorted(position for positions in self.splits.values() for position in positions)
        if len(set(members)) != len(members):
            raise ValueError(f"a class of {self.name} is in two splits; meta-test classes must be new ones")
        if not members:
            raise ValueError(f"the splits of {self.name} hold no class; give at least one split, such as 'train'")
        if members[0] < 0 or members[-1] >= len(self.class_names):
            outside = members[0] if members[0] < 0 else members[-1]
            last = len(self.class_names) - 1
            raise ValueError(f"a split of {self.name} holds class {outside}; use positions 0 to {last}")

    def classes(self, split: str) -> tuple[int, ...]:
        """The positions of a split's classes; an unknown name raises ValueError and suggests the nearest."""
        return self.splits[check_choice("split", split, self.splits)]


@dataclass(frozen=True, eq=False)
class ImageClasses(DisjointClasses):
    """Images grouped by class, with the same number of images in each class.

    images: uint8 [class, example, channel, height, width], where ink (or light) has the high values. The array may be
        memory-mapped, and is never written to.
    splits: for the name of each split, the positions of its classes; no class may be in two splits.
    digest: SHA-256 (hex) of the images; the reader that made this object chooses which bytes it covers.
    scale: the pixel value that stands for 1.0: 1 for binary images, and 255 for grey or colour images.
    """

    name: str
    images: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    splits: Mapping[str, tuple[int, ...]] = field(repr=False)
    digest: str
    scale: int = 1

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 5:
            raise ValueError(
                f"images of {self.name} are {self.images.dtype} of shape {self.images.shape}; "
                "use uint8 [class, example, channel, height, width]"
            )
        count, num_names = len(self.images), len(set(self.class_names))
        if len(self.class_names) != count or num_names != count:
            raise ValueError(
                f"{self.name} has {count} classes of images and {num_names} different class names; "
                "give one name to each class"
            )
        super().__post_init__()

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return self.images.shape[2:]

    def count(self, position: int) -> int:
        """The number of images of a class; all classes have the same number."""
        return self.images.shape[1]

    def take(self, classes: Ways, examples: Examples) -> Float[Tensor, "row channel height width"]:
        """The requested images, divided by ``scale``. No other image is read or converted.

        The shapes of the arguments are [way] and [example, way]. The rows come example by example: first the first
        example of every class, then the second of each.
        """
        return _unit_floats(self.images[classes, examples], self.scale)


@dataclass(frozen=True, eq=False)
class StoredClasses(DisjointClasses):
    """Images grouped by class in an .npy file of uint8 [image, channel, height, width], one class after the other.

    counts: the number of images of each class, in the order of the file. pixels_digest: SHA-256 (hex) of the pixels.
    layout: a description of the source of the images. split_rule: how the classes are divided, in words.
    rotations: True if each class of the file stands for four classes: its images turned by 0, 90, 180 and 270 degrees
        counterclockwise. ``class_names`` and ``splits`` then refer to these four times as many classes, whereas
        ``counts`` refers to the classes of the file.

    A pickle of this object holds the path of the file instead of its images, so that no images are sent to other
    processes.
    """

    name: str
    file: Path
    counts: tuple[int, ...]
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    pixels_digest: str
    layout: str
    split_rule: str
    rotations: bool = False
    scale: int = 255

    def __post_init__(self) -> None:
        super().__post_init__()
        # The file is mapped now and not only at the first use. So it stays readable even if another process puts a
        # newer file in its place in the meantime.
        _ = self.images

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def images(self) -> np.ndarray:
        """The file, memory-mapped for reading."""
        try:
            return np.load(self.file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"the decoded images {self.file} are gone; open the data set again") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the pixels, the class names, the class sizes, and ``rotations``."""
        shape = [int(n) for n in self.images.shape]
        return text_digest(self.pixels_digest, shape, self.class_names, self.counts, self.rotations)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return self.images.shape[1:]

    @property
    def turns(self) -> int:
        """The number of classes that one class of the file stands for: 4 with rotations, else 1."""
        return len(TURNS) if self.rotations else 1

    def count(self, position: int) -> int:
        """The number of images of a class."""
        return self.counts[position // self.turns]

    def take(self, classes: Ways, examples: Examples) -> Float[Tensor, "row channel height width"]:
        """The requested images, turned as their class says, and divided by ``scale``. No other image is read.

        classes: [way]. examples: [example, way]. The rows come example by example, as those of ``ImageClasses.take``.
        """
        rows = self._starts[classes // self.turns] + examples  # the rows of the file, [example, way]
        pixels = np.asarray(self.images[rows])  # [example, way, channel, height, width]
        for way, turn in enumerate(classes % self.turns):  # turn: how many quarter turns the class stands for
            if turn:
                pixels[:, way] = np.rot90(pixels[:, way], int(turn), axes=(-2, -1))
        return _unit_floats(pixels, self.scale)

    @cached_property
    def _starts(self) -> Int[np.ndarray, " class"]:
        """The row of the file at which each class begins."""
        return np.cumsum(self.counts, dtype=np.int64) - self.counts


def turned_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the four turned classes that each class stands for; the four names of a class follow each other.

    >>> turned_names(("a",))
    ('a', 'a/rot090', 'a/rot180', 'a/rot270')
    """
    return tuple(name + turn for name in class_names for turn in TURNS)


def turned_positions(positions: tuple[int, ...]) -> tuple[int, ...]:
    """For classes at these positions, the positions of their turned classes in ``turned_names``, four for each class.

    >>> turned_positions((1,))
    (4, 5, 6, 7)
    """
    return tuple(len(TURNS) * position + turn for position in positions for turn in range(len(TURNS)))


def _unit_floats(pixels: UInt8[np.ndarray, "example way ..."], scale: int) -> Float[Tensor, "row ..."]:
    """The stored values as float32 in new memory, divided by ``scale``; the rows come example by example."""
    x = torch.from_numpy(pixels).flatten(0, 1).to(torch.float32)
    return x if scale == 1 else x / scale
