"""Reading other people's pickles without running what is in them.

A pickle is a program: ``pickle.load`` calls any function of any module it names. Here only what arrays and plain
containers are made of is admitted, and everything else is refused by name. Images packed one by one are not even
unpickled but picked out of the stream, so that 12 GB of them are never in memory together.
"""

import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from math import prod
from typing import IO, Any, cast

import numpy as np

IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # of PNG and JPEG

PLAIN: dict[str, type] = {
    kind.__name__: kind
    for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes, bytearray, slice, range)
}
ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2
SCALAR: Any = np.float64(0).__reduce__()[0]
ENTRY = re.compile(r"[biufcSUO]\d*")  # as NumPy writes types without fields
FROM_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")


def load_pickle(file: BufferedIOBase, *, where: str) -> Any:
    """The object in a pickle made of builtin containers, numbers, strings and NumPy arrays; whole, in memory.

    Pickles of Python 2 too: their strings come out as text (latin-1). ValueError, naming what was asked for, where the
    pickle wants anything else (such as ``os.system`` or ``eval``), or is damaged; nothing of it is run then.
    """
    try:
        return _Plain(file, where).load()
    except _RefusedError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way
        raise ValueError(f"{where} cannot be read as a pickle ({type(e).__name__}: {e}); fetch it again") from None


def packed_images(file: BufferedIOBase, *, where: str) -> Iterator[bytes]:
    """Every PNG or JPEG in a pickle, in its order, one at a time: of a list of byte strings or of byte arrays.

    Nothing is unpickled or run. Cost: one pass; memory of the largest item.
    """
    try:
        for _, item, _ in pickletools.genops(cast(IO[bytes], file)):
            content = item.encode("latin-1", "ignore") if isinstance(item, str) and item[1:4] == "PNG" else item
            if isinstance(content, bytes | bytearray) and content.startswith(IMAGE_SIGNATURES):
                yield bytes(content)
    except ValueError as e:
        raise ValueError(f"{where} cannot be read as a pickle ({e}); fetch it again") from None


class _RefusedError(ValueError):
    """A pickle that asks for more than data."""


class _Plain(pickle.Unpickler):
    def __init__(self, file: BufferedIOBase, where: str) -> None:
        super().__init__(file, encoding="latin1")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        found = _admitted(module, name)
        if found is None:
            raise _RefusedError(
                f"{self._where} is refused: it asks for {module}.{name}, and data need no more than NumPy arrays and "
                "plain containers.\nDo not open it with pickle.load, which would run it; fetch the data again."
            )
        return found


class _EntryType:
    """What a pickle says of the entries of an array; NumPy is told no more than a plain name of it.

    NumPy's own reading believes a pickle that says of pointers that they are numbers.
    """

    def __init__(self, text: str) -> None:
        if not ENTRY.fullmatch(text):
            raise ValueError(f"entries of type {text!r}; numbers, text and objects are read")
        self._text: str = text
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise ValueError("entries of several fields; numbers, text and objects are read")
        self._order = state[1]

    def built(self) -> np.dtype[Any]:
        return np.dtype(self._text).newbyteorder(self._order)


class _Array(np.ndarray):
    """An array that is filled by its state alone, which NumPy checks against a type that is known to be one."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, dtype, fortran, content = state
        if isinstance(content, list) and len(content) != prod(shape):  # which NumPy would read past the end of
            raise ValueError(f"{len(content)} objects for an array of shape {shape}")
        super().__setstate__((*version, shape, dtype.built(), fortran, content))


def _from_bytes() -> Callable[..., Any]:
    def from_bytes(content: Any, dtype: _EntryType, shape: tuple[int, ...], order: Any) -> np.ndarray:
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"an array out of {type(content).__name__}")
        return np.frombuffer(content, dtype.built()).reshape(shape, order=order)

    return from_bytes


def _admitted(module: str, name: str) -> Any:
    """Exact pairs only. Functions of Python are made afresh: a pickle could set attributes on shared ones."""
    if module in ("builtins", "__builtin__"):
        return {**PLAIN, "unicode": str, "long": int, "xrange": range}.get(name)
    if module == "numpy":  # never NumPy's own: called, they make arrays of pointers out of a pickle's bytes
        return {"ndarray": "numpy.ndarray", "dtype": lambda text, *_: _EntryType(text)}.get(name)
    if module in ARRAY_MODULES:
        return {
            "_reconstruct": lambda *_: np.ndarray.__new__(_Array, (0,), np.int8),
            "scalar": lambda dtype, *value: SCALAR(dtype.built(), *value),
        }.get(name)
    if module in FROM_BUFFER_MODULES and name == "_frombuffer":
        return _from_bytes()
    if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
        return lambda text, encoding="latin1": str.encode(text, "latin-1")
    return None
