"""The two fine-grained sets with boxes: Caltech-UCSD Birds and Stanford Cars."""

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from hessian_tools.data.class_lists import META_DATASET_CUB_TEST, META_DATASET_CUB_VAL
from hessian_tools.data.layouts.layout import Box, Contents, Match, Picture, Split, by_rule, is_image
from hessian_tools.data.tree import Tree

LOOKS_FOR = (
    "CUB: CUB_200_2011/images/NNN.Name/*.jpg",
    "Cars: cars_train/*.jpg with devkit/cars_train_annos.mat and devkit/cars_meta.mat",
)
BIRD = re.compile(r"(?P<home>(?:.*/)?)images/(?P<class>(?P<number>\d{3})\.[^/]+)/[^/]+")
CAR_LABELS = re.compile(r"(?P<home>(?:.*/)?)devkit/cars_train_annos\.mat")

EVERY_FOURTH = "of class 1, 2, 3, 4, ...: odd numbers train, 2, 6, 10, ... val, 4, 8, 12, ... test"
CHEN_RULE = f"Chen et al. (2019), {EVERY_FOURTH}"
META_DATASET_RULE = "Meta-Dataset, Triantafillou et al. (2020)"
TSENG_RULE = f"Tseng et al. (2020), {EVERY_FOURTH}"


def every_fourth(number: int) -> str:
    """The rule of Chen et al. (2019) for a class number from 1.

    >>> [every_fourth(n) for n in (1, 2, 3, 4)]
    ['train', 'val', 'train', 'test']
    """
    return "train" if number % 2 else "val" if number % 4 == 2 else "test"


def find(tree: Tree) -> list[Match]:
    """Birds and cars, one match for each folder that holds them."""
    return [*_find_birds(tree), *_find_cars(tree)]


# Birds


def _find_birds(tree: Tree) -> Iterator[Match]:
    homes: dict[str, list[str]] = {}
    for name in tree.files:
        found = BIRD.fullmatch(name)
        if found and is_image(name):
            homes.setdefault(found["home"], []).append(name)
    for home, images in homes.items():
        lists = [f"{home}{name}" for name in ("images.txt", "bounding_boxes.txt")]
        boxes = all(name in tree.files for name in lists)
        yield Match(
            f"CUB-200-2011 in {home.rstrip('/') or 'its folder'}",
            "cub",
            [*images, *(lists if boxes else ())],
            partial(_read_birds, home=home, images=images),
            boxes=boxes,
        )


def _read_birds(tree: Tree, crop: bool, *, home: str, images: list[str]) -> Contents:
    names = sorted({name.split("/")[-2] for name in images})
    boxes = _bird_boxes(tree, home) if crop else {}
    rows = [(names.index(name.split("/")[-2]), name, boxes.get(name)) for name in sorted(images)]
    boxless = [name for _, name, box in rows if crop and box is None]
    if boxless:
        raise ValueError(f"{home}bounding_boxes.txt has no box for {boxless[0]}; fetch it again, or use crop=False")
    return _contents(tree, names, rows, _bird_splits(names))


def _bird_splits(names: list[str]) -> tuple[Split, ...]:
    def meta_dataset(name: str) -> str:
        number = int(name[:3])
        return "test" if number in META_DATASET_CUB_TEST else "val" if number in META_DATASET_CUB_VAL else "train"

    return (
        by_rule("100-50-50", CHEN_RULE, names, lambda name: every_fourth(int(name[:3]))),
        by_rule("140-30-30", META_DATASET_RULE, names, meta_dataset),
    )


def _bird_boxes(tree: Tree, home: str) -> dict[str, Box]:
    """Lines "id path" and "id x y width height", from 0."""
    paths = dict(line.split(maxsplit=1) for line in tree.text(f"{home}images.txt").splitlines() if line)
    boxes: dict[str, Box] = {}
    for line in filter(None, tree.text(f"{home}bounding_boxes.txt").splitlines()):
        number, *numbers = line.split()
        x, y, width, height = (round(float(n)) for n in numbers)
        boxes[f"{home}images/{paths.get(number, '').strip()}"] = (x, y, x + width, y + height)
    return boxes


# Cars


def _find_cars(tree: Tree) -> Iterator[Match]:
    for name in tree.files:
        found = CAR_LABELS.fullmatch(name)
        meta = name.replace("cars_train_annos", "cars_meta")
        if found and meta in tree.files:
            folder = f"{found['home']}cars_train/"
            images = {n.rpartition("/")[2]: n for n in tree.files if n.startswith(folder) and is_image(n)}
            yield Match(
                f"Stanford Cars, cars_train in {found['home'].rstrip('/') or 'its folder'}",
                "cars",
                [name, meta, *images.values()],
                partial(_read_cars, labels=name, meta=meta, images=images),
                boxes=True,
                crop=True,
            )


def _read_cars(tree: Tree, crop: bool, *, labels: str, meta: str, images: dict[str, str]) -> Contents:
    """Labels count from 1, and so do the pixels of a box, whose last ones are in it: MATLAB's way."""
    names = [str(name) for name in _matlab(tree, meta, "class_names")]
    rows = []
    for each in _matlab(tree, labels, "annotations"):
        label, file = int(each["class"]), str(each["fname"])
        if not 1 <= label <= len(names):
            raise ValueError(f"{labels}: {file} has label {label}; labels are 1 to {len(names)}")
        if file not in images:
            raise ValueError(f"{labels} lists {file}, which is not in cars_train; unpack the images again")
        left, top, right, bottom = (int(each[f"bbox_{key}"]) for key in ("x1", "y1", "x2", "y2"))
        rows.append((label - 1, images[file], (left - 1, top - 1, right, bottom) if crop else None))
    number = {name: i for i, name in enumerate(names, start=1)}
    split = by_rule("98-49-49", TSENG_RULE, names, lambda name: every_fourth(number[name]))
    return _contents(tree, names, sorted(rows, key=lambda row: row[:2]), (split,))


def _matlab(tree: Tree, name: str, key: str) -> list[Any]:
    from scipy.io import loadmat  # slow to import, and wanted by this layout alone

    try:
        file: Any = io.BytesIO(tree.read(name))  # scipy takes files too, its annotations do not say so
        value = loadmat(file, simplify_cells=True)[key]
    except KeyError:
        raise ValueError(f"{name} has no {key!r}; it is not the file of the Cars devkit") from None
    except Exception as e:
        raise ValueError(f"{name} cannot be read as a MATLAB file ({e}); fetch the devkit again") from None
    return [value] if isinstance(value, dict | str) else list(value)


def _contents(
    tree: Tree, names: list[str], rows: list[tuple[int, str, Box | None]], splits: tuple[Split, ...]
) -> Contents:
    def pictures() -> Iterator[Picture]:
        for position, name, box in rows:
            yield Picture(position, name, tree.read(name), box)

    counts = [0] * len(names)
    for position, _, _ in rows:
        counts[position] += 1
    return Contents(tuple(names), tuple(counts), splits, pictures)
