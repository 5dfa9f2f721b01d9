"""The floor of one product: the time of its convolutions alone, at the rate that they reach on this machine.

With the primal pass kept, a product with the Hessian needs of each convolution two in the tangent of the forward pass
(of the input, of the weight) and four in the tangent of the backward pass (two for the input's gradient and two for
the weight's): 6 of the size of a forward pass. The first layer's input has no tangent and no gradient, which leaves it
2. So floor = 6 (t_1 + ... + t_4) - 4 t_1, with t_i the time of layer i's forward convolution on one point's batch, in
float32. Batch normalisation, ReLU and pooling are not in it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.problem import Answer, Job, Problem

MIN_SECONDS, MIN_CALLS = 0.4, 5  # of every timing
CALLS_IN_A_ROW = 20


def build(problem: Problem, quantity: str) -> Job:
    return Job({"products": lambda: _floor(problem)}[quantity], "6 forward convolutions less 4 times the first")


def _floor(problem: Problem) -> Answer:
    rates = {"product_flop": product_flop(problem)}
    if not problem.thetas.is_cuda:
        return Answer(1, seconds=floor_seconds(problem), rates=rates)
    # The rate of matrix products says something on a GPU only: on a CPU different libraries do these and convolutions.
    rates["matmul_flop_per_second"] = matmul_rate(problem)
    # One point does not fill a GPU, and ours takes all points at once there: so does the floor.
    return Answer(1, seconds=floor_seconds(all_points_as_one(problem), len(problem.thetas)), rates=rates)


def matmul_rate(problem: Problem) -> float:
    """Operations a second of a square matrix product in the same dtype."""
    n = 8192
    # Random numbers, because a product of ones draws less power, and a cooler card runs faster.
    A = torch.randn(n, n, generator=ht.stream(0, "matmul")).to(problem.device, problem.thetas.dtype)
    return 2 * n**3 / _median_seconds(lambda: A @ A, problem.thetas.is_cuda)[0]


def all_points_as_one(problem: Problem) -> Problem:
    """The images of all points as the batch of one."""
    return replace(problem, x=problem.x.flatten(0, 1)[None])


def floor_seconds(problem: Problem, products: int = 1) -> tuple[float, float]:
    """Seconds of one product if only its convolutions took time, by the wall clock and by the processor.

    products: the number of products that the batch of the first point is for.
    """
    walls, processors = zip(*(_forward_seconds(conv, x) for conv, x in _layers(problem)), strict=True)
    return (6 * sum(walls) - 4 * walls[0]) / products, (6 * sum(processors) - 4 * processors[0]) / products


def product_flop(problem: Problem) -> float:
    """Operations of the same convolutions; a multiplication and an addition count as two."""
    counts = [2 * conv.weight.numel() * x[:, :1].numel() for conv, x in _layers(problem)]
    return float(6 * sum(counts) - 4 * counts[0])


def _layers(problem: Problem) -> list[tuple[nn.Conv2d, Tensor]]:
    """Each convolution (of stride 1, padded to keep its size) with an input of its shape at one point."""
    layers: list[tuple[nn.Conv2d, Tensor]] = []
    convolutions = [module for module in problem.model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [c.register_forward_hook(lambda conv, args, _: layers.append((conv, args[0]))) for c in convolutions]
    with torch.no_grad():
        problem.model(problem.x[0])
    for hook in hooks:
        hook.remove()
    return layers


def _forward_seconds(conv: nn.Conv2d, x: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        return _median_seconds(lambda: nn.functional.conv2d(x, conv.weight, padding=conv.padding), x.is_cuda)


def _median_seconds(work: Callable[[], Tensor], cuda: bool) -> tuple[float, float]:
    """Seconds of one call by the wall clock and by the processor, medians."""
    calls = CALLS_IN_A_ROW if cuda else 1  # several in a row, so that a GPU need not wait for the CPU
    walls: list[float] = []
    processors: list[float] = []
    start = time.perf_counter()
    while len(walls) < MIN_CALLS or time.perf_counter() - start < MIN_SECONDS:
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(calls):
            work()
        if cuda:
            torch.cuda.synchronize()
        walls.append((time.perf_counter() - wall) / calls)
        processors.append((time.process_time() - processor) / calls)
    return median(walls), median(processors)
