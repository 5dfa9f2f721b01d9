"""Opening a data set by the name of a bundled one or by its path, and describing what it is and how it is divided."""

from functools import cache as cached_function
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hessian_tools.data import pixel_cache
from hessian_tools.data.class_sets import ImageClasses, StoredClasses, turned_names, turned_positions
from hessian_tools.data.episodes import ClassSet, CrossDomainTasks, ImageTasks, TaskSource, check_count, text_digest
from hessian_tools.data.features import FeatureClasses, find_features, load_features
from hessian_tools.data.layouts import Contents, Match, recognise
from hessian_tools.data.pixels import MODES, resized
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import SineLineTasks
from hessian_tools.data.splits import Split, chosen_split, did_you_mean, split_from_file
from hessian_tools.data.tree import Tree

TASK_NAMES = ("quickdraw", "sine-line")


def open_tasks(
    name: str | Path,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    split: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    rotations: bool = False,
    crop: bool | None = None,
    cache: str | Path | None = None,
    progress: pixel_cache.Progress | None = None,
) -> TaskSource:
    """A supply of tasks: ``"quickdraw"`` or ``"sine-line"``, which need no download, or the path of a data set.

    ways, shots and queries shape image tasks. Regression has no classes and ignores them: its tasks keep the paper's
    5 support and 45 query points; make ``SineLineTasks`` for others. All other options are those of ``open_data``.

    >>> open_tasks("quickdraw", ways=3).outputs
    3
    """
    if name == "sine-line":
        return SineLineTasks()
    data = open_data(
        name,
        split=split,
        image_size=image_size,
        channels=channels,
        rotations=rotations,
        crop=crop,
        cache=cache,
        progress=progress,
    )
    return ImageTasks(data, ways=ways, shots=shots, queries=queries)


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
    """The classes of a data set, whatever layout it is kept in: Omniglot, miniImageNet, tieredImageNet, CIFAR-FS,
    FC100, CUB, Cars, any folder of classes, features in .npz; or ``"quickdraw"``. ``describe`` tells what was found.

    split: one of the data set's named splits (its first by default), or a file of your own: .json, a mapping of train,
        val and test to lists of class names; or .csv, lines of class,split.
    image_size, channels: the side of the square images, and 1 for grey or 3 for colour; by default those that are
        usual for the data set. Give both to cross domains, since the sources must have the same shape.
    rotations: whether every class also appears turned by 90, 180 and 270 degrees, as classes of its split.
    crop: whether to cut images to the box of their object, where boxes are known; by default for Cars, not for CUB.
    cache: the folder for decoded images; by default ``.hessian-tools`` beside the data or, where that cannot be
        written, the user's cache folder.
    progress: is called with the number of images decoded so far and the number of all.

    The first call decodes every image; later calls check the cache and map it into memory. Raises ValueError, in
    plain lines, for whatever is missing or damaged.
    """
    if image_size is not None:
        check_count("image_size", image_size)
    if channels not in (None, *MODES):
        raise ValueError(f"channels={channels!r} but images are grey or colour; use 1 or 3")
    if path == "sine-line":
        raise ValueError("path='sine-line' is generated regression, which has no classes; use open_tasks('sine-line')")
    if path == "quickdraw":
        if split or rotations or crop:
            raise ValueError("split, rotations and crop are for data of your own; leave them out with 'quickdraw'")
        return reshaped(load_quickdraw(), image_size=image_size or 28, channels=channels or 1)
    with Tree(_existing(path)) as tree:
        if features := _features(tree, split):
            return features
        match, pixel_format, stems, contents, used = _look_up(tree, split, cache, image_size, channels, crop)
        splits = used.positions(contents.class_names, match.layout)  # refuses a wrong split before an hour of decoding
        if not isinstance(contents, pixel_cache.Cached):
            contents = pixel_cache.fill(stems, contents, match, pixel_format, source=tree.path, progress=progress)
    class_names = contents.class_names
    if rotations:
        class_names = turned_names(class_names)
        splits = {part: turned_positions(positions) for part, positions in splits.items()}
    digest, rule = contents.pixels_digest, f"{used.name}: {used.rule}"
    return StoredClasses(
        match.name, contents.file, contents.counts, class_names, splits, digest, match.layout, rule, bool(rotations)
    )


