"""The table of the campaign: how many trials of each part ended in which way. It is printed after the tests."""

from collections import Counter

COLUMNS = ("right", "refused", "wrong", "traceback", "hang")
BAD = COLUMNS[2:]
TABLE: dict[str, Counter[str]] = {}


def record(part: str, outcome: str) -> None:
    """Count one trial of a part."""
    TABLE.setdefault(part, Counter())[outcome] += 1


def table_lines() -> list[str]:
    """The table in Markdown, with a row for each part that has run."""
    rows = [("part", "tried", *COLUMNS), ("---",) * (len(COLUMNS) + 2)]
    rows += [(part, found.total(), *(found[column] for column in COLUMNS)) for part, found in TABLE.items()]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]
