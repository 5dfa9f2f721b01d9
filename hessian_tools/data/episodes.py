"""Few-shot episodes: what a task is, and how one is drawn from the classes of a data set.

An episode is a function of (seed, split, index) alone. It is drawn from NumPy's frozen generator, so that task 17 of
the test split is the same task on every machine, and drawn tasks need not be stored or passed on.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from operator import index as as_index
from typing import ClassVar, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from hessian_tools.data.splits import did_you_mean
from hessian_tools.rng import numpy_stream

SPLITS = ("train", "val", "test")

# This is part of every digest. Raise it whenever the same (seed, split, index) would give another episode.
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
    """What training and measuring need of a supply of tasks, whether of images, of features or of regression."""

    @property
    def kind(self) -> str:
        """``"classification"`` or ``"regression"``, which tells the criterion that fits."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one x, without the example axis."""

    @property
    def outputs(self) -> int:
        """How many numbers a network puts out for one x."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that the episodes follow from, for a run's manifest."""

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split; the same whenever and wherever it is asked for."""


@runtime_checkable
class ClassSet(Protocol):
    """Examples by class, and classes by split: what episodes are drawn from, whatever the examples are."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class, by its position."""

    @property
    def splits(self) -> Mapping[str, tuple[int, ...]]:
        """The positions of the classes by the name of the split."""

    @property
    def scale(self) -> int:
        """The stored value that stands for 1.0."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the examples."""

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of one example."""

    def classes(self, split: str) -> tuple[int, ...]:
        """The positions of a split's classes; ValueError where there is no such split."""

    def count(self, position: int) -> int:
        """The number of examples of the class at a position."""

    def take(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> Float[Tensor, "row ..."]:
        """The examples asked for as float32: all ways of the first example, then all ways of the second, and so on."""


@dataclass(frozen=True)
class ImageTasks:
    """N-way K-shot classification tasks from a set of classes, of images or of their features.

    ways: classes in an episode. shots, queries: images of each class in the support set and in the query set.

    The classes and their labels are drawn at random without repetition, and so are the examples of a class. The
    support set does not depend on ``queries``; and with more queries or ways, the episode begins with what it shows
    with fewer. So 5 and 15 queries judge the same adapted network.

    Examples are interleaved: the labels are 0, 1, .., ways-1, 0, 1, .., and row r has label r % ways. So the first
    n * ways rows of a query set are the query set with n queries.
    """

    dataset: ClassSet
    _: KW_ONLY
    ways: int = 5
    shots: int = 1
    queries: int = 15
    kind: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            check_count(name, getattr(self, name))
        data, num_examples = self.dataset, self.shots + self.queries
        members = [position for positions in data.splits.values() for position in positions]
        counts = {position: data.count(position) for position in members}
        smallest = min(members, key=counts.__getitem__)
        if num_examples > counts[smallest]:
            equal = len(set(counts.values())) == 1
            where = data.name if equal else f"the class {data.class_names[smallest]!r} of {data.name}"
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {num_examples} images of each class "
                f"but {where} has {counts[smallest]}; use at most {counts[smallest]} in all"
            )
        # A split with too few classes is refused when it is asked for, not before: 64-way training with 16
        # validation classes is fine until somebody validates.
        self._check_ways(max(data.splits, key=lambda split: len(data.splits[split])))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (channel, height, width) of images."""
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

        Raises ValueError for an unknown split, one with fewer classes than ways, or a negative index.
        """
        positions = np.asarray(self.dataset.classes(split))
        self._check_ways(split)
        rng = episode_stream(seed, split, index)
        # Whole permutations are drawn and then cut, so that the draw does not depend on shots, queries or ways.
        classes = positions[rng.permutation(len(positions))[: self.ways]]
        num_examples = self.shots + self.queries
        orders = [rng.permutation(self.dataset.count(int(position)))[:num_examples] for position in classes]
        examples = np.stack(orders, axis=1)  # [example, way]
        return Episode(self._batch(classes, examples[: self.shots]), self._batch(classes, examples[self.shots :]))

    def _batch(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> tuple[Float[Tensor, "row ..."], Int64[Tensor, " row"]]:
        x = self.dataset.take(classes, examples)
        return x, torch.arange(len(x), device="cpu") % self.ways

    def _check_ways(self, split: str) -> None:
        available = len(self.dataset.splits[split])
        if self.ways > available:
            raise ValueError(
                f"ways={self.ways} but the split {split!r} of {self.dataset.name} has {available} classes; "
                f"use at most {available}"
            )


@dataclass(frozen=True)
class CrossDomainTasks:
    """Learning on one data set and being tested on another (Chen et al., 2019).

    Tasks for training and validation come from ``source``, those for test from ``target``. For several targets make
    one object for each: what is trained depends on ``source`` alone, so that one trained network serves them all.
    Raises ValueError unless both have the same kind, input shape and number of outputs.
    """

    source: TaskSource
    target: TaskSource

    def __post_init__(self) -> None:
        for name, advice in (
            ("kind", "use two of classification or two of regression"),
            ("input_shape", "open both with the same image_size and channels"),
            ("outputs", "open both with the same ways"),
        ):
            in_training, in_test = getattr(self.source, name), getattr(self.target, name)
            if in_training != in_test:
                raise ValueError(f"{name} is {in_training} in training and {in_test} in test; {advice}")

    @property
    def kind(self) -> str:
        """The kind of both."""
        return self.source.kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The input shape of both."""
        return self.source.input_shape

    @property
    def outputs(self) -> int:
        """The number of outputs of both."""
        return self.source.outputs

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of both sources' digests."""
        return text_digest("cross-domain-1", self.source.digest, self.target.digest)

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split, from the target for test and else from the source."""
        return (self.target if split == "test" else self.source).episode(seed=seed, split=split, index=index)


def episode_stream(seed: SupportsIndex, split: str, index: SupportsIndex) -> np.random.RandomState:
    """The random generator of one episode. Raises TypeError unless seed and index are whole numbers."""
    # as_index turns NumPy's integers into Python's, because they print differently and would seed differently.
    if as_index(index) < 0:
        raise ValueError(f"index={index} but episodes are numbered from 0; use 0 or more")
    return numpy_stream(as_index(seed), "episode", str(split), as_index(index))


def text_digest(*parts: object) -> str:
    """SHA-256 (hex) of the parts' text; parts must be plain Python values, which print alike everywhere."""
    return hashlib.sha256("/".join(repr(part) for part in parts).encode()).hexdigest()


def check_count(name: str, value: object) -> None:
    """ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} is not a count; use a whole number of at least 1")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of those allowed; else ValueError with the list and the nearest one."""
    names = list(allowed)
    if value in names:
        return value
    raise ValueError(f"{name}={value!r} is not one of {', '.join(names)}{did_you_mean(str(value), names)}")
