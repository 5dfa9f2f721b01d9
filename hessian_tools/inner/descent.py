"""The one inner loop: training differentiates it, recording reads it."""

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
class Path:
    """The points an inner loop visited (K + 1) and the gradients it stepped along (K).

    part: the parameters that moved, to which the gradients belong; None: all.
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
) -> Path:
    """theta_{k+1} = theta_k - alpha d_k for K steps, d_k = g_k for the plain rule; differentiable in ``theta``.

    part: the parameters that move, all by default; the inner gradient is by no others.
    first_gradient: the gradient at ``theta`` where another loop has it already; the pass over the
    support set is then not made again, and an outer backward sweeps through it once for both.
    first_order: every gradient is a constant to the outer derivative.
    minibatches: step k sees part k mod minibatches of the support set's rows.
    checkpointing: keep of each step its point, and make its two passes again in the outer backward:
    memory for one step's activations however many there are. Nothing to do for ``first_order``.
    """
    gradient_at = recomputed_gradient if checkpointing and not first_order else support_gradient
    thetas, gradients, state = [theta], list[Gradient](), None
    batches = row_parts(support, minibatches)
    for k in range(steps):
        if k == 0 and first_gradient is not None:
            gradient = first_gradient
        else:
            point = thetas[-1].detach() if first_order else thetas[-1]
            gradient = gradient_at(loss, point, batches[k % minibatches], part=part)
        # Detached once more: a plain function may hold on to other things that the outer loop learns.
        vector = gradient.vector.detach() if first_order else gradient.vector
        direction, state = rule.direction(vector, state)
        gradients.append(gradient)
        thetas.append(_moved(thetas[-1], step_size * direction, part))
    return Path(tuple(thetas), tuple(gradients), part)


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


def _moved(theta: Tensor, step: Tensor, part: Part | None) -> Tensor:
    return theta - step if part is None else part.put(theta, part.of(theta) - step)
