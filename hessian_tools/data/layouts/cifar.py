"""CIFAR-100 as its authors distribute it: its train and test images are pooled, 600 a class."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from hessian_tools.data.class_lists import CIFAR_FS_TEST, CIFAR_FS_VAL, FC100_TEST, FC100_VAL
from hessian_tools.data.layouts.layout import Contents, Match, Picture, by_rule, same_length
from hessian_tools.data.safe_pickle import load_pickle
from hessian_tools.data.tree import Tree

LOOKS_FOR = "CIFAR-100: cifar-100-python/{train,test,meta}"
META = re.compile(r"(?P<home>(?:.*/)?)meta")
CIFAR_FS_RULE = "CIFAR-FS, Bertinetto et al. (2019)"
FC100_RULE = "FC100, Oreshkin et al. (2018): by superclass"
SIDE = 32


def find(tree: Tree) -> list[Match]:
    """A folder with train, test and meta, and nothing of the kind elsewhere."""
    homes = [found["home"] for name in tree.files if (found := META.fullmatch(name))]
    both = [home for home in homes if f"{home}train" in tree.files and f"{home}test" in tree.files]
    return [_match(home) for home in both]


def _match(home: str) -> Match:
    files = [f"{home}{part}" for part in ("train", "test", "meta")]
    return Match(
        f"CIFAR-100 in {home.rstrip('/') or 'its folder'}, train and test pooled",
        "cifar100",
        files,
        partial(_read, files=files),
        image_size=SIDE,
    )


def _read(tree: Tree, crop: bool, *, files: list[str]) -> Contents:
    *parts, meta = files
    names = tuple(str(name) for name in _load(tree, meta, "fine_label_names")["fine_label_names"])
    fine: list[int] = []
    coarse: dict[str, int] = {}
    for name in parts:
        data = _load(tree, name, "data", "fine_labels", "coarse_labels")
        same_length(name, len(data["data"]), len(data["fine_labels"]))
        same_length(name, len(data["data"]), len(data["coarse_labels"]))
        if max(data["fine_labels"]) >= len(names):
            raise ValueError(f"{name} has label {max(data['fine_labels'])} but {meta} names {len(names)} classes")
        fine += [int(label) for label in data["fine_labels"]]
        coarse |= {names[f]: int(c) for f, c in zip(data["fine_labels"], data["coarse_labels"], strict=True)}
    counts = tuple(int(n) for n in np.bincount(fine, minlength=len(names)))
    splits = (
        by_rule("cifar-fs", CIFAR_FS_RULE, names, lambda n: _listed(n, CIFAR_FS_VAL, CIFAR_FS_TEST)),
        by_rule("fc100", FC100_RULE, names, lambda n: _listed(coarse.get(n), FC100_VAL, FC100_TEST)),
    )
    return Contents(names, counts, splits, partial(_pictures, tree, parts))


def _listed(member: Any, val: Any, test: Any) -> str:
    return "test" if member in test else "val" if member in val else "train"


def _pictures(tree: Tree, parts: list[str]) -> Iterator[Picture]:
    for name in parts:
        data = _load(tree, name, "data", "fine_labels")
        pixels = np.asarray(data["data"], np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        for row, (label, image) in enumerate(zip(data["fine_labels"], pixels, strict=True)):
            yield Picture(int(label), f"image {row} of {name}", image)


def _load(tree: Tree, name: str, *keys: str) -> Mapping[str, Any]:
    with tree.open(name) as file:
        data = load_pickle(file, where=name)
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}; it is not CIFAR-100 as cifar-100-python.tar.gz holds it")
    return data
