"""The cache of a decoded data set: an .npy file of pixels, and a .json file that describes them.

A crash, or a second process, cannot leave a damaged cache. If two processes fill the same cache at once, each writes a
file of its own, and the second to finish replaces the first one's file by the same bytes. The .json file is written
last, and a cache without it is treated as absent.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import __version__ as pillow_version

from hessian_tools.data.layouts import Contents, Match
from hessian_tools.data.pixels import PIXEL_RECIPE, picture_pixels
from hessian_tools.data.splits import Split
from hessian_tools.data.tree import Tree

FOLDER = ".hessian-tools"
CACHE_RECIPE = "cache-1"  # part of every cache's key; raise its number whenever the form of the two files changes
BLOCK = 4 << 20  # the number of bytes that one checksum covers
# The number of blocks that are checked when a cache is opened. This covers files of up to 256 MB; of a larger file, the
# first and the last block are checked and others at even distances, so that opening does not read the whole file.
MAX_CHECKED_BLOCKS = 64
CHUNK = 256  # the number of images that are decoded together
STALE_SECONDS = 24 * 3600.0  # an unfinished file of this age is taken to be left by a crash

Progress = Callable[[int, int], None]  # is called with the number of images decoded so far and the total number


@dataclass(frozen=True)
class Cached:
    """A complete cache on the disk.

    file: the pixels, uint8 [image, channel, height, width]. pixels_digest: SHA-256 (hex) of that file. The other fields
    are as in ``Contents``.
    """

    file: Path
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[Split, ...]
    pixels_digest: str


def cache_paths(tree: Tree, match: Match, *, folder: Path | None) -> list[Path]:
    """The paths, without the endings .npy and .json, where the cache of a data set may lie.

    The preferred path comes first. Its name holds a SHA-256 of everything that determines the pixels, so that other
    files or another format have another cache. A file is known by its name, its size and the time of its last change;
    inside a zip its checksum takes the place of the time.
    """
    files = sorted({name: tree.files[name] for name in match.files}.items())
    parts = [CACHE_RECIPE, PIXEL_RECIPE, match.name, match.invert, _pixel_format(match), files]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    name = f"{match.name}-{match.image_size}x{match.channels}-{key[:16]}"
    return [place / name for place in ([folder] if folder else [tree.root / FOLDER, user_cache()])]


def _pixel_format(match: Match) -> dict[str, int | bool]:
    """The form of the decoded images: the side of the square, 1 or 3 channels, and whether they are cropped."""
    return {"image_size": match.image_size, "channels": match.channels, "crop": match.crop}


def user_cache() -> Path:
    """The folder where this platform keeps a user's caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hessian-tools"


# Reading


def find(places: list[Path]) -> Cached | None:
    """The first undamaged cache at the paths that ``cache_paths`` returned, or None; nothing is decoded."""
    return next(filter(None, map(_open, places)), None)


def read_contents(tree: Tree, match: Match) -> Contents:
    """What the source contains. Raises ValueError if a class has no image."""
    contents = match.read(tree, match.crop)
    for name, count in zip(contents.class_names, contents.counts, strict=True):
        if not count:
            raise ValueError(
                f"the class {name!r} of {match.layout} in {tree.path} has no image; some files are missing"
            )
    return contents


