"""Plots: pure functions ``(ds, ax, ...) -> ax``, one concept a file; every mean they draw is made in ``summary``."""
