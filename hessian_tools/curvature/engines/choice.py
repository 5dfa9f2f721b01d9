"""Chooses the engine that multiplies by a curvature matrix.

The choice depends on counts and sizes only, never on timings, so that a repeated run makes the same choice.
"""

from typing import Literal

import torch

# direct: forward over reverse under vmap. double_backward: each point's gradient is kept with its graph, and a product
# is one more reverse pass. compiled: the product is traced once and split into a part that depends only on the point,
# which is computed once, and a part that depends on the vector.
EngineName = Literal["direct", "double_backward", "compiled"]
# What a user may ask for. "kept" and "traced" are the older words for "double_backward" and "compiled". Documentation,
# error messages and the property ``route`` of an operator use them; both spellings are accepted.
Route = Literal["auto", "direct", "kept", "traced", "double_backward", "compiled"]

# The engine that each route names; "auto" names none.
ENGINES: dict[str, EngineName] = {
    "direct": "direct",
    "kept": "double_backward",
    "double_backward": "double_backward",
    "traced": "compiled",
    "compiled": "compiled",
}

# On a CPU a trace pays off from ENOUGH_PRODUCTS / (1 + f) products, where f is the memory that one forward pass
# allocates, in megabytes. Measured on one core by benchmarks/points.py:
#   network                 cost of the trace   saved by each product
#   MLP 1-40-40-1                       0.3 s                 0.12 ms
#   Conv4-64 on 28x28                     2 s                   12 ms
#   Conv4-64 on 84x84                    10 s                  900 ms
# (Conv4-64 is a network of four convolutions with 64 channels, on images of 28x28 or 84x84 pixels.)
ENOUGH_PRODUCTS = 2000
# On a GPU a trace pays off from this many products, for a network of any size. On an H200 a trace costs about 6 s
# (Conv4-64 on 28x28) to 9 s (ResNet-18), and a product by double_backward takes 1.4 ms (MLP) to 7.4 ms (Conv4-64 on
# 84x84), most of which a trace saves.
ENOUGH_PRODUCTS_ON_GPU = 1500
# A trace that exists already costs no tracing. It is only compared with two ordinary products at one point before it is
# used, so it pays off from this many products.
ENOUGH_FOR_KNOWN_TRACE = 8
# The engine double_backward is faster than direct for at most FEW_POINTS points, and on a CPU also where a forward pass
# allocates at least LARGE_FORWARD bytes.
FEW_POINTS = 8
LARGE_FORWARD = 2**20


def choose_engine(
    *,
    device: torch.device,
    forward: int,
    num_points: int,
    num_products: int,
    double_backward: bool = True,
    compilable: bool = True,
    compiled_before: bool = False,
) -> EngineName:
    """The engine that is quickest for all products together, judged by what is known before the first of them.

    forward: the bytes that one forward pass allocates. num_products: how many products are expected, over all points.
    double_backward: False if this engine is not worth choosing. An example is a Gauss-Newton matrix, for which this
    engine's product takes two reverse passes more than for a Hessian.
    compilable: False if the product is known to have no trace. compiled_before: True if its trace exists already.
    """
    enough = ENOUGH_FOR_KNOWN_TRACE if compiled_before else enough_products(forward, device)
    if compilable and num_products >= enough:
        return "compiled"
    if double_backward and (num_points <= FEW_POINTS or (device.type == "cpu" and forward >= LARGE_FORWARD)):
        return "double_backward"
    return "direct"


def enough_products(forward: int, device: torch.device) -> int:
    """The number of products from which a trace pays off. forward: the bytes that one forward pass allocates."""
    if device.type != "cpu":
        return ENOUGH_PRODUCTS_ON_GPU
    return ENOUGH_PRODUCTS // (1 + forward // 10**6)
