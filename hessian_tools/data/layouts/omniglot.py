"""Omniglot: an alphabet, its characters, twenty drawings of each; torchvision's folders or zips, and pooled copies."""

import re

from hessian_tools.data.class_lists import OMNIGLOT_BACKGROUND, OMNIGLOT_EVALUATION, VINYALS_TEST_FROM, VINYALS_VAL
from hessian_tools.data.layouts.layout import Contents, Match, Split, by_rule, image_files, is_image
from hessian_tools.data.tree import Tree

LOOKS_FOR = "Omniglot: [images_background/, images_evaluation/ or their zips] <Alphabet>/characterNN/*.png"
CHARACTER = re.compile(r"(?P<above>(?:.*/)?)(?P<alphabet>[^/]+)/(?P<character>character\d+)/[^/]+")
SET_FOLDERS = re.compile(r"(?:images_(?:background|evaluation)(?:\.zip)?/)*$")
SMALL = "images_background_small"  # copies of a part of the same drawings

VINYALS_RULE = (
    "as used since Vinyals et al. (2016): the last 423 of the 1623 characters for test, 5 alphabets for validation"
)
OFFICIAL_RULE = "Lake et al. (2015): the background set for training, the evaluation set for test, none for validation"


def find(tree: Tree) -> list[Match]:
    """One match for each folder that holds Omniglot's alphabets."""
    homes: dict[str, list[str]] = {}
    for name in tree.files:
        found = CHARACTER.fullmatch(name) if is_image(name) and SMALL not in name else None
        if found and found["alphabet"] in (*OMNIGLOT_BACKGROUND, *OMNIGLOT_EVALUATION):
            homes.setdefault(SET_FOLDERS.sub("", found["above"]), []).append(name)
    return [_match(home, names) for home, names in homes.items()]


def _match(home: str, names: list[str]) -> Match:
    zipped = any(".zip/" in name for name in names)
    layout = f"Omniglot, {'zips' if zipped else 'folders'} of alphabets" + (f" in {home.rstrip('/')}" if home else "")

    def read(tree: Tree, crop: bool) -> Contents:
        return _read(tree, names)

    return Match(layout, "omniglot", names, read, image_size=28, channels=1, ink=True)


def _read(tree: Tree, names: list[str]) -> Contents:
    classes: dict[str, list[str]] = {}
    for name in names:
        found = CHARACTER.fullmatch(name)
        assert found is not None, name  # only such names were kept
        classes.setdefault(f"{found['alphabet']}/{found['character']}", []).append(name)
    ordered = dict(sorted(classes.items(), key=lambda item: (_evaluation(item[0]), item[0])))
    return image_files(tree, ordered, _splits(list(ordered)))


def _splits(class_names: list[str]) -> tuple[Split, ...]:
    return (
        by_rule("vinyals", VINYALS_RULE, class_names, _vinyals),
        by_rule("official", OFFICIAL_RULE, class_names, lambda name: "test" if _evaluation(name) else "train"),
    )


def _evaluation(class_name: str) -> bool:
    return class_name.split("/")[0] in OMNIGLOT_EVALUATION


def _vinyals(class_name: str) -> str:
    alphabet, character = class_name.split("/")
    if _evaluation(class_name) and (alphabet, character) >= VINYALS_TEST_FROM:
        return "test"
    return "val" if alphabet in VINYALS_VAL else "train"
