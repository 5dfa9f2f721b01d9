"""The one inner loop: training differentiates it, recording reads it."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.meta.learners import Learner
from hessian_tools.meta.parameters import Part, moved_part, network_parameters, step_sizes
from hessian_tools.meta.steps import PLAIN, StepRule


@dataclass(frozen=True)
class Gradient:
    """A gradient by the entries that move, with what its pass over the support set also gave.

    These are the loss, and the outputs of a ``Loss``.
    """

    vector: Float[Tensor, " moved"]
    loss: Float[Tensor, ""]
    outputs: Tensor | None


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


def support_gradient(
    loss: LossFunction, theta: Float[Tensor, " param"], support: Batch, *, part: Part | None = None
) -> Gradient:
    """Gradient by the parameters in ``part``, loss and outputs, in one forward and one backward pass."""

    def with_outputs(moved: Tensor) -> tuple[Tensor, Tensor | None]:
        if not isinstance(loss, Loss):
            return loss(moved, support), None
        x, y = support
        outputs = loss.outputs(moved, x) if part is None else loss.outputs_at(rest | part.layout.unflatten(moved), x)
        return loss.criterion(outputs, y), outputs

    rest = loss.layout.unflatten(theta) if isinstance(loss, Loss) and part is not None else {}
    start = theta if part is None else part.of(theta)
    vector, (value, outputs) = grad_and_value(with_outputs, has_aux=True)(start)
    return Gradient(vector, value, outputs)


def inner_loop(
    loss: LossFunction,
    theta: Float[Tensor, " param"],
    support: Batch,
    *,
    steps: int,
    step_size: float | Float[Tensor, " moved"],
    first_order: bool = False,
    first_gradient: Gradient | None = None,
    part: Part | None = None,
    rule: StepRule = PLAIN,
    minibatches: int = 1,
) -> Path:
    """theta_{k+1} = theta_k - alpha d_k for K steps, d_k = g_k for the plain rule; differentiable in ``theta``.

    part: the parameters that move, all by default; the inner gradient is by no others.
    first_gradient: the gradient at ``theta`` where another loop has it already; the pass over the
    support set is then not made again, and an outer backward sweeps through it once for both.
    first_order: every gradient is a constant to the outer derivative.
    minibatches: step k sees part k mod minibatches of the support set's rows.
    """
    thetas, gradients, state = [theta], list[Gradient](), None
    batches = row_parts(support, minibatches)
    for k in range(steps):
        if k == 0 and first_gradient is not None:
            gradient = first_gradient
        else:
            point = thetas[-1].detach() if first_order else thetas[-1]
            gradient = support_gradient(loss, point, batches[k % minibatches], part=part)
        direction, state = rule.direction(gradient.vector, state)
        gradients.append(gradient)
        thetas.append(_moved(thetas[-1], step_size * direction, part))
    return Path(tuple(thetas), tuple(gradients), part)


def adapt(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"], support: Batch) -> Tensor:
    """The network's parameters [param] after the learner's inner loop; differentiable in ``theta``."""
    return learner_path(learner, loss, theta, support).adapted


def learner_path(
    learner: Learner,
    loss: LossFunction,
    theta: Float[Tensor, " meta"],
    support: Batch,
    *,
    steps: int | None = None,
    first_gradient: Gradient | None = None,
    minibatches: int = 1,
) -> Path:
    """The inner loop as the learner takes it, from its meta-parameters.

    steps: another number of steps in the same total time, by the rule's own measure of it.
    """
    alpha = step_sizes(learner, loss, theta)
    if steps is not None:
        alpha = learner.rule.time(learner.steps) * alpha / learner.rule.time(steps)
    return inner_loop(
        loss,
        network_parameters(loss, theta),
        support,
        steps=steps or learner.steps,
        step_size=alpha,
        first_order=learner.first_order,
        first_gradient=first_gradient,
        part=moved_part(learner, loss),
        rule=learner.rule,
        minibatches=minibatches,
    )


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
