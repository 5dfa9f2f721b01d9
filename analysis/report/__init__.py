"""The report of a study: one self-contained HTML page."""

from analysis.report.render import QUESTION, TITLE, render

__all__ = ["QUESTION", "TITLE", "render"]