def _open(stem: Path) -> Cached | None:
    """The cache at a path without the endings .npy and .json, or None if it is absent, unfinished or damaged."""
    file = stem.with_name(f"{stem.name}.npy")
    try:
        about = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        if list(images.shape) != about["shape"] or images.dtype != np.uint8 or not _is_intact(file, about["checksums"]):
            return None
        splits = tuple(
            Split(split["name"], split["rule"], {part: tuple(names) for part, names in split["parts"].items()})
            for split in about["splits"]
        )
        return Cached(file, tuple(about["class_names"]), tuple(about["counts"]), splits, about["pixels_digest"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _is_intact(file: Path, checksums: list[int]) -> bool:
    """Whether the size of a file and the checksums of up to ``MAX_CHECKED_BLOCKS`` of its blocks are as expected."""
    if -(-file.stat().st_size // BLOCK) != len(checksums):  # the number of blocks, rounded up
        return False
    with file.open("rb") as stream:
        for block in np.unique(np.linspace(0, len(checksums) - 1, MAX_CHECKED_BLOCKS).astype(int)):
            stream.seek(int(block) * BLOCK)
            if zlib.crc32(stream.read(BLOCK)) != checksums[block]:
                return False
    return True


# Writing


def fill(places: list[Path], contents: Contents, match: Match, *, source: Path, progress: Progress | None) -> Cached:
    """Decode all images into a new cache, and remove caches of earlier versions of the same data.

    places: the paths that ``cache_paths`` returned; the first one whose folder can be written is used. contents: as
    ``read_contents`` returned them. source: the path of the data, by which their earlier caches are recognised. Raises
    ValueError if an image cannot be read, if no folder can be written, or if the disk has too little space.
    """
    stem = _writable(places)
    shape = (sum(contents.counts), match.channels, match.image_size, match.image_size)
    about = {
        "recipe": [CACHE_RECIPE, PIXEL_RECIPE],
        "source": str(source.resolve()),
        "layout": match.layout,
        "name": match.name,
        "wanted": _pixel_format(match),
        "shape": list(shape),
        "class_names": contents.class_names,
        "counts": contents.counts,
        "splits": [asdict(split) for split in contents.splits],
        "made_with": {"pillow": pillow_version, "numpy": np.__version__},
    }
    _remove_obsolete(stem, about)
    free, size = shutil.disk_usage(stem.parent).free, int(np.prod(shape))
    if size > free:
        raise ValueError(
            f"the cache needs {size / 1e9:.1f} GB, but {stem.parent} has {free / 1e9:.1f} GB free; "
            "make room, give another folder with cache=, or ask for a smaller image_size"
        )
    # tempfile is not used for this file, because it would make one that other users cannot read.
    unfinished = stem.with_name(f".{uuid4().hex}.partial")
    try:
        images = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        _decode(images, contents, match, progress)
        images.flush()
        digest, checksums = _digests(unfinished)
        os.replace(unfinished, stem.with_name(f"{stem.name}.npy"))
        text = json.dumps(about | {"pixels_digest": digest, "checksums": checksums})
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, stem.with_name(f"{stem.name}.json"))
    finally:
        unfinished.unlink(missing_ok=True)
    made = _open(stem)
    if made is None:
        raise ValueError(f"the cache {stem}.npy did not keep what was written to it; check the disk")
    return made


def _writable(places: list[Path]) -> Path:
    """The first path whose folder can be written."""
    for stem in places:
        above = stem.parent.parent
        # A superuser, as in a container, can write even to a read-only folder, so the permission bits are asked first.
        if above.exists() and not above.stat().st_mode & 0o222:  # nobody may write
            continue
        with suppress(OSError):
            stem.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=stem.parent):
                return stem
    folders = " or ".join(str(stem.parent) for stem in places)
    raise ValueError(f"cannot write a cache in {folders}; give a folder with cache=")


def _decode(images: np.ndarray, contents: Contents, match: Match, progress: Progress | None) -> None:
    """Decode each image into the next free row of its class; the images of different classes may come in any order."""
    ends = np.cumsum(contents.counts)
    next_row = ends - contents.counts
    total, done, pictures = len(images), 0, contents.pictures()
    pixels = partial(picture_pixels, side=images.shape[2], channels=images.shape[1], invert=match.invert)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for picture, decoded in zip(chunk, pool.map(pixels, chunk), strict=True):
                c = picture.class_index
                if next_row[c] == ends[c]:
                    raise ValueError(
                        f"{picture.where}: the class {contents.class_names[c]} has more images than were counted"
                    )
                images[next_row[c]] = decoded
                next_row[c] += 1
            done += len(chunk)
            if progress:
                progress(done, total)
    short = np.flatnonzero(next_row != ends)
    if len(short):
        raise ValueError(f"images of {contents.class_names[short[0]]} are missing: {done} of {total} could be read")


def _digests(file: Path) -> tuple[str, list[int]]:
    """SHA-256 (hex) of a file, and a checksum of each of its blocks."""
    digest, checksums = hashlib.sha256(), []
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK), b""):
            digest.update(block)
            checksums.append(zlib.crc32(block))
    return digest.hexdigest(), checksums


def _remove_obsolete(stem: Path, about: dict[str, Any]) -> None:
    """Remove the caches that were made from earlier versions of the same files, and unfinished files after a crash.

    stem, about: the path without ending, and the description, of the cache that is about to be made. A cache with the
    same name stays, because another process may just have finished it.
    """
    for old in stem.parent.glob(f"{about['name']}-*.json"):
        if old.stem == stem.name:
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):
            described = json.loads(old.read_text(encoding="utf-8"))
            if (described["source"], described["wanted"]) == (about["source"], about["wanted"]):
                old.unlink(missing_ok=True)
                old.with_suffix(".npy").unlink(missing_ok=True)
    for unfinished in stem.parent.glob(".*.partial"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
                unfinished.unlink(missing_ok=True)
