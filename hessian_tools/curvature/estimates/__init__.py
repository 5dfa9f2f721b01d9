"""Traces, diagonals, norms and spectral densities, estimated from random probes or exact where that is cheap."""
