"""Training metrics on disk: one line for each meta-iteration, each line a JSON object with its checksum."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from hessian_tools.runs.files import DamagedFileError, refuse_unreadable, write_text

NAME = "metrics.jsonl"
CHECKSUM = "crc32"  # the last entry of a line: the checksum of its other entries; version 0.1 wrote none


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add the line of one meta-iteration."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a killed process left half-written is skipped.

    Raises DamagedFileError with the file and the number of a line that was changed after it was written.
    """
    if not path.exists():
        return []
    refuse_unreadable(path)
    lines = path.read_bytes().split(b"\n")[:-1]  # the text after the last line break was left half-written
    return [_row(line, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def keep_until(path: Path, meta_step: int) -> None:
    """Drop the lines after a meta-iteration, because a resumed run is about to write them again."""
    write_text(path, "".join(_line(row) for row in read(path) if row["meta_step"] <= meta_step))


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row)
    return json.dumps({**row, CHECKSUM: crc32(text.encode())}) + "\n"


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        checksum = row.pop(CHECKSUM, None)
        undamaged = checksum in (None, crc32(json.dumps(row).encode())) and "meta_step" in row
    except (ValueError, AttributeError, TypeError):
        undamaged = False
    if not undamaged:
        raise DamagedFileError(
            f"{place} was changed after it was written; put it back, or move the run's folder elsewhere and train the"
            " run again"
        )
    return row
