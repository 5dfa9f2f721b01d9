"""Opens a data set, by its path or by the name of a bundled one, and describes what it holds and how it is divided."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache as cached_function
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from PIL import Image

from hessian_tools.data import pixel_cache
from hessian_tools.data.class_sets import ImageClasses, StoredClasses, turned_names, turned_positions
from hessian_tools.data.episodes import ClassSet, CrossDomainTasks, ImageTasks, TaskSource, text_digest
from hessian_tools.data.features import FeatureClasses, find_features, load_features
from hessian_tools.data.layouts import Contents, Match, recognise
from hessian_tools.data.pixels import MODES, resized
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import SineLineTasks
from hessian_tools.data.splits import Split, chosen_split, split_from_file
from hessian_tools.data.tree import Tree, readable
from hessian_tools.validation import did_you_mean

MAX_SIDE = 1024  # pixels; few-shot networks usually take images of 28 to 224
MAX_RESHAPED = 2_000_000_000  # bytes of the resized bundled drawings, which every process keeps in memory

TASK_NAMES = ("quickdraw", "sine-line")


class DataOptions(TypedDict, total=False):
    """The options of ``open_data``, which describes them."""

    split: str | Path | None
    image_size: int | None
    channels: int | None
    rotations: bool
    crop: bool | None
    cache: str | Path | None
    progress: pixel_cache.Progress | None


def open_tasks(
    name: str | Path, *, ways: int = 5, shots: int = 1, queries: int = 15, **options: Unpack[DataOptions]
) -> TaskSource:
    """Open a supply of tasks: ``"quickdraw"`` or ``"sine-line"``, which need no download, or the path of a data set.

    ways, shots, queries: as in ``ImageTasks``. Regression has no classes and ignores them: a task of ``"sine-line"``
    has 5 support and 45 query points, as in Lee, Yoo and Kwak (2023); make ``SineLineTasks`` yourself for other
    numbers.
    options: those of ``open_data``.

    >>> open_tasks("quickdraw", ways=3).outputs
    3
    """
    if name == "sine-line":
        return SineLineTasks()
    return ImageTasks(open_data(name, **options), ways=ways, shots=shots, queries=queries)


def open_data(
    path: str | Path,
    *,
    split: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    rotations: bool = False,
    crop: bool | None = None,
    cache: str | Path | None = None,
    progress: pixel_cache.Progress | None = None,
) -> ClassSet:
    """Open the classes of a data set at a path, or of the bundled ``"quickdraw"``.

    The layout is recognised by the names of the files: Omniglot, miniImageNet, tieredImageNet, CIFAR-FS, FC100, CUB,
    Cars, any folder with one folder for each class, or features in .npz files. ``describe`` says what was recognised.

    split: the name of a split that is known for the data set (by default the first of these), or a file of your own:
        .json with a mapping of train, val and test to lists of class names, or .csv with lines of class,split.
    image_size, channels: the side of the square images, and 1 for grey or 3 for colour; by default the usual values of
        the data set. Give both when you train on one data set and test on another, because the shapes must agree.
    rotations: True adds three classes to the same split for each class: its images turned by 90, 180 and 270 degrees.
    crop: True crops each image to the box around its object, if the data set gives boxes; False uses whole images. By
        default only Cars is cropped.
    cache: the folder for decoded images; by default ``.hessian-tools`` beside the data or, if nothing can be written
        there, the user's cache folder.
    progress: a function that is called with the number of images decoded so far and the total number.

    The first call decodes every image; later calls check the cache and map it into memory. Raises ValueError if
    anything is missing or damaged.
    """
    _check_sizes(image_size, channels)
    if path == "sine-line":
        raise ValueError("path='sine-line' is generated regression, which has no classes; use open_tasks('sine-line')")
    if path == "quickdraw":
        if split or rotations or crop:
            raise ValueError("split, rotations and crop are for data of your own; leave them out with 'quickdraw'")
        return reshaped(load_quickdraw(), image_size=image_size or 28, channels=channels or 1)
    with _damage_as_value_error(path), Tree(_existing(path)) as tree:
        if features := _features(tree, split):
            return features
        match = _adjusted(recognise(tree), image_size=image_size, channels=channels, crop=crop)
        places, contents, chosen = _look_up(tree, match, split, cache)
        # A split that does not fit the classes is refused here, and not only after decoding, which can take an hour.
        parts = chosen.positions(contents.class_names, match.layout)
        if not isinstance(contents, pixel_cache.Cached):
            contents = pixel_cache.fill(places, contents, match, source=tree.path, progress=progress)
    class_names = contents.class_names
    if rotations:
        class_names = turned_names(class_names)
        parts = {part: turned_positions(positions) for part, positions in parts.items()}
    digest, rule = contents.pixels_digest, f"{chosen.name}: {chosen.rule}"
    return StoredClasses(
        match.name, contents.file, contents.counts, class_names, parts, digest, match.layout, rule, bool(rotations)
    )


def describe(path: str | Path, *, split: str | Path | None = None, cache: str | Path | None = None) -> str:
    """Describe the data set at a path in a few lines: its layout, its classes and images, and every split.

    No image is decoded. Data in pickles without a cache are read once for their labels. Raises ValueError as
    ``open_data`` does.
    """
    if path == "quickdraw":
        return "quickdraw, bundled: 345 classes of 20 images, 1 x 28 x 28; train 220, val 55, test 70 classes"
    with _damage_as_value_error(path), Tree(_existing(path)) as tree:
        if features := _features(tree, split):
            return features.summary
        match = recognise(tree)
        _, contents, chosen = _look_up(tree, match, split, cache)
    chosen.positions(contents.class_names, match.layout)  # called only because it refuses a split that does not fit
    counts, side = contents.counts, match.image_size
    sizes = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    state = f"decoded in {contents.file}" if isinstance(contents, pixel_cache.Cached) else "not decoded yet"
    return "\n".join(
        [
            f"{match.layout}: {len(contents.class_names)} classes of {sizes} images, {sum(counts)} in all",
            f"used as {match.channels} x {side} x {side} ({state})",
            f"split {_split_line(chosen)}",
            *(f"also {_split_line(other)}" for other in contents.splits if other.name != chosen.name),
        ]
    )


def summary(tasks: TaskSource) -> str:
    """Describe the source of tasks in one line: the data set, its split, and the data set for test if it differs.

    >>> summary(open_tasks("quickdraw"))
    'quickdraw'
    """
    if isinstance(tasks, CrossDomainTasks):
        return f"{summary(tasks.source)}; tested on {summary(tasks.target)}"
    if isinstance(tasks, SineLineTasks):
        return "sine-line"
    data = tasks.dataset if isinstance(tasks, ImageTasks) else None
    if isinstance(data, StoredClasses):
        turned = ", each class in four rotations" if data.rotations else ""
        return f"{data.layout}{turned} (split {data.split_rule})"
    if isinstance(data, FeatureClasses):
        return f"features (split {data.split_rule})"
    return data.name if data else type(tasks).__name__


def _check_sizes(image_size: int | None, channels: int | None) -> None:
    """Raise ValueError for an image size or a number of channels that no images can have."""
    if image_size is not None and image_size > MAX_SIDE:
        raise ValueError(f"image_size={image_size} is too large; give at most {MAX_SIDE}")
    if channels not in (None, *MODES):
        raise ValueError(f"channels={channels!r}, but images are grey or colour; use 1 or 3")


def _adjusted(match: Match, *, image_size: int | None, channels: int | None, crop: bool | None) -> Match:
    """The match with the user's own image size, channels and cropping in place of the usual ones of the data set."""
    if crop and not match.has_boxes:
        raise ValueError(f"crop=True, but no boxes come with the data ({match.layout}); leave crop out")
    return replace(
        match,
        image_size=int(image_size or match.image_size),
        channels=int(channels or match.channels),
        crop=match.crop if crop is None else bool(crop),
    )


