"""Whole spectra by forming each matrix and LAPACK's symmetric eigenvalues, the matrix from our batched products."""

import torch

from benchmarks.peers.ours import operator
from benchmarks.problem import Answer, Job, Problem


def build(problem: Problem, quantity: str) -> Job:
    runs = {"spectrum": lambda: _spectrum(problem)}
    return Job(runs[quantity], "H.to_dense(), torch.linalg.eigvalsh in float64")


def _spectrum(problem: Problem) -> Answer:
    """In float64: LAPACK's float32 fails on some of these matrices, and is hardly quicker."""
    values = []
    for part in operator(problem).parts():
        H = part.to_dense().double()
        values.append(torch.linalg.eigvalsh((H + H.mT) / 2))
    found = torch.cat(values)
    return Answer(found.numel(), found)
