"""The explorer: an interactive view of a study in a notebook, or as a static page without a server."""

from analysis.explorer.explorer import Explorer, explore

__all__ = ["Explorer", "explore"]
