"""Decoding a data set once: an .npy file of pixels and a .json of what they are, safe against crashes and doubles.

Two processes that fill the same cache at once both do the work, each in a file of its own, and the second to finish
puts the same bytes in the first one's place. The .json is written last, so without it there is no cache.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import __version__ as pillow_version

from hessian_tools.data.layouts import Contents, Match, Split
from hessian_tools.data.pixels import PIXEL_RECIPE, picture_pixels
from hessian_tools.data.tree import Tree

FOLDER = ".hessian-tools"
CACHE_RECIPE = "cache-1"
BLOCK = 4 << 20  # bytes a checksum covers
CHECKED = 64  # blocks looked at when a cache is opened: all of up to 256 MB, else spread evenly, both ends among them
CHUNK = 256  # images decoded together
STALE = 24 * 3600.0  # seconds after which an unfinished file is nobody's

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """Which pixels: the side of the square, 1 or 3 channels, and whether images are cut to the box of their object."""

    image_size: int
    channels: int
    crop: bool


@dataclass(frozen=True)
class Cached:
    """A cache that was found whole, or has just been made."""

    file: Path
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[Split, ...]
    pixels_digest: str


def peek(tree: Tree, match: Match, wanted: Wanted, *, folder: Path | None) -> Cached | None:
    """The cache that belongs to these very files, if there is a sound one; nothing is decoded.

    Files count as the same by name, size and time of change, or checksum inside a zip.
    """
    name = _file_name(tree, match, wanted)
    return next(filter(None, (_opened(place / name) for place in _places(tree, folder))), None)


def read(tree: Tree, match: Match, wanted: Wanted) -> Contents:
    """What is in the source, checked as far as names and counts go."""
    contents = match.read(tree, wanted.crop)
    empty = [name for name, count in zip(contents.class_names, contents.counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"the class {empty[0]!r} of {match.layout} in {tree.path} has no image; some files are missing"
        )
    return contents


def fill(
    tree: Tree, match: Match, wanted: Wanted, contents: Contents, *, folder: Path | None, progress: Progress | None
) -> Cached:
    """Decode everything into a new cache; ``contents`` are those of ``read``.

    ValueError where an image cannot be read, or where there is no room or no place that can be written.
    """
    stem = _writable(_places(tree, folder)) / _file_name(tree, match, wanted)
    _write(stem, contents, match, wanted, str(tree.path.resolve()), progress)
    made = _opened(stem)
    if made is None:
        raise ValueError(f"the cache {stem}.npy did not keep what was written to it; is the disk sound?")
    return made


def user_cache() -> Path:
    """Where this platform keeps a user's caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hessian-tools"


def _places(tree: Tree, folder: Path | None) -> list[Path]:
    return [folder] if folder else [tree.root / FOLDER, user_cache()]


def _file_name(tree: Tree, match: Match, wanted: Wanted) -> str:
    """With a SHA-256 of all that the pixels follow from: other files or wishes are another cache."""
    parts = [CACHE_RECIPE, PIXEL_RECIPE, match.name, match.ink, asdict(wanted), sorted(tree.below(match.files).items())]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"{match.name}-{wanted.image_size}x{wanted.channels}-{key[:16]}"


def _writable(places: list[Path]) -> Path:
    for place in places:
        if _locked(place.parent):
            continue
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    raise ValueError(f"cannot write a cache in {' or '.join(map(str, places))}; give a folder with cache=")


def _locked(folder: Path) -> bool:
    """Whether nobody is meant to write there, which would not stop a superuser, as in a container."""
    return folder.exists() and not folder.stat().st_mode & 0o222


# Reading


