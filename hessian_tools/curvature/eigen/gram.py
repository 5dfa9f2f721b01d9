"""The whole spectrum of the Gauss-Newton matrix G from a Gram matrix with a row for each output of each example.

    G = J'BJ,   B = F'F,   M = FJ,   G = M'M

J is the Jacobian of the outputs and B the Hessian of the criterion in the outputs; F is made from the eigenvectors of
B. The eigenvalues of G are those of the Gram matrix MM', and zeros. M has one row for each output of each example, so
MM' is small even where G is large.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.curvature.eigen.exact import SolvedPoints
from hessian_tools.curvature.eigen.selection import ROUNDING
from hessian_tools.curvature.eigen.small_eigh import eigh, eigvalsh, finite, flushed, set_nan, solvable
from hessian_tools.curvature.engines.choice import ENGINES
from hessian_tools.curvature.engines.engine import Engine
from hessian_tools.curvature.engines.evaluate import evaluate, over_columns
from hessian_tools.curvature.objective.objective import Objective, slices
from hessian_tools.curvature.operators.gauss_newton import GaussNewton, factors_at
from hessian_tools.curvature.operators.lengths import inner_products
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.loss import Batch, Loss
from hessian_tools.outputs import differentiable_part

# How many matrices of the size of J exist at the same time: J, FJ, and those of the singular value decomposition.
COPIES_OF_J = 6


class NotConvexError(ValueError):
    """The criterion is not convex in the outputs, so that B has no real root F."""


def has_gram_matrix(H: Operator) -> TypeGuard[GaussNewton]:
    """True if H is a Gauss-Newton matrix with a Gram matrix of one size at all points (not for ragged batches)."""
    # Each process has the rows of J of its own batches, so no process can compute the Gram matrix of all rows.
    is_alone = H.ranks is None
    return is_alone and isinstance(H, GaussNewton) and len(H.objective.groups) == 1 and has_output_passes(H)


def has_output_passes(H: LossOperator) -> bool:
    """True if the rows of J can be computed together by torch.func, and the criterion is known as a function."""
    # For a Gauss-Newton matrix the engine double_backward is taken only where the user names it, or where torch.func
    # cannot differentiate the network. A Hessian may take it for its speed.
    double_backward = ENGINES.get(H.engine.route) == "double_backward" or "double_backward" in H.prepared.engines
    is_criterion_known = isinstance(H.objective.loss, Loss) and H.objective.loss.has_criterion
    return is_criterion_known and not (isinstance(H, GaussNewton) and double_backward)


def gram_points(G: GaussNewton, *, vectors: bool, done: Callable[[int], None] = lambda count: None) -> SolvedPoints:
    """The eigenvalues of G that can differ from zero, at every point; ``num_matvecs`` counts backward passes.

    The error is the sum of two: that of the small eigenvalue problem, which is its number of rows * eps * the largest
    value, and what :func:`_root` has clipped. The cost is one backward pass for each output of each example.
    done: called, whenever points have been solved, with their number. Raises NotConvexError.
    """
    objective, engine = G.objective, G.engine
    theta, rows, passes = objective.thetas[0], sum(num_outputs(objective)), engine.products_at_once(objective)
    bytes_of_point = COPIES_OF_J * rows * theta.numel() * theta.element_size()
    budget = engine.memory.budget(theta.device)
    at_once = max(1, min(passes // max(1, rows), budget // max(1, bytes_of_point)))
    points, parts = torch.arange(len(objective.thetas), device="cpu"), []
    for chosen in points.split(at_once):
        parts.append(_gram_spectrum(objective.select(chosen), engine, passes, vectors=vectors))
        done(len(chosen))
    values, error, Q = (torch.cat(column) for column in zip(*parts, strict=True))
    return SolvedPoints(
        points, values.double(), Q.mT if vectors else None, error.double(), dense=False, num_matvecs=rows
    )


def num_outputs(objective: Objective) -> list[int]:
    """For each batch, how many numbers the network outputs at one point: examples times outputs."""
    loss, theta, numbers = objective.network, objective.thetas[0], []
    for batch in objective.batches_at(0):
        # Not under vmap, which has no rule for the forward pass of recurrent networks; and with gradients enabled,
        # because a network may differentiate inside itself.
        with torch.enable_grad():
            outputs = loss.outputs(theta, loss.split(batch)[0])
        numbers.append(sum(leaf.numel() for leaf in differentiable_part(outputs)[0]))
    return numbers


def _gram_spectrum(
    objective: Objective, engine: Engine, passes: int, *, vectors: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, their error and the eigenvectors as columns (no columns if vectors is False).

    The matrices M' of all batches are put side by side. If vectors are needed, the result comes from the singular value
    decomposition of this matrix; otherwise the eigenvalues of its Gram matrix suffice. passes: how many backward passes
    run at once.
    """
    loss = objective.network

    def derivatives(theta: Float[Tensor, " param"], batch: Batch) -> tuple[Tensor, Tensor]:
        """J' and B at one point, as many of their columns at once as the memory budget allows."""
        count, pull, curve = factors_at(loss, theta, batch)
        unit = torch.eye(count, dtype=theta.dtype, device=theta.device)
        pieces = [unit[:, columns] for columns in slices(count, passes)]
        Jt = [over_columns(pull, piece, batching=engine.batching) for piece in pieces]
        B = [over_columns(curve, piece, batching=engine.batching) for piece in pieces]
        return torch.cat(Jt, dim=-1), torch.cat(B, dim=-1)

    factors = zip(objective.weights, evaluate(objective, derivatives, batching=engine.batching), strict=True)
    roots, clipped = zip(*(_root(Jt.detach(), weight * B.detach()) for weight, (Jt, B) in factors), strict=True)
    Mt, bad = finite(torch.cat(roots, dim=-1))
    if vectors:
        Q, singular, _ = torch.linalg.svd(flushed(Mt), full_matrices=False)
        values = singular**2
    else:
        Q = Mt[..., :0]
        gram = inner_products(Mt.mT, Mt.mT) if Mt.shape[-1] <= Mt.shape[-2] else Mt @ Mt.mT
        values = eigvalsh(solvable(gram)).to(gram.dtype).flip(-1).clamp(min=0)
    largest = values.amax(-1) if values.shape[-1] else values.new_zeros(len(values))
    error = Mt.shape[-1] * torch.finfo(values.dtype).eps * largest + torch.stack(clipped).sum(0)
    return set_nan(values, bad), set_nan(error, bad), set_nan(Q, bad)


