"""Writing files so that a process killed at any moment leaves the old file or the new one, never a partial one.

Every file carries a checksum, which is compared at reading, so that a changed bit is an error and not another number.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"  # the entry of a JSON file that holds the digest of its other entries
MAX_JSON_BYTES = 100_000_000  # far more than any file of a run needs; reading that much takes some seconds


class DamagedFileError(ValueError):
    """A file of a run is missing or cannot be read."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``, then move it into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes never write to the same one
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class FolderInUseError(ValueError):
    """Another process is at work in a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against other processes; however this process ends, its lock ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks, so there the user must see to it
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderInUseError(f"another process is at work in {folder}; wait until it ends") from None
        os.set_inheritable(file.fileno(), False)  # a worker that outlives this process must not keep the lock
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented so that people can read it, with its checksum as the last entry."""
    # The digest is that of the value as it will be read: tuples become lists, and the keys of mappings become strings.
    checked = dict(value) | {CHECKSUM: json_digest(json.loads(json.dumps(value)))}
    write_text(path, json.dumps(checked, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without its checksum.

    Raises DamagedFileError with the file's name where the file holds something else, or was changed after it was
    written. Version 0.1 wrote no checksum, so a file without one is accepted.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DamagedFileError(f"{path} is far larger than such a file; remove it and run the same command again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DamagedFileError(f"{path} is not JSON ({e}); remove it and run the same command again") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds no JSON object; remove it and run the same command again")
    checksum = value.pop(CHECKSUM, None)
    if checksum is not None and checksum != json_digest(value):
        raise DamagedFileError(f"{path} was changed after it was written (its checksum does not match); put it back")
    return value