def describe(path: str | Path, *, split: str | Path | None = None, cache: str | Path | None = None) -> str:
    """A few lines about what lies at a path: the layout, the classes and their images, and every split with its source.

    Decodes nothing; pickles are read through once, for their labels, unless there is a cache. Raises ValueError as
    ``open_data`` does.
    """
    if path == "quickdraw":
        return "quickdraw, bundled: 345 classes of 20 images, 1 x 28 x 28; train 220, val 55, test 70 classes"
    with Tree(_existing(path)) as tree:
        if features := _features(tree, split):
            return features.summary
        match, pixel_format, _, contents, used = _look_up(tree, split, cache)
    used.positions(contents.class_names, match.layout)
    counts, side = contents.counts, pixel_format.image_size
    sizes = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    state = f"decoded in {contents.file}" if isinstance(contents, pixel_cache.Cached) else "not decoded yet"
    return "\n".join(
        [
            f"{match.layout}: {len(contents.class_names)} classes of {sizes} images, {sum(counts)} in all",
            f"used as {pixel_format.channels} x {side} x {side} ({state})",
            f"split {_split_line(used)}",
            *(f"also {_split_line(each)}" for each in contents.splits if each.name != used.name),
        ]
    )


def summary(tasks: TaskSource) -> str:
    """One line about what tasks are drawn from: the data set, its split, and what it is tested on if that is another.

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


class _Source(NamedTuple):
    """A recognised data set: the pixels to be decoded, where their cache may lie, what was found, the split to use."""

    match: Match
    pixel_format: pixel_cache.PixelFormat
    stems: list[Path]
    contents: pixel_cache.Cached | Contents
    split: Split


def _look_up(
    tree: Tree,
    split: str | Path | None,
    cache: str | Path | None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: bool | None = None,
) -> _Source:
    match = recognise(tree)
    if crop and not match.has_boxes:
        raise ValueError(f"crop=True but no boxes come with {match.layout}; leave it out")
    crop = match.crop if crop is None else bool(crop)
    pixel_format = pixel_cache.PixelFormat(int(image_size or match.image_size), int(channels or match.channels), crop)
    stems = pixel_cache.stems(tree, match, pixel_format, folder=Path(cache).expanduser() if cache else None)
    contents = pixel_cache.find(stems) or pixel_cache.read_contents(tree, match, crop=crop)
    return _Source(match, pixel_format, stems, contents, chosen_split(contents.splits, split, match.layout))


def _features(tree: Tree, split: str | Path | None) -> FeatureClasses | None:
    """The features at a path, if it holds features."""
    files = find_features(tree)
    return load_features(tree, files, split=split_from_file(split) if split else None) if files else None


def _existing(path: str | Path) -> Path:
    """The path; a plain word that is the name of no file is taken for a mistaken name of a bundled data set."""
    place = Path(path).expanduser()
    if not place.exists() and isinstance(path, str) and place.name == path and not place.suffix:
        hint = did_you_mean(path, TASK_NAMES) or ", and no folder or file has this name"
        raise ValueError(f"name={path!r} is not one of {', '.join(TASK_NAMES)}{hint}")
    return place


def _split_line(split: Split) -> str:
    parts = ", ".join(f"{part} {len(names)}" for part, names in split.parts.items())
    return f"{split.name!r}: {parts} classes ({split.rule})"


def reshaped(data: ImageClasses, *, image_size: int, channels: int) -> ImageClasses:
    """The same classes at another size or number of channels, in memory; the same object if nothing changes.

    For the 6 900 bundled drawings at 84 x 84 it takes about half a second and 49 MB, once for each process; grey made
    colour is a view. Raises ValueError where colour would have to be made grey.
    """
    if data.images.shape[2:] == (channels, image_size, image_size):
        return data
    if data.images.shape[2] != 1:
        raise ValueError(f"{data.name} has {data.images.shape[2]} channels; only grey images are reshaped")
    return _reshaped(data, int(image_size), int(channels))


@cached_function
def _reshaped(data: ImageClasses, side: int, channels: int) -> ImageClasses:
    images, scale = data.images, data.scale
    if images.shape[3:] != (side, side):
        grey = (images.reshape(-1, *images.shape[3:]) * np.uint8(255 // scale)).astype(np.uint8)
        images = np.stack([resized(Image.fromarray(each), side=side) for each in grey])
        images, scale = images.reshape(*data.images.shape[:2], 1, side, side), 255
    images = np.broadcast_to(images, (*images.shape[:2], channels, side, side))
    digest = text_digest("reshaped-1", data.digest, side, channels)
    return ImageClasses(data.name, images, data.class_names, data.splits, digest, scale)
