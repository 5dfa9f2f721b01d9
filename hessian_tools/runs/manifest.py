"""The manifest of a run's folder: which run the folder belongs to, and with which software and data it was made.

The manifest is one JSON file. Its part "config" holds the settings of the study that the run belongs to. Its part
"training" holds everything that determines the numbers of the training. A study writes and compares the first part,
training the second, and a run resumes in a folder only where the compared part is equal. The remaining entries inform
readers: versions, device, threads, digests of the data and of the plan.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from hessian_tools.runs.files import DamagedFileError, read_json, write_json

NAME = "manifest.json"
EARLIER_TRAINING = "training.json"  # where version 0.1 kept the part "training"
LIBRARIES = ("torch", "numpy", "scipy", "xarray", "zarr")


class ForeignRunError(ValueError):
    """A folder holds a run other than the one that was asked for."""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
    path, wanted = folder / NAME, json.loads(json.dumps(identity))  # as it will be read: tuples become lists
    manifest = read_json(path) if path.exists() else {}
    recorded = manifest.get(part)
    if part == "training" and recorded is None and (folder / EARLIER_TRAINING).exists():
        recorded = read_json(folder / EARLIER_TRAINING)
    if part == "config" and recorded is None and manifest:
        recorded = {}  # a run without a study has this folder, so every setting of the study differs
    if recorded is None:
        write_json(path, {**manifest, part: wanted, **(facts or {})})
        return
    for key in [*wanted, *recorded]:
        if recorded.get(key) != wanted.get(key):
            raise ForeignRunError(
                f"{folder} holds another run: its {key} is {_short(recorded.get(key))}, but this run's is"
                f" {_short(wanted.get(key))};\nchoose another folder, or remove that one"
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a study's run; raises DamagedFileError where it lacks what every such run writes."""
    path = folder / NAME
    manifest = read_json(path)
    missing = [key for key in ("config", "libraries", "claims_digest") if key not in manifest]
    if missing:
        raise DamagedFileError(f"{path} is damaged: it lacks {missing[0]}; remove {folder} and run the study again")
    return manifest


def _short(value: Any) -> str:
    """The value as a text of at most 90 characters, so that an error message stays readable."""
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
