"""Parquet files of images and labels, as the Hugging Face hub keeps them, for example timm/mini-imagenet.

The train, validation and test files of the hub hold images of the same classes, so they cannot serve as the splits of
few-shot learning. Their images are pooled, and the classes are divided by the lists of Ravi and Larochelle (2017) or by
a file that the user gives.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from hessian_tools.data.class_lists import RAVI
from hessian_tools.data.layouts.layout import Contents, Labelled, Match, group_by_home, home_suffix, labelled_images
from hessian_tools.data.splits import Split, named_split
from hessian_tools.data.tree import MAX_WHOLE, Tree
from hessian_tools.importing import one_line
from hessian_tools.validation import some_of

LOOKS_FOR = ("parquet: *.parquet with columns image and label (needs pyarrow: pip install 'hessian-tools[parquet]')",)
FILE = re.compile(r"(?P<home>(?:.*/)?)[^/]+\.parquet")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
RAVI_RULE = "Ravi and Larochelle (2017), over the pooled files"
MAX_ROWS = 10_000_000
MAX_CLASSES = 1_000_000
# The bytes of a row group, unpacked. The tools of the hub write some hundred images into a group, which take far less.
MAX_GROUP = 400_000_000
ROWS_AT_ONCE = 4  # the number of images that are held in memory together, each of which may have MAX_WHOLE bytes


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder of parquet files."""
    for home, files in group_by_home(tree, FILE).items():
        names = [file.string for file in files]
        layout = f"parquet, {len(names)} files pooled{home_suffix(home)}"
        yield Match(layout, "parquet", names, partial(_read, names=names))


def _read(tree: Tree, crop: bool, *, names: list[str]) -> Contents:
    """The contents; ``crop`` is ignored, because the images have no boxes."""
    class_names: list[str] = []
    labelled: dict[str, Labelled] = {}
    for name in names:
        with tree.open(name) as file:
            table = _parquet(file, name)
            class_names = class_names or _class_names(table)
            column = _column(table, LABEL_COLUMNS, name)
            if table.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{name} has {table.metadata.num_rows} rows; at most {MAX_ROWS} are read")
            labels = table.read(columns=[column]).column(column).to_pylist()
            for label in labels:
                if not (type(label) is int and 0 <= label < MAX_CLASSES):
                    raise ValueError(
                        f"{name} has the label {str(label)[:40]}; labels are whole numbers from 0, below {MAX_CLASSES}"
                    )
            labelled[name] = labels, partial(_images, tree, name)
    # A class for which the files give no name gets its number as its name.
    count = max((label + 1 for labels, _ in labelled.values() for label in labels), default=0)
    class_names += map(str, range(len(class_names), count))
    splits: tuple[Split, ...] = ()
    if {name for members in RAVI.values() for name in members}.issuperset(class_names):
        parts = {part: [name for name in members if name in class_names] for part, members in RAVI.items()}
        splits = (named_split("ravi", RAVI_RULE, parts),)
    return labelled_images(tuple(class_names), labelled, splits)


def _images(tree: Tree, name: str) -> Iterator[bytes]:
    with tree.open(name) as file:
        table = _parquet(file, name)
        column = _column(table, IMAGE_COLUMNS, name)
        _refuse_large_groups(table, name)
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
            for image in batch.column(column).to_pylist():
                content = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(content, bytes):
                    raise ValueError(f"{name} lacks the bytes of an image; a file that refers to images is not enough")
                if len(content) > MAX_WHOLE:
                    raise ValueError(
                        f"{name} has an image of {len(content) / 1e6:.0f} MB; at most {MAX_WHOLE / 1e6:.0f} MB are read"
                    )
                yield content


def _refuse_large_groups(table: Any, name: str) -> None:
    """Raises ValueError for a row group that would unpack to more memory than it should take."""
    for index in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(index).total_byte_size
        if size > MAX_GROUP:
            raise ValueError(
                f"{name} has a row group of {size / 1e6:.0f} MB, but at most {MAX_GROUP / 1e6:.0f} MB are read at "
                "once; write it again with fewer rows in a group"
            )


def _class_names(table: Any) -> list[str]:
    """The names of the classes from the metadata that the hub's tools write to the file; empty if there is none."""
    note = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(note).get("info", {}).get("features", {})
    for column in LABEL_COLUMNS:
        if "names" in features.get(column, {}):
            return [str(name) for name in features[column]["names"]]
    return []


def _column(table: Any, accepted: tuple[str, ...], name: str) -> str:
    """The first of the accepted column names that the table has."""
    columns = table.schema_arrow.names
    for column in accepted:
        if column in columns:
            return column
    raise ValueError(f"{name} has columns {some_of(columns)}, but none of {', '.join(accepted)}; rename a column")


def _parquet(file: Any, name: str) -> Any:
    """The file as a table of pyarrow; raises ValueError if pyarrow is not installed, or if the file is damaged."""
    try:
        reader = import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"{name} is a parquet file, and reading it needs pyarrow.\nRun: pip install 'hessian-tools[parquet]'"
        ) from None
    try:
        return reader.ParquetFile(file)
    except Exception as e:
        raise ValueError(f"{name} cannot be read as parquet ({one_line(e)}); fetch it again") from None
