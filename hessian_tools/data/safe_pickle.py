"""Reading other people's pickles without running what is in them.

A pickle is a program: ``pickle.load`` calls any function of any module that it names. Only what arrays and plain
containers are made of is admitted here, and everything else is refused by name. Images that were pickled one by one
are not even unpickled but picked out of the stream, so that 12 GB of them are never in memory together.
"""

import pickle
import pickletools
import re
from collections.abc import Iterator
from io import BufferedIOBase
from math import prod
from typing import IO, Any, cast

import numpy as np

IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin

PLAIN: dict[str, Any] = {
    kind.__name__: kind
    for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes, bytearray, slice, range)
}
PLAIN |= {"unicode": str, "long": int, "xrange": range}  # what Python 2 called them
SCALAR: Any = np.float64(0).__reduce__()[0]
ELEMENT_TYPE = re.compile(r"[biufcSUO]\d*")  # as NumPy writes types without fields


def load_pickle(file: BufferedIOBase, *, where: str) -> Any:
    """The object in a pickle made of builtin containers, numbers, strings and NumPy arrays, read into memory.

    Pickles of Python 2 are read too: their strings come out as text (latin-1). Raises ValueError where the pickle asks
    for anything else (such as ``os.system`` or ``eval``), naming it, or is damaged; nothing of it is run then.
    """
    try:
        return _DataUnpickler(file, where).load()
    except _RefusedError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way
        raise ValueError(f"{where} cannot be read as a pickle ({type(e).__name__}: {e}); fetch it again") from None


def packed_images(file: BufferedIOBase, *, where: str) -> Iterator[bytes]:
    """Every PNG or JPEG file in a pickle, in order and one at a time, from a list of byte strings or of byte arrays.

    Nothing is unpickled or run. It takes one pass over the file, and the memory of the largest item.
    """
    try:
        for _, item, _ in pickletools.genops(cast(IO[bytes], file)):
            # Old protocols write bytes as latin-1 text.
            content = item.encode("latin-1", "ignore") if isinstance(item, str) and item[1:4] == "PNG" else item
            if isinstance(content, bytes | bytearray) and content.startswith(IMAGE_SIGNATURES):
                yield bytes(content)
    except ValueError as e:
        raise ValueError(f"{where} cannot be read as a pickle ({e}); fetch it again") from None


class _RefusedError(ValueError):
    """A pickle asks for more than data."""


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, file: BufferedIOBase, where: str) -> None:
        super().__init__(file, encoding="latin1")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        admitted = _admitted(module, name)
        if admitted is None:
            raise _RefusedError(
                f"{self._where} is refused: it asks for {module}.{name}, and data need no more than NumPy arrays and "
                "plain containers.\nDo not open it with pickle.load, which would run it; fetch the data again."
            )
        return admitted


class _ElementType:
    """What a pickle says of the type of an array's elements; NumPy is given no more than a plain name of it.

    NumPy's own reader would believe a pickle which says that pointers are numbers.
    """

    def __init__(self, text: str) -> None:
        if not ELEMENT_TYPE.fullmatch(text):
            raise ValueError(f"elements of type {text!r}; only numbers, text and objects are read")
        self._text: str = text
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise ValueError("elements of several fields; only numbers, text and objects are read")
        self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._text).newbyteorder(self._order)


class _Array(np.ndarray):
    """An array that is filled by its state alone, which NumPy checks against a type that is known to be safe."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, element_type, fortran, content = state
        if isinstance(content, list) and len(content) != prod(shape):  # NumPy would read past the end of the list
            raise ValueError(f"{len(content)} objects for an array of shape {shape}")
        super().__setstate__((*version, shape, element_type.dtype(), fortran, content))


def _admitted(module: str, name: str) -> Any:
    """What a pickle may call under this name, or None; only exact pairs of module and name are admitted.

    Functions are made anew for every call, because a pickle could set attributes on shared ones. NumPy's own are
    never handed out: a pickle could call them to make arrays of pointers out of its bytes.
    """

    def from_buffer(content: Any, element_type: _ElementType, shape: tuple[int, ...], order: Any) -> np.ndarray:
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"an array out of {type(content).__name__}")
        return np.frombuffer(content, element_type.dtype()).reshape(shape, order=order)

    if module in ("builtins", "__builtin__"):
        return PLAIN.get(name)
    if module == "numpy":
        return {"ndarray": "numpy.ndarray", "dtype": lambda text, *_: _ElementType(text)}.get(name)
    # NumPy 1 and 2 have these functions in numpy.core and in numpy._core.
    if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        return {
            "_reconstruct": lambda *_: np.ndarray.__new__(_Array, (0,), np.int8),
            "scalar": lambda element_type, *value: SCALAR(element_type.dtype(), *value),
        }.get(name)
    if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
        return from_buffer
    if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
        return lambda text, encoding="latin1": str.encode(text, "latin-1")
    return None
