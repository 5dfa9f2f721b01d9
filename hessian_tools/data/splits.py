"""How the classes of a data set are divided into train, val and test: by the data, by a rule, or by a user's file."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hessian_tools.validation import did_you_mean, some_of

MAX_BYTES = 10_000_000  # of a user's file that divides the classes
# The parts of a split, each with all names that the literature uses for it.
PARTS = {
    "train": ("train", "base", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "novel", "testing"),
}
# For each of all these names, the part that the name stands for.
PART_OF = {alias: part for part, aliases in PARTS.items() for alias in aliases}
BY_NAME_RULE = "64, 16 and 20 % of the classes in the order of the sha256 of their names; no split of the literature"


@dataclass(frozen=True)
class Split:
    """A named division of classes into parts.

    rule: how the classes are divided, in words, with the source. parts: the class names of train, val and test.
    """

    name: str
    rule: str
    parts: Mapping[str, tuple[str, ...]]

    def positions(self, class_names: Sequence[str], data_name: str) -> dict[str, tuple[int, ...]]:
        """For each part, the positions of its classes among ``class_names``.

        data_name: the name of the data in messages. Raises ValueError for a class that is not among ``class_names``.
        """
        position = {name: i for i, name in enumerate(class_names)}
        for name in (name for names in self.parts.values() for name in names):
            if name not in position:
                hint = did_you_mean(name, class_names)
                raise ValueError(f"the split {self.name} names a class {name!r} that {data_name} does not hold{hint}")
        return {part: tuple(position[name] for name in names) for part, names in self.parts.items()}


def named_split(name: str, rule: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """A split whose parts are in the order train, val, test; empty parts and repeated class names are left out."""
    members = {part: tuple(dict.fromkeys(parts.get(part, ()))) for part in PARTS}
    return Split(name, rule, {part: names for part, names in members.items() if names})


def given_split(source: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """The split into which the data are already divided by their files or folders."""
    return named_split("given", f"as given by {source}", parts)


def split_by_rule(name: str, rule: str, class_names: Sequence[str], part_of: Callable[[str], str]) -> Split:
    """The split that puts each class into the part that ``part_of`` returns for its name."""
    return named_split(
        name, rule, {part: [class_name for class_name in class_names if part_of(class_name) == part] for part in PARTS}
    )


def split_by_lists(
    name: str, rule: str, class_names: Sequence[str], lists: Mapping[str, list[Any]], key: Callable[[str], Any] = str
) -> Split:
    """The split whose classes for val and for test are listed; all other classes are for train.

    lists: the classes of val and of test. key: a function that turns a class name into an entry as the lists hold it,
    such as the number of the class.
    """

    def part_of(class_name: str) -> str:
        return next((part for part, members in lists.items() if key(class_name) in members), "train")

    return split_by_rule(name, rule, class_names, part_of)


def shares_by_hash(names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Divide names into parts of the given sizes; the names of each part are sorted.

    The names are ordered by their hashes and then cut into parts, so that the choice is arbitrary and can be repeated.
    """
    in_order = iter(sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest()))
    return {part: sorted(islice(in_order, size)) for part, size in sizes.items()}


def split_by_hash(class_names: Sequence[str]) -> Split:
    """The split that is used for data without one: the classes are divided by the hashes of their names."""
    count = len(class_names)
    if count < 3:
        return named_split("by-name", "fewer than three classes, all for training", {"train": class_names})
    val, test = max(round(0.16 * count), 1), max(round(0.2 * count), 1)
    parts = shares_by_hash(class_names, {"train": count - val - test, "val": val, "test": test})
    return named_split("by-name", BY_NAME_RULE, parts)


def chosen_split(offered: Sequence[Split], choice: str | Path | None, layout: str) -> Split:
    """The split that the user chose, by its name or by a file; the first one offered if ``choice`` is None."""
    by_name = {split.name: split for split in offered}
    if choice is None and not offered:
        raise ValueError(f"no split is known for the classes of {layout}; give a .json or .csv file with split=")
    if choice is None or choice in by_name:
        return offered[0] if choice is None else by_name[str(choice)]
    return split_from_file(choice, known=tuple(by_name))


def split_from_file(choice: str | Path, *, known: Collection[str] = ()) -> Split:
    """Read a split from a user's file: .json with a mapping of parts to class names, or .csv with lines of class,split.

    known: the names of the splits that the user could have given instead, for the error message.
    """
    file = Path(os.path.expanduser(choice))
    if file.suffix not in (".json", ".csv") or not file.is_file():
        names = f"one of {', '.join(known)}, or " if known else ""
        raise ValueError(f"split={str(choice)!r} is not known; give {names}a .json or .csv file that exists")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"split={str(choice)!r} has more than {MAX_BYTES / 1e6:g} MB, which no list of classes needs")
    parts = _json_parts(file) if file.suffix == ".json" else _csv_parts(file)
    if not parts or not set(parts) <= set(PART_OF):
        unknown = some_of(part for part in parts if part not in PART_OF)
        raise ValueError(f"{file} divides the classes into {unknown}; use train, val and test")
    return named_split(file.name, f"your file {file.name}", {PART_OF[part]: names for part, names in parts.items()})


def _json_parts(file: Path) -> Mapping[str, Sequence[str]]:
    try:
        parts = json.loads(file.read_text(encoding="utf-8-sig"))
        return {str(part): [str(name) for name in names] for part, names in parts.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{file} is not a JSON mapping of train, val and test to lists of class names") from None


def _csv_parts(file: Path) -> Mapping[str, Sequence[str]]:
    parts: dict[str, list[str]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"))), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[-1] not in PART_OF):  # a blank line, or the names of the columns
            continue
        if len(cells) != 2:
            raise ValueError(f"{file}: line {number} has {len(cells)} fields; use class,split")
        parts.setdefault(cells[1], []).append(cells[0])
    return parts
