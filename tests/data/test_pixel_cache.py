"""The cache of decoded images is made once, used only when complete, and replaced when files or options change."""

import json
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import layouts_on_disk as disk
import numpy as np
import pytest

from hessian_tools.data import ImageTasks, StoredClasses, open_data, pixel_cache
from hessian_tools.data.layouts import recognise
from hessian_tools.data.tree import Tree

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return disk.class_folders(tmp_path / "data", NAMES)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which one entry is added for each image that is decoded; the data set at ``root`` has 20 images."""
    seen: list[int] = []
    plain = pixel_cache.picture_pixels

    def counting(picture, **options):
        seen.append(picture.class_index)
        return plain(picture, **options)

    monkeypatch.setattr(pixel_cache, "picture_pixels", counting)
    return seen


def files_of(data: object) -> tuple[Path, Path]:
    assert isinstance(data, StoredClasses)
    return data.file, data.file.with_suffix(".json")


def test_a_data_set_is_decoded_once_and_the_cache_lies_beside_the_data(root, decodings):
    first, second = open_data(root), open_data(root)
    assert len(decodings) == 20
    assert first.digest == second.digest
    pixels, about = files_of(first)
    assert pixels.parent == root / ".hessian-tools" and about.is_file()
    assert sorted(path.name for path in pixels.parent.iterdir()) == sorted([pixels.name, about.name])
    assert isinstance(first.images, np.memmap) and not first.images.flags.writeable


def test_progress_is_called_with_the_number_of_decoded_images(root, monkeypatch):
    monkeypatch.setattr(pixel_cache, "CHUNK", 8)
    calls: list[tuple[int, int]] = []
    open_data(root, progress=lambda done, total: calls.append((done, total)))
    open_data(root, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8, 20), (16, 20), (20, 20)]


@pytest.mark.parametrize(
    "options", [{"image_size": 5}, {"channels": 1}, {"image_size": 5, "channels": 1}], ids=lambda o: "-".join(o)
)
def test_each_size_and_number_of_channels_has_its_own_cache(options, root, decodings):
    plain, other = open_data(root), open_data(root, **options)
    side, channels = options.get("image_size", 8), options.get("channels", 3)
    assert other.example_shape == (channels, side, side) and len(decodings) == 40
    assert len({plain.digest, other.digest}) == 2
    open_data(root), open_data(root, **options)
    assert len(decodings) == 40


def test_changed_files_are_decoded_again_and_the_old_cache_is_removed(root, decodings):
    old = open_data(root)
    changed = disk.put(root / "bee" / "1.png", disk.png(c=9, e=1))
    os.utime(changed, (1, 1))  # two writes within some milliseconds could get the same time
    new = open_data(root)
    assert len(decodings) == 40 and new.digest != old.digest
    assert not files_of(old)[0].exists()
    disk.put(root / "bee" / "4.png", disk.png(c=9, e=1))
    assert open_data(root).counts == (4, 5, 4, 4, 4)


def test_the_digest_depends_on_pixels_and_class_names_but_not_on_dates_or_paths(root, tmp_path):
    first = open_data(root, cache=tmp_path / "a")
    copy = disk.class_folders(tmp_path / "other", NAMES)
    os.utime(copy / "ant" / "0.png", (1, 1))
    assert open_data(copy).digest == first.digest
    (root / "ant").rename(root / "auk")
    assert open_data(root).digest != first.digest


@pytest.mark.parametrize(
    "damage", ["pixel", "short", "long", "empty", "no json", "half a json", "other json", "header"]
)
def test_a_damaged_cache_is_made_again(damage, root, decodings):
    good = open_data(root)
    pixels, about = files_of(good)
    content, digest = pixels.read_bytes(), good.digest
    changes = {
        "pixel": lambda: pixels.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]),
        "short": lambda: pixels.write_bytes(content[:-1]),
        "long": lambda: pixels.write_bytes(content + bytes(pixel_cache.BLOCK)),
        "empty": lambda: pixels.write_bytes(b""),
        "no json": about.unlink,
        "half a json": lambda: about.write_text(about.read_text()[:100]),
        "other json": lambda: about.write_text(json.dumps({"shape": [1]})),
        "header": lambda: pixels.write_bytes(b"\0" * 20 + content[20:]),
    }
    del good
    changes[damage]()
    again = open_data(root)
    assert len(decodings) == 40 and again.digest == digest
    assert files_of(again)[0].read_bytes() == content


def test_a_large_cache_is_checked_at_both_ends_and_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "BLOCK", 16)
    file = disk.put(tmp_path / "pixels", bytes(range(256)) * 8)  # 128 blocks, of which 64 are checked
    _, checksums = pixel_cache._digests(file)
    assert pixel_cache._is_intact(file, checksums)
    caught = 0
    for block in range(128):
        wrong = [value ^ (number == block) for number, value in enumerate(checksums)]
        caught += not pixel_cache._is_intact(file, wrong)
    assert caught == 64
    assert not pixel_cache._is_intact(file, [checksums[0] ^ 1, *checksums[1:]])
    assert not pixel_cache._is_intact(file, [*checksums[:-1], checksums[-1] ^ 1])


def test_a_crash_leaves_no_cache_and_old_unfinished_files_are_removed(root, monkeypatch):
    disk.put(root / "eel" / "3.png", b"no image")
    with pytest.raises(ValueError, match=r"eel/3.png cannot be read as an image \((?!.* at 0x)"):  # no object's address
        open_data(root)
    folder = root / ".hessian-tools"
    assert list(folder.iterdir()) == []
    stale, fresh = disk.put(folder / ".old.partial", b"x"), disk.put(folder / ".new.partial", b"x")
    os.utime(stale, (1, 1))
    disk.put(root / "eel" / "3.png", disk.png(c=4, e=3))
    open_data(root)
    assert not stale.exists() and fresh.exists()


def test_threads_that_open_the_data_at_once_all_get_the_complete_cache(root):
    ready, results = threading.Barrier(4), []

    def work() -> None:
        ready.wait()
        data = open_data(root)
        results.append((data.digest, np.asarray(data.images).copy()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len({digest for digest, _ in results}) == 1
    assert all(np.array_equal(images, results[0][1]) for _, images in results)


def test_a_cache_that_another_process_finished_first_is_left_alone(root, monkeypatch):
    """A cache that one process has finished must not be removed by a process that started earlier."""
    monkeypatch.setattr(pixel_cache, "find", lambda places: None)
    first = open_data(root)
    removed = []
    monkeypatch.setattr(pixel_cache.Path, "unlink", lambda path, missing_ok=False: removed.append(path.suffix))
    assert open_data(root).digest == first.digest
    assert set(removed) == {".partial"}


def test_images_are_mapped_at_once_and_a_lost_file_is_reported(root):
    tasks = ImageTasks(open_data(root), ways=2, shots=1, queries=2)
    sent = pickle.dumps(tasks)
    for file in files_of(tasks.dataset):
        file.unlink()
    tasks.episode(seed=0, split="train", index=0)
    with pytest.raises(ValueError, match="the decoded images .* are gone; open the data set again"):
        pickle.loads(sent).episode(seed=0, split="train", index=0)


def test_where_the_data_cannot_be_written_the_users_cache_is_used(root, tmp_path, monkeypatch, decodings):
    home = tmp_path / "home"
    monkeypatch.setattr(pixel_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    root.chmod(0o555)
    data = open_data(root)
    root.chmod(0o755)
    disk.put(root / ".hessian-tools", b"a file where the folder should be")
    assert files_of(data)[0].parent == home / "hessian-tools"
    open_data(root)
    assert len(decodings) == 20
    disk.put(tmp_path / "nowhere", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"cannot write a cache in .* or .*; give a folder with cache="):
        open_data(root)
    assert files_of(open_data(root, cache=tmp_path / "mine"))[0].parent == tmp_path / "mine"


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {"XDG_CACHE_HOME": ""}, "home/.cache/hessian-tools"),
        ("darwin", {}, "home/Library/Caches/hessian-tools"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/hessian-tools"),
    ],
)
def test_the_users_cache_is_where_the_platform_keeps_caches(platform, variables, place, monkeypatch):
    monkeypatch.setattr(pixel_cache.sys, "platform", platform)
    monkeypatch.setattr(pixel_cache.Path, "home", lambda: Path("home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert pixel_cache.user_cache() == Path(place)


def test_a_full_disk_is_reported_before_decoding(root, monkeypatch, decodings):
    monkeypatch.setattr(
        pixel_cache.shutil, "disk_usage", lambda folder: pixel_cache.shutil._ntuple_diskusage(10, 10, 0)
    )
    with pytest.raises(ValueError, match=r"the cache needs 0.0 GB, but .* has 0.0 GB free; make room"):
        open_data(root)
    assert not decodings


def test_a_source_with_more_or_fewer_images_than_counted_is_refused(root, tmp_path):
    with Tree(root) as tree:
        match = replace(recognise(tree), image_size=8, channels=3, crop=False)
        contents = pixel_cache.read_contents(tree, match)
        places = pixel_cache.cache_paths(tree, match, folder=tmp_path / "cache")
        for change, message in (
            (-1, "the class ant has more images than were counted"),
            (1, "images of ant are missing: 20 of 21"),
        ):
            counts = (contents.counts[0] + change, *contents.counts[1:])
            wrong = replace(contents, counts=counts)
            with pytest.raises(ValueError, match=message):
                pixel_cache.fill(places, wrong, match, source=root, progress=None)


def test_pickled_tasks_hold_the_path_of_the_cache_instead_of_pixels(root):
    tasks = ImageTasks(open_data(root), ways=2, shots=1, queries=2)
    tasks.episode(seed=0, split="train", index=0)
    sent = pickle.dumps(tasks)
    assert len(sent) < 2000 < tasks.dataset.images.nbytes
    ours, theirs = (source.episode(seed=0, split="train", index=3) for source in (tasks, pickle.loads(sent)))
    assert all((a == b).all() for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True))
    assert pickle.loads(sent).digest == tasks.digest
