"""Writing files so that a process killed at any moment leaves the old file or the new one, never a partial one."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class DamagedFileError(ValueError):
    """A file of a run is missing or cannot be read."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``, then move it into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented so that people can read it."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises DamagedFileError with the file's name where the file holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise DamagedFileError(f"{path} is not JSON ({e}); remove it and run the same command again") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds no JSON object; remove it and run the same command again")
    return value
