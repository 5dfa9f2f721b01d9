"""Data that are meant to exhaust the memory, or to be read for ever, are refused before they are read."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest
from PIL import Image

from hessian_tools.data import open_data
from hessian_tools.data.safe_pickle import load_pickle, packed_images

CLASSES = ("a", "b", "c", "d")


def refused(path: Path | str) -> str:
    """The message on data that must be refused."""
    with pytest.raises(ValueError) as error:
        open_data(path)
    assert len(str(error.value)) < 1000 and str(error.value).count("\n") <= 1
    return str(error.value)


def test_devices_and_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.npz").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "link.npz"):
        assert "is a device, a pipe or a socket; give" in refused(path)
    for name, make in (("zero", lambda path: path.symlink_to("/dev/zero")), ("fifo", os.mkfifo)):
        disk.class_folders(tmp_path / name, CLASSES)
        make(tmp_path / name / "b" / "zz.png")
        assert "zz.png is a device, a pipe or a socket; move it elsewhere" in refused(tmp_path / name)


def test_a_pipe_beside_a_file_does_not_matter(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    np.savez(tmp_path / "all.npz", **disk.feature_arrays())
    assert open_data(tmp_path / "all.npz").digest


def test_an_image_file_of_gigabytes_is_not_read(tmp_path):
    disk.class_folders(tmp_path, CLASSES)
    with (tmp_path / "b" / "zz.png").open("ab") as file:
        file.truncate(3 << 30)
    assert "has 3221 MB, but at most 64 MB are read" in refused(tmp_path)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path):
    disk.class_folders(tmp_path, CLASSES)
    (tmp_path / "b" / "zz.png").write_bytes(large_png(10_000))
    assert "10000 x 10000 pixels, but at most 64000000 are decoded" in refused(tmp_path)


def large_png(side: int) -> bytes:
    """A PNG that says it has this side, and holds nothing."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_other_programs_are_not_run_for_an_image(tmp_path):
    """Pillow gives PostScript to another program."""
    disk.class_folders(tmp_path, CLASSES)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    (tmp_path / "b" / "zz.png").write_bytes(buffer.getvalue())
    assert "zz.png cannot be read as an image (of no known format)" in refused(tmp_path)


def zipped(path: Path, members: dict[str, bytes], **changes: int) -> Path:
    """A zip whose directory is changed: the field ``file_size``, ``flag_bits`` or ``CRC`` of every member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for info in archive.filelist:
            for field, value in changes.items():
                setattr(info, field, value)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file_size": 3_000_000_000}, "has 3000 MB, but at most 64 MB are read"),
        ({"file_size": 10}, "cannot be read"),
        ({"flag_bits": 1}, "is encrypted"),
        ({"CRC": 1}, "Bad CRC-32"),
        ({"compress_type": 99}, "compression method is not supported"),
    ],
)
def test_zips_that_lie_or_are_encrypted_are_refused(changes, said, tmp_path):
    images = {f"{name}/{number}.png": disk.png(0, number) for name in CLASSES for number in range(2)}
    assert said in refused(zipped(tmp_path / "x.zip", images, **changes))


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """The header of an .npy file, without any number."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (header((10**12, 4)), "1000000000000 features, but at most 10000000 examples are read"),
        (header((10**6, 10**6)), "takes 4000.0 GB; at most 2"),
        (header((9, 4)), "ends after 0 of 144 bytes"),
        (header((-9, 4)), r"its shape is (-9, 4)"),
        (header((9, 4), "|O"), "holds Python objects"),
        (b"\x93NUMPY\2\0\xf0\xff\xff\xff", "its header is damaged"),
        (b"hello", "magic string"),
    ],
)
def test_headers_of_features_are_checked_before_memory_is_taken(features, said, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(9, int))
    assert said in refused(zipped(tmp_path / "x.npz", {"features.npy": features, "labels.npy": buffer.getvalue()}))


def test_arrays_that_are_not_needed_are_not_read(tmp_path):
    arrays = {}
    for name, array in disk.feature_arrays().items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        arrays[f"{name}.npy"] = buffer.getvalue()
    assert open_data(zipped(tmp_path / "x.npz", arrays | {"more.npy": header((10**12,))})).digest


def test_arrays_in_the_order_of_fortran_are_read_as_they_were_saved(tmp_path):
    arrays = disk.feature_arrays()
    np.savez(tmp_path / "rows.npz", **arrays)
    np.savez(tmp_path / "columns.npz", **arrays | {"features": np.asfortranarray(arrays["features"])})
    assert open_data(tmp_path / "rows.npz").digest == open_data(tmp_path / "columns.npz").digest


def test_a_folder_of_far_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hessian_tools.data.tree.MAX_FILES", 3)
    disk.class_folders(tmp_path, CLASSES)
    assert "holds more than 3 files; give the folder of one data set" in refused(tmp_path)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(Call(set, range(10**9))), "a range of more than 10000000 numbers"),
        (pickle.dumps(Call(bytearray, 10**12)), "it makes bytearray out of something else than text"),
        (pickle.dumps(Call(bytes, 10**12)), "it makes bytes out of something else than text"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"xx", "an item of 1099511627776 bytes"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "an item of 1099511627776 bytes"),
    ],
)
def test_pickles_make_nothing_that_is_far_larger_than_themselves(content, said):
    with pytest.raises(ValueError, match=said):
        load_pickle(io.BytesIO(content), where="x.pkl", size=len(content))


def test_a_line_of_a_pickle_has_a_limit(monkeypatch):
    monkeypatch.setattr("hessian_tools.data.safe_pickle.MAX_IMAGE", 100)
    content = b"I" + b"1" * 200 + b"\n."
    with pytest.raises(ValueError, match="a line of more than 100 bytes"):
        list(packed_images(io.BytesIO(content), where="x.pkl"))


def test_a_memo_of_billions_takes_no_memory():
    assert load_pickle(io.BytesIO(b"\x80\x02Nr\xff\xff\xff\x7f."), where="x.pkl") is None


def test_a_pickle_of_gigabytes_is_not_read():
    with pytest.raises(ValueError, match="has 3.0 GB; of a pickle at most 2 GB are read"):
        load_pickle(io.BytesIO(b""), where="x.pkl", size=3_000_000_000)


def test_an_image_in_a_pickle_has_a_limit():
    content = b"\x80\x04\x8e" + struct.pack("<Q", 3 << 30) + b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match="an item of 3221225472 bytes, but at most 64000000"):
        list(packed_images(io.BytesIO(content), where="x.pkl"))


@pytest.mark.parametrize("rows", [None, {"a": "xyz"}, {"a": [0.5]}, {"a": [[1]]}, {"a": range(10**9)}])
def test_pickles_of_the_wrong_kinds_are_damaged_data(rows, tmp_path):
    content = pickle.dumps({"image_data": np.zeros((3, 84, 84, 3), np.uint8), "class_dict": rows})
    for part in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{part}.pkl").write_bytes(content)
    assert "cannot be read" in refused(tmp_path)


def test_sizes_of_images_have_a_limit():
    for size, said in (
        (2000, "image_size=2000 is too large; give at most 1024"),
        (1000, "larger than 2 GB; give less"),
    ):
        with pytest.raises(ValueError, match=said):
            open_data("quickdraw", image_size=size)
