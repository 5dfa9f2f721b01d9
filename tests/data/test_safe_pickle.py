"""Pickles of arrays and containers, old or new, are read as data; a pickle that would call anything else is refused."""

import collections
import io
import os
import pickle
import pickletools

import layouts_on_disk as disk
import numpy as np
import pytest

from hessian_tools.data import open_data
from hessian_tools.data.safe_pickle import load_pickle, packed_images


def load(content: bytes) -> object:
    return load_pickle(io.BytesIO(content), where="data.pkl")


class Calls:
    """An object whose pickle calls a given function when it is loaded."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


VALUES = [
    {"a": [1, 2.5, None, True, (b"x", "y")], "s": {1, 2}, "f": frozenset({3}), "c": 1j, "b": bytearray(b"z")},
    [slice(1, 2), range(3)],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_of_every_protocol(protocol):
    for value in VALUES:
        assert load(pickle.dumps(value, protocol)) == value
    arrays = {
        "uint8": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array(["a", "bc"]),
        "objects": np.array([[1, 2], {"k": 3}], dtype=object),
    }
    read = load(pickle.dumps(arrays | {"scalar": np.float32(0.5)}, protocol))
    assert isinstance(read, dict) and read.pop("scalar") == np.float32(0.5)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_python_2_pickles_come_out_as_text():
    """Python 2.7 wrote this by cPickle.dumps({'class_dict': {'n01': [0]}, 'image_data': zeros((1, 2), 'uint8')}, 2)."""
    old = (
        b"\x80\x02}q\x01(U\nclass_dictq\x02}q\x03U\x03n01q\x04]q\x05K\x00asU\nimage_dataq\x06cnumpy.core.multiarray\n"
        b"_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\nU\x02u1K"
        b"\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xe9tbu."
    )
    read = load(old)
    assert isinstance(read, dict) and read["class_dict"] == {"n01": [0]}
    np.testing.assert_array_equal(read["image_data"], [[7, 233]])


def harmful_pickles() -> dict[str, bytes]:
    """Pickles that would act when loaded with pickle.load, by the name of the function that they call."""
    calls = {
        "posix.system": Calls(os.system, "touch planted"),
        "builtins.eval": Calls(eval, "open('planted', 'w')"),
        "builtins.exec": Calls(exec, "open('planted', 'w')"),
        "builtins.getattr": Calls(getattr, "", "join"),
        "builtins.open": Calls(open, "planted", "w"),
        "builtins.__import__": Calls(__import__, "os"),
        "collections.OrderedDict": Calls(collections.OrderedDict),
        "numpy.load": Calls(np.load, "planted"),
    }
    pickles = {name: pickle.dumps({"data": call}, protocol=2) for name, call in calls.items()}
    pickles["os.system"] = b"cos\nsystem\n(S'touch planted'\ntR."
    pickles["numpy.__builtins__"] = b"\x80\x04\x8c\x05numpy\x8c\x0c__builtins__\x93."
    pickles["builtins.dict.fromkeys"] = b"\x80\x04\x8c\x08builtins\x8c\x0ddict.fromkeys\x93."
    pickles["numpy.testing._private.utils.runstring"] = b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR."
    return pickles


@pytest.mark.parametrize("function", harmful_pickles())
def test_a_pickle_that_would_call_a_function_is_refused_and_not_run(function, working_folder):
    with pytest.raises(ValueError, match="data.pkl is refused: it asks for ") as error:
        load(harmful_pickles()[function])
    assert function.replace("builtins.", "") in str(error.value).replace("__builtin__.", "")
    assert str(error.value).count("\n") == 1
    assert not (working_folder / "planted").exists()


POINTER = bytes(8)  # a null pointer, which NumPy reads as None; NumPy would follow any other pointer
# The pickled state of a NumPy type with one field f. The last number holds flags; 0 claims that there are no objects.
FIELDS = (3, "|", None, ("f",), {"f": (np.dtype(object), 0)}, 8, 1, 0)


def forged_fields() -> bytes:
    """A pickle of an array of pointers, whose type claims that they are plain bytes."""
    forged = Forged(np.dtype, ("V8", False, True), FIELDS)
    return pickle.dumps(Calls(np.frombuffer(b"").__reduce_ex__(5)[0], POINTER, forged, (1,), "C"), 5)


class Forged:
    """An object whose pickle calls a function and then sets a state on the result."""

    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


RECONSTRUCT = np.zeros(0).__reduce__()[0]
POINTERS = {
    "ndarray called": pickle.dumps(Calls(np.ndarray, (1,), np.dtype(object), POINTER), 2),
    "ndarray made": pickle.dumps(Calls(np.ndarray, (1,), np.dtype(object), POINTER), 2).replace(b"R.", b"\x81."),
    "reconstructed": pickle.dumps(Calls(RECONSTRUCT, np.ndarray, (1,), np.dtype(object), POINTER), 2),
    "forged fields": forged_fields(),
    "objects from bytes": pickle.dumps(
        Forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype(object), False, POINTER)), 2
    ),
    "too few objects": pickle.dumps(
        Forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9,), np.dtype(object), False, [0])), 2
    ),
}


@pytest.mark.parametrize("name", POINTERS)
def test_bytes_of_a_pickle_are_never_taken_for_pointers(name):
    """NumPy's types are not harmless: a pickle can make them read any address of the memory, and so run code."""
    try:
        read = load(POINTERS[name])
    except ValueError as error:
        assert "cannot be read as a pickle" in str(error)
    else:
        assert np.asarray(read).size == 0


