"""The study: what to measure along inner loops, what it means, how it is shown.

``analysis.open_study(path)`` opens everything measured, ``analysis.open_verdicts(path)`` what was concluded.
"""

from typing import Any

_FROM_FOLDER = ("open_study", "open_verdicts")


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line must answer --help without loading torch.
    if name in _FROM_FOLDER:
        from analysis import folder

        return getattr(folder, name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
