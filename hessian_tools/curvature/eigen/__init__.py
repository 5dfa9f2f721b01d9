"""Eigenpairs and whole spectra, each with its residual."""
