"""Which way products are done: a rule of counts and sizes, never of the clock, so that a run repeats."""

from typing import Literal
from weakref import WeakKeyDictionary

import torch

from hessian_tools.loss import Loss

Route = Literal["auto", "direct", "kept", "traced"]

# Products from which a trace has paid for itself, for a network whose forward pass makes f megabytes:
# ENOUGH_PRODUCTS / (1 + f). A trace costs 0.3 s (MLP 1-40-40-1, saves 0.12 ms a product), 2 s (Conv4-64 on 28x28,
# saves 12 ms) to 10 s (on 84x84, saves 0.9 s); one core, benchmarks/points.py.
ENOUGH_PRODUCTS = 2000
# Up to so many points, or from so many bytes of a forward pass on (on a CPU), keeping the gradient's graph beats
# forward over reverse under vmap.
FEW_POINTS = 8
LARGE_FORWARD = 2**20

_DEMAND: "WeakKeyDictionary[Loss, int]" = WeakKeyDictionary()


def worth_tracing(loss: Loss, num_products: int, forward: int) -> bool:
    """Counts these products of the loss; whether, with all before them, tracing pays. forward: bytes of one pass."""
    _DEMAND[loss] = _DEMAND.get(loss, 0) + num_products
    return _DEMAND[loss] > enough_products(forward)


def enough_products(forward: int) -> int:
    """After how many products of a network's loss a trace is made."""
    return ENOUGH_PRODUCTS // (1 + forward // 10**6)


def worth_keeping(num_points: int, forward: int, device: torch.device) -> bool:
    """Whether the gradient's graph at each point beats forward over reverse at all of them under vmap."""
    return num_points <= FEW_POINTS or (device.type == "cpu" and forward >= LARGE_FORWARD)
