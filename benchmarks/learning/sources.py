"""Tasks to train on and tasks to judge by, of each data set."""

import json
from dataclasses import dataclass
from pathlib import Path

from hessian_tools.data import ImageTasks, SineLineTasks, TaskSource, load_quickdraw, open_data, reshaped
from hessian_tools.data.class_lists import OMNIGLOT_BACKGROUND, VINYALS_VAL
from hessian_tools.data.episodes import ClassSet
from hessian_tools.runs.files import write_text

JUDGED_BY = 15  # query images per class


@dataclass(frozen=True)
class Source:
    """Training tasks, and those of validation and test: more queries, never turned."""

    training: TaskSource
    judging: TaskSource
    words: str


def image_source(data: ClassSet, *, queries: int, words: str, judged: ClassSet | None = None) -> Source:
    """5-way 1-shot tasks; ``queries`` per class in training, 15 to judge by."""
    return Source(ImageTasks(data, queries=queries), ImageTasks(judged or data, queries=JUDGED_BY), words)


def quickdraw(queries: int, *, channels: int, side: int) -> Source:
    """The bundled drawings."""
    data = reshaped(load_quickdraw(), image_size=side, channels=channels)
    return image_source(data, queries=queries, words="QuickDraw, 220 / 55 / 70 classes")


def cifar_fs(place: Path, queries: int, *, cache: Path, channels: int, side: int) -> Source:
    """CIFAR-FS by its own split."""
    data = open_data(place, cache=cache, image_size=side, channels=channels)
    sizes = " / ".join(str(len(data.splits[split])) for split in ("train", "val", "test"))
    return image_source(data, queries=queries, words=f"CIFAR-FS, {sizes} classes of {data.count(0)} images")


def omniglot(place: Path, queries: int, *, cache: Path, channels: int, side: int) -> Source:
    """Omniglot: judged on the 659 official evaluation characters, validated on five alphabets of the background set."""
    split = omniglot_split(place, cache)
    turned, upright = (
        open_data(place, split=split, cache=cache, image_size=side, channels=channels, rotations=rotations)
        for rotations in (True, False)
    )
    train, val, test = (len(upright.splits[part]) for part in ("train", "val", "test"))
    words = f"Omniglot, {train} background characters in four rotations / {val} / the {test} evaluation characters"
    return image_source(turned, judged=upright, queries=queries, words=words)


def regression() -> Source:
    """Sines and lines."""
    tasks = SineLineTasks()
    return Source(tasks, tasks, "half sines, half lines, 5 noisy points to adapt on and 45 to judge by")


def omniglot_split(place: Path, cache: Path) -> Path:
    """A split file: the official test characters, and of the background set five alphabets held back."""
    names = open_data(place, split="official", cache=cache).class_names
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in names:
        alphabet = name.split("/")[0]
        background = "val" if alphabet in VINYALS_VAL else "train"
        parts[background if alphabet in OMNIGLOT_BACKGROUND else "test"].append(name)
    path = cache / "omniglot-split.json"
    write_text(path, json.dumps(parts, indent=1) + "\n")
    return path