def _root(
    Jt: Float[Tensor, "point param row"], B: Float[Tensor, "point row row"]
) -> tuple[Float[Tensor, "point param row"], Float[Tensor, " point"]]:
    """J'F' with F'F = B, from B = U diag(b) U', where negative b count as zero.

    Also returns the trace of the part of J'BJ that is lost by this clipping. Raises NotConvexError if a negative b is
    larger than rounding explains.
    """
    B, bad = finite((B + B.mT) / 2)
    b, U = (part.to(B.dtype) for part in eigh(solvable(B)))
    # Negative eigenvalues of the size of rounding are accepted. For confident predictions all of B may be rounding, so
    # they are compared with the scale of B and with a fixed number.
    eps = torch.finfo(b.dtype).eps
    if ((b.amin(-1) < -(eps**0.5) * b.amax(-1)) & (b.amin(-1) < -ROUNDING * eps)).any():
        raise NotConvexError(
            "the criterion is not convex in the outputs, so Gauss-Newton has no Gram matrix; "
            "use gauss_newton and top_eigenpairs"
        )
    rotated = set_nan(Jt, bad) @ U
    clipped = (b.clamp(max=0).abs() * (rotated**2).sum(-2)).sum(-1)
    return rotated * b.clamp(min=0).sqrt()[:, None, :], clipped
