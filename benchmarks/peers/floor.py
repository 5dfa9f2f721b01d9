"""The floor of one product: the time of its convolutions alone, at the rate they reach here.

With the primal pass kept, a product with the Hessian needs of each convolution two in the tangent of the
forward pass (of the input, of the weight) and four in the tangent of the backward pass (input's and weight's
gradient, two each): 6 of the size of a forward pass. The first layer's input has no tangent and no gradient,
which leaves it 2. So floor = 6 (t_1 + ... + t_4) - 4 t_1, with t_i the time of layer i's forward
convolution on one point's batch, float32. Batch normalisation, ReLU and pooling are not in it.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.problem import Answer, Job, Problem

SECONDS = 0.4


def build(problem: Problem, quantity: str) -> Job:
    runs = {"products": lambda: _floor(problem)}
    return Job(runs[quantity], "6 forward convolutions less 4 times the first")


def _floor(problem: Problem) -> Answer:
    rates = {"product_flop": product_flop(problem)}
    if problem.thetas.is_cuda:  # on a CPU two libraries do the one and the other, at rates of their own
        rates["matmul_flop_per_second"] = matmul_rate(problem)
    return Answer(1, seconds=floor_seconds(problem), rates=rates)


def matmul_rate(problem: Problem) -> float:
    """Operations a second of a square matrix product in the same dtype."""
    n = 8192
    A = torch.ones(n, n, device=problem.device, dtype=problem.thetas.dtype)
    return 2 * n**3 / _median_seconds(lambda: A @ A, problem.thetas.is_cuda)


def floor_seconds(problem: Problem) -> float:
    """Seconds of one product if only its convolutions took time."""
    times = [_forward_seconds(conv, x) for conv, x in _layers(problem)]
    return 6 * sum(times) - 4 * times[0]


def product_flop(problem: Problem) -> float:
    """Operations of the same, a multiplication and an addition counted as two."""
    counts = [2 * conv.weight.numel() * x[:, :1].numel() for conv, x in _layers(problem)]
    return float(6 * sum(counts) - 4 * counts[0])


def _layers(problem: Problem) -> list[tuple[nn.Conv2d, Tensor]]:
    """Each convolution (of stride 1, padded to keep its size) with an input of its shape at one point."""
    found: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda conv, args, _: found.append((conv, args[0])))
        for module in problem.model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        problem.model(problem.x[0])
    for hook in hooks:
        hook.remove()
    return found


def _forward_seconds(conv: nn.Conv2d, x: Tensor) -> float:
    with torch.no_grad():
        return _median_seconds(lambda: nn.functional.conv2d(x, conv.weight, padding=conv.padding), x.is_cuda)


def _median_seconds(work: Callable[[], Tensor], cuda: bool) -> float:
    """Of one call; medians of many short ones hardly see other users of the machine."""
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < 5 or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return median(samples)
