"""The bundled image set: 345 classes of 20 hand drawings, 28 x 28 pixels of one bit each.

It is taken from "The Quick, Draw! Dataset" (Google, CC-BY-4.0); quickdraw.LICENSE.txt gives the attribution and says
what was changed. ``rebuild_quickdraw`` makes quickdraw.npy and quickdraw.json again, byte for byte.
"""

import hashlib
import io
import json
from functools import cache
from pathlib import Path

import numpy as np

from hessian_tools.data.class_sets import ImageClasses
from hessian_tools.data.splits import named_split

SIDE = 28
PIXELS_FILE = Path(__file__).with_name("quickdraw.npy")
INDEX_FILE = Path(__file__).with_name("quickdraw.json")


@cache
def load_quickdraw() -> ImageClasses:
    """QuickDraw as image classes: images [345, 20, 1, 28, 28] with 1 for ink and 0 for paper, read once a process.

    The classes are ordered by the code points of their names. The splits train, val and test have 220, 55 and 70
    classes, which the index file lists by name. Drawings touch the top and left edge of their frame, as in the source,
    and are not centred. Raises ValueError if the pixels are not those that the index was written for.
    """
    return read_quickdraw(PIXELS_FILE, INDEX_FILE)


def read_quickdraw(pixels_file: Path, index_file: Path) -> ImageClasses:
    """Read image classes from a pair of files that ``rebuild_quickdraw`` wrote."""
    index = json.loads(index_file.read_text(encoding="utf-8"))
    stored = pixels_file.read_bytes()
    digest = hashlib.sha256(stored).hexdigest()
    if digest != index["sha256"]:
        raise ValueError(
            f"{pixels_file.name} has sha256 {digest}, but {index_file.name} expects {index['sha256']}; reinstall, "
            "or rebuild both with python -m hessian_tools.data.rebuild_quickdraw"
        )
    packed = np.load(io.BytesIO(stored), allow_pickle=False)  # [class, example, byte]
    images = np.unpackbits(packed, axis=-1).reshape(*packed.shape[:2], 1, SIDE, SIDE)
    images.setflags(write=False)  # all callers of load_quickdraw in the process share this array
    splits = named_split("quickdraw", index["split_rule"], index["splits"]).positions(index["class_names"], "quickdraw")
    return ImageClasses("quickdraw", images, tuple(index["class_names"]), splits, digest)
