"""A disk that loses power: what a folder may hold after a power cut, at many moments of one run of a command.

The command runs once on the real file system. Beside it, ``RecordingDisk`` keeps what is certainly on the disk: the
content of each file at its last ``fsync``, and the names in each folder at the last ``fsync`` of the folder. Later
changes may be on the disk or not. ``after_power_cut`` therefore chooses at random for each changed name whether the
change is there, and for each changed content whether it is old, new, cut in half, full of zeros, or empty.
"""

import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class RecordingDisk:
    """Follows what is certainly on the disk while a command runs, and calls ``at_moment`` before each change of it.

    root: the folder that is followed; it is taken to be on the disk itself. at_moment: called with the number of
    changes so far.
    """

    def __init__(self, root: Path, at_moment: Callable[[int], object] = lambda moment: None) -> None:
        self.root, self._at_moment, self.moments = root, at_moment, 0
        # What the last fsync has put on the disk, by inode, the number that a file or folder keeps when it is renamed.
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}  # of each folder: the inode of each name in it
        self._is_folder: dict[int, bool] = {}
        self._open: list[int] = []  # descriptors of what is on the disk, so that no inode is used a second time
        self._one_at_a_time = threading.RLock()

    def follow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Follow all calls that put something on the disk or move it."""
        monkeypatch.setattr(os, "fsync", self._following(os.fsync, self._synced))
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._following(getattr(os, name), lambda *paths: None))

    def _following(self, call: Callable[..., Any], record: Callable[..., None]) -> Callable[..., Any]:
        """The function ``call`` with ``at_moment`` before it and ``record`` after it, one thread at a time."""

        def followed(*arguments: Any) -> None:
            with self._one_at_a_time:
                self._at_moment(self.moments)
                self.moments += 1
                call(*arguments)
                record(*arguments)

        return followed

    def _synced(self, descriptor: int) -> None:
        """Record what an fsync of an open file or folder has put on the disk."""
        about = os.fstat(descriptor)
        if about.st_ino not in self._is_folder:
            self._open.append(os.dup(descriptor))
        self._is_folder[about.st_ino] = stat.S_ISDIR(about.st_mode)
        if self._is_folder[about.st_ino]:
            with os.scandir(descriptor) as entries:
                self._names[about.st_ino] = {entry.name: entry.inode() for entry in entries}
        else:
            self._contents[about.st_ino] = os.pread(descriptor, about.st_size, 0)

    def after_power_cut(self, new: Path, choices: random.Random) -> None:
        """Write into the folder ``new`` what may be left of the followed folder after a power cut at this moment."""
        with self._one_at_a_time:
            self._write(self.root.stat().st_ino, self.root, new, choices)

    def _write(self, inode: int, present: Path | None, new: Path, choices: random.Random) -> None:
        """Write a file or folder; ``present`` is its place on the file system, None where it was removed since."""
        if not (present.is_dir() if present else self._is_folder.get(inode)):
            now = present.read_bytes() if present else None
            synced = self._contents.get(inode)
            if now is None or now == synced:
                new.write_bytes(synced or b"")
            else:
                old = synced or b""
                new.write_bytes(choices.choice([old, now, now[: (len(old) + len(now)) // 2], bytes(len(now)), b""]))
            return
        new.mkdir()
        before = self._names.get(inode, {})
        now_here = {entry.name: entry.inode() for entry in os.scandir(present)} if present else before
        for name in sorted({*before, *now_here}):
            old_inode, new_inode = before.get(name), now_here.get(name)  # None where the name is not there
            chosen = old_inode if old_inode == new_inode else choices.choice([old_inode, new_inode])
            if chosen is not None:
                is_present = present is not None and chosen == new_inode
                self._write(chosen, present / name if present and is_present else None, new / name, choices)

    def close(self) -> None:
        """Let go of the files that were kept open."""
        for descriptor in self._open:
            os.close(descriptor)
