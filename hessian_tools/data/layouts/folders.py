"""Images in folders whose split is given by lists of classes, by lists of images, by folder names, or not at all."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image, UnidentifiedImageError

from hessian_tools.data.layouts.layout import (
    Contents,
    Match,
    group_by_folder,
    group_by_home,
    home_suffix,
    image_files,
    is_image,
    open_image,
    parts_by_home,
)
from hessian_tools.data.splits import PART_OF, given_split, named_split, split_by_hash
from hessian_tools.data.tree import Tree
from hessian_tools.validation import some_of

LOOKS_FOR = (
    "Bertinetto's layout (CIFAR-FS): data/<class>/*.png with splits/<name>/{train,val,test}.txt",
    "miniImageNet by CSV: images/*.jpg with {train,val,test}.csv or split/{train,val,test}.csv (filename,label or "
    "class_name,image_name)",
    "folders by split: {train,val,test}/<class>/*.jpg, also as {Train,Val,Test}",
    "a folder for each class: <class>/*.png",
)
# home: the folder in which a data set lies, with its slash; "" for the root.
CLASS_LIST = re.compile(r"(?P<home>(?:.*/)?)splits/(?P<split>[^/]+)/(?P<part>[^/]+)\.txt")
# The lists may lie in a folder of their own. The home is matched as short as possible, so that it excludes this folder.
IMAGE_LIST = re.compile(r"(?P<home>(?:.*?/)??)(?:splits?/)?(?P<part>[^/]+)\.csv")
IN_PART_FOLDER = re.compile(rf"(?P<home>(?:.*/)?)(?P<part>(?i:{'|'.join(PART_OF)}))/[^/]+/[^/]+")
IN_CLASS_FOLDER = re.compile(r"(?P<home>(?:.*/)?)[^/]+/[^/]+")
# The names that the column of the images, and that of the classes, may have in a CSV file.
IMAGE_COLUMNS, CLASS_COLUMNS = ("filename", "image_name"), ("label", "class_name")
# Images of at most this side are used at their own size. Larger ones are photographs, which are resized to 84.
LARGEST_NATIVE = 128


def find(tree: Tree) -> Iterator[Match]:
    """One match for each folder that holds images together with lists of classes or with lists of images."""
    for home, matches in group_by_home(tree, CLASS_LIST).items():
        splits: dict[str, dict[str, str]] = {}  # for the name of each split, the file that lists each part's classes
        for matched in matches:
            if matched["part"] in PART_OF:
                splits.setdefault(matched["split"], {})[PART_OF[matched["part"]]] = matched.string
        images = [name for name in tree.files if name.startswith(f"{home}data/") and is_image(name)]
        if splits and images:
            layout = f"Bertinetto's layout{home_suffix(home)}"
            name = "cifar-fs" if home.rstrip("/").endswith("cifar100") else "images"
            lists = [file for parts in splits.values() for file in parts.values()]
            yield _match(tree, layout, name, images, partial(_read_class_lists, splits=splits), lists)
    for home, parts in parts_by_home(tree, IMAGE_LIST).items():
        images = [name for name in tree.files if name.startswith(home) and is_image(name)]
        if images:
            read = partial(_read_image_lists, home=home, lists=parts)
            layout = f"images listed by CSV{home_suffix(home)}"
            yield _match(tree, layout, "miniimagenet", images, read, list(parts.values()))


def find_plain(tree: Tree) -> list[Match]:
    """One match for each folder of images without lists: folders by split and class or, if there are none, by class.

    It is called only if ``find`` has found nothing, in this layout and in all others.
    """
    for pattern, kind, read in (
        (IN_PART_FOLDER, "by split and class", _read_parts),
        (IN_CLASS_FOLDER, "a folder for each class", _read_classes),
    ):
        matches = []
        for home, files in group_by_home(tree, pattern, images=True).items():
            images = [file.string for file in files]
            # The folders in which the folders of the classes lie.
            class_homes = {name.rpartition("/")[0].rpartition("/")[0] for name in images}
            for folder in tree.empty:
                if folder.rpartition("/")[0] in class_homes:
                    raise ValueError(
                        f"the class folder {folder} in {tree.path} is empty; fill it, or move it elsewhere"
                    )
            matches.append(_match(tree, f"images in folders{home_suffix(home)}, {kind}", "images", images, read))
        if matches:
            return matches
    return []


def _match(
    tree: Tree, layout: str, name: str, images: list[str], read: Callable[..., Contents], lists: list[str] | None = None
) -> Match:
    """A match whose image size and channels are those of its first image, except that photographs are resized to 84.

    lists: the files that list classes or images, which are read too.
    """
    content = tree.read(images[0])
    try:
        with open_image(content) as image:
            side, channels = max(image.size), 1 if image.mode in ("1", "L") else 3
    except UnidentifiedImageError:  # its text holds an address in memory, which helps nobody
        raise ValueError(f"{images[0]} in {tree.path} cannot be read as an image; fetch it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{images[0]} in {tree.path} cannot be read as an image ({e}); fetch it again") from None
    size = side if side <= LARGEST_NATIVE else 84
    return Match(layout, name, [*images, *(lists or [])], partial(read, images=images), size, channels)


# The readers of all layouts take ``crop``, whether images are cropped to their boxes. Those below ignore it, because
# the images of their layouts have no boxes.
def _read_class_lists(tree: Tree, crop: bool, *, images: list[str], splits: dict[str, dict[str, str]]) -> Contents:
    """The contents of class folders whose splits are given by lists of classes; splits: the lists, as in ``find``."""

    def lines(file: str) -> list[str]:
        return [line.strip() for line in tree.text(file).splitlines() if line.strip()]

    read = [
        named_split(name, f"the lists of splits/{name}", {part: lines(file) for part, file in splits[name].items()})
        for name in sorted(splits, key=lambda name: (name != "bertinetto", name))  # the default split comes first
    ]
    return image_files(tree, group_by_folder(images), tuple(read))


def _read_image_lists(tree: Tree, crop: bool, *, images: list[str], home: str, lists: dict[str, str]) -> Contents:
    """The contents of images whose classes and split are given by a CSV file for each part; lists: these files."""
    # A list may give the path of an image in full, without its first folders, or as the bare file name.
    files: dict[str, str] = {}
    for name in images:
        folders = name.removeprefix(home).split("/")
        files |= {"/".join(folders[first:]): name for first in range(len(folders))}
    classes: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for part, file in lists.items():
        for class_name, image in _csv_rows(tree.text(file), file):
            if image not in files:
                raise ValueError(f"{file} lists {image}, but there is no such file; unpack all of the images again")
            classes.setdefault(class_name, []).append(files[image])
            parts.setdefault(part, []).append(class_name)
    split = given_split("the CSV files", {part: sorted(set(names)) for part, names in parts.items()})
    return image_files(tree, dict(sorted(classes.items())), (split,))


def _csv_rows(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield the class and the image of each row."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in CLASS_COLUMNS if name in columns), None)
    if image is None or label is None:
        raise ValueError(f"{where} has the columns {some_of(columns)}; use filename,label or class_name,image_name")
    reader.fieldnames = columns
    for row in reader:
        if not row[image] or not row[label]:
            raise ValueError(f"{where}: line {reader.line_num} has no image or no class; correct it")
        yield row[label].strip(), row[image].strip()


def _read_parts(tree: Tree, crop: bool, *, images: list[str]) -> Contents:
    """The contents of folders by split and class."""
    parts: dict[str, set[str]] = {}
    for name in images:
        part, class_name = name.split("/")[-3:-1]  # of <part>/<class>/<image>
        parts.setdefault(PART_OF[part.lower()], set()).add(class_name)
    split = given_split("the folders", {part: sorted(names) for part, names in parts.items()})
    return image_files(tree, group_by_folder(images), (split,))


def _read_classes(tree: Tree, crop: bool, *, images: list[str]) -> Contents:
    """The contents of a folder for each class, without a split of their own."""
    classes = group_by_folder(images)
    return image_files(tree, classes, (split_by_hash(list(classes)),))
