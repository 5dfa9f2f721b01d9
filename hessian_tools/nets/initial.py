"""Initial parameters that depend on the seed alone."""

from collections.abc import Callable

import torch
from torch import nn

from hessian_tools.rng import stream_seed


def seeded(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A network whose initial parameters depend on the seed alone; the global random state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(stream_seed(seed, "initial parameters")[:7], "little"))
        return build()
