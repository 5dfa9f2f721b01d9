"""What a run was made with: enough to make it again, and to refuse to mix it with another."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hessian_tools.runs.files import DamagedFileError, read_json, write_json

NAME = "manifest.json"
LIBRARIES = ("torch", "numpy", "scipy", "xarray", "zarr")


class ForeignRunError(ValueError):
    """A folder that holds another run than the one asked for."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def environment(*, device: str) -> dict[str, Any]:
    """Versions, device and threads: what numbers may depend on besides the config."""
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


def claim_folder(folder: Path, config: Mapping[str, Any], *, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a new run, or check that the one in ``folder`` is of the same config."""
    path = folder / NAME
    if path.exists():
        found = read_json(path)
        if digest(found.get("config", {})) != digest(config):
            raise ForeignRunError(_difference(folder, found.get("config", {}), config))
        return
    write_json(path, {"config_digest": digest(config), "config": dict(config), **facts})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run; a plain error names one that lacks what every run writes."""
    path = folder / NAME
    found = read_json(path)
    missing = [key for key in ("config", "libraries", "claims_digest") if key not in found]
    if missing:
        raise DamagedFileError(f"{path} is damaged: it lacks {missing[0]}; remove {folder} and run the study again")
    return found


def _difference(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    key = keys[0] if keys else "config"
    return (
        f"{folder} holds a run of another study: {key} is {found.get(key)!r} there, {wanted.get(key)!r} here;"
        " choose another --out, or remove the folder"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
