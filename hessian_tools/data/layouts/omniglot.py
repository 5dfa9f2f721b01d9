"""Omniglot: alphabets of characters with twenty drawings each, in torchvision's folders or zips, or in one folder."""

import re
from collections.abc import Iterator
from functools import partial

from hessian_tools.data.class_lists import OMNIGLOT, VINYALS
from hessian_tools.data.layouts.layout import Contents, Match, group_by_home, home_suffix, image_files
from hessian_tools.data.splits import split_by_rule
from hessian_tools.data.tree import Tree

LOOKS_FOR = ("Omniglot: [images_background/, images_evaluation/ or their zips] <Alphabet>/characterNN/*.png",)
# The authors (Lake et al., 2015) divide the alphabets into two sets, images_background and images_evaluation. The group
# ``home`` is matched lazily, so that it does not take in the folders and zips of these sets.
DRAWING = re.compile(
    r"(?P<home>(?:[^/]+/)*?)(?:images_(?:background|evaluation)(?:\.zip)?/)*"
    r"(?P<alphabet>[^/]+)/(?P<character>character\d+)/[^/]+"
)
ALPHABETS = {alphabet for alphabets in OMNIGLOT.values() for alphabet in alphabets}
# The folders images_background_small1 and 2 repeat a part of the drawings, so they are left out.
SMALL = "images_background_small"

VINYALS_RULE = (
    "as used since Vinyals et al. (2016): the last 423 of the 1623 characters for test, 5 alphabets for validation"
)
OFFICIAL_RULE = "Lake et al. (2015): the background set for training, the evaluation set for test, none for validation"


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder that holds alphabets of Omniglot."""
    for home, matches in group_by_home(tree, DRAWING, images=True).items():
        drawings = [m for m in matches if m["alphabet"] in ALPHABETS and SMALL not in m.string]
        if drawings:
            names = [drawing.string for drawing in drawings]
            kind = "zips" if any(".zip/" in name for name in names) else "folders"
            layout = f"Omniglot, {kind} of alphabets{home_suffix(home)}"
            read = partial(_read, drawings=drawings)
            yield Match(layout, "omniglot", names, read, image_size=28, channels=1, invert=True)


def _read(tree: Tree, crop: bool, *, drawings: list[re.Match[str]]) -> Contents:
    """The contents; ``crop`` is ignored, because the drawings have no boxes."""
    classes: dict[str, list[str]] = {}
    for drawing in drawings:
        classes.setdefault(f"{drawing['alphabet']}/{drawing['character']}", []).append(drawing.string)
    # The background set comes first, and each set is ordered by name, as in Lake et al. The splits go by the names of
    # the classes, but the episodes that are drawn depend on this order.
    classes = dict(sorted(classes.items(), key=lambda item: (_is_evaluation(item[0]), item[0])))
    splits = (
        split_by_rule("vinyals", VINYALS_RULE, list(classes), _vinyals),
        split_by_rule(
            "official", OFFICIAL_RULE, list(classes), lambda name: "test" if _is_evaluation(name) else "train"
        ),
    )
    return image_files(tree, classes, splits)


def _is_evaluation(class_name: str) -> bool:
    return class_name.split("/")[0] in OMNIGLOT["evaluation"]


def _vinyals(class_name: str) -> str:
    """The part of the split "vinyals" that a class belongs to."""
    alphabet, character = class_name.split("/")
    # VINYALS["test_from"] is the first character for test. Two lists are compared by alphabet, and then by character.
    if _is_evaluation(class_name) and [alphabet, character] >= VINYALS["test_from"]:
        return "test"
    return "val" if alphabet in VINYALS["val"] else "train"
