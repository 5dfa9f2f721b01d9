"""The study: what to measure along inner loops, what it means, how it is shown.

``analysis.open_study(path)`` opens everything measured, ``analysis.open_verdicts(path)`` what was concluded;
``analysis.to_xarray(result)`` and ``analysis.plot(result)`` label and draw any result of the library.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "open_study": "analysis.folder",
    "open_verdicts": "analysis.folder",
    "to_xarray": "analysis.drawing.labelled",
    "plot": "analysis.drawing.results",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line must answer --help without loading torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
