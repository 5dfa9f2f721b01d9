"""The files below a path the user named, whether a folder, a zip, or a folder of zips."""

import os
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import cast

DEPTH = 7  # below the named path; deeper than any layout
MOST_FILES = 3_000_000
OURS = (".", "__MACOSX")  # beginnings of names that are no data: hidden, our cache among them, and an archiver's

Stamp = tuple[int, int]


class Tree:
    """File names (with "/", relative to the path) and their contents; use it in a ``with`` statement.

    A zip in it appears as a folder of its own name, unless it lies unpacked beside itself. A file that is no zip stands
    for the folder that holds it, without that folder's folders. Nothing is unpacked to the disk.

    files: for each name its (size, time of change), or (size, checksum) inside a zip: what a cache rests on.
    empty: folders that hold nothing.

    ValueError where there is nothing at the path, or far more than a data set.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files: Mapping[str, Stamp] = {}
        self.empty: tuple[str, ...] = ()
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Tree":
        if not self.path.exists():
            raise ValueError(f"there is no file or folder {self.path}; give the folder or zip that holds the data")
        try:
            self._look()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *stopped: object) -> None:
        self._open.close()

    @property
    def root(self) -> Path:
        """The folder that names are relative to; of a zip, the folder it lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    def read(self, name: str) -> bytes:
        """The whole content of a file."""
        with self.open(name) as file:
            return file.read()

    def text(self, name: str) -> str:
        """A text file in UTF-8, without a byte order mark."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{name} in {self.path} is not a text file in UTF-8; fetch it again") from None

    def open(self, name: str) -> BufferedIOBase:
        """A file, to be read bit by bit."""
        archive, _, member = name.partition(".zip/")
        if f"{archive}.zip" in self._archives and member:
            return cast(BufferedIOBase, self._archives[f"{archive}.zip"].open(member))
        return (self.root / name).open("rb")

    def below(self, names: Iterable[str]) -> dict[str, Stamp]:
        """Names and stamps of some of the files."""
        return {name: self.files[name] for name in names}

    def _look(self) -> None:
        files: dict[str, Stamp] = {}
        empty: list[str] = []
        if zipfile.is_zipfile(self.path) and self.path.suffix == ".zip":
            zips = [self.path.name]
        else:
            files, empty = _walk(self.root, depth=DEPTH if self.path.is_dir() else 0)
            zips = [name for name in files if name.endswith(".zip") and not _unpacked(name, files)]
        for name in zips:
            files.pop(name, None)
            files |= self._members(name)
        self.files, self.empty = dict(sorted(files.items())), tuple(empty)

    def _members(self, name: str) -> dict[str, Stamp]:
        try:
            archive = self._open.enter_context(zipfile.ZipFile(self.root / name))
        except (zipfile.BadZipFile, OSError) as e:
            raise ValueError(f"{self.root / name} cannot be read as a zip ({e}); fetch it again") from None
        self._archives[name] = archive
        members = [m for m in archive.infolist() if not m.is_dir() and not _skipped(m.filename)]
        return {f"{name}/{m.filename}": (m.file_size, m.CRC) for m in members}


def _walk(root: Path, *, depth: int) -> tuple[dict[str, Stamp], list[str]]:
    """Files with their stamps, and empty folders; a folder that links make reachable twice is entered once."""
    files: dict[str, Stamp] = {}
    empty: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [("", depth)]
    while waiting:
        folder, left = waiting.pop()
        with os.scandir(root / folder) as entries:
            found = sorted((entry for entry in entries if not _skipped(entry.name)), key=lambda entry: entry.name)
        if folder and not found:
            empty.append(folder.rstrip("/"))
        for entry in found:
            try:
                status = entry.stat()
            except OSError:
                continue  # a link to nothing
            if not entry.is_dir():
                files[folder + entry.name] = (status.st_size, status.st_mtime_ns)
            elif left and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                waiting.append((f"{folder}{entry.name}/", left - 1))
        if len(files) > MOST_FILES:
            raise ValueError(f"{root} holds more than {MOST_FILES} files; give the folder of one data set")
    return files, empty


def _skipped(name: str) -> bool:
    return any(part.startswith(OURS) for part in name.split("/"))


def _unpacked(name: str, files: Mapping[str, Stamp]) -> bool:
    """Whether the folder that a zip unpacks to lies beside it."""
    return any(other.startswith(name.removesuffix(".zip") + "/") for other in files)
