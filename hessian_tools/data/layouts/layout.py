"""What the layouts have in common: how a data set is recognised by its file names, and what its reader returns.

The reader of a layout (``Match.read``) returns the class names and the number of images of each class, which is cheap,
together with a function that reads the images. That function is called only if the data set has no cache of decoded
images yet.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hessian_tools.data.safe_pickle import load_pickle
from hessian_tools.data.splits import PART_OF, Split
from hessian_tools.data.tree import Tree
from hessian_tools.validation import some_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# The formats that data sets use. Pillow knows further ones, and opening one of them (PostScript) runs another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # the largest photograph of the known data sets has 42 million

Box = tuple[int, int, int, int]
Images = Callable[[], Iterator[bytes | np.ndarray]]
# For a file of many images: the position of the class of each image, and a function that reads the images in order.
Labelled = tuple[list[int], Images]
Splits = tuple[Split, ...]


class Picture(NamedTuple):
    """One image as the source stores it.

    class_index: the position of its class. where: the name of the image in messages. content: the bytes of an image
    file, or uint8 pixels [height, width] or [height, width, 3]. box: the part of the image to keep, as (left, top,
    right, bottom) in pixels counted from 0, with right and bottom excluded; None keeps the whole image.
    """

    class_index: int
    where: str
    content: bytes | np.ndarray
    box: Box | None = None


@dataclass(frozen=True)
class Contents:
    """What a source contains: the classes, the number of images of each, the splits, and the images.

    splits: the splits that are known for the data, with the default one first. pictures: a function that reads all
    images from the start each time it is called; the images of one class always come in the same order.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: Splits
    pictures: Callable[[], Iterator[Picture]]


@dataclass(frozen=True)
class Match:
    """A data set that was recognised by the names of its files.

    layout: a description for messages. name: a short name of the data set. files: all files that are read. read: a
    function that reads them, given the tree and whether to crop images to their boxes. invert: whether the images show
    dark ink on light paper and must be inverted. has_boxes: whether the data give a box around the object of each
    image. image_size, channels: the side and the channels of the decoded images. crop: whether images are cropped to
    their boxes. image_size, channels and crop have the usual values for the data set, unless the user chose others.
    """

    layout: str
    name: str
    files: Sequence[str]
    read: Callable[[Tree, bool], Contents] = field(repr=False)
    image_size: int = 84
    channels: int = 3
    invert: bool = False
    has_boxes: bool = False
    crop: bool = False


# Recognising


def is_image(name: str) -> bool:
    """Whether a file name has the ending of an image file."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def group_by_home(tree: Tree, pattern: re.Pattern[str], *, images: bool = False) -> dict[str, list[re.Match[str]]]:
    """Group the files whose whole name matches a pattern by their home: the folder that the data set lies in.

    The home is what the pattern's group ``home`` matches. images: True leaves out files that are not images.
    """
    homes: dict[str, list[re.Match[str]]] = {}
    for name in tree.files:
        matched = pattern.fullmatch(name)
        if matched and (is_image(name) or not images):
            homes.setdefault(matched["home"], []).append(matched)
    return homes


def parts_by_home(tree: Tree, pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """For each home (see ``group_by_home``), the file of each part of the split, which the group ``part`` names.

    If two files name the same part, the last one in the order of their names is taken.
    """
    homes: dict[str, dict[str, str]] = {}
    for home, matches in group_by_home(tree, pattern).items():
        for matched in matches:
            part = PART_OF.get(matched["part"].lower())
            if part:
                homes.setdefault(home, {})[part] = matched.string
    return homes


def home_suffix(home: str) -> str:
    """The end of a description that says in which folder a data set lies; empty if it lies at the path the user gave.

    >>> home_suffix("a/b/"), home_suffix("")
    (' in a/b', '')
    """
    return f" in {home.rstrip('/')}" if home else ""


# Reading


def group_by_folder(images: Sequence[str]) -> dict[str, list[str]]:
    """Group image files by the folder they lie in, which names their class; classes and images are sorted.

    Raises ValueError if two folders in different places have the same name.
    """
    classes: dict[str, list[str]] = {}
    for name in sorted(images):
        classes.setdefault(name.split("/")[-2], []).append(name)
    for class_name, names in classes.items():
        folders = sorted({name.rpartition("/")[0] for name in names})
        if len(folders) > 1:
            raise ValueError(f"the class {class_name} lies in two places, {folders[0]} and {folders[1]}; rename one")
    return dict(sorted(classes.items()))


def image_files(
    tree: Tree, classes: Mapping[str, Sequence[str]], splits: Splits, *, boxes: Mapping[str, Box] | None = None
) -> Contents:
    """The contents of a data set whose images are single files of the tree.

    classes: for each class, its files in order. boxes: for the name of a file, the part of its image to keep.
    """

    def pictures() -> Iterator[Picture]:
        for class_index, names in enumerate(classes.values()):
            for name in names:
                yield Picture(class_index, name, tree.read(name), (boxes or {}).get(name))

    return Contents(tuple(classes), tuple(len(names) for names in classes.values()), splits, pictures)


def labelled_images(class_names: tuple[str, ...], files: Mapping[str, Labelled], splits: Splits) -> Contents:
    """The contents of a data set whose files hold many images each; ``files`` are given by name."""
    class_indices = [index for indices, _ in files.values() for index in indices]
    counts = tuple(int(n) for n in np.bincount(class_indices, minlength=len(class_names)))

    def pictures() -> Iterator[Picture]:
        for name, (indices, images) in files.items():
            num_images = 0  # for a file without any image, which the loop does not enter
            for num_images, content in enumerate(images(), start=1):
                if num_images <= len(indices):  # further images are only counted, for the error message
                    yield Picture(indices[num_images - 1], f"image {num_images - 1} of {name}", content)
            check_same_length(name, num_images, len(indices))

    return Contents(class_names, counts, splits, pictures)


def open_image(content: bytes) -> Image.Image:
    """The image in the bytes of an image file; its pixels are not decoded yet.

    Raises ValueError where the image has more than ``MAX_PIXELS`` pixels, and what Pillow raises where it is no image.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, but at most {MAX_PIXELS} are decoded")
    return image


def load_mapping(tree: Tree, name: str, *keys: str) -> Mapping[str, Any]:
    """Read a mapping from a pickle file; raise ValueError if the file holds anything else, or if a key is missing."""
    with tree.open(name) as file:
        data = load_pickle(file, where=name, size=tree.files[name][0])
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__} and no mapping with {', '.join(keys) or 'labels'}")
    # Keys that Python 2 wrote as strings can be read as bytes.
    data = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in data.items()}
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(f"{name} holds {some_of(data)}, but not {missing[0]!r}; it may belong to another data set")
    return data


def check_same_length(where: str, images: int, labels: int) -> None:
    """Raise ValueError unless there is one label for each image."""
    if images != labels:
        raise ValueError(f"{where} has {images} images but {labels} labels; the files do not belong together")
