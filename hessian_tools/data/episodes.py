"""Few-shot episodes: what a task is, and how image classes become one.

An episode is a function of (seed, split, index) alone. It is drawn from NumPy's frozen
generator, so that task 17 of the test split is the same task on every machine, and nobody
needs to store or pass on drawn tasks.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from functools import cached_property
from operator import index as as_index
from typing import NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from hessian_tools.rng import numpy_stream

SPLITS = ("train", "val", "test")

# Part of every digest. Raise it whenever the same (seed, split, index) would give another episode.
EPISODE_RECIPE = "episodes-1"

Batch = tuple[Float[Tensor, "example ..."], Int64[Tensor, " example"] | Float[Tensor, "example output"]]


class Episode(NamedTuple):
    """One task: a support set to adapt on and a query set to judge by, each a pair (x, y).

    Classification: x float32 [example, channel, height, width] in [0, 1]; y int64 [example] in 0..ways-1.
    Regression: x float32 [example, 1]; y float32 [example, 1]. Everything lies on the CPU.
    """

    support: Batch
    query: Batch


@runtime_checkable
class TaskSource(Protocol):
    """What training and measuring ask of a supply of tasks; image and regression tasks both meet it."""

    @property
    def kind(self) -> str:
        """``"classification"`` or ``"regression"``: which criterion fits."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one x, without the example axis."""

    @property
    def outputs(self) -> int:
        """How many numbers a network puts out for one x."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything the episodes follow from, for a run's manifest."""

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split; the same whenever and wherever it is asked for."""


@runtime_checkable
class ClassSet(Protocol):
    """Examples by class, and classes by split: what the sampler draws from, whatever the examples are."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class, by its position."""

    @property
    def splits(self) -> Mapping[str, tuple[int, ...]]:
        """Class positions by split name."""

    @property
    def scale(self) -> int:
        """The stored value that stands for 1.0."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the examples."""

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def classes(self, split: str) -> tuple[int, ...]:
        """Positions of a split's classes; ValueError where there is no such split."""

    def count(self, position: int) -> int:
        """Number of examples of the class at a position."""

    def take(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> Float[Tensor, "row ..."]:
        """The examples named, example by example and within each way by way, as float32."""


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """A set of images by class, each class with the same number of them.

    images: uint8 [class, example, channel, height, width], ink (or light) high; may be memory-mapped, and is
        never written to.
    splits: class positions by split name; no class may be in two splits.
    scale: the pixel value that stands for 1.0, so 1 for binary images and 255 for grey or colour.
    digest: SHA-256 (hex) of the images, as the reader that made this object defines it.
    """

    name: str
    images: np.ndarray
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    digest: str
    scale: int = 1

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 5:
            raise ValueError(
                f"images of {self.name} are {self.images.dtype} of shape {self.images.shape}; "
                "use uint8 [class, example, channel, height, width]"
            )
        count = len(self.images)
        if len(self.class_names) != count or len(set(self.class_names)) != count:
            raise ValueError(
                f"{self.name} has {count} classes of images and {len(set(self.class_names))} different class names; "
                "give one name to each class"
            )
        check_splits(self.name, self.splits, count)

    @property
    def examples_per_class(self) -> int:
        """Number of images of each class."""
        return self.images.shape[1]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(channel, height, width)."""
        return self.images.shape[2:]

    def classes(self, split: str) -> tuple[int, ...]:
        """Positions of a split's classes; ValueError, with the nearest name, where there is no such split."""
        return self.splits[check_choice("split", split, self.splits)]

    def count(self, position: int) -> int:
        """Number of images of a class: of each the same."""
        return self.examples_per_class

    def take(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> Float[Tensor, "row channel height width"]:
        """Gather by index, then scale: only the images asked for are ever read or converted."""
        return unit_floats(self.images[classes, examples], self.scale)


@dataclass(frozen=True)
class ImageTasks:
    """N-way K-shot classification tasks from a set of classes: of images, or of their features.

    ways: classes in an episode. shots, queries: images of each class in the support and query set.

    Classes and their labels are a random draw without repetition; within a class, too, no example
    occurs twice. The support set does not depend on ``queries``, and what fewer queries or ways
    show, more of them show first: 5 and 15 queries judge the same adapted network.

    Examples come interleaved: labels 0, 1, .., ways-1, 0, 1, ..; row r has label r % ways. So the
    first n * ways rows of a query set are the query set with n queries.
    """

    dataset: ClassSet
    _: KW_ONLY
    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            check_count(name, getattr(self, name))
        self._check_examples()
        # A split with too few classes is refused when it is asked for, not before: 64-way training with 16
        # validation classes is fine until somebody validates.
        self._check_ways(max(self.dataset.splits, key=lambda split: len(self.dataset.splits[split])))

    @property
    def kind(self) -> str:
        """``"classification"``."""
        return "classification"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channel, height, width) of images."""
        return self.dataset.example_shape

    @property
    def outputs(self) -> int:
        """One logit for each of the ways."""
        return int(self.ways)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the images' digest, the splits, ways, shots, queries and the drawing recipe."""
        splits = sorted((split, [int(p) for p in positions]) for split, positions in self.dataset.splits.items())
        sizes = [int(size) for size in (self.ways, self.shots, self.queries)]
        return text_digest(EPISODE_RECIPE, self.dataset.digest, int(self.dataset.scale), splits, sizes)

    def episode(self, *, seed: SupportsIndex, split: str, index: SupportsIndex) -> Episode:
        """Task number ``index`` (0, 1, ...) of a split.

        ValueError for an unknown split, one with fewer classes than ways, or a negative index.
        """
        classes = np.asarray(self.dataset.classes(split))
        self._check_ways(split)
        rng = episode_stream(seed, split, index)
        # Whole permutations, cut afterwards: the draw itself must not know shots, queries or ways.
        chosen = classes[rng.permutation(len(classes))[: self.ways]]
        wanted = self.shots + self.queries
        orders = [rng.permutation(self.dataset.count(int(position)))[:wanted] for position in chosen]
        examples = np.stack(orders, axis=1)  # [example, way]
        return Episode(self._batch(chosen, examples[: self.shots]), self._batch(chosen, examples[self.shots :]))

    def _batch(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> tuple[Float[Tensor, "row ..."], Int64[Tensor, " row"]]:
        x = self.dataset.take(classes, examples)
        return x, torch.arange(len(x), device="cpu") % self.ways

    def _check_examples(self) -> None:
        data, wanted = self.dataset, self.shots + self.queries
        members = [position for positions in data.splits.values() for position in positions]
        counts = {position: data.count(position) for position in members}
        smallest = min(members, key=counts.__getitem__)
        if wanted > counts[smallest]:
            even = len(set(counts.values())) == 1
            which = data.name if even else f"the class {data.class_names[smallest]!r} of {data.name}"
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {wanted} images of each class "
                f"but {which} has {counts[smallest]}; use at most {counts[smallest]} in all"
            )

    def _check_ways(self, split: str) -> None:
        available = len(self.dataset.splits[split])
        if self.ways > available:
            raise ValueError(
                f"ways={self.ways} but the split {split!r} of {self.dataset.name} has {available} classes; "
                f"use at most {available}"
            )


def unit_floats(pixels: UInt8[np.ndarray, "example way ..."], scale: int) -> Float[Tensor, "row ..."]:
    """Stored values as float32, the value ``scale`` as 1, in new memory."""
    x = torch.from_numpy(pixels).flatten(0, 1).to(torch.float32)
    return x if scale == 1 else x / scale


def check_splits(name: str, splits: Mapping[str, tuple[int, ...]], count: int) -> None:
    """ValueError unless every class is in one split at most, and there is one."""
    members = sorted(position for positions in splits.values() for position in positions)
    if len(set(members)) != len(members):
        raise ValueError(f"a class of {name} is in two splits; meta-test classes must be new ones")
    if not members:
        raise ValueError(f"the splits of {name} hold no class; give at least one split, such as 'train'")
    if members[0] < 0 or members[-1] >= count:
        outside = members[0] if members[0] < 0 else members[-1]
        raise ValueError(f"a split of {name} holds class {outside}; use positions 0 to {count - 1}")


def episode_stream(seed: SupportsIndex, split: str, index: SupportsIndex) -> np.random.RandomState:
    """The generator of one episode. TypeError unless seed and index are whole numbers."""
    # as_index turns NumPy's integers into Python's: they print differently, hence seed differently.
    if as_index(index) < 0:
        raise ValueError(f"index={index} but episodes are numbered from 0; use 0 or more")
    return numpy_stream(as_index(seed), "episode", str(split), as_index(index))


def text_digest(*parts: object) -> str:
    """SHA-256 (hex) of the parts' text; parts must be plain Python values, which print alike everywhere."""
    return hashlib.sha256("/".join(repr(part) for part in parts).encode()).hexdigest()


def check_count(name: str, value: object) -> None:
    """ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} but it counts things; use a whole number of at least 1")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of those allowed; else ValueError with the list and the nearest."""
    names = list(allowed)
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(names)}{hint}")
