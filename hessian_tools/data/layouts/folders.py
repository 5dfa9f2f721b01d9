"""Images in folders: with lists of classes, with lists of images, by split and class, or just by class."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, cast

from PIL import Image, UnidentifiedImageError

from hessian_tools.data.layouts.layout import (
    PART_OF,
    Contents,
    Match,
    Split,
    given_split,
    image_files,
    is_image,
    named_split,
)
from hessian_tools.data.rebuild_quickdraw import split_by_name
from hessian_tools.data.tree import Tree

LOOKS_FOR = (
    "Bertinetto's layout (CIFAR-FS): data/<class>/*.png with splits/<name>/{train,val,test}.txt",
    "miniImageNet by CSV: images/*.jpg with {train,val,test}.csv (filename,label or class_name,image_name)",
    "folders by split: {train,val,test}/<class>/*.jpg",
    "a folder for each class: <class>/*.png",
)
LISTED = re.compile(r"(?P<home>(?:.*/)?)splits/(?P<split>[^/]+)/(?P<part>[^/]+)\.txt")
CSV_FILE = re.compile(r"(?P<home>(?:.*/)?)(?P<part>[^/]+)\.csv")
IMAGE_COLUMNS, CLASS_COLUMNS = ("filename", "image_name"), ("label", "class_name")
LARGEST_NATIVE = 128  # images larger than this are photographs, used at 84 as in the literature
BY_NAME = "by-name"
Reader = Callable[..., Contents]
BY_NAME_RULE = "64, 16 and 20 % of the classes in the order of the sha256 of their names; no split of the literature"


def find(tree: Tree) -> list[Match]:
    """Folders with lists of any kind."""
    return [*_find_listed(tree), *_find_csv(tree)]


def find_plain(tree: Tree) -> list[Match]:
    """Folders without lists: by split and class, else by class."""
    return _find_parts(tree) or _find_classes(tree)


# Bertinetto's: lists of classes


def _find_listed(tree: Tree) -> Iterator[Match]:
    homes: dict[str, dict[str, dict[str, str]]] = {}
    for name in tree.files:
        found = LISTED.fullmatch(name)
        if found and found["part"] in PART_OF:
            homes.setdefault(found["home"], {}).setdefault(found["split"], {})[PART_OF[found["part"]]] = name
    for home, lists in homes.items():
        images = [name for name in tree.files if name.startswith(f"{home}data/") and is_image(name)]
        if images:
            texts = [name for parts in lists.values() for name in parts.values()]
            size, channels = _native(tree, images[0])
            yield Match(
                f"Bertinetto's layout in {home.rstrip('/') or 'its folder'}",
                "cifar-fs" if home.rstrip("/").endswith("cifar100") else "images",
                [*images, *texts],
                partial(_read_listed, images=images, lists=lists),
                image_size=size,
                channels=channels,
            )


def _read_listed(tree: Tree, crop: bool, *, images: list[str], lists: dict[str, dict[str, str]]) -> Contents:
    classes = _by_folder(images)
    splits = []
    for name in sorted(lists, key=lambda name: (name != "bertinetto", name)):
        parts = {part: _lines(tree, file) for part, file in lists[name].items()}
        splits.append(named_split(name, f"the lists of splits/{name}", parts))
    return image_files(tree, classes, tuple(splits))


def _lines(tree: Tree, name: str) -> list[str]:
    return [line.strip() for line in tree.text(name).splitlines() if line.strip()]


# Lists of images


def _find_csv(tree: Tree) -> Iterator[Match]:
    homes: dict[str, dict[str, str]] = {}
    for name in tree.files:
        found = CSV_FILE.fullmatch(name)
        if found and found["part"] in PART_OF:
            homes.setdefault(found["home"], {})[PART_OF[found["part"]]] = name
    for home, lists in homes.items():
        images = [name for name in tree.files if name.startswith(home) and is_image(name)]
        if images:
            size, channels = _native(tree, images[0])
            yield Match(
                f"images listed by CSV in {home.rstrip('/') or 'its folder'}",
                "miniimagenet",
                [*images, *lists.values()],
                partial(_read_csv, home=home, images=images, lists=lists),
                image_size=size,
                channels=channels,
            )


def _read_csv(tree: Tree, crop: bool, *, home: str, images: list[str], lists: dict[str, str]) -> Contents:
    place = {path: name for name in images for path in _ways_to_say(name.removeprefix(home))}
    classes: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for part, file in lists.items():
        for label, image in _csv_rows(tree.text(file), file):
            if image not in place:
                raise ValueError(f"{file} lists {image}, which is not there; unpack the images again, all of them")
            classes.setdefault(label, []).append(place[image])
            parts.setdefault(part, []).append(label)
    split = given_split("the CSV files", {part: sorted(set(labels)) for part, labels in parts.items()})
    return image_files(tree, dict(sorted(classes.items())), (split,))


def _ways_to_say(path: str) -> Iterator[str]:
    """With its folders, without the first ones, down to the bare file name."""
    parts = path.split("/")
    yield from ("/".join(parts[first:]) for first in range(len(parts)))


def _csv_rows(text: str, where: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    held = [name.strip() for name in reader.fieldnames or ()]
    image = next((name for name in IMAGE_COLUMNS if name in held), None)
    label = next((name for name in CLASS_COLUMNS if name in held), None)
    if image is None or label is None:
        raise ValueError(f"{where} begins with {', '.join(held)}; use filename,label or class_name,image_name")
    reader.fieldnames = held
    for row in reader:
        if not row[image] or not row[label]:
            raise ValueError(f"{where}: line {reader.line_num} has no image or no class; mend or remove it")
        yield row[label].strip(), row[image].strip()


# Folders alone


def _find_parts(tree: Tree) -> list[Match]:
    homes: dict[str, list[str]] = {}
    for name in tree.files:
        parts = name.split("/")
        if len(parts) >= 3 and parts[-3] in PART_OF and is_image(name):
            homes.setdefault("".join(f"{part}/" for part in parts[:-3]), []).append(name)
    return [_plain_match(tree, home, names, "by split and class", _read_parts) for home, names in homes.items()]


def _read_parts(tree: Tree, crop: bool, *, images: list[str]) -> Contents:
    parts: dict[str, list[str]] = {}
    for name in images:
        part, label = name.split("/")[-3:-1]
        parts.setdefault(PART_OF[part], []).append(label)
    split = given_split("the folders", {part: sorted(set(labels)) for part, labels in parts.items()})
    return image_files(tree, _by_folder(images), (split,))


def _find_classes(tree: Tree) -> list[Match]:
    homes: dict[str, list[str]] = {}
    for name in tree.files:
        parts = name.split("/")
        if len(parts) >= 2 and is_image(name):
            homes.setdefault("".join(f"{part}/" for part in parts[:-2]), []).append(name)
    return [_plain_match(tree, home, names, "a folder for each class", _read_classes) for home, names in homes.items()]


def _read_classes(tree: Tree, crop: bool, *, images: list[str]) -> Contents:
    classes = _by_folder(images)
    return image_files(tree, classes, (hashed_split(list(classes)),))


def _plain_match(tree: Tree, home: str, images: list[str], kind: str, read: Reader) -> Match:
    places = {name.rpartition("/")[0].rpartition("/")[0] for name in images}
    hollow = [folder for folder in tree.empty if folder.rpartition("/")[0] in places]
    if hollow:
        raise ValueError(f"the class folder {hollow[0]} in {tree.path} is empty; fill or remove it")
    size, channels = _native(tree, images[0])
    layout = f"images in folders, {kind}" + (f", in {home.rstrip('/')}" if home else "")
    return Match(layout, "images", images, partial(read, images=images), size, channels)


def hashed_split(class_names: list[str]) -> Split:
    """A split for data that come without: a hash of the name alone decides, so nobody chose and anybody can check."""
    count = len(class_names)
    if count < 3:
        return named_split(BY_NAME, "fewer than three classes, all for training", {"train": class_names})
    val, test = max(round(0.16 * count), 1), max(round(0.2 * count), 1)
    parts = split_by_name(class_names, {"train": count - val - test, "val": val, "test": test})
    return named_split(BY_NAME, BY_NAME_RULE, parts)


def _by_folder(images: list[str]) -> dict[str, list[str]]:
    """Images by the folder they lie in; a class in two places is refused."""
    classes: dict[str, list[str]] = {}
    for name in sorted(images):
        classes.setdefault(name.split("/")[-2], []).append(name)
    for label, names in classes.items():
        places = sorted({name.rpartition("/")[0] for name in names})
        if len(places) > 1:
            raise ValueError(f"the class {label} lies in two places, {places[0]} and {places[1]}; keep one of them")
    return dict(sorted(classes.items()))


def _native(tree: Tree, name: str) -> tuple[int, int]:
    """(side, channels) to use for a folder of such images: their own, but 84 for photographs."""
    try:
        with tree.open(name) as file, Image.open(cast(IO[bytes], file)) as image:
            side = max(image.size)
            return (side if side <= LARGEST_NATIVE else 84), (1 if image.mode in ("1", "L") else 3)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise ValueError(f"{name} in {tree.path} cannot be read as an image ({e}); fetch it again") from None
