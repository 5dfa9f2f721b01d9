"""Reads arrays from .npz files, whose headers are checked before anything is allocated."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import IO, Any, NamedTuple, cast

import numpy as np

from hessian_tools.data.tree import Tree
from hessian_tools.validation import some_of

MAX_HEADER = 10_000  # bytes; NumPy's own limit


class StoredArray(NamedTuple):
    """An array in an .npz file, of which only the header has been read.

    file: the open file, positioned at the array's first number. fortran: whether the numbers are stored with the first
    index changing fastest.
    """

    file: IO[bytes]
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    def read(self, *, max_bytes: int) -> np.ndarray:
        """The whole array. Raises ValueError where it takes more than ``max_bytes``, or where numbers are missing."""
        size = prod(self.shape) * self.dtype.itemsize
        if size > max_bytes:
            raise ValueError(f"an array of shape {self.shape} takes {size / 1e9:.1f} GB; at most {max_bytes / 1e9:g}")
        content = bytearray()
        # The bytes are read in blocks of 16 MiB, so memory grows with what the file holds and not with what it claims.
        while len(content) < size and (block := self.file.read(min(size - len(content), 1 << 24))):
            content += block
        if len(content) < size:
            raise ValueError(f"an array of shape {self.shape} ends after {len(content)} of {size} bytes")
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def array_names(tree: Tree, name: str) -> list[str]:
    """The names of the arrays in an .npz file; empty if the file is not an .npz file."""
    try:
        with tree.open(name) as file, zipfile.ZipFile(file) as archive:
            return [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
    except zipfile.BadZipFile:
        return []


@contextmanager
def stored_array(tree: Tree, name: str, array: str) -> Iterator[StoredArray]:
    """Open one array of the .npz file ``name``.

    Raises ValueError if the file has no such array, or if the array is damaged or holds Python objects.
    """
    with tree.open(name) as file, zipfile.ZipFile(file) as archive:
        if f"{array}.npy" not in archive.namelist():
            raise ValueError(f"{name} holds {some_of(archive.namelist())} but no array {array!r}")
        with archive.open(f"{array}.npy") as member:
            stored = cast(IO[bytes], member)
            try:
                header = _header(stored)
            except ValueError as e:
                raise ValueError(f"the array {array!r} of {name} cannot be read ({e}); fetch it again") from None
            if header[-1].hasobject:
                raise ValueError(
                    f"the array {array!r} of {name} holds Python objects, and reading these can run code; save it as an"
                    " array of numbers or of text"
                )
            yield StoredArray(stored, *header)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, the order and the type of an array, from its header; ``file`` is open at its magic string."""
    version = np.lib.format.read_magic(file)
    length = file.read(2 if version == (1, 0) else 4)  # the header begins with its length, in 2 bytes or in 4
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ValueError("its header is damaged")
    # NumPy's functions read the length themselves, so it is put before the header again.
    header = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran, dtype
