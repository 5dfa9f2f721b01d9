"""Feature vectors instead of images, by class, as LEO (Rusu et al., 2019) learns from."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, from_numpy

from hessian_tools.data.episodes import check_choice, check_splits, text_digest
from hessian_tools.data.layouts.layout import PART_OF, PARTS, Split, given_split, grouped, same_length
from hessian_tools.data.tree import Tree

KEYS = "features [example, feature] and labels [example], with parts [example] where one file holds all splits"


@dataclass(frozen=True, eq=False)
class FeatureClasses:
    """Vectors by class: features float32 [example, feature], class after class; counts: how many of each class."""

    name: str
    features: np.ndarray
    counts: tuple[int, ...]
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    digest: str
    split_rule: str
    scale: int = 1

    def __post_init__(self) -> None:
        check_splits(self.name, self.splits, len(self.class_names))

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(feature,)."""
        return self.features.shape[1:]

    @property
    def summary(self) -> str:
        """Sizes and split in two lines."""
        parts = ", ".join(f"{part} {len(positions)}" for part, positions in self.splits.items())
        sizes = f"{min(self.counts)} to {max(self.counts)}"
        return (
            f"features of length {self.features.shape[1]}: {len(self.class_names)} classes of {sizes} vectors\n"
            f"split {self.split_rule}: {parts} classes"
        )

    def classes(self, split: str) -> tuple[int, ...]:
        """Positions of a split's classes; ValueError, with the nearest name, where there is no such split."""
        return self.splits[check_choice("split", split, self.splits)]

    def count(self, position: int) -> int:
        """Number of vectors of a class."""
        return self.counts[position]

    def take(
        self, classes: Int[np.ndarray, " way"], examples: Int[np.ndarray, "example way"]
    ) -> Float[Tensor, "row feature"]:
        """The vectors themselves, a copy."""
        starts = np.cumsum(self.counts) - self.counts
        return from_numpy(self.features[starts[classes] + examples]).flatten(0, 1)


def find_features(tree: Tree) -> dict[str, str]:
    """Files of features: one .npz for all (under ""), or train.npz, val.npz and test.npz; {} where there are none."""
    if tree.path.is_file() and tree.path.suffix == ".npz" and "features.npy" in _members(tree, tree.path.name):
        return {"": tree.path.name}
    parts = {PART_OF[stem]: f"{stem}.npz" for stem in PART_OF if f"{stem}.npz" in tree.files}
    return parts if parts and all("features.npy" in _members(tree, name) for name in parts.values()) else {}


def load_features(tree: Tree, files: Mapping[str, str], *, split: Split | None = None) -> FeatureClasses:
    """Features from .npz files with features [example, feature] and labels [example], whole numbers or text.

    With one file for all, parts [example] says train, val or test; split, a file of the user's, goes before it.
    ValueError where an array is missing, is a pickled object, does not fit the others, or is not finite.
    """
    labels: list[str] = []
    parts: list[str] = []
    features = []
    for part, name in files.items():
        vectors, found, own = _arrays(tree, name, part)
        features.append(vectors)
        labels += found
        parts += own
    rows = grouped(labels)
    together = np.concatenate(features)[[row for group in rows.values() for row in group]]
    used = split or _given(labels, parts, ", ".join(files.values()))
    unknown = [name for names in used.parts.values() for name in names if name not in rows]
    if unknown:
        raise ValueError(f"the split {used.name} names a class {unknown[0]!r} of which there are no features")
    position = {name: i for i, name in enumerate(rows)}
    splits = {part: tuple(position[name] for name in names) for part, names in used.parts.items()}
    counts = tuple(len(group) for group in rows.values())
    digest = text_digest("features-1", _sha(together), together.shape, tuple(rows), counts)
    return FeatureClasses("features", together, counts, tuple(rows), splits, digest, f"{used.name}: {used.rule}")


def _given(labels: list[str], parts: list[str], where: str) -> Split:
    if not parts:
        raise ValueError(f"{where} has no array parts; add it, or give a file with split=")
    foreign = sorted(set(parts) - set(PART_OF))
    if foreign:
        raise ValueError(f"parts of {where} holds {foreign[0]!r}; use train, val and test")
    pairs = sorted(set(zip(labels, (PART_OF[part] for part in parts), strict=True)))
    return given_split(where, {part: [label for label, other in pairs if other == part] for part in PARTS})


def _arrays(tree: Tree, name: str, part: str) -> tuple[Float[np.ndarray, "example feature"], list[str], list[str]]:
    """Vectors, labels and parts of one file; numbers as labels of a file of one part begin anew in each file."""
    try:
        with tree.open(name) as file, np.load(file, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{name} cannot be read ({e}); save {KEYS} as plain arrays with np.savez") from None
    if "features" not in arrays or "labels" not in arrays:
        raise ValueError(f"{name} holds {', '.join(arrays)}; it needs {KEYS}")
    features, labels = arrays["features"], arrays["labels"]
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"{name}: features are {features.dtype} of shape {features.shape}; use floats, {KEYS}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: some features are not finite; make them again")
    same_length(name, len(features), len(labels))
    own = [part] * len(features) if part else [str(each) for each in arrays.get("parts", ())]
    if own:
        same_length(f"{name} (parts)", len(features), len(own))
    before = f"{part}-" if part and np.issubdtype(labels.dtype, np.integer) else ""
    return features.astype(np.float32), [f"{before}{label}" for label in labels.tolist()], own


def _members(tree: Tree, name: str) -> list[str]:
    try:
        with tree.open(name) as file, zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").tobytes()).hexdigest()
