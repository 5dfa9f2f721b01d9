"""Few-shot episodes: what a task is, and how one is drawn from the classes of a data set.

An episode is a function of (seed, split, index) alone, where a split is one part of the classes: "train", "val" or
"test". An episode is drawn with ``np.random.RandomState``, whose numbers NumPy
has promised not to change. So task 17 of the test split is the same task on every machine, and drawn tasks need not
be stored or passed on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from operator import index as as_index
from typing import ClassVar, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from hessian_tools.rng import numpy_stream

SPLITS = ("train", "val", "test")

# This is part of every digest. Raise its number whenever the same (seed, split, index) would give another episode.
EPISODE_RECIPE = "episodes-1"

# The positions of an episode's classes in ``class_names``, and the numbers of the examples drawn from each class.
Ways = Int[np.ndarray, " way"]
Examples = Int[np.ndarray, "example way"]
# The inputs x of some examples and their targets y: labels or, in regression, numbers.
Batch = tuple[Float[Tensor, "example ..."], Int64[Tensor, " example"] | Float[Tensor, "example output"]]


class Episode(NamedTuple):
    """One task: a support set, on which a network is adapted, and a query set, which judges it; each is a pair (x, y).

    Classification: x float32 [example, channel, height, width] in [0, 1]; y int64 [example] in 0..ways-1.
    Regression: x float32 [example, 1]; y float32 [example, 1]. All tensors are on the CPU.
    """

    support: Batch
    query: Batch


@runtime_checkable
class TaskSource(Protocol):
    """The interface by which training and measuring get tasks, whether of images, of feature vectors or of curves."""

    @property
    def kind(self) -> str:
        """``"classification"`` or ``"regression"``; it determines which criterion fits."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one x, without the example axis."""

    @property
    def outputs(self) -> int:
        """The number of outputs that a network must have."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the episodes; the manifest of a training run records it."""

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split: the same task at every call and on every machine."""


@runtime_checkable
class ClassSet(Protocol):
    """The interface of data that episodes are drawn from: examples grouped by class, and classes grouped by split."""

    @property
    def name(self) -> str:
        """The name of the data in messages."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the classes' positions."""

    @property
    def splits(self) -> Mapping[str, tuple[int, ...]]:
        """For the name of each split, the positions of its classes."""

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
        """The positions of a split's classes; an unknown name raises ValueError."""

    def count(self, position: int) -> int:
        """The number of examples of the class at a position."""

    def take(self, classes: Ways, examples: Examples) -> Float[Tensor, "row ..."]:
        """The requested examples as float32: the first example of every class, then the second of each, and so on.

        classes: the positions of the classes [way]. examples: the numbers of each class's examples [example, way].
        """


@dataclass(frozen=True)
class ImageTasks:
    """N-way K-shot classification tasks, which are drawn from a set of classes of images or of feature vectors.

    ways: the number of classes in an episode. shots, queries: the number of images of each class in the support set
    and in the query set.

    The classes, their labels and the examples of each class are drawn at random without repetition. The support set
    does not depend on ``queries``, so tasks with 5 and with 15 queries judge the same adapted network. An episode with
    more queries or more ways contains all images of the same episode with fewer.

    The classes are interleaved: row r of a set has label r % ways, so the labels are 0, 1, ..., ways-1, 0, 1, ... The
    first n * ways rows of a query set are therefore the query set with n queries.
    """

    dataset: ClassSet
    _: KW_ONLY
    ways: int = 5
    shots: int = 1
    queries: int = 15
    kind: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
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
        # Only the largest split is checked here. A smaller one is refused when a task of it is requested, because
        # 64-way training with 16 validation classes is fine until somebody validates.
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
        """SHA-256 (hex) of the data set's digest and scale, the splits, ways, shots, queries and ``EPISODE_RECIPE``."""
        splits = sorted((split, [int(p) for p in positions]) for split, positions in self.dataset.splits.items())
        sizes = [int(size) for size in (self.ways, self.shots, self.queries)]
        return text_digest(EPISODE_RECIPE, self.dataset.digest, int(self.dataset.scale), splits, sizes)

    def episode(self, *, seed: SupportsIndex, split: str, index: SupportsIndex) -> Episode:
        """Task number ``index`` (0, 1, ...) of a split.

        Raises ValueError for an unknown split, for a split with fewer classes than ways, and for a negative index.
        """
        positions = np.asarray(self.dataset.classes(split))
        self._check_ways(split)
        rng = episode_stream(seed, split, index)
        # Whole permutations are drawn and then cut, so that what is drawn does not depend on shots, queries or ways.
        classes = positions[rng.permutation(len(positions))[: self.ways]]
        num_examples = self.shots + self.queries
        orders = [rng.permutation(self.dataset.count(int(position)))[:num_examples] for position in classes]
        examples = np.stack(orders, axis=1)  # [example, way]
        return Episode(self._batch(classes, examples[: self.shots]), self._batch(classes, examples[self.shots :]))

    def _batch(self, classes: Ways, examples: Examples) -> tuple[Float[Tensor, "row ..."], Int64[Tensor, " row"]]:
        x = self.dataset.take(classes, examples)
        return x, torch.arange(len(x), device="cpu") % self.ways

    def _check_ways(self, split: str) -> None:
        available = len(self.dataset.splits[split])
        if self.ways > available:
            raise ValueError(
                f"ways={self.ways} but the split {split!r} of {self.dataset.name} has {available} classes; "
                f"use at most {available}, or a split of your own with more classes in {split!r} (split='FILE.json')"
            )


@dataclass(frozen=True)
class CrossDomainTasks:
    """Learning on one data set and being tested on another (Chen et al., 2019).

    Tasks for training and validation come from ``source``, and tasks for test come from ``target``. For several
    targets, make one object for each: training depends on ``source`` alone, so one trained network serves all targets.
    Raises ValueError unless source and target have the same kind, input shape and number of outputs.
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
        """The kind of source and target, which is the same."""
        return self.source.kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The input shape of source and target, which is the same."""
        return self.source.input_shape

    @property
    def outputs(self) -> int:
        """The number of outputs of source and target, which is the same."""
        return self.source.outputs

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the digests of source and target."""
        return text_digest("cross-domain-1", self.source.digest, self.target.digest)

    def episode(self, *, seed: int, split: str, index: int) -> Episode:
        """Task number ``index`` of a split: from the target if the split is "test", else from the source."""
        return (self.target if split == "test" else self.source).episode(seed=seed, split=split, index=index)


def episode_stream(seed: SupportsIndex, split: str, index: SupportsIndex) -> np.random.RandomState:
    """The random generator of one episode.

    Raises TypeError unless seed and index are whole numbers, and ValueError for a negative index.
    """
    if as_index(index) < 0:
        raise ValueError(f"index={index} but episodes are numbered from 0; use 0 or more")
    # The stream is seeded by the text of its arguments, and NumPy's integers print differently from Python's.
    return numpy_stream(as_index(seed), "episode", str(split), as_index(index))


def text_digest(*parts: object) -> str:
    """SHA-256 (hex) of the text of the parts. They must be plain Python values, which print alike everywhere."""
    return hashlib.sha256("/".join(repr(part) for part in parts).encode()).hexdigest()


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r} is not a count; use a whole number of at least 1")
