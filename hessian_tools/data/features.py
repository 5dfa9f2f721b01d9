"""Feature vectors grouped by class, which take the place of images.

LEO (latent embedding optimisation, Rusu et al., 2019) learns from such features of a network that was trained before.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, from_numpy

from hessian_tools.data.class_sets import DisjointClasses
from hessian_tools.data.episodes import Examples, Ways, text_digest
from hessian_tools.data.layouts.layout import check_same_length
from hessian_tools.data.npz import array_names, stored_array
from hessian_tools.data.splits import PART_OF, PARTS, Split, given_split
from hessian_tools.data.tree import Tree
from hessian_tools.validation import some_of

# How messages describe the arrays that a file must hold.
ARRAYS = "features [example, feature] and labels [example], with parts [example] if one file holds all parts"

MAX_EXAMPLES = 10_000_000
MAX_BYTES = 2_000_000_000  # of one array; the features of tieredImageNet by a residual network take 1.1 GB


@dataclass(frozen=True, eq=False)
class FeatureClasses(DisjointClasses):
    """Feature vectors grouped by class.

    features: float32 [example, feature], one class after the other. counts: the number of vectors of each class.
    split_rule: how the classes are divided, in words. scale: the stored value that stands for 1.0, which every
    ``ClassSet`` has; it is 1, because features are used as they are stored.
    """

    name: str
    features: np.ndarray
    counts: tuple[int, ...]
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    digest: str
    split_rule: str
    scale: int = 1

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(feature,)."""
        return self.features.shape[1:]

    @property
    def summary(self) -> str:
        """Two lines of text: the sizes of the data, and the split."""
        parts = ", ".join(f"{part} {len(positions)}" for part, positions in self.splits.items())
        sizes = f"{min(self.counts)} to {max(self.counts)}"
        return (
            f"features of length {self.features.shape[1]}: {len(self.class_names)} classes of {sizes} vectors\n"
            f"split {self.split_rule}: {parts} classes"
        )

    def count(self, position: int) -> int:
        """The number of vectors of a class."""
        return self.counts[position]

    def take(self, classes: Ways, examples: Examples) -> Float[Tensor, "row feature"]:
        """A copy of the requested vectors.

        classes: [way]. examples: [example, way]. The rows come example by example, as those of ``ImageClasses.take``.
        """
        starts = np.cumsum(self.counts) - self.counts  # the row of ``features`` at which each class begins
        return from_numpy(self.features[starts[classes] + examples]).flatten(0, 1)


def find_features(tree: Tree) -> dict[str, str]:
    """The names of the files that hold features, by the part of the split that each holds.

    This is either one .npz file that holds all parts, under the key "", or up to three files such as train.npz, val.npz
    and test.npz. The result is empty if there are no such files.
    """
    if tree.path.is_file() and tree.path.suffix == ".npz":
        files = {"": tree.path.name}
    else:
        files = {part: f"{alias}.npz" for alias, part in PART_OF.items() if f"{alias}.npz" in tree.files}
    # Files of these names that hold other arrays are no features.
    return files if all("features" in array_names(tree, name) for name in files.values()) else {}


def load_features(tree: Tree, files: Mapping[str, str], *, split: Split | None = None) -> FeatureClasses:
    """Read features from .npz files with the arrays ``features`` [example, feature] and ``labels`` [example].

    Labels are whole numbers or text. If one file holds all parts, its array ``parts`` [example] says train, val or test
    for each example. split: a split given by the user, which replaces that of the files. Raises ValueError if an array
    is missing, is a pickled object, has another length than the rest, or holds features that are not finite.
    """
    labels: list[str] = []
    parts: list[str] = []
    features = []
    for part, name in files.items():
        vectors, part_labels, part_names = _arrays(tree, name, part)
        features.append(vectors)
        labels += part_labels
        parts += part_names
    where = ", ".join(files.values())
    unique_labels, sizes = np.unique(labels, return_counts=True)
    class_names, counts = tuple(unique_labels.tolist()), tuple(sizes.tolist())
    sorted_features = np.concatenate(features)[np.argsort(labels, kind="stable")]
    used = split or _split_by_parts(labels, parts, where)
    content = hashlib.sha256(np.ascontiguousarray(sorted_features, dtype="<f4").tobytes()).hexdigest()
    digest = text_digest("features-1", content, sorted_features.shape, class_names, counts)
    splits = used.positions(class_names, where)
    rule = f"{used.name}: {used.rule}"
    return FeatureClasses("features", sorted_features, counts, class_names, splits, digest, rule)


def _split_by_parts(labels: list[str], parts: list[str], where: str) -> Split:
    """The split that the label and the part of each example give; ``where`` names the files in messages."""
    if not parts:
        raise ValueError(f"{where} has no array parts; add it, or give split=, a file that divides the classes")
    unknown = sorted(set(parts) - set(PART_OF))
    if unknown:
        raise ValueError(f"parts of {where} holds {unknown[0]!r}; use train, val and test")
    pairs = sorted(set(zip(labels, (PART_OF[part] for part in parts), strict=True)))
    return given_split(where, {part: [label for label, its_part in pairs if its_part == part] for part in PARTS})


def _arrays(tree: Tree, name: str, part: str) -> tuple[Float[np.ndarray, "example feature"], list[str], list[str]]:
    """The vectors, the labels and the part of each example of one file; ``part`` is "" if the file holds all parts."""
    held = array_names(tree, name)
    if "features" not in held or "labels" not in held:
        raise ValueError(f"{name} holds the arrays {some_of(held)}, but it needs {ARRAYS}")
    arrays: dict[str, np.ndarray] = {}
    for key in (key for key in ("features", "labels", "parts") if key in held):
        try:
            with stored_array(tree, name, key) as stored:
                if key == "features" and (len(stored.shape) != 2 or not np.issubdtype(stored.dtype, np.floating)):
                    raise ValueError(f"features are {stored.dtype} of shape {stored.shape}; use floats")
                if key != "features" and len(stored.shape) != 1:
                    raise ValueError(f"{key} are {stored.dtype} of shape {stored.shape}")
                if stored.shape[0] > MAX_EXAMPLES:
                    raise ValueError(f"{stored.shape[0]} {key}, but at most {MAX_EXAMPLES} examples are read")
                arrays[key] = stored.read(max_bytes=MAX_BYTES)
        except Exception as e:  # a damaged zip can fail in any way
            raise ValueError(
                f"{name} cannot be read ({str(e)[:200]}); save {ARRAYS} as plain arrays with np.savez"
            ) from None
    features, labels = arrays["features"], arrays["labels"]
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which is refused below
        vectors = features.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name}: some features are not finite, or too large for float32; compute them again")
    check_same_length(name, len(features), len(labels))
    if labels.dtype.kind in "iuf":  # integers and floats; labels that are text need no check
        is_whole = np.isfinite(labels) & (labels >= 0) & (labels % 1 == 0)
        if not is_whole.all():
            raise ValueError(
                f"{name}: some labels are no whole numbers from 0; give those, or the names of the classes"
            )
    parts = [part] * len(features) if part else [str(value) for value in arrays.get("parts", ())]
    if parts:
        check_same_length(f"{name} (parts)", len(features), len(parts))
    # If each part has a file of its own, numeric labels begin at 0 in each file, so class 0 of train is not class 0 of
    # test. The name of the part in front of the number tells them apart.
    prefix = f"{part}-" if part and labels.dtype.kind in "iuf" else ""
    return vectors, [f"{prefix}{label}" for label in labels.tolist()], parts
