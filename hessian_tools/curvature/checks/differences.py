"""Products from differences of the gradient: an independent witness, for float64 and smooth places.

The Hessian is the derivative of the gradient; the Gauss-Newton matrix that of the gradient with the network's
Jacobian held fixed, theta' -> J(theta)' (d criterion / d outputs)(theta').

For checks only: on networks with kinks difference quotients are off by 60-460 % in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp

from hessian_tools.curvature.engines.engine import Engine
from hessian_tools.curvature.engines.evaluate import evaluate, weighted_sum
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.composite import Projected
from hessian_tools.curvature.operators.gauss_newton import GaussNewton
from hessian_tools.curvature.operators.hessian import Hessian
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import leaves, terms
from hessian_tools.loss import Batch, Loss

# Lengths of the steps tried, in units of |theta|: from where truncation shows to where rounding does.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# A product smaller than this times |g| / |theta| drowns in the rounding of the gradient.
VISIBLE = 1e-6

# A vector field on parameter space, at every point: thetas -> vectors.
Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quotients:
    """central: (g(theta + h v) - g(theta - h v)) / 2h, with the h of least disagreement.

    disagreement: of the quotients (g(theta + h v) - g(theta)) / h and (g(theta) - g(theta - h v)) / h there, or
    with the central one of the next larger h, if more. On a smooth loss it is h times a third derivative,
    plus rounding, and more than the error of the central one; at a kink it does not shrink with h.
    smallest_visible: the size of product that rounding hides.
    """

    central: Float[Tensor, "point param probe"]
    disagreement: Float[Tensor, "point probe"]
    smallest_visible: Float[Tensor, "point 1"]


def differentiable(H: Operator) -> bool:
    """Whether it is known which field each of its leaves is the derivative of."""
    return all(isinstance(leaf, Hessian | GaussNewton) for leaf in leaves(H))


def difference_quotients(H: Operator, V: Float[Tensor, "param probe"]) -> Quotients:
    """H times each column of V by quotients, at every point; two gradients a step, column and term of H."""
    parts = [(weight, _of_term(term, V)) for weight, term in terms(H)]
    return Quotients(
        torch.stack([weight * part.central for weight, part in parts]).sum(0),
        torch.stack([abs(weight) * part.disagreement for weight, part in parts]).sum(0),
        torch.stack([abs(weight) * part.smallest_visible for weight, part in parts]).sum(0),
    )


def _of_term(term: Operator, V: Tensor) -> Quotients:
    """Of a Hessian or Gauss-Newton matrix, perhaps inside of blocks and restrictions, which see a part of it."""
    outside: list[Projected] = []
    directions = V.expand(term.num_points or 1, *V.shape)
    while isinstance(term, Projected):
        directions = term.lift(directions)
        outside.append(term)
        term = term.whole
    assert isinstance(term, Hessian | GaussNewton)

    def seen(vectors: Tensor) -> Tensor:
        columns = vectors[..., None]
        for compression in reversed(outside):
            columns = compression.lower(columns)
        return columns[..., 0]

    thetas, field = term.objective.thetas, _field(term)
    at = field(thetas)
    length = thetas.norm(dim=-1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    columns = [_best(field, thetas, v, at, length, seen) for v in directions.unbind(-1)]
    central, disagreement = (torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True))
    return Quotients(central, disagreement, VISIBLE * at.norm(dim=-1, keepdim=True) / length)


def _field(matrix: Hessian | GaussNewton) -> Field:
    objective, engine = matrix.objective, matrix.engine
    if isinstance(matrix, Hessian):
        return lambda thetas: engine.gradients(replace(objective, thetas=thetas))
    return lambda thetas: _gradients_by_fixed_jacobian(objective, engine, thetas)


def _gradients_by_fixed_jacobian(
    objective: Objective, engine: Engine, moved: Float[Tensor, "point param"]
) -> Float[Tensor, "point param"]:
    """J(theta)' (d criterion / d outputs)(moved)."""
    loss = objective.loss
    assert isinstance(loss, Loss)

    def one(theta: Tensor, batch: Batch, elsewhere: Tensor) -> Tensor:
        x, y = batch
        pull = vjp(lambda t: loss.outputs(t, x), theta)[1]
        return pull(grad(lambda out: loss.criterion(out, y))(loss.outputs(elsewhere, x)))[0]

    pieces = []
    for rows in torch.arange(len(moved), device="cpu").split(engine.products_at_once(objective)):
        part = objective.select(rows)
        pieces.append(weighted_sum(part, evaluate(part, one, moved[rows], batching=engine.batching)))
    return torch.cat(pieces)


def _best(
    field: Field, thetas: Tensor, v: Tensor, at: Tensor, length: Tensor, seen: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    here = seen(at)
    best, least = torch.full_like(here, torch.nan), here.new_full((len(here),), torch.inf)
    last = best
    for step in STEPS:
        h = step * length
        ahead, behind = (seen(field(thetas + side * h * v)) for side in (1, -1))
        central = (ahead - behind) / (2 * h)
        # Both sides may agree by chance where rounding makes stairs of the gradient; two steps then do not.
        doubt = torch.maximum(((ahead - 2 * here + behind) / h).norm(dim=-1), (central - last).norm(dim=-1))
        better = doubt < least
        best, least, last = torch.where(better[:, None], central, best), torch.where(better, doubt, least), central
    return best, least
