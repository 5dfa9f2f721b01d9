"""Training metrics on disk: one line for each meta-iteration, each line a JSON object with its checksum.

The checksum also covers the digest of the run's training, which stands in the manifest of its folder, so that the lines
of another run do not pass for this one's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from hessian_tools.runs.files import DamagedFileError, refuse_unreadable, write_text
from hessian_tools.runs.manifest import training_digest

NAME = "metrics.jsonl"
# The last entry of a line: the checksum of the run and of the line's other entries. Lines of earlier versions have a
# checksum of the other entries alone, and lines of version 0.1 have none; both are accepted.
CHECKSUM = "crc32"


def append(path: Path, row: Mapping[str, Any], *, run: str | None) -> None:
    """Add the line of one meta-iteration. run: the digest of the training; None for a folder without a manifest."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row, run))


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a killed process left half-written is skipped.

    Raises DamagedFileError with the file and the number of a line that was changed after it was written, or is that of
    another run.
    """
    if not path.exists():
        return []
    refuse_unreadable(path)
    run = training_digest(path.parent)
    lines = path.read_bytes().split(b"\n")[:-1]  # the text after the last line break was left half-written
    return [_row(line, run, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def keep_until(path: Path, meta_step: int) -> None:
    """Drop the lines after a meta-iteration, because a resumed run is about to write them again."""
    run = training_digest(path.parent)
    write_text(path, "".join(_line(row, run) for row in read(path) if row["meta_step"] <= meta_step))


def _line(row: Mapping[str, Any], run: str | None) -> str:
    return json.dumps({**row, CHECKSUM: _checksum(row, run)}) + "\n"


def _checksum(row: Mapping[str, Any], run: str | None) -> int:
    return crc32(json.dumps(row).encode(), crc32((run or "").encode()))


def _row(line: bytes, run: str | None, place: str) -> dict[str, Any]:
    """The entries of a line, without its checksum; ``place`` names the line in the error message."""
    try:
        row = json.loads(line)
        checksum = row.pop(CHECKSUM, None)
        undamaged = checksum in (None, _checksum(row, run), _checksum(row, None)) and "meta_step" in row
    except (ValueError, AttributeError, TypeError):
        undamaged = False
    if not undamaged:
        raise DamagedFileError(
            f"{place} was changed after it was written, or is that of another run; put it back, or move the run's "
            "folder elsewhere and train the run again"
        )
    return row
