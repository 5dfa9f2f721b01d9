"""Parquet files of images and labels, as the Hugging Face hub keeps them (timm/mini-imagenet among them).

Their train, validation and test files share the classes, so they are no meta-splits: images are pooled, and classes
divided by the lists of Ravi and Larochelle (2017), or by a file of the user's.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from hessian_tools.data.class_lists import RAVI_TEST, RAVI_TRAIN, RAVI_VAL
from hessian_tools.data.layouts.layout import Contents, Match, Picture, Split, named_split
from hessian_tools.data.tree import Tree

LOOKS_FOR = "parquet: *.parquet with columns image and label (needs pyarrow: pip install 'hessian-tools[parquet]')"
FILE = re.compile(r"(?P<home>(?:.*/)?)[^/]+\.parquet")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
RAVI_RULE = "Ravi and Larochelle (2017), over the pooled files"
BATCH = 256


def find(tree: Tree) -> list[Match]:
    """One match for each folder of parquet files."""
    homes: dict[str, list[str]] = {}
    for name in sorted(tree.files):
        found = FILE.fullmatch(name)
        if found:
            homes.setdefault(found["home"], []).append(name)
    return [
        Match(
            f"parquet, {len(names)} files pooled{f' in {home.rstrip(chr(47))}' if home else ''}",
            "parquet",
            names,
            partial(_read, names=names),
        )
        for home, names in homes.items()
    ]


def _read(tree: Tree, crop: bool, *, names: list[str]) -> Contents:
    labels: list[int] = []
    class_names: list[str] = []
    for name in names:
        with tree.open(name) as file:
            table = _parquet(file, name)
            class_names = class_names or _class_names(table)
            column = _column(table, LABEL_COLUMNS, name)
            labels += table.read(columns=[column]).column(column).to_pylist()
    count = max(len(class_names), max(labels, default=-1) + 1)
    class_names += [str(label) for label in range(len(class_names), count)]
    counts = tuple(int(n) for n in np.bincount(labels, minlength=count))
    return Contents(tuple(class_names), counts, _splits(class_names), partial(_pictures, tree, names))


def _splits(class_names: list[str]) -> tuple[Split, ...]:
    lists = {"train": RAVI_TRAIN, "val": RAVI_VAL, "test": RAVI_TEST}
    known = {name for members in lists.values() for name in members}
    if not set(class_names) <= known:
        return ()
    parts = {part: [name for name in members if name in class_names] for part, members in lists.items()}
    return (named_split("ravi", RAVI_RULE, parts),)


def _pictures(tree: Tree, names: list[str]) -> Iterator[Picture]:
    for name in names:
        with tree.open(name) as file:
            table = _parquet(file, name)
            image, label = _column(table, IMAGE_COLUMNS, name), _column(table, LABEL_COLUMNS, name)
            row = 0
            for batch in table.iter_batches(batch_size=BATCH, columns=[image, label]):
                for each in batch.to_pylist():
                    yield Picture(each[label], f"row {row} of {name}", _bytes(each[image], row, name))
                    row += 1


def _bytes(image: Any, row: int, name: str) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise ValueError(f"{name}: row {row} has no image bytes; files that only point at images cannot be read")
    return content


def _class_names(table: Any) -> list[str]:
    """From the note that the hub's tools leave in the file, if it is there."""
    note = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(note).get("info", {}).get("features", {})
    for column in LABEL_COLUMNS:
        if "names" in features.get(column, {}):
            return [str(name) for name in features[column]["names"]]
    return []


def _column(table: Any, wanted: tuple[str, ...], name: str) -> str:
    held = table.schema_arrow.names
    for column in wanted:
        if column in held:
            return column
    raise ValueError(f"{name} has columns {', '.join(held)} but none of {', '.join(wanted)}")


def _parquet(file: Any, name: str) -> Any:
    try:
        reader = import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"{name} is a parquet file, and reading it needs pyarrow.\nRun: pip install 'hessian-tools[parquet]'"
        ) from None
    try:
        return reader.ParquetFile(file)
    except Exception as e:
        raise ValueError(f"{name} cannot be read as parquet ({e}); fetch it again") from None
