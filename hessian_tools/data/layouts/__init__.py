"""The layouts in which data sets are kept, and which of them a folder or zip is in, recognised by its file names."""

from itertools import islice

from hessian_tools.data.layouts import birds_and_cars, cifar, folders, omniglot, packed, parquet
from hessian_tools.data.layouts.layout import Contents, Match, Picture
from hessian_tools.data.tree import Tree

__all__ = ["Contents", "Match", "Picture", "recognise"]

LAYOUTS = (omniglot, packed, cifar, birds_and_cars, parquet, folders)
SHOWN = 5  # data sets or files that a message lists at most


def recognise(tree: Tree) -> Match:
    """The one data set in a tree.

    Raises ValueError where there is none, saying what lies there and what was looked for, or where there are several.
    """
    matches = [match for layout in LAYOUTS for match in layout.find(tree)] or folders.find_plain(tree)
    if len(matches) > 1:
        raise ValueError(
            f"{tree.path} holds {len(matches)} data sets: {'; '.join(match.layout for match in matches[:SHOWN])}.\n"
            "Give the folder or file of one of them."
        )
    if not matches:
        held = ", ".join(islice(tree.files, SHOWN)) or "no files"
        more = f" and {len(tree.files) - SHOWN} more" if len(tree.files) > SHOWN else ""
        known = "; ".join(description for layout in LAYOUTS for description in layout.LOOKS_FOR)
        raise ValueError(f"{tree.path} is in none of the known layouts; it holds {held}{more}.\nLooked for: {known}.")
    return matches[0]
