"""Training metrics on disk: one line for each meta-iteration, each line a JSON object."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessian_tools.runs.files import write_text

NAME = "metrics.jsonl"


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line that a killed process left half-written is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def keep_until(path: Path, meta_step: int) -> None:
    """Drop the lines after a meta-iteration, because a resumed run is about to write them again."""
    rows = [row for row in read(path) if row["meta_step"] <= meta_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
