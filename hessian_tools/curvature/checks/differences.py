"""Products from difference quotients of the gradient: an independent reference for smooth losses in float64.

The Hessian is the derivative of the gradient. The Gauss-Newton matrix is the derivative of the gradient with the
network's Jacobian held fixed, theta' -> J(theta)' (d criterion / d outputs)(theta').

These quotients are for checks only: in float32, on networks with kinks, they are off by 60 to 460 %.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp

from hessian_tools.curvature.engines.evaluate import weighted_sum
from hessian_tools.curvature.objective.matrix import DifferentiableOutputs
from hessian_tools.curvature.operators.composite import Projected
from hessian_tools.curvature.operators.gauss_newton import GaussNewton
from hessian_tools.curvature.operators.hessian import Hessian
from hessian_tools.curvature.operators.lengths import vector_norm
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import leaves, terms
from hessian_tools.loss import Batch, Loss

# Lengths of the steps that are tried, in units of |theta|: truncation shows at the longest, rounding at the shortest.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# A product shorter than this times |g| / |theta| is lost in the rounding of the gradient.
VISIBLE = 1e-6

# A vector field on parameter space, evaluated at every point: thetas [point, param] -> vectors [point, param].
Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quotients:
    """Difference quotients of the gradient g along directions v, with a judgement of their quality.

    central: (g(theta + h v) - g(theta - h v)) / 2h, with the step h at which the quotients disagree least.
    disagreement: the distance between the forward quotient (g(theta + h v) - g(theta)) / h and the backward quotient
    (g(theta) - g(theta - h v)) / h, or the distance between the central quotients of this h and the next larger one,
    whichever is more. On a smooth loss it is h times a third derivative, plus rounding, and is larger than the error of
    the central quotient. At a kink it does not shrink with h. smallest_visible: products shorter than this are hidden
    by rounding.
    """

    central: Float[Tensor, "point param probe"]
    disagreement: Float[Tensor, "point probe"]
    smallest_visible: Float[Tensor, "point 1"]


def differentiable(H: Operator) -> bool:
    """True if H is composed of Hessians and Gauss-Newton matrices alone.

    These are the derivatives of vector fields that can be evaluated, so difference quotients exist for them.
    """
    return all(isinstance(leaf, Hessian | GaussNewton) for leaf in leaves(H))


def difference_quotients(H: Operator, V: Float[Tensor, "param probe"]) -> Quotients:
    """H times each column of V by difference quotients, at every point.

    It costs two gradients for each step length, column of V and term of H.
    """
    parts = [(weight, _quotients_of_term(term, V)) for weight, term in terms(H)]
    return Quotients(
        torch.stack([weight * part.central for weight, part in parts]).sum(0),
        torch.stack([abs(weight) * part.disagreement for weight, part in parts]).sum(0),
        torch.stack([abs(weight) * part.smallest_visible for weight, part in parts]).sum(0),
    )


def _quotients_of_term(term: Operator, V: Tensor) -> Quotients:
    """The quotients of one term: a Hessian or Gauss-Newton matrix, or a block or restriction of one."""
    projections: list[Projected] = []
    directions = V.expand(term.num_points or 1, *V.shape)
    # A block or restriction is P'AP with a projection P: its directions become P times v, its gradients P' times g.
    while isinstance(term, Projected):
        directions = term.lift(directions)
        projections.append(term)
        term = term.whole
    assert isinstance(term, Hessian | GaussNewton)

    def projected(vectors: Tensor) -> Tensor:
        columns = vectors[..., None]
        for projection in reversed(projections):
            columns = projection.lower(columns)
        return columns[..., 0]

    thetas, field = term.objective.thetas, _field(term)
    gradients = field(thetas)
    length = vector_norm(thetas, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    columns = [
        _best_quotient(lambda moved: projected(field(moved)), thetas, v, projected(gradients), length)
        for v in directions.unbind(-1)
    ]
    central, disagreement = (torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True))
    return Quotients(central, disagreement, VISIBLE * vector_norm(gradients, keepdim=True) / length)


def _field(matrix: Hessian | GaussNewton) -> Field:
    """The vector field whose derivative the matrix is."""
    objective, engine = matrix.objective, matrix.engine
    if isinstance(matrix, Hessian):
        return lambda thetas: engine.gradients(replace(objective, thetas=thetas))
    loss = objective.loss
    assert isinstance(loss, Loss)

    def at_point(theta: Tensor, batch: Batch, moved: Tensor) -> Tensor:
        """J(theta)' (d criterion / d outputs)(moved)."""
        x, y = loss.split(batch)
        # A function theta -> (the floating-point outputs, all other outputs), of which vjp differentiates the former.
        network = DifferentiableOutputs(loss, x)
        pull = vjp(network, theta, has_aux=True)[1]
        floating, others = network(moved)
        return pull(grad(lambda parts: loss.criterion(network.put_back(parts, others), y))(floating))[0]

    def at_points(moved: Float[Tensor, "point param"]) -> Float[Tensor, "point param"]:
        pieces = []
        for rows in torch.arange(len(moved), device="cpu").split(engine.products_at_once(objective)):
            part = objective.select(rows)
            pieces.append(weighted_sum(part, at_point, moved[rows], batching=engine.batching))
        return torch.cat(pieces)

    return lambda moved: objective.summed(lambda: at_points(moved))


def _best_quotient(field: Field, thetas: Tensor, v: Tensor, middle: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """At every point the central quotient with the least disagreement, and this disagreement.

    middle: field(thetas). length: |theta|, the unit of the step lengths.
    """
    best, smallest = torch.full_like(middle, torch.nan), middle.new_full((len(middle),), torch.inf)
    previous = best
    for step in STEPS:
        h = step * length
        ahead, behind = (field(thetas + sign * h * v) for sign in (1, -1))
        central = (ahead - behind) / (2 * h)
        both_sides = vector_norm((ahead - 2 * middle + behind) / h)  # the forward minus the backward quotient
        # Rounding turns the gradient into a step function. Forward and backward quotients may then agree by chance, but
        # the central quotients of two step lengths do not.
        # The first length has no predecessor (NaN) and is therefore never chosen.
        disagreement = torch.maximum(both_sides, vector_norm(central - previous))
        better = disagreement < smallest
        best, smallest = torch.where(better[:, None], central, best), torch.where(better, disagreement, smallest)
        previous = central
    return best, smallest
