"""Which engine does the products: a rule of counts and sizes, never of the clock, so that a run can be repeated."""

from typing import Literal

import torch

EngineName = Literal["direct", "double_backward", "compiled"]
# What a user may ask for. "kept" and "traced" are older words for "double_backward" and "compiled".
Route = Literal["auto", "direct", "kept", "traced", "double_backward", "compiled"]

ENGINES: dict[str, EngineName] = {
    "direct": "direct",
    "kept": "double_backward",
    "double_backward": "double_backward",
    "traced": "compiled",
    "compiled": "compiled",
}

# Products from which a trace has paid for itself on a CPU, for a network whose forward pass makes f megabytes:
# ENOUGH_PRODUCTS / (1 + f). A trace costs 0.3 s (MLP 1-40-40-1, saves 0.12 ms a product), 2 s (Conv4-64 on 28x28,
# saves 12 ms) to 10 s (on 84x84, saves 0.9 s); one core, benchmarks/points.py.
ENOUGH_PRODUCTS = 2000
# The same on a GPU, for a network of any size: there a trace costs about 6 s (Conv4-64 on 28x28) to 9 s (ResNet-18),
# and a product by the kept graph 1.4 ms (MLP) to 7.4 ms (Conv4-64 on 84x84), of which a trace saves 1.4 to 6 ms.
ENOUGH_PRODUCTS_ON_GPU = 1500
# A trace that is there already is compared with two products at one point before it is used.
ENOUGH_FOR_KNOWN_TRACE = 8
# Up to so many points, or from so many bytes of a forward pass on (on a CPU), keeping the gradient's graph beats
# forward over reverse under vmap.
FEW_POINTS = 8
LARGE_FORWARD = 2**20


def choose_engine(
    *,
    device: torch.device,
    forward: int,
    num_points: int,
    num_products: int,
    kept_graphs: bool = True,
    compilable: bool = True,
    compiled_before: bool = False,
) -> EngineName:
    """The engine that is quickest over all products, from what is known before the first of them.

    forward: bytes that one forward pass makes. num_products: how many products are expected, over all points together.
    kept_graphs: whether the matrix can be multiplied by keeping graphs, as Hessians alone can. compilable: whether the
    product can be traced, as far as is known. compiled_before: whether its trace is there from an earlier use.
    """
    enough = ENOUGH_FOR_KNOWN_TRACE if compiled_before else enough_products(forward, device)
    if compilable and num_products >= enough:
        return "compiled"
    if kept_graphs and (num_points <= FEW_POINTS or (device.type == "cpu" and forward >= LARGE_FORWARD)):
        return "double_backward"
    return "direct"


def enough_products(forward: int, device: torch.device) -> int:
    """From how many products on a trace pays, for a network whose forward pass makes so many bytes."""
    if device.type != "cpu":
        return ENOUGH_PRODUCTS_ON_GPU
    return ENOUGH_PRODUCTS // (1 + forward // 10**6)
