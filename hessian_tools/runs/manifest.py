"""The manifest of a run's folder: which run the folder belongs to, and with which software and data it was made.

The manifest is one JSON file. Its part "config" holds the settings of the study that the run belongs to. Its part
"training" holds everything that determines the numbers of the training. A study writes and compares the first part,
and training writes and compares the second. A run resumes in a folder only where the compared part is equal. The
remaining entries inform readers: versions, device, threads, and digests of the data and of the study's claims, which
are the hypotheses that it tests.
"""

import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from hessian_tools.runs.files import CHECKSUM, DamagedFileError, json_digest, read_json, write_json

NAME = "manifest.json"
EARLIER_TRAINING = "training.json"  # the file in which version 0.1 kept the part "training"
LIBRARIES = ("torch", "numpy", "scipy", "xarray", "zarr")


class ForeignRunError(ValueError):
    """A folder holds a run other than the one that was asked for."""


def environment(*, device: str) -> dict[str, Any]:
    """The versions, device and threads, on which a run's numbers may depend besides its settings."""
    return {
        "code": _version("hessian-tools"),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def record_ownership(
    folder: Path,
    part: Literal["config", "training"],
    identity: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write into the manifest which run the folder belongs to; raise ForeignRunError where it is another run.

    identity: everything in which two runs of one folder must agree, as a JSON-like mapping.
    facts: further entries of the manifest, written together with a new ``identity`` and never compared.
    """
    path, wanted = folder / NAME, json.loads(json.dumps(identity))  # as JSON returns it, with lists for tuples
    manifest = entries(folder)
    recorded = _recorded_training(folder, manifest) if part == "training" else manifest.get(part)
    if part == "config" and recorded is None and manifest:
        # The folder holds a run that belongs to no study. An empty record differs in every setting of the study.
        recorded = {}
    if recorded is None:
        write_json(path, {**manifest, part: wanted, **(facts or {})})
        return
    for key in [*wanted, *recorded]:
        if recorded.get(key) != wanted.get(key):
            raise ForeignRunError(
                f"{folder} holds another run: its {key} is {_short(recorded.get(key))}, but this run's is"
                f" {_short(wanted.get(key))};\nchoose another folder"
            )


def entries(folder: Path) -> dict[str, Any]:
    """All that the manifest of a run's folder holds, which is nothing where the folder has no manifest.

    Raises DamagedFileError where the file is damaged.
    """
    path = folder / NAME
    manifest = read_json(path) if path.exists() else {}
    for part in ("config", "training"):
        if not isinstance(manifest.get(part, {}), dict):
            raise DamagedFileError(f"{path} is damaged: its {part} is no mapping; put it back")
    return manifest


def training_digest(folder: Path) -> str | None:
    """The digest of everything that determines the numbers of a run's training; None where the folder has no record.

    It is stored in every checkpoint of the run.
    """
    recorded = _recorded_training(folder, entries(folder))
    return None if recorded is None else json_digest(recorded)


def is_of_first_version(folder: Path) -> bool:
    """Whether the run in a folder may have been begun by version 0.1, which wrote no checksums and no facts."""
    path = folder / NAME
    return not path.exists() or CHECKSUM not in json.loads(path.read_text(encoding="utf-8"))


def recorded_layout(folder: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the network's parameters, as training has recorded them; nothing is imported.

    Raises DamagedFileError where the folder has no such record.
    """
    path = folder / NAME
    recorded = _recorded_training(folder, entries(folder)) or {}
    try:
        return {str(name): tuple(int(size) for size in shape) for name, shape in recorded["network"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedFileError(
            f"{path} does not record the parameters of the network; run the same study again, which records them"
        ) from None


def num_parameters(folder: Path) -> int:
    """The number of the network's parameters, as training has recorded them; 1, the least, where it has not."""
    try:
        return max(sum(prod(shape) for shape in recorded_layout(folder).values()), 1)
    except (DamagedFileError, OSError):
        return 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a study's run; raises DamagedFileError where it lacks what every such run writes."""
    path = folder / NAME
    if not path.exists():
        raise DamagedFileError(f"{path} is missing; put it back")
    manifest = entries(folder)
    missing = [key for key in ("config", "libraries", "claims_digest") if key not in manifest]
    if missing:
        raise DamagedFileError(f"{path} is damaged: it lacks {missing[0]}; put it back")
    return manifest


def _recorded_training(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part "training" of a run's manifest, which version 0.1 kept in a file of its own; None without a record."""
    earlier = folder / EARLIER_TRAINING
    recorded = manifest.get("training")
    return read_json(earlier) if recorded is None and earlier.exists() else recorded


def _short(value: Any) -> str:
    """The value as a text of at most 90 characters, so that an error message stays readable."""
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _version(package: str) -> str:
    """The version of a package, or "absent" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
