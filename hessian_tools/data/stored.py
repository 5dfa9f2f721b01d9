"""Images decoded once into a memory-mapped file, and sampled from there: classes may differ in size."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.data.episodes import check_choice, check_splits, text_digest, unit_floats

TURNS = 4


@dataclass(frozen=True, eq=False)
class StoredClasses:
    """A set of images by class in an .npy file of uint8 [image, channel, height, width], class after class.

    counts: images of each class of the file, in its order. pixels_digest: SHA-256 (hex) of the pixels.
    rotations: each class of the file stands for four, its images turned by 0, 90, 180 and 270 degrees counterclockwise;
        class_names and splits are then those of the four times as many classes.
    layout, split_rule: what the data were read from and how they are divided, in words.

    It is the file's name that is passed on to other processes, not the images.
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
        check_splits(self.name, self.splits, len(self.class_names))
        _ = self.images  # mapped now, it can be read even after another process has made a newer cache

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def images(self) -> np.ndarray:
        """The file, memory-mapped for reading."""
        try:
            return np.load(self.file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise ValueError(f"the decoded images {self.file} are gone; open the data set again") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the pixels, the classes and their sizes, and of whether they are turned."""
        shape = [int(n) for n in self.images.shape]
        return text_digest(self.pixels_digest, shape, self.class_names, self.counts, self.rotations)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return self.images.shape[1:]

    @property
    def turns(self) -> int:
        """How many classes one class of the file stands for."""
        return TURNS if self.rotations else 1

    def classes(self, split: str) -> tuple[int, ...]:
        """Positions of a split's classes; ValueError, with the nearest name, where there is no such split."""
        return self.splits[check_choice("split", split, self.splits)]

    def count(self, position: int) -> int:
        """Number of images of a class."""
        return self.counts[position // self.turns]

    def take(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> Float[Tensor, "row channel height width"]:
        """Gather by index, turn, then scale: only the images asked for are ever read or converted."""
        pixels = np.asarray(self.images[self._starts[classes // self.turns] + examples])
        for way, turn in enumerate(classes % self.turns):
            if turn:
                pixels[:, way] = np.rot90(pixels[:, way], int(turn), axes=(-2, -1))
        return unit_floats(pixels, self.scale)

    @cached_property
    def _starts(self) -> Int[np.ndarray, " class"]:
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)


def turned_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the four classes that each class stands for, side by side.

    >>> turned_names(("a",))
    ('a', 'a/rot090', 'a/rot180', 'a/rot270')
    """
    endings = ("", "/rot090", "/rot180", "/rot270")
    return tuple(name + ending for name in class_names for ending in endings)


def turned_positions(positions: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of the classes of ``turned_names``.

    >>> turned_positions((1,))
    (4, 5, 6, 7)
    """
    return tuple(TURNS * position + turn for position in positions for turn in range(TURNS))