def test_shared_functions_cannot_be_altered():
    """A pickle can set attributes on the functions it gets, so no other pickle may get the same functions."""
    altering = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__X\x01\x00\x00\x00xs\x86b."
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        load(altering)  # this error shows that __defaults__ was set, which accepts only a tuple
    assert load(pickle.dumps(b"\xff\x00", protocol=2)) == b"\xff\x00"


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps([1])[:-3], b"\x80\x02]q\x00(K\x01"])
def test_damaged_pickles_are_reported(content):
    with pytest.raises(ValueError, match=r"data.pkl cannot be read as a pickle .*; fetch it again"):
        load(content)


def test_a_data_set_with_one_harmful_pickle_is_refused(tmp_path):
    disk.mini_pickles(tmp_path)
    disk.dump(tmp_path / "mini-imagenet-cache-val.pkl", {"image_data": Calls(os.system, "exit 1"), "class_dict": {}})
    with pytest.raises(ValueError, match="mini-imagenet-cache-val.pkl is refused: it asks for (posix|nt).system"):
        open_data(tmp_path)


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_arrays", [False, True])
def test_images_are_read_from_the_stream_of_a_pickle(protocol, as_arrays):
    files = [disk.png(c, e) for c in range(3) for e in range(2)]
    items = [np.frombuffer(file, np.uint8)[:, None] for file in files] if as_arrays else files
    stream = io.BytesIO(pickle.dumps({"other": [b"text", 3], "images": items}, protocol))
    assert list(packed_images(stream, where="x")) == files


def test_reading_images_from_a_pickle_runs_nothing(working_folder):
    stream = io.BytesIO(pickle.dumps([Calls(os.system, "touch planted"), disk.png(0, 0)]))
    assert list(packed_images(stream, where="x")) == [disk.png(0, 0)]
    assert not (working_folder / "planted").exists()
    with pytest.raises(ValueError, match="x cannot be read as a pickle"):
        list(packed_images(io.BytesIO(b"junk"), where="x"))


def test_only_one_image_is_in_memory_at_a_time():
    """The file is read only as far as images have been requested."""
    stream = io.BytesIO(pickle.dumps([disk.png(c, 0) for c in range(12)]))
    next(packed_images(stream, where="x"))
    assert stream.tell() < 300 < len(stream.getvalue())
    assert any(opcode.name == "MEMOIZE" for opcode, _, _ in pickletools.genops(stream.getvalue()))
