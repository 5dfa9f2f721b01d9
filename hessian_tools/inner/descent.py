"""The inner loop of all learners: training differentiates it, and recording reads its points and gradients."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.inner.gradients import Gradient, recomputed_gradient, support_gradient
from hessian_tools.inner.parameters import Part
from hessian_tools.inner.steps import PLAIN, StepRule
from hessian_tools.loss import Batch, LossFunction


@dataclass(frozen=True)
class InnerPath:
    """The K + 1 points (parameter vectors) that an inner loop visited, and the K gradients at the first K of them.

    part: the parameters that moved, with respect to which the gradients are taken; None: all of them.
    """

    thetas: tuple[Tensor, ...]
    gradients: tuple[Gradient, ...]
    part: Part | None = None

    @property
    def adapted(self) -> Float[Tensor, " param"]:
        """The last point."""
        return self.thetas[-1]


def inner_loop(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    support: Batch,
    *,
    steps: int,
    step_size: float | Float[Tensor, ""] | Float[Tensor, " moved"],
    first_order: bool = False,
    first_gradient: Gradient | None = None,
    part: Part | None = None,
    rule: StepRule = PLAIN,
    minibatches: int = 1,
    checkpointing: bool = False,
    products: bool = False,
) -> InnerPath:
    """Take K steps theta_{k+1} = theta_k - alpha d_k on the support loss; the path is differentiable in ``theta``.

    The direction d_k is the gradient g_k for the plain rule.

    steps: K. step_size: alpha, one number, or one for each entry that moves.
    first_order: True treats every inner gradient as a constant in the outer derivative.
    first_gradient: the gradient at ``theta``, if another loop has computed it already. Its passes over the support set
        are then not repeated, and the outer backward pass goes through them once for both loops.
    part: the parameters that move, with respect to which the inner gradients are taken; None: all of them.
    rule: how a direction follows from the gradients.
    minibatches: the number of parts into which the rows of the support set are cut; step k sees part k mod minibatches.
    checkpointing: keep only the point of each step, and repeat the step's forward and backward pass in the outer
        backward pass. This needs memory for the activations of one step, whatever the number of steps. It changes
        nothing under ``first_order``, unless products are computed.
    products: compute H_k g_k too, the product of Hessian and gradient at each step. The gradients and the products of
        the path are then differentiable in ``theta`` even under ``first_order``, with the steps as constants.
    """
    keeps_graph = products or not first_order
    gradient_at = recomputed_gradient if checkpointing and keeps_graph else support_gradient
    thetas, gradients, state = [theta], list[Gradient](), None  # state: what the step rule remembers, if anything
    batches = row_parts(support, minibatches)
    for k in range(steps):
        if k == 0 and first_gradient is not None:
            gradient = first_gradient
        else:
            point = thetas[-1] if keeps_graph else thetas[-1].detach()
            gradient = gradient_at(loss, point, batches[k % minibatches], part=part, product=products)
        # Detaching the point is not enough: a loss that is a plain function may depend on other tensors that the outer
        # loop learns, so the gradient is detached too.
        vector = gradient.vector.detach() if first_order else gradient.vector
        direction, state = rule.direction(vector, state)
        gradients.append(gradient)
        step = step_size * direction
        thetas.append(thetas[-1] - step if part is None else part.put(thetas[-1], part.take(thetas[-1]) - step))
    return InnerPath(tuple(thetas), tuple(gradients), part)


def row_parts(batch: Batch, count: int) -> list[Any]:
    """A batch cut by rows into ``count`` parts of nearly equal size."""
    if count == 1:
        return [batch]
    leaves, tree = pytree.tree_flatten(batch)
    rows = min(len(leaf) for leaf in leaves)
    if count > rows:
        raise ValueError(f"minibatches={count} of {rows} examples leave some empty; use at most {rows}")
    pieces = [leaf.tensor_split(count) for leaf in leaves]
    return [pytree.tree_unflatten(list(part), tree) for part in zip(*pieces, strict=True)]
