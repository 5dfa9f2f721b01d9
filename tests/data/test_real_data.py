"""The real files, where they lie beside the project; they are not part of it.

They are looked for in the folder that HESSIAN_TOOLS_DATA names, else in ../shared/data from the project's root.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hessian_tools.data import ImageTasks, open_data
from hessian_tools.data.class_lists import CIFAR_FS_TEST, CIFAR_FS_VAL

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HESSIAN_TOOLS_DATA") or ROOT.parent / "shared" / "data")


NAMES = ("omniglot-py", "cifar-fs/cifar100.zip")
DECODE = "import sys; from hessian_tools.data import open_data; open_data(sys.argv[1], cache=sys.argv[2])"


@pytest.fixture(scope="module", params=NAMES)
def real(request, tmp_path_factory) -> tuple[Path, Path]:
    """A data set and its cache, filled by a process without a test run's type checks: they cost five times more."""
    path, cache = DATA / request.param, tmp_path_factory.mktemp("cache")
    if not path.exists():
        pytest.skip(f"{request.param} is not in the folder that HESSIAN_TOOLS_DATA names, nor in ../shared/data")
    subprocess.run([sys.executable, "-c", DECODE, str(path), str(cache)], check=True, cwd=ROOT)
    return path, cache


def sizes(data: object) -> dict[str, int]:
    return {part: len(positions) for part, positions in data.splits.items()}


def test_real_files_hold_what_the_literature_says(real):
    path, cache = real
    check_omniglot(path, cache) if path.name == "omniglot-py" else check_cifar_fs(path, cache)


def check_omniglot(path: Path, cache: Path) -> None:
    data = open_data(path, cache=cache)
    assert data.counts == (20,) * 1623 and data.images.shape == (32460, 1, 28, 28)
    assert sizes(data) == {"train": 1028, "val": 172, "test": 423}
    turned = open_data(path, cache=cache, split="official", rotations=True)
    assert sizes(turned) == {"train": 4 * 964, "test": 4 * 659}
    ink = np.asarray(data.images[::50], dtype=float).mean() / 255
    assert 0.03 < ink < 0.15  # light ink on a dark ground
    tasks = ImageTasks(turned, ways=20, shots=5, queries=15)
    assert tasks.episode(seed=0, split="test", index=0).query[0].shape == (300, 1, 28, 28)


def check_cifar_fs(path: Path, cache: Path) -> None:
    data = open_data(path, cache=cache)
    assert data.counts == (240,) * 100 and data.images.shape == (24000, 3, 32, 32)
    assert sizes(data) == {"train": 64, "val": 16, "test": 20}
    sea = data.images[data.class_names.index("sea") * 240 :][:240].mean(axis=(0, 2, 3))
    assert sea[2] > sea[0]  # bluer than it is red: channels are in their order
    for part, names in (("val", CIFAR_FS_VAL), ("test", CIFAR_FS_TEST)):
        assert tuple(data.class_names[p] for p in data.splits[part]) == names
