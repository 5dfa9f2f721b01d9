"""Write a figure as PDF and PNG: whole or not at all, and the same bytes each time."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from analysis import style

# A date or a version of the library in the file would make two equal figures differ.
METADATA: dict[str, dict[str, str | None]] = {
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".png": {"Software": None},
}


def save(figure: Figure, path_stem: Path | str) -> tuple[Path, Path]:
    """Write ``path_stem`` + .pdf and .png (300 dpi) and return both paths.

    Each is written beside its place under a name with a leading dot and then renamed over the old file. A file
    left by a killed run has the same hidden name, and the next save writes over it and moves it away.
    """
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pdf = _write(figure, stem, ".pdf")
    figure.set_layout_engine("none")  # laid out by now: not to be done, nor to come out otherwise, a second time
    return pdf, _write(figure, stem, ".png")


def _write(figure: Figure, stem: Path, suffix: str) -> Path:
    path = stem.with_name(stem.name + suffix)
    hidden = path.with_name(f".{path.name}.partial")
    try:
        with style.context():
            figure.savefig(hidden, format=suffix[1:], metadata=METADATA[suffix], dpi=style.DPI)
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    return path
