"""A forwarding module: the names of ``analysis.drawing.figures`` can be imported from here until version 0.3."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    from analysis.drawing import figures

    if name not in figures.__all__:
        raise AttributeError(f"module 'analysis.figures' has no attribute {name!r}")
    message = f"analysis.figures.{name} is now analysis.drawing.figures.{name}; the old name goes in 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(figures, name)
