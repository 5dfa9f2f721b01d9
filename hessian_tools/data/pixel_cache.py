"""Decoding a data set once: an .npy file of pixels and a .json file that describes them.

Both are safe against crashes and against several processes. Two processes that fill the same cache at once both do
the work, each in a file of its own, and the second to finish puts the same bytes in the place of the first one's.
The .json is written last, so without it there is no cache.
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
CACHE_RECIPE = "cache-1"
BLOCK = 4 << 20  # bytes that one checksum covers
CHECKED = 64  # blocks checked when a cache is opened: all of up to 256 MB, else spread evenly, both ends among them
CHUNK = 256  # images decoded together
STALE = 24 * 3600.0  # seconds after which an unfinished file is taken to be left by a crash

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PixelFormat:
    """The pixels to decode: the side of the square, 1 or 3 channels, and whether images are cut to their object."""

    image_size: int
    channels: int
    crop: bool


@dataclass(frozen=True)
class Cached:
    """A complete cache, found on the disk or just made.

    file: the pixels, uint8 [image, channel, height, width]. The rest is as in ``Contents``.
    """

    file: Path
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[Split, ...]
    pixels_digest: str


def stems(tree: Tree, match: Match, pixel_format: PixelFormat, *, folder: Path | None) -> list[Path]:
    """Where the cache of these files may lie, without the endings .npy and .json, in the order of preference.

    The name holds a SHA-256 of everything that the pixels follow from, so that other files or another format have
    another cache. Files count as the same by name, size and time of change, or checksum inside a zip.
    """
    files = sorted({name: tree.files[name] for name in match.files}.items())
    parts = [CACHE_RECIPE, PIXEL_RECIPE, match.name, match.invert, asdict(pixel_format), files]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    name = f"{match.name}-{pixel_format.image_size}x{pixel_format.channels}-{key[:16]}"
    return [place / name for place in ([folder] if folder else [tree.root / FOLDER, user_cache()])]


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
    """The first sound cache at one of the places that ``stems`` returned, or None; nothing is decoded."""
    return next(filter(None, map(_open, places)), None)


def read_contents(tree: Tree, match: Match, *, crop: bool) -> Contents:
    """What the source contains, checked as far as names and counts go."""
    contents = match.read(tree, crop)
    for name, count in zip(contents.class_names, contents.counts, strict=True):
        if not count:
            raise ValueError(
                f"the class {name!r} of {match.layout} in {tree.path} has no image; some files are missing"
            )
    return contents


def _open(stem: Path) -> Cached | None:
    """The cache, or None where it is absent, unfinished or damaged."""
    file = stem.with_name(f"{stem.name}.npy")
    try:
        about = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        if list(images.shape) != about["shape"] or images.dtype != np.uint8 or not _sound(file, about["checksums"]):
            return None
        splits = tuple(
            Split(split["name"], split["rule"], {part: tuple(names) for part, names in split["parts"].items()})
            for split in about["splits"]
        )
        return Cached(file, tuple(about["class_names"]), tuple(about["counts"]), splits, about["pixels_digest"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _sound(file: Path, checksums: list[int]) -> bool:
    if -(-file.stat().st_size // BLOCK) != len(checksums):
        return False
    with file.open("rb") as opened:
        for block in np.unique(np.linspace(0, len(checksums) - 1, CHECKED).astype(int)):
            opened.seek(int(block) * BLOCK)
            if zlib.crc32(opened.read(BLOCK)) != checksums[block]:
                return False
    return True


# Writing


def fill(
    places: list[Path],
    contents: Contents,
    match: Match,
    pixel_format: PixelFormat,
    *,
    source: Path,
    progress: Progress | None,
) -> Cached:
    """Decode everything into a new cache, at the first of the places that can be written.

    contents: as ``read_contents`` returned them. source: the path of the data, by which caches of older files are
    known and removed. Raises ValueError where an image cannot be read, or no place can be written or has room.
    """
    stem = _writable(places)
    shape = (sum(contents.counts), pixel_format.channels, pixel_format.image_size, pixel_format.image_size)
    about = {
        "recipe": [CACHE_RECIPE, PIXEL_RECIPE],
        "source": str(source.resolve()),
        "layout": match.layout,
        "name": match.name,
        "wanted": asdict(pixel_format),
        "shape": list(shape),
        "class_names": contents.class_names,
        "counts": contents.counts,
        "splits": [asdict(split) for split in contents.splits],
        "made_with": {"pillow": pillow_version, "numpy": np.__version__},
    }
    _sweep(stem, about)
    free, size = shutil.disk_usage(stem.parent).free, int(np.prod(shape))
    if size > free:
        raise ValueError(
            f"the cache needs {size / 1e9:.1f} GB and {stem.parent} has {free / 1e9:.1f} GB free; "
            "make room, give another folder with cache=, or ask for a smaller image_size"
        )
    part = stem.with_name(f".{uuid4().hex}.partial")  # not one of tempfile's, which other users could not read
    try:
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        _decode(images, contents, match, progress)
        images.flush()
        digest, checksums = _digests(part)
        os.replace(part, stem.with_name(f"{stem.name}.npy"))
        text = json.dumps(about | {"pixels_digest": digest, "checksums": checksums})
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, stem.with_name(f"{stem.name}.json"))
    finally:
        part.unlink(missing_ok=True)
    made = _open(stem)
    if made is None:
        raise ValueError(f"the cache {stem}.npy did not keep what was written to it; check the disk")
    return made


def _writable(places: list[Path]) -> Path:
    for stem in places:
        above = stem.parent.parent
        # A folder that nobody is meant to write to does not stop a superuser, as in a container.
        if above.exists() and not above.stat().st_mode & 0o222:
            continue
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=stem.parent):
                return stem
        except OSError:
            continue
    folders = " or ".join(str(stem.parent) for stem in places)
    raise ValueError(f"cannot write a cache in {folders}; give a folder with cache=")


def _decode(images: np.ndarray, contents: Contents, match: Match, progress: Progress | None) -> None:
    """Write each class's images one after the other into its rows of the file, in whatever order classes come."""
    ends = np.cumsum(contents.counts)
    next_row = ends - contents.counts
    total, done, pictures = len(images), 0, contents.pictures()
    pixels = partial(picture_pixels, side=images.shape[2], channels=images.shape[1], invert=match.invert)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for picture, decoded in zip(chunk, pool.map(pixels, chunk), strict=True):
                c = picture.class_index
                if next_row[c] == ends[c]:
                    raise ValueError(f"{picture.where}: more images of {contents.class_names[c]} than counted")
                images[next_row[c]] = decoded
                next_row[c] += 1
            done += len(chunk)
            if progress:
                progress(done, total)
    short = np.flatnonzero(next_row != ends)
    if len(short):
        raise ValueError(f"images of {contents.class_names[short[0]]} are missing: {done} of {total} could be read")


def _digests(file: Path) -> tuple[str, list[int]]:
    """SHA-256 of a file, and a checksum of each block."""
    digest, checksums = hashlib.sha256(), []
    with file.open("rb") as opened:
        for block in iter(lambda: opened.read(BLOCK), b""):
            digest.update(block)
            checksums.append(zlib.crc32(block))
    return digest.hexdigest(), checksums


def _sweep(stem: Path, about: dict[str, Any]) -> None:
    """Remove caches of the same pixels of the same path from before its files changed, and what a crash left behind.

    A cache with the very name of the new one may just have been finished by another process, and stays.
    """
    for old in stem.parent.glob(f"{about['name']}-*.json"):
        if old.stem == stem.name:
            continue
        try:
            described = json.loads(old.read_text(encoding="utf-8"))
            if (described["source"], described["wanted"]) == (about["source"], about["wanted"]):
                old.unlink(missing_ok=True)
                old.with_suffix(".npy").unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for part in stem.parent.glob(".*.partial"):
        try:
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink(missing_ok=True)
        except OSError:
            continue
