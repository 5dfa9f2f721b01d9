"""Opening a data set by the name of a bundled one or by where it lies; saying what it is and how it is divided."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache as once
from pathlib import Path

import numpy as np
from PIL import Image

from hessian_tools.data.cache import Cached, Progress, Wanted, fill, peek, read
from hessian_tools.data.crossing import CrossDomainTasks
from hessian_tools.data.episodes import ClassSet, ImageClasses, ImageTasks, TaskSource, check_count, text_digest
from hessian_tools.data.features import FeatureClasses, find_features, load_features
from hessian_tools.data.layouts import Contents, Match, Split, recognise
from hessian_tools.data.layouts.layout import PART_OF, named_split
from hessian_tools.data.pixels import MODES, fitted
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import SineLineTasks
from hessian_tools.data.stored import StoredClasses, turned_names, turned_positions
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
    progress: Progress | None = None,
) -> TaskSource:
    """A supply of tasks: ``"quickdraw"`` or ``"sine-line"``, which need no download, or the path of a data set.

    ways, shots and queries shape image tasks. Regression has no classes and leaves them aside: its
    tasks keep the paper's 5 support and 45 query points; make ``SineLineTasks`` for others.
    All else is as in ``open_data``.

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
    progress: Progress | None = None,
) -> ClassSet:
    """The classes of a data set, whatever layout it lies in: Omniglot, miniImageNet, tieredImageNet, CIFAR-FS, FC100,
    CUB, Cars, any folder of classes, features in .npz; or ``"quickdraw"``. ``describe`` says what was found.

    split: one of the data set's named splits (its first by default), or a file of your own: .json, a mapping of train,
        val and test to lists of class names; or .csv, lines of class,split.
    image_size, channels: side of the square images, 1 for grey or 3 for colour; the data set's usual ones by default.
        Give both to cross domains: sources must agree in shape.
    rotations: every class also turned by 90, 180 and 270 degrees, as classes of their own, in every split.
    crop: whether to cut images to the box of their object, where boxes are known: by default for Cars, not for CUB.
    cache: the folder for decoded images; by default ``.hessian-tools`` beside the data or, where that cannot be
        written, the user's cache folder.
    progress: called with the number of images decoded and of all.

    Decodes every image once, on the first call; later calls check the cache and map it. ValueError, in plain lines, for
    whatever is missing or damaged.
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
    with Tree(_place(path)) as tree:
        features = find_features(tree)
        if features:
            return load_features(tree, features, split=_own_split(split) if split else None)
        match = recognise(tree)
        wanted = _wanted(match, image_size, channels, crop)
        folder = Path(cache).expanduser() if cache else None
        found = peek(tree, match, wanted, folder=folder)
        held: Cached | Contents = found or read(tree, match, wanted)
        used = chosen_split(held.splits, held.class_names, split, match.layout)  # before an hour of decoding
        if not isinstance(held, Cached):
            held = fill(tree, match, wanted, held, folder=folder, progress=progress)
    return _stored(match, held, used, rotations)


def describe(path: str | Path, *, split: str | Path | None = None, cache: str | Path | None = None) -> str:
    """What lies at a path, in a few lines: layout, classes, images of each, and every split with its source.

    Decodes nothing; pickles are read through once, for their labels, unless there is a cache. ValueError as
    ``open_data``.
    """
    if path == "quickdraw":
        return "quickdraw, bundled: 345 classes of 20 images, 1 x 28 x 28; train 220, val 55, test 70 classes"
    with Tree(_place(path)) as tree:
        features = find_features(tree)
        if features:
            return load_features(tree, features, split=_own_split(split) if split else None).summary
        match = recognise(tree)
        wanted = _wanted(match, None, None, None)
        found = peek(tree, match, wanted, folder=Path(cache).expanduser() if cache else None)
        ready = f"decoded in {found.file}" if found else "not decoded yet"
        held: Cached | Contents = found or read(tree, match, wanted)
    used = chosen_split(held.splits, held.class_names, split, match.layout)
    sizes = f"{min(held.counts)} to {max(held.counts)}" if len(set(held.counts)) > 1 else f"{held.counts[0]}"
    lines = [
        f"{match.layout}: {len(held.class_names)} classes of {sizes} images, {sum(held.counts)} in all",
        f"used as {wanted.channels} x {wanted.image_size} x {wanted.image_size} ({ready})",
        f"split {_said(used)}",
        *(f"also {_said(each)}" for each in held.splits if each.name != used.name),
    ]
    return "\n".join(lines)


def summary(tasks: TaskSource) -> str:
    """What tasks are drawn from, in one line: the data set, its split, and what it is tested on if that is another.

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


def _said(split: Split) -> str:
    parts = ", ".join(f"{part} {len(names)}" for part, names in split.parts.items())
    return f"{split.name!r}: {parts} classes ({split.rule})"


