"""Reads other people's pickles without running what is in them.

A pickle is a program: ``pickle.load`` calls any function of any module that it names. Here a pickle may use only what
arrays and plain containers are made of; a pickle that names anything else is refused, and the error gives that name.
Images that were pickled one by one are not unpickled at all: their bytes are read from the stream one image at a time,
so that 12 GB of them are never in memory together.
"""

import pickle
import pickletools
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from math import prod
from typing import IO, Any, cast

import numpy as np

from hessian_tools.importing import one_line

IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin

# Limits that no data set reaches, although tieredImageNet has 12 GB of images, which are read one by one.
MAX_PICKLE = 2_000_000_000  # bytes of a pickle that is read as a whole
MAX_IMAGE = 64_000_000  # bytes of one image
MAX_ITEMS = 10_000_000  # items of a container that a pickle makes out of another, such as list(range(10**9))

# The types of Python that a pickle may make, by name.
PLAIN: dict[str, type] = {
    kind.__name__: kind
    for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes, bytearray, slice, range)
}
PLAIN |= {"unicode": str, "long": int, "xrange": range}  # their names in Python 2
CONTAINERS = (set, frozenset, list, dict, tuple)
# NumPy's function that makes a scalar from bytes; it has no public name.
SCALAR: Any = np.float64(0).__reduce__()[0]
ELEMENT_TYPE = re.compile(r"[biufcSUO]\d*")  # NumPy's names of types without fields


def load_pickle(file: BufferedIOBase, *, where: str, size: int = MAX_PICKLE) -> Any:
    """Read a pickle that is made of builtin containers, numbers, strings and NumPy arrays.

    size: the number of bytes of the file, if it is known.

    Pickles of Python 2 are read too; their strings are decoded as latin-1. Raises ValueError if the pickle is damaged
    or larger than ``MAX_PICKLE``, or if it makes something that is far larger than itself. Raises ValueError, too, if
    the pickle names another class or function, such as ``os.system``; the message gives that name, and nothing is run.
    """
    if size > MAX_PICKLE:
        raise _RefusedError(f"{where} has {size / 1e9:.1f} GB; of a pickle at most {MAX_PICKLE / 1e9:g} GB are read")
    try:
        return _DataUnpickler(_BoundedFile(file, size), where).load()
    except _RefusedError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way
        raise ValueError(f"{where} cannot be read as a pickle ({one_line(e)}); fetch it again") from None


def packed_images(file: BufferedIOBase, *, where: str) -> Iterator[bytes]:
    """Yield every PNG or JPEG file that a pickled list of byte strings or byte arrays holds, in order.

    Nothing is unpickled or run. The file is read once, and only one item is in memory at a time.
    """
    try:
        # A pickle is a list of instructions, and ``item`` is the argument of one of them.
        for _, item, _ in pickletools.genops(cast(IO[bytes], _BoundedFile(file, MAX_IMAGE))):
            # Old protocols of pickle write bytes as latin-1 text.
            content = item.encode("latin-1", "ignore") if isinstance(item, str) and item[1:4] == "PNG" else item
            if isinstance(content, bytes | bytearray) and content.startswith(IMAGE_SIGNATURES):
                yield bytes(content)
    except ValueError as e:
        raise ValueError(f"{where} cannot be read as a pickle ({one_line(e)}); fetch it again") from None


class _BoundedFile:
    """A file that reads at most ``largest`` bytes at once, because a pickle may state any length."""

    def __init__(self, file: BufferedIOBase, largest: int) -> None:
        self._file, self._largest = file, largest

    def read(self, size: int) -> bytes:
        if size > self._largest:
            raise ValueError(f"an item of {size} bytes, but at most {self._largest} can be right")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._largest)
        if len(line) == self._largest:
            raise ValueError(f"a line of more than {self._largest} bytes")
        return line


class _RefusedError(ValueError):
    """A pickle names something that data do not need."""


