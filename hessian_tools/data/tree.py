"""The files below a path that the user gave: a folder, a zip, or a folder of zips."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from hessian_tools.importing import one_line

MAX_DEPTH = 7  # levels of folders below the path; no layout has more
MAX_WHOLE = 64_000_000  # bytes of a file that is read as a whole: one image, or a list of classes
MAX_FILES = 3_000_000  # more files than any data set has, so that a path such as "/" is refused
# Files and folders whose names begin with one of these are not data: hidden ones, such as our cache of decoded images,
# and those that macOS adds to archives.
IGNORED = (".", "__MACOSX")

Stamp = tuple[int, int]  # (size, time of the last change) of a file, or (size, checksum) inside a zip


class Tree:
    """The names and contents of the files at a path; use it in a ``with`` statement.

    Names use "/" and are relative to ``root``. A zip appears as a folder with the name of the zip, unless the folder
    that it unpacks to lies beside it. If the path is a file other than a zip, the tree holds the files of its folder,
    without the folders in it. Nothing is unpacked to the disk.

    files: for each name its (size, time of the last change) or, inside a zip, its (size, checksum); a cache is valid as
    long as these stay the same. empty: the folders that hold nothing.

    Raises ValueError if there is nothing at the path, if it holds far more files than a data set has, or if it is or
    holds a device or a pipe, which reading might never end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files: Mapping[str, Stamp] = {}
        self.empty: tuple[str, ...] = ()
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._open_files = ExitStack()

    def __enter__(self) -> "Tree":
        if not self.path.exists():
            raise ValueError(f"there is no file or folder {self.path}; give the folder or zip that holds the data")
        if not (self.path.is_file() or self.path.is_dir()):
            raise ValueError(f"{self.path} is a device, a pipe or a socket; give the folder or file of the data")
        try:
            self._list_files()
        except BaseException:
            self._open_files.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open_files.close()

    @property
    def root(self) -> Path:
        """The folder that names are relative to; for a zip, the folder it lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    def read(self, name: str) -> bytes:
        """The whole content of a file; raises ValueError if it has more than ``MAX_WHOLE`` bytes, or is damaged."""
        size = self.files[name][0] if name in self.files else (self.root / name).stat().st_size
        if size > MAX_WHOLE:
            raise ValueError(
                f"{name} in {self.path} has {size / 1e6:.0f} MB, but at most {MAX_WHOLE / 1e6:.0f} MB are read as one"
                " image or list; move it elsewhere"
            )
        content = bytearray()
        with readable(f"{name} in {self.path}"), self.open(name) as file:
            # A member of a zip may be longer than the zip states. No more than the stated size is read.
            while len(content) < size and (block := file.read(min(size - len(content), 1 << 20))):
                content += block
        return bytes(content)

    def text(self, name: str) -> str:
        """The content of a text file in UTF-8, without a byte order mark."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{name} in {self.path} is not a text file in UTF-8; fetch it again") from None

    def open(self, name: str) -> BufferedIOBase:
        """Open a file for reading, as a stream."""
        archive, _, member = name.partition(".zip/")
        if f"{archive}.zip" in self._archives and member:
            return cast(BufferedIOBase, self._archives[f"{archive}.zip"].open(member))
        return (self.root / name).open("rb")

    def _list_files(self) -> None:
        """List the files at the path, with the members of a zip in the place of the zip."""
        files: dict[str, Stamp] = {}
        empty: list[str] = []
        if self.path.is_file() and self.path.suffix == ".zip":
            zips = [self.path.name]
        else:
            files, empty = _walk(self.root, depth=MAX_DEPTH if self.path.is_dir() else 0)
            zips = [name for name in files if name.endswith(".zip") and not _is_unpacked(name, files)]
        for name in zips:
            files.pop(name, None)
            files |= self._members(name)
        self.files, self.empty = dict(sorted(files.items())), tuple(empty)

    def _members(self, name: str) -> dict[str, Stamp]:
        """Open a zip, and list the files in it."""
        try:
            archive = self._open_files.enter_context(zipfile.ZipFile(self.root / name))
        except Exception as e:  # a damaged zip can fail in any way
            raise ValueError(f"{self.root / name} cannot be read as a zip ({one_line(e)}); fetch it again") from None
        self._archives[name] = archive
        members = [m for m in archive.infolist() if not m.is_dir() and not _is_ignored(m.filename)]
        return {f"{name}/{m.filename}": (m.file_size, m.CRC) for m in members}


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn whatever the reading of damaged data raises into a ValueError that names the data.

    A ValueError is left as it is, and so is an error of the operating system, such as a full disk.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise ValueError(f"{where} cannot be read ({one_line(e)}); fetch it again") from e


def _walk(root: Path, *, depth: int) -> tuple[dict[str, Stamp], list[str]]:
    """The files with their stamps, and the empty folders; a folder that links make reachable twice is listed once."""
    files: dict[str, Stamp] = {}
    empty: list[str] = []
    entered: set[tuple[int, int]] = set()  # the numbers by which the system knows the folders: device and inode
    waiting = [("", depth)]
    while waiting:
        folder, levels = waiting.pop()
        with os.scandir(root / folder) as scan:
            entries = sorted((entry for entry in scan if not _is_ignored(entry.name)), key=lambda entry: entry.name)
        if folder and not entries:
            empty.append(folder.rstrip("/"))
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                continue  # a link to nothing
            if not (entry.is_dir() or entry.is_file()):
                if depth:  # it is 0 where the path is a file, whose neighbours need not be readable
                    raise ValueError(f"{root / folder / entry.name} is a device, a pipe or a socket; move it elsewhere")
            elif not entry.is_dir():
                files[folder + entry.name] = (status.st_size, status.st_mtime_ns)
            elif levels and (status.st_dev, status.st_ino) not in entered:
                entered.add((status.st_dev, status.st_ino))
                waiting.append((f"{folder}{entry.name}/", levels - 1))
        if len(files) > MAX_FILES:
            raise ValueError(f"{root} holds more than {MAX_FILES} files; give the folder of one data set")
    return files, empty


def _is_ignored(name: str) -> bool:
    return any(part.startswith(IGNORED) for part in name.split("/"))


def _is_unpacked(name: str, files: Iterable[str]) -> bool:
    """Whether the folder that a zip unpacks to lies beside the zip."""
    return any(file.startswith(name.removesuffix(".zip") + "/") for file in files)
