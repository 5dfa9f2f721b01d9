"""The floor of one product: the time of its convolutions alone, at the rate they reach here.

With the primal pass kept, a product with the Hessian needs of each convolution two in the tangent of the
forward pass (of the input, of the weight) and four in the tangent of the backward pass (input's and weight's
gradient, two each): 6 of the size of a forward pass. The first layer's input has no tangent and no gradient,
which leaves it 2. So floor = 6 (t_1 + ... + t_4) - 4 t_1, with t_i the time of layer i's forward
convolution on one point's batch, float32. Batch normalisation, ReLU and pooling are not in it.
"""

import time
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.problem import Answer, Job, Problem

SECONDS = 0.4


def build(problem: Problem, quantity: str) -> Job:
    runs = {"products": lambda: Answer(1, seconds=floor_seconds(problem))}
    gflop = product_flop(problem) / 1e9
    return Job(runs[quantity], f"6 forward convolutions less 4 times the first: {gflop:.3f} GFLOP")


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
    samples: list[float] = []
    begun = time.perf_counter()
    with torch.no_grad():
        while len(samples) < 5 or time.perf_counter() - begun < SECONDS:
            start = time.perf_counter()
            nn.functional.conv2d(x, conv.weight, padding=conv.padding)
            if x.is_cuda:
                torch.cuda.synchronize()
            samples.append(time.perf_counter() - start)
    return median(samples)
