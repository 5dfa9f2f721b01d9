"""The third derivative of a loss along a direction, and what the first three say of a step's effect."""

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
from hessian_tools.loss import Batch, LossFunction
from hessian_tools.torch_fixes.modes import PrimitiveNormalisation
from hessian_tools.torch_fixes.precision import full_precision

# What one point holds at once, in products: derivatives of third order carry twice the tangents.
PRODUCTS_HELD = 2


@dataclass(frozen=True)
class Expansion:
    """phi(t) = L(theta + t d) at t = 0: value L, first d'g, second d'Hd, third T(d, d, d) = phi'''(0).

    error: of third, from arithmetic in the dtype at hand; an estimate (see :func:`cubic_term`).
    """

    value: Float[Tensor, "*point"]
    first: Float[Tensor, "*point"]
    second: Float[Tensor, "*point"]
    third: Float[Tensor, "*point"]
    error: Float[Tensor, "*point"]

    def change(self, t: float | Float[Tensor, "*point"], *, order: int = 3) -> Float[Tensor, "*point"]:
        """L(theta + t d) - L(theta) as the Taylor polynomial of that order: t phi' + t^2 phi''/2 + t^3 phi'''/6.

        With d the gradient and t = -alpha it is the change that a step of gradient descent is due: order 1
        gives -alpha |g|^2, order 2 also the curvature's alpha^2 g'Hg / 2. What it leaves out is of order t^4 on a
        smooth loss; across kinks (ReLU, max-pool) there is no such order. Raises ValueError for another order.

        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> [round(float(Expansion(one, one, one, one, zero).change(0.6, order=k)), 3) for k in (1, 2, 3)]
        [0.6, 0.78, 0.816]
        """
        if order not in (1, 2, 3):
            raise ValueError(f"order={order}: the expansion is known to order 1, 2 or 3")
        terms = (t * self.first, t**2 * self.second / 2, t**3 * self.third / 6)
        return torch.stack(terms[:order]).sum(0)


@full_precision
def cubic_term(
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
    """Value and first three derivatives of t -> L(theta + t d) at every point; arguments as for :func:`hessian`.

    directions: d, one a point, of any length: the gradient, or the step itself. third scales with |d|^3.

    torch's normalisation kernels are silently wrong at third order; they are replaced by primitives here
    (:class:`PrimitiveNormalisation`). third is taken twice: forward over forward over forward,
    and forward over forward over reverse as d'T(d, d, .). error = their difference + 8 eps |d| |T(d, d, .)|: an
    operation that torch differentiates wrongly on one of the routes shows in it, and rounding: in float32 it
    covered the true error at all of 32 points of a Conv4, by 4 times in the median; no bound.
    At ReLU and max-pool the number is the third derivative of the smooth piece that theta lies in: a step that
    crosses a kink does not see it. Costs 6 to 8 Hessian-vector products a point.
    Raises ValueError as hessian does, and for directions of another shape, dtype or device than thetas.

    >>> t = cubic_term(lambda theta, _: (theta**3).sum(), torch.tensor([1.0, 2.0]), None, torch.tensor([1.0, 1.0]))
    >>> float(t.value), float(t.first), float(t.second), float(t.third)
    (9.0, 15.0, 18.0, 12.0)
    """
    if (directions.shape, directions.dtype, directions.device) != (thetas.shape, thetas.dtype, thetas.device):
        raise ValueError(
            f"directions are {list(directions.shape)} {directions.dtype} on {directions.device}, thetas "
            f"{list(thetas.shape)} {thetas.dtype} on {thetas.device}; give one direction a point, alike"
        )
    objective = objective_at(loss, thetas, batch, shared=shared, weights=weights)
    engine = checked_engine(chunk=chunk, batching=batching)
    d = directions.detach().reshape(objective.thetas.shape)
    value, first, second, third, again, size = (
        numbers.reshape(thetas.shape[:-1]) for numbers in _expansions_at(objective, engine, d)
    )
    error = (third - again).abs() + 8 * torch.finfo(third.dtype).eps * d.norm(dim=-1).reshape(size.shape) * size
    return Expansion(value, first, second, third, error)


def _expansions_at(objective: Objective, engine: Engine, d: Float[Tensor, "point param"]) -> list[Tensor]:
    of_groups = []
    for part, group in zip(objective.by_group(), objective.groups, strict=True):
        at_once = max(1, engine.products_at_once(part) // PRODUCTS_HELD)
        pieces = torch.arange(len(part.thetas), device="cpu").split(at_once)
        of_pieces = [_expansions(part.select(rows), engine, d[group.positions][rows]) for rows in pieces]
        of_groups.append([torch.cat(columns) for columns in zip(*of_pieces, strict=True)])
    return [objective.join(columns) for columns in zip(*of_groups, strict=True)]


def _expansions(objective: Objective, engine: Engine, d: Float[Tensor, "point param"]) -> tuple[Tensor, ...]:
    """At points of one group: the four numbers, the third again by the other route, and |T(d, d, .)|."""

    def one_point(theta: Tensor, batch: Batch, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        def loss(t: Tensor) -> Tensor:
            with PrimitiveNormalisation():
                return objective.loss(t, batch)

        def once(t: Tensor) -> Any:
            return jvp(grad(loss), (t,), (d,))

        at_theta, along_d = jvp(once, (theta,), (d,))[:2]
        (g, hd), (_, tdd) = at_theta, along_d
        value, again = _forward_only(loss, theta, d)
        return value, again, torch.stack([g, hd, tdd]) @ d, tdd

    results = zip(objective.weights, evaluate(objective, one_point, d, batching=engine.batching), strict=True)
    terms = [[weight * part for part in parts] for weight, parts in results]
    value, again, dots, tdd = (torch.stack(parts).sum(0).detach() for parts in zip(*terms, strict=True))
    return value, dots[:, 0], dots[:, 1], dots[:, 2], again, tdd.norm(dim=-1)


def _forward_only(loss: Callable[[Tensor], Tensor], theta: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """L and its third derivative by forward mode alone, three times over."""

    def once(t: Tensor) -> Any:
        return jvp(loss, (t,), (d,))

    def twice(t: Tensor) -> Any:
        return jvp(once, (t,), (d,))

    at_theta, along_d = jvp(twice, (theta,), (d,))[:2]
    return at_theta[0][0], along_d[1][1]
