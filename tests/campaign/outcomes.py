"""The table of the campaign: how many trials of each part ended in which way. It is printed after the tests."""

from collections import Counter
from collections.abc import Mapping

COLUMNS = ("right", "refused", "wrong", "traceback", "hang")
BAD = COLUMNS[2:]
TABLE: dict[str, Counter[str]] = {}


def record(part: str, outcome: str, trial: object = "") -> None:
    """Count one trial of a part by the first word of its outcome; ``pytest -s`` shows each of them at once.

    outcome: one of ``COLUMNS``, which may be followed by a colon and what happened.
    """
    TABLE.setdefault(part, Counter())[outcome.partition(":")[0]] += 1
    print(f"{part} {trial} {outcome}", flush=True)


def add(table: Mapping[str, Mapping[str, int]]) -> None:
    """Add the counts of another process."""
    for part, counts in table.items():
        TABLE.setdefault(part, Counter()).update(counts)


def table_lines() -> list[str]:
    """The table in Markdown, with a row for each part that has run."""
    rows = [("part", "tried", *COLUMNS), ("---",) * (len(COLUMNS) + 2)]
    rows += [(part, found.total(), *(found[column] for column in COLUMNS)) for part, found in TABLE.items()]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]
