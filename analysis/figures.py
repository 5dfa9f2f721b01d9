"""The former place of ``analysis.drawing.figures``, which goes in version 0.3."""

import warnings

from analysis.drawing.figures import FIGURES, save

__all__ = ["FIGURES", "save"]

warnings.warn(
    "analysis.figures is now analysis.drawing.figures; the old name goes in 0.3", DeprecationWarning, stacklevel=2
)
