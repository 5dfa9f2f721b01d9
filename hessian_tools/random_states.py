"""The global random generators of torch, NumPy and Python: were numbers drawn, and how are the states restored?

The library itself draws from streams of its own (:mod:`hessian_tools.rng`). Networks, criteria and data sets of users
draw from the global generators, whose states must be the same after a call as before it.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Whether the watched code drew random numbers; "" is no. It is "perhaps" if only the state of Python's generator has
# changed while beartype is loaded, whose type checks use that generator to choose which entry of a list they check.
Drew = Literal["", "perhaps", "surely"]


class GlobalStates(NamedTuple):
    """The states of the global random generators."""

    of_torch: list[Tensor]
    of_numpy: Any
    of_python: Any


def global_states(device: torch.device) -> GlobalStates:
    """The states of all global generators from which a forward pass on the device can draw."""
    return GlobalStates(torch_states(device), np.random.get_state(), random.getstate())


def drawn_between(before: GlobalStates, after: GlobalStates) -> Drew:
    """Whether random numbers were drawn between two readings of the states."""
    numpy_same = all(np.array_equal(a, b) for a, b in zip(before.of_numpy, after.of_numpy, strict=True))
    torch_same = all(torch.equal(a, b) for a, b in zip(before.of_torch, after.of_torch, strict=True))
    if not (numpy_same and torch_same):
        return "surely"
    if before.of_python == after.of_python:
        return ""
    return "perhaps" if "beartype" in sys.modules else "surely"


def torch_states(device: torch.device) -> list[Tensor]:
    """The states of torch's global random generators from which a forward pass on the device can draw."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def restored_random_states(device: torch.device | None = None) -> Iterator[None]:
    """A context after which the global generators of the CPU, and that of a CUDA device, are as they were before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def random_states_from(seed: int) -> Iterator[None]:
    """A context in which the global generators of the CPU start from a seed; afterwards they are restored."""
    with restored_random_states():
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
