"""The layouts in which data sets are kept, and the function that recognises a layout by the names of the files."""

from itertools import islice

from hessian_tools.data.layouts import birds_and_cars, cifar, folders, omniglot, packed, parquet
from hessian_tools.data.layouts.layout import Contents, Match, Picture
from hessian_tools.data.tree import Tree

__all__ = ["Contents", "Match", "Picture", "recognise"]

LAYOUTS = (omniglot, packed, cifar, birds_and_cars, parquet, folders)
MAX_LISTED = 5  # the number of data sets or files that a message lists at most


def recognise(tree: Tree) -> Match:
    """Recognise the one data set in a tree of files.

    Raises ValueError if there is none, with the first files of the tree and the layouts that were looked for, and if
    there are several.
    """
    # Plain folders of images are looked for last, because the images of most other layouts lie in folders, too.
    matches = [match for layout in LAYOUTS for match in layout.find(tree)] or folders.find_plain(tree)
    if len(matches) > 1:
        layouts = "; ".join(match.layout for match in matches[:MAX_LISTED])
        raise ValueError(
            f"{tree.path} holds {len(matches)} data sets: {layouts}.\nGive the folder or file of one of them."
        )
    if not matches:
        held = ", ".join(islice(tree.files, MAX_LISTED)) or "no files"
        more = f" and {len(tree.files) - MAX_LISTED} more" if len(tree.files) > MAX_LISTED else ""
        known = "; ".join(description for layout in LAYOUTS for description in layout.LOOKS_FOR)
        raise ValueError(f"{tree.path} is in none of the known layouts; it holds {held}{more}.\nLooked for: {known}.")
    return matches[0]
