"""Another name for ``analysis.drawing.style``, kept because people import it."""

from analysis.drawing.style import *  # noqa: F403
