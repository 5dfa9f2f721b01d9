"""The floor of one Hessian-vector product: the time that its convolutions alone would take on this machine.

The forward pass and the gradient at the point are taken as already computed. Then a product needs, for each
convolution of the network, two convolutions in the tangent of the forward pass (one for the tangent of the input, one
for that of the weight), and four in the tangent of the backward pass (two for the gradient by the input, two for the
gradient by the weight). All six have the size of the forward convolution. In the first layer, the input has no tangent
and no gradient, so only 2 of the 6 are left. Therefore floor = 6 (t_1 + ... + t_4) - 4 t_1, where t_i is the time of
the forward convolution of layer i of the 4-conv network on the batch of one point, in float32. Batch normalisation,
ReLU and pooling are left out.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

import hessian_tools as ht
from benchmarks.problem import Answer, Job, Problem

MIN_SECONDS, MIN_SAMPLES = 0.4, 5  # every timing takes at least so many seconds, and at least so many samples
CALLS_PER_SAMPLE = 20  # on a GPU; on a CPU, a sample is one call


def build(problem: Problem, quantity: str) -> Job:
    """Return the job for "products", the only quantity that has a floor."""
    return Job({"products": lambda: _floor(problem)}[quantity], "6 forward convolutions less 4 times the first")


def _floor(problem: Problem) -> Answer:
    """The floor's time for one product and the number of its operations; on a GPU also the rate of matrix products."""
    rates = {"product_flop": product_flop(problem)}
    if not problem.thetas.is_cuda:
        return Answer(num_matvecs=1, seconds=floor_seconds(problem), rates=rates)
    # The rate of matrix products is a yardstick only on a GPU. On a CPU, convolutions come from another library.
    rates["matmul_flop_per_second"] = matmul_rate(problem)
    # One point does not fill a GPU, and our products take all points at once there, so the floor does the same.
    return Answer(num_matvecs=1, seconds=floor_seconds(all_points_as_one(problem), len(problem.thetas)), rates=rates)


def matmul_rate(problem: Problem) -> float:
    """The operations per second of a large square matrix product in the dtype of the problem."""
    n = 8192
    # The numbers are random, because a product of ones draws less power, and a cooler card runs faster.
    A = torch.randn(n, n, generator=ht.stream(0, "matmul")).to(problem.device, problem.thetas.dtype)
    return 2 * n**3 / _median_seconds(lambda: A @ A, problem.thetas.is_cuda)[0]


def all_points_as_one(problem: Problem) -> Problem:
    """The problem with the images of all points as the batch of one point."""
    return replace(problem, x=problem.x.flatten(0, 1)[None])


def floor_seconds(problem: Problem, products: int = 1) -> tuple[float, float]:
    """The floor of one product in seconds, by the wall clock and by processor time.

    products: how many products the convolutions stand for, which is the number of points after ``all_points_as_one``.
    """
    walls, processors = zip(*(_forward_seconds(conv, x) for conv, x in _layers(problem)), strict=True)
    return (6 * sum(walls) - 4 * walls[0]) / products, (6 * sum(processors) - 4 * processors[0]) / products


def product_flop(problem: Problem) -> float:
    """The number of operations of the same convolutions, with a multiplication and an addition counted as two."""
    # The convolutions have stride 1 and do not change the size of an image. So the output has as many positions as one
    # channel of the input has entries, and each weight is used once at each position.
    counts = [2 * conv.weight.numel() * x[:, :1].numel() for conv, x in _layers(problem)]
    return float(6 * sum(counts) - 4 * counts[0])


def _layers(problem: Problem) -> list[tuple[nn.Conv2d, Tensor]]:
    """Each convolution of the network with its input at the first point; all have stride 1 and keep the image size."""
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
    """The median seconds of one call, by the wall clock and by processor time."""
    calls = CALLS_PER_SAMPLE if cuda else 1  # a GPU gets several calls in a row, so that it does not wait for the CPU
    walls: list[float] = []
    processors: list[float] = []
    start = time.perf_counter()
    while len(walls) < MIN_SAMPLES or time.perf_counter() - start < MIN_SECONDS:
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(calls):
            work()
        if cuda:
            torch.cuda.synchronize()
        walls.append((time.perf_counter() - wall) / calls)
        processors.append((time.process_time() - processor) / calls)
    return median(walls), median(processors)
