"""Writing files so that a killed process or a power cut leaves the old file or the new one, never a partial one.

A file's content is on the disk (``fsync``) before the file gets its name, and the name before the next file is written.
Every file carries a checksum, which is compared at reading, so that a changed bit is an error and not another number.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"  # the entry of a JSON file that holds the digest of its other entries
MAX_JSON_BYTES = 100_000_000  # far more than any JSON file of a run needs; reading that much takes some seconds
MAX_BYTES = 1_000_000_000  # of any other file that is read as a whole; the metrics take 0.1 GB in 10^6 meta-iterations
# If this environment variable is set, nothing waits for the disk. Worker processes inherit it.
NO_FSYNC = "HESSIAN_TOOLS_NO_FSYNC"
# The end of messages on a damaged file. No message asks to remove a file, which may be worth more than we know.
ASIDE = "put it back, or move it elsewhere and run the same command again"


class DamagedFileError(ValueError):
    """A file of a run is missing or cannot be read."""


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk, where a power cut leaves them."""
    if os.environ.get(NO_FSYNC):
        return
    is_folder = path.is_dir()
    # Windows and some network file systems cannot do this for a folder. There, nothing waits for the names.
    with suppress(OSError) if is_folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def without_fsync() -> Iterator[None]:
    """Inside the block nothing waits for the disk, which is faster; a power cut may then cost files written there."""
    before = os.environ.get(NO_FSYNC, "")
    os.environ[NO_FSYNC] = "1"
    try:
        yield
    finally:
        os.environ[NO_FSYNC] = before


def refuse_unreadable(path: Path, *, max_bytes: float = MAX_BYTES) -> None:
    """Raise DamagedFileError where there is anything but a file of at most ``max_bytes`` at a path."""
    if not path.exists():
        return  # the caller's attempt to open it raises an error that says so
    if not path.is_file():
        # Reading a pipe or a device might never end.
        raise DamagedFileError(f"{path} is no file but a folder, a device or a pipe; {ASIDE}")
    if path.stat().st_size > max_bytes:
        raise DamagedFileError(f"{path} is far larger than such a file; {ASIDE}")


def make_folder(folder: Path) -> None:
    """Make a folder, and the folders above it, unless they exist."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync(made.parent)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``, then move it into place in one step."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes never write to the same one
    try:
        write(part)
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it can be made again but is not lost; returns its new path."""
    new = next(new for n in count(1) if not (new := path.with_name(f"{path.name}.damaged-{n}")).exists())
    path.rename(new)
    fsync(path.parent)
    return new


class FolderInUseError(ValueError):
    """Another process is at work in a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against other processes; however this process ends, its lock ends with it."""
    make_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks, so there the user must see to it that only one process is at work
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems of clusters have no locks; on these, too, it is left to the user.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise FolderInUseError(
                    f"another process is at work in {folder}; wait until it ends, or read an earlier meta_train of this"
                    " process to its end"
                ) from None
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_text(value: Mapping[str, Any]) -> str:
    """An object as JSON, indented so that people can read it, with its checksum as the last entry."""
    # The digest is that of the value as it will be read: tuples become lists, and the keys of mappings become strings.
    checked = dict(value) | {CHECKSUM: json_digest(json.loads(json.dumps(value)))}
    return json.dumps(checked, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object atomically into a JSON file, with its checksum."""
    write_text(path, json_text(value))


def file_digest(path: Path) -> str:
    """The SHA-256 (hex) of a file's bytes."""
    refuse_unreadable(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """The object in a JSON file, without its checksum.

    needed: entries that the object must have.

    Raises DamagedFileError with the file's name where the file holds something else, lacks an entry, or was changed
    after it was written. Version 0.1 wrote no checksum, so a file without one is accepted.
    """
    refuse_unreadable(path, max_bytes=MAX_JSON_BYTES)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DamagedFileError(f"{path} is not JSON ({e}); {ASIDE}") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds no JSON object; {ASIDE}")
    checksum = value.pop(CHECKSUM, None)
    if checksum is not None and checksum != json_digest(value):
        raise DamagedFileError(f"{path} was changed after it was written (its checksum does not match); {ASIDE}")
    for name in needed:
        if name not in value:
            raise DamagedFileError(f"{path} lacks {name}; {ASIDE}")
    return value
