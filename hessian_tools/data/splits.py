"""How the classes of a data set are divided into train, val and test: as given, by a rule, or by a user's file."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import Any

PARTS = {
    "train": ("train", "base", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "novel", "testing"),
}
# Every name that a part of a split goes by in the literature, and our own name for it.
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

    def positions(self, class_names: Sequence[str], of: str) -> dict[str, tuple[int, ...]]:
        """The positions of each part's classes among ``class_names``.

        ``of`` names the data in the message. Raises ValueError, with the nearest name, for a class that is missing.
        """
        position = {name: i for i, name in enumerate(class_names)}
        for name in (name for names in self.parts.values() for name in names):
            if name not in position:
                hint = did_you_mean(name, class_names)
                raise ValueError(f"the split {self.name} names a class {name!r} that {of} does not hold{hint}")
        return {part: tuple(position[name] for name in names) for part, names in self.parts.items()}


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the known name nearest to a value, or nothing.

    >>> did_you_mean("tset", ["train", "test"])
    "; did you mean 'test'?"
    """
    near = get_close_matches(value, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def named_split(name: str, rule: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """A split whose parts are in the order train, val, test; empty parts and repeated names are dropped."""
    members = {part: tuple(dict.fromkeys(parts.get(part, ()))) for part in PARTS}
    return Split(name, rule, {part: names for part, names in members.items() if names})


def given_split(source: str, parts: Mapping[str, Iterable[str]]) -> Split:
    """The split that the data themselves come in."""
    return named_split("given", f"as given by {source}", parts)


def split_by_rule(name: str, rule: str, class_names: Sequence[str], part_of: Callable[[str], str]) -> Split:
    """The split that puts each class in the part which a function of its name returns."""
    return named_split(name, rule, {part: [each for each in class_names if part_of(each) == part] for part in PARTS})


def split_by_lists(
    name: str,
    rule: str,
    class_names: Sequence[str],
    *,
    val: Collection[Any],
    test: Collection[Any],
    key: Callable[[str], Any] = str,
) -> Split:
    """The split of the literature that lists the classes of val and of test; all others are train.

    key: turns a class name into what the lists hold, such as its number.
    """

    def part_of(class_name: str) -> str:
        member = key(class_name)
        return "test" if member in test else "val" if member in val else "train"

    return split_by_rule(name, rule, class_names, part_of)


def shares_by_hash(names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The names divided into parts of the given sizes, each part sorted.

    A hash of the name alone decides: nobody chose the classes, and anybody can check.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest())
    ends = list(accumulate(sizes.values()))
    return {part: sorted(order[end - size : end]) for (part, size), end in zip(sizes.items(), ends, strict=True)}


def split_by_hash(class_names: Sequence[str]) -> Split:
    """The split of data that come without one, by a hash of the class names."""
    count = len(class_names)
    if count < 3:
        return named_split("by-name", "fewer than three classes, all for training", {"train": class_names})
    val, test = max(round(0.16 * count), 1), max(round(0.2 * count), 1)
    parts = shares_by_hash(class_names, {"train": count - val - test, "val": val, "test": test})
    return named_split("by-name", BY_NAME_RULE, parts)


def chosen_split(offered: Sequence[Split], choice: str | Path | None, layout: str) -> Split:
    """The split that the user asks for: the first one offered if ``choice`` is None, else by name or from a file."""
    by_name = {split.name: split for split in offered}
    if choice is None and not offered:
        raise ValueError(f"no split is known for the classes of {layout}; give a .json or .csv file with split=")
    if choice is None or choice in by_name:
        return offered[0] if choice is None else by_name[str(choice)]
    return split_from_file(choice, known=tuple(by_name))


def split_from_file(choice: str | Path, *, known: Collection[str] = ()) -> Split:
    """The split in a user's file: .json, a mapping of parts to class names; or .csv, lines of class,split.

    known: the names of splits that could have been meant instead, for the message.
    """
    file = Path(choice).expanduser()
    if file.suffix not in (".json", ".csv") or not file.is_file():
        names = f"one of {', '.join(known)}, or " if known else ""
        raise ValueError(f"split={str(choice)!r} is not known; give {names}a .json or .csv file that exists")
    parts = _json_parts(file) if file.suffix == ".json" else _csv_parts(file)
    if not parts or not set(parts) <= set(PART_OF):
        unknown = ", ".join(part for part in parts if part not in PART_OF)
        raise ValueError(f"{file} divides into {unknown or 'nothing'}; use train, val and test")
    return named_split(file.name, f"your file {file.name}", {PART_OF[part]: names for part, names in parts.items()})


def _json_parts(file: Path) -> Mapping[str, Sequence[str]]:
    try:
        parts = json.loads(file.read_text(encoding="utf-8-sig"))
        return {str(part): [str(name) for name in names] for part, names in parts.items()}
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{file} is not a JSON mapping of train, val and test to lists of class names") from None


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