def _place(path: str | Path) -> Path:
    """A path; a plain word that is none was meant as a name."""
    place = Path(path).expanduser()
    if not place.exists() and isinstance(path, str) and place.name == path and not place.suffix:
        near = get_close_matches(path, TASK_NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ", and no folder or file is called so"
        raise ValueError(f"name={path!r} is not one of {', '.join(TASK_NAMES)}{hint}")
    return place


def _wanted(match: Match, image_size: int | None, channels: int | None, crop: bool | None) -> Wanted:
    if crop and not match.boxes:
        raise ValueError(f"crop=True but no boxes come with {match.layout}; leave it out")
    cut = match.crop if crop is None else bool(crop)
    return Wanted(int(image_size or match.image_size), int(channels or match.channels), cut)


def _stored(match: Match, held: Cached, split: Split, rotations: bool) -> StoredClasses:
    position = {name: i for i, name in enumerate(held.class_names)}
    splits = {part: tuple(position[name] for name in names) for part, names in split.parts.items()}
    names = held.class_names
    if rotations:
        names, splits = turned_names(names), {part: turned_positions(each) for part, each in splits.items()}
    rule = f"{split.name}: {split.rule}"
    return StoredClasses(
        match.name, held.file, held.counts, names, splits, held.pixels_digest, match.layout, rule, bool(rotations)
    )


# Splits


def chosen_split(offered: Sequence[Split], class_names: Sequence[str], choice: str | Path | None, layout: str) -> Split:
    """The split asked for, by name or from a file; its classes are among those of the data."""
    by_name = {split.name: split for split in offered}
    if choice is None and not offered:
        raise ValueError(f"no split is known for the classes of {layout}; give a .json or .csv file with split=")
    if choice is None or choice in by_name:
        split = offered[0] if choice is None else by_name[str(choice)]
    else:
        split = _own_split(choice, known=tuple(by_name))
    held = set(class_names)
    unknown = [name for names in split.parts.values() for name in names if name not in held]
    if unknown:
        near = get_close_matches(unknown[0], class_names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"the split {split.name} names a class {unknown[0]!r} that {layout} does not hold{hint}")
    return split


def _own_split(choice: str | Path, *, known: tuple[str, ...] = ()) -> Split:
    """A split from a user's file."""
    file = Path(choice).expanduser()
    if file.suffix not in (".json", ".csv") or not file.is_file():
        names = f"one of {', '.join(known)}, or " if known else ""
        raise ValueError(f"split={str(choice)!r} is not known here; give {names}a .json or .csv file that is there")
    parts = _json_parts(file) if file.suffix == ".json" else _csv_parts(file)
    foreign = [part for part in parts if part not in PART_OF]
    if foreign or not parts:
        raise ValueError(f"{file} divides into {', '.join(parts) or 'nothing'}; use train, val and test")
    return named_split(file.name, f"your file {file.name}", {PART_OF[part]: names for part, names in parts.items()})


def _json_parts(file: Path) -> Mapping[str, Sequence[str]]:
    try:
        parts = json.loads(file.read_text(encoding="utf-8-sig"))
        return {str(part): [str(name) for name in names] for part, names in parts.items()}
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{file} is no JSON mapping of train, val and test to lists of class names") from None


def _csv_parts(file: Path) -> Mapping[str, Sequence[str]]:
    parts: dict[str, list[str]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[-1] not in PART_OF):  # a blank line, or the heading
            continue
        if len(cells) != 2:
            raise ValueError(f"{file}: line {number} has {len(cells)} fields; use class,split")
        parts.setdefault(cells[1], []).append(cells[0])
    return parts


# Shapes


def reshaped(data: ImageClasses, *, image_size: int, channels: int) -> ImageClasses:
    """The same classes at another size or number of channels, in memory; the same object if nothing changes.

    Cost: for the 6 900 bundled drawings at 84 x 84 about half a second and 49 MB, once a process; grey made colour is a
    view. ValueError for colour made grey.
    """
    if data.images.shape[2:] == (channels, image_size, image_size):
        return data
    if data.images.shape[2] != 1:
        raise ValueError(f"{data.name} has {data.images.shape[2]} channels; only grey images are reshaped")
    return _reshaped(data, int(image_size), int(channels))


@once
def _reshaped(data: ImageClasses, side: int, channels: int) -> ImageClasses:
    images, scale = data.images, data.scale
    if images.shape[3:] != (side, side):
        grey = (images.reshape(-1, *images.shape[3:]) * np.uint8(255 // scale)).astype(np.uint8)
        images = np.stack([fitted(Image.fromarray(each), side=side) for each in grey])
        images, scale = images.reshape(*data.images.shape[:2], 1, side, side), 255
    images = np.broadcast_to(images, (*images.shape[:2], channels, side, side))
    digest = text_digest("reshaped-1", data.digest, side, channels)
    return ImageClasses(data.name, images, data.class_names, data.splits, digest, scale)