class _DataUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """An unpickler for data.

    It is based on the unpickler that is written in Python. The usual one, in C, lets a pickle of ten bytes allocate
    gigabytes for its memo, the table of objects already read. Arrays, most of the data, are read equally fast.
    """

    def __init__(self, file: _BoundedFile, where: str) -> None:
        super().__init__(file, encoding="latin1")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """The unpickler calls this for every class and function that the pickle names."""
        admitted = _admitted(module, name)
        if admitted is None:
            raise _RefusedError(
                f"{self._where} is refused: it asks for {module}.{name}, but data need only NumPy arrays and "
                "plain containers.\nDo not open it with pickle.load, which would run it; fetch the data again."
            )
        return admitted


class _ElementType:
    """The type of an array's elements as a pickle states it; NumPy is given only the name of a simple type.

    NumPy's own reader would accept any state of a type, so a pickle could have it treat numbers as pointers.
    """

    def __init__(self, text: str) -> None:
        if not ELEMENT_TYPE.fullmatch(text):
            raise ValueError(f"it has elements of type {text!r}; only numbers, text and objects are read")
        self._text: str = text
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # NumPy's state of a type begins with a version and the byte order. The next three entries are for types that
        # consist of several fields or of arrays, and are None for all others.
        if any(part is not None for part in state[2:5]):
            raise ValueError("it has elements of several fields; only numbers, text and objects are read")
        self._order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._text).newbyteorder(self._order)


class _Array(np.ndarray):
    """An array whose content is set from the pickled state; NumPy checks it against a type that is known to be safe."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, element_type, fortran, content = state
        if isinstance(content, list) and len(content) != prod(shape):  # NumPy would read past the end of the list
            raise ValueError(f"it has {len(content)} objects for an array of shape {shape}")
        super().__setstate__((*version, shape, element_type.dtype(), fortran, content))


def _plain(kind: type, *arguments: Any) -> Any:
    """A value of a plain type, as a pickle makes it by calling the type."""
    if kind is range and len(range(*arguments)) > MAX_ITEMS:
        raise ValueError(f"a range of more than {MAX_ITEMS} numbers")
    if kind in (bytes, bytearray, str) and not all(isinstance(argument, str | bytes) for argument in arguments):
        raise ValueError(f"it makes {kind.__name__} out of something else than text")
    if kind in CONTAINERS and any(len(argument) > MAX_ITEMS for argument in arguments):
        raise ValueError(f"it makes a {kind.__name__} of more than {MAX_ITEMS} items")
    return kind(*arguments)


def _admitted(module: str, name: str) -> Any:
    """The class or function that a pickle gets for this name, or None if it is refused.

    Only exact pairs of module and name are admitted. The functions are made anew for every call, because a pickle could
    set attributes on shared ones. NumPy's own functions are never returned, because a pickle could call them to make
    arrays of pointers out of its bytes.
    """

    def from_buffer(content: Any, element_type: _ElementType, shape: tuple[int, ...], order: Any) -> np.ndarray:
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"it makes an array out of a {type(content).__name__}")
        return np.frombuffer(content, element_type.dtype()).reshape(shape, order=order)

    if module in ("builtins", "__builtin__"):
        return partial(_plain, PLAIN[name]) if name in PLAIN else None
    if module == "numpy":
        # A pickle of an array only passes ndarray to ``_reconstruct``, which ignores it here; a string is enough.
        return {"ndarray": "numpy.ndarray", "dtype": lambda text, *_: _ElementType(text)}.get(name)
    # NumPy 1 has these functions in numpy.core, and NumPy 2 has them in numpy._core.
    if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        return {
            # An empty array, whose content __setstate__ sets.
            "_reconstruct": lambda *_: np.ndarray.__new__(_Array, (0,), np.int8),
            "scalar": lambda element_type, value: SCALAR(element_type.dtype(), value),
        }.get(name)
    if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
        return from_buffer
    if (module, name) == ("_codecs", "encode"):  # protocol 2 writes bytes as a call of this function
        return lambda text, encoding="latin1": str.encode(text, "latin-1")
    return None