@contextmanager
def _damage_as_value_error(path: str | Path) -> Iterator[None]:
    """Turn any error from reading damaged data into a ValueError, and silence Pillow's warning of large images."""
    with readable(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``open_image`` checks the size
        yield


def _look_up(
    tree: Tree, match: Match, split: str | Path | None, cache: str | Path | None
) -> tuple[list[Path], pixel_cache.Cached | Contents, Split]:
    """Look up three things: the paths where the cache may lie, the contents of the data set, and the chosen split.

    The paths are without the endings .npy and .json. The contents come from the cache or, if there is none, from the
    data themselves.
    """
    places = pixel_cache.cache_paths(tree, match, folder=Path(os.path.expanduser(cache)) if cache else None)
    contents = pixel_cache.find(places) or pixel_cache.read_contents(tree, match)
    return places, contents, chosen_split(contents.splits, split, match.layout)


def _features(tree: Tree, split: str | Path | None) -> FeatureClasses | None:
    """The features in a tree of files, or None if it holds no features."""
    files = find_features(tree)
    return load_features(tree, files, split=split_from_file(split) if split else None) if files else None


def _existing(path: str | Path) -> Path:
    """The path; raises ValueError for a single word that is no file, since it is a misspelt name of bundled data."""
    try:
        place = Path(os.path.expanduser(path))
    except RuntimeError as e:  # no user has the name after "~"
        raise ValueError(f"there is no file or folder {path} ({e}); give the folder that holds the data") from None
    if not place.exists() and isinstance(path, str) and place.name == path and not place.suffix:
        hint = did_you_mean(path, TASK_NAMES) or ", and no folder or file has this name"
        raise ValueError(f"name={path!r} is not one of {', '.join(TASK_NAMES)}{hint}")
    return place


def _split_line(split: Split) -> str:
    """The name of a split, the number of classes in each of its parts, and its rule."""
    parts = ", ".join(f"{part} {len(names)}" for part, names in split.parts.items())
    return f"{split.name!r}: {parts} classes ({split.rule})"


def reshaped(data: ImageClasses, *, image_size: int, channels: int) -> ImageClasses:
    """The same classes with images of another size or number of channels; the same object if nothing changes.

    For the 6 900 bundled drawings at 84 x 84 this takes about half a second and 49 MB, once in each process. Copying
    grey images to three channels takes no memory. Raises ValueError if colour images would have to be made grey.
    """
    if data.images.shape[2:] == (channels, image_size, image_size):
        return data
    if data.images.shape[2] != 1:
        raise ValueError(f"{data.name} has {data.images.shape[2]} channels; only grey images can be reshaped")
    return _reshaped(data, int(image_size), int(channels))


@cached_function
def _reshaped(data: ImageClasses, side: int, channels: int) -> ImageClasses:
    """The result of ``reshaped``, computed once in a process for the same arguments."""
    images, scale = data.images, data.scale
    if len(images) * images.shape[1] * side**2 > MAX_RESHAPED:
        raise ValueError(f"image_size={side} would make {data.name} larger than {MAX_RESHAPED / 1e9:g} GB; give less")
    if images.shape[3:] != (side, side):
        # ``scale`` is the stored value that stands for 1.0. It becomes 255, so that resizing can give values between.
        grey = (images.reshape(-1, *images.shape[3:]) * np.uint8(255 // scale)).astype(np.uint8)
        images = np.stack([resized(Image.fromarray(drawing), side=side) for drawing in grey])
        images, scale = images.reshape(*data.images.shape[:2], 1, side, side), 255
    images = np.broadcast_to(images, (*images.shape[:2], channels, side, side))
    digest = text_digest("reshaped-1", data.digest, side, channels)
    return ImageClasses(data.name, images, data.class_names, data.splits, digest, scale)
