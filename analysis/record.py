"""The record at the end of a page of HTML: on which files the page rests, and the page's own checksum."""

import hashlib
import json
from pathlib import Path

from hessian_tools.runs.files import DamagedFileError, refuse_unreadable

BEGIN, END = "<!-- rests on ", " -->\n"


def with_record(page: str, **facts: str) -> str:
    """The page with a comment at its end that holds ``facts``, such as digests, and the SHA-256 of the page."""
    record = facts | {"page": hashlib.sha256(page.encode()).hexdigest()}
    return f"{page}{BEGIN}{json.dumps(record)}{END}"


def record_of(file: Path) -> dict[str, str]:
    """The facts at the end of a page, as ``with_record`` wrote them; version 0.1 wrote none.

    Raises DamagedFileError where the page was cut or changed after it was written.
    """
    refuse_unreadable(file)
    page, has_record, comment = file.read_bytes().rpartition(BEGIN.encode())  # without a record, all is ``comment``
    try:
        facts: dict[str, str] = json.loads(comment.removesuffix(END.encode())) if has_record else {}
        # A page without a record was not cut if it has the end of an HTML page.
        undamaged = facts.pop("page") == hashlib.sha256(page).hexdigest() if facts else comment.endswith(b"</html>\n")
    except (ValueError, KeyError, AttributeError):
        undamaged = False
    if not undamaged:
        raise DamagedFileError(f"{file} was changed after it was written; run 'hessian-tools report {file.parent}'")
    return facts
