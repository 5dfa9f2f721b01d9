"""Eigenpairs with their residuals, and whole spectra with a bound on their error."""
