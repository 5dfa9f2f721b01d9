"""Checks whether the derivatives that a user's code writes by hand are the derivatives of the loss.

A ``torch.autograd.Function`` states its own backward pass, and a backward hook of a module changes one. Torch believes
both. A straight-through estimator has a gradient that is no derivative, and a Function that saves an intermediate
result as a constant has the right gradient and a wrong Hessian. Where a loss runs such code, its gradient and one
Hessian-vector product are compared with central differences of its values and of its gradients. Other losses are not
checked, because torch's own derivatives have tests of their own.
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
# A wrong derivative is off by the same amount whatever the step of the difference. A kink or rounding makes the
# difference itself wrong, by amounts that depend on the step. So a derivative is only refused if its errors against the
# differences at the two steps agree to this fraction.
CONSISTENT = 0.2
# The inner product of two vectors.
Inner = Callable[[Tensor, Tensor], Tensor]


def graph_nodes(*values: Tensor) -> Iterator[Node]:
    """The nodes of the graph that made some values, each of them once."""
    waiting, seen = [value.grad_fn for value in values], set()
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
        # torch's own fake quantisation is a straight-through estimator as well.
        if written or "FakeQuantize" in node.name():
            name = node.name().removesuffix("Backward")
            return "a backward hook of a module" if name == "BackwardHookFunction" else name
    return ""


def is_ours(node: Node) -> bool:
    """Whether a node is of a Function of this library or of torch's DTensor, whose tests compare its derivatives."""
    return getattr(node, "_forward_cls", Function).__module__.startswith(
        ("hessian_tools.", "torch.distributed.tensor.")
    )


def wrong_words(name: str, wrong: str) -> str:
    """What to say of a loss with a hand-written derivative that is wrong."""
    return (
        f"the loss runs hand-written derivatives ({name}), and its {wrong} is not the derivative of its values; "
        "write the operation in torch's own functions, or save for the backward pass only inputs, by "
        "ctx.save_for_backward"
    )


def wrong_derivative(function: Callable[[Tensor], Tensor], theta: Tensor) -> str:
    """Which derivative of the function at theta is wrong, "gradient" or "Hessian"; "" if none is seen to be.

    Float64 is tried first, and the dtype of theta if the function raises a RuntimeError there. If it raises one in
    both, "" is returned. Where the gradient has no derivative because a Function is marked once_differentiable, the
    gradient alone is checked.
    """
    for point in (theta.detach().double(), theta.detach()):
        try:
            return _wrong_at(function, point)
        except RuntimeError:  # the function may be for its own dtype only
            continue
    return ""


def _wrong_at(function: Callable[[Tensor], Tensor], theta: Tensor) -> str:
    """The result of :func:`wrong_derivative` at theta, computed in the dtype of theta."""

    def gradient(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The leaf, the value there, and its gradient with a graph."""
        leaf = at.clone().requires_grad_()
        value = function(leaf)
        return leaf, value.detach(), torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)[0]

    def value_and_slope(at: Tensor) -> tuple[Tensor, Tensor]:
        _, value, slope = gradient(at)
        return value, slope.detach()

    leaf, value, slope = gradient(theta)
    # The direction is along the gradient, with a random factor for each entry. The slope along it is then a sum of
    # positive terms, one for every entry of the gradient, so that an error in any layer shows.
    random = torch.rand(len(theta), generator=stream(0, "hand written"), dtype=torch.float64, device="cpu").to(theta)
    direction = direction_of(slope.detach(), random)
    product = torch.zeros_like(theta)  # of the Hessian with the direction; 0 for a loss that is linear in theta
    if slope.requires_grad:
        product = torch.autograd.grad(slope, leaf, direction, materialize_grads=True)[0]
    return which_is_wrong(
        value_and_slope, theta, direction, value, slope.detach(), product, second=is_differentiable(slope)
    )


def direction_of(slope: Tensor, random: Tensor, inner: Inner = torch.dot) -> Tensor:
    """A direction of length one in which every entry of the gradient counts. random: numbers between 0 and 1."""
    direction = slope * (0.5 + random)
    squared_norm = inner(direction, direction)
    # Where the gradient is 0 or not finite, any direction is as good.
    if not bool(squared_norm > 0) or not bool(squared_norm.isfinite()):
        direction = random - 0.5
    return direction / inner(direction, direction).sqrt()


def is_differentiable(slope: Tensor) -> bool:
    """Whether a gradient has a derivative: a Function marked once_differentiable ends its graph."""
    return not any("autograd::Error" in node.name() for node in graph_nodes(slope))


def which_is_wrong(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]],
    theta: Tensor,
    direction: Tensor,
    value: Tensor,
    slope: Tensor,
    product: Tensor,
    *,
    second: bool = True,
    inner: Inner = torch.dot,
    num_params: int | None = None,
) -> str:
    """Which derivative at theta is not what central differences along a direction give: "gradient", "Hessian" or "".

    value_and_slope: the function that gives the loss and its gradient at a point. value, slope, product: at theta, the
    loss, the gradient and the product of the Hessian with the direction, as the derivatives under test give them.
    second: False leaves the product out. inner, num_params: where vectors lie in shards over several processes, the
    inner product of whole vectors and their length.
    """

    def norm(vector: Tensor) -> Tensor:
        return inner(vector, vector).sqrt() if vector.ndim else vector.abs()  # a slope along the direction is a number

    eps = torch.finfo(theta.dtype).eps
    # Relative to the root mean square of theta, if that is above 1.
    step = STEP * eps**0.5 * max(1.0, float(norm(theta)) / (num_params or len(theta)) ** 0.5)
    errors, norms = [], []  # at each of the two steps, a pair: for the gradient and for the product
    for h in (step, step / 8):
        (upper, g_upper), (lower, g_lower) = (
            value_and_slope(theta + h * direction),
            value_and_slope(theta - h * direction),
        )
        change, change_of_slope = (upper - lower) / (2 * h), (g_upper - g_lower) / (2 * h)
        errors.append((change - inner(slope, direction), change_of_slope - product))
        norms.append((change.abs(), norm(change_of_slope)))
    # The rounding error of a computed number is taken as 100 eps of it; a difference divides it by the step.
    noise = 100 * eps / (step / 8)
    # stated: the norms of the derivatives under test. rounding: the rounding errors of their difference quotients.
    stated, rounding = (norm(slope), norm(product)), (noise * value.abs(), noise * norm(slope))
    for i, name in enumerate(("gradient", "Hessian") if second else ("gradient",)):
        large, small = errors[0][i], errors[1][i]  # the errors at the larger and at the smaller step
        allowed = TOLERANCE * torch.maximum(norms[0][i], stated[i]) + rounding[i]
        if bool(norm(large) > allowed) and bool(norm(large - small) <= CONSISTENT * norm(large)):
            return name
    return ""