def _opened(stem: Path) -> Cached | None:
    """The cache, or None where it is absent, unfinished or damaged."""
    file = stem.with_name(f"{stem.name}.npy")
    try:
        about = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        images = np.load(file, mmap_mode="r", allow_pickle=False)
        if list(images.shape) != about["shape"] or images.dtype != np.uint8 or not _sound(file, about["checksums"]):
            return None
        splits = tuple(Split(s["name"], s["rule"], _tuples(s["parts"])) for s in about["splits"])
        return Cached(file, tuple(about["class_names"]), tuple(about["counts"]), splits, about["pixels_digest"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _tuples(parts: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {part: tuple(names) for part, names in parts.items()}


def _sound(file: Path, checksums: list[int]) -> bool:
    if -(-file.stat().st_size // BLOCK) != len(checksums):
        return False
    looked_at = np.unique(np.linspace(0, len(checksums) - 1, CHECKED).astype(int))
    with file.open("rb") as opened:
        for block in looked_at:
            opened.seek(int(block) * BLOCK)
            if zlib.crc32(opened.read(BLOCK)) != checksums[block]:
                return False
    return True


# Writing


def _write(
    stem: Path, contents: Contents, match: Match, wanted: Wanted, source: str, progress: Progress | None
) -> None:
    shape = (sum(contents.counts), wanted.channels, wanted.image_size, wanted.image_size)
    _sweep(stem, source, match.name, wanted)
    _check_room(stem.parent, int(np.prod(shape)))
    part = stem.with_name(f".{uuid4().hex}.partial")  # not tempfile's, which nobody else could read
    try:
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        _decode(images, contents, match, progress)
        images.flush()
        digest, checksums = _digests(part)
        about = {
            "recipe": [CACHE_RECIPE, PIXEL_RECIPE],
            "source": source,
            "layout": match.layout,
            "name": match.name,
            "wanted": asdict(wanted),
            "shape": list(shape),
            "class_names": contents.class_names,
            "counts": contents.counts,
            "splits": [asdict(split) for split in contents.splits],
            "pixels_digest": digest,
            "checksums": checksums,
            "made_with": {"pillow": pillow_version, "numpy": np.__version__},
        }
        os.replace(part, stem.with_name(f"{stem.name}.npy"))
        part.write_text(json.dumps(about) + "\n", encoding="utf-8")
        os.replace(part, stem.with_name(f"{stem.name}.json"))
    finally:
        part.unlink(missing_ok=True)


def _decode(images: np.ndarray, contents: Contents, match: Match, progress: Progress | None) -> None:
    """Each class's images go one behind the other into its stretch, in whatever order classes come."""
    ends = np.cumsum(contents.counts)
    place = ends - contents.counts
    total, done, pictures = len(images), 0, contents.pictures()
    pixels = partial(picture_pixels, side=images.shape[2], channels=images.shape[1], ink=match.ink)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(pictures, CHUNK)):
            for picture, decoded in zip(chunk, pool.map(pixels, chunk), strict=True):
                if place[picture.of] == ends[picture.of]:
                    raise ValueError(f"{picture.where}: more images of {contents.class_names[picture.of]} than counted")
                images[place[picture.of]] = decoded
                place[picture.of] += 1
            done += len(chunk)
            if progress:
                progress(done, total)
    short = np.flatnonzero(place != ends)
    if len(short):
        raise ValueError(f"images of {contents.class_names[short[0]]} are missing: {done} of {total} could be read")


def _digests(file: Path) -> tuple[str, list[int]]:
    """SHA-256 of the file, and a checksum of each block."""
    whole, checksums = hashlib.sha256(), []
    for block in _blocks(file):
        whole.update(block)
        checksums.append(zlib.crc32(block))
    return whole.hexdigest(), checksums


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from iter(lambda: opened.read(BLOCK), b"")


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"the cache needs {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "make room, give another folder with cache=, or ask for a smaller image_size"
        )


def _sweep(stem: Path, source: str, name: str, wanted: Wanted) -> None:
    """Remove caches of the same pixels of the same path from before its files changed, and what a crash left.

    A cache of the very name may have been finished by another process just now, and stays.
    """
    folder = stem.parent
    for about in folder.glob(f"{name}-*.json"):
        if about.stem == stem.name:
            continue
        try:
            old: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
            if (old["source"], old["wanted"]) == (source, asdict(wanted)):
                about.unlink(missing_ok=True)
                about.with_suffix(".npy").unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for part in folder.glob(".*.partial"):
        try:
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink(missing_ok=True)
        except OSError:
            continue
