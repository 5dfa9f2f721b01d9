"""Are derivatives that the user's code supplies those of the loss?

A ``torch.autograd.Function`` states its own backward pass, and a backward hook of a module changes one. Torch believes
both. A straight-through estimator has a gradient that is no derivative, and a Function that saves an intermediate
result as a constant has the right gradient and a wrong Hessian. Where a loss runs such code, its gradient and one
product are compared with differences. Other losses are not, because torch's own derivatives are tested elsewhere.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function
from torch.autograd.graph import Node

from hessian_tools.rng import stream

# A derivative is refused if it is off by more than this fraction.
TOLERANCE = 1e-2
# The larger step of a central difference is STEP * sqrt(eps), the smaller one an eighth of it. They are so small that
# they hardly ever cross a kink, such as that of a ReLU.
STEP = 10.0
# Errors at the two steps count as the same, and so as an error of the derivative, if they agree to this fraction. What
# kinks and rounding cause differs between steps.
CONSISTENT = 0.2


def graph_nodes(value: Tensor) -> Iterator[Node]:
    """The nodes of the graph that made a value, each of them once."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [edge for edge, _ in node.next_functions]
            yield node


def hand_written(value: Tensor) -> str:
    """The name of a Function of the user's among the operations that made a value; "" if there is none."""
    for node in graph_nodes(value):
        written = isinstance(node, BackwardCFunction) and not is_ours(node)
        if written or "FakeQuantize" in node.name():
            name = node.name().removesuffix("Backward")
            return "a backward hook of a module" if name == "BackwardHookFunction" else name
    return ""


def is_ours(node: Node) -> bool:
    """Whether a node is of a Function of this library, whose tests compare its derivatives."""
    return getattr(node, "_forward_cls", Function).__module__.startswith("hessian_tools.")


def wrong_derivative(function: Callable[[Tensor], Tensor], theta: Tensor) -> str:
    """Which derivative of the function at theta is wrong, "gradient" or "Hessian"; "" if none is seen to be.

    Float64 is tried first. Nothing is found where the function cannot be differentiated twice.
    """
    for point in (theta.detach().double(), theta.detach()):
        try:
            return _wrong_at(function, point)
        except RuntimeError:  # the function may be for its own dtype only
            continue
    return ""


def _wrong_at(function: Callable[[Tensor], Tensor], theta: Tensor) -> str:
    def gradient(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The leaf, the value there, and its gradient with a graph."""
        leaf = at.clone().requires_grad_()
        value = function(leaf)
        return leaf, value.detach(), torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)[0]

    leaf, value, slope = gradient(theta)
    # A direction in which every part of the gradient counts, so that an error in any layer shows.
    random = torch.rand(len(theta), generator=stream(0, "hand written"), dtype=torch.float64, device="cpu").to(theta)
    direction = slope.detach() * (0.5 + random)
    if not bool(direction.norm() > 0) or not bool(direction.isfinite().all()):
        direction = random - 0.5
    direction = direction / direction.norm()
    product = torch.zeros_like(theta)
    if slope.requires_grad:
        product = torch.autograd.grad(slope, leaf, direction, materialize_grads=True)[0]
    # A Function marked once_differentiable ends the graph of the gradient; the engines say so where it matters.
    second = not any("autograd::Error" in node.name() for node in graph_nodes(slope))
    slope = slope.detach()

    eps = torch.finfo(theta.dtype).eps
    step = STEP * eps**0.5 * max(1.0, float(theta.norm()) / len(theta) ** 0.5)
    errors, sizes = [], []
    for h in (step, step / 8):
        (_, upper, g_upper), (_, lower, g_lower) = gradient(theta + h * direction), gradient(theta - h * direction)
        change, change_of_slope = (upper - lower) / (2 * h), (g_upper - g_lower).detach() / (2 * h)
        errors.append((change - slope @ direction, change_of_slope - product))
        sizes.append((change.abs(), change_of_slope.norm()))
    noise = 100 * eps / (step / 8)
    stated, rounding = (slope.norm(), product.norm()), (noise * value.abs(), noise * slope.norm())
    for i, name in enumerate(("gradient", "Hessian") if second else ("gradient",)):
        large, small = errors[0][i], errors[1][i]
        allowed = TOLERANCE * torch.maximum(sizes[0][i], stated[i]) + rounding[i]
        if bool(large.norm() > allowed) and bool((large - small).norm() <= CONSISTENT * large.norm()):
            return name
    return ""
