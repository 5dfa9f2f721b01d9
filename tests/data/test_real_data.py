"""The real files of Omniglot and CIFAR-FS are read as documented; they are not in this repository.

The files are looked for in the folder that HESSIAN_TOOLS_DATA names or, if it is not set, in ../shared/data beside the
project's root. Tests of missing files are skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hessian_tools.data import ImageTasks, open_data
from hessian_tools.data.class_lists import CIFAR_FS

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HESSIAN_TOOLS_DATA") or ROOT.parent / "shared" / "data")


DRAWINGS, PHOTOGRAPHS = "omniglot-py", "cifar-fs/cifar100.zip"
# This runs in a process of its own without the type checks of a test run, with which it would take five times as long.
# Of Omniglot, only one of the two zips is decoded.
SCRIPT = """
import sys
from pathlib import Path
from hessian_tools.data import describe, open_data
data, cache = Path(sys.argv[1]), Path(sys.argv[2])
for name, decoded in (("omniglot-py", "images_evaluation.zip"), ("cifar-fs/cifar100.zip", "")):
    if (data / name).exists():
        open_data(data / name / decoded, cache=cache)
        (cache / f"{Path(name).name}.txt").write_text(describe(data / name, cache=cache))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A folder that holds the decoded images and, for each data set, a text file with its description."""
    folder = tmp_path_factory.mktemp("cache")
    if DATA.exists():
        subprocess.run([sys.executable, "-c", SCRIPT, str(DATA), str(folder)], check=True, cwd=ROOT)
    return folder


def place(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in the folder that HESSIAN_TOOLS_DATA names, nor in ../shared/data")
    return DATA / name


def sizes(data: object) -> dict[str, int]:
    return {part: len(positions) for part, positions in data.splits.items()}


@pytest.mark.slow
def test_omniglot(cache):
    path = place(DRAWINGS)
    description = (cache / f"{path.name}.txt").read_text()
    assert "Omniglot, zips of alphabets: 1623 classes of 20 images, 32460 in all" in description
    assert "split 'vinyals': train 1028, val 172, test 423 classes" in description
    assert "also 'official': train 964, test 659 classes" in description
    data = open_data(path / "images_evaluation.zip", cache=cache, rotations=True)
    assert data.counts == (20,) * 659 and data.images.shape == (13180, 1, 28, 28)
    assert sizes(data) == {"train": 4 * 236, "test": 4 * 423}
    assert 0.03 < np.asarray(data.images[::50], dtype=float).mean() / 255 < 0.15  # light ink on a dark ground
    tasks = ImageTasks(data, ways=20, shots=5, queries=15)
    assert tasks.episode(seed=0, split="test", index=0).query[0].shape == (300, 1, 28, 28)


def test_cifar_fs(cache):
    path = place(PHOTOGRAPHS)
    assert "split 'bertinetto': train 64, val 16, test 20 classes" in (cache / f"{path.name}.txt").read_text()
    data = open_data(path, cache=cache)
    assert data.counts == (240,) * 100 and data.images.shape == (24000, 3, 32, 32)
    assert sizes(data) == {"train": 64, "val": 16, "test": 20}
    sea = data.images[data.class_names.index("sea") * 240 :][:240].mean(axis=(0, 2, 3))
    assert sea[2] > sea[0]  # bluer than it is red: channels are in their order
    for part, names in CIFAR_FS.items():
        assert [data.class_names[p] for p in data.splits[part]] == list(names)
