"""Initial parameters that depend on the seed alone."""

from collections.abc import Callable

import torch
from torch import nn

from hessian_tools.rng import stream_seed


def seeded(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A network whose initial parameters depend on the seed alone; the global random state is left as found.

    It is built on the CPU, whose numbers are the same everywhere, even where the default device is another.
    """
    # Not torch.manual_seed, which seeds every GPU and, where none is in use yet, the first that will be.
    number = int.from_bytes(stream_seed(seed, "initial parameters")[:7], "little")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus), torch.device("cpu"):
        torch.default_generator.manual_seed(number)
        if gpus:
            torch.cuda.manual_seed_all(number)
        return build()
