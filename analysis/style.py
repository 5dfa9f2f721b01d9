"""Another path to ``analysis.drawing.style``, kept because scripts and notebooks of users import it."""

from analysis.drawing.style import *  # noqa: F403
