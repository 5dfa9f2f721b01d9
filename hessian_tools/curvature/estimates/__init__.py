"""Traces, moments and densities by random probes, exact where that is cheap."""
