"""The third derivative of a loss along a direction, and the effect of a step predicted by three derivatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from hessian_tools.curvature.engines.engine import Engine, checked_engine
from hessian_tools.curvature.engines.evaluate import Batching, evaluate
from hessian_tools.curvature.objective.objective import Objective, Weights
from hessian_tools.curvature.objective.validation import objective_at
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.loss import Batch, LossFunction
from hessian_tools.result import Result
from hessian_tools.torch_fixes.function_modes import PrimitiveNormalisation

# The memory that one point needs, in units of a Hessian-vector product. A third derivative carries twice the tangents.
PRODUCTS_PER_POINT = 2


@dataclass(frozen=True, repr=False)
class Expansion(Result):
    """The Taylor expansion of phi(t) = L(theta + t d) at t = 0, at every point.

    value: L. first: phi' = d'g. second: phi'' = d'Hd. third: phi''' = T(d, d, d), T the tensor of third derivatives.
    error: an estimate of the rounding error of ``third``, see :func:`third_derivative`.
    """

    value: Float[Tensor, "*point"]
    first: Float[Tensor, "*point"]
    second: Float[Tensor, "*point"]
    third: Float[Tensor, "*point"]
    error: Float[Tensor, "*point"]

    def change(self, t: float | Float[Tensor, "*point"], *, order: int = 3) -> Float[Tensor, "*point"]:
        """L(theta + t d) - L(theta) by the Taylor polynomial of the given order: t phi' + t^2 phi''/2 + t^3 phi'''/6.

        With d the gradient and t = -alpha it predicts the effect of a step of gradient descent: order 1
        gives -alpha |g|^2, and order 2 adds the curvature's alpha^2 g'Hg / 2. On a smooth loss the remainder of order
        3 is of order t^4; across kinks (ReLU, max-pooling) it need not be. Raises ValueError for an order other than 1,
        2 or 3.

        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> [round(float(Expansion(one, one, one, one, zero).change(0.6, order=k)), 3) for k in (1, 2, 3)]
        [0.6, 0.78, 0.816]
        """
        if order not in (1, 2, 3):
            raise ValueError(f"order={order} is not known; give 1, 2 or 3")
        terms = (t * self.first, t**2 * self.second / 2, t**3 * self.third / 6)
        return torch.stack(terms[:order]).sum(0)


def third_derivative(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    directions: Float[Tensor, "*point param"],
    *,
    shared: bool = False,
    weights: Weights = "size",
    chunk: int | None = None,
    batching: Batching = "vmap",
) -> Expansion:
    """The value and the first three derivatives of t -> L(theta + t d) at every point.

    directions: d, one for each point, of any length, such as the gradient or the step itself; the third derivative
    scales with |d|^3. The other arguments are those of :func:`hessian`.

    torch's normalisation kernels are silently wrong at third order, so they are replaced by primitives
    (:class:`PrimitiveNormalisation`). The third derivative is computed twice: by three nested forward modes, and by
    forward over forward over reverse as d'T(d, d, .), where T is the tensor of third derivatives. The stated error is
    the difference of the two + 8 eps |d| |T(d, d, .)|. It shows rounding, and operations that torch differentiates
    wrongly in one of the two ways. In float32 it was larger than the true error at all of 32 points of a Conv4, and 4
    times as large in the median. It is not a bound.
    With ReLU and max-pooling the result is the third derivative of the smooth piece that theta lies in, and a step that
    crosses a kink leaves that piece. The cost is 6 to 8 Hessian-vector products at each point.
    Raises ValueError as :func:`hessian` does, and for directions of another shape, dtype or device than thetas.

    >>> theta, d = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
    >>> along = third_derivative(lambda theta, _: (theta**3).sum(), theta, None, d)
    >>> float(along.value), float(along.first), float(along.second), float(along.third)
    (9.0, 15.0, 18.0, 12.0)
    """
    if (directions.shape, directions.dtype, directions.device) != (thetas.shape, thetas.dtype, thetas.device):
        raise ValueError(
            f"directions are {list(directions.shape)} {directions.dtype} on {directions.device}, but thetas are "
            f"{list(thetas.shape)} {thetas.dtype} on {thetas.device}; give one direction for each point, like thetas"
        )
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights)
    engine = checked_engine(chunk=chunk, batching=batching)
    d = directions.detach().reshape(objective.thetas.shape)
    value, first, second, third, third_by_forward, tdd_norm = (
        numbers.reshape(thetas.shape[:-1]) for numbers in _expansions_at(objective, engine, d)
    )
    rounding = 8 * torch.finfo(third.dtype).eps * vector_norm(d).reshape(third.shape) * tdd_norm
    error = (third - third_by_forward).abs() + rounding
    return Expansion(value, first, second, third, error)


def _expansions_at(objective: Objective, engine: Engine, d: Float[Tensor, "point param"]) -> list[Tensor]:
    """The tensors of :func:`_expansions` for all points, from as many points at a time as fit in memory.

    The points of a group have batches of one shape; ``join`` puts the results of the groups in the order of the points.
    """
    group_results = []
    for part, group in zip(objective.by_group(), objective.groups, strict=True):
        at_once = max(1, engine.products_at_once(part) // PRODUCTS_PER_POINT)
        if part.ranks is not None:  # all processes that share the data must compute the same points together
            at_once = int(min(row[0] for row in part.ranks.numbers([at_once])))
        pieces = torch.arange(len(part.thetas), device="cpu").split(at_once)
        piece_results = [_expansions(part.select(rows), engine, d[group.positions][rows]) for rows in pieces]
        group_results.append([torch.cat(columns) for columns in zip(*piece_results, strict=True)])
    return [objective.join(columns) for columns in zip(*group_results, strict=True)]


def _expansions(objective: Objective, engine: Engine, d: Float[Tensor, "point param"]) -> tuple[Tensor, ...]:
    """Value, first, second and third derivative, the third by forward mode alone, and |T(d, d, .)|.

    The objective must have a single group of points.
    """

    def one_point(theta: Tensor, batch: Batch, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def loss(t: Tensor) -> Tensor:
            with PrimitiveNormalisation():
                return objective.loss(t, batch)

        def along_d(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
            """A function that returns the pair (value of the given function, its derivative along d)."""
            return lambda t: jvp(function, (t,), (d,))

        # The pair (g, Hd), and its derivative along d, which is the pair (Hd, T(d, d, .)).
        (g, hd), (_, tdd) = along_d(along_d(grad(loss)))(theta)
        # By three nested forward modes, so that no rule of reverse mode is used.
        ((value, _), _), (_, (_, third_by_forward)) = along_d(along_d(along_d(loss)))(theta)
        return value, third_by_forward, torch.stack([g, hd, tdd]) @ d, tdd

    results = zip(objective.weights, evaluate(objective, one_point, d, batching=engine.batching), strict=True)
    # Each of the four results is summed over the batches.
    terms = [[weight * part for part in parts] for weight, parts in results]
    value, third_by_forward, dots, tdd = (torch.stack(parts).sum(0).detach() for parts in zip(*terms, strict=True))
    if objective.ranks is not None:  # before the norm, which is not linear in the loss
        value, third_by_forward, dots, tdd = map(objective.ranks.sum, (value, third_by_forward, dots, tdd))
    # The dots are d'g, d'Hd and T(d, d, d), which are the first three derivatives along d.
    return value, dots[:, 0], dots[:, 1], dots[:, 2], third_by_forward, vector_norm(tdd)
