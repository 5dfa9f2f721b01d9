"""Which of the known layouts a folder or zip is in, found out by looking at the names in it."""

from collections.abc import Callable

from hessian_tools.data.layouts import birds_and_cars, cifar, folders, omniglot, packed, parquet
from hessian_tools.data.layouts.layout import Contents, Match, Picture, Split
from hessian_tools.data.tree import Tree

__all__ = ["Contents", "Match", "Picture", "Split", "recognise"]

FINDERS: tuple[Callable[[Tree], list[Match]], ...] = (
    omniglot.find,
    packed.find,
    cifar.find,
    birds_and_cars.find,
    parquet.find,
    folders.find,
)
LOOKS_FOR = (
    omniglot.LOOKS_FOR,
    *packed.LOOKS_FOR,
    cifar.LOOKS_FOR,
    *birds_and_cars.LOOKS_FOR,
    parquet.LOOKS_FOR,
    *folders.LOOKS_FOR,
)
SHOWN = 5


def recognise(tree: Tree) -> Match:
    """The one data set in a tree.

    ValueError where there is none (with what lies there, and what was looked for), or where there are several.
    """
    matches = [match for find in FINDERS for match in find(tree)] or folders.find_plain(tree)
    if len(matches) > 1:
        raise ValueError(
            f"{tree.path} holds {len(matches)} data sets: {'; '.join(match.layout for match in matches[:SHOWN])}.\n"
            "Give the folder or file of one of them."
        )
    if not matches:
        raise ValueError(
            f"{tree.path} is in none of the known layouts; it holds {_inventory(tree)}.\n"
            f"Looked for: {'; '.join(LOOKS_FOR)}."
        )
    return matches[0]


def _inventory(tree: Tree) -> str:
    names = list(tree.files)
    if not names:
        return "no files"
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
