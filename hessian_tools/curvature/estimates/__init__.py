"""Traces, diagonals, norms and spectral densities from random probes; exact where that is cheap."""
